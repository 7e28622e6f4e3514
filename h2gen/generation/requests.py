"""From the options of ``generate`` and ``replay`` to a request: all settings of a picture, and the seeds to use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from h2gen.settings.layers import Resolved
from h2gen.settings.resolve import Request, request_from
from h2gen.settings.seeds import choose_seeds, parse_seeds
from h2gen.settings.speedup import Goal, request_for_goal
from h2gen.settings.user_defaults import user_defaults
from h2gen.settings.values import clean_prompt
from h2gen.settings.video_rows import VIDEO_FORMATS

if TYPE_CHECKING:
    from h2gen.output.metadata import Metadata


def generate_request(
    prompt: str, given: Mapping[str, Any], goal: Goal, replay_decisions: Path | None = None
) -> tuple[Request, tuple[int, ...]]:
    """Resolve the settings of new pictures.

    Args:
        prompt: what to paint.
        given: options by name; None if not given.
        goal: a speed-up or fidelity that a profile has to reach.
        replay_decisions: a trace whose decisions are used.

    Returns:
        The request with the first seed, and all seeds.

    Raises:
        UsageError: something cannot be used; see the subclasses for what.
    """
    from h2gen.output.recorded_decisions import decisions_of

    options = {name: value for name, value in given.items() if name not in ("seed", "count")}
    seeds = choose_seeds(given.get("seed"), given.get("count"))
    recorded = None if replay_decisions is None else decisions_of(replay_decisions, options)
    repeated = [] if recorded is None else [("trace", recorded.settings)]
    layers = [("option", {**options, "seed": seeds[0]}), *repeated, *user_defaults()]
    request = request_for_goal(prompt, layers, goal)
    if recorded is not None:
        recorded.check_passes(request.settings.cfg)
    return _sourced(request, given.get("seed")), seeds


def replay_request(
    found: Metadata, given: Mapping[str, Any], prompt: str | None = None, suffix: str = ""
) -> tuple[Request, tuple[int, ...]]:
    """Resolve the settings for making a picture again.

    Args:
        found: the picture's metadata.
        given: options by name, which replace what the picture records; None if not given.
        prompt: another prompt, or None.
        suffix: of the picture's file. A video is written in the same format unless another is given.

    Returns:
        The request with the first seed, and all seeds.

    Raises:
        UsageError: something cannot be used; see the subclasses for what.
        MetadataError: using the picture's model would download or open something that the user did not ask for.
    """
    from h2gen.output.replay import layers_of, relabelled

    seed, count = given.get("seed"), given.get("count")
    same = seed is None and count is None
    seeds = choose_seeds(str(found.settings.seed) if seed is None else seed, count)
    text = found.settings.prompt if prompt is None else clean_prompt(prompt, may_be_empty=True)
    request = request_from(text, layers_of(found, {**given, "seed": None if same else seeds[0]}))
    format = suffix.lower().removeprefix(".")
    free = request.format is None and not Path(request.out or "").suffix
    if free and found.settings.frames is not None and format in VIDEO_FORMATS:
        request = replace(request, format=format)  # .webp is lossless, and .mp4 is not
    if request.settings.steps == found.settings.steps and request.settings.solver == found.settings.solver:
        asked = dict(found.settings.asked)
        if request.settings.cache.plan != found.settings.cache.plan:
            asked.pop("published_plan", None)
        settings = replace(request.settings, **asked)
        request = replace(request, settings=settings)
    if given.get("preset") is None and not given.get("no_cache"):
        request = replace(request, resolved=relabelled(request.resolved, found))
    return request if same else _sourced(request, seed), seeds


def _sourced(request: Request, seed: str | None) -> Request:
    """The request; a random seed gets the source ``random``."""
    if seed is not None and parse_seeds(seed) is not None:
        return request
    return replace(request, resolved={**request.resolved, "seed": Resolved(request.settings.seed, "random")})
