"""What a model probably does not read as it was meant gets one line of each kind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from h2gen.batches.jobs import Jobs
from h2gen.batches.prompts import Entry, Reading
from h2gen.models.catalogue import resolve
from h2gen.models.vocabulary import vocabulary
from h2gen.settings.remarks import remarks_on
from h2gen.settings.resolve import resolve_request

SHOW = "'h2gen models show tiny' lists what it knows."


def lines(prompt: str, model: str = "tiny", **given: Any) -> list[str]:
    request = resolve_request(prompt, {"model": model, **given}, {})
    found = [remark.text for remark in remarks_on(prompt, request.settings, request.checkpoint)]
    assert set(found) <= set(request.notices)
    return found


WILDCARD = "is read as plain words: wildcards are not supported; write one prompt per line of a file."
SYNTAX = {
    "a cat <lora:emoji:0.8>": "'<lora:emoji:0.8>' is read as plain words: LoRAs are not loaded from prompts; give "
    "--lora FILE:SCALE.",
    "a (big:1.3) cat": "'(big:1.3)' is read as plain words: prompt weights are not supported.",
    "a {red|blue} cat": f"'{{red|blue}}' {WILDCARD}",
    "a __colour__ cat": f"'__colour__' {WILDCARD}",
    "a [cat|dog]": f"'[cat|dog]' {WILDCARD}",
    "a dog   # a big one": "'# a big one' is read as plain words: a comment needs a line of its own.",
    "a dog --seed 3": "'--seed' is read as words of the prompt; give --seed outside the prompt.",
    "a dog --ar 16:9": "'--ar' is read as words of the prompt; give --size outside the prompt.",
    "a dog -n 3": "'-n' is read as words of the prompt; give --count outside the prompt.",
}


@pytest.mark.parametrize("prompt", SYNTAX)
def test_marks_of_other_programs_are_named_whatever_the_model(prompt: str) -> None:
    assert lines(prompt, "dev") == [SYNTAX[prompt]]
    assert lines(prompt)[0] == SYNTAX[prompt]


@pytest.mark.parametrize(
    "prompt",
    [
        "a cat (big)",
        "a map (scale 1:10), (16:9)",
        "a {cat}",
        "a [cat] #1, #art",
        "a cat -- a dog, x--y, - n",
        "a __ b __",
        "the ratio a:1.3",
        "<a cat>",
    ],
)
def test_what_is_only_like_them_is_not_remarked_on(prompt: str) -> None:
    assert lines(prompt, "dev") == []


@pytest.mark.parametrize("start", ["{" + "|" * 99_000, "[" + "|" * 99_000, "__-" * 33_000])
def test_a_long_prompt_is_searched_in_no_time(start: str) -> None:
    """Each takes many seconds if the time grows with the square of the length."""
    assert not any(WILDCARD in line for line in lines(start))
    assert any(WILDCARD in line for line in lines(f"{start} {{a|b}}"))


def test_marks_in_a_negative_prompt_are_named_too() -> None:
    assert lines("a cat", negative="(ugly:1.4)") == [
        "'(ugly:1.4)' is read as plain words: prompt weights are not supported."
    ]


@pytest.mark.parametrize(
    ("prompt", "line"),
    [
        ("a lighthouse", f"The bundled model does not know 'lighthouse'. {SHOW}"),
        ("a Catt", f"The bundled model does not know 'Catt'; did you mean 'cat'? {SHOW}"),
        ("un chat noir", f"The bundled model does not know 'chat', 'noir'; did you mean 'cat'? {SHOW}"),
        ("猫", f"The bundled model does not know '猫'. {SHOW}"),
        ("a cat, photorealistic masterpiece in 4k uhd", "The bundled model does not know 'photorealistic', 'master"),
    ],
)
def test_the_bundled_model_says_what_it_does_not_know(prompt: str, line: str) -> None:
    (found,) = lines(prompt)
    assert found.startswith(line)
    assert lines(prompt, "dev") == []


def test_everything_that_it_was_taught_is_known() -> None:
    known = vocabulary(resolve("tiny"))
    assert known is not None and len(known.things) == 100
    for names in known.things:
        for name in names:
            assert lines(f"a cartoon of two small red {name}s beside the {name} on a yellow background")[:1] == [] or (
                known.unknown(f"{name}s")  # an irregular plural
            )
    for text in (*known.layouts, *known.styles):
        assert known.unknown(text) == []


@pytest.mark.parametrize(("size", "remarked"), [("64x64", 0), ("256x256", 0), ("272x256", 1), ("1024x768", 1)])
def test_a_size_beyond_the_training_is_told(size: str, remarked: int) -> None:
    found = lines("a cat", size=size)
    assert len(found) == remarked
    assert all(line.endswith(f"trained at 96x96 to 256x256; expect poor pictures at {size}.") for line in found)
    assert lines("a cat", "dev", size="1024x768") == []


def test_the_bundled_video_model_says_what_it_was_not_trained_with() -> None:
    known = vocabulary(resolve("tiny-video"))
    assert known is not None and len(known.things) == 30
    for names, motion in zip(known.things, known.motions * 5, strict=False):
        assert lines(f"a {names[0]} {motion[2:]} on a blue background", "tiny-video") == []
    assert lines("a cat moves left", "tiny-video") == []
    assert lines("a wolf moves left", "tiny-video", size="96x64", frames=13) == [
        "The bundled model does not know 'wolf'. 'h2gen models show tiny-video' lists what it knows.",
        "The bundled model was trained at 64x64; expect poor videos at 96x64.",
        "The bundled model was trained with 9 frames; expect poor videos with 13.",
    ]


def test_a_guidance_that_changes_nothing_is_told(tmp_path: Path) -> None:
    assert lines("a cat", guidance=7.0) == ["--guidance has no effect: 'tiny' is not guidance-distilled; use --cfg."]
    assert len(lines("a cat", "schnell", guidance=3.5)) == 1
    assert lines("a cat", "dev", guidance=7.0) == [] == lines("a cat", guidance=1.0)
    (tmp_path / "transformer").mkdir()
    for takes in ("true", "false"):
        (tmp_path / "transformer" / "config.json").write_text(
            f'{{"_class_name": "FluxTransformer2DModel", "guidance_embeds": {takes}}}'
        )
        assert len(lines("a cat", str(tmp_path), guidance=7.0)) == (takes == "false")


def test_a_batch_has_one_line_of_each_kind_with_the_first_prompt_and_the_number_of_others() -> None:
    texts = ["a cat", "a lighthouse", "a (red:1.3) cat", "a catt", "a harbour"]
    reading = Reading([Entry(text, f"p.txt:{n}", {}, {}) for n, text in enumerate(texts, 1)])
    jobs = Jobs(reading, {"seed": "1-3", "size": "512x512", "model": "tiny"}, {})
    assert jobs.remarks == [
        f"p.txt:2: The bundled model does not know 'lighthouse'. {SHOW} The same applies to 2 more.",
        "p.txt:3: '(red:1.3)' is read as plain words: prompt weights are not supported.",
    ]
    assert [line for line in jobs.notices if "512x512" in line] == [
        "The bundled model was trained at 96x96 to 256x256; expect poor pictures at 512x512."
    ]


def test_a_batch_tells_of_a_size_that_was_rounded() -> None:
    reading = Reading([Entry("a cat", f"p.txt:{n}", {"width": 100, "height": 96}, {}) for n in (1, 2)])
    (line,) = Jobs(reading, {"model": "tiny"}, {}).remarks
    assert line.startswith("p.txt:1: ") and "100x96" in line and line.endswith("The same applies to 1 more.")


def test_a_damaged_list_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    request = resolve_request("a lighthouse", {}, {})
    monkeypatch.setattr("h2gen.settings.remarks.vocabulary", lambda _checkpoint: None)
    settings = replace(request.settings, width=512)
    assert list(remarks_on("a lighthouse", settings, request.checkpoint)) == []
