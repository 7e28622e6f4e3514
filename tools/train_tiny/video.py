"""Make the small video model from the bundled picture model. Needs pip install "h2gen[train]", and npm for the data.

\b
    python -m tools.train_tiny data
    python -m tools.train_tiny judge --no-check          # the classifier
    python -m tools.train_tiny.video autoencoder --minutes 20
    python -m tools.train_tiny.video train --minutes 90
    python -m tools.train_tiny.video evaluate
    python -m tools.train_tiny.video ship --hardware "one CPU core"

Both trainings go on when run again with a larger budget; evaluate then anew. ``ship`` takes only what is good enough.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from tools.train_tiny import classifier, sprites, video_autoencoder, video_evaluate, video_ship, video_train
from tools.train_tiny.__main__ import HOME, Folder, Minutes, device_here

app = typer.Typer(help=__doc__, rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False)


@app.command()
def autoencoder(folder: Folder = HOME, minutes: Minutes = 20) -> None:
    """Train the autoencoder."""
    found, device = sprites.load(folder / "data"), device_here()
    made = folder / "video" / "autoencoder"
    video_autoencoder.train(found, made, minutes, device)
    print(video_autoencoder.quality(video_autoencoder.load(made, device), found, device))


@app.command()
def train(folder: Folder = HOME, minutes: Minutes = 90) -> None:
    """Train the transformer and the text encoders."""
    made = folder / "video"
    video_train.train(sprites.load(folder / "data"), made / "autoencoder", made / "model", minutes, device_here())


@app.command()
def evaluate(
    folder: Folder = HOME,
    each: Annotated[int, typer.Option(help="Number of motions to ask for, of every thing.")] = 2,
    steps: int = 28,
    cfg: float = 3.0,
) -> None:
    """Generate clips of fixed prompts and seeds, judge them, and write report.json and sheet.png."""
    made, device = folder / "video", device_here()
    pipe = video_evaluate.load(made / "model" / "pipeline", device)
    asked, calling = video_evaluate.questions(each), video_evaluate.Calling(steps, cfg)
    judge, found = classifier.load(folder / "judge", device), sprites.load(folder / "data")
    report = video_evaluate.evaluate(pipe, judge, found, asked, calling, made / "evaluation")
    for name, value in report.items():
        print(name, value)


@app.command()
def ship(
    hardware: Annotated[str, typer.Option(help="Hardware that it was trained on, for the card.")],
    folder: Folder = HOME,
    history: Annotated[str, typer.Option(help="More about the training, for the card.")] = "",
) -> None:
    """Write the finished checkpoint beside the bundled picture model."""
    video_ship.ship(folder / "video", hardware, history)


if __name__ == "__main__":
    try:
        app()
    except FileNotFoundError as error:
        sys.exit(f"{error.filename} is missing: --help lists the commands in order.")
