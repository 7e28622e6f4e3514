"""``--speedup`` and ``--fidelity``: choose settings from a profile, and say what to expect of them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from h2gen.cache.summary import cost
from h2gen.errors import ProfileError, SettingError
from h2gen.models.catalogue import Checkpoint, model_name
from h2gen.models.choices import SOLVERS
from h2gen.models.content_hash import content_hash
from h2gen.models.load_options import LOADING, LoadOptions
from h2gen.models.translate_errors import translated
from h2gen.settings.layers import Layers
from h2gen.settings.profiles import (
    FEWEST_STEPS,
    PLURALS,
    Choice,
    Profile,
    ProfileKey,
    ProfileSearch,
    loading_words,
)
from h2gen.settings.profiles.find import NEAREST
from h2gen.settings.profiles.published import PublishedPlans, published_for
from h2gen.settings.resolve import CACHE, Request, request_from, resolve_settings
from h2gen.settings.table import BY_NAME
from h2gen.settings.values import OFF, Settings
from h2gen.wording import below_one

GOAL = ("speedup", "fidelity", "policy", "nearest")
"""Options for which a profile chooses the other settings; the fields of ``Goal``."""


@dataclass(frozen=True)
class Goal:
    """A target: a speed-up, or an SSIM to the uncached picture; the sort of settings that may reach it; and whether the
    nearest profile may be used.

    Raises:
        SettingError: it contradicts itself, or is out of range.
    """

    speedup: float | None = None
    fidelity: float | None = None
    policy: str = "auto"
    nearest: bool = False

    def __post_init__(self) -> None:
        if self.speedup is not None and self.fidelity is not None:
            raise SettingError("--speedup and --fidelity contradict each other; give one.")
        if self.nearest and not self:
            raise SettingError("--nearest chooses a profile; also give --speedup or --fidelity.")
        for name in ("speedup", "fidelity", "policy"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, BY_NAME[name].check(getattr(self, name)))
        if self.policy != "auto" and not self:
            raise SettingError("--policy limits what --speedup or --fidelity may choose; also give one of them.")

    def __bool__(self) -> bool:
        return self.speedup is not None or self.fidelity is not None

    @property
    def option(self) -> str:
        """The option that sets it."""
        return "--speedup" if self.speedup is not None else "--fidelity"


def request_for_goal(prompt: str, layers: Layers, goal: Goal) -> Request:
    """A request like ``request_from``'s, with steps, solver and cache from the profile that fits.

    The steps that the user gives, or the model's own, are those of the uncached picture that the goal is relative to.

    Raises:
        SettingError: the goal contradicts an option.
        ProfileError: there is no profile that fits, or none of its choices reaches the goal.
        UsageError: as ``request_from``.
    """
    if not goal:
        return request_from(prompt, layers)
    return GoalResolver(goal, request_from(prompt, unchosen(goal, layers)).checkpoint).request(prompt, layers)


def unchosen(goal: Goal, layers: Layers) -> Layers:
    """The layers of the uncached picture that the goal is relative to.

    User defaults for what the goal chooses are ignored.

    Raises:
        SettingError: another layer gives a setting that the goal chooses.
    """
    chosen = ("preset", "solver", "no_cache", *CACHE)
    for source, values in layers:
        given = [
            name for name in chosen if values.get(name) is not None and not (name == "no_cache" and not values[name])
        ]
        if given and source not in ("environment", "configuration"):
            name = given[0] if source not in ("option", "shell") else given[0].replace("_", "-")
            name = f"--{name}" if source == "option" else name
            name = "--replay-decisions" if source == "trace" else name
            raise SettingError(f"{goal.option} chooses solver and cache itself; leave out {name}, or {goal.option}.")
    left = [
        (source, {name: value for name, value in values.items() if name not in chosen}) for source, values in layers
    ]
    return [("profile", {**asdict(OFF), "solver": "own"}), *left]


@dataclass(frozen=True)
class _Chosen:
    """The choice for a goal: settings and their source, what else to record, and lines for the user."""

    source: str
    values: Mapping[str, Any]
    asked: Mapping[str, Any]
    notices: list[str]


class GoalResolver:
    """Finds the settings that reach a goal, for the pictures of a run; looks up the profile once per ``ProfileKey``.

    Args:
        goal: a speed-up or a fidelity.
        checkpoint: of all pictures.
    """

    def __init__(self, goal: Goal, checkpoint: Checkpoint) -> None:
        self.goal = goal
        self._checkpoint = checkpoint
        self._chosen: dict[ProfileKey, _Chosen] = {}

    def above(self, layers: Layers) -> tuple[Mapping[str, Any], Layers]:
        """What ``Settings`` records about the choice, by its fields, and the layers with the profile's settings before
        them.

        Raises:
            SettingError: a layer gives a setting that the goal chooses, or there are too few steps.
            ProfileError: there is no profile that fits, or none of its choices reaches the goal.
            UsageError: the layers cannot be used.
        """
        chosen, layers = self._with_choice(layers)
        return chosen.asked, layers

    def request(self, prompt: str, layers: Layers) -> Request:
        """The request of a picture; its notices say what was chosen and what to expect.

        Raises:
            UsageError: as ``above``.
        """
        chosen, layers = self._with_choice(layers)
        request = request_from(prompt, layers)
        settings = replace(request.settings, **chosen.asked)
        return replace(request, settings=settings, notices=(*request.notices, *chosen.notices))

    @property
    def notices(self) -> list[str]:
        """Lines about what was chosen so far and what to expect; with the ``ProfileKey`` before them if there are
        several."""
        several = len(self._chosen) > 1
        return [f"{key}: {line}" if several else line for key, each in self._chosen.items() for line in each.notices]

    def _with_choice(self, layers: Layers) -> tuple[_Chosen, Layers]:
        base = unchosen(self.goal, layers)
        settings, resolved, _ = resolve_settings("-", base, self._checkpoint)
        key = profile_key_of(self._checkpoint, settings)
        if key not in self._chosen:
            load = LoadOptions(**{name: BY_NAME[name].check(resolved[name].value) for name in LOADING})
            self._chosen[key] = self._choose(key, settings, load.loading)
        chosen = self._chosen[key]
        return chosen, [(chosen.source, chosen.values), *base[1:]]

    def _choose(self, key: ProfileKey, settings: Settings, loading: Mapping[str, str]) -> _Chosen:
        if key.steps < FEWEST_STEPS:
            raise SettingError(
                f"{key.model!r} takes {key.steps} steps here, and a cache cannot help below {FEWEST_STEPS}; leave out "
                f"{self.goal.option}, and give fewer --steps to be faster."
            )
        command = command_for(self._checkpoint, settings, loading=loading)
        search = ProfileSearch(key, lambda: self._hash, loading)
        # A profile of the same weights comes first; one of another model only after the published plans.
        profile = search.exact() or (search.nearest(same_weights=True) if self.goal.nearest else None)
        if profile is None:
            plans = published_for(self._checkpoint, key, command)
            if plans is not None:
                return self._choose_published(plans, search)
            profile = search.nearest() if self.goal.nearest else None
        if profile is None:
            raise search.missing(command, NEAREST)
        policy = self.goal.policy
        if not profile.of(policy):
            raise _lacks(f"The profile for {profile.key}", policy, command)
        choice = self._pick(profile, policy)
        asked = {"reference_steps": key.steps}
        if choice is None:
            best = max(profile.of(policy), key=lambda each: each.figures.ssim_mean)
            where = "in the profile" if policy == "auto" else f"among the profile's {PLURALS[policy]}"
            line = (
                f"Nothing faster {where} reaches a mean SSIM of {self.goal.fidelity:g} (the closest has "
                f"{below_one(best.figures.ssim_mean, 4)}); making the uncached {key.noun}."
            )
            return _Chosen("profile", {**asdict(OFF), "solver": "own"}, asked, [*search.notices, line])
        values = {"steps": choice.steps, "solver": choice.solver, **asdict(choice.cache)}
        lines = [expectation(choice, profile, chosen_by_sort=policy != "auto")]
        if policy != "auto":
            lines.append(self._against_the_best(choice, profile))
        return _Chosen("profile", values, asked, [*search.notices, *lines])

    def _choose_published(self, plans: PublishedPlans, search: ProfileSearch) -> _Chosen:
        if self.goal.policy not in ("auto", "plan"):
            raise _lacks(
                f"There is no profile for {plans.key}, and what is published for it", self.goal.policy, plans.command
            )
        if self.goal.speedup is None:
            raise plans.no_fidelity()
        plan = plans.for_speedup(self.goal.speedup)
        notices = [*search.notices, plan.expectation(plans.key, plans.command)]
        if search.of_model and not self.goal.nearest:
            notices.append(f"There is a profile of {plans.key.model!r} for other conditions; to {NEAREST}.")
        values = {"steps": plan.steps, "solver": "own", **asdict(plan.cache)}
        asked = {"reference_steps": plans.key.steps, "published_plan": plan.words}
        return _Chosen("published plan", values, asked, notices)

    def _pick(self, profile: Profile, policy: str) -> Choice | None:
        if self.goal.speedup is not None:
            return profile.for_speedup(self.goal.speedup, policy)
        assert self.goal.fidelity is not None
        return profile.for_fidelity(self.goal.fidelity, policy)

    def _against_the_best(self, choice: Choice, profile: Profile) -> str:
        """One line: how the choice of a sort compares with the best of all sorts for the same goal."""
        best = self._pick(profile, "auto")
        at = "speed" if self.goal.speedup is not None else "SSIM"
        if best is None or best == choice:
            return f"At this {at} nothing in the profile is better."
        return f"At this {at} the best of all is {best.label}: {_figures(best)}, against {_figures(choice)}."

    @cached_property
    def _hash(self) -> str:
        with translated(self._checkpoint):
            return content_hash(self._checkpoint)


def profile_key_of(checkpoint: Checkpoint, settings: Settings, content_hash: str = "") -> ProfileKey:
    """The key of the profile for such a picture."""
    mode = "true" if settings.cfg > 1 else "plain"
    return ProfileKey(
        model_name(checkpoint),
        content_hash,
        settings.steps,
        settings.width,
        settings.height,
        guidance_mode=mode,
        shift=settings.shift,
        frames=settings.frames or 0,
    )


def _lacks(what: str, policy: str, command: str) -> ProfileError:
    return ProfileError(f"{what} has no {PLURALS[policy]}. Measure them: {command}; or leave out --policy.")


def _figures(choice: Choice) -> str:
    figures = choice.figures
    ssim = below_one(figures.ssim_mean, 4)
    return f"{figures.speedup:.1f}x with a mean SSIM of {ssim} and {figures.psnr_mean:.1f} dB"


def expectation(choice: Choice, profile: Profile, chosen_by_sort: bool = False) -> str:
    """One line about what was chosen and what to expect, worded like the picture's own figures.

    ``chosen_by_sort``: ``--policy`` named its sort, so that settings of other sorts may be closer.
    """
    figures = choice.figures
    what = choice.label
    if not choice.cache.enabled:
        solver = "" if choice.solver == "own" else f" of {SOLVERS[choice.solver]}"
        what = f"{choice.steps} plain steps{solver}"
        what += "" if chosen_by_sort else ", because at this speed no cache is closer"
    count = f" of {profile.pictures}" if profile.pictures else ""
    line = (
        f"Using {what}: {cost(figures.share, profile.key.steps)} ({figures.speedup:.1f}x when measured), with a mean "
        f"SSIM of {below_one(figures.ssim_mean)} to the uncached {profile.key.noun}s "
        f"({below_one(figures.ssim_worst)} for the worst{count})."
    )
    if profile.measured_for is None:
        return line
    return f"{line} These figures were measured with {profile.measured_for}; here they are a rough guide."


def command_for(
    checkpoint: Checkpoint, settings: Settings, *start: str, loading: Mapping[str, str] | None = None
) -> str:
    """The command that makes a profile for such pictures; or one that begins with the words in ``start``.

    ``loading`` is what the model is loaded with, as ``LoadOptions.loading``.
    """
    defaults = checkpoint.defaults
    words = list(start or ("h2gen", "tune"))
    if start == () or checkpoint.name != "tiny":
        words += ["--model", checkpoint.name]
    if checkpoint.base is not None:
        words += ["--base", checkpoint.base.name]
    for part in checkpoint.parts:
        words += [part.option, str(part.path)]
    if settings.steps != defaults.steps:
        words += ["--steps", str(settings.steps)]
    if (settings.width, settings.height) != (defaults.width, defaults.height):
        words += ["--size", f"{settings.width}x{settings.height}"]
    if settings.frames is not None and settings.frames != defaults.frames:
        words += ["--frames", str(settings.frames)]
    if settings.cfg != defaults.cfg:
        words += ["--cfg", f"{settings.cfg:g}"]
    return shlex.join([*words, *loading_words(loading or {})])
