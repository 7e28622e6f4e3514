"""What a search found, judged on prompts that it did not see, and made into a profile."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from h2gen.errors import SettingError
from h2gen.evaluation.methods import Method
from h2gen.evaluation.results import IDENTICAL, Case, Comparison, MethodResult, Shot, pareto
from h2gen.evaluation.tune.measurement_log import MeasurementLog
from h2gen.settings.profiles import Choice, Figures, Profile, ProfileKey
from h2gen.settings.values import OFF


class Remembered:
    """Shots of a comparison in a notebook, so that one that was stopped goes on; without their traces.

    Args:
        notebook: where they are written down.
        cases: of the comparison.
    """

    def __init__(self, notebook: MeasurementLog, cases: Sequence[Case]) -> None:
        self._notebook, self._cases = notebook, cases

    def recall(self, case: int, methods: Sequence[Method]) -> Sequence[Shot] | None:
        found = self._notebook.recall(self._key(case, methods))
        return None if found is None else [_shot(case, each) for each in found]

    def keep(self, case: int, methods: Sequence[Method], shots: Sequence[Shot]) -> None:
        self._notebook.get(self._key(case, methods), lambda: [_plain(shot) for shot in shots])

    def _key(self, case: int, methods: Sequence[Method]) -> str:
        names = "\n".join(method.name for method in methods)
        where = self._cases[case]
        return json.dumps(["check", hashlib.sha256(names.encode()).hexdigest(), where.prompt, where.seed])


def _plain(shot: Shot) -> dict[str, Any]:
    whole = {name: value for name, value in asdict(shot).items() if name != "trace"}
    whole["scores"] = {name: min(value, IDENTICAL) for name, value in shot.scores.items()}
    return whole


def _shot(case: int, found: Mapping[str, Any]) -> Shot:
    return Shot(**{**found, "case": case, "seconds": tuple(found["seconds"])})


def profile_of(
    comparison: Comparison, methods: Sequence[Method], situation: ProfileKey, path: Path, more: Mapping[str, Any]
) -> Profile:
    """A curve of those methods that no other of their sort beats in both share of blocks and mean SSIM.

    Of two sorts: those that decide beforehand (plans, fewer steps), and those that adapt to each picture.

    Args:
        comparison: of the methods and the uncached run, with PSNR and SSIM.
        methods: what was compared.
        situation: what the profile is for.
        path: where it will lie.
        more: what else its reader should know of the measurement.

    Raises:
        SettingError: no method runs fewer blocks than the uncached run.
    """
    by_name = {method.name: method for method in methods}
    results = [result for result in comparison.methods if result.name in by_name and result.share < 1]
    if not results:
        raise SettingError("Nothing that was tried runs fewer blocks than the uncached run.")
    choices = []
    for adapting in (False, True):
        sort = [result for result in results if _adapts(by_name[result.name]) is adapting]
        best = pareto([(result.share, result.scores["ssim"].mean) for result in sort])
        choices += [_choice(by_name[r.name], r) for r, worth in zip(sort, best, strict=True) if worth]
    measured = {
        "pictures": len(comparison.cases),
        "device": comparison.model["device"],
        "dtype": comparison.model["dtype"],
        "guidance": comparison.settings["guidance"],
        "cfg": comparison.settings["cfg"],
        "seconds_uncached": round(comparison.reference.seconds.median, 4),
        "made": comparison.made,
        "versions": dict(comparison.versions),
        **more,
    }
    return Profile(path, situation, tuple(sorted(choices, key=lambda choice: -choice.figures.speedup)), measured)


def _adapts(method: Method) -> bool:
    return method.cache.enabled and not method.cache.plan


def _choice(method: Method, result: MethodResult) -> Choice:
    cache = method.cache if method.cache.enabled else OFF
    scores = result.scores
    return Choice(
        method.label,
        method.steps,
        method.solver,
        cache,
        Figures(
            share=result.share,
            seconds=result.seconds.median,
            speedup=result.speedup,
            ssim_mean=scores["ssim"].mean,
            ssim_worst=scores["ssim"].worst,
            psnr_mean=min(scores["psnr"].mean, IDENTICAL),
            psnr_worst=min(scores["psnr"].worst, IDENTICAL),
        ),
    )
