"""Writes the small video model's checkpoint for h2gen to ship, in half precision and with its card, if it is good."""

from __future__ import annotations

import json
import shutil
import textwrap
from pathlib import Path
from typing import Any

import tomli_w
import torch
from diffusers import HunyuanVideoPipeline

from h2gen.models.defaults import FILE
from h2gen.models.entries import bundled_folder
from tools.train_tiny.colours import BACKGROUNDS
from tools.train_tiny.model import PATCH
from tools.train_tiny.ship import blocks, put_in_place, save_half, training
from tools.train_tiny.sprites import notice
from tools.train_tiny.video_clips import FPS, FRAMES, MOTIONS, SIDE, THINGS, all_captions
from tools.train_tiny.video_evaluate import Calling, load, weights_of

FOLDER = bundled_folder("tiny-video")
"""Where h2gen ships it."""
_LARGEST = 25 * 10**6
"""Largest size of all files together, in bytes."""
_THING, _MOTION = 0.6, 0.7
"""How often the thing and the motion must be right at least."""
_JUDGED = ("top1", "top5", "motion", "both_top1")


def ship(made: Path, hardware: str, history: str = "", into: Path = FOLDER) -> None:
    """Write the checkpoint with its card, in place of the old one.

    Args:
        made: the folder of autoencoder, model and evaluation.
        hardware: that it was trained on, for the card.
        history: more about the training, for the card.
        into: the checkpoint's folder.

    Raises:
        RuntimeError: it changed since its evaluation, is not good enough, or is too large.
    """
    report = json.loads((made / "evaluation" / "report.json").read_text(encoding="utf-8"))
    pipe = load(made / "model" / "pipeline", torch.device("cpu"))
    if report["weights"] != weights_of(Path(pipe.name_or_path)):
        raise RuntimeError("The model changed since its evaluation: evaluate it first.")
    thing, motion = report["made"]["top1"], report["made"]["motion"]
    if thing < _THING or motion < _MOTION:
        raise RuntimeError(
            f"The model is not good enough: {thing:.0%} of its clips show the right thing and {motion:.0%} the right "
            f"motion; {_THING:.0%} and {_MOTION:.0%} are needed. Train it further."
        )
    partial = into.with_name(f"{into.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    networks = _networks(pipe)
    save_half(pipe, partial)
    size = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
    if size > _LARGEST:
        raise RuntimeError(f"The checkpoint has {size / 1e6:.1f} MB; at most {_LARGEST / 1e6:.0f} MB may be shipped.")
    trained = [training(name, made / name) for name in ("autoencoder", "model")]
    card = _card(pipe.transformer.config, networks, size, report, trained, hardware, history)
    (partial / FILE).write_text(_defaults(Calling(**report["calling"])), encoding="utf-8")
    put_in_place(partial, into, card, knowledge())


def knowledge() -> dict[str, Any]:
    """What the captions and clips of the training data have, for ``knows.json``."""
    said = all_captions()
    return {
        "things": [[thing] for thing in THINGS],
        "colours": [],
        "sizes": [],
        "numbers": [],
        "layouts": [],
        "motions": [f"A {motion.said[0]}".strip() for motion in MOTIONS.values()],
        "backgrounds": list(BACKGROUNDS),
        "styles": [],
        "shapes": [[SIDE, SIDE]],
        "words": sorted({word for each in said for word in each.split()}),
    }


def _defaults(calling: Calling) -> str:
    values = {
        "width": SIDE,
        "height": SIDE,
        "steps": calling.steps,
        "guidance": 0.0,
        "cfg": calling.cfg,
        "max_sequence_length": calling.length,
        "size_multiple": PATCH,
        "frames": FRAMES,
        "fps": FPS,
    }
    said = "# The defaults of this checkpoint. Guidance is not distilled into it: cfg is the true one."
    return f"{said}\n{tomli_w.dumps(values)}"


def _networks(pipe: HunyuanVideoPipeline) -> dict[str, int]:
    """The numbers of parameters of the parts."""
    parts = {
        "transformer": pipe.transformer,
        "Llama text encoder": pipe.text_encoder,
        "CLIP text encoder": pipe.text_encoder_2,
        "autoencoder": pipe.vae,
    }
    return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}


def _card(
    shape: Any,
    networks: dict[str, int],
    size: int,
    report: dict[str, Any],
    trained: list[str],
    hardware: str,
    history: str,
) -> str:
    calling = Calling(**report["calling"])
    named = {"made": "made by the model", "real": "real, through the autoencoder", "drawn": "real"}
    judged = [
        _row(said, *(report[name][key] for key in _JUDGED), of=report[name]["of"]) for name, said in named.items()
    ]
    motions = [motion for motion in MOTIONS if motion in report["made"]["by_motion"]]
    by_motion = [_row(said, *(report[name]["by_motion"][each] for each in motions)) for name, said in named.items()]
    return (
        Path(__file__)
        .with_name("video_card.md")
        .read_text(encoding="utf-8")
        .format(
            megabytes=f"{size / 1e6:.0f}",
            sizes="\n".join(f"| {name} | {count / 1e6:.1f} M |" for name, count in networks.items()),
            blocks=blocks(shape),
            cfg=calling.cfg,
            steps=calling.steps,
            length=calling.length,
            side=SIDE,
            frames=FRAMES,
            known=textwrap.fill(", ".join(THINGS), 120),
            calling=f"steps {calling.steps}, cfg {calling.cfg}, length {calling.length}",
            judged="\n".join(judged),
            motions=" | ".join(motions),
            bars="|".join("---" for _ in motions),
            by_motion="\n".join(by_motion),
            decoder=report["autoencoder"]["decoder"],
            both=report["autoencoder"]["both"],
            hardware=hardware,
            history=f"\n{textwrap.fill(history, 120)}\n" if history else "",
            training="\n".join(trained),
            packages=notice(),
        )
    )


def _row(said: str, *shares: float, of: int | None = None) -> str:
    """A row of the card's tables."""
    return f"| {' | '.join([said, *(f'{share:.0%}' for share in shares), *([] if of is None else [str(of)])])} |"
