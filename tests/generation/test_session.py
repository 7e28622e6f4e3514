"""A session: plain diffusers without the cache, bit for bit; the same seed, the same picture; NaN and Ctrl-C."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import h2gen
from h2gen.cache import CacheConfig, StepRecord
from h2gen.errors import BadPicture, OutOfMemory, SettingError
from tests import small

FAST: dict[str, Any] = {"steps": 6, "cfg": 1.0, "seed": 7}
PLAIN: dict[str, Any] = {**FAST, "cache": None}


def pixels(image: Image.Image) -> Any:
    return np.asarray(image)


def plain(session: Any, **over: Any) -> Any:
    """The picture that the bundled model's pipeline makes by itself."""
    arguments: dict[str, Any] = {
        "num_inference_steps": 6, "width": 128, "height": 128, "max_sequence_length": 24, "guidance_scale": 1.0, **over,
    }  # fmt: skip
    generator = torch.Generator("cpu").manual_seed(7)
    return pixels(session.pipe("a cat", generator=generator, **arguments).images[0])


@pytest.mark.parametrize("cache", [None, CacheConfig(0, 0)])
def test_without_a_cache_the_picture_is_plain_diffusers_bit_for_bit(tiny: Any, cache: CacheConfig | None) -> None:
    assert np.array_equal(pixels(tiny.generate("a cat", cache=cache, **FAST).image), plain(tiny))


def test_watching_changes_no_bit(tiny: Any) -> None:
    seen: list[StepRecord] = []
    result = tiny.generate("a cat", on_step=seen.append, **PLAIN)
    assert np.array_equal(pixels(result.image), plain(tiny))
    assert [record.step for record in seen] == list(range(6))
    assert all(record.full for record in seen)
    assert result.summary is None, "the cache was off"


def test_true_guidance_is_the_pipelines_own(tiny: Any) -> None:
    made = tiny.generate("a cat", steps=6, seed=7, cfg=3.0, negative="a dog", cache=None).image
    assert np.array_equal(pixels(made), plain(tiny, true_cfg_scale=3.0, negative_prompt="a dog"))


def test_with_nobody_watching_and_no_cache_nothing_of_ours_runs(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a cache was applied")

    monkeypatch.setattr("h2gen.generation.session.h2_cache", never)
    assert tiny.generate("a cat", **PLAIN).trace.steps == []


def test_the_same_seed_makes_the_same_picture_and_another_seed_another(tiny: Any) -> None:
    cache = CacheConfig(0.3, 0.4)
    one, two = (tiny.generate("a cat", cache=cache, **FAST) for _ in range(2))
    assert np.array_equal(pixels(one.image), pixels(two.image))
    assert one.trace.summary.all_reused > 0
    other = tiny.generate("a cat", cache=cache, **{**FAST, "seed": 8})
    assert not np.array_equal(pixels(one.image), pixels(other.image))


def test_threads_share_a_session_one_at_a_time(tiny: Any) -> None:
    def make(seed: int) -> Any:
        return pixels(tiny.generate("a cat", cache=CacheConfig(0.2, 0.2), **{**FAST, "seed": seed}).image)

    alone = [make(seed) for seed in range(3)]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(make, range(3)))
    assert all(np.array_equal(got, wanted) for got, wanted in zip(together, alone, strict=True))


def test_a_seed_left_out_is_drawn_and_told(tiny: Any) -> None:
    result = tiny.generate("a cat", steps=1, cfg=1.0, cache=None)
    again = tiny.generate("a cat", steps=1, cfg=1.0, seed=result.settings.seed, cache=None)
    assert np.array_equal(pixels(result.image), pixels(again.image))


def test_after_a_cached_picture_the_model_is_as_it_was(tiny: Any) -> None:
    def replaced() -> list[bool]:  # diffusers' own caches leave some behind, in other tests
        return ["forward" in vars(block) for block in tiny.pipe.transformer.transformer_blocks]

    before, forwards = plain(tiny), replaced()
    tiny.generate("a cat", cache=CacheConfig(0.5, 0.5), **FAST)
    assert np.array_equal(plain(tiny), before)
    assert replaced() == forwards


def test_the_trace_knows_the_schedule(tiny: Any) -> None:
    trace = tiny.generate("a cat", cache=CacheConfig(0.5, 0.5, final_steps=2), **FAST).trace
    expected = tiny.pipe.scheduler.timesteps.tolist()
    assert [record.timestep for record in trace.steps] == expected
    assert [str(record.structure.outcome) for record in trace.steps][-2:] == ["guarded", "guarded"]


