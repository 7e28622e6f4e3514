"""Make the bundled model. Needs pip install "h2gen[train]", and npm for the first command.

\b
    python -m tools.train_tiny data                      # fetch the emoji packages and draw them; needs npm
    python -m tools.train_tiny autoencoder --minutes 20
    python -m tools.train_tiny train --minutes 400
    python -m tools.train_tiny judge --minutes 10        # the classifier, and three trained without one of the styles
    python -m tools.train_tiny evaluate
    python -m tools.train_tiny ship --hardware "two CPU cores"

Every training takes a time budget, saves a snapshot every few minutes and resumes from it when run again. A larger
budget continues a finished training. To distil guidance into the model, so that one pass per step is enough:

\b
    python -m tools.train_tiny distil --minutes 30       # after train; training on undoes it
    python -m tools.train_tiny evaluate --cfg 1 --guidance 3

To teach the bundled model another style with a LoRA:

\b
    python -m tools.train_tiny data
    python -m tools.train_tiny lora --minutes 20
    python -m tools.train_tiny evaluate-lora
    python -m tools.train_tiny ship-lora --hardware "one CPU core"
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # about unused image processors; read at import

import torch
import typer

from tools.train_tiny import autoencoder as autoencoders
from tools.train_tiny import classifier, evaluate, evaluate_lora, lora, scenes, ship, sprites, text, train
from tools.train_tiny.concepts import concepts

app = typer.Typer(help=__doc__, rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False)
Folder = Annotated[Path, typer.Option(help="Folder for all data and models.")]
Minutes = Annotated[float, typer.Option(min=0, help="Time budget, over all runs together.")]
Compile = Annotated[bool, typer.Option(help="Compile the blocks: takes a minute or two, and a C++ compiler.")]
HOME = Path("build/tiny")


@app.command()
def data(folder: Folder = HOME) -> None:
    """Fetch the emoji packages by name and version, draw them reproducibly, and learn the vocabularies."""
    found = sprites.build(folder / "data", folder / "packages")
    text.build_tokenizers(scenes.Stage(found), folder)
    print(f"{len(found.index)} pictures of {len(concepts())} concepts in {folder / 'data'}")


@app.command()
def autoencoder(folder: Folder = HOME, minutes: Minutes = 20) -> None:
    """Train the autoencoder."""
    found, device = sprites.load(folder / "data"), device_here()
    autoencoders.train(found, folder / "autoencoder", minutes, device)
    print(autoencoders.quality(autoencoders.load(folder / "autoencoder", device), found, device))


@app.command("train")
def train_(folder: Folder = HOME, minutes: Minutes = 150, compile: Compile = True) -> None:
    """Train the transformer and the text encoders."""
    found = sprites.load(folder / "data")
    train.train(found, folder, folder / "model", minutes, device_here(), distil=False, compiled=compile)


@app.command()
def distil(folder: Folder = HOME, minutes: Minutes = 30, compile: Compile = True) -> None:
    """Distil guidance into the finished model, so that one pass per step is enough."""
    found = sprites.load(folder / "data")
    train.train(found, folder, folder / "model", minutes, device_here(), distil=True, compiled=compile)


@app.command()
def judge(folder: Folder = HOME, minutes: Minutes = 10, check: bool = True) -> None:
    """Train the classifier on all styles; with --check also on each two of the three, to test it on the third.

    Each of the four trainings takes --minutes.
    """
    found, device = sprites.load(folder / "data"), device_here()
    for held_out in sprites.STYLES if check else ():
        others = [style for style in sprites.STYLES if style != held_out]
        model = classifier.train(found, _judge_without(folder, held_out), minutes, device, others)
        print(f"style never seen: {held_out}", classifier.accuracy(model, found, device, [held_out]))
    model = classifier.train(found, folder / "judge", minutes, device)
    print("all styles", classifier.accuracy(model, found, device, sprites.STYLES))


@app.command("evaluate")
def evaluate_(
    folder: Folder = HOME,
    names: Annotated[int, typer.Option(help="Number of the most common concepts to ask for.")] = 100,
    singles: int = 200,
    pairs: int = 100,
    elsewhere: Annotated[int, typer.Option(help="Number of things to ask for at every other size and shape.")] = 40,
    side: Annotated[int, typer.Option(help="Side of the square pictures, in pixels.")] = 128,
    steps: int = 28,
    guidance: float = 1.0,
    cfg: float = 3.0,
    length: int = 24,
) -> None:
    """Generate pictures of fixed prompts and seeds, judge them, and write report.json and sheet.png."""
    found, device = sprites.load(folder / "data"), device_here()
    model = classifier.load(folder / "judge", device)
    pipe = evaluate.load(folder / "model" / "pipeline", device)
    calling = evaluate.Calling(side, side, steps, guidance, cfg, length)
    asked, others = evaluate.questions(names, singles, pairs), evaluate.questions(names, elsewhere, 0)
    unseen = {
        style: classifier.load(_judge_without(folder, style), device)
        for style in sprites.STYLES
        if _judge_without(folder, style).exists()
    }
    report = evaluate.evaluate(pipe, model, found, asked, calling, folder / "evaluation", others, unseen)
    for name, value in report.items():
        print(name, value)


@app.command("lora")
def lora_(folder: Folder = HOME, minutes: Minutes = 20) -> None:
    """Train a LoRA with which the bundled model draws blueprints.

    On a CPU, the minutes are those of its own time, which does not pass while other programs run.
    """
    print(lora.train(sprites.load(folder / "data"), folder / "lora", minutes, device_here()))


@app.command("evaluate-lora")
def evaluate_lora_(
    folder: Folder = HOME,
    names: Annotated[int, typer.Option(help="Number of the most common concepts to ask for.")] = 100,
) -> None:
    """Generate pictures with the LoRA, measure how they look, compare caches, and write report.json and sheet.png."""
    file = folder / "lora" / f"{lora.NAME}.safetensors"
    report = evaluate_lora.evaluate(sprites.load(folder / "data"), names, folder / "lora", file)
    for name, value in report.items():
        print(name, value)


@app.command("ship-lora")
def ship_lora_(
    hardware: Annotated[str, typer.Option(help="Hardware that it was trained on, for the card.")],
    folder: Folder = HOME,
) -> None:
    """Put the evaluated LoRA beside the bundled model, and its figures into the model's card."""
    print(lora.ship(folder / "lora", hardware))


@app.command("ship")
def ship_(
    hardware: Annotated[str, typer.Option(help="Hardware that it was trained on, for the card.")],
    folder: Folder = HOME,
    history: Annotated[str, typer.Option(help="More about the training, for the card.")] = "",
) -> None:
    """Replace the bundled model with the finished one, with the defaults that it was last evaluated with."""
    ship.ship(folder, hardware, history)


def _judge_without(folder: Path, style: str) -> Path:
    """Folder of the classifier trained without a style."""
    return folder / f"judge-without-{style}"


def device_here() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


if __name__ == "__main__":
    try:
        app()
    except FileNotFoundError as error:
        sys.exit(f"{error.filename} is missing: --help lists the commands in order.")
