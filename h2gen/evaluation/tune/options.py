"""Options of tuning, and its progress observer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from h2gen.arguments import fields_checked
from h2gen.checks import Rule
from h2gen.errors import SettingError
from h2gen.evaluation.fit_budget import TOLERANCES
from h2gen.evaluation.options import CompareObserver
from h2gen.models.choices import TRIED_SOLVERS, evaluations
from h2gen.settings.profiles import FEWEST_STEPS
from h2gen.settings.synonyms import meant_or_close
from h2gen.settings.table import SORTS

if TYPE_CHECKING:
    from h2gen.evaluation.methods import Method
    from h2gen.evaluation.results import Comparison
    from h2gen.settings.profiles import Profile

BUDGETS = (0.66, 0.5, 0.4, 0.33, 0.25, 0.2, 0.16, 0.125, 0.1)
"""Default budgets, as shares of the blocks of the uncached run."""

_PLANS = 9
"""The most plans measured per budget before one is polished: 5 with the model's own solver, 2 with each other one."""
MOST_PASSES = 200
"""Passes per image. The search's tables grow with their third power and take about 300 MB at this number."""


@fields_checked(meant_or_close)
@dataclass(frozen=True)
class TuneOptions:
    """How much is tried, and where the profile goes.

    Args:
        search: prompts that settings are searched on.
        check: other prompts, on which the best settings are measured.
        budgets: shares of the blocks, above 0 and below 1.
        tries: plans measured while polishing one plan; 0 does not polish.
        keep: candidates per budget that are measured on the other prompts, besides the best of each sort.
        threshold_tries: settings of the two-stage cache (thresholds) measured per budget; 0 leaves it out.
        profile: the profile's file, which ends in ``.toml``; None is the user's data folder.

    Raises:
        SettingError: a number is out of range.
    """

    search: int = 4
    check: int = 12
    budgets: Sequence[float] = BUDGETS
    tries: int = 12
    keep: int = 3
    threshold_tries: int = 16
    profile: Path | None = None

    def __post_init__(self) -> None:
        for name, least in (("search", 1), ("check", 1), ("tries", 0), ("threshold_tries", 0)):
            Rule(int, least, 10_000).check(name, getattr(self, name))
        object.__setattr__(self, "budgets", parse_budgets(self.budgets))
        if self.profile is not None:
            object.__setattr__(self, "profile", Path(self.profile))

    @property
    def arguments(self) -> tuple[str, ...]:
        """The options of the command line that say how much is tried, where it is not the default."""
        words: list[str] = []
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in ("keep", "profile") and value != field.default:
                text = ",".join(f"{share:g}" for share in value) if field.name == "budgets" else str(value)
                words += [f"--{field.name.replace('_', '-')}", text]
        return tuple(words)

    @property
    def images_per_prompt(self) -> int:
        """Images that the search makes of each prompt, at most: the uncached and recorded ones, and for each budget
        those of fewer steps, plans, tolerances and thresholds."""
        return 1 + len(TRIED_SOLVERS) + len(self.budgets) * self._per_budget

    @property
    def pictures(self) -> int:
        """Images that are made in all, at most: by the search, and of what it found on the other prompts."""
        return self.search * self.images_per_prompt + self.check * (1 + len(self.budgets) * self._checked_per_budget)

    @property
    def uncached_pictures(self) -> int:
        """How many uncached images take as long as all of them, at most."""
        recorded = 1 + sum(evaluations(1000, solver) / 1000 for solver in TRIED_SOLVERS)
        shares = sum(self.budgets)
        checked = 1 + shares * self._checked_per_budget
        return round(self.search * (recorded + shares * self._per_budget) + self.check * checked)

    @property
    def _per_budget(self) -> int:
        return len(TRIED_SOLVERS) + _PLANS + 2 * self.tries + 4 * TOLERANCES + self.threshold_tries

    @property
    def _checked_per_budget(self) -> int:
        """The closest candidates cover at least one sort; the best of each other sort are added."""
        return self.keep + len(SORTS) - 1 - (self.threshold_tries == 0)


class TuneObserver(CompareObserver):
    """Receives the progress of tuning: of the search, then of the comparison. Override what you need."""

    def resumed(self, measurements: int) -> None:
        """An interrupted search is continued, with this many measurements already there."""

    def made(self) -> None:
        """The search has made another image."""

    def tried(self, budget: float, method: Method, share: float, error: float) -> None:
        """A candidate for a budget was measured: its share of the blocks, and its mean 1 - SSIM."""

    def tuned(self, profile: Profile, comparison: Comparison) -> None:
        """The profile is complete; writing its chart comes next."""


def parse_budgets(given: str | Sequence[float]) -> tuple[float, ...]:
    """Budgets such as ``0.5,0.33``, the largest first, each once.

    Raises:
        SettingError: there is none, or one is not a number, or not above 0 and below 1.
    """
    try:
        budgets = sorted(
            {float(part) for part in (given.split(",") if isinstance(given, str) else given)}, reverse=True
        )
    except (TypeError, ValueError) as error:
        raise SettingError(f"budgets is {given!r}; give shares of the blocks such as 0.5,0.33,0.2.") from error
    if not budgets:
        raise SettingError("budgets is empty; give shares of the blocks such as 0.5,0.33,0.2.")
    for budget in budgets:
        if not 0 < budget < 1:
            raise SettingError(f"A budget is {budget:g}; give shares of the blocks above 0 and below 1.")
    return tuple(budgets)


def check_steps(model: str, steps: int) -> None:
    """Check that there are enough steps for a cache to skip some, and not too many for the search.

    Raises:
        SettingError: there are too few steps, or too many.
    """
    if steps > MOST_PASSES:
        raise SettingError(
            f"{model!r} would take {steps} steps; tuning supports up to {MOST_PASSES}: give fewer --steps."
        )
    if steps < FEWEST_STEPS:
        raise SettingError(
            f"{model!r} would take {steps} steps; a cache cannot help below {FEWEST_STEPS}, because no step is close "
            "enough to the one before it. Use fewer --steps to be faster."
        )
