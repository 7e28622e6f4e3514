"""A recording covers the picture's own steps, and predicts what skipping a run does."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from h2gen.cache import CacheConfig, h2_cache
from h2gen.errors import CacheError, RunError
from h2gen.evaluation.tune.forecast_errors import displacements
from h2gen.evaluation.tune.recording import RecordedRun, recording
from h2gen.families import family_of
from h2gen.generation.solvers import solving
from tests import small

CALL = {"width": 64, "height": 64, "max_sequence_length": 16, "output_type": "latent"}


def latents(pipe: Any, steps: int = 9, **more: Any) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    made: torch.Tensor = pipe(
        prompt="a cat", num_inference_steps=steps, generator=torch.Generator().manual_seed(1), **(CALL | more)
    ).images
    return made


def recorded(pipe: Any, passes: int = 1, scale: float = 1.0, **more: Any) -> tuple[RecordedRun, torch.Tensor]:
    with recording(pipe.transformer, passes=passes, scale=scale) as record:
        made = latents(pipe, **more)
    return record.finish(pipe.scheduler), made


GUIDED = {"negative_prompt": "a dog", "true_cfg_scale": 3.0}


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("plan", ["FFSSSSSSS", "FSSSSSSSS"])
def test_what_it_foretells_of_a_run_at_the_end_is_what_the_cache_does(guided: bool, plan: str) -> None:
    """At the end no later step sees the displacement, so the picture moves by exactly that. Nothing is known yet of how
    far lines are followed."""
    pipe = small.flux_pipeline()
    more = GUIDED if guided else {}
    record, plain = recorded(pipe, 2 if guided else 1, 3.0 if guided else 1.0, **more)
    with h2_cache(pipe, CacheConfig(0, 0, plan=plan)):
        moved = latents(pipe, **more) - plain
    last = plan.rindex("F")
    foretold = displacements(record.velocity, record.passes, order=0)[last, last, 9]
    assert float(moved.double().norm()) == pytest.approx(foretold, rel=1e-3)
    assert foretold > 1e-3


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("make", [small.qwen_image_pipeline, small.z_image_pipeline, small.hunyuan_video_pipeline])
def test_it_records_every_family(make: Any, guided: bool) -> None:
    """Z-Image runs both passes of guidance as one batch, and Qwen-Image rescales what guidance makes: there it is an
    estimate."""
    pipe = make()
    scale = "guidance_scale" if make is small.z_image_pipeline else "true_cfg_scale"
    more = {scale: 3.0, "negative_prompt": "a dog"} if guided else {}
    call = small.run_kwargs(pipe, steps=6) | {"output_type": "latent"} | more
    weight = family_of(pipe.transformer).guidance_weight(3.0) if guided else 1.0

    def made() -> torch.Tensor:
        found: torch.Tensor = pipe(**call | {"generator": torch.Generator().manual_seed(1)})[0]
        return found

    with recording(pipe.transformer, passes=1 + guided, scale=weight) as record:
        plain = made()
    found = record.finish(pipe.scheduler)
    assert len(found.passes) == 6 and all(gain > 0 for gain in found.gains)
    with h2_cache(pipe, CacheConfig(0, 0, plan="FFSSSS")):
        moved = made() - plain
    foretold = displacements(found.velocity, found.passes, order=0)[1, 1, 6]
    estimated = guided and make is small.qwen_image_pipeline
    assert float(moved.double().norm()) == pytest.approx(foretold, rel=0.02 if estimated else 1e-3)


@pytest.mark.parametrize("guided", [False, True])
def test_what_it_foretells_of_a_run_that_was_made_good_for_is_what_the_cache_leaves(guided: bool) -> None:
    """The last step sees the picture before its correction; the effect is small compared with the rest."""
    pipe = small.flux_pipeline()
    more = GUIDED if guided else {}
    record, plain = recorded(pipe, 2 if guided else 1, 3.0 if guided else 1.0, **more)
    with h2_cache(pipe, CacheConfig(0, 0, plan="FFFFFFFSF")):
        moved = latents(pipe, **more) - plain
    corrected, alone = (
        displacements(record.velocity, record.passes, farthest=math.inf, corrected=corrected)[6, 6, 8]
        for corrected in (True, False)
    )
    assert float(moved.double().norm()) == pytest.approx(corrected - alone, rel=0.2)
    assert corrected - alone < alone


def test_of_many_tokens_it_keeps_some_that_stand_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = small.flux_pipeline()
    records = []
    for most in (4096, 64):
        monkeypatch.setattr("h2gen.evaluation.tune.recording._TOKENS", most)
        with recording(pipe.transformer) as record:
            latents(pipe, 3, width=256, height=256)
        records.append(record)
    assert [record._tensors["reused"][0][0].shape[0] for record in records] == [256, 64]
    every, some = (record.finish(pipe.scheduler) for record in records)
    assert np.array_equal(some.velocity, every.velocity) and some.gains == every.gains
    for name in ("reused", "detail"):
        assert np.diag(getattr(some, name)) == pytest.approx(np.diag(getattr(every, name)), rel=0.3)


@pytest.mark.parametrize("make", [small.flux_pipeline, small.flux2_klein_pipeline])
def test_it_changes_nothing_and_leaves_nothing_behind(make: Any) -> None:
    pipe = make()
    before = latents(pipe)
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in pipe.transformer.modules()]
    record, made = recorded(pipe)
    assert torch.equal(made, before)
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in pipe.transformer.modules()]
    for gram in (record.velocity, record.reused, record.detail):
        assert gram.shape == (9, 9) and np.allclose(gram, gram.T)
        assert (np.linalg.eigvalsh(gram) > -1e-6 * gram.max()).all() and np.diag(gram).min() > 0
    assert all(gain > 0 for gain in record.gains)


def test_a_reused_steps_estimate_is_near_what_reusing_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """The estimate assumes that the line is followed, which the cache learns only as it goes."""
    monkeypatch.setattr("h2gen.cache.forecast.part_followed", lambda followed, _whole: torch.ones_like(followed))
    pipe = small.flux_pipeline()
    record, plain = recorded(pipe)
    for letter, gram in (("D", record.detail), ("R", record.reused)):
        with h2_cache(pipe, CacheConfig(0, 0, forecast=1, plan="FFFFFFFF" + letter)):
            moved = float((latents(pipe) - plain).double().norm())
        foretold = displacements(gram, record.passes, gains=record.gains)[7, 7, 9]
        assert foretold == pytest.approx(moved, rel=0.1)


@pytest.mark.parametrize(("solver", "passes"), [("own", 9), ("unipc", 9), ("heun", 17)])
def test_the_intervals_of_every_solver_add_up_to_the_whole_way(solver: str, passes: int) -> None:
    pipe = small.flux_pipeline()
    with solving(pipe, solver):
        record, _ = recorded(pipe)
    assert len(record.passes) == passes
    assert sum(record.passes.intervals) == pytest.approx(1, abs=0.01)
    assert list(record.passes.sigmas) == sorted(record.passes.sigmas, reverse=True)


def test_it_survives_being_written_down() -> None:
    record, _ = recorded(small.flux_pipeline())
    again = RecordedRun.from_json(record.to_json())
    assert again.passes == record.passes and again.gains == record.gains
    assert np.array_equal(again.velocity, record.velocity)


def test_passes_that_are_no_steps_are_told() -> None:
    pipe = small.flux_pipeline()
    with pytest.raises(RunError, match="The model ran 9 passes, which is not a multiple of 2 passes per step"):
        recorded(pipe, passes=2)
    with pytest.raises(CacheError), recording(torch.nn.Linear(1, 1)):
        pass
