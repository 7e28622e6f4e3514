"""Every method makes the picture of every case: timed in turn, compared with the uncached one, and written down.

Clocks are read around whole calls of the pipeline, the device synchronised. Methods take turns, so that a machine that
becomes slower is slower for all of them; what runs for the first time is left out.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from h2gen.cache.config import CacheConfig
from h2gen.cache.trace import StepRecord
from h2gen.errors import BadPicture, CacheError, SettingError
from h2gen.run.metadata import origin, versions
from h2gen.run.save import encode
from h2gen.run.session import Session
from h2gen.run.settings import Settings
from h2gen.study import methods
from h2gen.study.blocks import BlockCount, count_blocks
from h2gen.study.chart.pareto import best_of
from h2gen.study.methods import Method
from h2gen.study.metrics import Metrics
from h2gen.study.peers import Peer, Value, settle
from h2gen.study.results import VERSION, Case, Comparison, MethodResult, Shot, score, timing

_CALIBRATING = 3
"""Cases whose times decide how many plain steps take as long as the cached run."""
_SEARCHING = 8
"""Cases, at most, whose blocks are counted in the search for a peer's setting."""


class Watcher(Protocol):
    """Whoever wants to know how a comparison goes on."""

    def began(self, what: str) -> None:
        """Another part of the work: its name, for people."""

    def planned(self, methods: Sequence[Method], runs: int) -> None:
        """What will be measured, and in how many runs."""

    def ran(self, method: Method, case: int, seconds: float) -> None:
        """A measured run is done."""

    def scored(self, method: Method, shot: Shot) -> None:
        """A picture has its figures."""


@dataclass(frozen=True)
class Wishes:
    """What is compared, and how.

    Args:
        caches: settings of H2-Cache, each a method.
        baselines: also plain fewer steps that take as long as each cached run, with the model's own solver and with
            UniPC.
        fewer: further numbers of plain steps.
        peers: other caches, each at the setting where it computes as many blocks as each of ``caches``.
        truth: also compare with the picture of 400 steps.
        repeat: timed runs of a method on a case.
    """

    caches: Sequence[CacheConfig]
    baselines: bool = True
    fewer: Sequence[int] = ()
    peers: Sequence[Peer] = ()
    truth: bool = False
    repeat: int = 3


@dataclass
class _Tally:
    """What a method's pictures of the finished cases came to."""

    method: Method
    shots: list[Shot] = field(default_factory=list)


