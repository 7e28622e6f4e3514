"""diffusers' own caches: FBCache, MagCache, TaylorSeer and SeaCache."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, cast

from h2gen.errors import CacheError
from h2gen.evaluation.peers.base import Peer, Span, Value, contexts, left_as_found, threshold_of, version_of
from h2gen.families import Family, family_of


@dataclass(frozen=True)
class Builtin(Peer):
    """A cache of diffusers, named by its config."""

    config: ClassVar[str]

    @property
    def source(self) -> str:
        return f"{version_of('diffusers')} {self.config}"

    @contextmanager
    def _on(self, pipe: Any, value: Value, steps: int, passes: int) -> Iterator[None]:
        transformer = pipe.transformer
        self.check_family(family_of(transformer))
        with contexts(pipe, lambda: self._where(pipe)):
            transformer.enable_cache(self._config(transformer, value, steps))
            try:
                yield
            finally:
                transformer.disable_cache()

    def check_family(self, family: Family) -> None:
        if self.config not in family.diffusers_caches:
            raise CacheError(
                f"{self.name} ({self.source}) does not work on {family.title}; leave it out of the comparison."
            )

    @abstractmethod
    def _config(self, transformer: Any, value: Value, steps: int) -> Any: ...

    def _where(self, pipe: Any) -> dict[str, Any]:
        """What the cache needs to know of each forward pass, besides its name."""
        return {}


@dataclass(frozen=True)
class FirstBlock(Builtin):
    """All blocks but the first are reused while the first one's residual changes little."""

    config: ClassVar[str] = "FirstBlockCacheConfig"

    def _config(self, transformer: Any, value: Value, steps: int) -> Any:
        from diffusers import FirstBlockCacheConfig

        return FirstBlockCacheConfig(threshold=threshold_of(value))


@dataclass(frozen=True)
class Magnitude(Builtin):
    """MagCache: skips steps while the product of known ratios of residual magnitudes stays near 1.

    At most five consecutive skips, and the first tenth is always computed, as its authors run FLUX.1. ``ratios`` belong
    to a model and a number of steps: see ``calibrated``.
    """

    ratios: tuple[float, ...] = ()

    guard: ClassVar[str] = "max_skip_steps"
    guard_words: ClassVar[str] = "limit on skips in a row"
    span: ClassVar[Span] = Span(0.0001, 20.0)
    calibration: ClassVar[int] = 1
    config: ClassVar[str] = "MagCacheConfig"

    def _config(self, transformer: Any, value: Value, steps: int) -> Any:
        from diffusers import MagCacheConfig

        if len(self.ratios) != steps:
            raise CacheError(f"{self.name} is not calibrated for {steps} steps; call its calibrated() first.")
        return MagCacheConfig(
            threshold=threshold_of(value),
            max_skip_steps=5 if self.guarded else steps,
            retention_ratio=0.1,
            num_inference_steps=steps,
            mag_ratios=list(self.ratios),
        )

    def calibrated(self, pipe: Any, runs: Sequence[Callable[[], Any]], *, steps: int) -> Peer:
        from diffusers import MagCacheConfig

        transformer = pipe.transformer
        self.check_family(family_of(transformer))
        ratios: dict[str, tuple[float, ...]] = {}

        def note(*_: Any) -> None:
            leader = cast(Any, family_of(transformer).block_lists(transformer)[0][0])
            manager = leader._diffusers_hook.get_hook("mag_cache_leader_block_hook").state_manager
            ratios[manager.context.name] = tuple(manager.get_state().calibration_ratios)

        # One step more than there are: at the last one diffusers prints the ratios and discards them.
        config = MagCacheConfig(calibrate=True, num_inference_steps=steps + 1)
        with left_as_found(transformer), contexts(pipe):
            transformer.enable_cache(config)
            handle = transformer.register_forward_hook(note, prepend=True)  # while the context is still set
            try:
                runs[0]()  # its authors use one image
            finally:
                handle.remove()
                transformer.disable_cache()
        measured = ratios.get("cond", ())
        if len(measured) != steps or not all(map(math.isfinite, measured)):
            raise CacheError(f"{self.name} could not be calibrated: {len(measured)} usable ratios for {steps} steps.")
        return replace(self, ratios=measured)


