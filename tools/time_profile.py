"""Time a profile's choices anew, on a machine that does nothing else, and write their seconds into it.

    python -m tools.time_profile h2gen/settings/profiles/shipped/tiny-28-128x128-guided-011aadf2.toml

A tuning runs for an hour or more, and what else the machine does meanwhile slows some of its pictures. Shares of blocks
and fidelity do not depend on that; seconds do. Every choice is timed in turn with the uncached picture, several times,
and the medians count. One thread (OMP_NUM_THREADS=1) is the most reproducible.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import h2gen
from h2gen.settings.profiles import Profile, read_profile, write_profile
from h2gen.settings.values import OFF, Settings


def timed(profile: Profile, repeat: int) -> Profile:
    """The profile with the seconds of this machine, each the median of ``repeat`` pictures."""
    session = h2gen.load(profile.key.model)
    cfg = float(profile.measured["cfg"]) if profile.key.guidance_mode == "true" else 1.0
    size = f"{profile.key.width}x{profile.key.height}"
    uncached = session.settings("a cat", cache=None, seed=0, steps=profile.key.steps, size=size, cfg=cfg)
    every: dict[str, Settings] = {"": replace(uncached, cache=OFF)}
    for choice in profile.choices:
        every[choice.label] = replace(uncached, steps=choice.steps, solver=choice.solver, cache=choice.cache)
    session.run(uncached)  # what is done only once is not timed
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(repeat):
        for label, settings in every.items():
            seconds[label].append(session.run(settings).seconds)
    medians = {label: statistics.median(each) for label, each in seconds.items()}
    choices = [
        replace(
            choice,
            figures=replace(
                choice.figures,
                seconds=round(medians[choice.label], 4),
                speedup=round(medians[""] / medians[choice.label], 4),
            ),
        )
        for choice in profile.choices
    ]
    choices.sort(key=lambda choice: -choice.figures.speedup)
    measured = {**profile.measured, "seconds_uncached": round(medians[""], 4)}
    return replace(profile, choices=tuple(choices), measured=measured)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profiles", type=Path, nargs="+", help="files of h2gen tune for a model on this machine")
    parser.add_argument("--repeat", type=int, default=5, help="pictures per choice")
    given = parser.parse_args()
    for path in given.profiles:
        found = timed(read_profile(path), given.repeat)
        write_profile(found)
        print(f"{path.name}: {found.measured['seconds_uncached']:.2f} s uncached")
        for choice in found.choices:
            figures = choice.figures
            print(f"{figures.speedup:6.2f}x  {figures.seconds:.3f} s  {figures.share:4.0%}  {choice.label}")


if __name__ == "__main__":
    main()
