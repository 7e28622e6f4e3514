"""The defaults of a model: size, steps, guidance and text length used when the user gives none."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelDefaults:
    """What a model was made for.

    Args:
        width, height: pixels.
        steps: denoising steps.
        guidance: guidance scale, the input of a guidance-distilled model.
        cfg: scale of true classifier-free guidance; 1 turns it off.
        max_sequence_length: text tokens that the model reads.
        size_multiple: width and height are multiples of this many pixels.
        frames: of a video; 0 for a model that makes pictures.
        fps: frames per second of a video; 0 likewise.
    """

    width: int = 1024
    height: int = 1024
    steps: int = 50
    guidance: float = 3.5
    cfg: float = 1.0
    max_sequence_length: int = 512
    size_multiple: int = 16
    frames: int = 0
    fps: float = 0.0
