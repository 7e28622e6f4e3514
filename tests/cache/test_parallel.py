"""Several processes that make one picture: the decisions, the trace and the picture of one process alone."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from h2gen.cache.agree import Ranks, ranks_of
from h2gen.cache.forecast import ResidualHistory
from h2gen.cache.pfs import relative_changes, summarize
from h2gen.cache.pfs_parts import Cells, PartPooling, StableCells, Windows, agreed_changes, parts_of
from h2gen.cache.pfs_stable import Pooling, layout_of
from tests.cache.drive import flux, noise
from tests.ranks import CASES, Made, lead, make


class Together(Ranks):
    """A process whose group is a list: the sums of those before it are in there, and the last one has them all."""

    def add_up(self, sums: torch.Tensor) -> torch.Tensor:
        self.group.append(sums)
        total: torch.Tensor = torch.stack(self.group).sum(0)
        return total


def by_parts(old: torch.Tensor, new: torch.Tensor, cells: Cells, text: int, own: int, size: int) -> torch.Tensor:
    """The change of residuals of text and picture, ``(B, text + own, D)``, as the last of some processes knows it."""
    group: list[torch.Tensor] = []
    for rank in range(size):
        ranks = Together(group, rank, size)
        parts = parts_of(ranks, text, own, own)
        pooling = PartPooling(cells, parts, rank)
        before, after = (pooling(torch.cat([each[:, slice(*span)] for span in parts[rank]], 1)) for each in (old, new))
        change = agreed_changes(before, after, pooling.shared, ranks, together=False)
    return change


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 13), st.integers(1, 40), st.integers(1, 5), st.integers(1, 9))
def test_windows_over_parts_change_as_the_whole_does(text: int, own: int, size: int, kernel: int) -> None:
    old, new = noise(2, text + own, 12, seed=1), noise(2, text + own, 12, seed=2)
    whole = relative_changes(summarize(old, kernel), summarize(new, kernel))
    parts = by_parts(old, new, Windows(kernel, text + own, 12), text, own, size)
    assert torch.allclose(parts, whole, rtol=1e-5, atol=1e-6)  # windows that nearly cancel have float32's rounding


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 13), st.integers(1, 12), st.integers(1, 12), st.integers(1, 5))
def test_stable_cells_over_parts_change_as_the_whole_does(text: int, rows: int, columns: int, size: int) -> None:
    own = rows * columns
    old, new = noise(2, text + own, 12, seed=1), noise(2, text + own, 12, seed=2)
    layout = layout_of((rows, columns), own, text)
    pooling = Pooling(layout, old)
    whole = relative_changes(pooling(old), pooling(new))
    assert torch.allclose(by_parts(old, new, StableCells(layout, old), text, own, size), whole, rtol=1e-4)


@pytest.mark.parametrize(
    ("tokens", "text", "divisor", "size", "shared"), [(4096, 0, 2048, 4, 0), (4096, 512, 384, 2, 3)]
)
def test_only_cells_in_several_parts_are_exchanged(
    tokens: int, text: int, divisor: int, size: int, shared: int
) -> None:
    ranks = Ranks(None, 0, size)
    windows = Windows((tokens + text) // divisor, tokens + text, 3072)
    assert PartPooling(windows, parts_of(ranks, text, tokens, tokens), 0).shared == shared


def test_every_token_is_in_one_part() -> None:
    for tokens, size in ((0, 3), (2, 4), (13, 2), (16, 4)):
        parts = [Ranks(None, rank, size).part(tokens) for rank in range(size)]
        chunks = torch.arange(tokens).tensor_split(size)
        assert [list(range(*part)) for part in parts] == [chunk.tolist() for chunk in chunks]


def test_a_process_without_the_pictures_own_tokens_takes_part() -> None:
    """Reference pictures come last, so that the last process may have nothing else."""
    ranks = Together([], 1, 2)
    pooling = PartPooling(Windows(2, 4, 6), parts_of(ranks, 0, 4, 12), 1)
    nothing = pooling(torch.zeros(1, 0, 6))
    assert nothing.shape == (1, 0, 3)
    assert agreed_changes(nothing, nothing, 0, ranks, together=False).isnan().all()


def test_a_value_that_is_not_finite_in_one_part_is_seen_by_all() -> None:
    old, new = noise(1, 12, 6, seed=1), noise(1, 12, 6, seed=2)
    new[0, 0] = math.nan
    assert by_parts(old, new, Windows(2, 12, 6), 0, 12, 3).isnan().all()


def test_the_learned_fraction_is_that_of_all_tokens() -> None:
    values = [noise(2, 8, 4, seed=seed) for seed in range(3)]
    alone = ResidualHistory(1)
    group: list[torch.Tensor] = []
    parts = [(Together(group, rank, 2), ResidualHistory(1)) for rank in range(2)]
    for step, value in enumerate(values):
        alone.keep((value,), 1 - step / 4)
        for ranks, history in parts:
            history.keep((value[:, slice(*ranks.part(8))],), 1 - step / 4, ranks=ranks)
    ranks, history = parts[-1]
    assert torch.allclose(history.forecast(0.2)[0], alone.forecast(0.2)[0][:, slice(*ranks.part(8))], atol=1e-6)


def test_a_transformer_in_one_process_agrees_with_nobody() -> None:
    assert ranks_of(flux()) is None and ranks_of(torch.nn.Linear(1, 1)) is None


# Processes


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> list[dict[tuple[int, str], Made]]:
    """What each of four processes made."""
    folder = tmp_path_factory.mktemp("ranks")
    leader = multiprocessing.get_context("spawn").Process(target=lead, args=(folder,))
    leader.start()
    leader.join()
    assert not list(folder.glob("*.txt")), "\n".join(path.read_text() for path in folder.glob("*.txt"))
    assert not leader.exitcode
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(4)]


@cache
def made_alone(name: str) -> Made:
    return make(CASES[name])


def decisions(made: Made) -> list[Any]:
    return [(s.run, s.step, s.context, s.picture, s.structure.outcome, s.detail.outcome) for s in made.steps]


def measured(made: Made) -> Iterator[float]:
    for step in made.steps:
        yield from (each for each in (step.structure.change, step.detail.change, step.error) if each is not None)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", CASES)
def test_processes_make_the_picture_of_one(together: list[dict[tuple[int, str], Made]], name: str, size: int) -> None:
    alone, each = made_alone(name), [rank[size, name] for rank in together if (size, name) in rank]
    assert len(each) == size
    for made in each:
        assert decisions(made) == decisions(alone)
        assert [*measured(made)] == pytest.approx([*measured(alone)], rel=1e-5)
        assert [*measured(made)] == [*measured(each[0])]  # bit for bit
        assert [s.blocks_run for s in made.steps] == [s.blocks_run for s in alone.steps]
        assert torch.equal(made.pictures, each[0].pictures)
        assert torch.allclose(made.pictures, alone.pictures, atol=2e-5)
    if CASES[name].cache:
        assert any(s.skipped or s.detail_reused or s.all_reused or s.structure_reused for s in alone.steps)
        assert any(s.full for s in alone.steps)
