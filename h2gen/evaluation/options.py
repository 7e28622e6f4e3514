"""Options of a comparison, and its progress observer."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from h2gen.arguments import fields_checked
from h2gen.cache.config import CacheConfig
from h2gen.checks import Rule
from h2gen.settings.synonyms import meant_or_close

if TYPE_CHECKING:
    from h2gen.evaluation.methods import Method
    from h2gen.evaluation.metrics import MetricInfo
    from h2gen.evaluation.peers import Peer
    from h2gen.evaluation.results import Comparison, Sample
    from h2gen.generation.session import Session


@fields_checked(meant_or_close)
@dataclass(frozen=True)
class CompareOptions:
    """Options of ``h2gen.compare``, as on the command line.

    Args:
        limit: the first N images only.
        repeat: timed runs per image; None makes two, and a third if those two differ by more than a tenth.
        metrics: names from psnr, ssim, lpips, clip-iqa and clip-score, separated by commas, or ``all``; None takes
            PSNR, SSIM and those of the others whose weights are on this machine.
        clip_model: a CLIP model's folder or hub id.
        fewer: also compare with uncached runs of these numbers of steps, such as ``20,10``.
        against: other caches to compare with at equal cost, such as ``fb,taylor``.
        truth: also measure against 400 uncached steps.
        report: write an HTML report into this new folder.
        images: write a contact sheet and charts into the output folder, or into the report's if there is one.
        save_preset: save the chosen row as a preset of this name.
        row: which of H2-Cache's rows is chosen, from 1; None chooses the recommended one.

    Raises:
        SettingError: a number is out of range.
    """

    limit: int | None = None
    repeat: int | None = None
    metrics: str | None = None
    clip_model: str | None = None
    fewer: str | Sequence[int] | None = None
    against: str | None = None
    truth: bool = False
    report: Path | None = None
    images: bool = False
    save_preset: str | None = None
    row: int | None = None

    def __post_init__(self) -> None:
        for name in ("limit", "repeat"):
            value = getattr(self, name)
            if value is not None:
                Rule(int, 1, 100_000).check(name, value)
        if self.report is not None:
            object.__setattr__(self, "report", Path(self.report))


@dataclass(frozen=True)
class MethodOptions:
    """Which methods a comparison runs, and how often.

    Args:
        caches: settings of H2-Cache; each is a method.
        baselines: also uncached runs of fewer steps that take as long as each cached run, with the model's own solver
            and with UniPC.
        fewer: further numbers of uncached steps.
        methods: further methods, as they are.
        peers: other caches, each at the setting where it computes as many blocks as each of ``caches``.
        budgets: shares of the blocks; for each, ``at_budgets`` and each peer at that cost.
        at_budgets: ``steps`` for fewer steps with every solver, ``paper`` for the paper's cache.
        truth: also compare with the image of 400 steps.
        repeat: timed runs of each method on each case; None as in ``CompareOptions``.
    """

    caches: Sequence[CacheConfig] = ()
    baselines: bool = True
    fewer: Sequence[int] = ()
    methods: Sequence[Method] = ()
    peers: Sequence[Peer] = ()
    budgets: Sequence[float] = ()
    at_budgets: Collection[str] = ("steps", "paper")
    truth: bool = False
    repeat: int | None = None


class CompareObserver:
    """Receives the progress of a comparison. Override what you need."""

    def loaded(self, session: Session) -> None:
        """The model is loaded. ``session.interrupt()`` stops the comparison after the current step."""

    def notice(self, message: str) -> None:
        """A notice for the user."""

    def warned(self, message: str) -> None:
        """A notice that the user must not miss."""

    def began(self, what: str) -> None:
        """Another part of the work begins; ``what`` is its name."""

    def timed(self, seconds: float) -> None:
        """Seconds of one uncached image; called only if samples are kept."""

    def planned(self, methods: Sequence[Method], runs: Mapping[str, int], metrics: Sequence[MetricInfo]) -> None:
        """The methods that will be measured, the minimum number of runs of each by its name, and the metrics.

        Called again if further methods turn out to be needed.
        """

    def repeated(self, methods: Sequence[Method], case: int) -> None:
        """These methods run once more on a case than planned, because their runs differ."""

    def ran(self, method: Method, case: int, seconds: float) -> None:
        """A measured run is done."""

    def scored(self, method: Method, sample: Sample) -> None:
        """An image has been scored, right after its first run."""

    def compared(self, comparison: Comparison) -> None:
        """All figures are measured; files are written next."""

    def wrote(self, path: Path) -> None:
        """A file was written."""
