"""What a ControlNet adds between the blocks of a transformer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from h2gen.cache.inputs import Inputs
    from h2gen.cache.stages import Stage


def samples_within(inputs: Inputs, stage: Stage) -> list[torch.Tensor]:
    """The ControlNet samples that the model adds between the stage's first block and its last.

    Source: ``FluxTransformer2DModel.forward``.
    """
    samples = inputs.block_samples if stage.name == "structure" else inputs.single_block_samples
    if samples is None:
        return []
    between = range(len(stage.blocks) - 1)
    if stage.name == "structure" and inputs.blocks_repeat:
        return [samples[i % len(samples)] for i in between]
    interval = math.ceil(len(stage.blocks) / len(samples))
    return [samples[i // interval] for i in between]
