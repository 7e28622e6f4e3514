"""The methods of a comparison: H2-Cache, fewer steps, another solver, other caches, the uncached reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any
from zlib import crc32

from h2gen.cache.config import CacheConfig
from h2gen.evaluation.peers import EqualCost
from h2gen.models.choices import evaluations
from h2gen.settings.profiles import label_of
from h2gen.settings.values import OFF

TRUTH_STEPS = 400
"""Euler steps at which the image no longer depends on their number: the solution of the ODE."""

_SCHEDULERS = {"unipc": "UniPCMultistepScheduler", "heun": "FlowMatchHeunDiscreteScheduler"}

Around = Callable[[Any], AbstractContextManager[Any]]
"""Given the pipeline, a context manager to call it in, such as one that puts another cache on it."""


@dataclass(frozen=True)
class Method:
    """One way to make an image.

    ``name`` is unique, ``label`` is for display, ``kind`` is as in ``MethodResult``, ``detail`` holds its own settings.
    ``share`` is the share of the reference's blocks that it runs, if that is known beforehand; a peer's blocks are
    counted while it runs.
    """

    name: str
    label: str
    kind: str
    steps: int
    detail: Mapping[str, Any] = field(default_factory=dict)
    cache: CacheConfig = OFF
    solver: str = "own"
    share: float | None = None
    around: Around = field(default=lambda _pipe: nullcontext())


def reference(steps: int) -> Method:
    """The uncached image that all others are compared with."""
    return Method("uncached", f"uncached, {steps} steps", "reference", steps, {"steps": steps}, share=1.0)


def truth(steps: int) -> Method:
    """The uncached image of very many steps."""
    detail = {"steps": TRUTH_STEPS}
    return Method("truth", f"uncached, {TRUTH_STEPS} steps", "truth", TRUTH_STEPS, detail, share=TRUTH_STEPS / steps)


def h2(cache: CacheConfig, steps: int) -> Method:
    """H2-Cache with these settings."""
    name = f"h2 {cache.tau1!r} {cache.tau2!r}"
    if cache.policies:
        name += f" {crc32(repr(cache.policies).encode()):08x}"
    return Method(name, cache_label(cache), "h2", steps, {**asdict(cache), "steps": steps}, cache)


def cache_label(cache: CacheConfig) -> str:
    """What a method with this cache is called in tables, sentences, charts and file names."""
    return f"H2-Cache, {cache.words}" if cache.policies else f"H2-Cache {cache.tau1:g}, {cache.tau2:g}"


def fewer(count: int, steps: int) -> Method:
    """Uncached in fewer steps, with the model's own solver."""
    return Method(f"steps {count}", label_of(OFF, count, "own"), "steps", count, {"steps": count}, share=count / steps)


def solver(count: int, steps: int, solver: str = "unipc") -> Method:
    """Uncached in fewer steps of a higher-order solver."""
    return Method(
        name=f"{solver} {count}",
        label=label_of(OFF, count, solver),
        kind="solver",
        steps=count,
        detail={"steps": count, "scheduler": _SCHEDULERS[solver]},
        solver=solver,
        share=evaluations(count, solver) / steps,
    )


def tuned(label: str, steps: int, cache: CacheConfig, solver: str, share: float | None = None) -> Method:
    """A candidate of tuning: a number of steps, a solver and a cache.

    Args:
        share: of the reference's blocks, if it is known beforehand; with a cache it is counted.
    """
    changed = {name: value for name, value in asdict(cache).items() if value != getattr(CacheConfig(), name)}
    detail = {**({} if cache == OFF else changed), "steps": steps, **({} if solver == "own" else {"solver": solver})}
    words = [f"{name}={value}" for name, value in {"solver": solver, "steps": steps, **asdict(cache)}.items()]
    kind = "h2" if cache.enabled else "steps" if solver == "own" else "solver"
    return Method(" ".join(words), label, kind, steps, detail, cache, solver, share)


def peer(found: EqualCost, steps: int, passes: int, steps_run: int | None = None) -> Method:
    """Another cache, at the setting that the equal-cost search found.

    Args:
        steps: of the whole schedule.
        passes: per step.
        steps_run: those that run, if an input picture is changed at a strength.
    """
    settings = found.peer.settings(found.value)
    values = [f"{value:.4g}" for value in settings.values()]
    freed = [] if found.peer.guarded else [f"no {found.peer.guard_words}"]
    facts = {"source": found.peer.source, "guarded": found.peer.guarded, "target_share": found.target}
    return Method(
        name=" ".join([found.peer.name, *values, *("free" for _ in freed)]),
        label=", ".join([found.peer.label(found.value), *freed]),
        kind="peer",
        steps=steps,
        detail={**settings, "steps": steps, **facts},
        around=lambda pipe: found.peer.applied(pipe, found.value, steps=steps_run or steps, passes=passes),
    )
