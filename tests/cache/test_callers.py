"""Threads that share a transformer: each trajectory is what it would be alone."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
import torch

from h2gen.cache import CacheConfig, StepRecord, apply, h2_cache, remove
from h2gen.errors import CacheError
from tests.cache.drive import assert_close, both_models, flux, run, same, thresholds, trajectory
from tests.cache.test_apply import footprint

THREADS = 3


@pytest.fixture(autouse=True)
def many_switches() -> Iterator[None]:
    """Switch threads as often as Python can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def at_once(make: Callable[[int], Any]) -> list[Any]:
    """What each thread makes, all started together."""
    barrier = threading.Barrier(THREADS)

    def begin(index: int) -> Any:
        barrier.wait()
        return make(index)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(begin, range(THREADS)))


def decisions(steps: list[StepRecord]) -> list[Any]:
    return [(step.step, step.structure, step.detail, step.blocks_run) for step in steps]


@both_models
@pytest.mark.parametrize("named", [True, False], ids=["named", "unnamed"])
@pytest.mark.parametrize("policy", ["thresholds", "plan"])
def test_each_thread_has_a_trajectory_of_its_own(make: Any, policy: str, named: bool) -> None:
    model = make()
    settings = {"plan": "FFRDSFRS"} if policy == "plan" else thresholds(model, 0.5, 0.7)
    passes = ("cond", "uncond")

    def one(index: int) -> list[torch.Tensor]:
        return run(model, passes=passes, seed=10 * index, named=named)

    with h2_cache(model, **settings) as trace:
        alone, records = [], []
        for index in range(THREADS):
            trace.clear()
            alone.append(one(index))
            records.append(decisions(trace.steps))
        trace.clear()
        together = at_once(one)
    for got, wanted in zip(together, alone, strict=True):
        assert_close(got, wanted, tolerance=1e-5)
    by_run: dict[int, list[StepRecord]] = {}
    for step in trace.steps:
        by_run.setdefault(step.run, []).append(step)
    assert len(by_run) == THREADS
    assert sorted(map(str, map(decisions, by_run.values()))) == sorted(map(str, records))


def test_a_trajectory_may_change_threads() -> None:
    """As when an asynchronous server runs each step in a pool."""
    model = flux()
    settings = thresholds(model, 0.5, 0.7)
    with h2_cache(model, **settings) as trace:
        wanted = run(model)
    got = []
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other, h2_cache(model, **settings) as trace_of_both:
        for step, (_, given) in enumerate(trajectory(model)):
            pool = one if step % 2 else other
            got.append(pool.submit(torch.no_grad()(lambda given=given: model(**given, return_dict=False)[0])).result())
    assert same(got, wanted)
    assert decisions(trace_of_both.steps) == decisions(trace.steps)


def test_a_thread_does_not_share_a_trajectory_that_goes_on_in_another() -> None:
    model = flux()
    settings = thresholds(model, 0.5, 0.7)

    def alone(seed: int) -> tuple[list[torch.Tensor], list[Any]]:
        with h2_cache(model, **settings) as trace:
            return run(model, seed=seed, named=False), decisions(trace.steps)

    wanted = [alone(seed) for seed in (0, 10)]
    first, second = list(trajectory(model)), list(trajectory(model, seed=10))

    @torch.no_grad()
    def step(given: dict[str, Any]) -> torch.Tensor:
        return model(**given, return_dict=False)[0]

    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other, h2_cache(model, **settings) as trace:
        got = [[pool.submit(step, given).result() for pool, (_, given) in zip((one, other), first, strict=False)], []]
        for (_, left), (_, right) in zip(first[2:], second, strict=False):
            both = other.submit(step, left), one.submit(step, right)
            for outputs, future in zip(got, both, strict=True):
                outputs.append(future.result())
        got[1] += [one.submit(step, given).result() for _, given in second[-2:]]
    for index, (outputs, steps) in enumerate(wanted):
        assert same(got[index], outputs)
        assert decisions([each for each in trace.steps if each.run == index]) == steps


class Paused:
    """A model whose passes wait in their first block, in every thread but this one."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.reached, self.go_on, main = threading.Event(), threading.Event(), threading.current_thread()

        def pause(*_: Any) -> None:
            if threading.current_thread() is not main:
                self.reached.set()
                assert self.go_on.wait(300)

        model.transformer_blocks[0].attn.register_forward_pre_hook(pause)


def test_it_is_not_replaced_during_a_pass_of_another_thread() -> None:
    model = flux()
    trace, paused = apply(model, CacheConfig(tau1=1e9, tau2=1e9)), Paused(model)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run, model, 2)
        assert paused.reached.wait(300)
        with pytest.raises(CacheError, match="running in another thread"):
            apply(model, CacheConfig())
        paused.go_on.set()
        running.result()
    assert len(trace.steps) == 2


def test_a_thread_that_ended_amid_a_pass_does_not_stand_in_the_way() -> None:
    model = flux()
    before = footprint(model)
    trace = apply(model, CacheConfig(plan="FR"))
    stop = model.transformer_blocks[1].register_forward_pre_hook(lambda *_: sys.exit())

    def ended() -> None:
        with suppress(SystemExit):
            run(model, 2, named=False)

    thread = threading.Thread(target=ended)
    thread.start()
    thread.join()
    stop.remove()
    model.transformer_blocks[0].__dict__.pop("forward", None)
    run(model, 2, named=False)
    assert [step.blocks_run for step in trace.steps] == [5, 2]
    apply(model, CacheConfig())
    remove(model)
    assert footprint(model) == before


def test_it_can_be_taken_off_during_a_pass_of_another_thread_which_ends_as_it_began() -> None:
    model = flux()
    wanted, paused = run(model, 2), Paused(model)
    before, trace = footprint(model), apply(model, CacheConfig(plan="FR"))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run, model, 2)
        assert paused.reached.wait(300)
        remove(model)
        paused.go_on.set()
        assert same(running.result(), wanted)  # its second step is plain, its first was full
    assert len(trace.steps) == 1
    assert footprint(model) == before
    assert same(run(model, 2), wanted)
