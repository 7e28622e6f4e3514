"""``h2gen.batch``: the batch of the command line as a Python function."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import h2gen
from h2gen.batches.api import prepare
from h2gen.batches.observer import Tally
from h2gen.errors import PromptFileError, PromptWarning, SettingError, Stopped
from h2gen.output.metadata import read_metadata
from tests import loras, small

QUICK: dict[str, Any] = {"steps": 2, "cfg": 1.0, "preset": "paper", "size": "64x64"}


class Log(h2gen.BatchObserver):
    def __init__(self) -> None:
        self.events: list[Any] = []

    def counted(self, tally: Tally, duplicates: int, workers: int) -> None:
        self.events.append(("counted", tally.jobs, tally.skipped, duplicates, workers))

    def saved(self, job: Any, path: Path, made: Any, tally: Tally) -> None:
        self.events.append(("saved", path.name))

    def ended(self, tally: Tally, seconds: float, failures_file: Path | None, error: Any) -> None:
        self.events.append(("ended", tally.made, tally.left, failures_file, type(error)))


def test_a_truncated_prompt_is_a_warning(tmp_path: Path) -> None:
    prompt = "a cat beside a dog" + " on a yellow background" * 5
    with pytest.warns(PromptWarning, match=r"prompt 2: The prompt is truncated to 24 tokens; left out: .*background"):
        h2gen.batch(["a cat", prompt], out=str(tmp_path), seed=7, **QUICK)


def test_a_prompt_read_otherwise_than_meant_is_a_warning(tmp_path: Path) -> None:
    with pytest.warns(PromptWarning, match=r"prompt 1: '<lora:x:1>' is read as plain words"):
        h2gen.batch(["a cat <lora:x:1>"], out=str(tmp_path), seed=7, **QUICK)
    with pytest.raises(
        PromptFileError, match="prompt 1: there is no setting 'num_inference_steps'; did you mean 'steps'"
    ):
        h2gen.batch([{"prompt": "a cat", "num_inference_steps": 3}], out=str(tmp_path))


def test_prompts_and_entries_become_pictures_and_what_is_there_is_not_made_again(tmp_path: Path) -> None:
    prompts: list[str | Mapping[str, Any]] = ["a cat", {"prompt": "a dog", "steps": 3, "mood": "calm"}, "a  cat"]
    log = Log()
    result = h2gen.batch(prompts, out=str(tmp_path), seed=7, observer=log, **QUICK)
    names = ["0001-a-cat-7.png", "0002-a-dog-7.png"]
    assert [path.name for path in result.paths] == names
    assert log.events == [
        ("counted", 2, 0, 1, 1),
        *(("saved", name) for name in names),
        ("ended", 2, 0, None, type(None)),
    ]
    assert (result.jobs, result.made, result.skipped, result.failed, result.failures_file) == (2, 2, 0, 0, None)
    assert result.cache.steps == 5 and result.seconds > 0
    cat, dog = result.pictures
    assert (cat.index, cat.source, cat.prompt, cat.seed, cat.new) == (1, "prompt 1", "a cat", 7, True)
    assert cat.seconds is not None and cat.cache is not None and cat.cache.steps == 2
    found = read_metadata(dog.path)
    assert found.settings.steps == 3 and found.everything["notes"]["mood"] == "calm"

    again = h2gen.batch([*prompts, "an owl"], out=str(tmp_path), seed=7, **QUICK)
    assert (again.jobs, again.made, again.skipped) == (3, 1, 2)
    assert [(picture.path.name, picture.new) for picture in again.pictures] == [
        *((name, False) for name in names),
        ("0004-an-owl-7.png", True),
    ]


def test_only_the_function_keeps_a_record_of_each_picture_and_a_second_run_counts_anew(tmp_path: Path) -> None:
    prepared = prepare(["a cat"], out=str(tmp_path), seed=7, **QUICK)
    first = prepared.run(h2gen.BatchObserver())
    assert (first.made, first.pictures) == (1, ())
    second = prepared.run(h2gen.BatchObserver(), collect=True)
    assert (second.made, second.skipped) == (0, 1)
    assert [(picture.index, picture.new) for picture in second.pictures] == [(1, False)]


def test_a_warning_about_the_model_in_a_worker_becomes_a_notice(tmp_path: Path) -> None:
    small.flux_pipeline().save_pretrained(tmp_path / "flux")
    file = tmp_path / "flux" / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(file) | {"extra.weight": torch.zeros(1)}, file, metadata={"format": "pt"})
    notices: list[str] = []
    log = Log()
    log.notice = notices.append  # type: ignore[method-assign]
    options = QUICK | {"max_sequence_length": 16}
    h2gen.batch(["a cat"], out=str(tmp_path / "out"), model=str(tmp_path / "flux"), observer=log, **options)
    assert any("also holds 'extra.weight'" in notice for notice in notices)


def test_prompt_files_are_read_as_the_command_reads_them(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a cat\n# no\n")
    result = h2gen.batch(files=[tmp_path / "p.txt"], out=str(tmp_path / "out"), seed="1-2", name="{seed}", **QUICK)
    assert [(path.name, picture.source) for path, picture in zip(result.paths, result.pictures, strict=True)] == [
        ("1.png", "p.txt:1"),
        ("2.png", "p.txt:1"),
    ]


def test_what_fails_is_in_the_result(tmp_path: Path) -> None:
    """Whether a LoRA's layers are the model's, only the loaded model can say."""
    small.flux2_klein_pipeline().save_pretrained(tmp_path / "klein")
    lora = str(loras.save_smallest(tmp_path / "other.safetensors"))
    options = {**QUICK, "model": str(tmp_path / "klein"), "max_sequence_length": 32}
    result = h2gen.batch([{"prompt": "a cat", "lora": lora}, "a dog"], out=str(tmp_path / "out"), **options)
    assert (result.made, result.failed) == (1, 1)
    (failure,) = result.failures
    assert (failure.index, failure.source, failure.settings.prompt) == (1, "prompt 1", "a cat")
    assert "does not fit this FLUX.2" in failure.error
    assert result.failures_file == tmp_path / "out" / "h2gen-failures.jsonl" and result.failures_file.exists()


@pytest.mark.parametrize(
    ("prompts", "more", "kind", "words"),
    [
        (None, {}, SettingError, "either prompts or prompt files"),
        (["a cat"], {"files": ["p.txt"]}, SettingError, "either prompts or prompt files"),
        ("a cat", {}, SettingError, "give a list of prompts"),
        (["a cat", {"steps": 3}], {}, PromptFileError, "prompt 2: prompt is empty"),
        (["a cat", {"prompt": "a dog", "steps": "x"}], {}, PromptFileError, "prompt 2: steps is 'x'"),
        (["a cat"], {"steps": 0}, SettingError, "steps is 0"),
        (["a cat"], {"out": "a.png"}, SettingError, "a batch needs a folder"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    prompts: Sequence[Any] | None,
    more: dict[str, Any],
    kind: type[Exception],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=words):
        h2gen.batch(prompts, **more)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.posix
def test_stopping_raises_and_keeps_what_is_made(tmp_path: Path) -> None:
    import os
    import signal

    class Stopping(Log):
        def saved(self, job: Any, path: Path, made: Any, tally: Tally) -> None:
            super().saved(job, path, made, tally)
            os.kill(os.getpid(), signal.SIGINT)

    log = Stopping()
    with pytest.raises(Stopped, match=r"Stopped\. [12] pictures? left") as caught:
        h2gen.batch(["a cat", "a dog", "an owl"], out=str(tmp_path), observer=log, **QUICK)
    assert caught.value.exit_code == 130
    made = [event for event in log.events if event[0] == "saved"]
    assert log.events[-1] == ("ended", len(made), 3 - len(made), None, Stopped)
    assert len(list(tmp_path.glob("*.png"))) == len(made)


def test_it_runs_outside_the_main_thread_too(tmp_path: Path) -> None:
    results: list[h2gen.BatchResult] = []
    thread = threading.Thread(target=lambda: results.append(h2gen.batch(["a cat"], out=str(tmp_path), **QUICK)))
    thread.start()
    thread.join()
    assert [result.made for result in results] == [1]
