"""DBCache of the package cache-dit: a first-block cache with a warm-up, optionally with TaylorSeer's forecasts."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

from h2gen.evaluation.peers.base import Peer, Value, threshold_of, version_of


@dataclass(frozen=True)
class DualBlock(Peer):
    """DBCache with one block that is always computed (its F1B0) and a warm-up of 4 steps, at most a quarter of all.

    With ``taylor`` what its blocks add is forecast instead of reused.
    """

    taylor: bool = False

    package: ClassVar[str] = "cache-dit"
    knobs: ClassVar[tuple[str, ...]] = ("residual_diff_threshold",)
    guard: ClassVar[str] = "max_warmup_steps"
    guard_words: ClassVar[str] = "warm-up"

    @property
    def source(self) -> str:
        return f"{version_of('cache-dit')} DBCacheConfig" + (" and TaylorSeerCalibratorConfig" if self.taylor else "")

    @contextmanager
    def _on(self, pipe: Any, value: Value, steps: int, passes: int) -> Iterator[None]:
        cache_dit: Any = import_module("cache_dit")
        with quiet():
            config = cache_dit.DBCacheConfig(
                Fn_compute_blocks=1,
                Bn_compute_blocks=0,
                residual_diff_threshold=threshold_of(value),
                max_warmup_steps=min(4, steps // 4) if self.guarded else 1,
                enable_separate_cfg=passes == 2,
                num_inference_steps=steps,
            )
            calibrator = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=1) if self.taylor else None
            try:
                cache_dit.enable_cache(pipe, cache_config=config, calibrator_config=calibrator)
                yield
            finally:
                cache_dit.disable_cache(pipe)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep cache-dit from writing its progress to stdout."""
    loggers = [
        logger
        for name, logger in logging.root.manager.loggerDict.items()
        if name.lower().startswith("cache_dit") and isinstance(logger, logging.Logger)
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
