"""``--preview`` and its relatives, as a user meets them."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import AutoencoderTiny
from PIL import Image

from h2gen.cli.app import run
from tests import small
from tests.cli.programs import h2gen, in_a_terminal, read_until
from tests.small import seeded

QUICK = ["--steps", "4", "--cfg", "1", "--seed", "7", "--preset", "paper"]


def pixels(path: Path) -> Any:
    with Image.open(path) as image:
        return np.asarray(image, np.float64)


def tiny_autoencoder(folder: Path, channels: int) -> Path:
    with seeded(0):
        AutoencoderTiny(
            latent_channels=channels,
            encoder_block_out_channels=(4, 4, 4, 4),
            decoder_block_out_channels=(4, 4, 4, 4),
            num_encoder_blocks=(1, 1, 1, 1),
            num_decoder_blocks=(1, 1, 1, 1),
        ).save_pretrained(folder)
    return folder


def test_a_file_gets_the_previews_in_its_format_and_the_picture_stays_the_same(here: Path) -> None:
    assert run(["a cat", *QUICK, "--out", "plain.png", "--no-metadata"]) == 0
    for name, kind in (("new/now.png", "PNG"), ("now.jpg", "JPEG"), ("now.webp", "WEBP")):
        assert run(["a cat", *QUICK, "-o", "cat.png", "--no-metadata", "--overwrite", "--preview-file", name]) == 0
        with Image.open(here / name) as image:
            assert (image.format, image.size) == (kind, (32, 32))
        assert (here / "cat.png").read_bytes() == (here / "plain.png").read_bytes()
    assert not [*here.glob(".h2gen*"), *(here / "new").glob(".h2gen*")]


def test_piped_there_is_a_line_and_no_picture(here: Path) -> None:
    done = h2gen("a cat", *QUICK, "--preview")
    assert done.returncode == 0
    assert "stderr is not a terminal, so --preview shows nothing; use --preview-file FILE" in done.stderr
    assert "▀" not in done.stderr and "\x1b" not in done.stderr
    assert done.stdout == "a-cat-7.png\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preview-every", "2"], "--preview-every needs --preview or --preview-file; add one."),
        (["--preview-model", "x"], "--preview-model needs --preview or --preview-file; add one."),
        (["--preview", "--preview-every", "0"], "--preview-every is 0; give a whole number from 1 upwards."),
        (["--preview-file", "now"], "--preview-file is 'now'; give a .png, .jpg or .webp file."),
        (["--preview-file", "now.bmp"], "Cannot write .bmp files ('now.bmp'); use .png, .jpg or .webp."),
        (
            ["-o", "cat.png", "--preview-file", "./cat.png"],
            "cat.png' is where a picture goes; give another file.",
        ),
        (["--seed", "1,2", "-o", "cat.png", "--preview-file", "cat-2.png"], "cat-2.png' is where a picture goes"),
        (["--preview", "--preview-model", "nowhere"], "There is no tiny autoencoder 'nowhere'; give a folder"),
    ],
    ids=str,
)
def test_mistakes_are_found_before_anything_is_loaded(here: Path, options: list[str], message: str) -> None:
    done = h2gen("a cat", *QUICK, *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert not [*here.iterdir()]


def test_previews_never_replace_an_input(here: Path) -> None:
    Image.new("RGB", (64, 64), "red").save("in.png")
    before = Path("in.png").read_bytes()
    done = h2gen("a cat", *QUICK, "--image", "in.png", "--preview-file", "./in.png")
    assert done.returncode == 2 and "is what the picture is made from; give another file." in done.stderr
    assert Path("in.png").read_bytes() == before


def test_a_file_that_cannot_be_written_any_more_costs_no_picture(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("h2gen.generation.preview_options.partial_file", full)
    done = h2gen("a cat", *QUICK, "--preview-file", "now.png")
    assert done.returncode == 0
    assert done.stderr.count("No more previews are written to 'now.png': No space left on device.") == 1
    assert (here / "a-cat-7.png").exists()


def test_a_tiny_autoencoder_decodes_previews(here: Path) -> None:
    folder = tiny_autoencoder(here / "taef", 12)  # the bundled model's channels
    assert run(["a cat", *QUICK, "-o", "plain.png", "--no-metadata"]) == 0
    more = ["--preview-file", "now.png", "--preview-model", str(folder)]
    assert run(["a cat", *QUICK, "-o", "cat.png", "--no-metadata", *more]) == 0
    assert pixels(here / "now.png").shape == (128, 128, 3)
    assert np.array_equal(pixels(here / "cat.png"), pixels(here / "plain.png"))


def test_a_model_that_cannot_decode_the_previews_is_refused(here: Path) -> None:
    folder = tiny_autoencoder(here / "other", 16)
    done = h2gen("a cat", *QUICK, "--preview-file", "now.png", "--preview-model", str(folder))
    assert done.returncode == 2
    assert "decodes latents of 16 channels, and this model's have 12; give a tiny autoencoder made" in done.stderr
    small.flux_vae().save_pretrained(here / "vae")
    done = h2gen("a cat", *QUICK, "--preview-file", "now.png", "--preview-model", str(here / "vae"))
    assert done.returncode == 2
    assert "is not a tiny autoencoder: its config.json says 'AutoencoderKL', not AutoencoderTiny." in done.stderr
    assert not (here / "now.png").exists()


def test_the_bundled_models_own_autoencoder_is_one_too(here: Path) -> None:
    more = ["--preview-file", "now.png", "--preview-model", str(small.BUNDLED / "vae")]
    assert run(["a cat", *QUICK, "-o", "cat.png", *more]) == 0
    made, preview = (pixels(here / name) for name in ("cat.png", "now.png"))
    assert np.abs(made - preview).mean() < 2, "the last step expects the picture itself"


@pytest.mark.slow
@pytest.mark.posix
def test_in_a_terminal_the_picture_stands_beside_the_table_and_ctrl_c_leaves_it_clean(here: Path) -> None:
    with in_a_terminal("a cat", "--steps", "10000", "--cfg", "1", "--no-cache", "--preview", whole=True) as (
        process,
        end,
    ):
        seen = read_until(end, "▀.*full|full.*▀")
        assert "▀" in seen
        os.kill(process.pid, signal.SIGINT)
        rest = read_until(end, "nothing was saved")
        assert process.wait(600) == 130
        rest += read_until(end)
    assert "\x1b[?25h" in rest, "the cursor is shown again"
    assert not [*here.glob("*.png")]
