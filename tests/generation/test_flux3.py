"""FLUX.3 through its modular pipelines: plain diffusers without the cache, and all that other models do."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import guiders

import h2gen
from h2gen.cache import CacheConfig, StepRecord, h2_cache
from h2gen.errors import H2GenError, ModelError, SettingError
from h2gen.models import resolve
from h2gen.models.content_hash import content_hash
from h2gen.models.single_file import open_file
from tests import checkpoints, small
from tests.matrix.drive import lora

FAST: dict[str, Any] = {"steps": 6, "size": "64", "seed": 7}
NEVER = CacheConfig(1e-12, 1e-12)
KINDS = {False: "base", True: "distilled"}
NAMES = {"Flux3ModularPipeline": False, "Flux3DistilledModularPipeline": True}
COUNTS = (0, 2)
"""Of reference pictures."""
both = pytest.mark.parametrize("flow_map", KINDS, ids=KINDS.values())


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    return {
        flow_map: small.save_flux3(small.flux3_pipeline(flow_map=flow_map), tmp_path_factory.mktemp(name))
        for flow_map, name in KINDS.items()
    }


@pytest.fixture(scope="module")
def sessions(folders: dict[bool, Path]) -> dict[bool, Any]:
    return {flow_map: h2gen.load(str(folder), device="cpu") for flow_map, folder in folders.items()}


def pixels(result: Any) -> Any:
    return np.asarray(result.image)


def plain(flow_map: bool, prompt: str = "a cat", **given: Any) -> Any:
    """What diffusers' own pipeline makes of the same weights."""
    pipe = small.flux3_pipeline(flow_map=flow_map)
    with small.no_warnings_of_diffusers():
        if "guider" in given:
            pipe.update_components(guider=given.pop("guider"))
        asked = {"width": 64, "height": 64, "num_inference_steps": 6, "output_type": "np", **given}
        (made,) = pipe(prompt=prompt, generator=torch.Generator().manual_seed(7), output="images", **asked)
    return (made * 255).round().astype(np.uint8)


@both
def test_without_a_cache_the_picture_is_plain_diffusers_bit_for_bit(sessions: Any, flow_map: bool) -> None:
    session, wanted = sessions[flow_map], plain(flow_map)
    seen: list[StepRecord] = []
    for cache in (None, CacheConfig(0, 0)):
        assert np.array_equal(pixels(session.generate("a cat", cache=cache, **FAST)), wanted)
        assert np.array_equal(pixels(session.generate("a cat", cache=cache, on_step=seen.append, **FAST)), wanted)
    assert {(step.blocks_run, step.blocks_total, step.exact) for step in seen} == {(8, 8, 0)}
    assert {step.context for step in seen} == ({"cond"} if flow_map else {"cond", "uncond"})


def test_guidance_and_the_negative_prompt_are_the_pipelines_own(sessions: Any) -> None:
    session = sessions[False]
    with small.no_warnings_of_diffusers():
        guider = guiders.ClassifierFreeGuidance(guidance_scale=5.0)
    wanted = plain(False, negative_prompt="a dog", guider=guider)
    assert not np.array_equal(wanted, plain(False))
    made = session.generate("a cat", cfg=5.0, negative="a dog", cache=None, **FAST)
    assert np.array_equal(pixels(made), wanted)
    with small.no_warnings_of_diffusers():
        off = guiders.ClassifierFreeGuidance(guidance_scale=1.0)
    assert np.array_equal(pixels(session.generate("a cat", cfg=1, cache=None, **FAST)), plain(False, guider=off))


def test_the_cache_is_exact_where_nothing_is_reused_and_near_where_something_is(sessions: Any) -> None:
    session, wanted = sessions[False], plain(False)
    result = session.generate("a cat", cache=NEVER, **FAST)
    assert np.array_equal(pixels(result), wanted)
    assert result.summary.share < 1 and "of blocks reused exactly" in str(result.summary)
    plan = session.generate("a cat", plan="FFSDRF", **FAST)
    assert not np.array_equal(pixels(plan), wanted)
    assert [step.skipped for step in plan.trace.steps] == [False] * 4 + [True] * 2 + [False] * 6
    for settings in ({"tolerance": 0.03}, {"tau1": 0.7, "tau2": 0.7}):
        result = session.generate("a cat", **settings, **FAST)
        assert result.summary.share < plan.summary.share + 1
        assert any(not step.full for step in result.trace.steps), settings


