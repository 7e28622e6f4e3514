"""Trains the small video model's transformer and text encoders on latents of clips."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from tools.train_tiny.runs import Average, Kept, Log, Run, set_rate
from tools.train_tiny.sprites import Sprites
from tools.train_tiny.train import optimizers_of, sigmas
from tools.train_tiny.video_autoencoder import latents_of, load, picture_autoencoder
from tools.train_tiny.video_clips import EVERY, Projector, random_clip
from tools.train_tiny.video_model import Model, Words, assemble, base, build_tokenizer, new_model

_BATCH, _RATE, _DECAY = 32, 1.2e-3, 0.99
_POOL = 16_384
"""Clips whose latents are kept and reused, each time with new noise."""


def train(sprites: Sprites, vae: Path, folder: Path, minutes: float, device: torch.device) -> None:
    """Train the model, or resume, and save the pipeline into ``folder / "pipeline"``.

    Args:
        sprites: the data set.
        vae: the trained video autoencoder, which only the saved pipeline needs.
        folder: for snapshots, log, the kept latents and the pipeline.
        minutes: the budget of all sessions together; on a CPU, of its own time.
        device: where to train.
    """
    torch.manual_seed(0)
    pipe = base()
    words = Words(build_tokenizer(), pipe.tokenizer)
    model = new_model(words, pipe).to(device)
    model.transformer.set_attention_backend("_native_math")
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    average = Average(parameters, _DECAY)
    optimizers = optimizers_of(model, _RATE)
    kept = Kept(model, average, optimizers)
    run = Run(folder, minutes, kept.state, kept.restore, every=3, processor=device.type == "cpu")
    log = Log(folder)
    torch.manual_seed(run.progress.steps)
    batches = _batches(*_pool(sprites, folder / "pool.pt", device), run.progress.steps)
    for progress, (captions, clean) in zip(run, batches, strict=False):
        for optimizer in optimizers:
            set_rate(optimizer, progress.rate)
        with torch.autocast(device.type, torch.bfloat16):
            loss = _loss(model, words, captions, clean.to(device))
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        average.update(progress.steps)
        run.count(len(captions))
        log.tell(run.progress, {"loss": loss, "gradient": norm})
    log.write(run.progress)
    average.hand_over()
    assemble(model.to("cpu"), words, load(vae, torch.device("cpu"))).save_pretrained(folder / "pipeline")


@torch.no_grad()
def _pool(sprites: Sprites, file: Path, device: torch.device) -> tuple[list[str], torch.Tensor]:
    """Captions and latents ``(_POOL, C, F, h, w)`` of clips, made once."""
    if not file.exists():
        picture, project = picture_autoencoder(device), Projector(sprites, device)
        rng = np.random.default_rng(0)
        clips = [random_clip(rng) for _ in range(_POOL)]
        parts = [latents_of(picture, project(clips[i : i + 64], EVERY)).half() for i in range(0, _POOL, 64)]
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"captions": [clip.caption for clip in clips], "latents": torch.cat(parts).cpu()}, file)
    made = torch.load(file, weights_only=True)
    return made["captions"], made["latents"]


def _batches(captions: list[str], latents: torch.Tensor, seed: int) -> Iterator[tuple[list[str], torch.Tensor]]:
    rng = np.random.default_rng(seed)
    while True:
        for rows in np.split(rng.permutation(len(captions)), range(_BATCH, len(captions), _BATCH)):
            yield [captions[row] for row in rows], latents[torch.from_numpy(rows)].float()


def _loss(model: Model, words: Words, captions: list[str], clean: torch.Tensor) -> torch.Tensor:
    """Squared error of the velocity against noise minus clip."""
    noise = torch.randn_like(clean)
    sigma = sigmas(len(clean), clean.device)
    at = sigma[:, None, None, None, None]
    ids = [each.to(clean.device) for each in words.ids(captions)]
    velocity = model((1 - at) * clean + at * noise, sigma, *ids)
    return (velocity.float() - (noise - clean)).square().mean()
