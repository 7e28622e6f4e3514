"""ControlNet samples are inputs of a step and are not kept: each counts exactly once, also on a hit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxControlNetPipeline

from h2gen.cache import h2_cache
from tests.cache.drive import (
    assert_same_decisions,
    kinds,
    latents,
    noise,
    position_ids,
    prompt,
    run,
    run_reference,
    thresholds,
)
from tests.cache.reference import Rules
from tests.small import (
    UNION,
    XLABS,
    controlnet,
    flux_pipeline,
    flux_text_encoders,
    flux_transformer,
    flux_vae,
    picture,
    quiet,
    run_kwargs,
    scheduler,
)

LAYERS, SINGLE_LAYERS, TOKENS, WIDTH = 4, 5, 16, 32


def samples(count: int | None, seed: int = 0, size: float = 0.5) -> list[torch.Tensor] | None:
    if count is None:
        return None
    return [size * noise(1, TOKENS, WIDTH, seed=1000 + seed + index) for index in range(count)]


# Samples after double blocks, after single blocks, and whether the first are repeated in turn.
KINDS = [
    (LAYERS, SINGLE_LAYERS, False),
    (2, None, False),
    (None, 1, False),
    (3, 2, False),  # 4 blocks, 3 samples: two blocks per sample, the third is never used
    (3, None, True),
    (2, 3, True),
]
all_kinds = pytest.mark.parametrize("kind", KINDS, ids=str)


def control(kind: tuple[int | None, int | None, bool], seed: int = 0) -> dict[str, Any]:
    return {
        "controlnet_block_samples": samples(kind[0], seed),
        "controlnet_single_block_samples": samples(kind[1], seed + 100),
        "controlnet_blocks_repeat": kind[2],
    }


def make() -> Any:
    return flux_transformer(layers=LAYERS, single_layers=SINGLE_LAYERS)


@pytest.mark.parametrize(
    ("kind", "shares"), [*((kind, (0.5, 0.8)) for kind in KINDS), (KINDS[0], (None, 0.6))], ids=str
)
def test_decisions_and_outputs_are_the_papers(kind: Any, shares: tuple[float | None, float]) -> None:
    model, extra = make(), control(kind)
    tau = thresholds(model, *shares)
    wanted, decisions = run_reference(model, Rules(**tau), extra=extra)
    with h2_cache(model, **tau) as trace:
        got = run(model, extra=extra)
    assert_same_decisions(trace.steps, decisions, rel=1e-4)
    for ours, theirs in zip(got, wanted, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
    assert len(kinds(decisions)) > 1


@torch.no_grad()
def repeated(model: Any, extras: list[dict[str, Any]]) -> list[torch.Tensor]:
    """The transformer's outputs for the same picture at the same noise, as the steps of one trajectory."""
    fixed = latents(model, 0.7) | position_ids(model) | prompt(model)
    outputs = []
    for step, extra in enumerate(extras):
        now = {"timestep": torch.tensor([1 - 0.1 * step])}
        outputs.append(model(**(fixed | now | extra), return_dict=False)[0])
    return outputs


def timeless() -> Any:
    """A transformer that ignores the timestep, so that steps can have identical inputs."""
    model = make()
    with torch.no_grad():
        model.time_text_embed.timestep_embedder.linear_2.weight.zero_()
    return model


def outcomes(trace: Any) -> list[tuple[str, str]]:
    return [(record.structure.outcome.value, record.detail.outcome.value) for record in trace.steps]


