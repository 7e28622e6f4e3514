"""Evaluation of the small video model: clips of fixed prompts and seeds, judged by what is in them and how it moves."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import HunyuanVideoPipeline
from PIL import Image
from torch.nn import functional as F

from h2gen.files import sha256
from tools.train_tiny import video_autoencoder
from tools.train_tiny.classifier import Classifier, ranks_of
from tools.train_tiny.sprites import Sprites
from tools.train_tiny.video_clips import FRAMES, MOTIONS, SIDE, THINGS, Projector, caption, clip, concept_of

_TOGETHER = 10
_SEEN = 48
"""Side of the middle of a frame that the classifier sees, in pixels: a thing in its middle fills it."""
_APART = 0.35
"""Distance from the background's colour from which a pixel belongs to the thing, as a share of black to white."""
_FAR, _LARGER, _TURNED = 8.0, 1.3, (45, 135)
"""What counts as having moved, in pixels, grown, as a factor, and turned, in degrees: about a third, half and more of
what the clips for training do."""
_ANGLES = range(-180, 180, 15)
_ROWS = 24
"""Clips on the sheet."""


@dataclass(frozen=True)
class Calling:
    """Arguments of the pipeline."""

    steps: int = 28
    cfg: float = 3.0
    length: int = 16


@dataclass(frozen=True)
class Question:
    """A clip to ask for: a thing by its place in ``THINGS``, and a motion."""

    thing: int
    motion: str
    seed: int

    @property
    def prompt(self) -> str:
        return caption(self.thing, self.motion)


def questions(each: int) -> list[Question]:
    """``each`` motions of every thing; all motions are asked for equally often."""
    motions = list(MOTIONS)
    rows = [(thing, turn) for turn in range(each) for thing in range(len(THINGS))]
    return [
        Question(thing, motions[(thing + turn * 3) % len(motions)], seed) for seed, (thing, turn) in enumerate(rows)
    ]


def load(folder: Path, device: torch.device) -> HunyuanVideoPipeline:
    """Load a pipeline that ``train`` saved, in float32 with weights rounded to half precision, as shipped."""
    pipe = HunyuanVideoPipeline.from_pretrained(folder, dtype=torch.float16, local_files_only=True)
    pipe.to(device, torch.float32).set_progress_bar_config(disable=True)
    return pipe


