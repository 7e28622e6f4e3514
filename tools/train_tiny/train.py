"""Training the transformer with its text encoders: flow matching, then guidance distilled into it."""

from __future__ import annotations

import copy
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny, FluxPipeline, FluxTransformer2DModel
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import CLIPTextModel, T5EncoderModel

from tools.train_tiny import autoencoder
from tools.train_tiny.model import PATCH, assemble, build_transformer, deepened, pack, position_ids, without_guidance
from tools.train_tiny.render import Renderer
from tools.train_tiny.runs import DECAY, Average, Kept, Log, Run, set_rate
from tools.train_tiny.scenes import SHAPES, Scene, Stage, Variety
from tools.train_tiny.sprites import Sprites
from tools.train_tiny.text import Text, build_encoders

Draw = Callable[[Sequence[Scene], int, int], torch.Tensor]
"""Draws scenes at a height and width: ``(B, 3, height, width)``, -1 to 1."""
_LENGTHS = (16, 24, 32, 64, 128, 512)
_LENGTH_SHARES = (0.6, 0.2, 0.1, 0.07, 0.025, 0.005)
"""Shares of batches padded to at least that many text tokens: few are long, yet every length must work."""
_SORTED = 4
"""Batches made at once, with captions sorted by length: padding costs as much as words."""
_MUON = 2.5
"""Ratio of Muon's learning rate to AdamW's: 3 learnt faster than 1 from the first 2,000 samples on."""
_STRONGEST = 6.0
"""Highest guidance that is distilled; the lowest is 1."""


@dataclass(frozen=True)
class Pace:
    """Training settings of a device.

    ``width`` is the transformer's, ``batch`` the number of 128 x 128 pictures, ``shares`` those of ``SHAPES``, and
    ``ema_decay`` the moving average's. In the first ``shallow`` share of the time the transformer is a shallow one.
    Latents are used ``uses`` times, each time with new noise, where making them is slow. ``bf16`` turns on autocast to
    bfloat16, where it is faster.
    """

    width: int
    batch: int
    rate: float
    workers: int
    shares: tuple[float, ...]
    ema_decay: float
    shallow: float
    uses: int
    bf16: bool
    variety: Variety


PACES = {
    "cpu": Pace(
        width=128,
        batch=64,
        rate=1.2e-3,
        workers=0,
        shares=(0.04, 0.24, 0.07, 0.12, 0.19, 0.03, 0.07, 0.07, 0.03, 0.07, 0.07),
        ema_decay=0.996,
        shallow=0.5,
        uses=4,
        bf16=True,
        variety=Variety(common=1.0, styles=(0.6, 0.2, 0.2), exact=True),
    ),
    "cuda": Pace(
        width=176,
        batch=512,
        rate=1.5e-3,
        workers=12,
        shares=(0.1, 0.4, 0.06, 0.08, 0.08, 0.04, 0.05, 0.05, 0.04, 0.05, 0.05),
        ema_decay=0.9995,
        shallow=0,
        uses=1,
        bf16=True,
        variety=Variety(),
    ),
}
_KEPT = 512
"""Batches of latents kept for reuse."""


@dataclass(frozen=True)
class Batch:
    """Scenes of one shape and the tokens of their captions; ``empty`` are those of an empty caption, for guidance."""

    scenes: list[Scene]
    height: int
    width: int
    clip: torch.Tensor
    t5: torch.Tensor
    empty: tuple[torch.Tensor, torch.Tensor]


