"""Every method makes the picture of every case: timed in turn, compared with the uncached one, and written down.

Clocks are read around whole calls of the pipeline, the device synchronised, the text encoded before. Methods take
turns, so that a machine that becomes slower is slower for all of them; what runs for the first time is left out.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from h2gen.errors import BadPicture, RunError, SettingError
from h2gen.evaluation.equal_cost import Choosing
from h2gen.evaluation.make_image import ImageMaker, MadeImage
from h2gen.evaluation.methods import Method
from h2gen.evaluation.metrics import MetricInfo, Metrics
from h2gen.evaluation.options import CompareObserver, CompareOptions
from h2gen.evaluation.peers import TOLERANCE
from h2gen.evaluation.results import VERSION, Case, Comparison, MethodResult, Shot, best_of, score, timing
from h2gen.generation.session import Session
from h2gen.output.metadata import origin, versions
from h2gen.output.save import encode
from h2gen.settings.values import Settings

_SHARED = ("width", "height", "steps", "guidance", "cfg", "negative", "max_sequence_length")

Choice = Callable[[Sequence[MethodResult], Sequence[MetricInfo]], str]
"""Picks the name of the method that is shown first."""


class Memory(Protocol):
    """Whoever remembers figures across runs of the program, so that one that was stopped can go on."""

    def recall(self, case: int, methods: Sequence[Method]) -> Sequence[Shot] | None:
        """The shots of a case, one a method, if it was measured before with these methods."""

    def keep(self, case: int, methods: Sequence[Method], shots: Sequence[Shot]) -> None:
        """A case is measured."""


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
        metrics: what pictures are judged by; the first of fidelity is the one that decides what is Pareto-best.
        wishes: see there.
        watcher: is told how it goes on.
        memory: of cases that were measured before; their pictures are not made again. None has none.
        folder: of the report, where every picture is written to ``pictures/CASE-METHOD.png``; None keeps none.
    """

    def __init__(
        self,
        session: Session,
        cases: Sequence[Case],
        settings: Settings,
        metrics: Metrics,
        wishes: CompareOptions,
        *,
        watcher: CompareObserver,
        folder: Path | None = None,
        memory: Memory | None = None,
    ) -> None:
        self._session, self._cases, self._settings = session, tuple(cases), settings
        self._metrics, self._wishes, self._watcher, self._folder = metrics, wishes, watcher, folder
        self._memory = memory
        self._maker = ImageMaker(session, self._cases, settings)
        self._tallies: list[_Tally] = []
        self._notices: list[str] = list(metrics.notices)
        self._kept: dict[str, Image.Image] = {}

    @property
    def finished(self) -> int:
        """Cases that every method has made."""
        return min((len(tally.shots) for tally in self._tallies), default=0)

    @property
    def pictures(self) -> Mapping[str, Image.Image]:
        """The first case's pictures, by the methods' names."""
        return self._kept

    def run(self) -> None:
        """Make and measure every picture. A method that fails is left out, and a notice says so.

        Raises:
            H2GenError: an uncached picture could not be made, or a picture could not be written; ``result`` has the
                cases that were finished before.
            KeyboardInterrupt: the session was interrupted; the same.
        """
        choosing = Choosing(self._maker, self._wishes, self._watcher)
        chosen = choosing.methods()
        self._notices += choosing.notices
        self._tallies = [_Tally(method) for method in chosen]
        self._watcher.planned(chosen, len(self._cases) * sum(map(self._repeats, chosen)))
        for index in range(len(self._cases)):
            known = None if self._memory is None else self._memory.recall(index, [t.method for t in self._tallies])
            if known is None:
                self._measure(index)
            else:
                for tally, shot in zip(self._tallies, known, strict=True):
                    self._add(tally, shot)

    def result(self, chosen: Choice, content_hash: str = "") -> Comparison:
        """All figures so far.

        Args:
            chosen: picks the method that is shown first.
            content_hash: of the model, as ``h2gen.models.content_hash`` computes it.

        Raises:
            SettingError: no case is finished.
        """
        finished = self.finished
        if not finished:
            raise SettingError("Nothing has been compared yet.")
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
            notices=(*self._notices, *self._remarks(results, finished)),
            chosen=chosen(results, self._metrics.infos),
        )

    # How it is measured

    def _repeats(self, method: Method) -> int:
        return 1 if method.kind == "truth" else self._wishes.repeat

    def _measure(self, case: int) -> None:
        """Make one case's pictures by every method, in turn, another one first each time."""
        made: dict[str, list[MadeImage]] = {tally.method.name: [] for tally in self._tallies}
        for repeat in range(self._wishes.repeat):
            start = (case + repeat) % len(self._tallies)
            for tally in self._tallies[start:] + self._tallies[:start]:
                if repeat < self._repeats(tally.method) and tally in self._tallies:
                    one = self._attempt(tally, case)
                    if one is not None:
                        made[tally.method.name].append(one)
        plain = made["uncached"][0].image
        true = made["truth"][0].image if "truth" in made else None
        shots = [self._shot(tally.method, case, made[tally.method.name], plain, true) for tally in self._tallies]
        for tally, shot in zip(self._tallies, shots, strict=True):
            self._add(tally, shot)
            if case == 0:
                self._kept[tally.method.name] = made[tally.method.name][0].image
        if self._memory is not None:
            self._memory.keep(case, [tally.method for tally in self._tallies], shots)

    def _add(self, tally: _Tally, shot: Shot) -> None:
        tally.shots.append(shot)
        self._watcher.scored(tally.method, shot)

    def _attempt(self, tally: _Tally, case: int) -> MadeImage | None:
        """One run; None where the method failed, which is then left out with all its pictures."""
        method = tally.method
        try:
            one = self._maker.make(method, case)
        except BadPicture as error:
            if method.kind in ("reference", "truth"):
                raise
            self._leave_out(tally, error)
            return None
        except Exception as error:
            if method.kind != "peer":
                raise
            self._leave_out(tally, error)  # somebody else's code; the others are still to be compared
            return None
        self._watcher.ran(method, case, one.seconds)
        return one

    def _leave_out(self, tally: _Tally, error: Exception) -> None:
        self._tallies = [other for other in self._tallies if other is not tally]
        self._notices.append(f"{tally.method.label} is left out: {str(error) or type(error).__name__}")

    def _shot(
        self, method: Method, case: int, made: Sequence[MadeImage], plain: Image.Image, true: Image.Image | None
    ) -> Shot:
        image, prompt = made[0].image, self._cases[case].prompt
        against_truth = {} if true is None or method.kind == "truth" else self._metrics.measure(image, true, prompt)
        fidelity = {info.name for info in self._metrics.infos if info.fidelity}
        return Shot(
            case=case,
            picture="" if self._folder is None else self._written(image, method, case, self._folder),
            scores=self._metrics.measure(image, plain, prompt),
            truth_scores={name: value for name, value in against_truth.items() if name in fidelity},
            seconds=tuple(one.seconds for one in made),
            share=made[0].share,
            identical=bool(np.array_equal(np.asarray(image), np.asarray(plain))),
            trace=made[0].trace,
        )

    def _written(self, image: Image.Image, method: Method, case: int, folder: Path) -> str:
        """Keep a picture for the report; returns its path within it."""
        picture = f"pictures/{case:03}-{method.name.replace(' ', '-')}.png"
        try:
            (folder / picture).parent.mkdir(parents=True, exist_ok=True)
            (folder / picture).write_bytes(encode(image, "png"))
        except OSError as error:
            raise RunError(
                f"The picture {picture!r} could not be written to {str(folder)!r}: {error.strerror or error}."
            ) from error
        return picture

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

    def _remarks(self, results: Sequence[MethodResult], finished: int) -> list[str]:
        """What the figures themselves show to be amiss."""
        remarks = []
        shares = [result.share for result in results if result.kind == "h2"]
        for result in results:
            off = min((result.share - share for share in shares), key=abs, default=0.0)
            if result.kind == "peer" and abs(off) > TOLERANCE:
                remarks.append(f"{result.label} runs {result.share:.1%} of the blocks, {off:+.1%} from H2-Cache's.")
        if finished < len(self._cases):
            remarks.append(f"Stopped after {finished} of {len(self._cases)} pictures of each method.")
        return remarks
