"""Made-up comparisons: real pictures, drawn by Pillow, and plausible figures."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from PIL import Image, ImageChops, ImageDraw, ImageFilter

from h2gen.cache import CacheConfig, Outcome, StageRecord, StepRecord
from h2gen.evaluation.metrics import MetricInfo
from h2gen.evaluation.results import Case, Comparison, MethodResult, Sample, Score, Timing, pareto, score

PSNR = MetricInfo("psnr", "PSNR", "dB", True, True, "h2gen")
SSIM = MetricInfo("ssim", "SSIM", "", True, True, "torchmetrics 1.8")
LPIPS = MetricInfo("lpips", "LPIPS", "", False, True, "torchmetrics 1.8, AlexNet")
CLIP_IQA = MetricInfo("clip-iqa", "CLIP-IQA", "", True, False, "torchmetrics 1.8, openai/clip-vit-base-patch16")

PROMPTS = ("a cat", "a birthday cake", "a butterfly", "a car", "a lighthouse at night", "a green apple", "a red house")
LONG = (
    "an old lighthouse on a cliff at dusk, waves breaking below, warm light in its lantern room, gulls, oil painting, "
    "thick brush strokes, in the manner of a nineteenth century master, seen from a boat"
)
FULL_SECONDS = 1.62
STEPS = 28
DOUBLE, SINGLE = 4, 8


def picture(case: int, size: tuple[int, int] = (128, 128), drift: float = 0.0) -> Image.Image:
    """A scene that differs from case to case, and that ``drift`` moves, blurs and discolours a little."""
    dice = random.Random(case)
    width, height = size
    sky = tuple(dice.randrange(120, 256) for _ in range(3))
    image = Image.new("RGB", size, sky)
    draw = ImageDraw.Draw(image)
    for _ in range(9):
        x, y = dice.uniform(0, width), dice.uniform(0, height)
        r = dice.uniform(0.06, 0.28) * min(size)
        colour = tuple(dice.randrange(256) for _ in range(3))
        shift = drift * dice.uniform(-1, 1) * min(size) / 24
        box = (x - r + shift, y - r, x + r + shift, y + r)
        if dice.random() < 0.5:
            draw.ellipse(box, fill=colour)
        else:
            draw.rectangle(box, fill=colour)
    image = image.filter(ImageFilter.GaussianBlur(min(size) / 100))
    return image if not drift else ImageChops.offset(image.filter(ImageFilter.GaussianBlur(drift)), 0, 0)


def trace(
    cache: CacheConfig, steps: int = STEPS, seed: int = 0, contexts: Sequence[str] = ("cond",)
) -> list[StepRecord]:
    """Steps as the cache would decide them for changes that shrink, rise again and jitter."""
    dice = random.Random(seed)
    records = []
    kept = {context: {"structure": 0.0, "detail": 0.0} for context in contexts}
    first = dict.fromkeys(contexts, True)
    for step in range(steps):
        pace = 0.10 * math.exp(-4 * step / steps) + 0.03 + 0.06 * (step / steps) ** 3
        for context in contexts:
            since = kept[context]
            since["structure"] += pace * dice.uniform(0.7, 1.3)
            since["detail"] += 1.4 * pace * dice.uniform(0.7, 1.3)
            records.append(_step(cache, step, steps, context, since, first[context]))
            first[context] = False
    return records


def _step(cache: CacheConfig, step: int, steps: int, context: str, since: dict[str, float], first: bool) -> StepRecord:
    guarded = step < cache.warmup_steps or step >= steps - cache.final_steps > 0
    if guarded:
        structure = detail = StageRecord(None, Outcome.GUARDED)
    elif first:
        structure = detail = StageRecord(None, Outcome.COMPUTED)
    else:
        hit = since["structure"] < cache.tau1
        structure = StageRecord(since["structure"], Outcome.REUSED if hit else Outcome.COMPUTED)
        below = since["detail"] < cache.tau2
        detail = StageRecord(since["detail"], Outcome.REUSED if below else Outcome.COMPUTED)
        if hit:
            detail = StageRecord(None, Outcome.FORCED)
    blocks = (DOUBLE if structure.outcome.ran else 1) + (SINGLE if detail.outcome.ran else 1)
    for name, record in (("structure", structure), ("detail", detail)):
        if record.outcome.ran:
            since[name] = 0.0
    sigma = 1 - step / steps
    return StepRecord(0, step, context, 1000 * sigma, sigma, structure, detail, blocks, DOUBLE + SINGLE, 0.05)


def methods_of(count: int) -> list[tuple[str, str, str, dict[str, Any], float, float]]:
    """Name, label, kind, detail, share and PSNR of about ``count`` methods, the uncached one first."""
    rows: list[tuple[str, str, str, dict[str, Any], float, float]] = [
        ("uncached", "Uncached", "reference", {"steps": STEPS}, 1.0, math.inf)
    ]
    pairs = [(0.15, 0.15), (0.1, 0.1), (0.2, 0.15), (0.15, 0.22), (0.1, 0.2), (0.05, 0.1), (0.25, 0.3), (0.08, 0.2)]
    pairs += [(0.05, 0.2), (0.3, 0.3), (0.12, 0.12), (0.2, 0.25), (0.07, 0.15)]
    peers = ["fb 0.12", "mag 0.1", "taylor 4", "sea 0.3", "tea 0.4", "block 3"]
    order: list[tuple[str, Any]] = [
        ("h2", pairs[0]),
        ("steps", 15),
        ("solver", 15),
        ("h2", pairs[1]),
        ("peer", peers[0]),
    ]
    order += [("h2", pair) for pair in pairs[2:]] + [("peer", name) for name in peers[1:]]
    order += [("steps", n) for n in (12, 14, 20, 24)] + [("solver", n) for n in (12, 14)]
    for kind, what in order[: count - 1]:
        if kind == "h2":
            tau1, tau2 = what
            share = 1 / (1 + 4 * tau1 + 2 * tau2)
            detail = {"tau1": tau1, "tau2": tau2, "warmup_steps": 3, "final_steps": 1, "max_consecutive": 0}
            label = f"H2-Cache, tau1 {tau1:g}, tau2 {tau2:g}"
            rows.append((f"h2 {tau1:g} {tau2:g}", label, "h2", detail, share, 20 + 40 * share**1.5 - 8 * tau2))
        elif kind == "steps":
            share = what / STEPS
            rows.append((f"euler {what}", f"{what} steps", "steps", {"steps": what}, share, 12 + 33 * share))
        elif kind == "solver":
            share = what / STEPS
            rows.append((f"unipc {what}", f"UniPC, {what} steps", "solver", {"steps": what}, share, 14 + 30 * share))
        else:
            share = 0.45 + 0.04 * (len(rows) % 5)
            rows.append((what, f"Peer's cache, {what}", "peer", {"knob": what}, share, 17 + 30 * share))
    return rows


def comparison(
    methods: int = 5,
    cases: int = 3,
    size: tuple[int, int] = (128, 128),
    *,
    prompts: Sequence[str] = PROMPTS,
    truth: bool = False,
    contexts: Sequence[str] = ("cond",),
    rival: float = 0.0,
) -> Comparison:
    """A comparison of this many methods on this many cases.

    ``rival`` adds so many dB to the plain fewer steps, which may bring them above the cache.
    """
    metrics = (PSNR, SSIM, LPIPS, CLIP_IQA)
    rows = methods_of(methods)
    if truth:
        rows.append(("truth", "Uncached, 400 steps", "truth", {"steps": 400}, 400 / STEPS, 24.0))
    results = []
    for number, (name, label, kind, detail, share, psnr) in enumerate(rows):
        dice = random.Random(number)
        psnr += rival if kind in ("steps", "solver") else 0
        samples = []
        for case in range(cases):
            value = psnr + dice.uniform(-4, 4)
            scores = {
                "psnr": value,
                "ssim": 1.0 if math.isinf(psnr) else 1 - 10 ** (-value / 20),
                "lpips": 0.0 if math.isinf(psnr) else 4 * 10 ** (-value / 20),
                "clip-iqa": 0.7 + 0.01 * dice.uniform(-1, 1),
            }
            against = {"psnr": 24 - 2 * (1 - share) + dice.uniform(-1, 1), "ssim": 0.93, "lpips": 0.1}
            cache = CacheConfig(**detail) if kind == "h2" else None
            samples.append(
                Sample(
                    case=case,
                    picture=f"pictures/{case:02}-{name.replace(' ', '-').replace('.', '-')}.png",
                    scores=scores,
                    truth_scores=against if truth and kind != "truth" else {},
                    seconds=tuple(share * FULL_SECONDS * dice.uniform(0.99, 1.04) for _ in range(3)),
                    share=share,
                    identical=math.isinf(psnr),
                    trace=tuple(trace(cache, seed=case, contexts=contexts)) if cache else (),
                )
            )
        seconds = FULL_SECONDS * (0.03 + 0.97 * share)
        results.append(
            MethodResult(
                name=name,
                label=label,
                kind=kind,
                detail=detail,
                steps=detail.get("steps", STEPS),
                share=share,
                seconds=Timing(seconds, 0.98 * seconds, 1.05 * seconds, 3 * cases),
                speedup=FULL_SECONDS / seconds,
                scores=_scores(metrics, [sample.scores for sample in samples]),
                truth_scores=_scores(metrics[:3], [sample.truth_scores for sample in samples])
                if samples[0].truth_scores
                else {},
                identical=cases if math.isinf(psnr) else 0,
                pareto=False,
                samples=tuple(samples),
            )
        )
    return Comparison(
        version=1,
        made="2026-11-25T12:00:00+00:00",
        versions={"h2gen": "0.1.0", "torch": "2.13.0", "diffusers": "0.42.1", "torchmetrics": "1.8.2"},
        model={"name": "tiny", "content_hash": "sha256:0a1b2c3d4e5f", "device": "cpu", "dtype": "fp32"},
        settings={
            "width": size[0],
            "height": size[1],
            "steps": STEPS,
            "guidance": 0.0,
            "cfg": 3.0,
            "negative": "",
            "max_sequence_length": 16,
        },
        metrics=metrics,
        cases=tuple(Case(prompts[case % len(prompts)], case) for case in range(cases)),
        methods=tuple(_with_pareto(results)),
        notices=("CLIP score was left out: its weights are not here; pip install and a download would bring them.",),
        chosen=rows[1][0],
    )


def pictures(found: Comparison) -> dict[tuple[str, int], Image.Image]:
    """A picture for each sample: the farther the method, the more it drifts."""
    size = found.settings["width"], found.settings["height"]
    made = {}
    for method in found.methods:
        for sample in method.samples:
            value = method.scores["psnr"].mean
            drift = 0.0 if math.isinf(value) else max(0.0, (46 - value) / 8)
            made[method.name, sample.case] = picture(sample.case, size, drift)
    return made


def _scores(metrics: Sequence[MetricInfo], samples: Sequence[dict[str, float]]) -> dict[str, Score]:
    return {
        metric.name: score([sample[metric.name] for sample in samples], metric.higher_is_better) for metric in metrics
    }


def _with_pareto(results: list[MethodResult]) -> list[MethodResult]:
    best = pareto([(result.seconds.median, result.scores["psnr"].mean) for result in results])
    return [replace(result, pareto=is_best) for result, is_best in zip(results, best, strict=True)]
