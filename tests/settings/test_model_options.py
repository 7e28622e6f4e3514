"""Options that a model ignores are told, once and before anything is made; with --strict they are errors."""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest

from h2gen.batches.jobs import Jobs
from h2gen.batches.prompts import Entry, Reading
from h2gen.errors import SettingError, UsageError
from h2gen.families import FAMILIES, family_of
from h2gen.families.unused import NO_TRUE_GUIDANCE
from h2gen.generation.arguments import choose
from h2gen.generation.render import Renderer, RenderObserver, RenderOptions, check_output
from h2gen.models import hub
from h2gen.models.catalogue import CATALOGUE, resolve
from h2gen.models.facts import facts_of
from h2gen.settings.resolve import resolve_request
from h2gen.settings.table import BY_NAME
from tests import small


def ignored(model: str, **given: Any) -> list[str]:
    return list(resolve_request("a cat", {"model": model, **given}, {}).ignored)


def refusal(model: str, **given: Any) -> str:
    with pytest.raises(SettingError) as caught:
        ignored(model, **given)
    return str(caught.value)


def folder(path: Path, pipeline: str, transformer: str, *, distilled: bool = False, **config: Any) -> str:
    """A checkpoint of which only the configuration is there."""
    (path / "transformer").mkdir(parents=True)
    (path / "model_index.json").write_text(json.dumps({"_class_name": pipeline, "is_distilled": distilled}))
    (path / "transformer" / "config.json").write_text(json.dumps({"_class_name": transformer, **config}))
    return str(path)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("tiny", "is not guidance-distilled; use --cfg"),
        ("schnell", "is not guidance-distilled; use --cfg"),
        ("chroma", "is not guidance-distilled; use --cfg"),
        ("qwen-image", "is not guidance-distilled; use --cfg"),
        ("z-image", "is not guidance-distilled; use --cfg"),
        ("z-image-turbo", "is distilled and takes no guidance; leave it out"),
        ("klein-base-9b", "is not guidance-distilled; use --cfg"),
        ("klein-4b", "is distilled and takes no guidance; leave it out"),
    ],
)
def test_a_guidance_that_a_model_ignores_is_told(model: str, why: str) -> None:
    assert ignored(model, guidance=7.0) == [f"--guidance has no effect: {model!r} {why}."]
    assert ignored(model, guidance=CATALOGUE[model].defaults.guidance) == ignored(model) == []


@pytest.mark.parametrize("model", ["dev", "krea", "kontext", "fill", "canny", "flux2-dev"])
def test_a_guidance_that_a_model_uses_is_not_told(model: str) -> None:
    assert ignored(model, guidance=7.0) == []


@pytest.mark.parametrize("model", ["fill", "depth", "canny", "flux2-dev"])
def test_true_guidance_that_a_model_does_not_have_is_refused_before_it_is_loaded(model: str) -> None:
    assert refusal(model, cfg=3.0) == f"cfg is 3, but {model!r} has no true guidance; use --guidance."
    assert ignored(model, cfg=1.0) == []


def test_a_distilled_model_refuses_true_guidance_and_its_base_takes_it() -> None:
    line = "cfg is 3, but 'klein-4b' is distilled and takes no guidance; leave it out."
    assert refusal("klein-4b", cfg=3.0) == refusal("klein-4b", cfg=3.0, negative="rain") == line
    assert ignored("klein-base-4b", cfg=3.0, negative="rain") == []


