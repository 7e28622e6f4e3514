"""Count the parameters of the parts in h2gen/models/catalogue.toml, on torch's meta device, and write them into it.

python -m tools.count_parameters
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from h2gen.families import FAMILIES
from h2gen.models.entries import BUNDLED, CATALOGUE_FILE
from h2gen.models.footprint import Part, measure, width_of
from h2gen.toml import read_toml


def build(part: dict[str, Any], dtype: Any = None) -> Any:
    """A part on the meta device, made from its configuration without any weights.

    Args:
        part: a table of ``[parts]``.
        dtype: of its weights; None for the class's own.
    """
    import diffusers
    import torch
    import transformers
    from diffusers.models.modeling_utils import no_init_weights

    name, config = part["class"], part.get("config", {})
    if "folder" in part:
        config = json.loads((BUNDLED.parent / part["folder"] / "config.json").read_text("utf-8"))
    with torch.device("meta"), no_init_weights():
        if hasattr(diffusers, name):
            model = getattr(diffusers, name).from_config(config)
        else:
            kind = getattr(transformers, name)
            model = kind(kind.config_class(**config))
    return torch.nn.Module.to(model, dtype=dtype).eval()


def count(part: dict[str, Any]) -> Part:
    """The numbers of parameters and buffers of a part.

    Args:
        part: a table of ``[parts]``.
    """
    model, name = build(part), part["class"]
    tensors = [*model.named_parameters(), *model.named_buffers()]
    sizes = {key: tensor.numel() for key, tensor in tensors if key in model.state_dict()}
    width = width_of(model.config) if isinstance(model.config, Mapping) else 0  # a dictionary in diffusers only
    return measure(name, sizes, in_blocks=name in FAMILIES, width=width)


def write(file: Path = CATALOGUE_FILE) -> None:
    """Write the counts of every part into a catalogue."""
    text = file.read_text("utf-8")
    for name, part in read_toml(file)["parts"].items():
        counted = count(part)
        for key in (
            "all",
            "block",
            "layer",
            *(["next"] if counted.next else []),
            *(["width"] if counted.width else []),
        ):
            pattern = rf"(\[parts\.{re.escape(name)}\]\n(?:(?!\[parts).*\n)*?{key} = )\d+"
            text = re.sub(pattern, rf"\g<1>{getattr(counted, key)}", text)
        print(f"{name:22} {counted.all:15,} {counted.block:13,} {counted.layer:13,}")
    file.write_text(text, "utf-8", newline="\n")


if __name__ == "__main__":
    write()
