"""Other caches to compare H2-Cache with; ``PEERS`` lists them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar

from h2gen.errors import CacheError, SettingError
from h2gen.evaluation.peers.base import Peer, Span, Value, contexts, threshold_of
from h2gen.evaluation.peers.builtin import FirstBlock, Magnitude, Sea, Taylor
from h2gen.evaluation.peers.dbcache import DualBlock
from h2gen.evaluation.peers.equal_cost import SCORED, TOLERANCE, EqualCost, find_best, find_equal_cost
from h2gen.evaluation.peers.scheduled import DPCache, LinearPredictor, MeanCache, Spectrum, StepMasks
from h2gen.families import Family
from h2gen.models.catalogue import Checkpoint
from h2gen.models.facts import facts_of
from h2gen.wording import did_you_mean, listed

__all__ = [
    "PEERS",
    "SCORED",
    "TOLERANCE",
    "EqualCost",
    "Peer",
    "Span",
    "Value",
    "choose_peers",
    "default_peers",
    "find_best",
    "find_equal_cost",
]


@dataclass(frozen=True)
class Tea(Peer):
    """TeaCache: skips steps while the timestep-modulated input of the first block changes little."""

    span: ClassVar[Span] = Span(0.001, 20.0)

    @property
    def source(self) -> str:
        return "h2gen, after arXiv 2411.19108"

    @contextmanager
    def _on(self, pipe: Any, value: Value, steps: int, passes: int) -> Iterator[None]:
        from h2gen.evaluation.peers.teacache import teacache

        with contexts(pipe), teacache(pipe.transformer, threshold_of(value), steps=steps):
            yield


PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        FirstBlock("fb", "FBCache"),
        FirstBlock(
            "block",
            "Block cache",
            note="Stands for the paper's block cache, assumed to be its authors' code without its second stage: a "
            "first-block cache. The authors compare pooled residuals, diffusers compares whole ones.",
        ),
        Tea(
            "tea",
            "TeaCache",
            note="Uses the published polynomial on FLUX.1 [dev] and models built like it, none on others.",
        ),
        Magnitude("mag", "MagCache"),
        Taylor(
            "taylor",
            "TaylorSeer",
            note="In its lite mode, which forecasts the transformer's output; interval and warm-up are searched.",
        ),
        Sea(
            "sea",
            "SeaCache",
            note="diffusers' port, which works on the latents; its authors filter the first block's input.",
        ),
        DualBlock("dbcache", "DBCache"),
        DualBlock("dbcache-taylor", "DBCache+Taylor", taylor=True),
        MeanCache("meancache", "MeanCache"),
        Spectrum("spectrum", "Spectrum"),
        DPCache("dpcache", "DPCache"),
        LinearPredictor("l2p", "L2P"),
        StepMasks(
            "masks",
            "cache-dit's masks",
            note="Uses cache-dit's choice of computed steps. At the others the last layer's features are held or "
            "extrapolated and no block runs, while cache-dit itself runs the first one.",
        ),
    )
}
"""All peers by name."""


def choose_peers(names: str, checkpoint: Checkpoint | None = None) -> list[Peer]:
    """Peers by their names, separated by commas, in that order, without repetitions.

    Args:
        names: as in ``PEERS``.
        checkpoint: the model that they are to work on, if it is known.

    Raises:
        SettingError: a name is unknown, the list is empty, or a peer's package is not installed.
        CacheError: a peer does not work on the model.
    """
    wanted = list(dict.fromkeys(name for name in (part.strip().lower() for part in names.split(",")) if name))
    if not wanted:
        raise SettingError(f"against is {names!r}, which names no cache; choose from {', '.join(PEERS)}.")
    for name in wanted:
        if name not in PEERS:
            known = ", ".join(PEERS)
            raise SettingError(f"There is no cache {name!r} to compare with{did_you_mean(name, PEERS)} Known: {known}.")
        if not _installed(PEERS[name]):
            raise SettingError(
                f"{name} needs {PEERS[name].package}, which is not installed; run: pip install {PEERS[name].package}."
            )
    facts = None if checkpoint is None else facts_of(checkpoint)
    if facts is not None:
        for name in wanted:
            PEERS[name].check_family(facts.family)
    return [PEERS[name] for name in wanted]


def default_peers(checkpoint: Checkpoint | None = None) -> tuple[list[Peer], list[str]]:
    """The frontier's peers that work on a model and whose packages are installed, and notices about the others."""
    wanted = [PEERS[name] for name in FRONTIER]
    facts = None if checkpoint is None else facts_of(checkpoint)
    unfit = [] if facts is None else [peer for peer in wanted if not _works(peer, facts.family)]
    wanted = [peer for peer in wanted if peer not in unfit]
    missing = [peer for peer in wanted if not _installed(peer)]
    notices = [
        f"{listed([peer.title for peer in missing if peer.package == package])} left out: {package} is not "
        f"installed; run: pip install {package}"
        for package in dict.fromkeys(peer.package for peer in missing)
    ]
    if facts is not None and unfit:
        titles = listed([peer.title for peer in unfit])
        notices.append(f"{titles} left out: diffusers' version does not work on {facts.family.title}.")
    return [peer for peer in wanted if peer not in missing], notices


FRONTIER = (
    *("fb", "taylor", "mag", "dbcache", "dbcache-taylor"),
    *("meancache", "spectrum", "dpcache", "l2p", "masks"),
)
"""The peers that the frontier is measured against."""


def _works(peer: Peer, family: Family) -> bool:
    try:
        peer.check_family(family)
    except CacheError:
        return False
    return True


def _installed(peer: Peer) -> bool:
    return find_spec(peer.package.replace("-", "_")) is not None
