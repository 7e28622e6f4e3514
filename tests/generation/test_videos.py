"""Videos through sessions: plain diffusers without the cache, and all that pictures do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import h2gen
from h2gen.cache import CacheConfig, StepRecord
from h2gen.errors import CacheError, ModelError, PromptWarning, SettingError
from h2gen.models import resolve
from h2gen.models.choices import SOLVERS
from tests import small

FAST: dict[str, Any] = {"steps": 4, "size": "64", "seed": 7}
DEFAULTS = "width = 64\nheight = 64\nframes = 9\nfps = 8.0\nmax_sequence_length = 16\n"
MAKERS: dict[str, Callable[..., Any]] = {
    "HunyuanVideoPipeline": partial(small.hunyuan_video_pipeline, layers=2),
    "WanPipeline": partial(small.wan_pipeline, layers=5),
}
GUIDANCE = {"HunyuanVideoPipeline": "guidance = 6.0\n", "WanPipeline": "guidance = 0.0\n"}
GUIDED = {"HunyuanVideoPipeline": "true_cfg_scale", "WanPipeline": "guidance_scale"}
every_maker = pytest.mark.parametrize("name", MAKERS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for name, make in MAKERS.items():
        found[name] = folder = tmp_path_factory.mktemp(name)
        make().save_pretrained(folder)
        (folder / "defaults.toml").write_text(DEFAULTS + GUIDANCE[name])
    return found


@pytest.fixture(scope="module")
def sessions(folders: dict[str, Path]) -> dict[str, Any]:
    return {name: h2gen.load(str(folder), device="cpu") for name, folder in folders.items()}


def plain(name: str, prompt: str = "a cat", **given: Any) -> Any:
    """The frames that diffusers' own pipeline makes of the same weights."""
    pipe = MAKERS[name]()
    frames = pipe(**{**small.run_kwargs(pipe, steps=4, prompt=prompt), **given}).frames
    return (frames[0] * 255).round().astype(np.uint8)


@every_maker
def test_a_checkpoint_is_known_by_its_defaults_before_it_is_loaded(folders: dict[str, Path], name: str) -> None:
    defaults = resolve(str(folders[name])).defaults
    assert (defaults.frames, defaults.fps) == (9, 8.0)
    (folders[name] / "defaults.toml").rename(folders[name] / "other.toml")
    try:
        defaults = resolve(str(folders[name])).defaults
    finally:
        (folders[name] / "other.toml").rename(folders[name] / "defaults.toml")
    assert defaults.frames % 4 == 1 and defaults.fps > 0


@every_maker
def test_without_a_cache_the_video_is_plain_diffusers_bit_for_bit(sessions: Any, name: str) -> None:
    session, wanted = sessions[name], plain(name)
    seen: list[StepRecord] = []
    for cache in (None, CacheConfig(0, 0)):
        for given in ({}, {"on_step": seen.append}):
            result = session.generate("a cat", cache=cache, **FAST, **given)
            assert result.frames.shape == (9, 64, 64, 3) and result.frames.dtype == np.uint8
            assert np.array_equal(result.frames, wanted)
            assert np.array_equal(np.asarray(result.image), wanted[0])
    assert len(seen) == 2 * len({(step.step, step.context) for step in seen}) and all(step.full for step in seen)


@every_maker
def test_the_cache_skips_blocks_and_whole_steps_of_a_video(sessions: Any, name: str) -> None:
    session, wanted = sessions[name], plain(name)
    exact = session.generate("a cat", cache=CacheConfig(1e-12, 1e-12), **FAST)
    assert np.array_equal(exact.frames, wanted)
    for settings in ({"plan": "FFSD"}, {"tau1": 1e9, "tau2": 1e9}, {"tau1": 1e9, "tau2": 1e9, "pfs": "stable"}):
        result = session.generate("a cat", **settings, **FAST)
        assert result.summary.share < 1 and not np.array_equal(result.frames, wanted)


@every_maker
def test_the_end_of_a_prompt_that_is_not_read_is_told(sessions: Any, name: str) -> None:
    session, once = sessions[name], {**FAST, "steps": 1}
    long = " ".join(["a cat walks on the grass"] * 8)
    with pytest.warns(PromptWarning, match="truncated to 16 tokens"):
        (left,) = session.generate(long, cache=None, **once).unread
    assert long.endswith(left.text) and left.limit == 16 < left.needed
    assert not session.generate(long, cache=None, max_sequence_length=left.needed, **once).unread
    with pytest.warns(PromptWarning, match="left out"):
        (last,) = session.generate(long, cache=None, max_sequence_length=left.needed - 2, **once).unread
    assert long.endswith(last.text) and 0 < len(last.text) < 6


@every_maker
def test_true_guidance_is_the_pipelines_own(sessions: Any, name: str) -> None:
    session, wanted = sessions[name], plain(name, negative_prompt="a dog", **{GUIDED[name]: 3.0})
    assert not np.array_equal(wanted, plain(name))
    given = {"negative": "a dog", "cfg": 3.0, **FAST}
    seen: list[StepRecord] = []
    assert np.array_equal(session.generate("a cat", cache=None, **given).frames, wanted)
    exact = session.generate("a cat", cache=CacheConfig(0, 0), on_step=seen.append, **given)
    assert np.array_equal(exact.frames, wanted)
    assert [(step.step, step.context) for step in seen] == [(i, name) for i in range(4) for name in ("cond", "uncond")]


