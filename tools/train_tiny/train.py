"""Training the transformer with its text encoders: flow matching, then guidance distilled into it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from tools.train_tiny import autoencoder
from tools.train_tiny.model import PATCH, assemble, build_transformer, pack, position_ids
from tools.train_tiny.render import Renderer
from tools.train_tiny.runs import Average, Log, Run, set_rate
from tools.train_tiny.scenes import Scene, Stage
from tools.train_tiny.sprites import Sprites
from tools.train_tiny.text import Text, build_encoders

_SHAPES = ((96, 96), (128, 128), (192, 192), (256, 256), (96, 144), (144, 96), (128, 192), (192, 128))
"""Height and width of pictures."""
_LENGTHS = (1, 16, 24, 32, 64, 128, 512)
_LENGTH_SHARES = (0.45, 0.15, 0.2, 0.1, 0.07, 0.025, 0.005)
"""Of batches padded to at least so many text tokens: few are long, yet no choice of length may destroy a picture."""
_SORTED = 4
"""So many batches are made at once, and share out their captions by length: padding costs as much as words."""
_MUON = 2.5
"""Muon's learning rate is so many times AdamW's: 3 learnt faster than 1 from the first 2,000 samples on."""
_STRONGEST = 6.0
"""Guidance that is distilled, from 1 up."""


@dataclass(frozen=True)
class Pace:
    """How a device is kept busy. ``width`` is the transformer's, ``batch`` of pictures of 128 x 128, and ``shares`` are
    those of ``_SHAPES``. ``decay`` is the moving average's, and ``half`` whether bfloat16 is faster."""

    width: int
    batch: int
    rate: float
    workers: int
    shares: tuple[float, ...]
    decay: float
    half: bool


_PACES = {
    "cpu": Pace(128, 32, 1e-3, 0, (0.55, 0.3, 0.01, 0.005, 0.05, 0.05, 0.0175, 0.0175), 0.999, True),
    "cuda": Pace(176, 512, 1.5e-3, 12, (0.2, 0.44, 0.08, 0.04, 0.06, 0.06, 0.06, 0.06), 0.9995, True),
}


@dataclass(frozen=True)
class Batch:
    """Scenes of one shape, and their captions' tokens; ``empty`` are those of no caption, for guidance."""

    scenes: list[Scene]
    height: int
    width: int
    clip: torch.Tensor
    t5: torch.Tensor
    empty: tuple[torch.Tensor, torch.Tensor]


