"""Several devices that make one picture: each process has a part of the tokens (diffusers' context parallel)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from h2gen.errors import DeviceError


def split_tokens(transformer: Any, processes: int, mesh: Any = None) -> None:
    """Split a transformer's tokens among the processes of a ``torch.distributed`` group that has been started.

    Ulysses attention: between them, the processes exchange tokens for attention heads. Its plain form needs heads and
    tokens that can be shared out evenly. A pass that has others takes diffusers' other form, which exchanges numbers of
    tokens too; gloo, which connects CPUs, can do that for heads only.

    Args:
        transformer: in diffusers; the same in every process.
        processes: of the group.
        mesh: see diffusers' ``ContextParallelConfig``.

    Raises:
        DeviceError: the model's tokens cannot be split, or not among so many.
    """
    from diffusers import ContextParallelConfig

    check_split(type(transformer), transformer.config, processes)
    config = ContextParallelConfig(ulysses_degree=processes, mesh=mesh)
    with _cpu_counted(), _without_warnings():
        transformer.enable_parallelism(config=config)
    heads = transformer.config["num_attention_heads"]

    def choose(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tokens = {each.shape[1] for each in (*args, *kwargs.values()) if getattr(each, "ndim", 0) == 3}
        uneven = sorted(count for count in tokens if count % processes)
        if uneven and module.device.type == "cpu":
            raise DeviceError(
                f"{uneven[-1]} tokens cannot be shared out evenly among {processes} processes on the CPU; choose "
                "another size, --max-sequence-length or number of devices."
            )
        config.ulysses_anything = bool(uneven or heads % processes)

    transformer.register_forward_pre_hook(choose, with_kwargs=True)


def check_split(transformer: type, config: Mapping[str, Any], processes: int) -> None:
    """Check that several processes can share the tokens of a transformer of this class and configuration.

    Raises:
        DeviceError: they cannot.
    """
    if getattr(transformer, "_cp_plan", None) is None:
        raise DeviceError(
            f"One picture cannot be made on {processes} devices with this model: diffusers cannot split the tokens of "
            f"{transformer.__name__}; leave out --devices."
        )
    heads = config["num_attention_heads"]
    if not _shares(heads, processes):
        fitting = [str(count) for count in range(1, heads + 1) if _shares(heads, count)]
        raise DeviceError(
            f"{processes} devices cannot share the {heads} attention heads of this model; choose --devices from "
            f"{', '.join(fitting)}."
        )


def _shares(heads: int, processes: int) -> bool:
    """Whether diffusers can share heads out: the last process gets at least one."""
    each = -(-heads // processes)
    return each * (processes - 1) < heads


@contextmanager
def _without_warnings() -> Iterator[None]:
    """diffusers says each time that the feature may change."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


@contextmanager
def _cpu_counted() -> Iterator[None]:
    """Without an accelerator, diffusers 0.42 divides by torch's number of accelerators, which is 0."""
    import torch

    count = torch.accelerator.device_count
    if not count():
        torch.accelerator.device_count = lambda: 1
    try:
        yield
    finally:
        torch.accelerator.device_count = count
