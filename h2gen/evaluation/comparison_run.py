"""Runs a comparison: every method makes the image of every case, in turns, and is timed and scored.

Whole pipeline calls are timed, with the device synchronised and the text encoded beforehand. Methods take turns,
so that a machine that slows down affects all of them; the first run of each method is not counted. An image is scored
as soon as it is made. Where no number of fewer steps took as long as a cached run, another is measured, in turns with
that run and the uncached one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from itertools import count
from pathlib import Path
from typing import TypeVar

from h2gen.errors import BadPicture, OutputError, SettingError, Stopped
from h2gen.evaluation import methods as known_methods
from h2gen.evaluation.baselines import BaselineSearch
from h2gen.evaluation.kept_samples import KeptSamples, SampleStore
from h2gen.evaluation.make_image import ImageMaker, MadeImage, load_model
from h2gen.evaluation.method_results import Tally, method_results, remarks
from h2gen.evaluation.methods import Method
from h2gen.evaluation.metrics import MetricInfo, Metrics
from h2gen.evaluation.options import CompareObserver, MethodOptions
from h2gen.evaluation.recommend import recommended
from h2gen.evaluation.repeats import least, wants_another
from h2gen.evaluation.report_pictures import ReportPictures
from h2gen.evaluation.results import VERSION, Case, Comparison, MethodResult, Sample
from h2gen.evaluation.rivals import missing_rivals, without_rival
from h2gen.evaluation.truths import Truths
from h2gen.evaluation.videos import Shown, identical
from h2gen.generation.session import Session
from h2gen.output.metadata import origin, versions
from h2gen.settings.resolve import Request
from h2gen.settings.values import Settings

ROUNDS = 3
"""How often further numbers of steps are measured, at most."""
_T = TypeVar("_T")
_SHARED = (
    "width",
    "height",
    "frames",
    "fps",
    "steps",
    "guidance",
    "cfg",
    "negative",
    "max_sequence_length",
    "shift",
    "attention",
)

Choose = Callable[[Sequence[MethodResult], Sequence[MetricInfo]], str]
"""Returns the name of the method that is shown first."""
Keep = Callable[[Session, str], AbstractContextManager[SampleStore]]
"""Given the loaded model and its content hash, opens what keeps the samples."""


@dataclass(frozen=True)
class FinishedRun:
    """A comparison, the images of its first case by method name, and the error that ended it early, if any."""

    comparison: Comparison
    images: Mapping[str, Shown]
    error: Exception | None


def run_comparison(
    request: Request,
    cases: Sequence[Case],
    settings: Settings,
    metrics: Metrics,
    methods: MethodOptions,
    observer: CompareObserver,
    *,
    choose: Choose = recommended,
    report: Path | None = None,
    keep: Keep | None = None,
) -> FinishedRun:
    """Load the model and compare.

    Args:
        request: the model, and how it is loaded.
        cases: prompts and seeds.
        settings: of every image.
        metrics: what images are scored by.
        methods: what is compared.
        observer: receives progress events.
        choose: picks the method that is shown first.
        report: the report's folder, which gets every image; None keeps none.
        keep: opens what keeps every sample across runs of the program; None keeps nothing.

    Returns:
        All cases that every method finished, even if an error ended the comparison after them.

    Raises:
        H2GenError: something failed before a case was finished.
        Stopped: the session was interrupted before that.
    """
    session, content_hash = load_model(request)
    observer.loaded(session)
    error: Exception | None = None
    with nullcontext() if keep is None else keep(session, content_hash) as store:
        run = ComparisonRun(session, cases, settings, metrics, methods, observer=observer, folder=report, store=store)
        again = "" if store is None else " Run the same command to continue."
        try:
            run.run()
        except KeyboardInterrupt:
            if not run.finished:
                raise Stopped(f"Stopped before there was anything to compare.{again}") from None
            whole = "Stopped before all runs were done; the figures are of those that were."
            part = f"Stopped. The figures cover {run.finished} of {len(cases)} {settings.noun}s per method."
            error = Stopped((part if run.finished < len(cases) else whole) + again)
        except Exception as problem:
            if not run.finished:
                raise
            error = problem
        return FinishedRun(run.result(choose, content_hash), run.images, error)


class ComparisonRun:
    """A comparison in progress. ``run`` makes the images; ``result`` covers all cases finished by then.

    Args:
        session: a loaded model.
        cases: prompts and seeds.
        settings: of every image; prompt, seed, steps and cache come from the case and the method.
        metrics: what images or videos are scored by. The first that measures fidelity decides what is Pareto-optimal.
        methods: what is compared.
        observer: receives progress events.
        store: keeps each sample as soon as it is known, and returns those of earlier runs, whose images are not made
            again; every method then makes one image per case, whatever ``methods.repeat`` is. None keeps nothing.
        folder: of the report, where everything made is written to ``pictures``; None writes none.
    """

    def __init__(
        self,
        session: Session,
        cases: Sequence[Case],
        settings: Settings,
        metrics: Metrics,
        methods: MethodOptions,
        *,
        observer: CompareObserver,
        folder: Path | None = None,
        store: SampleStore | None = None,
    ) -> None:
        self._session, self._cases, self._settings = session, tuple(cases), settings
        self._metrics, self._methods, self._observer = metrics, methods, observer
        self._pictures = None if folder is None else ReportPictures(folder)
        self._tallies: list[Tally] = []
        self._notices: list[str] = list(metrics.notices)
        self._maker = ImageMaker(session, self._cases, settings, self._notices.append)
        self._first_images: dict[str, Shown] = {}
        self._truths = Truths()
        self._kept: KeptSamples | None = None
        if store is not None:
            self._kept = KeptSamples(store, self._maker, self._scored, observer, images=folder is not None)

    @property
    def finished(self) -> int:
        """Number of cases that every method has made. In a first case that was cut short, some methods are enough."""
        return min((len(tally.samples) for tally in self._shown), default=0)

    @property
    def _shown(self) -> list[Tally]:
        """The methods that have figures, if there are two to compare; all of them where samples are kept."""
        made = [tally for tally in self._tallies if tally.samples or self._kept is not None]
        return made if len(made) >= min(2, len(self._tallies)) else []

    @property
    def images(self) -> Mapping[str, Shown]:
        """The first case's images, by method name."""
        return self._first_images

    def run(self) -> None:
        """Make and measure every image. A method that makes NaN and a peer that fails are left out, with a notice.

        Raises:
            H2GenError: an uncached image could not be made, or an image could not be written; ``result`` has the
                cases that were finished before.
            KeyboardInterrupt: the session was interrupted; the same.
        """
        kept = self._kept
        if kept is None:
            search = BaselineSearch(self._maker, self._methods, self._observer, self._maker.make)
        else:
            search = BaselineSearch(self._maker, self._methods, self._observer, kept.sample, kept.recall, kept.value)
            search.warm_up()
            plain = kept.sample(known_methods.reference(self._settings.steps), 0)
            self._observer.timed(plain.seconds[0])
        methods = search.methods()
        self._notices += search.notices
        self._tallies = [Tally(method) for method in methods]
        cases = range(len(self._cases))
        self._plan(methods)
        with closing(self._truths):
            for case in cases:
                if kept is None:
                    self._take_turns(case, self._tallies)
                else:
                    self._take_one_turn(case, kept)
            if self._methods.baselines:
                self._add_rivals(search)

    def _add_rivals(self, search: BaselineSearch) -> None:
        """Measure numbers of fewer steps that the medians so far lack, until each cached run has its rivals."""
        for _ in range(ROUNDS if self._methods.repeat else 1):
            results = method_results(self._tallies, len(self._cases), self._metrics.infos)
            added = [Tally(method) for steps in missing_rivals(results) for method in search.in_steps(steps)]
            if not added:
                return
            names = {"uncached", *(result.name for result in without_rival(results))}
            again = [tally for tally in self._tallies if tally.method.name in names]
            turns = [*again, *added]
            self._plan([tally.method for tally in turns])
            try:
                for case in range(len(self._cases)):
                    self._take_turns(case, turns)
            finally:  # an interrupt must not cost the cases that the others have finished
                self._tallies += [tally for tally in added if len(tally.samples) == len(self._cases)]

    def result(self, choose: Choose = recommended, content_hash: str = "") -> Comparison:
        """All figures so far.

        Args:
            choose: picks the method that is shown first.
            content_hash: of the model, as ``h2gen.models.content_hash`` computes it.

        Raises:
            SettingError: no case is finished.
        """
        finished = self.finished
        if not finished:
            raise SettingError(f"No {self._settings.noun} has been compared yet; call run() first.")
        shown = self._shown
        results = method_results(shown, finished, self._metrics.infos)
        lacking = [tally.method for tally in self._tallies if tally not in shown]
        settings = self._settings.to_json()
        made_with = origin(self._session)
        kept = () if self._kept is None else self._kept.notices
        return Comparison(
            version=VERSION,
            made=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            versions=versions(),
            model={
                "name": made_with.name,
                "content_hash": content_hash,
                "device": made_with.device,
                "dtype": made_with.dtype,
                **made_with.changing,
                **({"compile": "yes"} if "compile" in made_with.recorded else {}),
            },
            settings={name: settings[name] for name in _SHARED if name in settings},
            metrics=self._metrics.infos,
            cases=self._cases[:finished],
            methods=tuple(results),
            notices=(
                *self._notices,
                *kept,
                *remarks(results, finished, len(self._cases), lacking, self._settings.noun),
            ),
            chosen=choose(results, self._metrics.infos),
        )

    # Making and measuring images

    def _plan(self, methods: Sequence[Method]) -> None:
        """Tell the observer how often each method will run."""
        cases, kept = range(len(self._cases)), self._kept
        runs = {method.name: len(cases) * least(method, self._methods.repeat) for method in methods}
        if kept is not None:
            runs = {method.name: sum(kept.recall(method, case) is None for case in cases) for method in methods}
        self._observer.planned(methods, runs, self._metrics.infos)

    def _take_one_turn(self, case: int, kept: KeptSamples) -> None:
        """Add one case's samples, starting with another method each time; those that are missing are made."""
        first, *others = self._tallies
        start = case % max(1, len(others))
        for tally in [first, *others[start:], *others[:start]]:
            sample = self._attempt(tally, partial(kept.sample, tally.method, case))
            if sample is None:
                continue
            if self._pictures is not None:
                path = self._pictures.write(kept.image(tally.method, case), tally.method, case)
                sample = replace(sample, picture=path)
            self._add(tally, sample)

    def _scored(self, method: Method, case: int, made: MadeImage, plain: Shown) -> Sample:
        return self._sample(method, case, [made], plain, None)

    def _take_turns(self, case: int, tallies: Sequence[Tally]) -> None:
        """Make and score one case's images by some methods, in turns, starting with another method each time."""
        made: dict[str, list[MadeImage]] = {tally.method.name: [] for tally in tallies}

        def again(tally: Tally) -> bool:
            runs = made.get(tally.method.name)
            return runs is not None and wants_another(tally.method, [one.seconds for one in runs], self._methods.repeat)

        for turn in count(case):
            start = turn % len(tallies)
            turns = [tally for tally in [*tallies[start:], *tallies[:start]] if again(tally)]
            if not turns:
                return
            repeated = [tally.method for tally in turns if turn - case >= least(tally.method, self._methods.repeat)]
            if repeated:
                self._observer.repeated(repeated, case)
            for tally in turns:
                one = self._attempt(tally, partial(self._maker.make, tally.method, case))
                if one is None:
                    del made[tally.method.name]
                    continue
                self._observer.ran(tally.method, case, one.seconds)
                runs = made[tally.method.name]  # of a further one only the time counts, and videos are large
                runs.append(replace(one, image=runs[0].image) if runs else one)
                if len(tally.samples) > case:
                    sample = tally.samples[case]
                    tally.samples[case] = replace(sample, seconds=(*sample.seconds, one.seconds))
                self._score(case, [other for other in tallies if len(other.samples) <= case], made)

    def _score(self, case: int, tallies: Sequence[Tally], made: Mapping[str, Sequence[MadeImage]]) -> None:
        """Score one case's images of some methods, and add them to their samples, once what they need is made."""
        ready = [tally for tally in tallies if made.get(tally.method.name)]
        if not ready or not made["uncached"] or made.get("truth") == []:
            return
        plain = made["uncached"][0].image
        truth = made["truth"][0].image if "truth" in made else self._truths.find(case)
        for tally in ready:
            image = made[tally.method.name][0].image
            if tally.method.kind == "truth" and self._methods.baselines:
                self._truths.keep(case, image)
            sample = self._sample(tally.method, case, made[tally.method.name], plain, truth)
            if self._pictures is not None:
                sample = replace(sample, picture=self._pictures.write(image, tally.method, case))
            self._add(tally, sample)
            if case == 0:
                self._first_images[tally.method.name] = image

    def _add(self, tally: Tally, sample: Sample) -> None:
        tally.samples.append(sample)
        self._observer.scored(tally.method, sample)

    def _attempt(self, tally: Tally, make: Callable[[], _T]) -> _T | None:
        """What one run made; None if the method failed, which then is left out with all its images.

        A full disk does not count as a failure of the method: it ends the comparison.
        """
        method = tally.method
        try:
            return make()
        except BadPicture as error:
            if method.kind in ("reference", "truth"):
                raise
            self._leave_out(tally, error)
            return None
        except Exception as error:
            if method.kind != "peer" or isinstance(error, OutputError):
                raise
            self._leave_out(tally, error)  # third-party code must not end the comparison
            return None

    def _leave_out(self, tally: Tally, error: Exception) -> None:
        self._tallies = [other for other in self._tallies if other is not tally]
        tally.samples.clear()
        self._notices.append(f"{tally.method.label} is left out: {str(error) or type(error).__name__}")

    def _sample(
        self, method: Method, case: int, made: Sequence[MadeImage], plain: Shown, truth: Shown | None
    ) -> Sample:
        image, prompt = made[0].image, self._cases[case].prompt
        against_truth = {} if truth is None or method.kind == "truth" else self._metrics.measure(image, truth, prompt)
        fidelity = {info.name for info in self._metrics.infos if info.fidelity}
        return Sample(
            case=case,
            picture="",
            scores=self._metrics.measure(image, plain, prompt),
            truth_scores={name: value for name, value in against_truth.items() if name in fidelity},
            seconds=tuple(one.seconds for one in made),
            share=made[0].share,
            identical=identical(image, plain),
            trace=made[0].trace,
        )
