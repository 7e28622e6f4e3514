"""Does a threshold mean the same at every size? The spread of the changes at equal sigma over five sizes.

    python tools/measure_pfs.py                       # on the bundled model, 64 to 256 pixels
    python tools/measure_pfs.py --model dev --sizes 512x512,768x768,1024x1024,1536x1024,2048x2048

Every step is computed, and every change is measured against the step before, at the sigmas of the first size; where a
schedule shifts with the size, a change is interpolated between the two neighbouring sigmas. The spread at a sigma is
the largest change over all sizes divided by the smallest; its geometric mean over the steps and its worst are
printed, for the paper's PFS and for the stable one. A threshold that is right at one size is off by up to this factor
at another.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
from collections.abc import Sequence

import h2gen
from h2gen.settings.sizes import parse_size

NEVER = 1e-12
"""A threshold below every change."""
PROMPTS = ("a cat", "a birthday cake", "a car", "a butterfly", "a strawberry", "a house")
SIZES = "64x64,96x96,128x128,192x128,256x256"
STAGES = ("structure", "detail")

Curve = list[tuple[float, float]]
"""Pairs of sigma and change, by falling sigma."""


def curves(session: h2gen.Session, pfs: str, size: str, prompts: Sequence[str], steps: int | None) -> list[Curve]:
    """Each stage's change from step to step: the mean over several pictures and both passes of guidance."""
    width, height, _ = parse_size(size, session.checkpoint.defaults)
    cache = h2gen.CacheConfig(NEVER, NEVER, pfs=pfs)
    found: tuple[dict[float, list[float]], ...] = ({}, {})
    for seed, prompt in enumerate(prompts):
        trace = session.generate(prompt, seed=seed, width=width, height=height, steps=steps, cache=cache).trace
        assert trace is not None
        for step in trace.steps:
            for stage, changes in zip(STAGES, found, strict=True):
                change = getattr(step, stage).change
                if change is not None:
                    changes.setdefault(step.sigma, []).append(change)
    return [[(sigma, statistics.mean(values)) for sigma, values in changes.items()] for changes in found]


def at(curve: Curve, sigma: float) -> float | None:
    """The change at a sigma; None outside the curve."""
    for (before, high), (after, low) in itertools.pairwise(curve):
        if after <= sigma <= before:
            share = (before - sigma) / (before - after)
            return high + share * (low - high)
    return None


def spreads(of_sizes: Sequence[Curve]) -> list[float]:
    """Largest change divided by the smallest, at each sigma of the first size that all sizes reach."""
    found = []
    for sigma, _ in of_sizes[0]:
        changes = [change for curve in of_sizes if (change := at(curve, sigma)) is not None]
        if len(changes) == len(of_sizes):
            found.append(max(changes) / min(changes))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--sizes", default=SIZES)
    parser.add_argument("--prompts", type=int, default=len(PROMPTS))
    parser.add_argument("--steps", type=int)
    options = parser.parse_args()
    session = h2gen.load(options.model)
    sizes = options.sizes.split(",")
    print("pfs     stage      " + "".join(f"{size:>11s}" for size in sizes) + "   spread   worst")
    for pfs in ("paper", "stable"):
        measured = [curves(session, pfs, size, PROMPTS[: options.prompts], options.steps) for size in sizes]
        for index, stage in enumerate(STAGES):
            of_sizes = [each[index] for each in measured]
            means = "".join(f"{statistics.mean(change for _, change in curve):11.4f}" for curve in of_sizes)
            found = spreads(of_sizes)
            spread = math.exp(statistics.mean(map(math.log, found)))
            print(f"{pfs:7s} {stage:10s} {means}   {spread:5.2f}x   {max(found):5.2f}x", flush=True)


if __name__ == "__main__":
    main()
