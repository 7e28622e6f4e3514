"""Finds the setting at which a peer computes as many blocks as another method, and its best at that cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from h2gen.evaluation.peers.base import Peer, Span, Value

TOLERANCE = 0.02
"""Shares at most this far apart count as equal cost."""

MOST = 12
"""Settings tried, at most; each makes one image per case."""

SCORED = 4
"""Number of images, of prompts that are not compared, on which a peer's further settings are chosen."""


@dataclass(frozen=True)
class EqualCost:
    """The setting found: apply ``peer``, which may have lost its guard, with ``value``.

    ``share`` is the mean share of computed blocks at it, ``off`` its distance from the target: positive if the peer
    computes more.
    """

    peer: Peer
    value: Value
    share: float
    target: float
    tried: int

    @property
    def off(self) -> float:
        return self.share - self.target

    @property
    def reached(self) -> bool:
        """Whether the costs are equal within ``TOLERANCE``."""
        return abs(self.off) <= TOLERANCE


def find_equal_cost(
    peer: Peer,
    target: float,
    measure: Callable[[Peer, Value], float],
    *,
    steps: int,
    cases: int = 1,
    budget: bool = False,
) -> EqualCost:
    """Find the setting whose share of computed blocks is closest to a target.

    The share falls with the setting, in steps. So this bisects the range until the share is within 2 % of the target,
    or within half of the change that one step of one case makes, or until neighbouring settings no longer differ. If
    the peer skips over the target, or cannot go as low, the closest setting is returned, with its distance.

    Args:
        peer: calibrated, if it needs that.
        target: the share to reach, above 0 and up to 1.
        measure: makes the cases' images with the peer at a value and returns their mean share.
        steps: denoising steps of an image.
        cases: images that ``measure`` makes.
        budget: the target is a limit: prefer the closest setting within ``TOLERANCE`` above it to a closer one that
            costs more.
    """
    values = peer.values(steps)
    shares: dict[Value, float] = {}
    enough = max(TOLERANCE * target, 0.5 / (steps * cases))

    def share(value: Value) -> float:
        if value not in shares:
            shares[value] = measure(peer, value)
        return shares[value]

    def nearest() -> EqualCost:
        def far(value: Value) -> tuple[bool, float, float]:
            share = shares[value]
            # Of two equally close the costlier one, so that the peer is at no disadvantage.
            return budget and share > target + TOLERANCE, abs(share - target), -share

        value = min(shares, key=far)
        return EqualCost(peer, value, shares[value], target, len(shares))

    last = values.high if isinstance(values, Span) else values[-1]
    if share(last) - target > -enough:  # even as few blocks as it can run are not fewer than the target
        found = nearest()
        if peer.beyond is None:
            return found
        # Even if it meets the target, its guard decides which steps are computed, not the knob.
        further = find_equal_cost(peer.beyond, target, measure, steps=steps, cases=cases, budget=budget)
        return further if further.reached or abs(further.off) < abs(found.off) else found
    halve = _thresholds(values) if isinstance(values, Span) else _steps(values)
    value = halve(None)
    while value is not None and len(shares) < MOST:
        off = share(value) - target
        if abs(off) <= enough:
            break
        value = halve(off > 0)
    return nearest()


def find_best(peer: Peer, score: Callable[[Peer], float]) -> Peer:
    """The peer with the best of its further settings, searched one after the other.

    Args:
        peer: calibrated, if it needs that.
        score: of a peer's images; higher is better. They must not be those that are compared.
    """
    best, highest = peer, None
    for name, choices in peer.choices.items():
        for choice in choices:
            if choice != getattr(best, name):
                highest = score(best) if highest is None else highest
                changed: dict[str, Any] = {name: choice}
                other = replace(best, **changed)
                found = score(other)
                if found > highest:
                    best, highest = other, found
    return best


def _thresholds(span: Span) -> Callable[[bool | None], float | None]:
    """Bisect a span, geometrically; the argument is whether the last value computed too much, None at first."""
    low, high = span.low, span.high
    value: float | None = None

    def halve(too_much: bool | None) -> float | None:
        nonlocal low, high, value
        if too_much is not None:
            assert value is not None
            low, high = (value, high) if too_much else (low, value)
        if high / low < 1.005:
            return None
        # Few digits, so that the setting can be retyped.
        value = float(f"{(low * high) ** 0.5:.4g}")
        return value

    return halve


def _steps(values: tuple[Value, ...]) -> Callable[[bool | None], Value | None]:
    """Bisect a list of values; the argument is whether the last value computed too much, None at first."""
    low, high = -1, len(values) - 1
    index = 0

    def halve(too_much: bool | None) -> Value | None:
        nonlocal low, high, index
        if too_much is not None:
            low, high = (index, high) if too_much else (low, index)
        if high - low < 2:
            return None
        index = (low + high) // 2
        return values[index]

    return halve
