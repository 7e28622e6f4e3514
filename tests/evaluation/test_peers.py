"""Other caches behind one interface: they save blocks, keep nothing between pictures, and leave no trace."""

from __future__ import annotations

import functools
import itertools
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FirstBlockCacheConfig, FluxPipeline, FluxTransformer2DModel, MagCacheConfig
from torch import nn

import h2gen
from h2gen.errors import CacheError, SettingError
from h2gen.evaluation import peers
from h2gen.evaluation.block_count import count_blocks
from h2gen.evaluation.peers import PEERS, Peer, Span, Value, choose_peers, find_equal_cost
from h2gen.evaluation.peers.builtin import _latents, taylor_steps, taylor_values
from h2gen.evaluation.peers.teacache import Trajectory, rescaled, teacache
from h2gen.families import family_of
from h2gen.families.flux1 import TEACACHE_DEV
from tests.small import (
    flux2_klein_pipeline,
    flux2_pipeline,
    flux2_transformer,
    flux_transformer,
    hunyuan_video_pipeline,
    run_kwargs,
)

BLOCKS = 24  # of the bundled model
STEPS = 8
IDENTITY = (1.0, 0.0)

needs_cache_dit = pytest.mark.skipif(find_spec("cache_dit") is None, reason="cache-dit is not installed")


def named(*names: str) -> list[Any]:
    return [pytest.param(name, marks=needs_cache_dit if PEERS[name].package == "cache-dit" else ()) for name in names]


ALL = named(*PEERS)


def make(session: h2gen.Session, *, steps: int = STEPS, cfg: float = 1, negative: str = "") -> np.ndarray[Any, Any]:
    return np.asarray(session.generate("a cat", seed=7, steps=steps, cfg=cfg, negative=negative, cache=None).image)


def calibrated(name: str, session: h2gen.Session, steps: int = STEPS) -> Peer:
    return PEERS[name].calibrated(session.pipe, [lambda: make(session, steps=steps)], steps=steps)


ready = functools.cache(calibrated)
"""A peer keeps nothing but what it was calibrated to, so that tests share it."""


@functools.cache
def plain_of(session: h2gen.Session) -> np.ndarray[Any, Any]:
    return make(session)


def most_reuse(peer: Peer, steps: int = STEPS) -> Value:
    values = peer.values(steps)
    return values.high if isinstance(values, Span) else values[-1]


def attributes(model: nn.Module) -> list[tuple[nn.Module, dict[str, Any], list[str]]]:
    return [(module, dict(vars(module)), list(module._modules)) for module in model.modules()]


# On a pipeline and off it again.


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_a_peer_saves_blocks_and_keeps_nothing_from_picture_to_picture(name: str, tiny: h2gen.Session) -> None:
    peer, plain = ready(name, tiny), plain_of(tiny)
    with count_blocks(tiny.pipe.transformer) as count, peer.applied(tiny.pipe, most_reuse(peer), steps=STEPS):
        first = make(tiny)
        saved, count.run = count.run, 0
        second = make(tiny)
    assert BLOCKS <= saved < STEPS * BLOCKS * 0.75
    assert count.run == saved
    assert not np.array_equal(first, plain)
    assert np.array_equal(first, second)
    assert np.array_equal(make(tiny), plain)


@pytest.mark.slow
@pytest.mark.no_cover
@pytest.mark.parametrize("name", ALL)
def test_a_peer_leaves_no_trace_on_the_model(name: str, tiny: h2gen.Session) -> None:
    peer = ready(name, tiny)
    make(tiny)  # a pipeline itself leaves an empty registry of hooks on a model
    before, call = attributes(tiny.pipe.transformer), FluxPipeline.__call__
    with peer.applied(tiny.pipe, most_reuse(peer), steps=STEPS):
        make(tiny)
    assert attributes(tiny.pipe.transformer) == before
    assert FluxPipeline.__call__ is call
    assert not hasattr(FluxPipeline, "_is_cached")


