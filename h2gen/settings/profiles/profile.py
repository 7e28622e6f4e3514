"""A profile: the fidelity at each speed, and the settings that reach it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import floor
from pathlib import Path
from typing import Any

from h2gen.cache.config import CacheConfig
from h2gen.cache.policies.plan import joined
from h2gen.errors import ProfileError
from h2gen.models.choices import SOLVERS, evaluations
from h2gen.models.load_options import LOADING
from h2gen.settings.table import BY_NAME

FEWEST_STEPS = 8
"""With fewer steps a cache cannot skip any."""
PLURALS = {"plan": "plans", "tolerance": "tolerances", "thresholds": "thresholds", "steps": "plain fewer steps"}
"""The choices of each sort, as messages call them."""


@dataclass(frozen=True)
class ProfileKey:
    """What a profile applies to.

    ``content_hash`` is the checkpoint's, including its scheduler, or "" if it is not known yet. ``guidance_mode`` is
    ``true`` (two passes per step) or ``plain``. ``shift`` is ``own`` in all profiles: the scheduler's.
    ``frames`` is the number of frames of a video, and 0 for pictures.
    """

    model: str
    content_hash: str
    steps: int
    width: int
    height: int
    guidance_mode: str
    shift: str = "own"
    frames: int = 0

    @property
    def noun(self) -> str:
        """What messages call what is made."""
        return "video" if self.frames else "picture"

    def __str__(self) -> str:
        guided = ", true guidance" if self.guidance_mode == "true" else ""
        shifted = "" if self.shift == "own" else f", shift {self.shift}"
        frames = f", {self.frames} frames" if self.frames else ""
        return f"{self.model!r} at {self.steps} steps, {self.width}x{self.height}{frames}{guided}{shifted}"


@dataclass(frozen=True)
class Figures:
    """What was measured with a choice, on prompts not used in the search, against the uncached pictures.

    ``share`` is the share of the uncached run's blocks that ran; ``seconds`` and ``speedup`` are wall time.
    """

    share: float
    seconds: float
    speedup: float
    ssim_mean: float
    ssim_worst: float
    psnr_mean: float
    psnr_worst: float


@dataclass(frozen=True)
class Choice:
    """One point of the curve: settings, and their figures. ``label`` is for display."""

    label: str
    steps: int
    solver: str
    cache: CacheConfig
    figures: Figures

    @property
    def sort(self) -> str:
        """Its sort, one of ``SORTS``."""
        return sort_of(self.cache)


@dataclass(frozen=True)
class Profile:
    """A curve of choices, the fastest first. ``measured`` records how: prompts, device, dtype, scheduler, date.

    ``measured_for`` is what the figures were measured for, if the profile is used instead of a missing one.
    """

    path: Path
    key: ProfileKey
    choices: tuple[Choice, ...]
    measured: Mapping[str, Any]
    measured_for: ProfileKey | None = None

    @property
    def pictures(self) -> int:
        """The number of pictures behind the figures; 0 if the file does not say."""
        count = self.measured.get("pictures")
        return count if isinstance(count, int) and 0 < count < 10**6 else 0

    @property
    def loading(self) -> dict[str, str]:
        """The options of ``LoadOptions.loading`` that it was measured with."""
        return {name: str(self.measured[name]) for name in LOADING if name in self.measured}

    def of(self, policy: str) -> tuple[Choice, ...]:
        """The choices of a sort; all of them if it is ``auto``."""
        return tuple(choice for choice in self.choices if policy in ("auto", choice.sort))

    def for_speedup(self, speedup: float, policy: str = "auto") -> Choice:
        """The choice with the best fidelity among those with at least this speed-up.

        Args:
            speedup: the least.
            policy: a sort that the profile has, or ``auto``.

        Raises:
            SettingError: it is not above 1.
            ProfileError: no choice is that fast.
        """
        BY_NAME["speedup"].check(speedup)
        enough = [choice for choice in self.of(policy) if choice.figures.speedup >= speedup]
        if not enough:
            fastest = max(self.of(policy), key=lambda choice: choice.figures.speedup)
            among = "" if policy == "auto" else f" with {PLURALS[policy]}"
            most = floor(fastest.figures.speedup * 100) / 100  # what is said can be asked for
            raise ProfileError(
                f"speedup is {speedup:g}, faster than the profile for {self.key} allows{among}: the maximum is "
                f"{most:.2f}x ({fastest.label}); give that or less, or fewer --steps."
            )
        return max(enough, key=lambda choice: (choice.figures.ssim_mean, choice.figures.speedup))

    def for_fidelity(self, ssim: float, policy: str = "auto") -> Choice | None:
        """The fastest choice with at least this mean SSIM; None if no choice is faster than the uncached run.

        Args:
            ssim: the least.
            policy: a sort, or ``auto``.

        Raises:
            SettingError: it is not above 0, or above 1.
        """
        BY_NAME["fidelity"].check(ssim)
        close = [each for each in self.of(policy) if each.figures.ssim_mean >= ssim and each.figures.speedup > 1]
        return max(close, key=lambda choice: (choice.figures.speedup, choice.figures.ssim_mean), default=None)

    def fitted(self, steps: int) -> Profile:
        """The profile adapted to another number of steps, with plans stretched. Its figures are no longer exact."""
        if steps == self.key.steps:
            return self
        choices = []
        for choice in self.choices:
            fewer = max(1, round(choice.steps * steps / self.key.steps))
            passes = evaluations(fewer, choice.solver)
            cache = replace(choice.cache, plan=stretched(choice.cache.plan, passes))
            figures = choice.figures if cache.enabled else replace(choice.figures, share=passes / steps)
            label = label_of(cache, fewer, choice.solver) or choice.label
            choices.append(replace(choice, label=label, steps=fewer, cache=cache, figures=figures))
        return replace(self, key=replace(self.key, steps=steps), choices=tuple(choices))


def sort_of(cache: CacheConfig) -> str:
    """The sort of a cache, one of ``SORTS``. A tolerance may be combined with a plan or thresholds."""
    if not cache.enabled:
        return "steps"
    return "tolerance" if cache.tolerance else "plan" if cache.plan else "thresholds"


def label_of(cache: CacheConfig, steps: int, solver: str) -> str:
    """What a choice is called that depends on the number of steps: one with a plan, or fewer steps; otherwise empty."""
    by = "" if solver == "own" else f", {SOLVERS[solver]}"
    if not cache.enabled:
        return f"{steps} step{'s' * (steps != 1)}{by}"
    if not cache.plan or "/" in cache.plan:
        return ""
    passes = "passes" if solver == "heun" else "steps"
    if cache.tolerance:
        return f"tolerance {cache.tolerance:g}, at least {cache.plan.count('F')} of {len(cache.plan)} {passes}{by}"
    words = {"S": "skipped", "R": "reused", "D": "with the detail reused", "C": "with the structure reused"}
    parts = [f"{cache.plan.count('F')} of {len(cache.plan)} {passes}"]
    parts += [f"{cache.plan.count(letter)} {outcome}" for letter, outcome in words.items() if letter in cache.plan]
    return ", ".join(parts) + by


def loading_words(loading: Mapping[str, str]) -> list[str]:
    """What ``LoadOptions.loading`` gives, as words of a command line."""
    rows = [(BY_NAME[name], value) for name, value in loading.items()]
    return [word for row, value in rows for word in ([row.option] if row.switch else [row.option, value])]


def stretched(plan: str, steps: int) -> str:
    """A plan for another number of steps.

    Each step does the same as the step at that relative position in the old plan, with as many full steps, if
    they fit. The parts of a plan for several passes are stretched separately.
    """
    if "/" in plan:
        return joined(stretched(part, steps) for part in plan.split("/"))
    if steps == len(plan) or not plan:
        return plan
    if steps == 1 or len(plan) == 1:
        return "F" * steps
    scale = (len(plan) - 1) / (steps - 1)
    letters = [plan[min(len(plan) - 1, round(step * scale))] for step in range(steps)]
    others = [letter if letter != "F" else "S" for letter in letters]
    full = {min(steps - 1, round(place / scale)) for place, letter in enumerate(plan) if letter == "F"}
    return "".join("F" if step in full else others[step] for step in range(steps))
