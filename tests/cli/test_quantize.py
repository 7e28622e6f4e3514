"""``--quantize`` in every command: recorded, replayed, part of job ids; quiet, and one line if it cannot be done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from h2gen.cli.app import run
from tests.cli.programs import h2gen

QUICK = ["--steps", "2", "--cfg", "1", "--size", "96x96"]
INT8 = ["a cat", "--seed", "7", "-o", "cat.png", "--quantize", "int8", "--quantize-text", "fp8", *QUICK]


def pixels(path: Path) -> Any:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.slow
def test_a_quantized_picture_says_so_and_is_made_again(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["a cat", "--seed", "7", "-o", "plain.png", *QUICK]) == 0
    assert run([*INT8, "--json"]) == 0
    out, err = capsys.readouterr()
    made = json.loads(out.splitlines()[-1])
    assert (made["quantize"], made["quantize_text"]) == ("int8", "fp8")
    assert "torchao" not in err and "Failed to load" not in err
    assert not np.array_equal(pixels(here / "cat.png"), pixels(here / "plain.png"))
    assert run(["info", "cat.png"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["quantize", "int8"] in rows and ["quantize-text", "fp8"] in rows
    assert run(["replay", "cat.png", "-o", "again.png"]) == 0
    assert "The picture was made" not in capsys.readouterr().err
    assert np.array_equal(pixels(here / "again.png"), pixels(here / "cat.png"))
    assert run(["replay", "cat.png", "-o", "other.png", "--quantize", "none", "--quantize-text", "none"]) == 0
    err = " ".join(capsys.readouterr().err.split())
    assert "The picture was made with --quantize int8, and this with none." in err
    assert "The picture was made with --quantize-text fp8, and this with none." in err
    assert np.array_equal(pixels(here / "other.png"), pixels(here / "plain.png"))


@pytest.mark.slow
def test_a_batch_makes_its_pictures_again_with_another_quantization(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "p.txt").write_text("a cat\n")
    batch = ["batch", "p.txt", "-o", "out", "--seed", "1", *QUICK]
    assert run(batch) == 0
    assert run([*batch, "--quantize", "nf4"]) == 0
    assert run([*batch, "--quantize", "nf4", "--json"]) == 0
    capsys.readouterr()
    found = sorted((here / "out").glob("*.png"))
    assert len(found) == 2
    assert not np.array_equal(*map(pixels, found))


def test_what_the_cpu_cannot_do_is_one_line(here: Path) -> None:
    done = h2gen("a cat", "--quantize", "int4", "--device", "cpu", *QUICK)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == (
        "h2gen: --quantize int4 does not run on the device 'cpu'; choose from int8, int8-dynamic, fp8, nf4, fp4."
    )
    assert list(here.iterdir()) == []


def test_a_wrong_name_is_found_before_anything_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["a cat", "--quantize", "nf5"]) == 2
    choices = "none, int8, int8-dynamic, fp8, fp8-dynamic, nf4, fp4 or int4"
    assert capsys.readouterr().err == f"h2gen: --quantize 'nf5' is not supported; choose {choices}.\n"


def test_torchaos_name_of_a_mode_is_recorded_as_ours() -> None:
    from h2gen.settings.resolve import resolve_request

    assert resolve_request("a cat", {"quantize": "int8dq"}).load.quantize == "int8-dynamic"
    assert resolve_request("a cat", {}, {"H2GEN_QUANTIZE_TEXT": "nf4"}).load.quantize_text == "nf4"
