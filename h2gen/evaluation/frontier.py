"""``h2gen frontier``: at several budgets of blocks, which method is closest to the uncached images.

Fewer steps, other caches, the paper's cache and h2gen's own are measured on prompts that no setting was chosen on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from h2gen.arguments import fields_checked
from h2gen.checks import Rule
from h2gen.errors import SettingError
from h2gen.evaluation import builtin_prompts
from h2gen.evaluation.cases import PromptFiles, split_options, uncached_request
from h2gen.evaluation.frontier_rows import Row, best_rows, first_shown, own_methods, story
from h2gen.evaluation.metrics import choose_metrics
from h2gen.evaluation.options import CompareObserver, MethodOptions
from h2gen.evaluation.peers import Peer, choose_peers, default_peers
from h2gen.evaluation.recommend import recommended
from h2gen.evaluation.report import check_report_folder, write_report
from h2gen.evaluation.results import Case, Comparison
from h2gen.evaluation.tune.options import check_budget
from h2gen.models.content_hash import content_hash
from h2gen.settings.profiles import Profile, find_profile, mismatch, read_profile
from h2gen.settings.resolve import Request
from h2gen.settings.speedup import command_for, profile_key_of
from h2gen.settings.synonyms import meant_or_close

BUDGETS = (0.5, 0.33, 0.25, 0.2)
"""Default budgets, as shares of the blocks."""


@fields_checked(meant_or_close)
@dataclass(frozen=True)
class FrontierOptions:
    """Options of ``h2gen.evaluation.frontier.frontier``, as on the command line.

    Args:
        limit: number of prompts, at most.
        budgets: shares of the blocks.
        against: other caches, such as ``fb,taylor``; "" for none, None for all that are installed.
        profile: the profile whose settings are h2gen's own; None finds the one that fits.
        report: write an HTML report into this new folder.

    Raises:
        SettingError: a number is out of range.
    """

    limit: int = 48
    budgets: Sequence[float] = BUDGETS
    against: str | None = None
    profile: Path | None = None
    report: Path | None = None

    def __post_init__(self) -> None:
        Rule(int, 1).check("limit", self.limit)
        for budget in self.budgets:
            check_budget(budget)
        for name in ("profile", "report"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, Path(getattr(self, name)))


@dataclass(frozen=True)
class Frontier:
    """The best methods at each budget, and the comparison that they come from."""

    budgets: Sequence[float]
    rows: Sequence[Row]
    comparison: Comparison

    def at(self, budget: float) -> list[Row]:
        """The rows of a budget, the closest first."""
        return [row for row in self.rows if row.budget == budget]

    def to_json(self) -> dict[str, Any]:
        return {"rows": [row.to_json() for row in self.rows], "comparison": self.comparison.to_json()}


class FrontierObserver(CompareObserver):
    """Observes a frontier. Override what you need."""

    def ranked(self, frontier: Frontier) -> None:
        """All figures are measured; the report is written next."""


def frontier(
    *,
    prompts: PromptFiles = None,
    prompt_key: str | None = None,
    options: FrontierOptions | None = None,
    observer: FrontierObserver | None = None,
    **settings: Any,
) -> Frontier:
    """Rank caches and fewer steps at equal compute.

    >>> from h2gen.evaluation.frontier import FrontierOptions, frontier
    >>> found = frontier(options=FrontierOptions(limit=12), steps=50)  # doctest: +SKIP
    >>> [(row.result.label, row.error) for row in found.at(0.33)]  # doctest: +SKIP

    Args:
        prompts: prompt files; None takes the built-in prompts.
        prompt_key: key of the prompt in JSON Lines.
        options: what is measured.
        observer: receives progress events.
        settings: named like the command line's options, such as ``model`` and ``steps``; also the fields of
            ``FrontierOptions``, which replace those of ``options``.

    Raises:
        H2GenError: something cannot be used, or failed. The observer's ``ranked`` already has the figures of what was
            finished before.
        ArgumentError: there is no such argument.
    """
    prepared = prepare_frontier(prompts=prompts, prompt_key=prompt_key, options=options, **settings)
    if observer is not None:
        for notice in prepared.request.notices:
            observer.notice(notice)
    return prepared.run(observer)


def prepare_frontier(
    *,
    prompts: PromptFiles = None,
    prompt_key: str | None = None,
    options: FrontierOptions | None = None,
    **settings: Any,
) -> PreparedFrontier:
    """Check all arguments of ``frontier``; nothing is loaded or written."""
    own = ("prompts", "prompt_key", "options", "observer")
    settings, options = split_options("frontier", settings, options or FrontierOptions(), own)
    built_in = builtin_prompts.cases(builtin_prompts.FRONTIER, 3000)
    if not prompts and options.limit > len(built_in):
        raise SettingError(
            f"limit is {options.limit}; there are {len(built_in)} prompts built in: give more with --prompts."
        )
    request, cases = uncached_request(settings, prompts, prompt_key, built_in, options.limit)
    peers: list[Peer] = []
    notices: list[str] = []
    if options.against is None:
        peers, notices = default_peers()
    elif options.against.strip():
        peers = choose_peers(options.against)
    check_report_folder(options.report)
    return PreparedFrontier(request, cases, peers, notices, options)


@dataclass(frozen=True)
class PreparedFrontier:
    """A frontier whose input has been checked. ``run`` loads the model and measures.

    ``request`` is the model with all settings, ``cases`` are the prompts and seeds.
    """

    request: Request
    cases: Sequence[Case]
    _peers: Sequence[Peer]
    _notices: Sequence[str]
    _options: FrontierOptions

    def run(self, observer: FrontierObserver | None = None) -> Frontier:
        """Measure, and write the report if one was asked for.

        Raises:
            H2GenError: as ``frontier``.
        """
        from h2gen.evaluation.comparison_run import run_comparison  # loads torch

        observer = observer or FrontierObserver()
        profile, notices = self._profile()
        for notice in (*notices, *self._notices):
            observer.notice(notice)
        budgets, report = self._options.budgets, self._options.report
        own = own_methods(profile, budgets)
        chosen = MethodOptions(baselines=False, methods=own, peers=self._peers, budgets=budgets, repeat=1)
        metrics = choose_metrics("psnr,ssim")
        run = run_comparison(
            self.request,
            self.cases,
            self.request.settings,
            metrics,
            chosen,
            observer,
            choose=lambda results, metrics: first_shown(results, own) or recommended(results, metrics),
            report=report,
        )
        found = Frontier(budgets, best_rows(run.comparison, own, budgets), run.comparison)
        observer.ranked(found)
        if report is not None:
            observer.wrote(write_report(run.comparison, report, report, story(found.rows, budgets)))
        if run.error is not None:
            raise run.error
        return found

    def _profile(self) -> tuple[Profile, list[str]]:
        """The profile whose settings are h2gen's own, and notices about it for the user."""
        checkpoint, settings = self.request.checkpoint, self.request.settings
        here = profile_key_of(checkpoint, settings)
        if self._options.profile is not None:
            given = read_profile(self._options.profile)
            return given.fitted(here.steps), mismatch(given.key, here, content_hash(checkpoint))
        command = command_for(checkpoint, settings)
        return find_profile(here, lambda: content_hash(checkpoint), command, or_else="name another one: --profile FILE")