def test_the_distilled_model_says_that_forecasts_have_no_effect(sessions: Any) -> None:
    session, wanted = sessions[True], plain(True)
    for settings in ({}, {"plan": "FSFSFF"}):
        with pytest.warns(RuntimeWarning, match=r"without effect on this model.*fewer --steps"):
            result = session.generate("a cat", **settings, **FAST)
        assert np.array_equal(pixels(result), wanted)
        assert (result.summary.share, result.summary.blocks_exact) == (1, 0)
    result = session.generate("a cat", tau1=1e9, tau2=1e9, **FAST)
    assert result.summary.all_reused == 5
    with pytest.raises(SettingError, match=r"cfg is 3.*distilled.*leave it out"):
        session.generate("a cat", cfg=3, cache=None, **FAST)
    with pytest.raises(SettingError, match=r"solver is 'heun'.*is distilled for its own solver"):
        session.generate("a cat", solver="heun", cache=None, **FAST)
    with pytest.raises(SettingError, match=r"shift is '3'.*is distilled for its own schedule"):
        session.generate("a cat", shift=3, cache=None, **FAST)


@pytest.mark.parametrize("solver", ["heun", "unipc", "dpm++"])
def test_the_base_model_takes_other_solvers(sessions: Any, solver: str) -> None:
    made = sessions[False].generate("a cat", solver=solver, cache=NEVER, **FAST)
    assert not np.array_equal(pixels(made), plain(False))
    assert len(made.trace.steps) == 2 * (11 if solver == "heun" else 6)


@both
def test_reference_pictures_are_taken_as_diffusers_takes_them(sessions: Any, flow_map: bool) -> None:
    pictures = [small.picture(), small.picture(200).resize((80, 48)), small.picture(120).resize((32, 64))]
    for count in (1, 3):
        wanted = plain(flow_map, image=pictures[:count])
        assert not np.array_equal(wanted, plain(flow_map))
        for settings in ({"tau1": 0, "tau2": 0}, {"tau1": 1e-12, "tau2": 1e-12}):
            pipe = sessions[flow_map].pipe
            with h2_cache(pipe, **settings) as trace:
                made = pipe(
                    "a cat", image=pictures[:count], width=64, height=64, num_inference_steps=6, output_type="np",
                    generator=torch.Generator().manual_seed(7),
                ).images  # fmt: skip
            assert np.array_equal((made[0] * 255).round().astype(np.uint8), wanted)
            assert any(step.exact for step in trace.steps) is (settings["tau1"] > 0 and not flow_map)


def guider_of(name: str) -> Any:
    layers = {}
    if name in ("SkipLayerGuidance", "AutoGuidance", "PerturbedAttentionGuidance", "SmoothedEnergyGuidance"):
        from diffusers.hooks import LayerSkipConfig

        config = LayerSkipConfig(indices=[1], fqn="single_transformer_blocks")
        layers = {
            "SkipLayerGuidance": {"skip_layer_config": config},
            "AutoGuidance": {"auto_guidance_config": config, "dropout": 0.0},
        }[name]
    with small.no_warnings_of_diffusers():
        return getattr(guiders, name)(**layers)


@pytest.mark.parametrize(
    "name",
    [
        "ClassifierFreeGuidance",
        "ClassifierFreeZeroStarGuidance",
        "TangentialClassifierFreeGuidance",
        "AdaptiveProjectedGuidance",
        "AdaptiveProjectedMixGuidance",
        "MagnitudeAwareGuidance",
        "SkipLayerGuidance",
    ],
)
def test_every_guider_that_the_pipeline_takes_goes_with_the_cache(name: str) -> None:
    pipe = small.flux3_pipeline()
    with small.no_warnings_of_diffusers():
        pipe.update_components(guider=guider_of(name))

    def made() -> Any:
        asked = {"width": 64, "height": 64, "num_inference_steps": 6, "output_type": "np"}
        return pipe(prompt="a cat", generator=torch.Generator().manual_seed(7), output="images", **asked)

    wanted = made()
    with h2_cache(pipe, tau1=1e-12, tau2=1e-12) as trace:
        assert np.array_equal(made(), wanted)
    contexts = {step.context for step in trace.steps}
    assert {"cond", "uncond"} <= contexts
    for context in contexts:
        exact = [bool(step.exact) for step in trace.steps if step.context == context]
        assert exact == [False] + [True] * (len(exact) - 1), context
    with h2_cache(pipe, tau1=1e9, tau2=1e9) as trace:
        made()
    assert all(trace.steps[-1].structure.outcome == "reused" for _ in contexts)


