"""What is specific to one family of transformers: one file per family, all with the same interface."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from h2gen.errors import CacheError
from h2gen.families.chroma import Chroma
from h2gen.families.contract import Family
from h2gen.families.defaults import ModelDefaults
from h2gen.families.flux1 import Flux1
from h2gen.families.flux2 import Flux2
from h2gen.families.flux3 import Flux3
from h2gen.families.hunyuan_video import HunyuanVideo
from h2gen.families.qwen_image import QwenImage
from h2gen.families.tasks import STRENGTHS, Limits
from h2gen.families.wan import Wan
from h2gen.families.z_image import ZImage

__all__ = [
    "CONTROLLED",
    "DEFAULT",
    "FAMILIES",
    "LIMITS",
    "PIPELINES",
    "STRENGTHS",
    "TASKS",
    "Family",
    "ModelDefaults",
    "family_of",
    "recognize",
]

DEFAULT: Family = Flux1()
"""The family of a checkpoint that does not say which it is of."""

_ALL = (DEFAULT, Flux2(), Chroma(), Flux3(), HunyuanVideo(), Wan(), QwenImage(), ZImage())
FAMILIES: dict[str, Family] = {family.transformer: family for family in _ALL}
"""By the transformer's class in diffusers. A family added here is known everywhere."""

TASKS: Mapping[str, Mapping[str, str]] = {key: value for each in FAMILIES.values() for key, value in each.tasks.items()}
"""By the pipeline in diffusers that a checkpoint names: its tasks, each with the pipeline that does it."""
LIMITS: Mapping[str, Limits] = {
    "": Limits(),
    **{name: Limits() for tasks in TASKS.values() for name in tasks.values()},
    **{name: limits for each in FAMILIES.values() for name, limits in each.limits.items()},
}
"""By the pipeline that does a task: what it takes. The empty name is that of an unknown one."""
CONTROLLED: Mapping[str, str] = {
    key: value for each in FAMILIES.values() for key, value in each.with_control_lora.items()
}
"""By the pipeline that a checkpoint names: the one that its tasks are those of while a Control LoRA is loaded."""
PIPELINES: tuple[str, ...] = tuple(TASKS)
"""The pipelines in diffusers that h2gen loads."""


def family_of(transformer: Any) -> Family:
    """The family of a transformer, by its class or one that it inherits from.

    Raises:
        CacheError: it belongs to none of them.
    """
    transformer = getattr(transformer, "_orig_mod", transformer)  # what torch.compile wraps
    for kind in type(transformer).__mro__:
        if kind.__name__ in FAMILIES:
            return FAMILIES[kind.__name__]
    raise CacheError(
        f"H2-Cache does not know which blocks {type(transformer).__name__} has; give "
        f"stages=h2gen.Stages(structure=..., detail=...), or use one of {', '.join(FAMILIES)}."
    )


def recognize(tensors: Collection[str]) -> Family | None:
    """The family whose transformer a single file with these tensor names holds."""
    # Files of the other families have some of FLUX.1's names too, so FLUX.1 is tried last.
    for family in reversed(FAMILIES.values()):
        if family.prefix(tensors) is not None:
            return family
    return None
