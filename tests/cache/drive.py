"""Runs a bare transformer through a made-up trajectory, as a pipeline would."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from diffusers import Flux2Transformer2DModel, FluxTransformer2DModel

from h2gen.cache import StepRecord
from h2gen.cache.policies.plan import joined, letter_of
from tests.cache.reference import Decision, Reference, Rules
from tests.small import flux2_transformer, flux_transformer

STEPS = 8
TEXT = 5


def untraced(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test without coverage's tracer: a traced function's variables live until it returns."""

    @functools.wraps(test)
    def run_untraced(*args: Any, **kwargs: Any) -> None:
        tracer = sys.gettrace()
        sys.settrace(None)
        try:
            test(*args, **kwargs)
        finally:
            sys.settrace(tracer)

    return run_untraced


def flux(**overrides: Any) -> FluxTransformer2DModel:
    """The smallest FLUX.1 transformer with blocks to skip in both stages."""
    return flux_transformer(**({"layers": 2, "single_layers": 3} | overrides))


def flux2(**overrides: Any) -> Flux2Transformer2DModel:
    return flux2_transformer(**({"layers": 2, "single_layers": 3} | overrides))


both_models = pytest.mark.parametrize("make", [flux, flux2], ids=["FLUX.1", "FLUX.2"])


def noise(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def position_ids(model: Any, side: int = 4, batch: int = 1) -> dict[str, torch.Tensor]:
    """The ids that a pipeline makes once for a whole call."""
    axes = 4 if isinstance(model, Flux2Transformer2DModel) else 3
    img_ids, txt_ids = torch.zeros(side * side, axes), torch.zeros(TEXT, axes)
    img_ids[:, 1], img_ids[:, 2] = torch.arange(side * side) // side, torch.arange(side * side) % side
    if axes == 4:
        txt_ids[:, 3] = torch.arange(TEXT)
        img_ids, txt_ids = img_ids.expand(batch, -1, -1), txt_ids.expand(batch, -1, -1)
    return {"img_ids": img_ids, "txt_ids": txt_ids}


def prompt(model: Any, batch: int = 1, seed: int = 100, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """The text embeddings that a pipeline makes once for a whole call, for cond and for uncond."""
    config = model.config
    given = {"encoder_hidden_states": noise(batch, TEXT, config.joint_attention_dim, seed=seed).to(dtype)}
    if isinstance(model, FluxTransformer2DModel):
        given["pooled_projections"] = noise(batch, config.pooled_projection_dim, seed=seed + 1).to(dtype)
    return given


def latents(
    model: Any, sigma: float, *, side: int = 4, batch: int = 1, seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor | None]:
    """What changes from step to step: a point on a straight line from noise to a made-up picture, and its sigma."""
    first = noise(batch, side * side, model.config.in_channels, seed=seed)
    last = noise(batch, side * side, model.config.in_channels, seed=seed + 1)
    return {
        "hidden_states": (sigma * first + (1 - sigma) * last).to(dtype),
        "timestep": torch.full([batch], sigma).to(dtype),
        "guidance": torch.full([batch], 3.5) if model.config.guidance_embeds else None,
    }


def sigmas(steps: int = STEPS) -> list[float]:
    return [1 - i / steps for i in range(steps)]


def trajectory(
    model: Any,
    steps: int = STEPS,
    passes: tuple[str, ...] = ("cond",),
    extra: dict[str, Any] | None = None,
    *,
    side: int = 4,
    batch: int = 1,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The context and inputs of each call of the transformer: each step has one for each of ``passes``.

    As in a pipeline, the ids and embeddings are the same objects at all steps, and the latents in all passes of one.
    """
    ids = position_ids(model, side, batch)
    prompts = [prompt(model, batch, 100 + 10 * turn, dtype) for turn in range(len(passes))]
    for sigma in sigmas(steps):
        shared = latents(model, sigma, side=side, batch=batch, seed=seed, dtype=dtype)
        for name, text in zip(passes, prompts, strict=True):
            yield name, shared | text | ids | (extra or {})


@torch.no_grad()
def run(model: Any, steps: int = STEPS, *, named: bool = True, **kwargs: Any) -> list[torch.Tensor]:
    """One trajectory through the model itself; ``named`` sets diffusers' cache contexts, as some pipelines do."""
    outputs = []
    for name, given in trajectory(model, steps, **kwargs):
        with model.cache_context(name) if named else nullcontext():
            outputs.append(model(**given, return_dict=False)[0])
    return outputs


@torch.no_grad()
def run_reference(
    model: Any, rules: Rules, steps: int = STEPS, *, passes: tuple[str, ...] = ("cond",), **kwargs: Any
) -> tuple[list[torch.Tensor], list[Decision]]:
    """The same trajectory through the straight-line reference."""
    stand_in = Reference(model, rules, passes, steps)
    outputs = [stand_in(**given)[0] for _, given in trajectory(model, steps, passes, **kwargs)]
    return outputs, stand_in.decisions


def same(got: list[torch.Tensor], wanted: list[torch.Tensor]) -> bool:
    """Whether two runs gave the same result, bit for bit."""
    return len(got) == len(wanted) and all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def assert_close(got: list[torch.Tensor], wanted: list[torch.Tensor], tolerance: float = 1e-4) -> None:
    """Whether two runs gave the same result except for rounding, from arithmetic in another order."""
    assert len(got) == len(wanted)
    for step, (ours, theirs) in enumerate(zip(got, wanted, strict=True)):
        assert torch.allclose(ours, theirs, atol=tolerance * float(theirs.abs().max())), f"pass {step}"


def close(got: float | None, wanted: float | None, rel: float) -> bool:
    if got is None or wanted is None:
        return got is wanted
    return abs(got - wanted) <= rel * abs(wanted)


def assert_same_decisions(got: Iterable[StepRecord], wanted: list[Decision], rel: float = 1e-6) -> None:
    """Every outcome and every change equals the reference's."""
    got = list(got)
    assert len(got) == len(wanted)
    for step, (ours, theirs) in enumerate(zip(got, wanted, strict=True)):
        assert ours.structure.outcome == theirs.structure, f"pass {step}: {ours} against {theirs}"
        assert ours.detail.outcome == theirs.detail, f"pass {step}: {ours} against {theirs}"
        assert close(ours.structure.change, theirs.structure_change, rel), f"pass {step}: {ours} against {theirs}"
        assert close(ours.detail.change, theirs.detail_change, rel), f"pass {step}: {ours} against {theirs}"


def kinds(decisions: Iterable[Decision | StepRecord]) -> set[str]:
    """Which of the paper's three outcomes of a step occurred."""
    found = set()
    for decision in decisions:
        if decision.full:
            found.add("full")
        else:
            outcome = decision.structure if isinstance(decision, Decision) else decision.structure.outcome
            found.add("all reused" if outcome == "reused" else "detail reused")
    return found


_seen: dict[str, tuple[list[float], list[float]]] = {}


def natural_changes(model: Any, **kwargs: Any) -> tuple[list[float], list[float]]:
    """What each stage's change is from one step to the next, when everything is computed.

    Measured once for each configuration: the models of these tests are random, but always the same.
    """
    key = f"{type(model).__name__} {sorted(model.config.items(), key=str)} {sorted(kwargs.items())}"
    if key not in _seen:
        decisions = run_reference(model, Rules(1e-12, 1e-12), **kwargs)[1]
        structure = sorted(d.structure_change for d in decisions if d.structure_change is not None)
        detail = sorted(d.detail_change for d in decisions if d.detail_change is not None)
        _seen[key] = structure, detail
    return _seen[key]


def between(changes: list[float], share: float) -> float:
    """A threshold with this share of the changes below it, half-way between two of them."""
    below = round(share * len(changes))
    if below == 0:
        return changes[0] / 2
    if below == len(changes):
        return changes[-1] * 2
    return (changes[below - 1] + changes[below]) / 2


def thresholds(model: Any, structure: float | None, detail: float | None, **kwargs: Any) -> dict[str, float]:
    """tau1 and tau2 above these shares of the natural changes; a share of None is a threshold of 0."""
    return {
        name: 0.0 if share is None else between(natural, share)
        for name, share, natural in zip(
            ("tau1", "tau2"), (structure, detail), natural_changes(model, **kwargs), strict=True
        )
    }


def plan_from_steps(steps: Iterable[StepRecord]) -> str:
    """The plan that repeats the decisions of one run, of one picture."""
    passes: dict[str, str] = {}
    for record in steps:
        letter = letter_of(record.structure.outcome, record.detail.outcome)
        passes[record.context] = passes.get(record.context, "") + letter
    return joined(passes.values())