def test_a_picture_that_is_stopped_leaves_nothing_behind(sessions: Any) -> None:
    session = sessions[False]
    wanted = pixels(session.generate("a cat", cache=NEVER, **FAST))
    seen: list[StepRecord] = []
    calls: list[int] = []

    def stop(record: StepRecord) -> None:
        seen.append(record)
        if record.step == 1:
            session.interrupt()

    def pressed(_module: Any, _args: Any, _output: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            session.interrupt()

    with pytest.raises(KeyboardInterrupt):
        session.generate("a cat", cache=NEVER, on_step=stop, **FAST)
    assert 3 <= len(seen) <= 4
    assert np.array_equal(pixels(session.generate("a cat", cache=NEVER, **FAST)), wanted)
    handle = session.pipe.transformer.register_forward_hook(pressed)
    with pytest.raises(KeyboardInterrupt):
        session.generate("a cat", cache=None, **FAST)
    handle.remove()
    assert len(calls) == 4, "the step that runs is finished, and the next one is not begun"
    assert np.array_equal(pixels(session.generate("a cat", cache=NEVER, **FAST)), wanted)


def test_a_second_call_of_another_size_is_a_run_of_its_own(sessions: Any) -> None:
    session = sessions[False]
    sizes = {size: session.generate("a cat", cache=NEVER, **{**FAST, "size": size}) for size in ("64", "96x64", "64")}
    assert sizes["96x64"].image.size == (96, 64)
    assert np.array_equal(pixels(sizes["64"]), plain(False))
    assert np.array_equal(pixels(sizes["96x64"]), plain(False, width=96))


def test_pictures_of_one_batch_are_as_alone_and_prompts_of_another_length_wait_for_the_next(sessions: Any) -> None:
    session = sessions[False]
    prompts = ["a cat", "a dog", "a very long prompt " * 5, "a car"]
    settings = [session.settings(prompt, cache=NEVER, **{**FAST, "seed": 7 + i}) for i, prompt in enumerate(prompts)]
    together = session.run_together(settings)
    assert [result.together for result in together] == [2, 2, 1, 1]
    for one, made in zip(settings, together, strict=True):
        assert np.abs(pixels(session.run(one)).astype(int) - pixels(made)).max() <= 1
        assert made.trace.summary.blocks_exact > 0


def test_errors_come_without_a_traceback_of_diffusers(sessions: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR), pytest.raises(ValueError, match="divisible"):
        sessions[False].pipe("a cat", width=65, height=64, num_inference_steps=2)
    assert not caplog.records


def test_a_folder_has_the_defaults_of_its_model_and_an_identity(folders: dict[bool, Path]) -> None:
    base, distilled = (resolve(str(folders[flow_map])) for flow_map in KINDS)
    assert (base.defaults.steps, base.defaults.cfg, base.defaults.max_sequence_length) == (50, 3.5, 8192)
    assert (distilled.defaults.steps, distilled.defaults.cfg) == (16, 1.0)
    assert content_hash(base) != content_hash(distilled)


@pytest.mark.parametrize("original", [False, True], ids=["diffusers names", "original names"])
@both
def test_a_single_file_paints_what_was_saved(
    folders: dict[bool, Path], tmp_path: Path, flow_map: bool, original: bool
) -> None:
    transformer = small.flux3_transformer(seed=5, flow_map=flow_map)
    file = checkpoints.save_single(transformer, tmp_path / "flux3.safetensors", original=original)
    assert open_file(file).family.title == "FLUX.3"
    session = h2gen.load(str(file), base=str(folders[flow_map]), device="cpu")
    loaded = session.pipe.transformer.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in transformer.state_dict().items())
    session.generate("a cat", cache=None, **{**FAST, "steps": 1})
    with pytest.raises(ModelError, match=r"is (not )?distilled and its base .* is (not )?distilled"):
        h2gen.load(str(file), base=str(folders[not flow_map]), device="cpu")


def test_a_folder_that_lacks_a_part_is_told_which(folders: dict[bool, Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folders[False], broken)
    shutil.rmtree(broken / "text_encoder")
    with pytest.raises(H2GenError, match=r"text_encoder.*missing"):
        h2gen.load(str(broken), device="cpu")


def test_a_lora_reaches_the_texts_blocks_and_leaves_without_a_trace(sessions: Any) -> None:
    session = sessions[False]
    wanted = pixels(session.generate("a cat", cache=None, **FAST))
    with lora(session.pipe):
        assert any(hasattr(block.attn.to_q, "lora_A") for block in session.pipe.transformer.txt_mode_blocks)
        changed = pixels(session.generate("a cat", cache=None, **FAST))
        cached = session.generate("a cat", cache=NEVER, **FAST)
    assert not np.array_equal(changed, wanted)
    assert np.array_equal(pixels(cached), changed) and cached.summary.blocks_exact > 0
    assert np.array_equal(pixels(session.generate("a cat", cache=NEVER, **FAST)), wanted)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", COUNTS)
def test_a_session_gives_it_reference_pictures(folders: Any, tmp_path: Path, name: str, count: int) -> None:
    flow_map, pictures = NAMES[name], [small.picture(), small.picture(200)][:count]
    session = h2gen.load(str(folders[flow_map]), device="cpu")
    images = [tmp_path / f"{number}.png" for number in range(count)]
    for picture, file in zip(pictures, images, strict=True):
        picture.save(file)
    given = {"image": [*map(str, images)]} if images else {}
    made = session.generate("a cat", cache=NEVER, **given, **FAST)
    assert session.pipe.transformer.config.flow_map == flow_map
    assert np.array_equal(pixels(made), plain(flow_map, **({"image": pictures} if pictures else {})))
    assert (made.summary.blocks_exact > 0) == (not flow_map)
