"""The results as JSON and as Markdown."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.gpu.process import Figure, Result

STATUS = {"done": "", "failed": " (failed)", "killed": " (killed at its limit)", "running": " (still running)"}


def write(folder: Path, machine: Mapping[str, Any], results: Sequence[Result], seconds: float) -> None:
    """Write ``results.json`` and ``results.md``; a reader finds the old or the new file, never half of one."""
    whole = {"machine": dict(machine), "seconds": round(seconds, 1), "parts": [each.to_json() for each in results]}
    _replace(folder / "results.json", json.dumps(whole, indent=1) + "\n")
    _replace(folder / "results.md", markdown(machine, results, seconds))


def markdown(machine: Mapping[str, Any], results: Sequence[Result], seconds: float) -> str:
    figures = [figure for result in results for figure in result.figures if figure.met is not None]
    met = sum(figure.met is True for figure in figures)
    lines = ["# A day with a GPU", "", "; ".join(f"{key} {value}" for key, value in machine.items()) + ".", ""]
    lines += [f"{seconds:.0f} s; {met} of {len(figures)} aims met.", ""]
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


def _row(figure: Figure) -> str:
    mark = {None: "", True: "met", False: "missed"}[figure.met]
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
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
