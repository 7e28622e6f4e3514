"""Measure what batches save on the bundled model, and what deciding for each picture costs or saves.

    python tools/measure_together.py                       # 28 steps, 8 prompts, 1, 2, 4 and 8 at once
    python tools/measure_together.py --sizes 1,4 --prompts 12

Prints processor seconds per picture, the best of ``--repeat`` interleaved rounds. "one" makes one decision for the
whole batch, as the paper does. PSNR is the worst one, against the picture made alone with the same settings.
"""

from __future__ import annotations

import argparse
import math
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest.mock import patch

import h2gen
from h2gen.cache.inputs import Inputs
from h2gen.evaluation.metrics.psnr_ssim import psnr
from h2gen.settings.presets import load_preset
from tools.choose_presets import PROMPTS


class Inseparable(Inputs):
    """Inputs whose pictures cannot be decided separately."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.separable = False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--sizes", default="1,2,4,8")
    parser.add_argument("--presets", default="off,balanced,paper")
    parser.add_argument("--repeat", type=int, default=2)
    options = parser.parse_args()
    session = h2gen.load("tiny")
    rows = [
        (preset, size, whole)
        for preset in options.presets.split(",")
        for size in sorted({1, *map(int, options.sizes.split(","))})
        for whole in ((False, True) if size > 1 and preset != "off" else (False,))
    ]
    seconds = dict.fromkeys(rows, math.inf)
    results: dict[tuple[str, int, bool], list[h2gen.Result]] = {}
    for _ in range(options.repeat):
        for row in rows:
            preset, size, whole = row
            cache = load_preset(preset).config
            settings = [
                session.settings(prompt, cache, seed=100 + index, steps=options.steps)
                for index, prompt in enumerate(PROMPTS[: options.prompts])
            ]
            session.run_together(settings[:1])  # fill the processor's caches
            deciding: AbstractContextManager[Any] = nullcontext()
            if whole:
                deciding = patch("h2gen.cache.hooks.Inputs", Inseparable)
            with deciding:
                started = time.process_time()
                results[row] = [
                    result
                    for first in range(0, len(settings), size)
                    for result in session.run_together(settings[first : first + size])
                ]
                seconds[row] = min(seconds[row], (time.process_time() - started) / len(settings))
    print(f"{'preset':10s} at once  decision  s/picture  faster  share  PSNR to alone")
    for row in rows:
        preset, size, whole = row
        pairs = zip(results[row], results[preset, 1, False], strict=True)
        worst = min(psnr(result.image, alone.image) for result, alone in pairs)
        shares = [result.trace.summary.share for result in results[row]]
        print(
            f"{preset:10s} {size:7d}  {'one' if whole else 'each':8s} {seconds[row]:10.3f}  "
            f"{seconds[preset, 1, False] / seconds[row]:5.2f}x {sum(shares) / len(shares):6.3f}  {worst:10.1f} dB"
        )


if __name__ == "__main__":
    main()
