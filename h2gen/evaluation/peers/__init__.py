"""Other caches for Flux behind one interface, to compare H2-Cache with at equal cost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar

from h2gen.errors import SettingError
from h2gen.evaluation.peers.base import Peer, Span, Value, contexts, threshold_of
from h2gen.evaluation.peers.builtin import FirstBlock, Magnitude, Sea, Taylor
from h2gen.evaluation.peers.dbcache import DualBlock
from h2gen.evaluation.peers.search import TOLERANCE, Settled, settle
from h2gen.wording import did_you_mean

__all__ = ["PEERS", "TOLERANCE", "Peer", "Settled", "Span", "Value", "choose_peers", "default_peers", "settle"]


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
            note="The paper's block cache, taken to be what its authors' code runs without its second stage: a "
            "first-block cache. They compare pooled residuals; diffusers compares them whole.",
        ),
        Tea(
            "tea",
            "TeaCache",
            note="The published polynomial on FLUX.1 [dev] and what is built like it, none on other models.",
        ),
        Magnitude("mag", "MagCache"),
        Taylor(
            "taylor",
            "TaylorSeer",
            note="In its lite mode, which forecasts the transformer's output; interval and warm-up are searched.",
        ),
        Sea("sea", "SeaCache", note="diffusers' port, on the latents; its authors filter the first block's input."),
        DualBlock("dbcache", "DBCache"),
        DualBlock("dbcache-taylor", "DBCache+Taylor", taylor=True),
    )
}
"""All peers by name."""


def choose_peers(names: str) -> list[Peer]:
    """Peers by their names with commas between, in that order, each once.

    Raises:
        SettingError: a name is unknown, none is given, or a peer's package is not installed.
    """
    wanted = list(dict.fromkeys(name for name in (part.strip().lower() for part in names.split(",")) if name))
    if not wanted:
        raise SettingError(f"No cache to compare with is named in {names!r}; give some of {', '.join(PEERS)}.")
    for name in wanted:
        if name not in PEERS:
            known = ", ".join(PEERS)
            raise SettingError(f"There is no cache {name!r} to compare with{did_you_mean(name, PEERS)} Known: {known}.")
        if not _installed(PEERS[name]):
            raise SettingError(f"{name} needs {PEERS[name].package}, which is not installed: {_INSTALL}")
    return [PEERS[name] for name in wanted]


def default_peers() -> tuple[list[Peer], list[str]]:
    """The frontier's peers, as far as their packages are installed, and a notice of each package that is not."""
    wanted = [PEERS[name] for name in FRONTIER]
    missing = [peer for peer in wanted if not _installed(peer)]
    notices = [
        f"{' and '.join(peer.title for peer in missing if peer.package == package)} would join in with {package}: "
        f"{_INSTALL}"
        for package in dict.fromkeys(peer.package for peer in missing)
    ]
    return [peer for peer in wanted if peer not in missing], notices


FRONTIER = ("fb", "taylor", "mag", "dbcache", "dbcache-taylor")
"""The peers that the frontier is measured against."""
_INSTALL = 'pip install "h2gen[peers]"'


def _installed(peer: Peer) -> bool:
    return find_spec(peer.package.replace("-", "_")) is not None