class Batches(IterableDataset[Batch]):
    """Batches without end, never the same twice."""

    def __init__(self, stage: Stage, text: Text, pace: Pace, seed: int) -> None:
        self._stage, self._text, self._pace, self._seed = stage, text, pace, seed

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        rng = np.random.default_rng([self._seed, 0 if info is None else info.id])
        while True:
            height, width = _SHAPES[rng.choice(len(_SHAPES), p=self._pace.shares)]
            length = int(rng.choice(_LENGTHS, p=_LENGTH_SHARES))
            tokens = height * width // PATCH**2 + max(length, 12)
            count = max(4, round(self._pace.batch * (64 + 12) / tokens))
            scenes = [self._stage.scene(rng, width / height) for _ in range(_SORTED * count)]
            lengths = self._text.lengths([scene.caption for scene in scenes])
            order = np.argsort(lengths, kind="stable").reshape(_SORTED, count)
            for rows in rng.permutation(order):
                padded = max(length, -(-max(lengths[row] for row in rows) // 4) * 4)
                chosen = [scenes[row] for row in rows]
                tokens_of = self._text.ids([scene.caption for scene in chosen], padded)
                yield Batch(chosen, height, width, *tokens_of, self._text.ids([""], padded))


class Model(nn.Module):
    """What is trained: the transformer and both text encoders. Predicts the velocity."""

    def __init__(self, text: Text, width: int) -> None:
        super().__init__()
        self.clip, self.t5 = build_encoders(text)
        self.transformer = build_transformer(width)

    def forward(
        self,
        noisy: torch.Tensor,
        sigma: torch.Tensor,
        guidance: torch.Tensor,
        clip: torch.Tensor,
        t5: torch.Tensor,
        ids: torch.Tensor,
    ) -> torch.Tensor:
        """``noisy`` is ``(B, N, 4 C)``, ``sigma`` and ``guidance`` are ``(B,)``, ``ids`` the tokens' places."""
        embeddings = self.t5(t5)[0]
        velocity: torch.Tensor = self.transformer(
            hidden_states=noisy,
            encoder_hidden_states=embeddings,
            pooled_projections=self.clip(clip).pooler_output,
            timestep=sigma,
            guidance=guidance,
            img_ids=ids,
            txt_ids=embeddings.new_zeros(embeddings.shape[1], 3),
            return_dict=False,
        )[0]
        return velocity


def train(
    sprites: Sprites,
    made: Path,
    folder: Path,
    minutes: float,
    device: torch.device,
    *,
    distil: bool,
    compiled: bool = True,
) -> None:
    """Train, or go on, and save the pipeline into ``folder / "pipeline"``.

    Args:
        sprites: the data set.
        made: holds the tokenizers and, in ``autoencoder``, the autoencoder.
        folder: for snapshots, log and pipeline; with ``distil`` it holds a finished training to begin from.
        minutes: the budget of all sessions together.
        device: on which everything lies.
        distil: learn to do in one pass what guidance does in two.
        compiled: have the blocks compiled, which takes a minute or two at first.
    """
    torch.manual_seed(0)
    pace = _PACES[device.type]
    text, stage = Text(made), Stage(sprites)
    vae = autoencoder.load(made / "autoencoder", device)
    model = Model(text, _width(folder) or pace.width).to(device)
    parameters = list(model.parameters())
    average = Average(parameters, pace.decay)
    teacher = None
    home = folder
    if distil:
        average.restore(torch.load(folder / "snapshot.pt", map_location="cpu", weights_only=True)["state"]["average"])
        average.hand_over()
        teacher = copy.deepcopy(model).requires_grad_(False)
        home = folder / "distilled"
    optimizers = _optimizers(model, pace.rate * (0.3 if distil else 1))

    def state() -> dict[str, Any]:
        return {
            "model": model.state_dict(),
            "average": average.values,
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        }

    def restore(saved: dict[str, Any]) -> None:
        model.load_state_dict(saved["model"])
        average.restore(saved["average"])
        for optimizer, kept in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(kept)

    run, log = Run(home, minutes, state, restore), Log(home)
    for part in (model, teacher):
        if part is not None and compiled:
            part.transformer.compile_repeated_blocks(dynamic=True)
    render = Renderer(sprites, device)
    loader: Any = DataLoader(
        Batches(stage, text, pace, run.progress.steps),
        batch_size=None,
        num_workers=pace.workers,
        prefetch_factor=8 if pace.workers else None,
    )
    torch.manual_seed(run.progress.steps)
    for progress, batch in zip(run, loader, strict=False):
        for optimizer in optimizers:
            set_rate(optimizer, progress.rate)
        with torch.autocast(device.type, torch.bfloat16, enabled=pace.half):
            loss = _loss(model, teacher, batch, vae, render)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        average.update(progress.steps)
        run.count(len(batch.scenes))
        log.tell(run.progress, {"loss": loss, "gradient": norm})
    log.write(run.progress)
    average.hand_over()
    model.to("cpu")
    assemble(vae.to("cpu"), text, model.clip, model.t5, model.transformer).save_pretrained(folder / "pipeline")


def _width(folder: Path) -> int | None:
    """The transformer's width in a snapshot, which another device may have begun."""
    if not (folder / "snapshot.pt").exists():
        return None
    saved = torch.load(folder / "snapshot.pt", map_location="cpu", weights_only=True, mmap=True)
    return int(saved["state"]["model"]["transformer.x_embedder.weight"].shape[0])


def _loss(model: Model, teacher: Model | None, batch: Batch, vae: AutoencoderTiny, render: Renderer) -> torch.Tensor:
    """How far the velocity is from the straight way between noise and picture, or from the teacher's guided one."""
    device = render.device
    with torch.no_grad():
        latents = vae.encode(render(batch.scenes, batch.height, batch.width)).latents.float()
        clean = pack((latents - vae.config.shift_factor) * vae.config.scaling_factor)
        count = len(clean)
        noise = torch.randn_like(clean)
        sigma = _sigmas(count, device)
        at = sigma[:, None, None]
        noisy = (1 - at) * clean + at * noise
        ids = position_ids(latents.shape[-2], latents.shape[-1], device)
        clip, t5 = batch.clip.to(device), batch.t5.to(device)
        target, guidance = noise - clean, torch.ones_like(sigma)
        if teacher is not None:
            empty_clip, empty_t5 = (tokens.to(device).expand(count, -1) for tokens in batch.empty)
            conditional = teacher(noisy, sigma, guidance, clip, t5, ids).float()
            unconditional = teacher(noisy, sigma, guidance, empty_clip, empty_t5, ids).float()
            guidance = 1 + (_STRONGEST - 1) * torch.rand_like(sigma)
            target = unconditional + guidance[:, None, None] * (conditional - unconditional)
    velocity: torch.Tensor = model(noisy, sigma, guidance, clip, t5, ids)
    return (velocity.float() - target).square().mean()


def _sigmas(count: int, device: torch.device) -> torch.Tensor:
    """Logit-normal and stratified: most in the middle, and evenly spread in every batch."""
    quantiles = (torch.arange(count, device=device) + torch.rand(count, device=device)) / count
    normal = torch.special.ndtri(quantiles.clamp(1e-4, 1 - 1e-4))
    return torch.sigmoid(normal + 0.2)[torch.randperm(count, device=device)]


def _optimizers(model: Model, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for all else."""
    hidden = {
        parameter
        for name, parameter in model.transformer.named_parameters()
        if parameter.ndim == 2 and "blocks" in name and "norm" not in name
    }
    others = [parameter for parameter in model.parameters() if parameter not in hidden]
    muon = torch.optim.Muon(
        [parameter for parameter in model.parameters() if parameter in hidden],
        lr=_MUON * rate,
        weight_decay=0.01 / _MUON,
        adjust_lr_fn="match_rms_adamw",
    )
    return [muon, torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.95), weight_decay=0.01)]
