"""``h2gen frontier``: at several budgets of blocks, which method is closest to the uncached images.

Fewer steps, other caches, the paper's cache and h2gen's own are measured on prompts on which no setting was chosen for
its fidelity. The thresholds of other caches and of the paper's are set by counting the blocks that they run there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from h2gen.arguments import fields_checked
from h2gen.checks import Rule
from h2gen.errors import SettingError
from h2gen.evaluation import builtin_prompts
from h2gen.evaluation.cases import PromptFiles, split_options, uncached_request
from h2gen.evaluation.frontier_estimate import FrontierEstimate, estimate
from h2gen.evaluation.frontier_rows import Row, best_rows, first_shown, lacking, own_methods, story, verdicts
from h2gen.evaluation.methods import Method
from h2gen.evaluation.metrics import Metrics, choose_metrics
from h2gen.evaluation.options import CompareObserver, MethodOptions
from h2gen.evaluation.peers import Peer, choose_peers, default_peers
from h2gen.evaluation.recommend import recommended
from h2gen.evaluation.report import check_report_folder, write_report
from h2gen.evaluation.results import Case, Comparison
from h2gen.evaluation.tune.options import parse_budgets
from h2gen.files import check_file
from h2gen.models.content_hash import content_hash
from h2gen.settings.profiles import Profile, find_profile, loaded_otherwise, mismatch, read_profile
from h2gen.settings.resolve import Request
from h2gen.settings.speedup import command_for, profile_key_of
from h2gen.settings.synonyms import meant_or_close
from h2gen.wording import did_you_mean

if TYPE_CHECKING:
    from h2gen.evaluation.tune.measurement_log import LoggedSamples
    from h2gen.generation.session import Session

BUDGETS = (0.5, 0.39, 0.33, 0.25)
"""Default budgets, as shares of the blocks."""
LOWEST = 0.2
"""An additional default budget from ``MANY`` steps on; with fewer steps it leaves too few to compute."""
MANY = 40

GROUPS = {"own": "h2gen's own", "paper": "the paper's cache", "steps": "fewer steps", "peers": "other caches"}
"""The groups of methods that ``only`` can name, and what each contains."""


_OR_ELSE = "name another one: --profile FILE, or leave out h2gen's own methods: --only steps,paper,peers"


@fields_checked(meant_or_close)
@dataclass(frozen=True)
class FrontierOptions:
    """Options of ``h2gen.evaluation.frontier.frontier``, as on the command line.

    Args:
        limit: number of prompts, at most.
        budgets: shares of the blocks; None takes ``BUDGETS``, and ``LOWEST`` from ``MANY`` steps on.
        only: measure only these of ``GROUPS``, such as ``steps,peers``; None measures all.
        against: other caches, such as ``fb,taylor``; "" for none, None for all that are installed.
        profile: the profile whose settings are h2gen's own; None finds the one that fits.
        log: the file that records the measurements; None uses one in the user's data folder. Several processes may
            measure different methods and share the file.
        report: write an HTML report into this new folder.

    Raises:
        SettingError: a number is out of range, or ``only`` names an unknown group.
    """

    limit: int = 48
    budgets: Sequence[float] | None = None
    only: str | None = None
    against: str | None = None
    profile: Path | None = None
    log: Path | None = None
    report: Path | None = None

    def __post_init__(self) -> None:
        Rule(int, 1).check("limit", self.limit)
        if self.budgets is not None:
            object.__setattr__(self, "budgets", parse_budgets(self.budgets))
        groups_of(self.only)
        for name in ("profile", "log", "report"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, Path(getattr(self, name)))


def groups_of(only: str | None) -> frozenset[str]:
    """The groups that ``only`` names, or all of ``GROUPS``.

    Raises:
        SettingError: it names an unknown group, or nothing.
    """
    if only is None:
        return frozenset(GROUPS)
    words = [word.strip().lower() for word in only.split(",") if word.strip()]
    for word in words:
        if word not in GROUPS:
            known = ", ".join(GROUPS)
            raise SettingError(f"only is {only!r}, but {word!r} is not one of {known}{did_you_mean(word, GROUPS)}")
    if not words:
        raise SettingError(f"only is {only!r}, which is empty; choose from {', '.join(GROUPS)}.")
    return frozenset(words)


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
        told = [each for budget in self.budgets for each in verdicts(self.rows, budget)]
        return {
            "rows": [row.to_json() for row in self.rows],
            "verdicts": [each.to_json() for each in told],
            "comparison": self.comparison.to_json(),
        }


class FrontierObserver(CompareObserver):
    """Observes a frontier. Override what you need."""

    def resumed(self, log: Path, known: int) -> None:
        """Called once, with the number of pictures already in the log; 0 if it is new."""

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
    most = len(builtin_prompts.FRONTIER)
    if not prompts and options.limit > most:
        raise SettingError(f"limit is {options.limit}; there are {most} prompts built in: give more with --prompts.")
    request, cases = uncached_request(settings, prompts, prompt_key, builtin_prompts.to_measure, options.limit)
    if options.budgets is None:
        lowest = (LOWEST,) if request.settings.steps >= MANY else ()
        options = replace(options, budgets=(*BUDGETS, *lowest))
    peers: list[Peer] = []
    notices: list[str] = []
    groups = groups_of(options.only)
    if "peers" not in groups:
        if options.against is not None and options.against.strip():
            raise SettingError("--against names other caches, but --only leaves them out; add peers to --only.")
    elif options.against is None:
        peers, notices = default_peers(request.checkpoint)
    elif options.against.strip():
        peers = choose_peers(options.against, request.checkpoint)
    check_report_folder(options.report)
    if options.log is not None:
        check_file(options.log)
    profile = None
    if "own" in groups:
        profile, about = _own_profile(request, options.profile)
        notices = [*notices, *about]
    return PreparedFrontier(request, cases, peers, notices, options, profile)


def _own_profile(request: Request, given: Path | None) -> tuple[Profile, list[str]]:
    """The profile whose settings are h2gen's own, and notices about it for the user."""
    checkpoint, settings, loading = request.checkpoint, request.settings, request.load.loading
    here = profile_key_of(checkpoint, settings)
    if given is not None:
        profile = read_profile(given)
        about = mismatch(profile.key, here, content_hash(checkpoint))
        return profile.fitted(here.steps), [*about, *loaded_otherwise(profile, loading)]
    command = command_for(checkpoint, settings, loading=loading)
    return find_profile(here, lambda: content_hash(checkpoint), command, or_else=_OR_ELSE, loading=loading)


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
    _profile: Profile | None

    @property
    def budgets(self) -> Sequence[float]:
        """Shares of the blocks."""
        return self._options.budgets or BUDGETS

    @property
    def estimate(self) -> FrontierEstimate:
        """The length of the measurement if nothing were in the log yet."""
        settings, groups = self.request.settings, groups_of(self._options.only)
        found = estimate(groups, self.budgets, self._peers, len(self.cases), settings.steps)
        return found.expecting(profile_key_of(self.request.checkpoint, settings), self.request.load.loading)

    def run(self, observer: FrontierObserver | None = None) -> Frontier:
        """Measure, and write the report if one was asked for.

        Raises:
            H2GenError: as ``frontier``.
        """
        from h2gen.evaluation.comparison_run import run_comparison  # loads torch
        from h2gen.evaluation.video_metrics import suited

        observer = observer or FrontierObserver()
        for notice in self._notices:
            observer.notice(notice)
        report, groups = self._options.report, groups_of(self._options.only)
        budgets = self.budgets
        own: list[Method] = []
        if self._profile is not None:
            for notice in lacking(self._profile, budgets):
                observer.notice(notice)
            own = own_methods(self._profile, budgets)
        chosen = MethodOptions(
            baselines=False,
            methods=own,
            peers=self._peers,
            budgets=budgets,
            at_budgets=groups & {"steps", "paper"},
            repeat=1,
        )
        metrics = suited(choose_metrics("psnr,ssim,lpips", download=False), self.request.settings)
        run = run_comparison(
            self.request,
            self.cases,
            self.request.settings,
            metrics,
            chosen,
            observer,
            choose=lambda results, metrics: first_shown(results, own) or recommended(results, metrics),
            report=report,
            keep=lambda session, content_hash: self._keep(session, content_hash, metrics, observer),
        )
        found = Frontier(budgets, best_rows(run.comparison, own, budgets), run.comparison)
        observer.ranked(found)
        if report is not None:
            observer.wrote(write_report(run.comparison, report, report, story(found.rows, budgets)))
        if run.error is not None:
            raise run.error
        return found

    @contextmanager
    def _keep(
        self, session: Session, content_hash: str, metrics: Metrics, observer: FrontierObserver
    ) -> Iterator[LoggedSamples]:
        """Opens the log of the samples, and the folder next to it: uncached pictures, or all of them for a report."""
        from h2gen.evaluation.tune.measurement_log import LoggedSamples, open_shared_log  # loads torch

        key = profile_key_of(self.request.checkpoint, self.request.settings, content_hash)
        with open_shared_log(key, session, self.request.settings, self._options.log) as log:
            observer.resumed(log.path, len(log))
            pictures = log.path.with_name(f"{log.path.name}-pictures")
            every, videos = self._options.report is not None, self.request.settings.frames is not None
            yield LoggedSamples(log, self.cases, metrics.infos, pictures=pictures, every=every, videos=videos)
