"""What the checks cost: nothing if they are off, one number read per decision if they are on."""

from __future__ import annotations

import inspect
import math
import sys
import warnings
from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from h2gen.cache import h2_cache, pfs
from tests.cache.drive import both_models, flux, run, same, thresholds, trajectory


class Operations(TorchDispatchMode):
    """Counts the operations that reach torch's dispatcher, and records what is read from tensors.

    Operations on a single number alone are left out: a pass may look at its timestep.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.read: list[float] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name == "_local_scalar_dense":
            self.read.append(output)
        elif name in ("equal", "nonzero", "is_nonzero"):
            self.read.append(math.nan)
        elif any(isinstance(arg, torch.Tensor) and arg.numel() > 1 for arg in args):
            self.counts[name] += 1
        return output


def spy_on_the_checks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the summary functions as they are called, by whatever name a module of the cache holds them."""
    calls: list[str] = []
    spies = {}
    for name in ("summarize", "relative_change"):
        original = getattr(pfs, name)
        spies[original] = lambda *args, name=name, original=original: calls.append(name) or original(*args)
    for module in [module for name, module in sys.modules.items() if name.startswith("h2gen.cache")]:
        for name, value in list(vars(module).items()):
            if inspect.isfunction(value) and value in spies:
                monkeypatch.setattr(module, name, spies[value])
    return calls


@both_models
def test_with_both_thresholds_at_zero_nothing_more_is_computed(make: Any) -> None:
    model = make()
    with Operations() as plainly:
        plain = run(model, 3, passes=("cond", "uncond"))
    with h2_cache(model, tau1=0, tau2=0) as trace, Operations() as cached:
        got = run(model, 3, passes=("cond", "uncond"))
    assert same(got, plain)
    assert cached.counts == plainly.counts
    assert len(trace.steps) == 6
    for record in trace.steps:
        assert (record.structure.change, record.detail.change) == (None, None)
        assert (record.structure.outcome, record.detail.outcome) == ("computed", "computed")
        assert record.blocks_run == record.blocks_total


@both_models
def test_with_both_thresholds_at_zero_nothing_is_summarized(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = spy_on_the_checks(monkeypatch)
    model = make()
    with h2_cache(model, tau1=0, tau2=0):
        run(model, 4)
    assert calls == []
    with h2_cache(model, tau1=0.1, tau2=0):
        run(model, 4)
    assert calls.count("relative_change") == 3


@both_models
@pytest.mark.parametrize("shares", [(0.3, 0.7), (1.0, 1.0)], ids=str)
def test_each_decision_reads_one_number_and_nothing_else_does(
    make: Any, shares: tuple[float | None, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every read makes the device finish first. A timestep is copied without waiting, and so are the ids that tell how
    many tokens are the picture's, once a trajectory."""
    model, passes, steps = make(), ("cond", "uncond"), 5
    tau = thresholds(model, *shares, steps=steps)
    unseen: list[str] = []  # ways to read a tensor that bypass the dispatcher
    with Operations() as plainly:
        run(model, steps, passes=passes)
    with h2_cache(model, **tau) as trace:
        for name in ("tolist", "numpy", "__array__"):
            original = getattr(torch.Tensor, name)
            monkeypatch.setattr(
                torch.Tensor, name, lambda *args, name=name, original=original: unseen.append(name) or original(*args)
            )
        with Operations() as cached:
            run(model, steps, passes=passes)
        monkeypatch.undo()
    changes = [
        stage.change
        for record in trace.steps
        for stage in (record.structure, record.detail)
        if stage.change is not None
    ]
    timesteps = {number for record in trace.steps for number in (record.sigma, record.timestep)}
    read = list((Counter(cached.read) - Counter(plainly.read)).elements())
    left = [number for number in read if number not in timesteps]
    tokens = [number for number in left if isinstance(number, int)]
    assert [number for number in left if number not in tokens] == changes
    assert tokens == [16] * len(passes)
    assert changes
    assert unseen == []


@pytest.mark.gpu
@both_models
@pytest.mark.parametrize("shares", [(0.4, 0.7), (None, None)], ids=str)
def test_a_gpu_is_waited_for_once_a_decision_at_most(make: Any, shares: tuple[float | None, float | None]) -> None:
    model = make()
    tau = thresholds(model, *shares)
    model.to("cuda")
    calls = [
        {name: value if value is None else value.to("cuda") for name, value in given.items()}
        for _, given in trajectory(model)
    ]

    def waits() -> int:
        with warnings.catch_warnings(record=True) as caught, torch.no_grad():
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                for given in calls:
                    model(**given)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(warning.message) for warning in caught)

    plainly = waits()
    with h2_cache(model, **tau) as trace:
        cached = waits()
    decisions = sum(stage.change is not None for record in trace.steps for stage in (record.structure, record.detail))
    assert cached - plainly <= decisions


def test_no_check_is_computed_where_the_outcome_is_forced_or_guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    model = flux()
    calls = spy_on_the_checks(monkeypatch)
    with h2_cache(model, tau1=1e9, tau2=1e9, max_consecutive=2) as trace:
        run(model, 9)
    outcomes = [record.structure.outcome.value for record in trace.steps]
    assert outcomes == ["computed", "reused", "reused", "guarded", "reused", "reused", "guarded", "reused", "reused"]
    assert calls.count("relative_change") == 6  # one per structure hit, none for its forced detail
