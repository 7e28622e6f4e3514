"""The most steps that a configuration can save something at is what a run without any limit of error does."""

from __future__ import annotations

from typing import Any

import pytest

from h2gen.cache import h2_cache
from h2gen.cache.config import CacheConfig
from h2gen.cache.policies.bound import most_reused
from tests import small


@pytest.fixture(scope="module")
def pipe() -> Any:
    return small.flux_pipeline()


@pytest.mark.parametrize("steps", [2, 4, 9])
@pytest.mark.parametrize(
    "config",
    [
        CacheConfig(tolerance=1e9),
        CacheConfig(tolerance=1e9, warmup_steps=4, max_consecutive=2),
        CacheConfig(tolerance=1e9, final_steps=3),
        CacheConfig(1e9, 1e9),
        CacheConfig(1e9, 1e9, warmup_steps=2, final_steps=1, max_consecutive=1),
        CacheConfig(0.0, 0.0),
    ],
    ids=str,
)
def test_no_run_saves_more_and_one_without_limits_saves_as_much(pipe: Any, config: CacheConfig, steps: int) -> None:
    with h2_cache(pipe, config) as trace:
        pipe(**small.run_kwargs(pipe, steps=steps))
    reused = [record for record in trace.steps if record.blocks_run < record.blocks_total]
    assert len(reused) == most_reused(config, steps)


def test_a_plan_says_it_itself() -> None:
    assert most_reused(CacheConfig(plan="FSSF"), 4) == 2
    assert most_reused(CacheConfig(plan="FSSF", tolerance=0.01), 4) == 1
