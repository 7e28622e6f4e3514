"""A profile: what each speed costs in fidelity, and which settings buy it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from h2gen.cache.config import CacheConfig
from h2gen.cache.plan import joined
from h2gen.errors import ProfileError, SettingError
from h2gen.models.choices import evaluations

FEWEST_STEPS = 8
"""Below it there are too few steps for a cache to leave any out."""


@dataclass(frozen=True)
class ProfileKey:
    """What a profile holds for.

    ``content_hash`` is the checkpoint's, its scheduler among the rest, or "" where nobody has looked.
    ``guidance_mode`` is ``true`` (two passes a step) or ``plain``.
    """

    model: str
    content_hash: str
    steps: int
    width: int
    height: int
    guidance_mode: str

    def __str__(self) -> str:
        guided = ", true guidance" if self.guidance_mode == "true" else ""
        return f"{self.model!r} at {self.steps} steps, {self.width}x{self.height}{guided}"


@dataclass(frozen=True)
class Figures:
    """What was measured with a choice, on prompts that the search did not see, against the uncached pictures.

    ``share`` is of the blocks of the uncached run; ``seconds`` and ``speedup`` are by the clock.
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
    """One point of the curve: how to make the picture, and what that came to. ``label`` is for people."""

    label: str
    steps: int
    solver: str
    cache: CacheConfig
    figures: Figures


@dataclass(frozen=True)
class Profile:
    """A curve of choices, the fastest first. ``measured`` says with what: prompts, device, dtype, scheduler, date."""

    path: Path
    key: ProfileKey
    choices: tuple[Choice, ...]
    measured: Mapping[str, Any]

    @property
    def pictures(self) -> int:
        """On how many pictures the figures rest; 0 where the file does not say."""
        count = self.measured.get("pictures")
        return count if isinstance(count, int) and 0 < count < 10**6 else 0

    def for_speedup(self, speedup: float) -> Choice:
        """The choice with the best fidelity of those that are at least so many times as fast.

        Raises:
            SettingError: it is not above 1.
            ProfileError: it is more than any choice gives.
        """
        check_speedup(speedup)
        enough = [choice for choice in self.choices if choice.figures.speedup >= speedup]
        if not enough:
            fastest = max(self.choices, key=lambda choice: choice.figures.speedup)
            raise ProfileError(
                f"speedup is {speedup:g}, below the floor of what {self.key} can do: the fastest choice of its "
                f"profile is {fastest.figures.speedup:.2f} times as fast ({fastest.label}); ask for that or less, or "
                "give fewer --steps."
            )
        return max(enough, key=lambda choice: (choice.figures.ssim_mean, choice.figures.speedup))

    def for_fidelity(self, ssim: float) -> Choice | None:
        """The fastest choice whose mean SSIM is at least this; None where only the uncached run is as close, or nothing
        as close is faster than that.

        Raises:
            SettingError: it is not above 0, or above 1.
        """
        check_fidelity(ssim)
        close = [choice for choice in self.choices if choice.figures.ssim_mean >= ssim and choice.figures.speedup > 1]
        return max(close, key=lambda choice: (choice.figures.speedup, choice.figures.ssim_mean), default=None)

    def fitted(self, steps: int) -> Profile:
        """The same for another number of steps: shorter runs shortened alike, plans drawn out. Its figures no longer
        hold exactly."""
        if steps == self.key.steps:
            return self
        choices = []
        for choice in self.choices:
            fewer = max(1, round(choice.steps * steps / self.key.steps))
            plan = stretched(choice.cache.plan, evaluations(fewer, choice.solver))
            cache = replace(choice.cache, plan=plan)
            choices.append(replace(choice, steps=fewer, cache=cache))
        return replace(self, key=replace(self.key, steps=steps), choices=tuple(choices))


def check_speedup(speedup: float) -> None:
    """Whether it is a speed that can be asked for.

    Raises:
        SettingError: it is not above 1.
    """
    if not 1 < speedup <= 1000:
        raise SettingError(f"speedup is {speedup:g}; give a number above 1, such as 2.")


def check_fidelity(ssim: float) -> None:
    """Whether it is a fidelity that can be asked for.

    Raises:
        SettingError: it is not above 0, or above 1.
    """
    if not 0 < ssim <= 1:
        raise SettingError(f"fidelity is {ssim:g}; give an SSIM above 0 and up to 1, such as 0.95.")


def stretched(plan: str, steps: int) -> str:
    """A plan for another number of steps: each step does what the one at its place in the old plan did, and full steps
    stay as many, as far as there is room. The parts of a plan of several passes are stretched alike."""
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
