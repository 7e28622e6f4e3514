"""A LoRA for the bundled model: the style of ``blueprint``, learnt by flow matching with every other weight frozen."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

from h2gen.models.catalogue import BUNDLED, resolve
from h2gen.models.content_hash import content_hash
from tools.train_tiny.blueprint import blueprint
from tools.train_tiny.render import Renderer
from tools.train_tiny.runs import Average, Log, Run, set_rate
from tools.train_tiny.scenes import Scene, Stage
from tools.train_tiny.sprites import Sprites
from tools.train_tiny.text import Text
from tools.train_tiny.train import PACES, Batches, Model, latents_of, loss_of

NAME = "blueprint"
RANK = 8
_TARGETS = r".*blocks\.\d+\.(attn\.to_([qkv]|out\.0)|ff\.net\.(0\.proj|2)|proj_mlp|proj_out)"
"""The image's own layers in both kinds of blocks; what the text becomes stays as it is."""
_PACE = replace(
    PACES["cpu"],
    batch=16,
    rate=2e-3,
    shares=(0.04, 0.5, 0.06, 0.06, 0.06, 0.04, 0.05, 0.05, 0.04, 0.05, 0.05),
    ema_decay=0.99,
    bf16=False,
)


def train(sprites: Sprites, folder: Path, minutes: float, device: torch.device, base: Path = BUNDLED) -> Path:
    """Train the LoRA, or resume.

    Args:
        sprites: the data set.
        folder: for snapshots, log and the LoRA.
        minutes: the budget of all sessions together; on a CPU, of its own time.
        device: where to train.
        base: the model that it is for, in diffusers' layout.

    Returns:
        The LoRA's file, in diffusers' layout and half precision.
    """
    torch.manual_seed(0)
    pipe = FluxPipeline.from_pretrained(base, dtype=torch.float32, local_files_only=True).to(device)
    for part in (pipe.text_encoder, pipe.text_encoder_2, pipe.transformer, pipe.vae):
        part.requires_grad_(False)
    pipe.transformer.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=_TARGETS))
    model = Model(pipe.text_encoder, pipe.text_encoder_2, pipe.transformer)
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=_PACE.rate, betas=(0.9, 0.95), weight_decay=0.0)
    average = Average(learnt, _PACE.ema_decay)

    def state() -> dict[str, Any]:
        return {"learnt": learnt, "average": average.values, "optimizer": optimizer.state_dict()}

    def restore(saved: dict[str, Any]) -> None:
        with torch.no_grad():
            for own, value in zip(learnt, saved["learnt"], strict=True):
                own.copy_(value)
        average.restore(saved["average"])
        optimizer.load_state_dict(saved["optimizer"])

    run, log = Run(folder, minutes, state, restore, every=2, processor=device.type == "cpu"), Log(folder)
    seed = run.progress.steps
    torch.manual_seed(seed)
    batches = Batches(Stage(sprites, _PACE.variety), Text(base), _PACE, seed)
    render = Renderer(sprites, device)

    def draw(scenes: Sequence[Scene], height: int, width: int) -> torch.Tensor:
        return blueprint(render(scenes, height, width))

    drawn = latents_of(batches, _PACE, pipe.vae, draw, seed)
    for progress, (batch, clean) in zip(run, drawn, strict=False):
        set_rate(optimizer, progress.rate)
        with torch.autocast(device.type, torch.bfloat16, enabled=_PACE.bf16):
            loss = loss_of(model, None, batch, clean)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(learnt, 1.0)
        optimizer.step()
        average.update(progress.steps)
        run.count(len(batch.scenes))
        log.tell(run.progress, {"loss": loss, "gradient": norm})
    log.write(run.progress)
    average.hand_over()
    return _save(pipe, folder, base)


def _save(pipe: FluxPipeline, folder: Path, base: Path) -> Path:
    layers = get_peft_model_state_dict(pipe.transformer)
    about = {
        "format": "pt",
        "modelspec.title": NAME,
        "modelspec.architecture": "flux-1-dev/lora",
        "modelspec.description": "Blueprints: pale lines on blue paper. For h2gen's bundled model; no trigger word.",
        "modelspec.author": "h2gen, by python -m tools.train_tiny lora",
        "modelspec.license": "Apache-2.0",
        "base_content_hash": content_hash(resolve(str(base))),
    }
    FluxPipeline.save_lora_weights(
        folder,
        transformer_lora_layers={name: value.detach().half().cpu().contiguous() for name, value in layers.items()},
        weight_name=f"{NAME}.safetensors",
        save_function=lambda weights, path: save_file(weights, path, metadata=about),
    )
    return folder / f"{NAME}.safetensors"


def ship(folder: Path, hardware: str, into: Path = BUNDLED) -> Path:
    """Copy the evaluated LoRA to the model's, and put its figures at the end of the model's card.

    Raises:
        RuntimeError: it was not evaluated since it was trained.
    """
    file = folder / f"{NAME}.safetensors"
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    if report["sha256"] != sha256(file):
        raise RuntimeError("The LoRA changed since its evaluation: evaluate it first.")
    last = json.loads((folder / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    text = Path(__file__).with_name("lora_card.md").read_text(encoding="utf-8")
    section = text.format(
        name=NAME,
        rank=RANK,
        kilobytes=round(file.stat().st_size / 1000),
        hardware=hardware,
        minutes=f"{last['minutes']:.0f}",
        samples=f"{last['samples']:,}",
        **tables(report),
    )
    card = into / "MODEL_CARD.md"
    before = card.read_text(encoding="utf-8").partition(text.splitlines()[0].format(name=NAME))[0].rstrip()
    card.write_text(f"{before}\n\n{section}", encoding="utf-8")
    (into / "loras").mkdir(exist_ok=True)
    return Path(shutil.copyfile(file, into / "loras" / file.name))


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def tables(report: dict[str, Any]) -> dict[str, Any]:
    """A report's figures as the rows of the card's tables."""
    alike, seen, fidelity = report["likeness"], report["recognised"], report["fidelity"]
    return {
        "names": report["names"],
        **{top: f"{100 * seen[top]:.3g}" for top in ("top1", "top5")},
        "likeness": _rows([name, f"{look['paper']:.0%}", f"{look['off']:.1f}"] for name, look in alike.items()),
        "of": fidelity["balanced"]["of"],
        "fidelity": _rows([f"`{preset}`", *_close(found)] for preset, found in fidelity.items()),
    }


def _close(found: dict[str, float]) -> list[str]:
    psnrs = [f"{found[name]:.1f}" for name in ("psnr_mean", "psnr_worst")]
    return [f"{found['blocks']:.0%}", *psnrs, *(f"{found[name]:.3f}" for name in ("ssim_mean", "ssim_worst"))]


def _rows(rows: Iterable[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
