"""Another solver instead of a pipeline's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from diffusers import DDIMScheduler

from h2gen.cache import CacheConfig, h2_cache
from h2gen.errors import ModelError, SettingError
from h2gen.generation.solvers import solving
from h2gen.models.choices import evaluations
from tests import small

CALL = {"num_inference_steps": 8, "width": 64, "height": 64, "max_sequence_length": 16}


@pytest.mark.parametrize(("solver", "kind"), [("unipc", "_UniPC"), ("heun", "_Heun")])
def test_the_picture_is_another_and_the_pipeline_as_before(tiny: Any, solver: str, kind: str) -> None:
    settings = tiny.settings("a cat", seed=1, steps=6, cfg=1.0, cache=None)
    own, before = tiny.pipe.scheduler, np.asarray(tiny.run(settings).image)
    with solving(tiny.pipe, solver):
        assert type(tiny.pipe.scheduler).__name__.startswith(kind)
    assert tiny.pipe.scheduler is own
    other = np.asarray(tiny.generate("a cat", seed=1, steps=6, cfg=1.0, solver=solver, cache=None).image)
    assert tiny.pipe.scheduler is own
    assert not np.array_equal(other, before)
    assert np.array_equal(np.asarray(tiny.run(settings).image), before)


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["unipc", "heun"])
def test_a_higher_order_comes_closer_to_the_solution_in_as_many_steps(tiny: Any, solver: str) -> None:
    def picture(steps: int, solver: str) -> Any:
        image = tiny.generate("a cat", seed=1, steps=steps, cfg=1.0, solver=solver, cache=None).image
        return np.asarray(image, np.float64)

    true = picture(200, "own")
    assert np.abs(picture(12, solver) - true).mean() < np.abs(picture(12, "own") - true).mean()


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("solver", ["unipc", "heun"])
def test_sigmas_are_shifted_as_the_models_own(dynamic: bool, solver: str) -> None:
    """FLUX.1-dev shifts by the size of the picture, others by a number."""
    pipe = small.flux_pipeline()
    pipe.scheduler = type(pipe.scheduler)(shift=3.0, use_dynamic_shifting=dynamic)
    pipe.set_progress_bar_config(disable=True)
    sigmas = []
    for name in (solver, "own"):
        with solving(pipe, name):
            pipe("a cat", **CALL)
            sigmas.append(pipe.scheduler.sigmas.unique())
    # UniPC's grid ends a thousandth from where Euler's does, on the same curve.
    assert np.allclose(sigmas[0], sigmas[1], atol=0.01 if solver == "unipc" else 1e-6)


def test_heun_asks_the_model_twice_in_each_step_but_the_last() -> None:
    pipe = small.flux_pipeline()
    pipe.set_progress_bar_config(disable=True)
    with solving(pipe, "heun"), h2_cache(pipe, CacheConfig(0, 0, final_steps=1)) as trace:
        pipe("a cat", **CALL)
    assert len(trace.steps) == evaluations(8, "heun") == 15


@pytest.mark.parametrize("solver", ["unipc", "heun"])
def test_the_cache_works_with_it_and_knows_its_schedule(solver: str) -> None:
    pipe = small.flux_pipeline()
    pipe.set_progress_bar_config(disable=True)
    with solving(pipe, solver), h2_cache(pipe, CacheConfig(1e30, 1e30, final_steps=2)) as trace:
        pipe("a cat", **CALL)
    assert [step.full for step in trace.steps] == [True] + [False] * (len(trace.steps) - 3) + [True, True]
    assert trace.steps[0].timestep == pytest.approx(1000, abs=1)


def test_a_model_that_is_not_of_flows_is_refused() -> None:
    pipe = small.flux_pipeline()
    pipe.scheduler = DDIMScheduler()
    with pytest.raises(ModelError, match="DDIMScheduler"), solving(pipe, "unipc"):
        pass


def test_an_unknown_solver_is_told_with_those_there_are(tiny: Any) -> None:
    with pytest.raises(SettingError, match="solver 'dpm' is not supported; choose own, unipc or heun"):
        tiny.settings("a cat", solver="dpm")


def test_eulers_is_the_models_own(tiny: Any) -> None:
    assert tiny.settings("a cat", solver="euler").solver == tiny.settings("a cat", solver="default").solver == "own"
