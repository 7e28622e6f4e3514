"""Stable pooling: the same number of cells at any size, so that a threshold means the same at all sizes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import FluxKontextPipeline
from hypothesis import given
from hypothesis import strategies as st

from h2gen.cache import CacheConfig, h2_cache
from h2gen.cache.pfs import relative_change
from h2gen.cache.pfs_stable import CELLS, TEXT_CELLS, Layout, Pooling, areas, cells_of, layout_of
from h2gen.errors import SettingError
from h2gen.families.token_grid import grid_of
from tests.cache.drive import (
    assert_close,
    assert_same_decisions,
    both_models,
    flux,
    flux2,
    kinds,
    noise,
    position_ids,
    run,
    run_reference,
    same,
    thresholds,
)
from tests.cache.reference import Rules, divided, stably_pooled
from tests.cache.test_checks import Operations
from tests.small import flux2_klein_pipeline, flux_pipeline, picture, run_kwargs

counts = st.integers(1, 40)


@given(counts, counts)
def test_every_cell_is_a_mean_over_equal_parts(count: int, cells: int) -> None:
    weights = areas(count, cells)
    assert torch.allclose(weights.sum(1), torch.ones(cells, dtype=torch.float64))
    assert torch.allclose(weights.sum(0), torch.full((count,), cells / count, dtype=torch.float64))
    values = noise(1, count, 3, seed=count).double()
    assert torch.allclose(weights @ values, divided(values, 1, cells))


@given(st.integers(1, 200), st.integers(1, 200))
def test_cells_are_about_as_many_and_nearly_square(rows: int, columns: int) -> None:
    high, wide = cells_of(rows, columns)
    assert CELLS / 2 <= high * wide <= 1.5 * CELLS
    if 1 / 8 <= rows / columns <= 8:
        assert 0.5 <= (rows / high) / (columns / wide) <= 2


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (8, 8), (12, 5), (5, 12), (32, 32), (64, 24)])
@pytest.mark.parametrize("text", [0, 5, 40])
def test_a_residual_is_pooled_over_rows_columns_and_channels(rows: int, columns: int, text: int) -> None:
    residual = noise(2, text + rows * columns, 96, seed=3)
    got = Pooling(Layout(text, rows, columns), residual)(residual)
    assert torch.allclose(got.double(), stably_pooled(residual, rows, columns), atol=1e-5)


@pytest.mark.parametrize(("frames", "rows", "columns"), [(3, 4, 6), (4, 8, 8), (9, 6, 5), (33, 4, 7)])
@pytest.mark.parametrize("text", [0, 5])
def test_a_videos_residual_is_pooled_over_time_too(frames: int, rows: int, columns: int, text: int) -> None:
    residual = noise(2, text + frames * rows * columns, 96, seed=3)
    got = Pooling(layout_of((frames, rows, columns), frames * rows * columns, text), residual)(residual)
    periods = min(frames, 4)
    video = divided(residual[:, text:].double(), 2, 64).unflatten(1, (frames, rows, columns))
    high = round(math.sqrt(256 // periods * rows / columns))
    wide = round(256 // periods / high)
    cells = divided(divided(divided(video, 1, periods), 2, high), 3, wide)
    assert torch.allclose(got[:, got.shape[1] - periods * high * wide :].double(), cells.flatten(1, 3), atol=1e-5)
    assert got.shape[1] == periods * high * wide + 32 * (text > 0)


def test_a_change_in_some_frames_of_a_video_is_seen_where_it_is() -> None:
    """Means over all frames would hide what moves from one to another."""
    still = noise(1, 8 * 16, 32, seed=1)
    moved = still.unflatten(1, (8, 16)).flip(1).flatten(1, 2)
    pooling = Pooling(layout_of((8, 4, 4), 128, 0), still)
    flat = Pooling(Layout(0, 4, 4), still[:, :16])
    means = [flat(each.unflatten(1, (8, 16)).mean(1)) for each in (still, moved)]
    assert relative_change(*means) < 1e-5 < 0.5 < relative_change(pooling(still), pooling(moved))


def field(rows: int, columns: int, turn: float) -> torch.Tensor:
    """A smooth residual of a square picture, in the given number of tokens."""
    y, x = (torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns
    waves = torch.arange(1, 17)
    plane = torch.sin(4 * y[:, None, None] * waves / 8 + turn) + torch.cos(5 * x[None, :, None] * waves / 8 - turn)
    return plane.reshape(1, rows * columns, 16)


def test_a_change_means_the_same_at_any_size_where_the_papers_does_not() -> None:
    sizes = [(32, 32), (48, 48), (64, 64), (96, 96), (128, 128)]  # 512 to 2048 pixels
    stable = []
    for rows, columns in sizes:
        old, new = field(rows, columns, 0.3), field(rows, columns, 0.45)
        pooling = Pooling(Layout(0, rows, columns), old)
        stable.append(relative_change(pooling(old), pooling(new)).item())
    assert max(stable) / min(stable) < 1.01


def test_noise_in_single_tokens_matters_less_the_more_of_them_there_are_but_not_by_their_order() -> None:
    residual = noise(1, 64 * 64, 32, seed=1)
    pooling = Pooling(Layout(0, 64, 64), residual)
    turned = residual.unflatten(1, (64, 64)).transpose(1, 2).flatten(1, 2)
    whole = pooling(residual).unflatten(1, (16, 16)).transpose(1, 2).flatten(1, 2)
    assert torch.allclose(pooling(turned), whole, atol=1e-5)


def layout_by(ids: torch.Tensor | None, image_tokens: int, text_tokens: int) -> Layout:
    """The layout of a stream with these position ids."""
    return layout_of(grid_of(ids, image_tokens), image_tokens, text_tokens)


@pytest.mark.parametrize("make", [flux, flux2])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_grid_is_read_from_a_pipelines_ids(make: Any, batch: int) -> None:
    ids = position_ids(make(), side=6, batch=batch)["img_ids"]
    assert layout_by(ids, 36, 7) == Layout(7, 6, 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("rows", "columns"), [(512, 512), (512, 24), (24, 512), (1, 300), (300, 1), (1, 1)])
@pytest.mark.parametrize("others", [0, 6])
def test_a_grid_too_large_for_its_ids_dtype_is_still_one(
    dtype: torch.dtype, rows: int, columns: int, others: int
) -> None:
    """bfloat16 holds whole numbers up to 256; in a picture above 4096 pixels neighbours share an id."""
    own = torch.cartesian_prod(torch.zeros(1), torch.arange(rows).float(), torch.arange(columns).float())
    beside = torch.tensor([[1.0, 0, i] for i in range(others)]).reshape(-1, 3)
    ids = torch.cat([own, beside]).to(dtype)
    assert layout_by(ids, rows * columns + others, 7) == Layout(7, rows, columns, others)


def test_tokens_in_another_order_than_row_after_row_are_a_line() -> None:
    ids = torch.tensor([[0, i // 3, i % 3] for i in range(12)])
    for shuffled in (ids[[0, 1, 2, 4, 3, 5, *range(6, 12)]], ids[[0, 1, 3, 2, *range(4, 12)]], ids[:, [0, 2, 1]]):
        assert layout_by(shuffled, 12, 2) == Layout(2, 12, 1)


def test_pictures_beside_it_have_cells_of_their_own() -> None:
    ids = torch.tensor([[0, i // 3, i % 3] for i in range(12)] + [[1, 0, i] for i in range(5)])
    layout = layout_by(ids, 17, 2)
    assert layout == Layout(2, 4, 3, 5)
    residual = noise(1, 19, 8, seed=1)
    assert Pooling(layout, residual)(residual).shape[1] == TEXT_CELLS + math.prod(cells_of(4, 3)) + CELLS


def test_tokens_that_only_fill_up_a_picture_do_not_count() -> None:
    residual = noise(1, 12 + 5 + 2, 8, seed=1)
    for text_last in (False, True):
        layout = replace(layout_of((4, 3), 17, 2), text_last=text_last, filled=True)
        fill = 12 if text_last else 14
        pool = Pooling(layout, residual)
        assert pool(residual).shape[1] == TEXT_CELLS + math.prod(cells_of(4, 3))
        for token in range(19):
            changed = residual.clone()
            changed[:, token] += 1
            assert torch.equal(pool(changed), pool(residual)) == (fill <= token < fill + 5)


@pytest.mark.parametrize("ids", [None, torch.zeros(12, 3), torch.zeros(5, 3), torch.zeros(12, 1)], ids=range(4))
def test_tokens_that_lie_in_no_grid_are_a_line(ids: torch.Tensor | None) -> None:
    assert layout_by(ids, 12, 2) == Layout(2, 12, 1)


@both_models
@pytest.mark.parametrize("policy", [{}, {"budget": True, "forecast": 1, "warmup_steps": 2}], ids=str)
@pytest.mark.parametrize("side", [4, 12])
def test_decisions_are_those_of_a_computation_in_a_straight_line(make: Any, policy: dict[str, Any], side: int) -> None:
    model, found = make(), set()
    for shares in ((0.4, 0.7), (0.8, 0.3), (0.2, 0.9)):
        rules = Rules(**thresholds(model, *shares, side=side), **policy, grid=(side, side))
        wanted, decisions = run_reference(model, rules, side=side)
        settings = {name: value for name, value in vars(rules).items() if name not in ("grid", "plan")}
        with h2_cache(model, **settings, pfs="stable") as trace:
            got = run(model, side=side)
        assert_same_decisions(trace.steps, decisions, rel=1e-3)
        assert_close(got, wanted, 1e-3)
        found |= kinds(step for step in trace.steps if not step.skipped)
    assert len(found) > 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_pooled_nearly_as_well(dtype: torch.dtype) -> None:
    old, new = noise(1, 1024, 128, seed=1), noise(1, 1024, 128, seed=2)
    new = old + 0.1 * new + 1
    exact = Pooling(Layout(0, 32, 32), old)
    half = Pooling(Layout(0, 32, 32), old.to(dtype))
    wanted = relative_change(exact(old), exact(new)).item()
    assert relative_change(half(old.to(dtype)), half(new.to(dtype))).item() == pytest.approx(wanted, rel=0.02)


def test_pipelines_with_other_pictures_and_passes_keep_one_synchronisation_a_decision() -> None:
    for pipe, more in (
        (flux_pipeline(), {"negative_prompt": "a dog", "true_cfg_scale": 3.0}),
        (flux_pipeline(FluxKontextPipeline), {}),
        (flux2_klein_pipeline(), {"image": picture()}),
    ):
        with Operations() as plainly:
            plain = pipe(**run_kwargs(pipe, steps=4) | more).images
        with h2_cache(pipe, tau1=1e-9, tau2=1e-9, pfs="stable") as trace, Operations() as cached:
            assert (pipe(**run_kwargs(pipe, steps=4) | more).images == plain).all()
        changes = [c for step in trace.steps for c in (step.structure.change, step.detail.change) if c is not None]
        assert set(changes) <= set(cached.read) and changes
        assert len(cached.read) - len(plainly.read) <= len(changes) + 2 * len(trace.steps)


def test_left_at_the_papers_it_is_the_papers_to_the_bit() -> None:
    model = flux()
    tau = thresholds(model, 0.4, 0.7)
    wanted = run_reference(model, Rules(**tau))[0]
    with h2_cache(model, **tau, pfs="paper"):
        assert same(run(model), wanted)


@pytest.mark.parametrize("value", ["", "stabel", "paper "])
def test_a_pooling_that_there_is_not_is_refused(value: str) -> None:
    with pytest.raises(SettingError, match=r"pfs .*paper or stable"):
        CacheConfig(pfs=value)
    assert CacheConfig(pfs="Stable").pfs == "stable"  # in any case
