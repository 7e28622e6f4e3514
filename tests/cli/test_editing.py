"""``--image`` and ``--mask`` from the command line: made, recorded by hash, and made again from the same files only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from h2gen.cli.app import run

QUICK = ["--steps", "3", "--cfg", "1", "--size", "64", "--seed", "7", "-q"]


@pytest.fixture(autouse=True)
def files(here: Path) -> None:
    Image.new("RGB", (64, 64), "red").save("in.png")
    Image.new("L", (64, 64), 255).save("mask.png")


def pixels(name: str) -> np.ndarray:
    with Image.open(name) as image:
        return np.asarray(image)


def test_a_picture_from_a_picture_is_made_again_from_the_same_file_under_any_name(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["a cat", "--image", "in.png:0.7", "--mask", "mask.png", "-o", "out.png", *QUICK]) == 0
    assert run(["info", "out.png"]) == 0
    shown = capsys.readouterr().out
    assert "in.png:0.7" in shown and "mask.png" in shown and str(here) not in shown
    assert run(["replay", "out.png"]) == 2, "a picture does not make h2gen open a file"
    told = capsys.readouterr().err
    assert "give the file again with --image" in told and "give the file again with --mask" in told
    Path("in.png").rename("renamed.png")
    assert run(["replay", "out.png", "--image", "renamed.png", "--mask", "mask.png", "-o", "again.png", "-q"]) == 0
    assert np.array_equal(pixels("again.png"), pixels("out.png"))


def test_the_cache_makes_the_picture_that_the_settings_describe_whatever_comes_before(here: Path) -> None:
    assert run(["a cat", "-o", "text.png", *QUICK]) == 0
    for name in ("one.png", "two.png"):
        assert run(["a cat", "--image", "in.png", "-o", name, *QUICK]) == 0
    assert np.array_equal(pixels("one.png"), pixels("two.png"))
    assert not np.array_equal(pixels("one.png"), pixels("text.png"))


def test_a_file_that_is_no_picture_is_one_line_and_nothing_is_written(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("in.svg").write_text("<svg/>")
    assert run(["a cat", "--image", "in.svg", "-o", "out.png", *QUICK]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "'in.svg' is not a picture that h2gen can read" in err
    assert not Path("out.png").exists()
