"""Several devices that make one picture: each process has a part of the tokens (diffusers' context parallel)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from h2gen.errors import DeviceError
from h2gen.families import family_of


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

    from h2gen.models.load import quiet

    if not family_of(transformer).splits_tokens:
        raise DeviceError(f"The tokens of {type(transformer).__name__} cannot be split among devices.")
    check_heads(transformer.config, processes)
    config = ContextParallelConfig(ulysses_degree=processes, mesh=mesh)
    # diffusers calls it for each output.
    warnings.filterwarnings("ignore", r".*all_gather_tensor. is deprecated", FutureWarning)
    with _cpu_counted(), quiet():  # diffusers says that the feature may change
        transformer.enable_parallelism(config=config)
    heads = transformer.config["num_attention_heads"]

    def choose(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tokens = {each.shape[1] for each in (*args, *kwargs.values()) if getattr(each, "ndim", 0) == 3}
        uneven = sorted(count for count in tokens if count % processes)
        if uneven and module.device.type == "cpu":
            text = kwargs.get("encoder_hidden_states")
            of_text = text is not None and uneven == [text.shape[1]]
            raise DeviceError(
                f"{uneven[-1]} tokens cannot be shared out evenly among {processes} processes on the CPU; choose "
                f"another {'--max-sequence-length' if of_text else 'size'} or number of devices."
            )
        config.ulysses_anything = bool(uneven or heads % processes)

    transformer.register_forward_pre_hook(choose, with_kwargs=True)


def check_heads(config: Mapping[str, Any], processes: int) -> None:
    """Check that several processes can share the attention heads of a transformer.

    Args:
        config: of the transformer; before it is downloaded, only what the catalogue knows.
        processes: their number.

    Raises:
        DeviceError: they cannot.
    """
    heads = config.get("num_attention_heads")
    if heads is not None and not _shares(heads, processes):
        fitting = [str(count) for count in range(2, heads + 1) if _shares(heads, count)]
        raise DeviceError(
            f"{processes} devices cannot share the {heads} attention heads of this model; use --devices "
            f"{' or '.join(fitting) or 1}."
        )


def _shares(heads: int, processes: int) -> bool:
    """Whether diffusers can share heads out: the last process gets at least one."""
    each = -(-heads // processes)
    return each * (processes - 1) < heads


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