@dataclass(frozen=True)
class Taylor(Builtin):
    """TaylorSeer: computes every n-th step in full and forecasts the output in between with a Taylor expansion.

    In its lite mode, which forecasts the transformer's output. By default diffusers forecasts each attention layer and
    computes the rest of every block at every step, which saves at most about half.
    """

    config: ClassVar[str] = "TaylorSeerCacheConfig"
    knobs: ClassVar[tuple[str, ...]] = ("cache_interval", "disable_cache_before_step")

    def values(self, steps: int) -> tuple[Value, ...]:
        return taylor_values(steps)

    def _config(self, transformer: Any, value: Value, steps: int) -> Any:
        from diffusers import TaylorSeerCacheConfig

        assert isinstance(value, tuple)
        interval, warmup = value
        return TaylorSeerCacheConfig(
            cache_interval=interval,
            disable_cache_before_step=warmup,
            taylor_factors_dtype=transformer.dtype,
            use_lite_mode=True,
        )


def taylor_steps(steps: int, interval: int, warmup: int) -> int:
    """How many of the steps TaylorSeer computes: the warm-up, the second step after it, and then every n-th."""
    if interval == 1 or steps <= warmup:
        return steps
    return warmup + max(0, 1 + (steps - warmup - 2) // interval)


@lru_cache(maxsize=8)
def taylor_values(steps: int) -> tuple[tuple[int, int], ...]:
    """One interval and warm-up for each possible number of computed steps, the most steps first.

    Only an interval leaves gaps: of 50 steps it computes 26, 19, 15, ... The warm-up is the shortest that works, from
    diffusers' default of 3 upwards.
    """
    found: dict[int, tuple[int, int]] = {}
    for warmup in range(min(3, steps), steps + 1):
        for interval in range(1, steps + 1):
            found.setdefault(taylor_steps(steps, interval, warmup), (interval, warmup))
    return tuple(found[computed] for computed in sorted(found, reverse=True))


@dataclass(frozen=True)
class Sea(Builtin):
    """SeaCache: skips steps while the filtered latents change little, and extrapolates from the last two computed.

    diffusers supports it for two video models. On Flux it gets what it needs: the unpacked latents, and in each cache
    context the step, its sigma and the number of steps.
    """

    guard: ClassVar[str] = "max_consecutive_cached"
    guard_words: ClassVar[str] = "limit on skips in a row"
    span: ClassVar[Span] = Span(0.001, 20.0)
    config: ClassVar[str] = "SeaCacheConfig"

    def _config(self, transformer: Any, value: Value, steps: int) -> Any:
        from diffusers.hooks import SeaCacheConfig

        return SeaCacheConfig(
            threshold=threshold_of(value),
            max_consecutive_cached=2 if self.guarded else 0,
            power_exp=3.0 if family_of(transformer).makes_video else 2.0,  # its authors' values for videos and images
            raw_vision_callback=_latents,
        )

    def _where(self, pipe: Any) -> dict[str, Any]:
        begin = pipe.scheduler.begin_index or 0  # the first step that runs, if an input picture is changed
        index = begin if pipe.scheduler.step_index is None else pipe.scheduler.step_index
        return {
            "step_index": index - begin,
            "sigma": float(pipe.scheduler.sigmas[index]),
            "num_inference_steps": pipe.num_timesteps,
        }


def _latents(_module: Any, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The latents of videos, or the packed latents ``(B, N, 4 C)`` of images, as one ``(C, F, H, W)`` each."""
    packed = kwargs["hidden_states"]
    if packed.ndim == 5:
        return list(packed)
    ids = kwargs["img_ids"]
    high, wide = (int(ids[:, axis].max()) + 1 for axis in (1, 2))
    grid = packed.reshape(packed.shape[0], high, wide, -1, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return list(grid.reshape(packed.shape[0], -1, 1, 2 * high, 2 * wide))
