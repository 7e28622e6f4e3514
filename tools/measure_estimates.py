"""Does a tolerance mean the same error everywhere? The displacement that skipped steps caused, against its estimate.

    python tools/measure_estimates.py --svg docs/images/estimates.svg

For every skipped step of some pictures, the model is asked afterwards what the velocity would have been there. The
displacement that a run of skipped steps has caused so far, in sigma times the velocity's size, is then known, and is
printed and drawn against the estimate that was compared with the tolerance. With true guidance the displacement is that
of the guided velocity, while the estimate is made for each pass separately.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

import h2gen
from h2gen.evaluation.builtin_prompts import CHECKING
from h2gen.evaluation.charts.svg import Box, document, escape, legend, n
from h2gen.settings.sizes import parse_size

SITUATIONS = (
    ("28 steps, guidance 3, 128x128", "structure", {"steps": 28, "cfg": 3.0}, "128x128"),
    ("28 steps, guidance 5, 192x192", "guarded", {"steps": 28, "cfg": 5.0}, "192x192"),
    ("50 steps, no guidance, 128x128", "detail", {"steps": 50, "cfg": 1.0}, "128x128"),
)
"""Where it is measured, and the colour of each."""
TOLERANCES = (0.01, 0.03)
DECADES = -4, -1
"""The chart's range, as powers of ten."""


class Point(NamedTuple):
    """One skipped step: the displacement of the run so far, estimated and real."""

    estimate: float
    real: float


@torch.no_grad()
def points(session: h2gen.Session, prompt: str, seed: int, size: str, tolerance: float, **more: Any) -> list[Point]:
    """All skipped steps of a picture."""
    width, height, _ = parse_size(size, session.checkpoint.defaults)
    transformer, calls, cfg = session.pipe.transformer, list[tuple[tuple[Any, ...], dict[str, Any], Any]](), more["cfg"]
    handles: list[Any] = []

    def note(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls.append((args, dict(kwargs), output[0]))

    def begin(*_: Any) -> None:
        if len(handles) == 1:  # the cache is on by now, and what it returns is what is noted
            handles.append(transformer.register_forward_hook(note, with_kwargs=True))

    handles.append(transformer.register_forward_pre_hook(begin))
    try:
        cache = h2gen.CacheConfig(tolerance=tolerance)
        result = session.generate(prompt, seed=seed, width=width, height=height, cache=cache, **more)
    finally:
        for handle in handles:
            handle.remove()
    assert result.trace is not None
    steps = [step for step in result.trace.steps if step.context == "cond"]
    passes = len(calls) // len(steps)
    ends = [*(step.sigma for step in steps[1:]), 0.0]

    def guided(outputs: Sequence[torch.Tensor]) -> torch.Tensor:
        return outputs[0] if len(outputs) == 1 else outputs[1] + cfg * (outputs[0] - outputs[1])

    found, displaced, length = list[Point](), torch.zeros(1), 1.0
    for index, step in enumerate(steps):
        here = calls[index * passes : (index + 1) * passes]
        used = guided([output for *_, output in here])
        if not step.skipped:
            displaced, length = torch.zeros_like(used), float(used.abs().mean())
            continue
        true = guided([transformer(*args, **kwargs)[0] for args, kwargs, _ in here])
        displaced = displaced + (ends[index] - step.sigma) * (used - true)
        if step.error:
            found.append(Point(step.error, float(displaced.abs().mean()) / length))
    return found


def chart(series: Sequence[tuple[str, str, list[Point]]]) -> str:
    """All points on logarithmic axes, with the line on which estimate and displacement are equal."""
    low, high = DECADES
    box = Box(64, 84, 620, 468, low, high, low, high)
    parts: list[str] = []
    for power in range(low, high + 1):
        label = f"{10.0**power:g}"
        parts.append(f'<path class="grid" d="M{n(box.x(power))} {n(box.top)}V{n(box.bottom)}"/>')
        parts.append(f'<path class="grid" d="M{n(box.left)} {n(box.y(power))}H{n(box.right)}"/>')
        parts.append(f'<text class="muted mid" x="{n(box.x(power))}" y="{n(box.bottom + 18)}">{label}</text>')
        parts.append(f'<text class="muted end" x="{n(box.left - 8)}" y="{n(box.y(power) + 4)}">{label}</text>')
    parts.append(f'<path class="best" d="M{n(box.x(low))} {n(box.y(low))}L{n(box.x(high))} {n(box.y(high))}"/>')
    entries = []
    for label, colour, found in series:
        dots = "".join(
            f"M{n(box.x(math.log10(one.estimate)))} {n(box.y(math.log10(one.real)))}h0"
            for one in found
            if low <= math.log10(one.estimate) <= high and low <= math.log10(max(one.real, 1e-12)) <= high
        )
        style = f'style="stroke:var(--c-{colour});opacity:.6"'
        parts.append(f'<path class="dots" {style} d="{dots}"/>')
        entries.append((f'<path class="dots" {style} d="M6 0h0"/>', label, 12.0))
    words = "Displacement of the picture by skipped steps: estimated (across) and real (up)"
    parts.append(f'<text x="{n(box.left)}" y="20">{escape(words)}</text>')
    parts += legend(entries, box.left, 40, box.right)[0]
    return document(640, 500, words, parts, standalone=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--svg", type=Path)
    options = parser.parse_args()
    session = h2gen.load("tiny")
    series = []
    print(f"{'':32s} skipped steps  real / estimate: median, a tenth below, a tenth above")
    for label, colour, settings, size in SITUATIONS:
        found = [
            point
            for seed, prompt in enumerate(CHECKING[: options.prompts])
            for tolerance in TOLERANCES
            for point in points(session, prompt, 2000 + seed, size, tolerance, **settings)
        ]
        ratios = sorted(point.real / point.estimate for point in found)
        tenths = statistics.quantiles(ratios, n=10)
        print(
            f"{label:32s} {len(found):8d}  {statistics.median(ratios):14.2f}, {tenths[0]:.2f}, {tenths[-1]:.2f}",
            flush=True,
        )
        series.append((label, colour, found))
    if options.svg is not None:
        options.svg.write_text(chart(series), encoding="utf-8")


if __name__ == "__main__":
    main()