class Batches(IterableDataset[Batch]):
    """An endless stream of batches, drawn from a seed."""

    def __init__(self, stage: Stage, text: Text, pace: Pace, seed: int) -> None:
        self._stage, self._text, self._pace, self._seed = stage, text, pace, seed

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        rng = np.random.default_rng([self._seed, 0 if info is None else info.id])
        while True:
            height, width = SHAPES[rng.choice(len(SHAPES), p=self._pace.shares)]
            length = int(rng.choice(_LENGTHS, p=_LENGTH_SHARES))
            tokens = height * width // PATCH**2 + length
            count = max(4, round(self._pace.batch * (64 + 16) / tokens))
            scenes = [self._stage.scene(rng, width / height) for _ in range(_SORTED * count)]
            lengths = self._text.lengths([scene.caption for scene in scenes])
            order = np.argsort(lengths, kind="stable").reshape(_SORTED, count)
            for rows in rng.permutation(order):
                padded = max(length, -(-max(lengths[row] for row in rows) // 4) * 4)
                chosen = [scenes[row] for row in rows]
                tokens_of = self._text.ids([scene.caption for scene in chosen], padded)
                yield Batch(chosen, height, width, *tokens_of, self._text.ids([""], padded))


class Model(nn.Module):
    """The trained modules: transformer and both text encoders. Predicts the velocity."""

    def __init__(self, clip: CLIPTextModel, t5: T5EncoderModel, transformer: FluxTransformer2DModel) -> None:
        super().__init__()
        self.clip, self.t5, self.transformer = clip, t5, transformer

    def forward(
        self,
        noisy: torch.Tensor,
        sigma: torch.Tensor,
        guidance: torch.Tensor,
        clip: torch.Tensor,
        t5: torch.Tensor,
        ids: torch.Tensor,
    ) -> torch.Tensor:
        """``noisy`` is ``(B, N, 4 C)``, ``sigma`` and ``guidance`` are ``(B,)``, ``ids`` the tokens' positions."""
        embeddings = self.t5(t5)[0]
        velocity: torch.Tensor = self.transformer(
            hidden_states=noisy,
            encoder_hidden_states=embeddings,
            pooled_projections=self.clip(clip).pooler_output,
            timestep=sigma,
            guidance=guidance if self.transformer.config.guidance_embeds else None,
            img_ids=ids,
            txt_ids=embeddings.new_zeros(embeddings.shape[1], 3),
            return_dict=False,
        )[0]
        return velocity


def new_model(text: Text, width: int, shallow: bool = False) -> Model:
    """A model that has learnt nothing yet."""
    return Model(*build_encoders(text), build_transformer(width, shallow))


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
    """Train, or resume, and save the pipeline into ``folder / "pipeline"``.

    On a slow device, a shallow transformer is trained first and then deepened.

    Args:
        sprites: the data set.
        made: holds the tokenizers and, in ``autoencoder``, the autoencoder.
        folder: for snapshots, log and pipeline; for ``distil``, with a finished training to start from.
        minutes: the budget of all sessions together.
        device: where to train.
        distil: learn to do in one pass what guidance does in two.
        compiled: compile the blocks, which takes a minute or two at first.
    """
    trainer = _Trainer(sprites, made, device, compiled)
    snapshot, shallow = folder / "snapshot.pt", folder / "shallow"
    if distil:
        model = trainer.model(_width(snapshot))
        parameters = list(model.parameters())
        average = Average(parameters, 0)
        average.restore(_load(snapshot)["average"])
        average.hand_over()
        teacher = copy.deepcopy(model).requires_grad_(False)
        trainer.train(model, folder / "distilled", minutes, rate=0.3, teacher=teacher)
    else:
        share = trainer.pace.shallow
        if share and not snapshot.exists():
            trainer.train(trainer.model(shallow=True), shallow, minutes * share, decay=0)
        begun = shallow / "snapshot.pt"
        model = trainer.model(_width(snapshot) or _width(begun))
        if begun.exists():
            minutes -= _read(begun)["progress"]["seconds"] / 60
            if not snapshot.exists():
                model.load_state_dict(deepened(_load(begun)["model"]))
        trainer.train(model, folder, minutes)
        shutil.rmtree(folder / "distilled", ignore_errors=True)  # distilled from a model that no longer exists
    pipe = trainer.pipeline(model)
    if not distil:
        pipe.register_modules(transformer=without_guidance(pipe.transformer))
    pipe.save_pretrained(folder / "pipeline")


class _Trainer:
    """State shared by all parts of a training."""

    def __init__(self, sprites: Sprites, made: Path, device: torch.device, compiled: bool) -> None:
        torch.manual_seed(0)
        self.pace = PACES[device.type]
        self._device, self._compiled = device, compiled
        self._text, self._stage = Text(made), Stage(sprites, self.pace.variety)
        self._render = Renderer(sprites, device)
        self._vae = autoencoder.load(made / "autoencoder", device).to(memory_format=torch.channels_last)

    def model(self, width: int | None = None, *, shallow: bool = False) -> Model:
        model = new_model(self._text, width or self.pace.width, shallow).to(self._device)
        if self._device.type == "cpu":  # with so few tokens, fused attention makes the backward pass 1.5 times as long
            model.transformer.set_attention_backend("_native_math")
        return model

    def pipeline(self, model: Model) -> FluxPipeline:
        """The pipeline on the CPU, as it is saved."""
        model.to("cpu")
        self._vae.to("cpu", memory_format=torch.contiguous_format)
        return assemble(self._vae, self._text, model.clip, model.t5, model.transformer)

    def train(
        self,
        model: Model,
        folder: Path,
        minutes: float,
        *,
        decay: float = DECAY,
        rate: float = 1,
        teacher: Model | None = None,
    ) -> None:
        """Train the model, or resume from a snapshot, and replace its weights by their average."""
        parameters = list(model.parameters())
        average = Average(parameters, self.pace.ema_decay)
        optimizers = optimizers_of(model, self.pace.rate * rate)
        kept = Kept(model, average, optimizers)
        run, log = Run(folder, minutes, kept.state, kept.restore, decay), Log(folder)
        for part in (model, teacher):
            if part is not None and self._compiled:
                part.transformer.compile_repeated_blocks(dynamic=True)
        seed = run.progress.steps
        torch.manual_seed(seed)
        batches = Batches(self._stage, self._text, self.pace, seed)
        drawn = latents_of(batches, self.pace, self._vae, self._render, seed)
        for progress, (batch, clean) in zip(run, drawn, strict=False):
            for optimizer in optimizers:
                set_rate(optimizer, progress.rate)
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self.pace.bf16):
                loss = loss_of(model, teacher, batch, clean)
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


def latents_of(
    batches: Batches, pace: Pace, vae: AutoencoderTiny, render: Draw, seed: int
) -> Iterator[tuple[Batch, torch.Tensor]]:
    """Batches with their latents ``(B, C, h, w)``, of mean 0 and standard deviation 1; some are repeated later."""
    loader: Any = DataLoader(
        batches, batch_size=None, num_workers=pace.workers, prefetch_factor=8 if pace.workers else None
    )
    kept: deque[tuple[Batch, torch.Tensor]] = deque(maxlen=_KEPT)
    rng = np.random.default_rng(seed)
    for batch in loader:
        latents = encode(vae, render, batch, pace.bf16)
        yield batch, latents
        if pace.uses > 1:
            kept.append((batch, latents))
            for place in rng.integers(len(kept), size=pace.uses - 1):
                yield kept[place]


def encode(vae: AutoencoderTiny, render: Draw, batch: Batch, bf16: bool = False) -> torch.Tensor:
    """The latents of a batch's scenes, ``(B, C, h, w)``, of mean 0 and standard deviation 1."""
    with torch.no_grad(), torch.autocast(vae.device.type, torch.bfloat16, enabled=bf16):
        latents = vae.encode(render(batch.scenes, batch.height, batch.width)).latents.float()
    scaled: torch.Tensor = (latents - vae.config.shift_factor) * vae.config.scaling_factor
    return scaled


def _read(snapshot: Path) -> dict[str, Any]:
    """What ``Run`` saved: its ``progress`` and the ``state`` of what is trained."""
    saved: dict[str, Any] = torch.load(snapshot, map_location="cpu", weights_only=True, mmap=True)
    return saved


def _load(snapshot: Path) -> dict[str, Any]:
    state: dict[str, Any] = _read(snapshot)["state"]
    return state


def _width(snapshot: Path) -> int | None:
    """The width of the transformer in a snapshot, which another device may have started."""
    if not snapshot.exists():
        return None
    return int(_load(snapshot)["model"]["transformer.x_embedder.weight"].shape[0])


def loss_of(model: Model, teacher: Model | None, batch: Batch, latents: torch.Tensor) -> torch.Tensor:
    """Squared error of the velocity against noise minus picture, or against the teacher's guided velocity."""
    device = latents.device
    with torch.no_grad():
        clean = pack(latents)
        count = len(clean)
        noise = torch.randn_like(clean)
        sigma = sigmas(count, device)
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


def sigmas(count: int, device: torch.device) -> torch.Tensor:
    """Logit-normal and stratified: mostly where the caption tells more than the noisy picture, even in each batch."""
    quantiles = (torch.arange(count, device=device) + torch.rand(count, device=device)) / count
    normal = torch.special.ndtri(quantiles.clamp(1e-4, 1 - 1e-4))
    return torch.sigmoid(normal + 0.7)[torch.randperm(count, device=device)]


def optimizers_of(model: Model, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for everything else."""
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
