"""Measure cache settings on the bundled model: how close the picture stays, and the share of blocks that run.

    python tools/choose_presets.py                 # the grid that the shipped presets were chosen from
    python tools/choose_presets.py --presets       # the shipped presets, as their files quote them

PSNR is against the uncached picture, in dB, over the same prompts and seeds; 'worst' is the worst picture. Time is the
whole call of the pipeline, interleaved with uncached calls; the grid leaves it out.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
from collections.abc import Iterator

import h2gen
from h2gen.evaluation.metrics.psnr_ssim import psnr, ssim
from h2gen.settings.presets import list_presets

PROMPTS = (
    "a cat", "a dog", "a red apple", "a birthday cake", "a butterfly", "a car", "a 3d render of a horse",
    "a flat icon of a mushroom", "a cartoon of a pizza", "a tiger on a blue background", "a strawberry",
    "a cat beside a red apple",
)  # fmt: skip


def grid() -> Iterator[tuple[str, h2gen.CacheConfig]]:
    for tolerance in (0.0003, 0.0005, 0.0007, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.007, 0.01):
        yield "-", h2gen.CacheConfig(0, 0, tolerance=tolerance)
    for tau1, tau2 in itertools.product((0.06, 0.1, 0.15, 0.2), (0.12, 0.17, 0.22)):
        yield "-", h2gen.CacheConfig(tau1, tau2, 3, 1)
        yield "-", h2gen.CacheConfig(tau1, tau2, 3, 1, tolerance=0.001, forecast=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", action="store_true")
    parser.add_argument("--prompts", type=int, default=len(PROMPTS))
    options = parser.parse_args()
    session = h2gen.load("tiny")
    candidates = [(p.name, p.config) for p in list_presets()] if options.presets else list(grid())
    prompts = [(prompt, 100 + seed) for seed, prompt in enumerate(PROMPTS[: options.prompts])]
    session.generate("a cat", seed=0, cache=None)  # warm up

    plain: dict[str, h2gen.Result] = {
        prompt: session.generate(prompt, seed=seed, cache=None) for prompt, seed in prompts
    }
    print(f"{'preset':10s} {'settings':40s} share  estimate  time   psnr  worst  1-ssim")
    for name, config in candidates:
        noise, structure, shares, speedups = [], [], [], []
        for prompt, seed in prompts:
            before = session.generate(prompt, seed=seed, cache=None).seconds if options.presets else math.nan
            result = session.generate(prompt, seed=seed, cache=config)
            noise.append(min(psnr(result.image, plain[prompt].image), 99.0))
            structure.append(ssim(result.image, plain[prompt].image))
            shares.append(result.trace.summary.share)
            speedups.append(before / result.seconds)
        share = statistics.mean(shares)
        print(
            f"{name:10s} {config.words:40s} {share:.3f}   {1 / share:5.2f}x {statistics.median(speedups):5.2f}x "
            f"{statistics.mean(noise):6.2f} {min(noise):6.2f}  {1 - statistics.mean(structure):.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
