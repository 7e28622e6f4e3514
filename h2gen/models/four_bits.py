"""Weights of a single file that bitsandbytes stored in 4 bits, NF4 or FP4, as in ``flux1-dev-bnb-nf4``.

Each weight is packed; its scales, its code book and a JSON object are further tensors next to it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, MutableMapping
from pathlib import Path

import torch

from h2gen.errors import ModelError
from h2gen.models.files import AGAIN, Stored, shown
from h2gen.models.quantized import OTHER_FILE
from h2gen.wording import printable

_STATE = re.compile(r"(.+\.weight)\.quant_state\.bitsandbytes__(nf4|fp4)")
_BESIDE = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")


class FourBits:
    """The weights of a file that are stored in 4 bits.

    Args:
        file: that holds them.
        tensors: of a transformer, by name. In it, each such weight becomes an ordinary one, and what belongs to it
            is removed.
        prefix: before the names in the file.

    Raises:
        ModelError: one lacks its scales, or does not say its shape.
    """

    def __init__(self, file: Path, tensors: MutableMapping[str, Stored], prefix: str = "") -> None:
        self._beside: dict[str, list[str]] = {}
        """By weight, the names of the tensors that belong to it."""
        self.kind: str | None = None
        """``nf4`` or ``fp4``, if there are any."""
        states = {match[1]: match for name in tensors if (match := _STATE.fullmatch(name))}
        if not states:
            return
        from safetensors import safe_open

        with safe_open(file, framework="pt") as opened:
            for weight, match in states.items():
                beside = [match[0], *(weight + end for end in _BESIDE if weight + end in tensors)]
                try:
                    state = json.loads(bytes(opened.get_tensor(prefix + match[0]).flatten().tolist()))
                    shape = tuple(int(side) for side in state["shape"])
                    packed = tensors[weight].shape
                    fits = 2 * packed[0] == shape[0] * shape[1] and {weight + end for end in _BESIDE[:2]} <= {*beside}
                except (ValueError, TypeError, LookupError, RecursionError):
                    fits = False
                if not fits:
                    raise ModelError(
                        f"{shown(file)} stores {printable(weight)!r} in 4 bits (bitsandbytes), but lacks its "
                        f"scales; {AGAIN}, or {OTHER_FILE}."
                    )
                for name in beside:
                    del tensors[name]
                tensors[weight] = Stored("BF16", shape)
                self._beside[weight] = beside
                self.kind = match[2]

    def apply(self, weights: MutableMapping[str, torch.Tensor], dtype: torch.dtype) -> None:
        """Turn the weights into ordinary ones, one by one, and remove what belongs to them.

        Args:
            weights: of the file by name.
            dtype: of the ordinary weights.
        """
        if self._beside:
            from bitsandbytes.functional import QuantState, dequantize_4bit
        for weight, beside in self._beside.items():
            parts: Mapping[str, torch.Tensor] = {name.removeprefix(f"{weight}."): weights.pop(name) for name in beside}
            state = QuantState.from_dict(dict(parts), device=torch.device("cpu"))
            weights[weight] = dequantize_4bit(weights[weight], state).to(dtype)
