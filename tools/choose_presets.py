"""Measure cache settings on the bundled model: how close the picture stays, and the share of blocks that run.

    python tools/choose_presets.py                 # the grid that the shipped presets were chosen from
    python tools/choose_presets.py --presets       # the shipped presets, as their files quote them
    python tools/choose_presets.py --h2            # choose 'h2' from the shipped profile, measure it, write its file
    python tools/choose_presets.py --h2 FILE       # the same from another profile that h2gen tune has written

PSNR is against the uncached picture, in dB, over the same prompts and seeds; 'worst' is the worst picture. Time is the
whole call of the pipeline, interleaved with uncached calls; the grid leaves it out.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import tomli_w

import h2gen
from h2gen.evaluation.metrics.psnr_ssim import psnr, ssim
from h2gen.settings.presets import list_presets
from h2gen.settings.profiles import read_profile

PROMPTS = (
    "a cat", "a dog", "a red apple", "a birthday cake", "a butterfly", "a car", "a 3d render of a horse",
    "a flat icon of a mushroom", "a cartoon of a pizza", "a tiger on a blue background", "a strawberry",
    "a cat beside a red apple",
)  # fmt: skip


def grid() -> Iterator[tuple[str, h2gen.CacheConfig]]:
    for tolerance in (0.0015, 0.0025, 0.004, 0.006, 0.0085, 0.012, 0.016, 0.022, 0.03):
        yield "-", h2gen.CacheConfig(0, 0, tolerance=tolerance)
    for tau1, tau2 in itertools.product((0.06, 0.1, 0.15, 0.2), (0.12, 0.17, 0.22)):
        yield "-", h2gen.CacheConfig(tau1, tau2, 3, 1)
        yield "-", h2gen.CacheConfig(tau1, tau2, 3, 1, tolerance=0.003, forecast=1)


ROOT = Path(__file__).resolve().parents[1]
H2_SHARE = 0.5
"""'h2' is the closest of the profile's thresholds that runs at most this share of the blocks."""
H2_DESCRIPTION = "The two-stage cache of the paper, tuned by h2gen tune for the bundled model and its 28 steps."
MEASURED_ON = (
    "bundled model, {} prompts, 28 steps, true guidance 3, against the uncached picture; time on one thread of a "
    "shared CPU core, float32"
)


class Measured(NamedTuple):
    share: float
    speedup: float
    psnr_mean: float
    psnr_worst: float
    error: float


def measure(
    session: h2gen.Session,
    plain: Mapping[str, h2gen.Result],
    prompts: Sequence[tuple[str, int]],
    config: h2gen.CacheConfig,
    *,
    timed: bool,
) -> Measured:
    """A setting on all prompts; ``timed``: each picture right after an uncached one."""
    noise, structure, shares, speedups = [], [], [], []
    for prompt, seed in prompts:
        before = session.generate(prompt, seed=seed, cache=None).seconds if timed else math.nan
        result = session.generate(prompt, seed=seed, cache=config)
        noise.append(min(psnr(result.image, plain[prompt].image), 99.0))
        structure.append(ssim(result.image, plain[prompt].image))
        shares.append(result.trace.summary.share)
        speedups.append(before / result.seconds)
    share, error = statistics.mean(shares), 1 - statistics.mean(structure)
    return Measured(share, statistics.median(speedups), statistics.mean(noise), min(noise), error)


def h2_of(profile: Path) -> h2gen.CacheConfig:
    """The profile's thresholds for 'h2'."""
    choices = [each for each in read_profile(profile).of("thresholds") if each.figures.share <= H2_SHARE]
    if not choices:
        raise SystemExit(
            f"{str(profile)!r} has no thresholds for at most {H2_SHARE:.0%} of the blocks; run h2gen tune."
        )
    return max(choices, key=lambda choice: choice.figures.ssim_mean).cache


def write_h2(config: h2gen.CacheConfig, found: Measured, pictures: int) -> Path:
    """Write the preset with its measured figures."""
    default = asdict(h2gen.CacheConfig())
    settings = {name: value for name, value in asdict(config).items() if value != default[name]}
    figures = {
        "share": round(found.share, 3),
        "speedup": round(found.speedup, 2),
        "psnr_mean": round(found.psnr_mean, 2),
        "psnr_worst": round(found.psnr_worst, 2),
        "measured_on": MEASURED_ON.format(pictures),
    }
    whole = {"description": H2_DESCRIPTION, "tau1": config.tau1, "tau2": config.tau2, **settings, "figures": figures}
    path = ROOT / "presets" / "h2.toml"
    path.write_text(tomli_w.dumps(whole), encoding="utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", action="store_true")
    parser.add_argument("--h2", nargs="?", type=Path, const=Path(), metavar="PROFILE")
    parser.add_argument("--prompts", type=int, default=len(PROMPTS))
    options = parser.parse_args()
    candidates = [(p.name, p.config) for p in list_presets()] if options.presets else list(grid())
    if options.h2 is not None:
        shipped = ROOT.glob("h2gen/settings/profiles/shipped/tiny-28-128x128-guided-*.toml")
        candidates = [("h2", h2_of(options.h2 if options.h2.name else next(shipped)))]
    session = h2gen.load("tiny")
    prompts = [(prompt, 100 + seed) for seed, prompt in enumerate(PROMPTS[: options.prompts])]
    session.generate("a cat", seed=0, cache=None)  # warm up

    plain: dict[str, h2gen.Result] = {
        prompt: session.generate(prompt, seed=seed, cache=None) for prompt, seed in prompts
    }
    print(f"{'preset':10s} {'settings':40s} share  estimate  time   psnr  worst  1-ssim")
    timed = options.presets or options.h2 is not None
    for name, config in candidates:
        found = measure(session, plain, prompts, config, timed=timed)
        print(
            f"{name:10s} {config.words:40s} {found.share:.3f}   {1 / found.share:5.2f}x {found.speedup:5.2f}x "
            f"{found.psnr_mean:6.2f} {found.psnr_worst:6.2f}  {found.error:.4f}",
            flush=True,
        )
        if options.h2 is not None:
            print(write_h2(config, found, len(prompts)))


if __name__ == "__main__":
    main()
