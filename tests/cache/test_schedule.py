"""The schedule is that of the call which runs the transformer, whatever the cache was put on, or is not believed."""

from __future__ import annotations

import copy
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import FluxFillPipeline, FluxImg2ImgPipeline, UniPCMultistepScheduler, VisualClozePipeline
from diffusers.modular_pipelines import FluxAutoBlocks

from h2gen.cache import h2_cache
from h2gen.cache.schedule import Schedule, course_finder
from h2gen.errors import CacheError
from tests.cache.drive import flux, latents, noise, plan_from_steps, position_ids, prompt
from tests.cache.test_time import queue_the_time
from tests.small import SIZE, flux_pipeline, picture, quiet, run_kwargs, scheduler

STEPS = 12
TOLERANCE = {"tau1": 0, "tau2": 0, "tolerance": 0.1}
FINAL = {"tau1": 1e9, "tau2": 1e9, "final_steps": 3}


@pytest.fixture(params=["the host", "the device"])
def timestep_known_to(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "the device":
        queue_the_time(monkeypatch)


def made(pipe: Any, steps: int = STEPS, **more: Any) -> np.ndarray:
    return pipe(**run_kwargs(pipe, steps=steps) | more).images


def with_a_scheduler_of_its_own(pipe: Any) -> Any:
    view = copy.copy(pipe)
    view.scheduler = scheduler()
    return view


# Found


def own_pipeline() -> tuple[Any, Callable[[], Any]]:
    pipe = flux_pipeline()
    return pipe, lambda: made(pipe)


def its_transformer() -> tuple[Any, Callable[[], Any]]:
    pipe = flux_pipeline()
    return pipe.transformer, lambda: made(pipe)


def view_of_another_kind() -> tuple[Any, Callable[[], Any]]:
    pipe = flux_pipeline()
    view = quiet(FluxImg2ImgPipeline.from_pipe(pipe))
    return pipe, lambda: made(view, 2 * STEPS, strength=0.5)


def view_with_a_scheduler_of_its_own() -> tuple[Any, Callable[[], Any]]:
    pipe = flux_pipeline()
    made(pipe, 20)  # whose first timestep is the same
    view = with_a_scheduler_of_its_own(pipe)
    return pipe, lambda: made(view)


def modular_pipeline() -> tuple[Any, Callable[[], Any]]:
    parts = {name: part for name, part in flux_pipeline().components.items() if part is not None}
    pipe = FluxAutoBlocks().init_pipeline()
    pipe.update_components(**parts)
    quiet(pipe)
    asked = run_kwargs(flux_pipeline(), steps=STEPS) | {"output": "images"}
    return pipe, lambda: pipe(**asked)


def pipeline_of_two() -> tuple[Any, Callable[[], Any]]:
    """VisualCloze's calls two others; the second one's call is not looked at here."""
    parts = flux_pipeline(FluxFillPipeline).components
    names = ("scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "transformer")
    pipe = VisualClozePipeline(**{name: parts[name] for name in names}, resolution=SIZE)
    for part in (pipe.generation_pipe, pipe.upsampling_pipe):
        quiet(part)
    asked = {"task_prompt": "a", "content_prompt": "b", "image": [[picture(), picture()], [picture(), None]]}
    sizes = {"upsampling_width": SIZE, "upsampling_height": SIZE, "max_sequence_length": 16, "output_type": "np"}
    seed = torch.Generator().manual_seed(1)
    return pipe, lambda: pipe(**asked, **sizes, num_inference_steps=STEPS, generator=seed)


def loop_with_a_scheduler() -> tuple[Any, Callable[[], Any]]:
    model = flux()
    return model, lambda: stepped(model)


@torch.no_grad()
def stepped(model: Any, solver: Any = None) -> torch.Tensor:
    """A loop of one's own, with one of diffusers' solvers."""
    solver, inputs = solver or scheduler(), position_ids(model) | prompt(model)
    solver.set_timesteps(STEPS)
    given = latents(model, 1.0)
    for timestep in solver.timesteps:
        given["timestep"] = timestep.expand(1) / 1000
        velocity = model(**given, **inputs, return_dict=False)[0]
        given["hidden_states"] = solver.step(velocity, timestep, given["hidden_states"], return_dict=False)[0]
    return given["hidden_states"]


@pytest.mark.parametrize("settings", [TOLERANCE, FINAL], ids=["tolerance", "final steps"])
@pytest.mark.parametrize(
    "make",
    [
        own_pipeline,
        its_transformer,
        view_of_another_kind,
        view_with_a_scheduler_of_its_own,
        modular_pipeline,
        pipeline_of_two,
        loop_with_a_scheduler,
    ],
)
@pytest.mark.usefixtures("timestep_known_to")
def test_the_schedule_is_that_of_the_caller(make: Any, settings: dict[str, Any]) -> None:
    target, run = make()
    with warnings.catch_warnings(), h2_cache(target, **settings) as trace:
        warnings.simplefilter("error", RuntimeWarning)
        run()
    outcomes = [step.structure.outcome.value for step in trace.steps if step.run == 0]
    assert len(outcomes) == STEPS
    if settings is FINAL:
        assert outcomes == ["computed"] + ["reused"] * (STEPS - 4) + ["guarded"] * 3
    else:
        assert 1 < outcomes.count("skipped") < STEPS - 3 and outcomes[-1] == "computed"


@pytest.mark.parametrize(
    "solver",
    [
        diffusers.FlowMatchHeunDiscreteScheduler(),
        diffusers.FlowMatchLCMScheduler(),
        diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
    ],
    ids=lambda solver: type(solver).__name__,
)
@pytest.mark.usefixtures("timestep_known_to")
def test_every_pass_of_every_solver_is_a_step(solver: Any) -> None:
    """Heun's evaluates twice at the same timestep, with other latents."""
    model = flux()
    with h2_cache(model, **FINAL) as trace:
        stepped(model, solver)
    passes = len(solver.timesteps)
    outcomes = [step.structure.outcome.value for step in trace.steps]
    assert outcomes == ["computed"] + ["reused"] * (passes - 4) + ["guarded"] * 3
    assert [step.step for step in trace.steps] == list(range(passes))
    assert {step.context for step in trace.steps} == {"cond"}


def test_what_each_of_heuns_passes_moves_is_half_of_its_step() -> None:
    """The first pass at a sigma ends the step there, the second begins the next."""
    schedule = Schedule((1000, 800, 800, 500, 500))
    assert schedule.moves[:4] == pytest.approx((-0.1, -0.1, -0.15, -0.15))
    assert Schedule((1000, 800, 500), (-0.2, -0.3, -0.5)).moves == (-0.2, -0.3, -0.5)


@pytest.mark.usefixtures("timestep_known_to")
def test_views_with_schedulers_of_their_own_skip_as_the_pipeline_alone_does() -> None:
    pipe = flux_pipeline()
    with h2_cache(pipe, **TOLERANCE):
        wanted = [made(pipe, steps) for steps in (8, 16)]
    views = [with_a_scheduler_of_its_own(pipe) for _ in range(2)]
    with h2_cache(pipe, **TOLERANCE) as trace:
        got = [made(view, steps) for view, steps in zip(views, (8, 16), strict=True)]
    assert all(map(np.array_equal, got, wanted))
    for view, run in zip(views, (0, 1), strict=True):
        timesteps = [step.timestep for step in trace.steps if step.run == run]
        assert timesteps == view.scheduler.timesteps.tolist()


def test_the_same_plan_does_the_same_on_a_pipeline_and_on_its_transformer() -> None:
    pipe, pictures = flux_pipeline(), []
    for target in (pipe, pipe.transformer):
        with h2_cache(target, plan="FFSSFSSF"):
            pictures.append(made(pipe, 8))
    assert np.array_equal(*pictures)


@pytest.mark.parametrize("letters", [4, 9])
@pytest.mark.parametrize("make", [own_pipeline, its_transformer, view_with_a_scheduler_of_its_own, modular_pipeline])
def test_a_plan_for_another_number_of_steps_is_refused_at_the_first(make: Any, letters: int) -> None:
    target, run = make()
    cached = h2_cache(target, plan="F" * letters)
    with cached as trace, pytest.raises(CacheError, match=f"plan is for {letters} steps, and this run has {STEPS};"):
        run()
    assert trace.steps == []


@pytest.fixture
def untraced() -> Iterator[None]:
    """Not watched by coverage, which is like a debugger to the cache."""
    before = sys.gettrace()
    sys.settrace(None)
    yield
    sys.settrace(before)


@pytest.mark.usefixtures("untraced")
def test_looking_for_the_caller_keeps_nothing_alive_and_takes_nothing_away() -> None:
    model, dead = flux(), []

    def one() -> None:
        large = torch.zeros(1)
        dead.append(weakref.ref(large))
        own_steps(model, [1.0])
        del large
        assert dead[0]() is None

    def other() -> None:
        mine = "own"
        kept = locals()
        own_steps(model, [1.0])
        assert kept["mine"] is mine

    with h2_cache(model, tau1=0.1, tau2=0.1):
        one()
        other()


@pytest.mark.usefixtures("untraced")
def test_a_debugger_may_run_the_model_in_the_middle_of_a_function() -> None:
    model = flux()

    def stopped() -> str:
        mine = "own"
        return mine

    def debugger(frame: Any, event: str, _: Any) -> Any:
        if frame.f_code is stopped.__code__ and event == "line":
            own_steps(model, [1.0])
        return debugger

    with h2_cache(model, tau1=0.1, tau2=0.1) as trace:
        sys.settrace(debugger)
        assert stopped() == "own"
        sys.settrace(None)
    assert len(trace.steps) == 2


def test_looking_for_the_caller_does_not_wake_lazy_objects() -> None:
    class Lazy:
        @property
        def __class__(self) -> type:  # type: ignore[override]
            raise RuntimeError("evaluated")

    model, lazy = flux(), Lazy()
    with h2_cache(model, tau1=0.1, tau2=0.1):
        own_steps(model, [1.0])
    del lazy


# Not believed


def own_steps(model: Any, sigmas: list[float]) -> None:
    """A loop without a solver of diffusers."""
    inputs = position_ids(model) | prompt(model)
    with torch.no_grad():
        for sigma in sigmas:
            model(**latents(model, sigma), **inputs)


def never_run(_: Any) -> None:
    pass


def run_to_its_end(pipe: Any) -> None:
    made(pipe, 8)


def stopped_half_way(pipe: Any) -> None:
    def stop(_pipe: Any, step: int, _t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == 2:
            raise KeyboardInterrupt
        return kwargs

    with pytest.raises(KeyboardInterrupt):
        made(pipe, 8, callback_on_step_end=stop)


def about_to_begin(pipe: Any) -> None:
    """Its first timestep is that of the loop."""
    pipe.scheduler.set_timesteps(8)
    pipe.scheduler.set_begin_index(0)


@pytest.mark.parametrize("before", [never_run, run_to_its_end, stopped_half_way, about_to_begin])
@pytest.mark.parametrize(("name", "settings"), [("tolerance", TOLERANCE | {"tolerance": 1e9}), ("final_steps", FINAL)])
@pytest.mark.usefixtures("timestep_known_to")
def test_another_calls_schedule_is_not_believed_and_what_has_no_effect_is_told(
    before: Any, name: str, settings: dict[str, Any]
) -> None:
    pipe = flux_pipeline()
    before(pipe)
    sigmas = [1 - step / STEPS for step in range(STEPS)]
    told = pytest.warns(RuntimeWarning, match=f"{name} has no effect.*scheduler of the diffusers pipeline")
    with told as warned, h2_cache(pipe, **settings) as trace:
        own_steps(pipe.transformer, sigmas)
        own_steps(pipe.transformer, sigmas)
    assert len([each for each in warned if issubclass(each.category, RuntimeWarning)]) == 1
    last = [step.structure.outcome.value for step in trace.steps if step.run == 0][-3:]
    assert last == ["computed" if name == "tolerance" else "reused"] * 3
    assert [step.sigma for step in trace.steps[1:STEPS]] == pytest.approx(sigmas[1:])


def test_without_a_schedule_a_plan_with_a_tolerance_skips_nothing_and_says_so() -> None:
    model, sigmas = flux(), [1 - step / 4 for step in range(4)]
    with (
        pytest.warns(RuntimeWarning, match="tolerance has no effect here, so the plan skips nothing: "),
        h2_cache(model, plan="FFSF", tolerance=1e9) as trace,
    ):
        own_steps(model, sigmas)
    assert plan_from_steps(trace.steps) == "FFFF"


@pytest.mark.usefixtures("timestep_known_to")
def test_a_scheduler_that_stops_moving_is_not_believed_any_longer() -> None:
    """The loop takes the first steps of a schedule, and then steps of its own."""
    model, solver = flux(), scheduler()
    solver.set_timesteps(STEPS)
    inputs, given = position_ids(model) | prompt(model), latents(model, 1.0)
    sigmas = [*solver.sigmas[:4].tolist(), 0.3, 0.2, 0.1]
    told = pytest.warns(RuntimeWarning, match="tolerance has no effect after step 4")
    with told, torch.no_grad(), h2_cache(model, **TOLERANCE | {"tolerance": 1e9}) as trace:
        for step, sigma in enumerate(sigmas):
            model(**given | latents(model, sigma), **inputs)
            if step < 3:
                solver.step(given["hidden_states"], solver.timesteps[step], given["hidden_states"])
    assert plan_from_steps(trace.steps) == "FFSSFFF"


@pytest.mark.parametrize("shift", [1.0, 5.0])
def test_a_scheduler_that_gives_the_model_whole_timesteps_is_believed_to_the_end(shift: float) -> None:
    """Near the picture, what is cut off is a large part of a timestep."""
    solver = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    solver.set_timesteps(100)
    course = course_finder(solver)(lambda: float(solver.timesteps[0]))
    assert course is not None
    given = [float(each) for each in solver.timesteps]
    assert all(course.is_at(step, timestep) for step, timestep in enumerate(given))
    assert not course.is_at(98, given[99]) and not course.is_at(99, given[98])


@pytest.mark.usefixtures("timestep_known_to")
def test_a_step_that_leaves_the_schedule_is_recorded_where_it_is() -> None:
    model, solver = flux(), scheduler()
    solver.set_timesteps(STEPS)
    inputs, sigmas = position_ids(model) | prompt(model), [*solver.sigmas[:4].tolist(), 0.3]
    told = pytest.warns(RuntimeWarning, match="final_steps has no effect after step")
    with told, torch.no_grad(), h2_cache(model, tau1=1e-12, tau2=1e-12, final_steps=1) as trace:
        for step, sigma in enumerate(sigmas):
            given = latents(model, sigma)
            model(**given, **inputs)
            solver.step(given["hidden_states"], solver.timesteps[step], given["hidden_states"])
    assert [step.sigma for step in trace.steps] == pytest.approx(sigmas)


@torch.no_grad()
def two_pictures(model: Any) -> torch.Tensor:
    """The velocities of a step that leaves the schedule. The first picture hardly moves, the second one jumps."""
    solver, inputs = scheduler(), position_ids(model, batch=2) | prompt(model, 2)
    solver.set_timesteps(STEPS)
    for step, sigma in enumerate(solver.sigmas[:4].tolist()):
        given = latents(model, sigma - 0.04 * (step == 3), batch=2)
        given["hidden_states"] = torch.cat(
            [noise(1, 16, 16, seed=0) * (0.9 + 0.1 * sigma), noise(1, 16, 16, seed=step)]
        )
        velocities = model(**given, **inputs, return_dict=False)[0]
        solver.step(given["hidden_states"], solver.timesteps[step], given["hidden_states"])
    return velocities


def test_a_picture_is_forecast_although_another_finds_that_the_step_leaves_the_schedule(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = flux()
    with h2_cache(model, plan="FFFS" + "F" * (STEPS - 4)):
        forecast = two_pictures(model)
    queue_the_time(monkeypatch)
    told = pytest.warns(RuntimeWarning, match="tolerance has no effect after step")
    with told, h2_cache(model, tau1=1e-12, tau2=1e-12, tolerance=0.03, warmup_steps=3) as trace:
        got = two_pictures(model)
    assert [step.structure.outcome.value for step in trace.steps[-2:]] == ["skipped", "computed"]
    assert torch.allclose(got[0], forecast[0]) and not torch.allclose(got[1], forecast[1])


@pytest.mark.usefixtures("timestep_known_to")
def test_without_a_setting_that_needs_the_schedule_nothing_is_told() -> None:
    pipe = flux_pipeline()
    with warnings.catch_warnings(), h2_cache(pipe, tau1=0.2, tau2=0.2):
        warnings.simplefilter("error")
        own_steps(pipe.transformer, [1.0, 0.7, 0.4])
    with warnings.catch_warnings(), h2_cache(pipe, plan="FRR", final_steps=2):
        warnings.simplefilter("error")
        own_steps(pipe.transformer, [1.0, 0.7, 0.4])
