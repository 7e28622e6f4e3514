"""Writes the checkpoint that h2gen ships: the pipeline in half precision, with its card and defaults."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w
import torch
from diffusers import DiffusionPipeline, FluxPipeline

from h2gen.models.catalogue import BUNDLED, Checkpoint, resolve
from h2gen.models.content_hash import HASH, content_hash
from h2gen.models.defaults import FILE, read_defaults
from h2gen.models.vocabulary import KNOWS
from tools.train_tiny.concepts import concepts
from tools.train_tiny.evaluate import Calling, load
from tools.train_tiny.knowledge import knowledge
from tools.train_tiny.model import PATCH
from tools.train_tiny.sprites import notice

_LARGEST = 40 * 10**6
"""Largest size of all weights together, in bytes."""


def ship(made: Path, hardware: str, history: str = "", into: Path = BUNDLED) -> None:
    """Write the checkpoint with its card, in place of the old one. Its defaults are those of its evaluation.

    ``history`` is text for the card about the training.

    Raises:
        RuntimeError: the weights are too large to ship, or were not evaluated.
    """
    partial = into.with_name(f"{into.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    pipe = load(made / "model" / "pipeline", torch.device("cpu"))
    report = json.loads((made / "evaluation" / "report.json").read_text(encoding="utf-8"))
    if (
        report["content_hash"] != content_hash(resolve(pipe.name_or_path))
        or not {"retrieval", "composed"} <= report.keys()
    ):
        raise RuntimeError("The model changed since its evaluation, or that was not complete: evaluate it first.")
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in _networks(pipe).items()}
    save_half(pipe, partial)
    weights = sum(path.stat().st_size for path in partial.rglob("*.safetensors"))
    if weights > _LARGEST:
        raise RuntimeError(f"The weights are {weights / 1e6:.1f} MB; at most {_LARGEST / 1e6:.0f} MB may be shipped.")
    distilled = pipe.transformer.config.guidance_embeds
    (partial / FILE).write_text(_defaults(Calling(**report["calling"]), distilled), encoding="utf-8")
    parts = ["autoencoder", "model/shallow", "model"]
    if distilled:
        parts.append("model/distilled")
    trained = [training(name, made / name) for name in parts if (made / name).exists()]
    card = _card(pipe.transformer.config, sizes, weights, report, trained, hardware, history)
    put_in_place(partial, into, card, knowledge(report["names"]))


def save_half(pipe: DiffusionPipeline, partial: Path) -> None:
    """Save a pipeline in half precision, into a folder that ``put_in_place`` completes."""
    pipe.to(torch.float16).save_pretrained(partial, max_shard_size="1GB")
    for path in (partial / "model_index.json", *partial.glob("*/config.json")):
        path.write_text(cleaned(path.read_text(encoding="utf-8")), encoding="utf-8")


def put_in_place(partial: Path, into: Path, card: str, knows: Mapping[str, Any]) -> None:
    """Complete a checkpoint that has its weights and defaults, and put it in place of the old one."""
    checkpoint = Checkpoint(into.name, "bundled", partial, None, read_defaults(partial / FILE))
    (partial / HASH).write_text(f"{content_hash(checkpoint)}\n", encoding="ascii")
    (partial / "MODEL_CARD.md").write_text(card, encoding="utf-8")
    (partial / KNOWS).write_text(f"{json.dumps(knows, indent=1)}\n", encoding="utf-8")
    shutil.rmtree(into, ignore_errors=True)
    partial.rename(into)


def cleaned(config: str) -> str:
    """A configuration without paths of this machine and keys unknown to diffusers.

    Half precision is only for the disk: by default everything loads in float32.
    """
    values = json.loads(config)
    values.pop("_name_or_path", None)
    if values.get("_class_name") == "AutoencoderTiny":
        values.pop("block_out_channels", None)
    if "dtype" in values:
        values["dtype"] = "float32"
    return f"{json.dumps(values, indent=2)}\n"


def _networks(pipe: FluxPipeline) -> dict[str, torch.nn.Module]:
    return {
        "transformer": pipe.transformer,
        "CLIP text encoder": pipe.text_encoder,
        "T5 text encoder": pipe.text_encoder_2,
        "autoencoder": pipe.vae,
    }


def _defaults(calling: Calling, distilled: bool) -> str:
    values: dict[str, Any] = {
        "width": calling.width,
        "height": calling.height,
        "steps": calling.steps,
        "guidance": calling.guidance,
        "cfg": calling.cfg,
        "max_sequence_length": calling.length,
        "size_multiple": PATCH,
    }
    said = "# The defaults of this checkpoint."
    if not distilled:
        said += " Guidance is not distilled into it: cfg is the true one."
    return f"{said}\n{tomli_w.dumps(values)}"


def training(part: str, folder: Path) -> str:
    """The card's row of one part: minutes and samples of its training."""
    last = json.loads((folder / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    return f"| {part.replace('model/', '')} | {last['minutes']:.0f} | {last['samples']:,} |"


def _card(
    shape: Any,
    sizes: dict[str, int],
    weights: int,
    report: dict[str, Any],
    trained: list[str],
    hardware: str,
    history: str,
) -> str:
    template = Path(__file__).with_name("card.md").read_text(encoding="utf-8")
    return template.format(
        megabytes=f"{weights / 1e6:.0f}",
        blocks=blocks(shape),
        sizes="\n".join(f"| {name} | {count / 1e6:.1f} M |" for name, count in sizes.items()),
        packages=notice(),
        training="\n".join(trained),
        hardware=hardware,
        history=f"\n{textwrap.fill(history, 120)}\n" if history else "",
        calling=", ".join(f"{name} {value}" for name, value in report["calling"].items()),
        **report["calling"],
        names=report["names"],
        known=textwrap.fill(", ".join(concept.name for concept in concepts()[: report["names"]]), 120),
        judge=_percent(report["judge"]),
        unseen="\n".join(f"| {style} | {_row(seen)} |" for style, seen in report["unseen_styles"].items()),
        retrieval=_percent(report["retrieval"]),
        sizes_seen="\n".join(f"| {size} | {_row(found)} |" for size, found in report["sizes"].items()),
        composed=_percent(report["composed"]),
        psnr=f"{report['autoencoder']['psnr']:.1f}",
        ssim=f"{report['autoencoder']['ssim']:.3f}",
        changes="\n".join(
            f"| {steps} | {stage} | {low['min']:.3f} | {low['median']:.3f} | {low['max']:.3f} |"
            for steps, stages in report["changes"].items()
            for stage, low in stages.items()
        ),
    )


def blocks(shape: Any) -> str:
    return (
        f"{shape.num_layers} double and {shape.num_single_layers} single blocks, "
        f"{shape.num_attention_heads} heads of {shape.attention_head_dim}"
    )


def _row(found: dict[str, float]) -> str:
    """The card's cells of how often the right thing was recognised."""
    return f"{100 * found['top1']:.3g}% | {100 * found['top5']:.3g}% | {found['of']}"


def _percent(values: dict[str, float]) -> str:
    shares = ", ".join(f"{name.replace('_', ' ')} {100 * share:.3g}%" for name, share in values.items() if name != "of")
    return f"{shares} (of {values['of']})"