@pytest.mark.slow
@pytest.mark.no_cover
@pytest.mark.parametrize("name", ALL)
def test_a_call_that_was_broken_off_leaves_nothing_behind(name: str, tiny: h2gen.Session) -> None:
    peer = ready(name, tiny)
    before = attributes(tiny.pipe.transformer)

    def stop(_pipe: Any, step: int, _timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == 2:
            raise RuntimeError("broken off")
        return kwargs

    with peer.applied(tiny.pipe, most_reuse(peer), steps=STEPS):
        whole = make(tiny)
        with pytest.raises(RuntimeError, match="broken off"):
            tiny.pipe("a dog", num_inference_steps=STEPS, width=128, height=128, callback_on_step_end=stop)
        assert np.array_equal(make(tiny), whole)
    assert attributes(tiny.pipe.transformer) == before


@pytest.mark.slow
@pytest.mark.no_cover
@pytest.mark.parametrize("name", ALL)
def test_the_passes_of_guidance_do_not_share_what_is_kept(name: str, tiny: h2gen.Session) -> None:
    # With the prompt as its own negative both passes are the same, and guidance between them changes nothing: unless
    # one pass reuses what the other kept.
    peer = ready(name, tiny)
    with count_blocks(tiny.pipe.transformer) as one, peer.applied(tiny.pipe, most_reuse(peer), steps=STEPS):
        single = make(tiny)
    with count_blocks(tiny.pipe.transformer) as two, peer.applied(tiny.pipe, most_reuse(peer), steps=STEPS, passes=2):
        double = make(tiny, cfg=3, negative="a cat")
    assert np.array_equal(double, single)
    assert two.run == 2 * one.run


@pytest.mark.slow
@pytest.mark.no_cover
@pytest.mark.parametrize("name", ALL)
def test_at_the_other_end_of_its_range_a_peer_reuses_next_to_nothing(name: str, tiny: h2gen.Session) -> None:
    peer = ready(name, tiny)
    values = peer.values(STEPS)
    least = values.low if isinstance(values, Span) else values[0]
    with count_blocks(tiny.pipe.transformer) as count, peer.applied(tiny.pipe, least, steps=STEPS):
        make(tiny)
    assert count.share > 0.9


@pytest.mark.parametrize("name", named("mag", "sea", "dbcache"))
def test_without_its_guard_a_peer_reaches_lower_shares(name: str, tiny: h2gen.Session) -> None:
    steps = 16
    peer = ready(name, tiny, steps)
    shares = []
    for variant in (peer, peer.beyond):
        assert variant is not None
        with count_blocks(tiny.pipe.transformer) as count, variant.applied(tiny.pipe, variant.span.high, steps=steps):
            make(tiny, steps=steps)
        shares.append(count.share)
    assert shares[1] < shares[0]
    assert peer.beyond is not None
    assert peer.beyond.beyond is None
    assert peer.guard and peer.guarded and not peer.beyond.guarded


def test_a_peer_refuses_a_model_that_has_a_cache_on(tiny: h2gen.Session) -> None:
    tiny.pipe.transformer.enable_cache(FirstBlockCacheConfig())
    try:
        with pytest.raises(CacheError, match=r"FirstBlockCacheConfig.* disable_cache"):
            PEERS["tea"].applied(tiny.pipe, 0.1, steps=STEPS).__enter__()
    finally:
        tiny.pipe.transformer.disable_cache()


@needs_cache_dit
def test_cache_dit_is_kept_quiet(tiny: h2gen.Session, capfd: pytest.CaptureFixture[str]) -> None:
    with PEERS["dbcache"].applied(tiny.pipe, 0.1, steps=2):
        make(tiny, steps=2)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("pipeline", [flux2_klein_pipeline, flux2_pipeline])
@pytest.mark.parametrize("name", named("tea", "mag", "taylor", "dbcache"))
def test_peers_of_flux2_work_whether_or_not_its_pipeline_sets_contexts(name: str, pipeline: Callable[..., Any]) -> None:
    pipe = pipeline()
    arguments = run_kwargs(pipe, steps=STEPS)
    if pipeline is flux2_pipeline:  # its text encoder takes chats with pictures, which the small one does not
        del arguments["prompt"]
        arguments["prompt_embeds"] = torch.randn(1, 64, 48, generator=torch.Generator().manual_seed(0))

    def run() -> np.ndarray[Any, Any]:
        arguments["generator"] = torch.Generator().manual_seed(7)
        return np.asarray(pipe(**arguments).images)

    peer = PEERS[name].calibrated(pipe, [run], steps=STEPS)
    plain = run()
    with count_blocks(pipe.transformer) as count, peer.applied(pipe, most_reuse(peer), steps=STEPS):
        first, second = run(), run()
    assert count.share < 0.75
    assert np.isfinite(first).all()
    assert np.array_equal(first, second)
    assert np.array_equal(run(), plain)


@pytest.mark.parametrize("name", ["fb", "block", "sea"])
def test_peers_that_do_not_work_on_flux2_say_so(name: str) -> None:
    pipe = flux2_klein_pipeline(layers=1, single_layers=1)
    with pytest.raises(CacheError, match=rf"^{name} \(diffusers [\d.]+ \w+\) does not work on FLUX.2; leave it out"):
        PEERS[name].applied(pipe, 0.1, steps=STEPS).__enter__()


# MagCache.


def test_calibration_finds_what_diffusers_would_print_and_prints_nothing(
    tiny: h2gen.Session, capfd: pytest.CaptureFixture[str]
) -> None:
    before = attributes(tiny.pipe.transformer)
    peer = calibrated("mag", tiny)
    assert capfd.readouterr() == ("", "")
    assert attributes(tiny.pipe.transformer) == before
    tiny.pipe.transformer.enable_cache(MagCacheConfig(calibrate=True, num_inference_steps=STEPS))
    try:
        make(tiny)
    finally:
        tiny.pipe.transformer.disable_cache()
    printed = capfd.readouterr().out
    assert str(list(peer.ratios)) in printed  # type: ignore[attr-defined]


def test_magcache_asks_for_calibration_at_its_number_of_steps(tiny: h2gen.Session) -> None:
    with pytest.raises(CacheError, match="mag is not calibrated for 9 steps"):
        ready("mag", tiny).applied(tiny.pipe, 0.1, steps=9).__enter__()
    with pytest.raises(CacheError, match=r"could not be calibrated: 3 usable ratios for 8 steps"):
        PEERS["mag"].calibrated(tiny.pipe, [lambda: make(tiny, steps=3)], steps=STEPS)


# TaylorSeer.


@pytest.mark.slow
@pytest.mark.parametrize(("interval", "warmup"), [(1, 3), (2, 3), (3, 5), (5, 4), (11, 3), (4, 11), (12, 12)])
def test_taylorseer_computes_as_many_steps_as_foretold(interval: int, warmup: int, tiny: h2gen.Session) -> None:
    steps = 12
    with (
        count_blocks(tiny.pipe.transformer) as count,
        PEERS["taylor"].applied(tiny.pipe, (interval, warmup), steps=steps),
    ):
        make(tiny, steps=steps)
    assert count.run == taylor_steps(steps, interval, warmup) * BLOCKS


@pytest.mark.parametrize(("steps", "least"), [(1, 1), (2, 2), (3, 3), (4, 3), (5, 4), (28, 4), (100, 4)])
def test_taylorseer_can_compute_any_number_of_steps_from_few_to_all(steps: int, least: int) -> None:
    computed = [taylor_steps(steps, *value) for value in taylor_values(steps)]
    assert computed == list(range(steps, least - 1, -1))


# SeaCache.


@pytest.mark.slow
@pytest.mark.parametrize("name", named("fb", "mag", "sea", "taylor", "tea", "dbcache", "meancache"))
def test_peers_work_on_videos(name: str) -> None:
    pipe = hunyuan_video_pipeline(layers=2, single_layers=2)

    def made() -> Any:
        return pipe(**run_kwargs(pipe, steps=STEPS)).frames

    peer = PEERS[name].calibrated(pipe, [made] * 8, steps=STEPS)
    plain, values = made(), peer.values(STEPS)
    least = values.low if isinstance(values, Span) else values[0]
    with peer.applied(pipe, least, steps=STEPS):
        assert np.array_equal(made(), plain)
    with count_blocks(pipe.transformer) as count, peer.applied(pipe, most_reuse(peer), steps=STEPS):
        changed = made()
        assert count.share < 0.7 and not np.array_equal(changed, plain)
    assert np.array_equal(made(), plain)


def test_seacache_sees_the_latents_as_a_picture() -> None:
    picture = torch.randn(2, 5, 12, 8, generator=torch.Generator().manual_seed(0))
    packed = FluxPipeline._pack_latents(picture, 2, 5, 12, 8)
    ids = FluxPipeline._prepare_latent_image_ids(2, 6, 4, torch.device("cpu"), torch.float32)
    seen = _latents(None, (), {"hidden_states": packed, "img_ids": ids})
    assert torch.equal(torch.stack(seen), picture.unsqueeze(2))


# TeaCache.


def test_teacache_rescales_by_the_published_polynomial() -> None:
    for change in (0.0, 0.03, 0.1, 0.4):
        assert rescaled(TEACACHE_DEV, change) == pytest.approx(np.poly1d(TEACACHE_DEV)(change))
        assert rescaled(IDENTITY, change) == change


def coefficients_of(transformer: Any) -> tuple[float, ...]:
    return family_of(transformer).teacache_polynomial(transformer)


def test_the_polynomial_is_for_flux1_dev_alone() -> None:
    with torch.device("meta"):
        dev, schnell = (
            FluxTransformer2DModel(
                num_layers=19,
                num_single_layers=38,
                num_attention_heads=1,
                attention_head_dim=16,
                axes_dims_rope=(4, 6, 6),
                guidance_embeds=guided,
            )
            for guided in (True, False)
        )
    assert coefficients_of(dev) == TEACACHE_DEV
    assert coefficients_of(schnell) == IDENTITY
    assert coefficients_of(flux_transformer()) == IDENTITY
    assert coefficients_of(flux2_transformer()) == IDENTITY


def test_teacache_skips_until_the_changes_add_up_to_the_threshold() -> None:
    state = Trajectory()
    skipped = []
    for size in (1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.6):
        state.decide(torch.full((1, 2, 3), size), 0.25, steps=8, coefficients=IDENTITY)
        state.residual = torch.zeros(1)
        skipped.append(state.skips)
    # Changes: 0.1, 0.091, 0.083 | 0.077, 0.071, 0.067 | the last step is computed whatever its change.
    assert skipped == [False, True, True, False, True, True, True, False]


def test_teacache_decides_on_the_modulated_input_of_the_first_block(tiny: h2gen.Session) -> None:
    transformer, threshold = tiny.pipe.transformer, 0.12
    inputs: list[torch.Tensor] = []
    ran: list[bool] = []

    def first(block: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        inputs.append(block.norm1(kwargs["hidden_states"], emb=kwargs["temb"])[0])
        ran.append(False)

    def second(*_: Any) -> None:
        ran[-1] = True

    handles = [
        transformer.transformer_blocks[0].register_forward_pre_hook(first, with_kwargs=True),
        transformer.transformer_blocks[1].attn.register_forward_pre_hook(second),
    ]
    try:
        with PEERS["tea"].applied(tiny.pipe, threshold, steps=20):
            make(tiny, steps=20)
    finally:
        for handle in handles:
            handle.remove()
    expected, spent = [True], 0.0
    for before, now in itertools.pairwise(inputs):
        spent += float((now - before).abs().mean() / before.abs().mean())
        expected.append(spent >= threshold or len(expected) == 19)
        spent = 0.0 if expected[-1] else spent
    assert ran == expected
    assert 2 < sum(ran) < 18


@pytest.mark.parametrize("model", [flux_transformer, flux2_transformer])
@torch.no_grad()
def test_a_skipped_step_adds_what_all_blocks_added_before(model: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    transformer = model(guidance_embeds=False)
    text, image = torch.randn(1, 5, transformer.config.joint_attention_dim), torch.randn(1, 16, 16)
    axes = len(transformer.config.axes_dims_rope)
    inputs = {
        "encoder_hidden_states": text,
        "txt_ids": torch.zeros(5, axes),
        "img_ids": torch.randint(0, 4, (16, axes)).float(),
        "return_dict": False,
    }
    if model is flux_transformer:
        inputs["pooled_projections"] = torch.randn(1, transformer.config.pooled_projection_dim)
    before_out: list[torch.Tensor] = []
    handle = transformer.norm_out.register_forward_pre_hook(lambda _, args: before_out.append(args[0]))
    with teacache(transformer, 1e9, steps=3), count_blocks(transformer) as count:
        for step, scale in enumerate((1.0, 0.7)):
            with transformer.cache_context("cond"):
                transformer(hidden_states=scale * image, timestep=torch.tensor([1 - 0.3 * step]), **inputs)
    handle.remove()
    assert count.share == 0.5
    embedded = [transformer.x_embedder(scale * image) for scale in (1.0, 0.7)]
    torch.testing.assert_close(before_out[1] - embedded[1], before_out[0] - embedded[0], atol=1e-4, rtol=1e-4)


# Choosing peers.


def test_peers_are_chosen_by_name_in_order_and_once() -> None:
    assert [peer.name for peer in choose_peers(" mag, FB ,mag,,block")] == ["mag", "fb", "block"]
    assert all(name == peer.name for name, peer in PEERS.items())


def test_a_peer_says_whose_code_runs_and_what_its_value_means() -> None:
    assert PEERS["fb"].source.startswith("diffusers ")
    assert PEERS["fb"].settings(0.12) == {"threshold": 0.12}
    assert PEERS["taylor"].settings((4, 7)) == {"cache_interval": 4, "disable_cache_before_step": 7}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("fb,taylr", "There is no cache 'taylr' to compare with; did you mean 'taylor'? Known: fb, block, tea, "),
        ("zzz", "There is no cache 'zzz' to compare with. Known: fb, "),
        (" , ", "against is ' , ', which names no cache; choose from fb, block, tea, mag"),
    ],
)
def test_a_wrong_name_is_answered_in_one_line(names: str, message: str) -> None:
    with pytest.raises(SettingError) as caught:
        choose_peers(names)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_the_frontiers_peers_are_those_whose_packages_are_there_and_a_notice_names_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda _name: True)
    fitted = ["meancache", "spectrum", "dpcache", "l2p"]
    assert [peer.name for peer in peers.default_peers()[0]] == [
        *("fb", "taylor", "mag", "dbcache", "dbcache-taylor"),
        *(*fitted, "masks"),
    ]
    assert peers.default_peers()[1] == []
    monkeypatch.setattr(peers, "find_spec", lambda name: None if name == "cache_dit" else True)
    found, notices = peers.default_peers()
    assert [peer.name for peer in found] == ["fb", "taylor", "mag", *fitted]
    assert notices == [
        "DBCache, DBCache+Taylor and cache-dit's masks left out: cache-dit is not installed; run: pip install cache-dit"
    ]


