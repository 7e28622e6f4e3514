"""The autoencoder of the small video model: causal, with the bundled picture autoencoder's latents of every 4th frame.

The picture model's transformer then draws single frames of a video from the start, and both parts are trained apart.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLHunyuanVideo, AutoencoderTiny
from torch.nn import functional as F

from h2gen.models.catalogue import BUNDLED
from tools.train_tiny.autoencoder import LATENT_CHANNELS
from tools.train_tiny.runs import Average, Kept, Log, Run, set_rate
from tools.train_tiny.sprites import Sprites
from tools.train_tiny.video_clips import EVERY, FRAMES, THINGS, Projector, clip, random_clip

_BATCH, _CROP, _RATE = 4, 5, 3e-3
"""Clips at a time, side of their crops in latents, learning rate."""
_SINGLE = 0.4
"""Share of the budget, at its beginning, in which the decoder learns single frames, nine times as many."""
_MARGIN = 4
"""Pixels along a crop's edges that are not judged: what lies beyond the edge, the decoder does not see there."""
_WIDTHS = (16, 32, 48)
_NOISE = 0.1
"""Noise added to latents in training, in standard deviations: sampled latents are never exact."""
_ENCODE_EVERY = 8
"""One step in this many trains the encoder, which generation does not need."""
_LOG_VARIANCE = -6.0
"""What the encoder says of how uncertain its latents are."""


def picture_autoencoder(device: torch.device) -> AutoencoderTiny:
    """The bundled picture model's."""
    vae = AutoencoderTiny.from_pretrained(BUNDLED / "vae", dtype=torch.float32, local_files_only=True)
    return vae.to(device).requires_grad_(False)


@torch.no_grad()
def latents_of(vae: AutoencoderTiny, keys: torch.Tensor) -> torch.Tensor:
    """The picture autoencoder's latents of frames ``(B, 3, F, side, side)``, of mean 0 and standard deviation 1."""
    encoded = vae.encode(keys.transpose(1, 2).flatten(0, 1)).latents.float()
    scaled = (encoded - vae.config.shift_factor) * vae.config.scaling_factor
    return scaled.unflatten(0, (len(keys), -1)).transpose(1, 2)


def build() -> AutoencoderKLHunyuanVideo:
    """A new autoencoder, an eighth as wide and high and a quarter as long."""
    return AutoencoderKLHunyuanVideo(
        latent_channels=LATENT_CHANNELS,
        down_block_types=("HunyuanVideoDownBlock3D",) * len(_WIDTHS),
        up_block_types=("HunyuanVideoUpBlock3D",) * len(_WIDTHS),
        block_out_channels=_WIDTHS,
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )


def train(sprites: Sprites, folder: Path, minutes: float, device: torch.device) -> None:
    """Train the autoencoder, or resume, and save it into ``folder``; on a CPU, the minutes are of its own time."""
    torch.manual_seed(0)
    model = build().to(device, memory_format=torch.channels_last_3d)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=_RATE, betas=(0.9, 0.99), weight_decay=1e-3)
    average = Average(parameters, 0.99)
    kept = Kept(model, average, [optimizer])
    run, log = Run(folder, minutes, kept.state, kept.restore, every=3, processor=device.type == "cpu"), Log(folder)
    picture, project = picture_autoencoder(device), Projector(sprites, device)
    rng = np.random.default_rng(run.progress.steps)
    for progress in run:
        set_rate(optimizer, progress.rate)
        encoding = progress.steps % _ENCODE_EVERY == 0
        single = progress.share < _SINGLE and not encoding
        clips = [random_clip(rng) for _ in range(_BATCH * (FRAMES if single else 1))]
        frames = project([replace(each, path=each.path[[rng.integers(FRAMES)]]) for each in clips] if single else clips)
        with torch.autocast(device.type, torch.bfloat16):
            clean = latents_of(picture, frames[:, :, ::EVERY])
            if encoding:
                mean, spread = model.quant_conv(model.encoder(frames)).float().chunk(2, dim=1)
                name, loss = "encoder", (mean - clean).square().mean() + 0.1 * (spread - _LOG_VARIANCE).square().mean()
            else:
                clean, frames = _cropped(clean, frames, rng)
                noisy = clean + _NOISE * torch.randn_like(clean)
                decoded = model.decoder(model.post_quant_conv(noisy)).float()
                name, loss = "frames" if single else "clips", _loss(decoded, frames)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        average.update(progress.steps)
        run.count(len(frames))
        log.tell(run.progress, {name: loss})
    log.write(run.progress)
    average.hand_over()
    model.to("cpu", memory_format=torch.contiguous_format).save_pretrained(folder)


def load(folder: Path, device: torch.device) -> AutoencoderKLHunyuanVideo:
    """Load what ``train`` saved, for inference."""
    return AutoencoderKLHunyuanVideo.from_pretrained(folder).to(device).eval().requires_grad_(False)


@torch.no_grad()
def quality(model: AutoencoderKLHunyuanVideo, sprites: Sprites, device: torch.device) -> dict[str, float]:
    """PSNR (dB) of clips of each thing: of the decoder from the picture model's latents, and through both halves."""
    picture, project = picture_autoencoder(device), Projector(sprites, device)
    motions = ("right", "turn", "grow", "down")
    clips = [clip(thing, motions[thing % len(motions)]) for thing in range(len(THINGS))]
    frames = project(clips)
    clean = latents_of(picture, frames[:, :, ::EVERY])
    both = model.encode(frames).latent_dist.mode()
    return {
        "decoder": _psnr(model.decode(clean).sample, frames),
        "both": _psnr(model.decode(both).sample, frames),
        "clips": len(clips),
    }


def _psnr(decoded: torch.Tensor, frames: torch.Tensor) -> float:
    errors = ((decoded.clamp(-1, 1) - frames) / 2).square().mean((1, 2, 3, 4))
    return float((-10 * errors.log10()).mean())


def _cropped(
    latents: torch.Tensor, frames: torch.Tensor, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same part of latents and frames, at a random place."""
    scale = frames.shape[-1] // latents.shape[-1]
    top, left = rng.integers(0, latents.shape[-1] - _CROP + 1, 2)
    rows, columns = slice(top, top + _CROP), slice(left, left + _CROP)
    pixels = [slice(each.start * scale, each.stop * scale) for each in (rows, columns)]
    return latents[..., rows, columns], frames[..., pixels[0], pixels[1]]


def _loss(decoded: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """Errors of pixels, edges and the downscaled frames."""
    inner = slice(_MARGIN, -_MARGIN)
    error = (decoded - frames)[..., inner, inner]
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    afar = F.avg_pool3d(error, (1, 4, 4)).abs().mean()
    return error.abs().mean() + 0.5 * edges + afar + 2 * error.square().mean()
