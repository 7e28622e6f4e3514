"""What is asked of a comparison, and who is told how it goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from h2gen.cache.config import CacheConfig

if TYPE_CHECKING:
    from h2gen.evaluation.methods import Method
    from h2gen.evaluation.peers import Peer
    from h2gen.evaluation.results import Shot


@dataclass(frozen=True)
class CompareOptions:
    """What is compared, and how.

    Args:
        caches: settings of H2-Cache, each a method.
        baselines: also plain fewer steps that take as long as each cached run, with the model's own solver and with
            UniPC.
        fewer: further numbers of plain steps.
        methods: further methods, taken as they are.
        peers: other caches, each at the setting where it computes as many blocks as each of ``caches``.
        budgets: shares of the blocks; for each, fewer steps, the paper's cache and each peer at that cost.
        truth: also compare with the picture of 400 steps.
        repeat: timed runs of a method on a case.
    """

    caches: Sequence[CacheConfig]
    baselines: bool = True
    fewer: Sequence[int] = ()
    methods: Sequence[Method] = ()
    peers: Sequence[Peer] = ()
    budgets: Sequence[float] = ()
    truth: bool = False
    repeat: int = 3


class CompareObserver(Protocol):
    """Whoever wants to know how a comparison goes on."""

    def began(self, what: str) -> None:
        """Another part of the work: its name, for people."""

    def planned(self, methods: Sequence[Method], runs: int) -> None:
        """What will be measured, and in how many runs."""

    def ran(self, method: Method, case: int, seconds: float) -> None:
        """A measured run is done."""

    def scored(self, method: Method, shot: Shot) -> None:
        """A picture has its figures."""
