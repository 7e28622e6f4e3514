"""Turn a model's name, folder or file into a pipeline.

Names are imported when they are first used, so that the catalogue can be read without loading torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from h2gen.models.catalogue import CATALOGUE, CatalogueEntry, Checkpoint, ModelDefaults, model_name, resolve
    from h2gen.models.devices import choose_device, choose_dtype
    from h2gen.models.hub import is_downloaded, local_path
    from h2gen.models.load import load_pipeline, set_tiling
    from h2gen.models.memory import apply_offload, is_out_of_memory
    from h2gen.models.translate_errors import translated

__all__ = [
    "CATALOGUE",
    "CatalogueEntry",
    "Checkpoint",
    "ModelDefaults",
    "apply_offload",
    "choose_device",
    "choose_dtype",
    "is_downloaded",
    "is_out_of_memory",
    "load_pipeline",
    "local_path",
    "model_name",
    "resolve",
    "set_tiling",
    "translated",
]

_HOMES = {
    **dict.fromkeys(
        ("CATALOGUE", "CatalogueEntry", "Checkpoint", "ModelDefaults", "model_name", "resolve"), "catalogue"
    ),
    **dict.fromkeys(("choose_device", "choose_dtype"), "devices"),
    **dict.fromkeys(("is_downloaded", "local_path"), "hub"),
    **dict.fromkeys(("load_pipeline", "set_tiling"), "load"),
    **dict.fromkeys(("apply_offload", "is_out_of_memory"), "memory"),
    "translated": "translate_errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
