"""The autoencoder: pictures to latents an eighth as wide and high, and back."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch.nn import functional as F

from h2gen.evaluation.metrics.psnr_ssim import psnr, ssim
from tools.train_tiny.render import Renderer, to_images
from tools.train_tiny.runs import Average, Kept, Log, Run, set_rate
from tools.train_tiny.scenes import Scene, Stage
from tools.train_tiny.sprites import Sprites

LATENT_CHANNELS = 12
_BATCH, _CROP, _RATE = 32, 64, 2e-3
_NOISE = 0.1
"""Noise added to latents in training, in standard deviations: sampled latents are never exact."""
_SIDES = (96, 128, 128, 192)
_HELD_OUT = 25
"""One in this many sprites is held out of training."""


def build() -> AutoencoderTiny:
    return AutoencoderTiny(
        encoder_block_out_channels=(32,) * 4,
        decoder_block_out_channels=(48,) * 4,
        num_encoder_blocks=(0, 1, 1, 3),
        num_decoder_blocks=(4, 3, 1, 0),
        latent_channels=LATENT_CHANNELS,
    )


def train(sprites: Sprites, folder: Path, minutes: float, device: torch.device) -> None:
    """Train the autoencoder, or resume, and save it with its scale into ``folder``."""
    torch.manual_seed(0)
    model = build().to(device, memory_format=torch.channels_last)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=_RATE, betas=(0.9, 0.99), weight_decay=1e-3)
    average = Average(parameters, 0.998)
    kept = Kept(model, average, [optimizer])
    run, log = Run(folder, minutes, kept.state, kept.restore), Log(folder)
    stage, render = Stage(sprites), Renderer(sprites, device)
    rng = np.random.default_rng(run.progress.steps)
    held_out = frozenset(range(0, len(sprites.index), _HELD_OUT))
    for progress in run:
        set_rate(optimizer, progress.rate)
        pictures = _crops(stage, render, rng, held_out).to(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            latents = model.encode(pictures).latents
            decoded = model.decode(latents + _NOISE * torch.randn_like(latents)).sample
        loss = _loss(decoded.float(), pictures, latents.float())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        average.update(progress.steps)
        run.count(len(pictures))
        log.tell(run.progress, {"loss": loss})
    log.write(run.progress)
    average.hand_over()
    _measure_scale(model, stage, render)
    model.to("cpu").save_pretrained(folder)


def load(folder: Path, device: torch.device) -> AutoencoderTiny:
    """Load what ``train`` saved, for inference."""
    return AutoencoderTiny.from_pretrained(folder).to(device).requires_grad_(False)


def quality(model: AutoencoderTiny, sprites: Sprites, device: torch.device, side: int = 128) -> dict[str, float]:
    """PSNR (dB) and SSIM of held-out sprites after encoding and decoding."""
    stage, render = Stage(sprites), Renderer(sprites, device)
    index = sprites.index
    scenes = [stage.one(index[i].concept, index[i].style) for i in range(0, len(index), _HELD_OUT)]
    pictures = render(scenes, side, side)
    with torch.no_grad():
        decoded = model.decode(model.encode(pictures).latents).sample
    pairs = list(zip(to_images(decoded), to_images(pictures), strict=True))
    return {
        "psnr": mean(psnr(*pair) for pair in pairs),
        "ssim": mean(ssim(*pair) for pair in pairs),
        "pictures": len(pairs),
    }


def _crops(stage: Stage, render: Renderer, rng: np.random.Generator, held_out: frozenset[int]) -> torch.Tensor:
    """Random crops of scenes, ``(B, 3, _CROP, _CROP)``."""
    side = int(rng.choice(_SIDES))
    scenes: list[Scene] = []
    while len(scenes) < _BATCH:
        scene = stage.scene(rng)
        if held_out.isdisjoint(thing.sprite for thing in scene.things):
            scenes.append(scene)
    pictures = render(scenes, side, side)
    corners = rng.integers(0, side - _CROP + 1, (_BATCH, 2))
    return torch.stack([p[:, y : y + _CROP, x : x + _CROP] for p, (y, x) in zip(pictures, corners, strict=True)])


def _loss(decoded: torch.Tensor, pictures: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """Errors of pixels, edges and the downscaled picture; keeps latents near mean 0 and standard deviation 1."""
    error = decoded - pictures
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    afar = F.avg_pool2d(error, 4).abs().mean()
    spread = latents.mean((0, 2, 3)).square().mean() + (latents.std((0, 2, 3)) - 1).square().mean()
    return error.abs().mean() + 0.5 * edges + afar + 2 * error.square().mean() + 0.05 * spread


@torch.no_grad()
def _measure_scale(model: AutoencoderTiny, stage: Stage, render: Renderer) -> None:
    """Set scale and shift so that the pipeline sees latents of mean 0 and standard deviation 1."""
    rng = np.random.default_rng(1)
    latents = model.encode(render([stage.scene(rng) for _ in range(256)], 128, 128)).latents
    model.register_to_config(scaling_factor=float(1 / latents.std()), shift_factor=float(latents.mean()))
