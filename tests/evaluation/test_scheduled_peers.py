"""Peers that compute some steps whole: each against its paper's formulas, and all of them on a small pipeline."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from numpy.polynomial.chebyshev import chebfit, chebval

from h2gen.errors import CacheError
from h2gen.evaluation.block_count import count_blocks
from h2gen.evaluation.peers import PEERS, find_best
from h2gen.evaluation.peers.dpcache import Taylor, path_costs
from h2gen.evaluation.peers.l2p import PUBLISHED, START, Linear, products, spread, weights
from h2gen.evaluation.peers.meancache import SPANS, MeanVelocity, edge_costs
from h2gen.evaluation.peers.paths import cheapest_path, cheapest_path_of_pairs
from h2gen.evaluation.peers.scheduled import LEAST, Scheduled
from h2gen.evaluation.peers.skipping import Forecaster, recorded, solver_inputs
from h2gen.evaluation.peers.spectrum import Chebyshev, schedule, window_steps
from tests.small import chroma_pipeline, flux2_klein_pipeline, flux_pipeline, run_kwargs

STEPS = 9
BLOCKS = 7  # of the small models

needs_cache_dit = pytest.mark.skipif(find_spec("cache_dit") is None, reason="cache-dit is not installed")
NAMES = [
    pytest.param(name, marks=needs_cache_dit if peer.package == "cache-dit" else ())
    for name, peer in PEERS.items()
    if isinstance(peer, Scheduled)
]


def tensor(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers).reshape(1, 1, -1)


def run_through(forecaster: Forecaster, computed: dict[int, torch.Tensor], steps: int) -> list[torch.Tensor]:
    return [
        forecaster.keep(step, computed[step]) if step in computed else forecaster.fill(step) for step in range(steps)
    ]


def numbers(tensors: Sequence[torch.Tensor]) -> list[float]:
    return [each.item() for each in tensors]


# On a small pipeline.


def images(pipe: Any, *, seed: int = 7, steps: int = STEPS, **more: Any) -> np.ndarray[Any, Any]:
    return np.asarray(pipe(**{**run_kwargs(pipe, steps=steps, seed=seed), **more}).images)


def calibrated(name: str, pipe: Any, steps: int = STEPS) -> Scheduled:
    runs = [lambda: images(pipe, seed=1, steps=steps), lambda: images(pipe, seed=2, steps=steps)]
    peer = PEERS[name].calibrated(pipe, runs, steps=steps)
    assert isinstance(peer, Scheduled)
    return peer


ready = functools.cache(calibrated)
"""A peer keeps nothing but what it was calibrated to, so that tests share it."""


@functools.cache
def plain_of(pipe: Any) -> np.ndarray[Any, Any]:
    return images(pipe)


@functools.cache
def pipeline_of(small: Callable[[], Any]) -> Any:
    return small()


def attributes(model: torch.nn.Module) -> list[Any]:
    return [(module, dict(vars(module)), list(module._modules)) for module in model.modules()]


@pytest.fixture(scope="module")
def pipe() -> Any:
    return flux_pipeline(guidance_embeds=False)


@pytest.mark.parametrize("name", NAMES)
def test_with_all_steps_computed_the_picture_is_the_plain_one(name: str, pipe: Any) -> None:
    plain = plain_of(pipe)
    with ready(name, pipe).applied(pipe, (STEPS,), steps=STEPS):
        assert np.array_equal(images(pipe), plain)


@pytest.mark.parametrize("name", NAMES)
def test_the_blocks_run_are_those_of_the_computed_steps(name: str, pipe: Any) -> None:
    peer, ran = ready(name, pipe), []
    handles = [
        pipe.transformer.x_embedder.register_forward_pre_hook(lambda *_: ran.append(False)),
        pipe.transformer.transformer_blocks[1].attn.register_forward_pre_hook(lambda *_: ran.__setitem__(-1, True)),
    ]
    plain = plain_of(pipe)
    try:
        for value in peer.values(STEPS)[1:]:
            assert isinstance(value, tuple)
            ran.clear()
            with count_blocks(pipe.transformer) as count, peer.applied(pipe, value, steps=STEPS):
                made = images(pipe)
            computed = peer.schedule(value[0], STEPS)
            assert len(computed) == value[0] and computed[0] == 0 and computed == tuple(sorted(set(computed)))
            assert (count.run, count.total) == (value[0] * BLOCKS, STEPS * BLOCKS)
            assert count.share == peer.share(value, STEPS)
            if peer.target == "features":  # the embedders run at each step
                assert tuple(step for step, each in enumerate(ran) if each) == computed
            assert np.isfinite(made).all() and not np.array_equal(made, plain)
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.no_cover
@pytest.mark.parametrize("name", NAMES)
def test_calls_do_not_depend_on_each_other_and_the_model_is_left_as_found(name: str, pipe: Any) -> None:
    plain, peer = plain_of(pipe), ready(name, pipe)
    before, step = attributes(pipe.transformer), pipe.scheduler.step

    def stop(_pipe: Any, step: int, _timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == 4:
            raise RuntimeError("broken off")
        return kwargs

    with peer.applied(pipe, peer.values(STEPS)[-1], steps=STEPS):
        first = images(pipe)
        with pytest.raises(RuntimeError, match="broken off"):
            images(pipe, seed=3, callback_on_step_end=stop)
        images(pipe, seed=4, prompt="a dog", height=96)
        assert np.array_equal(images(pipe), first)
    assert attributes(pipe.transformer) == before
    assert pipe.scheduler.step == step
    assert np.array_equal(images(pipe), plain)


@pytest.mark.no_cover
@pytest.mark.parametrize("name", NAMES)
def test_each_pass_of_guidance_has_its_own_forecasts(name: str, pipe: Any) -> None:
    # With the prompt as its own negative both passes are the same, and guidance between them changes nothing.
    peer = ready(name, pipe)
    value = peer.values(STEPS)[-1]
    with peer.applied(pipe, value, steps=STEPS):
        single = images(pipe)
    with count_blocks(pipe.transformer) as count, peer.applied(pipe, value, steps=STEPS, passes=2):
        double = images(pipe, true_cfg_scale=3.0, negative_prompt="a cat")
    assert np.array_equal(double, single)
    assert count.share == peer.share(value, STEPS)


@pytest.mark.no_cover
@pytest.mark.parametrize("small", [chroma_pipeline, flux2_klein_pipeline])
@pytest.mark.parametrize("name", NAMES)
def test_they_work_on_the_other_families(name: str, small: Callable[[], Any]) -> None:
    other = pipeline_of(small)
    steps, peer = 6, calibrated(name, other, 6)
    plain = images(other, steps=steps)
    with count_blocks(other.transformer) as count, peer.applied(other, peer.values(steps)[-1], steps=steps):
        first, second = images(other, steps=steps), images(other, steps=steps)
    assert count.share <= 4 / 6
    assert np.array_equal(first, second) and not np.array_equal(first, plain)
    assert np.array_equal(images(other, steps=steps), plain)


@pytest.mark.parametrize("name", ["meancache", "dpcache", "l2p"])
def test_what_is_fitted_is_for_one_number_of_steps(name: str, pipe: Any) -> None:
    peer = ready(name, pipe)
    with pytest.raises(CacheError, match=f"^{name} is not calibrated for 8 steps; call its calibrated"):
        peer.applied(pipe, (5,), steps=8).__enter__()
    with pytest.raises(CacheError, match=f"^{name} could not be calibrated: a run took 4 steps instead of {STEPS}"):
        PEERS[name].calibrated(pipe, [lambda: images(pipe, steps=4)], steps=STEPS)


def test_a_peer_says_its_source_its_settings_and_its_steps() -> None:
    peer = PEERS["spectrum"]
    assert peer.source == "h2gen, after arXiv 2603.01623"
    assert peer.label((11,)) == "Spectrum, 11 steps computed"
    assert peer.settings((11,)) == {
        "computed_steps": 11,
        "polynomials": 1.0,
        "warmup": 5,
        "degree": 4,
        "ridge": 0.1,
    }


@pytest.mark.parametrize("peer", [peer for peer in PEERS.values() if isinstance(peer, Scheduled)])
def test_the_first_choice_of_each_setting_is_the_default(peer: Scheduled) -> None:
    assert {name: choices[0] for name, choices in peer.choices.items()} == {
        name: getattr(peer, name) for name in peer.choices
    }


def test_further_settings_are_searched_one_after_the_other() -> None:
    tried = []

    def score(peer: Any) -> float:
        tried.append((peer.whole, peer.power))
        return float(-peer.whole - abs(peer.power - 2))

    best = find_best(PEERS["meancache"], score)
    assert best == replace(PEERS["meancache"], whole=0, power=2)  # type: ignore[call-arg]
    assert len(tried) == len(set(tried)) == 1 + 1 + 4
    assert find_best(PEERS["fb"], score) is PEERS["fb"]


def test_what_is_recorded_is_what_each_pass_and_the_solver_got(pipe: Any) -> None:
    guided: list[torch.Tensor] = []

    def run() -> None:
        with solver_inputs(pipe) as found:
            images(pipe, steps=3, true_cfg_scale=3.0, negative_prompt="a dog")
        guided[:] = found

    cond, uncond = recorded(pipe, "output", run)
    assert len(guided) == len(cond) == len(uncond) == 3
    for step in range(3):
        torch.testing.assert_close(guided[step], uncond[step] + 3 * (cond[step] - uncond[step]))
    (features,) = recorded(pipe, "features", lambda: images(pipe, steps=3))
    assert [each.shape for each in features] == [(1, 16, 32)] * 3


# Cheapest paths.


def test_the_cheapest_path_is_the_cheapest_of_all() -> None:
    costs = np.random.default_rng(0).random((8, 8))

    def total(path: Sequence[int]) -> float:
        return float(sum(costs[a, b] for a, b in itertools.pairwise([*path, 7])))

    for computed in range(1, 8):
        paths = [(0, *rest) for rest in itertools.combinations(range(1, 7), computed - 1)]
        assert cheapest_path(costs, computed, gap=7) == min(paths, key=total)
        if computed > 3:
            near = [path for path in paths if max(b - a for a, b in itertools.pairwise([*path, 7])) <= 2]
            assert cheapest_path(costs, computed, gap=2) == min(near, key=total)
    assert cheapest_path(costs, 1, gap=2) == (0,)  # nothing else keeps to one step


def test_the_cheapest_path_of_pairs_is_the_cheapest_of_all() -> None:
    costs = np.random.default_rng(1).random((8, 8, 9))

    def total(path: Sequence[int]) -> float:
        whole = [*path, 8]
        return float(sum(costs[whole[n - 1], whole[n], whole[n + 1]] for n in range(2, len(path))))

    for computed in range(3, 9):
        paths = [(0, 1, 2, *rest) for rest in itertools.combinations(range(3, 8), computed - 3)]
        assert cheapest_path_of_pairs(costs, computed, gap=8, first=3) == min(paths, key=total)
    assert cheapest_path_of_pairs(costs, 2, gap=8, first=3) == (0, 1)


# MeanCache.

SIGMAS = [1.0, 0.8, 0.5, 0.3, 0.1, 0.0]


def test_the_cost_of_an_edge_is_how_far_the_estimated_average_velocity_is_off() -> None:
    velocities = [tensor(value) for value in (1.0, 2.0, 4.0, 3.0, 5.0)]
    costs = edge_costs(velocities, SIGMAS)
    # From step 2 to step 4: the way is 4 * -0.2 + 3 * -0.2 = -1.4 over -0.4, so 3.5 on average; held it is 4.
    assert costs[SPANS.index(1), 2, 4] == pytest.approx(0.5)
    # With r at step 0: 1 * -0.2 + 2 * -0.3 = -0.8 over -0.5 is 1.6; J = (1.6 - 1) / -0.5 = -1.2; 4 - 0.4 * -1.2 = 4.48.
    assert costs[SPANS.index(2), 2, 4] == pytest.approx(0.98, rel=1e-5)
    assert (costs[:, [0, 1, 2, 3, 4], [1, 2, 3, 4, 5]] == 0).all()
    assert np.isinf(costs[SPANS.index(2), 1, 3]) and np.isfinite(costs[SPANS.index(1), 1, 3])
    assert np.isinf(costs[:, 3, 3]).all() and np.isinf(costs[:, 3, 2]).all()


def test_skipped_steps_move_with_the_estimated_average_velocity() -> None:
    computed = {0: tensor(1.0), 1: tensor(2.0), 2: tensor(4.0)}
    paper = MeanVelocity(SIGMAS, (0, 1, 2), {0: 1, 1: 1, 2: 2}, whole=True)
    # To the end, 0.5 away, with the J above: 4 - 0.5 * -1.2.
    assert numbers(run_through(paper, computed, 5)) == pytest.approx([1, 2, 4.6, 4.6, 4.6])
    code = MeanVelocity(SIGMAS, (0, 1, 2), {0: 1, 1: 1, 2: 2}, whole=False)
    # Step 3, r at step 1: (2 * -0.3 + 4 * -0.2) / -0.5 = 2.8; J = 0.8 / -0.5; 4 - 0.2 * -1.6 = 4.32. Step 4, r at
    # step 2: (4 * -0.2 + 4.32 * -0.2) / -0.4 = 4.16; J = 0.16 / -0.4; 4.32 - 0.1 * -0.4.
    assert numbers(run_through(code, computed, 5)) == pytest.approx([1, 2, 4, 4.32, 4.36])


@pytest.mark.parametrize("span", SPANS)
def test_a_longer_span_sees_more_of_the_slope(span: int) -> None:
    # From 0.5 to 0 the average of 1 + 2 sigma is 1.5. Euler's average over a span lags by half a step.
    sigmas = np.linspace(1, 0, 101).tolist()
    computed = {step: tensor(1 + 2 * sigmas[step]) for step in range(51)}
    used = run_through(MeanVelocity(sigmas, range(51), dict.fromkeys(range(51), span), whole=True), computed, 101)
    assert used[-1].item() == pytest.approx(2 - 0.5 * (span - 1) / span, rel=1e-4)


def test_power_suppresses_peaks() -> None:
    costs = np.full((1, 9, 9), np.inf)
    for start, end, cost in [(0, 2, 1), (2, 5, 5), (5, 8, 0), (0, 3, 3), (3, 6, 3), (6, 8, 2)]:
        costs[0, start, end] = cost
    peer: Any = replace(PEERS["meancache"], costs=costs)  # type: ignore[call-arg]
    assert replace(peer, power=1).schedule(3, 8) == (0, 2, 5)
    assert replace(peer, power=4).schedule(3, 8) == (0, 3, 6)


# DPCache.


def test_the_expansion_is_taylorseers() -> None:
    computed = {0: tensor(1.0), 1: tensor(2.0), 3: tensor(8.0)}
    # At step 3: first derivative (8 - 2) / 2 = 3, second (3 - 1) / 2 = 1.
    assert numbers(run_through(Taylor(2), computed, 6)) == [1, 2, 3, 8, 8 + 3 + 0.5, 8 + 6 + 2]
    assert numbers(run_through(Taylor(1), computed, 6)) == [1, 2, 3, 8, 11, 14]
    assert numbers(run_through(Taylor(0), computed, 6)) == [1, 2, 2, 8, 8, 8]


def test_a_paths_cost_sums_the_errors_up_to_the_next_computed_step() -> None:
    features = [tensor(*values) for values in ((0.0, 0.0), (1.0, 2.0), (4.0, 4.0), (9.0, 7.0))]
    held = path_costs(features, 0)
    # From step 1: 3 and 2, then 8 and 5; the end is held at step 3.
    assert held[0, 1, 2:] == pytest.approx([2.5, 2.5 + 6.5, 2.5 + 6.5 + 6.5])
    line = path_costs(features, 1)
    # From step 1 after 0 by 1 and 2: 2 and 0, then 6 and 1, then the end at 14, 10: 10 and 2.
    assert line[0, 1, 2:] == pytest.approx([1, 1 + 3.5, 1 + 3.5 + 6])
    quadratic = path_costs(features, 2)
    # At step 2 after 1: first derivatives 3 and 2, second 3 - 1 and 2 - 2. Step 3: 8 and 6.
    assert quadratic[1, 2, 3] == pytest.approx((1 + 1) / 2)
    assert np.isinf(held[2, 1]).all() and np.isinf(held[1, 1]).all() and np.isinf(held[1, 2, :3]).all()


def test_dpcache_begins_with_three_steps() -> None:
    peer = replace(PEERS["dpcache"], costs=np.random.default_rng(0).random((3, 12, 12, 13)))  # type: ignore[call-arg]
    for computed in range(LEAST, 13):
        assert peer.schedule(computed, 12)[:3] == (0, 1, 2)  # type: ignore[attr-defined]


# L2P.


def test_the_weights_are_the_least_squares_solution() -> None:
    generator = torch.Generator().manual_seed(0)
    outputs = [torch.randn(1, 6, 4, generator=generator) for _ in range(3)]
    outputs.append(0.5 * outputs[0] - 2 * outputs[1] + outputs[2] + 0.1 * torch.randn(1, 6, 4, generator=generator))
    inner = products(outputs)
    flat = np.stack([output.numpy().ravel() for output in outputs])
    expected = np.linalg.lstsq(flat[:3].T, flat[3], rcond=None)[0]
    assert weights(inner, (0, 1, 2), 3, ridge=0) == pytest.approx(expected, rel=1e-4)
    assert weights(inner, (0, 2), 3, ridge=1e9) == pytest.approx([0, 1], abs=1e-6)  # holds the last one
    assert inner[0, 1] == pytest.approx((flat[0] * flat[1]).mean(), rel=1e-4)


def test_a_penalty_is_relative_to_the_mean_square() -> None:
    inner = np.array([[4.0, 6.0], [6.0, 9.0]])  # the second is 1.5 times the first
    # (4 + 0.5 * 4) w = 6 + 0.5 * 4 * 1
    assert weights(inner, (0,), 1, ridge=0.5) == pytest.approx([8 / 6])


def test_a_skipped_step_combines_all_before_it() -> None:
    rows = {2: ((0, 1), np.array([-1.0, 2.0])), 3: ((0, 2), np.array([0.5, 1.0]))}
    used = run_through(Linear(rows), {0: tensor(1.0), 1: tensor(3.0)}, 4)
    assert numbers(used) == [1, 3, 5, 5.5]


@pytest.mark.parametrize("starts", [range(1), range(3), range(5), START])
def test_steps_are_spread_over_the_image(starts: Sequence[int]) -> None:
    for steps in (5, 9, 28, 50):
        for computed in range(1, steps + 1):
            found = spread(computed, steps, starts)
            assert len(set(found)) == computed and list(found) == sorted(found)
            assert found[0] == 0 and found[-1] < steps
    assert spread(10, 28, range(1)) == (0, 3, 6, 8, 11, 14, 17, 20, 22, 25)
    assert spread(7, 28, START) == (0, 1, 2, 4, 10, 16, 22)


def test_at_50_steps_the_authors_schedules_are_used() -> None:
    peer: Any = PEERS["l2p"]
    assert all(len(steps) == computed for computed, steps in PUBLISHED.items())
    assert peer.schedule(9, 50) == PUBLISHED[9]
    assert replace(peer, first=1).schedule(9, 50) != PUBLISHED[9]


# Spectrum.


def test_the_published_windows_compute_14_of_50_steps() -> None:
    # The figures of its authors: window 2, growth 0.75, warm-up 5.
    assert len(window_steps(50, 5, 2, 0.75)) == 14
    assert window_steps(20, 5, 2, 1) == (0, 1, 2, 3, 4, 6, 9, 13, 18)


@pytest.mark.parametrize(("steps", "warmup"), [(9, 5), (28, 5), (28, 3), (50, 5)])
def test_any_number_of_steps_can_be_computed(steps: int, warmup: int) -> None:
    for computed in range(LEAST, steps + 1):
        found = schedule(computed, steps, warmup)
        assert len(found) == computed
        assert found[: min(warmup, computed - 2)] == tuple(range(min(warmup, computed - 2)))


def test_features_are_fitted_by_chebyshev_polynomials() -> None:
    places = {0: 1.0, 1: 2.0, 2: 2.5, 4: 3.5, 6: 3.0}
    computed = {step: tensor(value) for step, value in places.items()}
    used = run_through(Chebyshev(8, degree=2, ridge=1e-9, share=1.0), computed, 8)
    times = np.array([*places]) / 4 - 1
    assert used[7].item() == pytest.approx(chebval(7 / 4 - 1, chebfit(times, [*places.values()], 2)), rel=1e-5)


def test_the_ridge_shrinks_the_coefficients_and_the_line_is_mixed_in() -> None:
    computed = {0: tensor(2.0), 1: tensor(4.0)}
    # Degree 0: the sum of both over 2 + ridge. The line says 6 at step 2.
    assert numbers(run_through(Chebyshev(4, 0, ridge=1.0, share=1.0), computed, 3)) == pytest.approx([2, 4, 2])
    assert numbers(run_through(Chebyshev(4, 0, ridge=1.0, share=0.75), computed, 3)) == pytest.approx([2, 4, 3])
    assert numbers(run_through(Chebyshev(4, 0, ridge=1.0, share=0.0), {0: tensor(2.0)}, 2)) == [2, 2]


# cache-dit's masks.


@needs_cache_dit
def test_the_masks_are_cache_dits() -> None:
    peer: Any = PEERS["masks"]
    assert peer.values(28) == ((28,), (18,), (15,), (11,), (8,))
    assert peer.schedule(8, 28) == (0, 1, 2, 3, 6, 12, 19, 27)
    assert [len(peer.schedule(*value, 50)) for value in peer.values(50)] == [value[0] for value in peer.values(50)]
    with pytest.raises(CacheError, match=r"^cache-dit has no masks for 5 steps; leave masks out\."):
        peer.values(5)


def test_forecasts_keep_half_precision() -> None:
    value = torch.ones(1, 2, 3, dtype=torch.bfloat16)
    rows = {1: ((0,), np.array([1.0]))}
    made = [Taylor(2), Linear(rows), Chebyshev(4, 2, 0.1, 1.0), MeanVelocity(SIGMAS, (0,), {0: 3}, whole=False)]
    for forecaster in made:
        forecaster.keep(0, value)
        assert forecaster.fill(1).dtype is torch.bfloat16
    assert math.isclose(made[0].fill(2).mean().item(), 1.0)
