"""A higher-order solver in the place of a pipeline's own: what a user would try before any cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers import UniPCMultistepScheduler

from h2gen.errors import ModelError


@contextmanager
def unipc(pipe: Any) -> Iterator[None]:
    """Run a Flux pipeline with UniPC on flow sigmas, shifted as its own scheduler shifts them; afterwards it has its
    own back. One forward pass a step, as with Euler.

    Raises:
        ModelError: the pipeline's scheduler is none for flow matching.

    Source: Zhao et al., arXiv 2302.04867, as diffusers implements it.
    """
    own = pipe.scheduler
    if not type(own).__name__.startswith("FlowMatch"):
        raise ModelError(f"The model's scheduler is {type(own).__name__}, which is none for flow matching.")
    pipe.scheduler = UniPCMultistepScheduler.from_config(
        own.config,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=own.config.get("shift", 1.0),
        num_train_timesteps=own.config.get("num_train_timesteps", 1000),
    )
    try:
        yield
    finally:
        pipe.scheduler = own
