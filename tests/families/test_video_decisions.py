"""HunyuanVideo and Wan decide as the straight-line reference does: thresholds, plans, tolerances, stable pooling."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from h2gen.cache import h2_cache
from tests import small
from tests.cache.drive import assert_same_decisions, between, kinds
from tests.cache.reference import Rules, reference, sigmas_of
from tests.families import video_reference  # noqa: F401  (teaches the reference both models)

STEPS, LONG = 6, 10
GRID = (3, 4, 4)
"""Frames, rows and columns of 9 frames of 64 x 64 pixels."""
MAKERS: Mapping[str, Callable[[], Any]] = {
    "HunyuanVideo": lambda: small.hunyuan_video_pipeline(layers=2, single_layers=3),
    "Wan": lambda: small.wan_pipeline(layers=5),
}
GUIDED = {"HunyuanVideo": "true_cfg_scale", "Wan": "guidance_scale"}
both = pytest.mark.parametrize("name", MAKERS)
guidance = pytest.mark.parametrize("guided", [False, True], ids=["no guidance", "guidance"])


@pytest.fixture(scope="module")
def pipes() -> dict[str, Any]:
    return {name: make() for name, make in MAKERS.items()}


def passes_of(guided: bool) -> tuple[str, ...]:
    return ("cond", "uncond") if guided else ("cond",)


def call(pipe: Any, name: str, guided: bool, steps: int = STEPS) -> np.ndarray[Any, Any]:
    """The latents of a video, since decoding them takes longer than all the rest."""
    more = {GUIDED[name]: 3.0, "negative_prompt": "a dog"} if guided else {}
    return pipe(**small.run_kwargs(pipe, steps=steps) | more | {"output_type": "latent"}).frames.numpy()


def compare(pipe: Any, name: str, guided: bool, rules: Rules, steps: int = STEPS, **config: Any) -> list[Any]:
    """Run the reference and the cache, and return the decisions that both made. The scheduler has run before."""
    passes, sigmas, euler = passes_of(guided), sigmas_of(pipe), name == "HunyuanVideo"
    with reference(pipe.transformer, rules, passes, steps, sigmas, euler) as decisions:
        wanted = call(pipe, name, guided, steps)
    settings = {key: value for key, value in vars(rules).items() if key != "grid"} | config
    with h2_cache(pipe, **settings) as trace:
        got = call(pipe, name, guided, steps)
    assert_same_decisions(trace.steps, decisions, rel=1e-3)
    assert [step.context for step in trace.steps] == [*passes] * steps
    assert np.allclose(got, wanted, atol=1e-4 * np.abs(wanted).max())
    return decisions


def taus(pipe: Any, name: str, guided: bool, grid: tuple[int, ...] | None = None) -> dict[str, float]:
    """Thresholds between the changes from step to step, when everything is computed."""
    with reference(pipe.transformer, Rules(1e-12, 1e-12, grid=grid), passes_of(guided)) as decisions:
        call(pipe, name, guided)
    found = ([getattr(each, f"{stage}_change") for each in decisions] for stage in ("structure", "detail"))
    structure, detail = (sorted(change for change in each if change is not None) for each in found)
    return {"tau1": between(structure, 0.4), "tau2": between(detail, 0.7)}


@pytest.mark.parametrize("config", [{}, {"forecast": 1}, {"hierarchy": "checked", "max_consecutive": 2}], ids=str)
@guidance
@both
def test_thresholds_decide_as_the_paper_does(
    pipes: dict[str, Any], name: str, guided: bool, config: dict[str, Any]
) -> None:
    tau = taus(pipes[name], name, guided)
    assert len(kinds(compare(pipes[name], name, guided, Rules(**tau, **config)))) > 1


@both
def test_stable_pooling_goes_over_frames_rows_and_columns(pipes: dict[str, Any], name: str) -> None:
    tau = taus(pipes[name], name, True, GRID)
    assert len(kinds(compare(pipes[name], name, True, Rules(**tau, grid=GRID), pfs="stable"))) > 1
    assert tau != taus(pipes[name], name, True)


@pytest.mark.parametrize("plan", ["FFDCRS", "FFSFSR/FFSDCF"])
@both
def test_a_plan_is_followed(pipes: dict[str, Any], name: str, plan: str) -> None:
    call(pipes[name], name, True)
    decisions = compare(pipes[name], name, True, Rules(0, 0, plan=plan, forecast=1))
    assert {each.structure for each in decisions} == {"computed", "reused", "skipped"}


@guidance
@both
def test_a_tolerance_skips_the_same_steps(pipes: dict[str, Any], name: str, guided: bool) -> None:
    call(pipes[name], name, guided, LONG)
    skipped = 0
    for tolerance in (0.05, 0.3):
        decisions = compare(pipes[name], name, guided, Rules(0, 0, tolerance=tolerance), LONG)
        skipped += sum(each.structure == "skipped" for each in decisions)
    assert 0 < skipped < 2 * LONG * len(passes_of(guided))
