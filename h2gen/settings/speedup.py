"""``--speedup`` and ``--fidelity``: settings chosen from a profile, and what to expect of them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from h2gen.errors import SettingError
from h2gen.models.catalogue import Checkpoint
from h2gen.models.choices import SOLVERS
from h2gen.models.content_hash import content_hash
from h2gen.models.translate_errors import translated
from h2gen.output.metadata import model_name
from h2gen.settings.profiles import (
    FEWEST_STEPS,
    Choice,
    Profile,
    ProfileKey,
    check_fidelity,
    check_speedup,
    find_profile,
)
from h2gen.settings.resolve import CACHE, Layers, Request, request_from, resolve_settings
from h2gen.settings.values import OFF, Settings


@dataclass(frozen=True)
class Goal:
    """What the user wants: so many times as fast, or so close to the uncached picture (SSIM); and whether the nearest
    profile will do.

    Raises:
        SettingError: it contradicts itself, or is none that can be granted.
    """

    speedup: float | None = None
    fidelity: float | None = None
    nearest: bool = False

    def __post_init__(self) -> None:
        if self.speedup is not None and self.fidelity is not None:
            raise SettingError("--speedup and --fidelity contradict each other; give one.")
        if self.nearest and not self:
            raise SettingError("--nearest says which profile to use; give --speedup or --fidelity too.")
        if self.speedup is not None:
            check_speedup(self.speedup)
        if self.fidelity is not None:
            check_fidelity(self.fidelity)

    def __bool__(self) -> bool:
        return self.speedup is not None or self.fidelity is not None

    @property
    def option(self) -> str:
        """The option that it was given by."""
        return "--speedup" if self.speedup is not None else "--fidelity"


def request_for_goal(prompt: str, layers: Layers, wish: Goal) -> Request:
    """A plan like ``request_from``'s, its steps, solver and cache taken from the profile that fits it.

    The steps that the user gives, or the model's own, are those of the picture that it is to be as fast as or close to.

    Raises:
        SettingError: the wish contradicts an option.
        ProfileError: there is no profile that fits, or it is more than any of its choices gives.
        UsageError: as ``request_from``.
    """
    if not wish:
        return request_from(prompt, layers)
    return GoalResolver(wish, request_from(prompt, unchosen(wish, layers)).checkpoint).plan(prompt, layers)


def unchosen(wish: Goal, layers: Layers) -> Layers:
    """The layers of the uncached picture that the wish is measured by.

    Raises:
        SettingError: somebody says what the wish is to choose; what is set for good has no say in it instead.
    """
    chosen = ("preset", "solver", "no_cache", *CACHE)
    for source, values in layers:
        given = [
            name for name in chosen if values.get(name) is not None and not (name == "no_cache" and not values[name])
        ]
        if given and source not in ("environment", "configuration"):
            name = "--" + given[0].replace("_", "-") if source == "option" else given[0]
            name = "--replay-decisions" if source == "trace" else name
            raise SettingError(f"{wish.option} chooses solver and cache itself; leave out {name}, or {wish.option}.")
    left = [
        (source, {name: value for name, value in values.items() if name not in chosen}) for source, values in layers
    ]
    return [("profile", {**asdict(OFF), "solver": "own"}), *left]


class GoalResolver:
    """Grants a wish for the pictures of a run; its profile is looked for once a situation.

    Args:
        wish: a speed or a fidelity.
        checkpoint: of all pictures.
    """

    def __init__(self, wish: Goal, checkpoint: Checkpoint) -> None:
        self.wish = wish
        self._checkpoint = checkpoint
        self._chosen: dict[ProfileKey, Mapping[str, Any]] = {}
        self._notices: dict[ProfileKey, list[str]] = {}

    def above(self, layers: Layers) -> Layers:
        """The layers, and above them what the profile says.

        Raises:
            SettingError: a layer says what the wish is to choose, or there are too few steps.
            ProfileError: there is no profile that fits, or it is more than any of its choices gives.
            UsageError: the layers cannot be used.
        """
        return self._granted(layers)[1]

    def plan(self, prompt: str, layers: Layers) -> Request:
        """The plan of a picture, with what was chosen and what to expect among its notices.

        Raises:
            UsageError: as ``above``.
        """
        here, layers = self._granted(layers)
        made = request_from(prompt, layers)
        return replace(made, notices=(*made.notices, *self._notices[here]))

    @property
    def notices(self) -> list[str]:
        """What was chosen so far and what to expect, a line each; of several situations each with its own."""
        several = len(self._notices) > 1
        return [f"{here}: {line}" if several else line for here, lines in self._notices.items() for line in lines]

    def _granted(self, layers: Layers) -> tuple[ProfileKey, Layers]:
        base = unchosen(self.wish, layers)
        settings, _, _ = resolve_settings("-", base, self._checkpoint.defaults)
        here = profile_key_of(self._checkpoint, settings)
        if here not in self._chosen:
            self._chosen[here] = self._choose(here, settings)
        return here, [("profile", self._chosen[here]), *base[1:]]

    def _choose(self, here: ProfileKey, settings: Settings) -> Mapping[str, Any]:
        if here.steps < FEWEST_STEPS:
            raise SettingError(
                f"{here.model!r} takes {here.steps} steps here, and a cache cannot help below {FEWEST_STEPS}; what is "
                f"faster is fewer --steps. Leave out {self.wish.option}."
            )
        command = command_for(self._checkpoint, settings)
        profile, notices = find_profile(here, lambda: self._hash, command, self.wish.nearest)
        choice = self._pick(profile)
        if choice is None:
            best = max(profile.choices, key=lambda each: each.figures.ssim_mean)
            notices = [
                *notices,
                f"No choice of the profile is as close as {self.wish.fidelity:g} and faster (the closest: "
                f"{best.figures.ssim_mean:.4f}); making the uncached picture.",
            ]
        else:
            notices = [*notices, expectation(choice, profile)]
        self._notices[here] = notices
        if choice is None:
            return {**asdict(OFF), "solver": "own"}
        return {"steps": choice.steps, "solver": choice.solver, **asdict(choice.cache)}

    def _pick(self, profile: Profile) -> Choice | None:
        if self.wish.speedup is not None:
            return profile.for_speedup(self.wish.speedup)
        assert self.wish.fidelity is not None
        return profile.for_fidelity(self.wish.fidelity)

    @cached_property
    def _hash(self) -> str:
        with translated(self._checkpoint):
            return content_hash(self._checkpoint)


def profile_key_of(checkpoint: Checkpoint, settings: Settings, content_hash: str = "") -> ProfileKey:
    """What such a picture is made in."""
    mode = "true" if settings.cfg > 1 else "plain"
    return ProfileKey(
        model_name(checkpoint), content_hash, settings.steps, settings.width, settings.height, guidance_mode=mode
    )


def expectation(choice: Choice, profile: Profile) -> str:
    """What was chosen, and what to expect of it, in a line."""
    figures, steps = choice.figures, profile.key.steps
    what = choice.label
    if not choice.cache.enabled:
        solver = "" if choice.solver == "own" else f" of {SOLVERS[choice.solver]}"
        what = f"{choice.steps} steps{solver} and no cache, which is closer here than any cache of that speed"
    count = f" over {profile.pictures} pictures" if profile.pictures else ""
    return (
        f"Chosen: {what}. Expect about {figures.speedup:.1f} times the speed of {steps} steps "
        f"({figures.share:.0%} of the blocks), and an SSIM of {figures.ssim_mean:.3f} to their picture "
        f"({figures.ssim_worst:.3f} at worst{count})."
    )


def command_for(checkpoint: Checkpoint, settings: Settings) -> str:
    """What would make a profile for such pictures."""
    defaults = checkpoint.defaults
    words = ["h2gen", "tune", "--model", checkpoint.name]
    if checkpoint.base is not None:
        words += ["--base", checkpoint.base.name]
    if settings.steps != defaults.steps:
        words += ["--steps", str(settings.steps)]
    if (settings.width, settings.height) != (defaults.width, defaults.height):
        words += ["--size", f"{settings.width}x{settings.height}"]
    if settings.cfg != defaults.cfg:
        words += ["--cfg", f"{settings.cfg:g}"]
    return shlex.join(words)
