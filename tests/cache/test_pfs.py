"""Pooled feature summaries and relative changes are pure: none of this needs a model."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st

from h2gen.cache.pfs import pooling_kernel, relative_change, summarize
from tests.cache.reference import change_between

STRUCTURE, DETAIL = 2048, 384


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize(
    ("tokens", "divisor", "kernel"),
    [
        (4096, STRUCTURE, 2),
        (4608, DETAIL, 12),
        (2048, STRUCTURE, 1),
        (2047, STRUCTURE, 1),
        (1024, STRUCTURE, 1),
        (384, DETAIL, 1),
        (1, STRUCTURE, 1),
        (80, DETAIL, 1),
        (16384, STRUCTURE, 8),
    ],
)
def test_the_kernel_is_tokens_by_the_divisor_and_at_least_one(tokens: int, divisor: int, kernel: int) -> None:
    assert pooling_kernel(tokens, divisor) == kernel


@given(st.integers(1, 100_000), st.sampled_from([STRUCTURE, DETAIL]))
def test_the_kernel_never_shrinks_as_a_picture_grows(tokens: int, divisor: int) -> None:
    assert 1 <= pooling_kernel(tokens, divisor) <= pooling_kernel(tokens + 1, divisor)


def test_a_residual_is_pooled_as_a_one_channel_picture_of_tokens_by_channels() -> None:
    residual = torch.arange(2 * 4 * 6, dtype=torch.float32).reshape(2, 4, 6)
    by_hand = torch.empty(2, 2, 3)
    for b in range(2):
        for row in range(2):
            for column in range(3):
                window = residual[b, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
                by_hand[b, row, column] = window.mean()
    assert torch.allclose(summarize(residual, 2).reshape(by_hand.shape), by_hand)


def test_tokens_and_channels_that_do_not_fill_a_window_are_left_out() -> None:
    residual = noise(1, 7, 5)
    changed = residual.clone()
    changed[:, 6:, :] += 100
    changed[:, :, 3:] += 100
    assert torch.equal(summarize(residual, 3), summarize(changed, 3))


def test_a_kernel_of_one_keeps_every_value() -> None:
    residual = noise(2, 5, 3)
    assert torch.equal(summarize(residual, 1).reshape(residual.shape), residual)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_change_is_a_float32_tensor_without_dimensions(dtype: torch.dtype) -> None:
    old, new = (summarize(noise(1, 8, 6, seed=seed, dtype=dtype), 2) for seed in (1, 2))
    change = relative_change(old, new)
    assert isinstance(change, torch.Tensor)
    assert change.dtype == torch.float32
    assert change.ndim == 0


@pytest.mark.parametrize("divisor", [STRUCTURE, DETAIL])
@pytest.mark.parametrize("shape", [(1, 80, 32), (2, 1024, 16), (1, 4608, 24), (1, 5000, 3), (3, 1, 1)])
def test_the_change_is_what_the_paper_says(shape: tuple[int, int, int], divisor: int) -> None:
    old = noise(*shape, seed=1)
    new = old + 0.1 * noise(*shape, seed=2)
    k = pooling_kernel(shape[1], divisor)
    got = relative_change(summarize(old, k), summarize(new, k)).item()
    assert got == pytest.approx(change_between(old, new, divisor), rel=1e-6)
    assert 0 < got < 1 or shape == (3, 1, 1)


def test_the_change_is_as_exact_for_millions_of_values_as_for_a_few() -> None:
    old = noise(1, 1024, 3072, seed=1)
    new = old + 0.1 * noise(1, 1024, 3072, seed=2)
    exact = ((old - new).double().abs().mean() / old.double().abs().mean()).item()
    assert relative_change(summarize(old, 1), summarize(new, 1)).item() == pytest.approx(exact, rel=1e-6)


def test_the_change_is_measured_against_the_old_residual() -> None:
    old, new = torch.full((1, 4, 4), 2.0), torch.full((1, 4, 4), 3.0)
    assert relative_change(summarize(old, 1), summarize(new, 1)).item() == pytest.approx(0.5)
    assert relative_change(summarize(new, 1), summarize(old, 1)).item() == pytest.approx(1 / 3)


def test_half_precision_does_not_overflow_while_it_is_averaged() -> None:
    old = torch.full((1, 64, 64), 60000.0, dtype=torch.float16)
    new = old * 0.5
    change = relative_change(summarize(old, 4), summarize(new, 4)).item()
    assert change == pytest.approx(0.5, rel=1e-3)


def test_half_precision_does_not_underflow_to_zero_by_zero() -> None:
    old = torch.full((1, 64, 64), 6e-8, dtype=torch.float16)
    assert old.abs().max() > 0
    assert relative_change(summarize(old, 4), summarize(old, 4)).item() == 0


@given(st.integers(1, 5000), st.integers(1, 4), st.integers(1, 2), st.sampled_from([STRUCTURE, DETAIL]))
@example(5000, 1, 1, DETAIL)
@example(4096, 1, 1, STRUCTURE)
def test_pooling_works_for_any_number_of_tokens_and_channels(n: int, d: int, b: int, divisor: int) -> None:
    residual = torch.ones(b, n, d)
    pooled = summarize(residual, pooling_kernel(n, divisor))
    assert pooled.numel() > 0
    assert torch.allclose(pooled, torch.ones_like(pooled))


@given(st.integers(1, 64), st.integers(1, 16), st.integers(1, 6), st.integers(0, 99))
def test_pooling_is_linear(n: int, d: int, k: int, seed: int) -> None:
    a, b = noise(1, n, d, seed=seed), noise(1, n, d, seed=seed + 1000)
    assert torch.allclose(summarize(a, k) - summarize(b, k), summarize(a - b, k), atol=1e-5)


@given(st.integers(1, 64), st.integers(1, 16), st.integers(1, 6), st.integers(0, 99))
def test_identical_residuals_have_no_change(n: int, d: int, k: int, seed: int) -> None:
    residual = noise(1, n, d, seed=seed) + 3
    assert relative_change(summarize(residual, k), summarize(residual.clone(), k)).item() == 0


@given(st.integers(0, 99), st.integers(-12, 12), st.integers(1, 4))
def test_the_change_does_not_depend_on_the_scale(seed: int, exponent: int, k: int) -> None:
    old, new = noise(1, 24, 8, seed=seed), noise(1, 24, 8, seed=seed + 1000)
    plain = relative_change(summarize(old, k), summarize(new, k)).item()
    scaled = relative_change(summarize(old * 2.0**exponent, k), summarize(new * 2.0**exponent, k)).item()
    assert scaled == pytest.approx(plain, rel=1e-5)


@given(st.integers(0, 99), st.integers(1, 4))
def test_the_change_is_never_negative(seed: int, k: int) -> None:
    old, new = noise(1, 24, 8, seed=seed), noise(1, 24, 8, seed=seed + 1000)
    assert relative_change(summarize(old, k), summarize(new, k)).item() >= 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["old", "new"])
def test_one_bad_value_makes_the_change_not_finite_or_never_small(bad: float, where: str) -> None:
    old, new = noise(1, 8, 8, seed=1), noise(1, 8, 8, seed=2)
    (old if where == "old" else new)[0, 3, 3] = bad
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        change = relative_change(summarize(old, 2), summarize(new, 2)).item()
    assert not math.isfinite(change)


def test_a_change_from_nothing_to_nothing_is_not_finite() -> None:
    zero = summarize(torch.zeros(1, 8, 8), 2)
    assert not math.isfinite(relative_change(zero, zero).item())


def test_a_change_from_nothing_to_something_is_not_finite() -> None:
    zero, one = summarize(torch.zeros(1, 8, 8), 2), summarize(torch.ones(1, 8, 8), 2)
    assert not math.isfinite(relative_change(zero, one).item())


def test_summaries_leave_the_residual_as_it_was() -> None:
    residual = noise(1, 12, 8)
    before = residual.clone()
    summarize(residual, 2).mul_(0)
    assert torch.equal(residual, before)


def test_the_whole_batch_makes_one_change() -> None:
    old = noise(2, 8, 8, seed=1)
    new = old.clone()
    new[1] += 1
    whole = relative_change(summarize(old, 2), summarize(new, 2)).item()
    difference = F.avg_pool2d((old - new)[:, None], 2).abs().mean() / F.avg_pool2d(old[:, None], 2).abs().mean()
    assert whole == pytest.approx(difference.item(), rel=1e-5)