@all_kinds
@pytest.mark.parametrize("tau1", [0.0, 0.5], ids=["detail reused", "all reused"])
def test_a_hit_with_the_same_samples_gives_what_a_full_step_gives(kind: Any, tau1: float) -> None:
    model, extra = timeless(), control(kind)
    full = repeated(model, [extra] * 3)
    with h2_cache(model, tau1=tau1, tau2=0.5) as trace:
        got = repeated(model, [extra] * 3)
    hit = ("reused", "forced") if tau1 else ("computed", "reused")
    assert outcomes(trace) == [("computed", "computed"), hit, hit]
    assert torch.equal(got[0], full[0])
    for ours, theirs in zip(got[1:], full[1:], strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_samples_that_are_counted_twice_or_not_at_all_would_be_seen() -> None:
    model = timeless()
    once = repeated(model, [control((4, 5, False))])[0]
    never = repeated(model, [{}])[0]
    twice_samples = {
        name: [2 * sample for sample in value] if isinstance(value, list) else value
        for name, value in control((4, 5, False)).items()
    }
    twice = repeated(model, [twice_samples])[0]
    assert (once - never).abs().max() > 1e-2
    assert (once - twice).abs().max() > 1e-2


def test_on_a_hit_the_samples_of_this_step_count_and_not_the_kept_ones() -> None:
    """Samples only after the last blocks pass through unchanged, so a hit must equal a full step."""
    model = timeless()
    first, second = (
        {"controlnet_single_block_samples": [torch.zeros(1, TOKENS, WIDTH)] * 4 + samples(1, seed)} for seed in (1, 2)
    )
    full = repeated(model, [first, second])
    assert (full[0] - full[1]).abs().max() > 1e-2
    with h2_cache(model, tau1=0.5, tau2=0.5) as trace:
        got = repeated(model, [first, second])
    assert outcomes(trace)[1] == ("reused", "forced")
    assert torch.allclose(got[1], full[1], atol=1e-5)


def test_samples_may_come_and_go_within_a_trajectory() -> None:
    """ControlNets with control_guidance_start or _end add nothing at some steps."""
    model, extra = timeless(), control((2, 2, False))
    extras = [{}, extra, extra, {}]
    with h2_cache(model, tau1=1e9, tau2=1e9) as trace:
        got = repeated(model, extras)
    assert outcomes(trace)[1:] == [("reused", "forced")] * 3
    assert torch.equal(got[1], got[2])
    assert torch.allclose(got[0], got[3], atol=1e-5)
    assert not torch.allclose(got[1], got[3], atol=1e-2)


def test_samples_are_not_written_to() -> None:
    model, extra = make(), control((2, 2, False))
    before = [sample.clone() for name in list(extra)[:2] for sample in extra[name]]
    with h2_cache(model, tau1=1e9, tau2=1e9):
        run(model, 4, extra=extra)
    after = [sample for name in list(extra)[:2] for sample in extra[name]]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


PLAN = "FSDFSF"


def with_nets(*nets: Any, **transformer: Any) -> FluxControlNetPipeline:
    return quiet(
        FluxControlNetPipeline(
            transformer=flux_transformer(**transformer),
            vae=flux_vae(),
            scheduler=scheduler(),
            controlnet=nets[0] if len(nets) == 1 else list(nets),
            **flux_text_encoders(),
        )
    )


def make_pipeline(name: str) -> tuple[Any, dict[str, Any]]:
    """A pipeline, and its arguments besides the usual ones."""
    if name == "union":
        return with_nets(controlnet(**UNION)), {"control_mode": 2}
    if name == "two":
        scales = {"controlnet_conditioning_scale": [0.6, 0.4]}
        return with_nets(controlnet(), controlnet(seed=1)), {"control_image": [picture(), picture(9)], **scales}
    if name == "XLabs":
        pipe = with_nets(controlnet(**XLABS), in_channels=64)
        pipe.vae = flux_vae(latent_channels=16)
        return pipe, {}
    return with_nets(controlnet(single_layers=2 if name == "one" else 0)), {}


@pytest.mark.parametrize("name", ["one", "without single blocks", "union", "two", "XLabs"])
def test_a_controlnet_runs_only_in_steps_that_are_not_skipped(name: str) -> None:
    pipe, more = make_pipeline(name)
    calls: list[int] = []
    nets = pipe.controlnet.nets if name == "two" else [pipe.controlnet]
    for net in nets:
        net.transformer_blocks[0].register_forward_hook(lambda *_: calls.append(1))

    def draw() -> np.ndarray:
        calls.clear()
        return pipe(**(run_kwargs(pipe, steps=len(PLAN)) | more)).images

    plain = draw()
    assert len(calls) == len(PLAN) * len(nets)
    with h2_cache(pipe, tau1=0, tau2=0):
        assert np.array_equal(draw(), plain)
        assert len(calls) == len(PLAN) * len(nets)
    with h2_cache(pipe.transformer, plan=PLAN):  # which does not know the pipeline, and so no ControlNet
        wanted = draw()
    assert len(calls) == len(PLAN) * len(nets)
    with h2_cache(pipe, plan=PLAN) as trace:
        assert np.array_equal(draw(), wanted)
    assert len(calls) == (len(PLAN) - PLAN.count("S")) * len(nets)
    assert [record.structure.outcome.value == "skipped" for record in trace.steps] == [letter == "S" for letter in PLAN]
    assert np.array_equal(draw(), plain) and "forward" not in vars(pipe.controlnet)


def test_a_controlnet_that_fails_in_a_step_fails_the_call_and_leaves_the_cache_usable() -> None:
    pipe = flux_pipeline(FluxControlNetPipeline)
    block, broken = pipe.controlnet.transformer_blocks[0], [True]

    def fail(*_: Any) -> None:
        if broken[0]:
            raise RuntimeError("no such luck")

    block.register_forward_pre_hook(fail)
    with h2_cache(pipe, plan=PLAN) as trace:
        with pytest.raises(RuntimeError, match="no such luck"):
            pipe(**run_kwargs(pipe, steps=len(PLAN)))
        broken[0] = False
        pipe(**run_kwargs(pipe, steps=len(PLAN)))
    assert len(trace.steps) == len(PLAN)
