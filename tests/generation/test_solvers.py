"""Another solver instead of a pipeline's own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from h2gen.batches.jobs import job_id
from h2gen.cache import CacheConfig, h2_cache
from h2gen.errors import ModelError, ProfileError, SettingError
from h2gen.generation.solvers import solving
from h2gen.models.choices import evaluations
from h2gen.settings.speedup import Goal, request_for_goal
from tests import small

CALL = {"num_inference_steps": 8, "width": 64, "height": 64, "max_sequence_length": 16}


@pytest.mark.parametrize(
    ("solver", "kind"), [("unipc", "_UniPC"), ("heun", "_Heun"), ("dpm++", "_DPM"), ("lcm", "_LCM")]
)
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
@pytest.mark.parametrize("solver", ["unipc", "heun", "dpm++"])
def test_a_higher_order_comes_closer_to_the_solution_in_as_many_steps(tiny: Any, solver: str) -> None:
    def picture(steps: int, solver: str) -> Any:
        image = tiny.generate("a cat", seed=1, steps=steps, cfg=1.0, solver=solver, cache=None).image
        return np.asarray(image, np.float64)

    true = picture(200, "own")
    assert np.abs(picture(12, solver) - true).mean() < np.abs(picture(12, "own") - true).mean()


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("solver", ["unipc", "heun", "dpm++", "lcm"])
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


@pytest.mark.parametrize("solver", ["unipc", "heun", "dpm++", "lcm"])
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
    with pytest.raises(SettingError, match=r"solver 'dpm' is not supported; choose own, unipc, heun, dpm\+\+ or lcm"):
        tiny.settings("a cat", solver="dpm")


def test_eulers_is_the_models_own(tiny: Any) -> None:
    assert tiny.settings("a cat", solver="euler").solver == tiny.settings("a cat", solver="default").solver == "own"


def test_diffusers_names_are_understood(tiny: Any) -> None:
    names = {
        "FlowMatchEulerDiscreteScheduler": "own",
        "DPMSolverMultistepScheduler": "dpm++",
        "FlowMatchLCMScheduler": "lcm",
    }
    assert {name: tiny.settings("a cat", solver=name).solver for name in names} == names


@pytest.mark.parametrize("solver", ["own", "unipc", "heun", "dpm++", "lcm"])
def test_thresholds_of_nothing_change_no_bit(solver: str) -> None:
    pipe = small.flux_pipeline()
    pipe.set_progress_bar_config(disable=True)

    def picture(cached: bool) -> Any:
        noise = [torch.Generator().manual_seed(5)]
        with solving(pipe, solver, "3", noise):
            if not cached:
                return pipe("a cat", generator=noise[0], output_type="np", **CALL).images
            with h2_cache(pipe, CacheConfig(0.0, 0.0)):
                return pipe("a cat", generator=noise[0], output_type="np", **CALL).images

    assert np.array_equal(picture(cached=True), picture(cached=False))


def test_the_noise_that_lcm_adds_comes_from_the_seed_in_a_batch_too(tiny: Any) -> None:
    settings = [tiny.settings("a cat", seed=seed, steps=4, cfg=1.0, solver="lcm", cache=None) for seed in (1, 2)]
    alone = [np.asarray(tiny.run(each).image, np.int16) for each in settings]
    again = [np.asarray(tiny.run(each).image, np.int16) for each in settings]
    together = [np.asarray(each.image, np.int16) for each in tiny.run_together(settings)]
    for first, second, third in zip(alone, again, together, strict=True):
        assert np.array_equal(first, second)
        assert np.abs(first - third).max() <= 2
    assert not np.array_equal(alone[0], alone[1])


@pytest.mark.parametrize("solver", ["own", "unipc", "heun", "dpm++", "lcm"])
def test_a_number_as_shift_is_that_of_diffusers(solver: str) -> None:
    pipe = small.flux_pipeline()
    pipe.set_progress_bar_config(disable=True)
    own = pipe.scheduler
    plain = FlowMatchEulerDiscreteScheduler(shift=5.0)
    plain.set_timesteps(8, sigmas=np.linspace(1.0, 1 / 8, 8))
    with solving(pipe, solver, "5", [torch.Generator().manual_seed(1)]):
        pipe("a cat", **CALL)
        sigmas = pipe.scheduler.sigmas.unique()
    assert pipe.scheduler is own
    assert np.allclose(sigmas, plain.sigmas.unique(), atol=0.01 if solver == "unipc" else 1e-6)


def test_a_shift_by_size_is_that_of_the_pipeline() -> None:
    """FLUX.1-dev's scheduler, on a model whose own has a number."""
    pipe = small.flux_pipeline()
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    wanted = small.flux_pipeline()
    wanted.set_progress_bar_config(disable=True)
    wanted.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    wanted("a cat", **CALL)
    with solving(pipe, "own", "dynamic"):
        pipe("a cat", **CALL)
        assert torch.equal(pipe.scheduler.sigmas, wanted.scheduler.sigmas)


def test_the_cache_reads_the_shifted_schedule_and_corrects_on_it(tiny: Any) -> None:
    def timesteps(**given: Any) -> list[float]:
        made = tiny.generate("a cat", seed=1, steps=8, cfg=1.0, plan="FSFFFFFF", **given)
        assert [step.full for step in made.trace.steps] == [True, False, *[True] * 6]
        return [step.timestep for step in made.trace.steps]

    def shifted(timestep: float) -> float:
        return 1000 * 5 * timestep / (1000 + 4 * timestep)

    plain = [1000 * (8 - step) / 8 for step in range(8)]
    assert timesteps(shift=5) == pytest.approx([shifted(each) for each in plain], rel=1e-4)


@pytest.mark.parametrize("value", [0, -1, "fast", True, 1000, "nan"])
def test_a_wrong_shift_is_reported(tiny: Any, value: Any) -> None:
    with pytest.raises(SettingError, match=r"shift is .*give a number from 0.01 to 100, such as 3, or dynamic"):
        tiny.settings("a cat", shift=value)


def test_a_shift_is_recorded_only_if_one_is_given(tiny: Any) -> None:
    settings = tiny.settings("a cat", seed=1)
    assert "shift" not in settings.to_json()
    assert tiny.settings("a cat", seed=1, shift=3.0).to_json()["shift"] == "3"
    assert job_id(replace(settings, shift="3"), "", "float32") != job_id(settings, "", "float32")


def test_no_profile_claims_to_fit_another_shift(tiny: Any) -> None:
    with pytest.raises(ProfileError, match=r"measured with the model's own shift, and --shift is 3; leave out --shift"):
        tiny.generate("a cat", speedup=2, shift=3)
    request = request_for_goal("a cat", [("option", {"shift": 3})], Goal(speedup=2, nearest=True))
    assert "using the nearest, made for the model's own shift" in " ".join(request.notices)
    assert request.settings.shift == "3"


def test_a_model_with_one_shift_for_all_sizes_refuses_one_by_size() -> None:
    pipe, told = small.flux3_pipeline(), r"--shift dynamic: FLUX.3 has one shift for all sizes; give a number"
    with pytest.raises(ModelError, match=told), solving(pipe, "own", "dynamic"):
        pass
