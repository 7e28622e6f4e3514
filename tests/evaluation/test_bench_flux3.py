"""The benchmark of a model with blocks that are reused exactly, and of one whose steps cannot be forecast."""

from __future__ import annotations

import json

import pytest

from h2gen.evaluation.bench import measure
from tests.small import flux3_transformer


def test_blocks_that_run_only_once_are_named_and_counted_by_their_tokens() -> None:
    report = measure(flux3_transformer(), image_tokens=16, text_tokens=5, steps=5, repeats=1)
    assert (report.blocks, report.exact) == (8, round(2 * 5 / 21, 4))


def test_a_model_whose_steps_cannot_be_forecast_has_no_time_of_a_skipped_one() -> None:
    with pytest.warns(RuntimeWarning, match="without effect on this model"):
        report = measure(flux3_transformer(flow_map=True), image_tokens=16, text_tokens=5, steps=5, repeats=1)
    assert report.exact == 0
    assert json.loads(json.dumps(report.to_json(), allow_nan=False))["skipped"] is None
