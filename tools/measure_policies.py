"""Measure each policy on the bundled model: how close the picture stays, and the share of blocks that run.

    python tools/measure_policies.py                  # 28 steps, 6 prompts
    python tools/measure_policies.py --steps 50 --prompts 12

Compares with the uncached pictures of the same prompts and seeds, at the model's default true guidance. The first rows
follow a plan and differ in what they do at the steps that are not full; the other rows decide at run time.
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
from collections.abc import Iterator

import h2gen
from h2gen import CacheConfig
from h2gen.evaluation.metrics.psnr_ssim import psnr, ssim
from tools.choose_presets import PROMPTS

WARMUP = 3
"""Full steps at the beginning of every plan and every run."""


def every(count: int, letter: str, steps: int) -> str:
    """A plan in which one of ``count`` steps is full, and also the first ones and the last."""
    full = [step < WARMUP or step == steps - 1 or (step - WARMUP) % count == count - 1 for step in range(steps)]
    return "".join("F" if is_full else letter for is_full in full)


def rows(steps: int) -> Iterator[tuple[str, CacheConfig]]:
    for count in (3, 4):
        for letter, forecast in (("R", 0), ("R", 1), ("D", 0), ("D", 1), ("S", 0)):
            word = {"R": "all reused", "D": "detail reused", "S": "skipped"}[letter]
            cached = CacheConfig(plan=every(count, letter, steps), forecast=forecast)
            yield f"one in {count} full, rest {word}{', forecast' if forecast else ''}", cached
    for how in ("bf16", "fp8"):
        for letter, forecast in (("R", 0), ("R", 1), ("D", 0)):
            word = {"R": "all reused", "D": "detail reused"}[letter] + (", forecast" if forecast else "")
            cached = CacheConfig(plan=every(3, letter, steps), forecast=forecast, cache_memory=how)
            yield f"one in 3 full, rest {word}, kept as {how}", cached
    for tau1, tau2 in ((0.15, 0.22), (0.3, 0.4)):
        for policies in (
            {},
            {"forecast": 1},
            {"forecast": 1, "budget": True},
            {"forecast": 1, "max_detail_age": 3},
            {"forecast": 1, "hierarchy": "checked"},
            {"forecast": 1, "pfs": "stable"},
        ):
            config = CacheConfig(tau1, tau2, warmup_steps=WARMUP, **policies)  # type: ignore[arg-type]
            yield config.words, config
    for tolerance in (0.0015, 0.003, 0.006, 0.012, 0.024):
        config = CacheConfig(0, 0, tolerance=tolerance)
        yield config.words, config
    config = CacheConfig(0.15, 0.22, tolerance=0.003, forecast=1)
    yield config.words, config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--prompts", type=int, default=6)
    parser.add_argument("--only", default="", metavar="REGEX", help="only rows whose name has this")
    options = parser.parse_args()
    session = h2gen.load("tiny")
    prompts = [(prompt, 100 + seed) for seed, prompt in enumerate(PROMPTS[: options.prompts])]
    plain = [session.generate(prompt, seed=seed, steps=options.steps, cache=None).image for prompt, seed in prompts]
    print(f"{'':60s} share    psnr   worst  1-ssim")
    for name, config in rows(options.steps):
        if not re.search(options.only, name):
            continue
        noise, structure, shares = [], [], []
        for (prompt, seed), image in zip(prompts, plain, strict=True):
            result = session.generate(prompt, seed=seed, steps=options.steps, cache=config)
            noise.append(min(psnr(result.image, image), 99.0))
            structure.append(ssim(result.image, image))
            shares.append(result.trace.summary.share)
        print(
            f"{name:60s} {math.fsum(shares) / len(shares):.3f}  {statistics.mean(noise):6.2f}  {min(noise):6.2f}  "
            f"{1 - statistics.mean(structure):.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