class Comparing:
    """A comparison in the making. ``run`` makes the pictures; ``result`` is of all cases that are finished by then.

    Args:
        session: a loaded model.
        cases: prompts and seeds.
        settings: of every picture; prompt, seed, steps and cache are each method's own.
        metrics: what pictures are judged by; the first is the one that decides what is Pareto-best.
        wishes: see there.
        watcher: is told how it goes on.
        folder: of the report, where every picture is written to ``pictures/CASE-METHOD.png``; None keeps none.
    """

    def __init__(
        self,
        session: Session,
        cases: Sequence[Case],
        settings: Settings,
        metrics: Metrics,
        wishes: Wishes,
        *,
        watcher: Watcher,
        folder: Path | None = None,
    ) -> None:
        self._session, self._cases, self._settings = session, tuple(cases), settings
        self._metrics, self._wishes, self._watcher, self._folder = metrics, wishes, watcher, folder
        self._passes = 2 if settings.cfg > 1 else 1
        self._tallies: list[_Tally] = []
        self._notices: list[str] = list(metrics.notices)
        self._kept: dict[str, Image.Image] = {}

    def run(self) -> None:
        """Make and measure every picture.

        Raises:
            H2GenError: a picture of ours could not be made.
            KeyboardInterrupt: the session was interrupted; ``result`` has the cases that were finished.
        """
        chosen = self._choose_methods()
        self._tallies = [_Tally(method) for method in chosen]
        self._watcher.planned(chosen, len(self._cases) * sum(map(self._repeats, chosen)))
        for index in range(len(self._cases)):
            self._measure(index)

    def result(self, chosen: Callable[[Sequence[MethodResult]], str], content_hash: str = "") -> Comparison:
        """All figures so far.

        Args:
            chosen: picks the name of the method that is shown first.
            content_hash: of the model, as ``h2gen.models.identity`` computes it.

        Raises:
            SettingError: no case is finished.
        """
        finished = self.finished
        if not finished:
            raise SettingError("Nothing has been compared yet.")
        if finished < len(self._cases):
            self._notices.append(f"Stopped after {finished} of {len(self._cases)} pictures of each method.")
        results = self._results(finished)
        settings = self._settings.to_json()
        made_with = origin(self._session, content_hash)
        return Comparison(
            version=VERSION,
            made=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            versions=versions(),
            model={
                "name": made_with.name,
                "content_hash": made_with.content_hash,
                "device": made_with.device,
                "dtype": made_with.dtype,
            },
            settings={name: settings[name] for name in _SHARED},
            metrics=self._metrics.infos,
            cases=self._cases[:finished],
            methods=tuple(results),
            notices=tuple(self._notices),
            chosen=chosen(results),
        )

    @property
    def finished(self) -> int:
        """Cases that every method has made."""
        return min((len(tally.shots) for tally in self._tallies), default=0)

    @property
    def pictures(self) -> Mapping[str, Image.Image]:
        """The first case's pictures, by the methods' names."""
        return self._kept

    # What is compared

    def _choose_methods(self) -> list[Method]:
        steps, wishes = self._settings.steps, self._wishes
        plain = methods.reference(steps)
        cached = [methods.h2(cache, steps) for cache in wishes.caches]
        self._watcher.began("Warming up")
        self._shoot(replace(plain, steps=min(2, steps)), 0)
        self._watcher.began("Timing a first picture of each")
        seconds, shares = self._first_times([plain, replace(plain, name="one", steps=1), *cached])
        chosen = [plain, *cached]
        counts = set(wishes.fewer)
        if wishes.baselines:
            counts |= {equal_steps(seconds["uncached"], seconds["one"], seconds[each.name], steps) for each in cached}
        if steps in counts:
            self._notices.append(f"The cached run takes as long as all {steps} steps: there are no fewer to compare.")
        for count in sorted(counts - {steps}, reverse=True):
            chosen += [methods.fewer(count, steps), methods.solver(count, steps)]
            self._shoot(methods.solver(min(2, count), steps), 0)
        for each in wishes.peers:
            chosen += self._settled(each, [shares[method.name] for method in cached])
        if wishes.truth:
            chosen.append(methods.truth(steps))
        unique = {method.name: method for method in chosen}
        return list(unique.values())

    def _first_times(self, candidates: Sequence[Method]) -> tuple[dict[str, float], dict[str, float]]:
        """Median seconds and mean share of each on the first cases."""
        times: dict[str, list[float]] = {method.name: [] for method in candidates}
        shares: dict[str, list[float]] = {method.name: [] for method in candidates}
        for case in range(min(_CALIBRATING, len(self._cases))):
            for method in candidates:
                made = self._shoot(method, case)
                times[method.name].append(made.seconds)
                shares[method.name].append(made.share)
        return (
            {name: statistics.median(each) for name, each in times.items()},
            {name: statistics.fmean(each) for name, each in shares.items()},
        )

    def _settled(self, candidate: Peer, targets: Sequence[float]) -> Iterator[Method]:
        """A peer at equal cost with each cached run; runs that cost nearly the same share one."""
        steps = self._settings.steps
        self._watcher.began(f"Finding the setting of {candidate.title} that costs as much")
        cases = range(min(_SEARCHING, len(self._cases)))

        def measure(one: Peer, value: Value) -> float:
            around = lambda pipe: one.applied(pipe, value, steps=steps, passes=self._passes)  # noqa: E731
            method = Method(one.name, one.title, "peer", steps, around=around)
            return statistics.fmean(self._shoot(method, case).share for case in cases)

        try:
            plain = methods.reference(steps)
            ready = candidate.calibrated(self._session.pipe, lambda: self._shoot(plain, 0), steps=steps)
            for target in _apart(targets):
                found = settle(ready, target, measure, steps=steps, cases=len(cases))
                if not found.reached:
                    self._notices.append(
                        f"{candidate.title} does not come nearer to {target:.0%} of the blocks than {found.share:.0%}."
                    )
                yield methods.peer(found, steps, self._passes)
        except (BadPicture, CacheError) as error:
            self._notices.append(f"{candidate.title} is left out: {error}")
            return
        if candidate.note:
            self._notices.append(f"{candidate.title}: {candidate.note}")

    # How it is measured

    def _repeats(self, method: Method) -> int:
        return 1 if method.kind == "truth" else self._wishes.repeat

    def _measure(self, case: int) -> None:
        """Make one case's pictures by every method, in turn."""
        made: dict[str, list[_Made]] = {tally.method.name: [] for tally in self._tallies}
        for repeat in range(self._wishes.repeat):
            for tally in self._tallies:
                if repeat < self._repeats(tally.method):
                    one = self._shoot(tally.method, case)
                    self._watcher.ran(tally.method, case, one.seconds)
                    made[tally.method.name].append(one)
        plain = made["uncached"][0].image
        true = made["truth"][0].image if "truth" in made else None
        shots = [self._shot(tally.method, case, made[tally.method.name], plain, true) for tally in self._tallies]
        for tally, shot in zip(self._tallies, shots, strict=True):
            tally.shots.append(shot)
            self._watcher.scored(tally.method, shot)
            if case == 0:
                self._kept[tally.method.name] = made[tally.method.name][0].image

    def _shot(
        self, method: Method, case: int, made: Sequence[_Made], plain: Image.Image, true: Image.Image | None
    ) -> Shot:
        image, prompt = made[0].image, self._cases[case].prompt
        picture = ""
        if self._folder is not None:
            picture = f"pictures/{case:03}-{method.name.replace(' ', '-')}.png"
            path = self._folder / picture
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(image, "png"))
        against_truth = {} if true is None or method.kind == "truth" else self._metrics.measure(image, true, prompt)
        fidelity = {info.name for info in self._metrics.infos if info.fidelity}
        return Shot(
            case=case,
            picture=picture,
            scores=self._metrics.measure(image, plain, prompt),
            truth_scores={name: value for name, value in against_truth.items() if name in fidelity},
            seconds=tuple(one.seconds for one in made),
            share=made[0].share,
            identical=bool(np.array_equal(np.asarray(image), np.asarray(plain))),
            trace=made[0].trace,
        )

    def _shoot(self, method: Method, case: int) -> _Made:
        """One picture."""
        where = self._cases[case]
        settings = replace(self._settings, prompt=where.prompt, seed=where.seed, steps=method.steps, cache=method.cache)
        with ExitStack() as stack:
            counted: BlockCount | None = None
            if method.kind == "peer":
                counted = stack.enter_context(count_blocks(self._session.pipe.transformer))
            stack.enter_context(method.around(self._session.pipe))
            result = self._session.run(settings)
        if result.uncached:
            self._notices.append(f"{method.label}: {where.prompt!r} came out as NaN, and was made without the cache.")
        share = 1.0 if method.share is None else method.share
        if counted is not None:
            share = counted.share
        elif method.cache.enabled and result.trace is not None:
            share = result.trace.summary.share
        steps = tuple(result.trace.steps) if result.trace is not None else ()
        return _Made(result.image, result.seconds, share, steps)

    # What it came to

    def _results(self, finished: int) -> list[MethodResult]:
        plain = timing(second for shot in self._tallies[0].shots[:finished] for second in shot.seconds)
        results = []
        for tally in self._tallies:
            shots = tuple(tally.shots[:finished])
            seconds = timing(second for shot in shots for second in shot.seconds)
            results.append(
                MethodResult(
                    name=tally.method.name,
                    label=tally.method.label,
                    kind=tally.method.kind,
                    detail=tally.method.detail,
                    steps=tally.method.steps,
                    share=statistics.fmean(shot.share for shot in shots),
                    seconds=seconds,
                    speedup=plain.median / seconds.median,
                    scores=self._scores([shot.scores for shot in shots]),
                    truth_scores=self._scores([shot.truth_scores for shot in shots]),
                    identical=sum(shot.identical for shot in shots),
                    pareto=False,
                    shots=shots,
                )
            )
        first = next((info for info in self._metrics.infos if info.fidelity), self._metrics.infos[0])
        best = best_of(results, first)
        return [replace(result, pareto=result.name in best) for result in results]

    def _scores(self, shots: Sequence[Mapping[str, float]]) -> dict[str, Any]:
        return {
            info.name: score([scores[info.name] for scores in shots], info.higher_is_better)
            for info in self._metrics.infos
            if all(info.name in scores for scores in shots)
        }


_SHARED = ("width", "height", "steps", "guidance", "cfg", "negative", "max_sequence_length")


@dataclass(frozen=True)
class _Made:
    image: Image.Image
    seconds: float
    share: float
    trace: tuple[StepRecord, ...]


def equal_steps(whole: float, one: float, cached: float, steps: int) -> int:
    """How many plain steps take as long as a cached run.

    Args:
        whole: seconds of a plain run of ``steps`` steps.
        one: seconds of a plain run of one step: text encoding and decoding are in each run, however few its steps.
        cached: seconds of the cached run.
        steps: of the whole run.
    """
    if steps == 1 or whole <= one:
        return steps
    each = (whole - one) / (steps - 1)
    return min(steps, max(1, round(1 + (cached - one) / each)))


def _apart(shares: Sequence[float]) -> list[float]:
    """Shares that differ by 2 % of all blocks or more; of those that do not, the first."""
    kept: list[float] = []
    for share in shares:
        if all(abs(share - other) >= 0.02 for other in kept):
            kept.append(share)
    return kept
