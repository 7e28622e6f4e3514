"""Count what the parts in h2gen/models/catalogue.toml hold besides their weights while they run.

On torch's meta device, in 16 bits, without computing anything. Attention counts as what recent GPUs run, which does not
keep its scores. The figures in h2gen/families and h2gen/models/footprint.py are from here.

python -m tools.count_activations
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from h2gen.families import FAMILIES
from h2gen.models.entries import CATALOGUE_FILE
from h2gen.models.footprint import width_of
from h2gen.toml import read_toml
from tools.count_parameters import build

SIDE, TEXT = 1024, 512
"""Pixels of a picture's side, and tokens of its text."""
LATENT_FRAMES = 5
"""Of a video, whose autoencoder is counted at 256 pixels: about what it decodes at a time in tiles."""


def held_per_token(part: dict[str, Any], side: int = SIDE) -> float:
    """Values that a transformer's forward pass holds at most, per token and channel of its streams."""
    model = build(part, torch.bfloat16)
    image_tokens = (side // 16) ** 2
    family = FAMILIES[part["class"]]
    inputs = family.example_inputs(model, image_tokens, TEXT)
    inputs = tree_map(lambda each: each.to("meta") if isinstance(each, torch.Tensor) else each, inputs)
    inputs = family.at(inputs, torch.empty(1, dtype=torch.bfloat16, device="meta"))
    return _peak(model, lambda: model(**inputs)) / 2 / (image_tokens + TEXT) / width_of(dict(model.config))


def held_per_pixel(part: dict[str, Any], side: int = SIDE) -> float:
    """Values that an autoencoder holds at most while it decodes, per pixel and channel of its widest picture."""
    model = build(part, torch.bfloat16)
    config = dict(model.config)
    channels = config.get("latent_channels") or config["z_dim"]
    video = "temporal_compression_ratio" in config or "scale_factor_temporal" in config
    frames = LATENT_FRAMES if video else 1
    times = [frames] if video or "z_dim" in config else []  # Qwen-Image's takes one frame
    latents = torch.empty(1, channels, *times, side // 8, side // 8, dtype=torch.bfloat16, device="meta")
    return _peak(model, lambda: model.decode(latents)) / 2 / ((4 * frames - 3) * side**2) / width_of(config)


def _peak(model: Any, run: Callable[[], object]) -> int:
    with torch.no_grad(), _Fused(), _Live([*model.parameters(), *model.buffers()]) as live:
        run()
    return live.peak


class _Fused(TorchFunctionMode):
    """Attention without scores in memory."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        named = dict(zip(("query", "key", "value"), args, strict=False)) | dict(kwargs or {})
        return named["query"].new_empty(*named["query"].shape[:-1], named["value"].shape[-1])


class _Live(TorchDispatchMode):
    """Adds up the bytes of the tensors that are alive, each storage once.

    Args:
        ignored: tensors that do not count.
    """

    def __init__(self, ignored: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self._known = {tensor.untyped_storage()._cdata for tensor in ignored}
        self._live = self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self._live += size
            self.peak = max(self.peak, self._live)
            weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._live -= size


def main() -> None:
    for name, part in read_toml(CATALOGUE_FILE)["parts"].items():
        if part["class"] in FAMILIES:
            print(f"{name:24} {held_per_token(part):5.1f} per token and channel")
        elif part["class"].startswith("Autoencoder"):
            print(f"{name:24} {held_per_pixel(part):5.1f} per pixel and channel")


if __name__ == "__main__":
    main()
