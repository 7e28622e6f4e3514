"""On an accelerator the timestep is queued; the cache waits for it if a policy needs it and there is no schedule."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from h2gen.cache import h2_cache
from h2gen.cache.inputs import Inputs
from tests.cache.drive import STEPS, flux, latents, plan_from_steps, position_ids, prompt, run, same
from tests.small import flux_pipeline, run_kwargs

WANTS: dict[str, dict[str, Any]] = {
    "plan": {"plan": "FFRDSFRS"},
    "forecast": {"tau1": 1.0, "tau2": 1.0, "forecast": 1, "max_consecutive": 2},
}
PAPER = {"tau1": 1e9, "tau2": 1e9}
wants_the_time = pytest.mark.parametrize("policy", WANTS.values(), ids=WANTS)


class Waits(list[str]):
    """What had already run each time that the cache waited for the timestep."""

    def __init__(self) -> None:
        super().__init__()
        self.ran = ""


def queue_the_time(monkeypatch: pytest.MonkeyPatch) -> Waits:
    """Leave every timestep a tensor until it is read, as on CUDA."""
    found = Waits()

    class Queued(Inputs):
        def __init__(self, family: Any, arguments: Any, *more: Any) -> None:
            super().__init__(family, arguments, *more)
            self.timestep = arguments["timestep"].detach().flatten()[0].clone()

        def read_timestep(self) -> float:
            if not isinstance(self.timestep, float):
                found.append(found.ran)
                self.timestep = float(self.timestep) * 1000
            return self.timestep

    monkeypatch.setattr("h2gen.cache.hooks.Inputs", Queued)
    return found


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    return queue_the_time(monkeypatch)


def watched(model: Any, waits: Waits) -> Any:
    """The model, recording when a pass begins to compute."""
    model.x_embedder.register_forward_pre_hook(lambda *_: setattr(waits, "ran", waits.ran + "x"))
    return model


@wants_the_time
def test_the_time_is_waited_for_once_a_pass_before_anything_runs(policy: dict[str, Any], waits: Waits) -> None:
    model = watched(flux(), waits)
    with h2_cache(model, **policy) as trace:
        run(model)
    ran = [not step.skipped for step in trace.steps]
    assert waits == ["x" * sum(ran[:step]) for step in range(STEPS)]
    assert len({step.timestep for step in trace.steps}) == STEPS


@pytest.mark.parametrize("policy", [PAPER, {"tau1": 0, "tau2": 0}, PAPER | {"budget": True, "pfs": "stable"}], ids=str)
def test_the_paper_never_waits_for_the_time(policy: dict[str, Any], waits: Waits) -> None:
    model = flux()
    with h2_cache(model, **policy) as trace:
        run(model)
    assert waits == []
    assert [step.timestep for step in trace.steps] == [1000 * (1 - step / STEPS) for step in range(STEPS)]


@wants_the_time
def test_a_pipelines_schedule_is_looked_at_once_a_run(policy: dict[str, Any], waits: Waits) -> None:
    pipe = flux_pipeline()
    with h2_cache(pipe, **policy):
        pipe(**run_kwargs(pipe, steps=STEPS))
    assert len(waits) == 1


@wants_the_time
def test_decisions_are_those_that_a_cpu_makes(policy: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = flux()
    with h2_cache(model, **policy) as trace:
        wanted = run(model)
    plan = plan_from_steps(trace.steps)
    queue_the_time(monkeypatch)
    with h2_cache(model, **policy) as trace:
        assert same(run(model), wanted)
    assert plan_from_steps(trace.steps) == plan


@pytest.mark.parametrize("known", [False, True], ids=["no schedule", "a schedule that ends"])
@wants_the_time
def test_a_loop_that_begins_again_on_the_same_inputs_is_noticed(
    policy: dict[str, Any], known: bool, waits: Waits
) -> None:
    pipe = flux_pipeline()
    model, target = pipe.transformer, pipe
    if not known:
        model = target = flux()
    inputs = position_ids(model) | prompt(model)
    with torch.no_grad(), h2_cache(target, **policy) as trace:
        if known:  # whose timesteps those of the loop then are
            pipe(**run_kwargs(pipe, steps=STEPS))
            trace.clear()
            times = [timestep / 1000 for timestep in pipe.scheduler.timesteps.tolist()]
        else:
            times = [1 - step / STEPS for step in range(STEPS)]
        for seed in (0, 1):
            for sigma in times:
                model(**(latents(model, sigma, seed=seed) | inputs))
    first, second = trace.steps[:STEPS], trace.steps[STEPS:]
    assert len({step.run for step in first}) == len({step.run for step in second}) == 1
    assert second[0].run == first[0].run + 1
    assert [step.step for step in second] == list(range(STEPS))
    assert second[0].full
