"""The results as JSON and as Markdown."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.gpu.process import Figure, Result

STATUS = {"done": "", "failed": " (failed)", "killed": " (killed at its limit)", "running": " (still running)"}


def write(folder: Path, machine: Mapping[str, Any], results: Sequence[Result]) -> None:
    """Write ``results.json`` and ``results.md``; a reader finds the old or the new file, never half of one."""
    whole = {"machine": dict(machine), "parts": [each.to_json() for each in results]}
    _replace(folder / "results.json", json.dumps(whole, indent=1) + "\n")
    _replace(folder / "results.md", markdown(machine, results))


def read(folder: Path) -> tuple[dict[str, Any], list[Result]]:
    """The machine and the results that ``write`` has written. A part that was running was killed with its run.

    Raises:
        ValueError: another program has written them.
    """
    try:
        whole = json.loads((folder / "results.json").read_text("utf-8"))
        results = [
            Result(**{**part, "figures": [Figure(**each) for each in part["figures"]]}) for part in whole["parts"]
        ]
        machine = dict(whole["machine"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'results.json'} is not a file of this command; give another folder.") from error
    for result in results:
        if result.status == "running":
            result.status, result.error = "failed", ["The run ended while this part was running."]
    return machine, results


def markdown(machine: Mapping[str, Any], results: Sequence[Result]) -> str:
    lines = ["# A day with a GPU", "", "; ".join(f"{key} {value}" for key, value in machine.items()) + ".", ""]
    lines += [summary(results), ""]
    for result in results:
        lines += [f"## {result.name}{STATUS[result.status]}", ""]
        lines += [f"{result.title}: {result.seconds:.0f} s of {result.limit:.0f} s.", ""]
        if result.figures:
            lines += [
                "| figure | value | of a full step | aim | |",
                "|---|---|---|---|---|",
                *map(_row, result.figures),
                "",
            ]
        if result.error:
            lines += ["```text", *result.error, "```", ""]
    return "\n".join(lines)


def summary(results: Sequence[Result]) -> str:
    """``95 s; 5 of 7 aims met; not done: fp8 (failed).``"""
    judged = [figure.met for result in results for figure in result.figures if figure.met is not None]
    parts = [f"{sum(result.seconds for result in results):.0f} s"]
    parts.append(f"{sum(judged)} of {len(judged)} aims met" if judged else "no aims judged")
    if undone := [f"{result.name}{STATUS[result.status]}" for result in results if result.status != "done"]:
        parts.append(f"not done: {', '.join(undone)}")
    return "; ".join(parts) + "."


def _row(figure: Figure) -> str:
    mark = {None: "not judged" if figure.aim else "", True: "met", False: "missed"}[figure.met]
    share = "" if figure.share is None else f"{100 * figure.share:.3g} %"
    return f"| {_cell(figure.name)} | {_cell(value(figure))} | {share} | {figure.aim} | {mark} |"


def value(figure: Figure) -> str:
    """A figure's value with its unit: ``231 ms``, ``0.21 %``, ``2.47 x``."""
    number = figure.value
    if isinstance(number, str):
        return number
    if figure.unit == "%":
        return f"{100 * number:.3g} %"
    if figure.unit == "s" and number < 1:
        return f"{1000 * number:.4g} ms"
    shown = str(number) if isinstance(number, int) else f"{number:.4g}"
    return f"{shown} {figure.unit}".strip()


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _replace(path: Path, text: str) -> None:
    partial = path.with_suffix(path.suffix + ".part")
    partial.write_text(text, encoding="utf-8", errors="backslashreplace")
    os.replace(partial, path)
