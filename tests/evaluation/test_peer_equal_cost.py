"""The equal-cost search, on shares that fall in steps, as real ones do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from h2gen.evaluation.peers import PEERS, Peer, Value, find_equal_cost
from h2gen.evaluation.peers.builtin import taylor_steps, taylor_values
from h2gen.evaluation.peers.equal_cost import MOST

FB, TAYLOR, MAG = PEERS["fb"], PEERS["taylor"], PEERS["mag"]


def stairs(edges: Sequence[float], shares: Sequence[float]) -> Callable[[float], float]:
    """``shares[i]`` up to and with ``edges[i]``, the last one above the last edge."""
    return lambda value: shares[sum(value > edge for edge in edges)]


@st.composite
def falling(draw: st.DrawFn) -> tuple[list[float], list[float]]:
    """Edges at least 5 % apart within fb's range, and shares that fall from 1."""
    count = draw(st.integers(1, 60))
    factors = draw(st.lists(st.floats(1.05, 1.15), min_size=count, max_size=count))
    edges, edge = [], draw(st.floats(0.002, 0.01))
    for factor in factors:
        edge *= factor
        edges.append(edge)
    drops = draw(st.lists(st.floats(0.001, 1.0), min_size=count, max_size=count))
    floor = draw(st.floats(0.0, 0.5))
    shares, total = [1.0], sum(drops)
    for drop in drops:
        shares.append(max(0.0, shares[-1] - drop / total * (1 - floor)))
    return edges, shares


def test_a_budget_is_kept_to_where_it_can_be() -> None:
    share = stairs([0.3], [0.54, 0.4])
    targets = {
        budget: find_equal_cost(FB, 0.5, lambda _, value: share(value), steps=10, budget=budget)
        for budget in (True, False)
    }
    assert targets[False].share == 0.54  # nearer
    assert targets[True].share == 0.4
    floor = find_equal_cost(FB, 0.5, lambda *_: 0.7, steps=10, budget=True)
    assert floor.share == 0.7 and not floor.reached


@given(falling(), st.floats(0.05, 1.0), st.sampled_from([8, 28, 50]), st.integers(1, 20))
def test_no_threshold_would_have_come_nearer(
    steps_down: tuple[list[float], list[float]], target: float, steps: int, cases: int
) -> None:
    edges, shares = steps_down
    share = stairs(edges, shares)
    asked: list[Value] = []

    def measure(_peer: Peer, value: Value) -> float:
        assert isinstance(value, float)
        asked.append(value)
        return share(value)

    found = find_equal_cost(FB, target, measure, steps=steps, cases=cases)
    assert isinstance(found.value, float)
    assert found.share == share(found.value)
    assert found.off == found.share - target
    assert found.reached == (abs(found.off) <= 0.02)
    assert FB.span.low <= found.value <= FB.span.high
    assert len(asked) == len(set(asked)) == found.tried <= MOST
    near = max(0.02 * target, 0.5 / (steps * cases))
    best = min(abs(level - target) for level in shares)
    assert abs(found.off) <= max(near, best) + 1e-12


@given(st.integers(1, 100), st.floats(0.01, 1.0))
def test_whole_numbers_are_searched_to_the_nearest(steps: int, target: float) -> None:
    def measure(_peer: Peer, value: Value) -> float:
        assert isinstance(value, tuple)
        return taylor_steps(steps, *value) / steps

    found = find_equal_cost(TAYLOR, target, measure, steps=steps)
    best = min(abs(taylor_steps(steps, *value) / steps - target) for value in taylor_values(steps))
    assert abs(found.off) <= max(best, 0.02 * target, 0.5 / steps) + 1e-12


def test_a_peer_that_jumps_over_the_target_is_returned_with_how_far_it_is_off() -> None:
    found = find_equal_cost(FB, 0.35, lambda _, value: 1.0 if value < 0.2 else 0.1, steps=50)
    assert (found.share, found.reached) == (0.1, False)
    assert found.off == pytest.approx(-0.25)


def test_a_peer_that_cannot_go_so_low_is_found_out_at_its_first_try() -> None:
    found = find_equal_cost(FB, 0.1, lambda _, value: 0.4, steps=50)
    assert (found.value, found.share, found.reached, found.tried) == (FB.span.high, 0.4, False, 1)


def guarded(peer: Peer, value: Value) -> float:
    assert isinstance(value, float)
    return max(1 - value, 0.4 if peer.guarded else 0.0)


def test_the_guard_falls_where_it_keeps_the_target_out_of_reach() -> None:
    found = find_equal_cost(MAG, 0.2, guarded, steps=50)
    assert found.peer == replace(MAG, guarded=False)
    assert found.reached


def test_the_guard_falls_too_where_it_alone_would_decide() -> None:
    assert find_equal_cost(MAG, 0.4, guarded, steps=50).peer.guarded is False
    assert find_equal_cost(MAG, 0.45, guarded, steps=50).peer.guarded is True


def test_the_guard_stands_where_its_fall_does_not_help() -> None:
    def measure(peer: Peer, value: Value) -> float:
        return 0.4 if peer.guarded else 0.9

    found = find_equal_cost(MAG, 0.3, measure, steps=50)
    assert found.peer == MAG
    assert found.off == pytest.approx(0.1)
    assert not found.reached


def test_of_two_values_as_near_the_one_that_computes_more_is_taken() -> None:
    found = find_equal_cost(FB, 0.5, lambda _, value: 0.75 if value < 0.1 else 0.25, steps=50)
    assert found.share == 0.75
