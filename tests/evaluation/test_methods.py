"""One name for one method, wherever it is shown."""

from __future__ import annotations

import pytest

from h2gen.cache import CacheConfig
from h2gen.evaluation import methods
from h2gen.evaluation.frontier_rows import own_methods
from h2gen.evaluation.peers import PEERS
from h2gen.evaluation.peers.equal_cost import EqualCost
from h2gen.settings.presets import load_preset
from h2gen.settings.profiles import Choice, Figures, Profile, ProfileKey


@pytest.mark.parametrize(
    ("cache", "label"),
    [
        (CacheConfig(0.15, 0.22), "H2-Cache 0.15, 0.22"),
        (CacheConfig(0, 0, tolerance=0.002), "H2-Cache, tolerance 0.002"),
        (CacheConfig(0.1, 0.2, forecast=1), "H2-Cache, tau1 0.1, tau2 0.2, forecast 1"),
    ],
)
def test_a_cache_is_called_by_what_decides(cache: CacheConfig, label: str) -> None:
    assert methods.h2(cache, 28).label == label


def test_a_comparison_and_a_frontier_call_the_same_cache_the_same() -> None:
    cache = load_preset("balanced").config
    key = ProfileKey("m", "0" * 64, 28, 64, 64, "plain")
    figures = Figures(0.47, 1.0, 2.0, 0.99, 0.98, 50.0, 48.0)
    profile = Profile(load_preset("balanced").path, key, (Choice(cache.words, 28, "own", cache, figures),), {})
    (mine,) = own_methods(profile, [0.5])
    assert mine.label == methods.h2(cache, 28).label == f"H2-Cache, tolerance {cache.tolerance:g}"


@pytest.mark.parametrize(("name", "words"), [("mag", "no limit on skips in a row"), ("dbcache", "no warm-up")])
def test_a_peer_without_its_guard_says_so_in_words(name: str, words: str) -> None:
    free = PEERS[name].beyond
    assert free is not None
    assert methods.peer(EqualCost(free, 0.1, 0.5, 0.5, 1), 28, 1).label == f"{free.title} 0.1, {words}"
