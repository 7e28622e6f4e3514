"""Measure the plans that others have published on the bundled model, and choose those that ship with h2gen.

    python -m tools.choose_published                # 10 prompts, about ten minutes on two cores; writes the choice
    python -m tools.choose_published --prompts 2 --no-write

Of the plans for FLUX.1-dev with the same number of steps and of computed steps, the one with the smallest mean 1 - SSIM
is chosen, measured with h2gen's own forecast at the skipped steps and true guidance 3. Pictures are compared with the
uncached ones of the same prompts, seeds and steps; plain fewer steps are shown for comparison. Of the plans for other
models, BudCache's are taken. Then run tools/docs.py, for the
table in docs/tune.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tomli_w

import h2gen
from h2gen.evaluation.metrics.psnr_ssim import psnr, ssim
from h2gen.settings.profiles.published import FILE, PublishedPlan, read_plans
from tools.choose_presets import PROMPTS

CANDIDATES = Path(__file__).with_name("published_plans.toml")
CFG = 3.0
OF, METHOD_OF_OTHERS = "FLUX.1-dev", "BudCache"
"""The model whose plans are measured, and the method whose plans ship for other models."""
HEAD = """\
# Plans that others have published, which --speedup uses for the models that they were found for, and those made from
# them, until "h2gen tune" has made a profile. Facts from the sources that each names; nothing here was measured with
# h2gen on these models. Written by "python -m tools.choose_published". Of the plans for FLUX.1-dev with the same number
# of computed steps it chooses one by measuring them on the bundled model: {how}. Of those for other
# models it takes BudCache's.

"""


@dataclass(frozen=True)
class Row:
    """What was measured with a plan, or with plain fewer steps if ``plan`` is None."""

    steps: int
    computed: int
    plan: PublishedPlan | None
    psnrs: Sequence[float]
    ssims: Sequence[float]

    @property
    def error(self) -> float:
        """Mean 1 - SSIM."""
        return 1 - statistics.mean(self.ssims)

    def __str__(self) -> str:
        name = f"{self.computed} plain steps" if self.plan is None else self.plan.method
        return (
            f"{self.steps:5d}  {self.computed:8d}  {name:45s} {statistics.mean(self.psnrs):6.2f} {min(self.psnrs):6.2f}"
            f"  {self.error:.4f} {1 - min(self.ssims):.4f}"
        )


def measure(session: h2gen.Session, plans: Sequence[PublishedPlan], prompts: Sequence[tuple[str, int]]) -> list[Row]:
    """The figures of every plan and of as many plain steps, the best of each number of computed steps first."""
    wanted: list[tuple[int, int, PublishedPlan | None]] = [(plan.steps, plan.computed, plan) for plan in plans]
    wanted += [(steps, computed, None) for steps, computed in dict.fromkeys(each[:2] for each in wanted)]
    scores: dict[int, tuple[list[float], list[float]]] = {place: ([], []) for place in range(len(wanted))}
    began = time.perf_counter()
    for done, (prompt, seed) in enumerate(prompts, 1):
        whole = {
            steps: session.generate(prompt, seed=seed, steps=steps, cfg=CFG, cache=None).image
            for steps in {plan.steps for plan in plans}
        }
        for place, (steps, computed, plan) in enumerate(wanted):
            cache, count = (None, computed) if plan is None else (plan.cache, steps)
            image = session.generate(prompt, seed=seed, steps=count, cfg=CFG, cache=cache).image
            scores[place][0].append(min(psnr(image, whole[steps]), 99.0))
            scores[place][1].append(ssim(image, whole[steps]))
        each = (time.perf_counter() - began) / done
        print(f"{done} of {len(prompts)} prompts, {each * (len(prompts) - done):.0f} s left", flush=True)
    rows = [Row(*each, *scores[place]) for place, each in enumerate(wanted)]
    return sorted(rows, key=lambda row: (-row.steps, -row.computed, row.error))


def best(rows: Sequence[Row]) -> list[PublishedPlan]:
    """Of the plans for as many steps with as many computed ones, the one with the least error."""
    found: dict[tuple[int, int], PublishedPlan] = {}
    for row in sorted(rows, key=lambda row: row.error):
        if row.plan is not None:
            found.setdefault((row.steps, row.computed), row.plan)
    return [found[key] for key in sorted(found, reverse=True)]


def to_toml(plans: Sequence[PublishedPlan], how: str) -> str:
    """The plans as the text of the file that ships."""
    rows = [{name: value for name, value in vars(plan).items() if value or name in ("paper", "size")} for plan in plans]
    return HEAD.format(how=how) + tomli_w.dumps({"plans": rows})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=10, help=f"number of prompts, at most {len(PROMPTS)}")
    parser.add_argument("--no-write", action="store_true", help="only print the table")
    options = parser.parse_args()
    prompts = [(prompt, 100 + seed) for seed, prompt in enumerate(PROMPTS[: options.prompts])]
    candidates = read_plans(CANDIDATES)
    others = [plan for plan in candidates if OF not in plan.models and plan.method == METHOD_OF_OTHERS]
    rows = measure(h2gen.load("tiny"), [plan for plan in candidates if OF in plan.models], prompts)
    print(f"\n{'steps':>5s}  {'computed':>8s}  {'plan':45s} {'psnr':>6s} {'worst':>6s}  1-ssim  worst")
    chosen = best(rows)
    plain = {(row.steps, row.computed): row.error for row in rows if row.plan is None}
    for row in rows:
        worse = ", plain steps are closer" if row.error > plain[row.steps, row.computed] else ""
        print(row, f"chosen{worse}" if row.plan in chosen else "", sep="  ")
    if not options.no_write:
        how = f"{len(prompts)} prompt{'s' * (len(prompts) > 1)}, true guidance {CFG:g}"
        FILE.write_text(to_toml([*chosen, *others], how), encoding="utf-8")
        print(f"\nWrote {FILE}")


if __name__ == "__main__":
    main()