def test_a_folder_says_it_by_its_configuration(tmp_path: Path) -> None:
    base = folder(tmp_path / "base", "Flux2KleinPipeline", "Flux2Transformer2DModel", guidance_embeds=False)
    small = folder(tmp_path / "small", "Flux2KleinPipeline", "Flux2Transformer2DModel", distilled=True)
    fill = folder(tmp_path / "fill", "FluxFillPipeline", "FluxTransformer2DModel", guidance_embeds=True)
    assert "use --cfg" in ignored(base, guidance=3.0)[0] and "leave it out" in ignored(small, guidance=3.0)[0]
    assert "cfg is 2" in refusal(fill, cfg=2.0)
    (tmp_path / "fill" / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    assert ignored(fill, cfg=2.0) == []


def test_a_single_file_says_it_by_its_base(tmp_path: Path) -> None:
    (tmp_path / "flux.gguf").touch()
    assert len(ignored(str(tmp_path / "flux.gguf"), base="schnell", guidance=3.5)) == 1


def test_a_repository_says_it_once_it_is_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ignored("someone/flux", guidance=7.0) == []
    downloaded = folder(tmp_path / "x", "FluxPipeline", "FluxTransformer2DModel", guidance_embeds=False)
    monkeypatch.setattr(hub, "cached", lambda repo: Path(downloaded) if repo == "someone/flux" else None)
    assert len(ignored("someone/flux", guidance=7.0)) == 1


def test_strict_makes_it_an_error_before_anything_is_loaded(tmp_path: Path) -> None:
    request = resolve_request("a cat", {"model": "schnell", "guidance": 7.0, "out": str(tmp_path)}, {})
    check_output(request, RenderOptions(), [1])
    line = "--guidance has no effect: 'schnell' is not guidance-distilled; use --cfg. With --strict this is an error."
    with pytest.raises(SettingError) as caught:
        check_output(request, RenderOptions(strict=True), [1])
    assert str(caught.value) == line
    with pytest.raises(SettingError) as caught:
        choose("generate", resolve("schnell"), "a cat", None, {"guidance": 7.0, "strict": True})
    assert str(caught.value) == line
    assert choose("generate", resolve("schnell"), "a cat", None, {"strict": True}).notices == ()


def test_what_is_known_only_once_the_model_is_loaded_is_told_then(tiny: Any) -> None:
    class Seen(RenderObserver):
        def __init__(self) -> None:
            self.remarks: list[str] = []

        def remark(self, text: str) -> None:
            self.remarks.append(text)

    known = resolve_request("a cat", {"model": "tiny", "guidance": 7.0}, {})
    before = replace(known, notices=(), ignored=())  # as of a repository that was not on this machine
    seen = Seen()
    Renderer(tiny, RenderOptions(metadata=False), seen).check_options(before)
    assert seen.remarks == list(known.ignored)
    Renderer(tiny, RenderOptions(metadata=False), seen).check_options(known)
    assert len(seen.remarks) == 1
    with pytest.raises(SettingError, match="With --strict this is an error"):
        Renderer(tiny, RenderOptions(metadata=False, strict=True), seen).check_options(before)


def test_the_loaded_model_refuses_it_too() -> None:
    pipe = small.flux_pipeline(diffusers.FluxFillPipeline, layers=1, single_layers=1)
    with pytest.raises(SettingError, match="cfg is 2, but this model has no true guidance; use --guidance"):
        family_of(pipe.transformer).check_cfg(pipe, 2.0)
    family_of(pipe.transformer).check_cfg(pipe, 1.0)


def test_a_batch_tells_it_once_with_the_first_prompt() -> None:
    entries = [Entry(f"picture {n}", f"p.txt:{n}", {"guidance": 7.0} if n > 1 else {}, {}) for n in (1, 2, 3)]
    jobs = Jobs(Reading(entries), {"model": "schnell"}, {})
    line = "p.txt:2: --guidance has no effect: 'schnell' is not guidance-distilled; use --cfg."
    assert jobs.remarks == [f"{line} The same applies to 1 more."]
    with pytest.raises(SettingError, match=r"p.txt:2: --guidance has no effect.*With --strict"):
        jobs.check_strict()
    Jobs(Reading(entries[:1]), {"model": "schnell"}, {}).check_strict()
    with pytest.raises(SettingError, match=r"^--guidance has no effect"):
        Jobs(Reading(entries[:1]), {"model": "schnell", "guidance": 2.0}, {}).check_strict()


def test_a_batch_refuses_it_with_the_line() -> None:
    reading = Reading([Entry("a cat", "p.txt:1", {"cfg": 3.0}, {})])
    with pytest.raises(UsageError, match=r"p.txt:1: cfg is 3, but 'fill' has no true guidance"):
        Jobs(reading, {"model": "fill"}, {})


def test_every_setting_in_the_table_of_a_family_is_one_of_ours() -> None:
    for entry in CATALOGUE.values():
        facts = facts_of(resolve(entry.name))
        assert facts is not None and facts.unused.keys() <= BY_NAME.keys()


PIPELINES = [name for name in dir(diffusers) if re.fullmatch(r"Flux[A-Z]\w*Pipeline|FluxPipeline", name)]


@pytest.mark.parametrize("name", PIPELINES)
def test_the_table_says_of_true_guidance_what_the_pipelines_of_diffusers_take(name: str) -> None:
    arguments = inspect.signature(getattr(diffusers, name).__call__).parameters
    if "guidance_scale" in arguments:
        unused = FAMILIES["FluxTransformer2DModel"].unused(name, {"guidance_embeds": True}, {})
        assert (unused.get("cfg") == NO_TRUE_GUIDANCE) is ("true_cfg_scale" not in arguments)