def test_a_missing_package_is_named_with_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda name: None if name == "cache_dit" else find_spec(name))
    with pytest.raises(SettingError, match=r"^dbcache needs cache-dit, .*; run: pip install cache-dit\.$"):
        choose_peers("fb,dbcache")
    assert choose_peers("fb,tea")


def test_choosing_loads_neither_torch_nor_diffusers() -> None:
    program = "import sys; from h2gen.evaluation.peers import PEERS, choose_peers; choose_peers(','.join("
    program += "name for name, peer in PEERS.items() if peer.package == 'diffusers')); "
    program += "print([name for name in ('torch', 'diffusers', 'cache_dit', 'numpy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fb", "taylor"])
def test_the_search_lands_on_the_share_of_the_bundled_model(name: str, tiny: h2gen.Session) -> None:
    steps, target = 20, 0.45

    def measure(peer: Peer, value: Value) -> float:
        with count_blocks(tiny.pipe.transformer) as count, peer.applied(tiny.pipe, value, steps=steps):
            make(tiny, steps=steps)
        return count.share

    found = find_equal_cost(PEERS[name], target, measure, steps=steps)
    assert abs(found.share - target) <= 0.025  # half of what one of 20 steps makes
    assert found.tried <= 12
    assert measure(found.peer, found.value) == found.share