def evaluate(
    pipe: HunyuanVideoPipeline,
    judge: Classifier,
    sprites: Sprites,
    asked: Sequence[Question],
    calling: Calling,
    folder: Path,
) -> dict[str, Any]:
    """Generate the clips, judge them and real ones through the autoencoder, and write ``report.json`` and
    ``sheet.png``, one clip a row."""
    folder.mkdir(parents=True, exist_ok=True)
    made = torch.cat([_make(pipe, asked[i : i + _TOGETHER], calling) for i in range(0, len(asked), _TOGETHER)])
    Image.fromarray(_sheet(made[:_ROWS])).save(folder / "sheet.png")
    frames = Projector(sprites, pipe.device)([clip(question.thing, question.motion) for question in asked])
    with torch.no_grad():
        parts = [pipe.vae.decode(pipe.vae.encode(part).latent_dist.mode()).sample for part in frames.split(_TOGETHER)]
    report = {
        "calling": asdict(calling),
        "weights": weights_of(Path(pipe.name_or_path)),
        "made": judged(judge, made.to(pipe.device), asked),
        "real": judged(judge, torch.cat(parts), asked),
        "drawn": judged(judge, frames, asked),
        "autoencoder": video_autoencoder.quality(pipe.vae, sprites, pipe.device),
    }
    (folder / "report.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
    return report


def weights_of(folder: Path) -> str:
    """A hash over all weights of a pipeline."""
    return sha256("".join(sha256(path.read_bytes()) for path in sorted(folder.rglob("*.safetensors"))).encode())


def judged(judge: Classifier, clips: torch.Tensor, asked: Sequence[Question]) -> dict[str, Any]:
    """How often clips ``(N, 3, F, SIDE, SIDE)``, -1 to 1, show the right thing and the right motion.

    The thing is looked for in the middle frame, where it is in the middle; if it turns, in the first, where it is
    upright.
    """
    edge = (SIDE - _SEEN) // 2
    shown = torch.stack(
        [
            each[:, 0 if question.motion == "turn" else FRAMES // 2, edge : edge + _SEEN, edge : edge + _SEEN]
            for each, question in zip(clips, asked, strict=True)
        ]
    )
    ranks = ranks_of(judge, shown, [concept_of(question.thing) for question in asked])
    found = [motion_of(each) for each in clips]
    right = np.array([motion == question.motion for motion, question in zip(found, asked, strict=True)])
    by_motion = {
        motion: float(np.mean([ok for ok, question in zip(right, asked, strict=True) if question.motion == motion]))
        for motion in sorted({question.motion for question in asked})
    }
    return {
        "top1": float(np.mean(ranks < 1)),
        "top5": float(np.mean(ranks < 5)),
        "motion": float(right.mean()),
        "both_top1": float(np.mean(right & (ranks < 1))),
        "by_motion": by_motion,
        "of": len(asked),
    }


def motion_of(frames: torch.Tensor) -> str:
    """The motion that a clip ``(3, F, SIDE, SIDE)`` shows from its first to its last frame: a key of ``MOTIONS``.

    It is measured: how far the centre moves, how much the area grows, and by which angle the first frame must be turned
    to look most like the last.
    """
    border = torch.cat([frames[..., :2, :].flatten(1), frames[..., -2:, :].flatten(1)], dim=1)
    background = border.median(dim=1).values[:, None, None]
    first, last = frames[:, 0] - background, frames[:, -1] - background
    (x, y, area), (to_x, to_y, to_area) = _placed(first), _placed(last)
    if not area or not to_area:
        return "nothing"
    factor = math.sqrt(to_area / area)
    if factor > _LARGER:
        return "grow"
    if factor < 1 / _LARGER:
        return "shrink"
    across, down = to_x - x, to_y - y
    if max(abs(across), abs(down)) > _FAR:
        if abs(across) > abs(down):
            return "right" if across > 0 else "left"
        return "down" if down > 0 else "up"
    angle = _angle(_centred(first, x, y), _centred(last, to_x, to_y))
    return "turn" if _TURNED[0] <= angle <= _TURNED[1] else "still"


def _placed(apart: torch.Tensor) -> tuple[float, float, int]:
    """Centre and area of a thing, in pixels, from the differences from the background ``(3, SIDE, SIDE)``."""
    rows, columns = torch.nonzero(apart.abs().amax(0) / 2 > _APART, as_tuple=True)
    if not len(rows):
        return 0.0, 0.0, 0
    return float(columns.float().mean()), float(rows.float().mean()), len(rows)


def _centred(apart: torch.Tensor, x: float, y: float) -> torch.Tensor:
    return torch.roll(apart, (round((SIDE - 1) / 2 - y), round((SIDE - 1) / 2 - x)), (1, 2))


def _angle(first: torch.Tensor, last: torch.Tensor) -> int:
    """Degrees, clockwise, by which the first must be turned to look most like the last."""
    turns = torch.tensor([angle * math.pi / 180 for angle in _ANGLES], device=first.device)
    cos, sin, zero = torch.cos(turns), torch.sin(turns), torch.zeros_like(turns)
    theta = torch.stack([cos, sin, zero, -sin, cos, zero], dim=1).unflatten(1, (2, 3))
    grid = F.affine_grid(theta, [len(turns), *first.shape], align_corners=False)
    turned = F.grid_sample(first.expand(len(turns), -1, -1, -1), grid, align_corners=False)
    return _ANGLES[int((turned - last).square().mean((1, 2, 3)).argmin())]


def _make(pipe: HunyuanVideoPipeline, asked: Sequence[Question], calling: Calling) -> torch.Tensor:
    """``(B, 3, FRAMES, SIDE, SIDE)``, -1 to 1."""
    made = pipe(
        [question.prompt for question in asked],
        negative_prompt=[""] * len(asked),
        true_cfg_scale=calling.cfg,
        num_inference_steps=calling.steps,
        height=SIDE,
        width=SIDE,
        num_frames=FRAMES,
        max_sequence_length=calling.length,
        generator=[torch.Generator().manual_seed(question.seed) for question in asked],
        output_type="pt",
    ).frames
    clips: torch.Tensor = made.float().cpu().transpose(1, 2) * 2 - 1
    return clips


def _sheet(clips: torch.Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """One clip a row, one frame a column: ``(B SIDE, F SIDE, 3)``."""
    rows = clips.permute(0, 3, 2, 4, 1).reshape(len(clips) * clips.shape[3], -1, 3)
    return np.asarray(((rows.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8))
