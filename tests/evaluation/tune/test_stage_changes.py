"""What thresholds would decide is predicted from an uncached run, by the cache's own rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from h2gen.cache import CacheConfig, h2_cache
from h2gen.errors import RunError
from h2gen.evaluation.bench import Subject
from h2gen.evaluation.tune.stage_changes import StageChanges, decisions, recording_changes
from h2gen.families import family_of
from tests import small

CALL = {"width": 64, "height": 64, "max_sequence_length": 16, "output_type": "latent"}
GUIDED = {"negative_prompt": "a dog", "true_cfg_scale": 3.0}
STEPS = 9
LETTERS = {(True, True): "F", (True, False): "D", (False, True): "C", (False, False): "R"}


def letters(cache: CacheConfig, structure: np.ndarray[Any, Any], detail: np.ndarray[Any, Any]) -> str:
    return "".join(LETTERS[above.ran, below.ran] for above, below in decisions(cache, structure, detail))


def growing(each: float) -> np.ndarray[Any, Any]:
    """A stage that changes by this much per step, in one direction."""
    steps = np.arange(STEPS)
    return np.asarray(each * (steps[None, :] - steps[:, None]), np.float64)


def jumping(each: float) -> np.ndarray[Any, Any]:
    """A stage that changes by this much between any two steps."""
    return np.full((STEPS, STEPS), each)


@pytest.mark.parametrize(
    ("cache", "structure", "detail", "expected"),
    [
        (CacheConfig(0.25, 0.25), growing(0.1), growing(0.1), "FRRFRRFRR"),
        (CacheConfig(0.25, 0), growing(0.1), growing(0.1), "FRRFRRFRR"),
        (CacheConfig(0, 0.25), growing(0.1), growing(0.1), "FDDFDDFDD"),
        (CacheConfig(0.1, 0.25), growing(0.2), growing(0.1), "FDDFDDFDD"),
        (CacheConfig(0.25, 0.1), growing(0.1), growing(0.2), "FRRFRRFRR"),  # forced
        (CacheConfig(0.25, 0.1, hierarchy="checked"), growing(0.1), growing(0.2), "FCCFCCFCC"),
        (CacheConfig(0.25, 0.25), jumping(0.1), jumping(0.1), "FRRRRRRRR"),
        (CacheConfig(0.25, 0.25, budget=True), jumping(0.1), jumping(0.1), "FRRDRRDRR"),
        (CacheConfig(0.25, 0.25, 3, 2), jumping(0.1), jumping(0.1), "FFFRRRRFF"),
        (CacheConfig(0.25, 0.25, max_consecutive=1), jumping(0.1), jumping(0.1), "FRFRFRFRF"),
        (CacheConfig(0.25, 0.25, max_detail_age=2), jumping(0.1), jumping(0.1), "FRRCRRCRR"),
    ],
)
def test_decisions_follow_thresholds_and_guards(
    cache: CacheConfig, structure: np.ndarray[Any, Any], detail: np.ndarray[Any, Any], expected: str
) -> None:
    assert letters(cache, structure, detail) == expected
    run = sum({"F": 6, "D": 3, "C": 5, "R": 2}[letter] for letter in expected)
    changes = {("paper", "structure"): structure, ("paper", "detail"): detail}
    assert StageChanges([changes, changes], (2, 4)).share(cache) == pytest.approx(run / (6 * STEPS))


def made(pipe: Any, **more: Any) -> None:
    pipe.set_progress_bar_config(disable=True)
    pipe(prompt="a cat", num_inference_steps=STEPS, generator=torch.Generator().manual_seed(1), **CALL | more)


@pytest.mark.parametrize("pooling", ["paper", "stable"])
@pytest.mark.parametrize("guided", [False, True, "in one pass"])
def test_up_to_the_first_reuse_the_prediction_is_what_the_cache_does(guided: bool | str, pooling: str) -> None:
    pipe, more = small.flux_pipeline(), GUIDED if guided else {}
    if guided == "in one pass":
        pipe = small.z_image_pipeline()
        more = {"negative_prompt": "a dog", "guidance_scale": 3.0, "max_sequence_length": 64}
    passes = 2 if guided else 1
    with recording_changes(pipe.transformer, passes=passes, steps=STEPS) as record:
        made(pipe, **more)
    changes = record.finish()
    assert len(changes.changes) == passes and not pipe.transformer._forward_pre_hooks
    found = changes.changes[0][pooling, "structure"]
    compared = 0
    for tau in np.nanquantile(found, (0.1, 0.3, 0.5)):
        cache = CacheConfig(float(tau) * 1.001, 1e-9, pfs=pooling)
        with h2_cache(pipe, cache) as trace:
            made(pipe, **more)
        steps = trace.steps
        first = steps[0].context
        real = [step for step in steps if step.context == first][:STEPS]
        predicted = list(decisions(cache, found, changes.changes[0][pooling, "detail"]))
        for step, (above, below) in zip(real, predicted, strict=True):
            assert (step.structure.outcome, step.detail.outcome) == (above, below)
            if step.step and step.structure.change is not None:
                assert step.structure.change == pytest.approx(found[step.step - 1, step.step], rel=1e-4)
            compared += 1
            if not above.ran:
                break
    assert compared >= 6


def test_passes_with_texts_of_two_lengths_change_as_each_does_alone() -> None:
    transformer = small.flux_transformer()
    inputs = {length: Subject(transformer, 16, length).inputs() for length in (8, 5)}
    family = family_of(transformer)

    def recorded(*lengths: int) -> Sequence[Mapping[tuple[str, str], Any]]:
        with torch.no_grad(), recording_changes(transformer, passes=len(lengths), steps=3) as record:
            for timestep in (1.0, 0.7, 0.2):
                for length in lengths:
                    transformer(**family.at(inputs[length], torch.tensor([timestep])))
        return record.finish().changes

    together = recorded(8, 5)
    for found, alone in zip(together, (*recorded(8), *recorded(5)), strict=True):
        assert found.keys() == alone.keys()
        for key, each in alone.items():
            np.testing.assert_array_equal(found[key], each)


def test_a_missing_image_is_an_error_and_of_two_the_last_one_counts() -> None:
    pipe = small.flux_pipeline()
    with recording_changes(pipe.transformer, passes=1, steps=STEPS) as record:
        with pytest.raises(RunError, match="ran 0 passes, fewer than the 9"):
            record.finish()
        made(pipe)
        once = record.finish().changes[0]
        made(pipe)
    again = record.finish().changes[0]
    np.testing.assert_allclose(again["paper", "detail"], once["paper", "detail"], rtol=1e-5)
