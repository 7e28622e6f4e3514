"""The setting at which a peer computes as many blocks as another method: fidelity is compared at equal cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from h2gen.evaluation.peers.base import Peer, Span, Value

TOLERANCE = 0.02
"""How far the share may be from the target for the costs to be called equal."""

MOST = 12
"""Settings tried at most, each a picture a case."""


@dataclass(frozen=True)
class Settled:
    """The setting found: apply ``peer``, which may be without its guard, with ``value``.

    ``share`` is the mean share of computed blocks there, and ``off`` how far it is from the target: above 0 the peer
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
        """Whether the costs are equal, within ``TOLERANCE``."""
        return abs(self.off) <= TOLERANCE


def settle(
    peer: Peer,
    target: float,
    measure: Callable[[Peer, Value], float],
    *,
    steps: int,
    cases: int = 1,
    budget: bool = False,
) -> Settled:
    """Search the setting whose share of computed blocks is nearest to a target.

    The share falls with the setting, but in stairs. So the search halves the range until the share is within 2 % of
    the target, or within half of the smallest change that one step of one case makes, or until neighbouring settings
    tell nothing more apart. Where the peer jumps over the target, or cannot go so low, the nearest is returned and
    says how far off it is.

    Args:
        peer: calibrated, where it needs that.
        target: the share to land on, above 0 and up to 1.
        measure: makes the cases' pictures with the peer at a value and returns their mean share.
        steps: denoising steps of a picture.
        cases: pictures that ``measure`` makes.
        budget: the target is a budget: of what was tried, the nearest that keeps to it, within ``TOLERANCE``, is
            taken before one that is nearer and dearer.
    """
    values = peer.values(steps)
    shares: dict[Value, float] = {}
    enough = max(TOLERANCE * target, 0.5 / (steps * cases))

    def share(value: Value) -> float:
        if value not in shares:
            shares[value] = measure(peer, value)
        return shares[value]

    def nearest() -> Settled:
        def far(value: Value) -> tuple[bool, float, float]:
            share = shares[value]
            # Of two as near the costlier one, so that the peer has no disadvantage.
            return budget and share > target + TOLERANCE, abs(share - target), -share

        value = min(shares, key=far)
        return Settled(peer, value, shares[value], target, len(shares))

    last = values.high if isinstance(values, Span) else values[-1]
    if share(last) - target > -enough:  # as few blocks as it can, and they are no fewer than wanted
        found = nearest()
        if peer.beyond is None:
            return found
        # Even where it lands on the target it is its guard that says which steps are computed, not the knob.
        further = settle(peer.beyond, target, measure, steps=steps, cases=cases, budget=budget)
        return further if further.reached or abs(further.off) < abs(found.off) else found
    halve = _thresholds(values) if isinstance(values, Span) else _steps(values)
    value = halve(None)
    while value is not None and len(shares) < MOST:
        off = share(value) - target
        if abs(off) <= enough:
            break
        value = halve(off > 0)
    return nearest()


def _thresholds(span: Span) -> Callable[[bool | None], float | None]:
    """Halve a span, by ratios; asked with whether the last value computed too much, None at first."""
    low, high = span.low, span.high
    value: float | None = None

    def halve(too_much: bool | None) -> float | None:
        nonlocal low, high, value
        if too_much is not None:
            assert value is not None
            low, high = (value, high) if too_much else (low, value)
        if high / low < 1.005:
            return None
        # Few digits, so that the setting found can be typed again.
        value = float(f"{(low * high) ** 0.5:.4g}")
        return value

    return halve


def _steps(values: tuple[Value, ...]) -> Callable[[bool | None], Value | None]:
    """Halve a list of values; asked with whether the last value computed too much, None at first."""
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