def test_a_picture_that_is_nan_with_the_cache_is_made_once_more_without(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tiny._denoise

    def sometimes(settings: Any, on_step: Any, tiled: bool) -> Any:
        made, trace, seconds = real(settings, on_step, tiled)
        return (np.full_like(made, np.nan) if trace.steps else made), trace, seconds

    monkeypatch.setattr(tiny, "_denoise", sometimes)
    result = tiny.generate("a cat", cache=CacheConfig(0.5, 0.5), **FAST)
    assert result.nan_with_cache
    assert result.trace.steps == []
    assert not result.settings.cache.enabled
    assert np.array_equal(pixels(result.image), plain(tiny))


@pytest.mark.parametrize("cache", [None, CacheConfig(0.5, 0.5)])
def test_a_picture_that_is_always_nan_is_an_error_and_no_picture(cache: CacheConfig | None) -> None:
    session = h2gen.load("tiny")
    with torch.no_grad():
        session.pipe.transformer.proj_out.bias.fill_(float("nan"))
    with pytest.raises(BadPicture, match="NaN"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the cache's own notice of a change that is not finite
        session.generate("a cat", cache=cache, **FAST)


def test_interrupting_stops_a_run_that_nobody_watches_too(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = tiny.pipe.transformer.forward, []

    def forward(*arguments: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            tiny.interrupt()
        return real(*arguments, **more)

    monkeypatch.setattr(tiny.pipe.transformer, "forward", forward)
    with pytest.raises(KeyboardInterrupt):
        tiny.generate("a cat", **PLAIN)
    assert len(calls) == 3


def test_interrupting_after_the_last_step_keeps_the_picture(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tiny.pipe.vae.decode

    def decode(*arguments: Any, **more: Any) -> Any:
        tiny.interrupt()
        return real(*arguments, **more)

    monkeypatch.setattr(tiny.pipe.vae, "decode", decode)
    result = tiny.generate("a cat", cache=CacheConfig(0.5, 0.5), **FAST)
    assert result.image.size == (128, 128)


def test_interrupting_stops_after_the_step_in_hand(tiny: Any) -> None:
    seen: list[StepRecord] = []

    def stop(record: StepRecord) -> None:
        seen.append(record)
        if record.step == 2:
            tiny.interrupt()

    with pytest.raises(KeyboardInterrupt):
        tiny.generate("a cat", on_step=stop, **PLAIN)
    assert len(seen) == 3
    assert np.array_equal(pixels(tiny.generate("a cat", **PLAIN).image), plain(tiny))


def test_running_out_of_memory_names_what_would_help(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(tiny.pipe.transformer, "forward", full)
    with pytest.raises(OutOfMemory, match="--size"):
        tiny.generate("a cat", **PLAIN)


def test_other_errors_are_not_hidden(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(tiny.pipe.transformer, "forward", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        tiny.generate("a cat", **PLAIN)


def test_running_out_of_memory_while_loading_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("h2gen.models.load.load_placed", full)
    with pytest.raises(OutOfMemory, match="while loading 'tiny'"):
        h2gen.load("tiny")


THREE = ("a cat", "a red apple", "a butterfly")


@pytest.mark.slow
@pytest.mark.parametrize("more", [{"cfg": 1.0}, {"cfg": 3.0, "negative": "a dog"}], ids=["plain", "true guidance"])
@pytest.mark.parametrize("cache", [CacheConfig(0, 0), CacheConfig(0.2, 0.25, max_consecutive=2)], ids=["off", "cached"])
def test_pictures_made_together_are_those_made_alone(tiny: Any, cache: CacheConfig, more: dict[str, Any]) -> None:
    settings = [tiny.settings(text, cache, seed=7 + n, steps=14, **more) for n, text in enumerate(THREE)]
    together = tiny.run_together(settings)
    for result, each in zip(together, settings, strict=True):
        alone = tiny.run(each)
        assert (result.settings, result.together, alone.together) == (each, len(THREE), 1)
        assert np.abs(pixels(result.image).astype(int) - pixels(alone.image)).max() <= 1
        if not cache.enabled:
            assert result.trace.steps == []
            continue
        for ours, theirs in zip(result.trace.steps, alone.trace.steps, strict=True):
            assert (ours.picture, ours.step, ours.context) == (0, theirs.step, theirs.context)
            assert ours.structure.outcome == theirs.structure.outcome and ours.detail.outcome == theirs.detail.outcome
    if cache.enabled:
        assert len({str([step.blocks_run for step in result.trace.steps]) for result in together}) > 1


def test_one_picture_made_together_is_run_as_alone_bit_for_bit(tiny: Any) -> None:
    (result,) = tiny.run_together([tiny.settings("a cat", **PLAIN)])
    assert np.array_equal(pixels(result.image), plain(tiny))


def test_pictures_that_differ_in_more_than_prompt_and_seed_are_not_made_together(tiny: Any) -> None:
    one, other = tiny.settings("a cat", seed=1, steps=3, cache=None), tiny.settings("a cat", seed=1, steps=4)
    with pytest.raises(SettingError, match="only in prompt and seed"):
        tiny.run_together([one, other])


def test_out_of_memory_halves_the_batch_for_this_size_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    session = h2gen.load("tiny")
    settings = [session.settings("a cat", CacheConfig(0.2, 0.2), seed=n, steps=3, cfg=1.0) for n in range(5)]
    wanted = [pixels(session.run(each).image) for each in settings]
    real, sizes, heard = session.pipe.transformer.forward, [], []

    def forward(*arguments: Any, **more: Any) -> Any:
        sizes.append(len(more["hidden_states"]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*arguments, **more)

    monkeypatch.setattr(session.pipe.transformer, "forward", forward)
    results = session.run_together(settings, on_step=lambda record: heard.append((record.picture, record.step)))
    assert sizes == [5, 3, *[2] * 6, *[1] * 3]
    assert [result.settings for result in results] == settings
    for result, picture in zip(results, wanted, strict=True):
        assert np.abs(pixels(result.image).astype(int) - picture).max() <= 1
    assert sorted(heard) == [(picture, step) for picture in range(5) for step in range(3)]
    sizes.clear()
    session.run_together(settings[:4])
    assert sizes == [2] * 6


def test_interrupting_stops_all_that_is_made_together(tiny: Any) -> None:
    seen: list[StepRecord] = []

    def stop(record: StepRecord) -> None:
        seen.append(record)
        if record.step == 1:
            tiny.interrupt()

    settings = [tiny.settings("a cat", seed=n, steps=6, cfg=1.0, cache=None) for n in range(2)]
    with pytest.raises(KeyboardInterrupt):
        tiny.run_together(settings, on_step=stop)
    assert [record.step for record in seen] == [0, 0, 1, 1]


def test_of_pictures_made_together_one_that_is_nan_with_the_cache_is_made_once_more(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tiny._denoise

    def sometimes(settings: Any, on_step: Any, tiled: bool) -> Any:
        made, trace, seconds = real(settings, on_step, tiled)
        if len(settings) == 2:
            made[1] = np.nan
        return made, trace, seconds

    monkeypatch.setattr(tiny, "_denoise", sometimes)
    settings = [tiny.settings("a cat", CacheConfig(0.5, 0.5), seed=n, steps=6, cfg=1.0) for n in (6, 7)]
    sound, spoilt = tiny.run_together(settings)
    assert (sound.nan_with_cache, spoilt.nan_with_cache, spoilt.trace.steps) == (False, True, [])
    assert np.array_equal(pixels(spoilt.image), plain(tiny))


def klein() -> Any:
    from h2gen.generation.session import Session
    from h2gen.models.catalogue import CATALOGUE, Checkpoint

    return Session(small.flux2_klein_pipeline(), Checkpoint("k", "folder", ".", None, CATALOGUE["klein-4b"].defaults))


def test_flux2_klein_takes_true_guidance_and_a_negative_prompt() -> None:
    session = klein()
    session.pipe.register_to_config(is_distilled=False)
    session.pipe.set_progress_bar_config(disable=True)
    size = {"width": 64, "height": 64, "steps": 4, "max_sequence_length": 32, "seed": 3}
    cache = CacheConfig(0.5, 0.5)
    one = session.generate("a cat", cache=cache, cfg=4.0, negative="a dog", **size)
    two = session.generate("a cat", cache=cache, cfg=4.0, **size)
    assert {record.context for record in one.trace.steps} == {"cond", "uncond"}
    assert not np.array_equal(pixels(one.image), pixels(two.image))


def test_guidance_that_a_model_cannot_take_is_refused() -> None:
    session = klein()
    session.pipe.register_to_config(is_distilled=True)
    with pytest.raises(SettingError, match="distilled"):
        session.generate("a cat", cfg=4.0, steps=1, cache=None)


def test_flux2_klein_makes_pictures_together() -> None:
    session = klein()
    size = {"width": 64, "height": 64, "steps": 4, "max_sequence_length": 32, "cfg": 1.0}
    settings = [session.settings(text, CacheConfig(0.5, 0.5), seed=3, **size) for text in THREE]
    for result, each in zip(session.run_together(settings), settings, strict=True):
        assert np.abs(pixels(result.image).astype(int) - pixels(session.run(each).image)).max() <= 1