BATCHES: dict[str, dict[str, Any]] = {
    "a plan": {"plan": "FFSD"},
    "thresholds": {"tau1": 0.5, "tau2": 0.6, "pfs": "stable", "cfg": 3.0, "negative": "a bird"},
    "a tolerance": {"tau1": 0, "tau2": 0, "tolerance": 0.5, "cfg": 3.0, "negative": "a bird", "steps": 8},
}


@pytest.mark.parametrize("policy", BATCHES)
@every_maker
def test_two_videos_of_a_batch_are_as_alone(sessions: Any, name: str, policy: str) -> None:
    session, given = sessions[name], {"cfg": 1.0, "frames": 5, **FAST, **BATCHES[policy]}
    settings = [session.settings(prompt, **given) for prompt in ("a cat", "a dog")]
    for one, result in zip(settings, session.run_together(settings), strict=True):
        alone = session.run(one)
        assert np.abs(alone.frames.astype(int) - result.frames).max() <= 1
        assert [step.blocks_run for step in result.trace.steps] == [step.blocks_run for step in alone.trace.steps]
        assert result.summary.share < 1


@every_maker
def test_any_number_of_steps_makes_a_video_with_every_solver(sessions: Any, name: str) -> None:
    solvers = [*SOLVERS] if name == "HunyuanVideoPipeline" else [each for each in SOLVERS if each != "lcm"]
    for solver in solvers:
        for steps in (1, 2):
            given = {**FAST, "steps": steps, "frames": 1, "cfg": 1.0, "solver": solver}
            assert sessions[name].generate("a cat", cache=None, **given).frames.shape == (1, 64, 64, 3)


def test_a_model_of_two_transformers_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    index = json.loads((folders["WanPipeline"] / "model_index.json").read_text())
    index["transformer_2"] = index["transformer"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"has two transformers.*such as wan and wan-14b"):
        h2gen.load(str(tmp_path))
    pipe = small.wan_pipeline(layers=3)
    pipe.register_modules(transformer_2=pipe.transformer)
    with pytest.raises(CacheError, match=r"two transformers; put one cache on pipe\.transformer and"):
        h2gen.apply(pipe)


@pytest.mark.parametrize("solver", ["unipc", "heun", "dpm++"])
def test_other_solvers_follow_the_sigmas_of_wans_own(sessions: Any, solver: str) -> None:
    session, seen = sessions["WanPipeline"], {}
    for name in ("own", solver):
        steps: list[StepRecord] = []
        made = session.generate("a cat", cache=CacheConfig(0, 0), on_step=steps.append, solver=name, cfg=1, **FAST)
        seen[name] = made.frames, list(dict.fromkeys(step.sigma for step in steps))
    assert seen[solver][1] == pytest.approx(seen["own"][1], abs=1e-3)
    assert np.array_equal(seen["own"][0], seen[solver][0]) == (solver == "unipc")


def test_the_shift_of_wans_solver_is_a_number_and_lcm_is_refused(sessions: Any) -> None:
    session = sessions["WanPipeline"]
    pipe = small.wan_pipeline(layers=5)
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, flow_shift=7.0)
    frames = pipe(**small.run_kwargs(pipe, steps=4)).frames
    made = session.generate("a cat", cache=None, shift="7", cfg=1, **FAST)
    assert np.array_equal(made.frames, (frames[0] * 255).round().astype(np.uint8))
    with pytest.raises(SettingError, match=r"one shift for all sizes"):
        session.generate("a cat", cache=None, shift="dynamic", cfg=1, **FAST)
    with pytest.raises(SettingError, match=r"LCM cannot follow.*leave out --solver"):
        session.generate("a cat", cache=None, solver="lcm", cfg=1, **FAST)


def test_the_schedule_of_wan_is_exact_though_its_timesteps_are_whole_numbers(sessions: Any) -> None:
    pipe = sessions["WanPipeline"].pipe
    with h2gen.h2_cache(pipe, tau1=0, tau2=0) as trace:
        pipe(**small.run_kwargs(pipe, steps=4))
    assert [step.sigma for step in trace.steps] == pytest.approx(pipe.scheduler.sigmas[:-1].tolist(), abs=1e-7)


def test_a_tokenizer_of_llama_3_keeps_the_spaces_of_a_prompt(folders: dict[str, Path], tmp_path: Path) -> None:
    """HunyuanVideo's names the class of Llama 2's, which transformers 5 takes at its word."""
    folder = shutil.copytree(folders["HunyuanVideoPipeline"], tmp_path / "model")
    for file in (folder / "model_index.json", folder / "tokenizer" / "tokenizer_config.json"):
        text = file.read_text().replace("TokenizersBackend", "LlamaTokenizerFast")
        file.write_text(text)
    index = json.loads((folder / "model_index.json").read_text())
    assert index["tokenizer"] == ["transformers", "LlamaTokenizerFast"]
    session, own = h2gen.load(str(folder), device="cpu"), small.llama_tokenizer()
    text = "a cat walks on the grass"
    assert session.pipe.tokenizer(text)["input_ids"] == own(text)["input_ids"]
    assert np.array_equal(session.generate("a cat", cache=None, **FAST).frames, plain("HunyuanVideoPipeline"))
