"""The length of a comparison is estimated before the model is loaded, and counted as it is then made."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest

from h2gen.cache.config import CacheConfig
from h2gen.evaluation.effort import effort
from h2gen.evaluation.methods import reference, truth
from h2gen.evaluation.options import MethodOptions
from h2gen.evaluation.peers import choose_peers
from h2gen.evaluation.repeats import least, wants_another
from h2gen.settings.profiles import ProfileKey

TINY = ProfileKey("tiny", "", 28, 128, 128, "true")
CACHE = CacheConfig(tolerance=0.002)


def of(prompts: int = 1, key: ProfileKey = TINY, **options: Any) -> Any:
    return effort(MethodOptions(**{"caches": [CACHE], **options}), prompts, key)


def test_one_prompt_is_compared_within_a_minute_of_uncached_pictures() -> None:
    found = of()
    assert (found.methods, found.pictures) == (4, (8, 12))
    assert found.uncached_pictures < 10
    words = (
        r"Comparing 4 methods, each timed 2 or 3 times: 8 to 12 pictures, about \d+ seconds if an uncached picture "
        r"takes \d\.\d\d.s, as in the profile 'tiny-28-128x128-.*\.toml'\."
    )
    assert re.fullmatch(words, str(found))
    assert found.seconds == found.uncached_pictures * found.seconds_uncached


@pytest.mark.parametrize(
    ("prompts", "options", "words"),
    [
        (1, {"repeat": 1}, "Comparing 4 methods, each timed once: 4 pictures, "),
        (20, {"repeat": 3}, "Comparing 4 methods on 20 prompts, each timed 3 times: 240 pictures, "),
        (2, {"fewer": [20, 10], "repeat": 2}, "Comparing 8 methods on 2 prompts, each timed twice: 32 pictures, "),
        (1, {"truth": True, "repeat": 3}, "Comparing 5 methods, each timed 3 times: 13 pictures, "),
        (1, {"caches": [CACHE, CACHE]}, "Comparing 7 methods, each timed 2 or 3 times: 14 to 21 pictures, "),
    ],
)
def test_options_say_their_length_in_the_same_way(prompts: int, options: dict[str, Any], words: str) -> None:
    assert str(of(prompts, **options)).startswith(words)
    assert of(prompts, **options).uncached_pictures > of(repeat=1).uncached_pictures - 1e-9


def test_another_cache_takes_a_search_and_its_runs() -> None:
    more = of(peers=choose_peers("fb"))
    assert more.methods == 5 and more.uncached_pictures == pytest.approx(of().uncached_pictures + 3 + 1.5)
    # Eight to fit, four uncached ones, and four of half the blocks for each of six settings.
    fitted = of(peers=choose_peers("meancache"))
    assert fitted.uncached_pictures == pytest.approx(of().uncached_pictures + 8 + 4 + 12 + 1.5)


def test_without_an_earlier_timing_the_time_left_is_promised_instead() -> None:
    other = ProfileKey("dev", "", 28, 1024, 1024, "plain")
    assert of(key=other).seconds is None
    assert str(of(key=other)).endswith("8 to 12 pictures. The time left is shown once the first is made.")


@pytest.mark.parametrize(
    ("repeat", "seconds", "more"),
    [
        (None, [], True), (None, [1.0], True), (None, [1.0, 1.09], False), (None, [1.0, 1.2], True),
        (None, [1.2, 1.0], True), (None, [1.0, 1.2, 2.0], False), (1, [], True), (1, [1.0], False),
        (4, [1.0, 1.0, 1.0], True), (4, [1.0] * 4, False),
    ],
)  # fmt: skip
def test_a_third_run_is_made_only_where_two_differ(repeat: int | None, seconds: list[float], more: bool) -> None:
    assert wants_another(reference(28), seconds, repeat) is more


def test_the_picture_of_very_many_steps_is_made_once() -> None:
    assert [least(truth(28), repeat) for repeat in (None, 1, 3)] == [1, 1, 1]
    assert not wants_another(truth(28), [9.0], None)


def test_the_estimate_is_printed_before_torch_is_loaded() -> None:
    code = (
        "import sys; from h2gen.evaluation.compare import prepare_comparison; "
        "print(prepare_comparison('a cat').effort, 'torch' in sys.modules)"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout.startswith("Comparing 4 methods") and made.stdout.endswith("False\n")
