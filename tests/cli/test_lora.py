"""``--lora``: recorded in the picture, shown, asked for at replay, and kept together in a batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from h2gen.batches.batch import Batch, BatchOptions
from h2gen.batches.jobs import Jobs
from h2gen.batches.prompts import read_prompts
from h2gen.cli.app import run
from tests import loras, small


@pytest.fixture
def model(here: Path) -> Path:
    """A small model, and LoRAs for it: style.safetensors and other.safetensors."""
    pipe = small.flux_pipeline()
    pipe.save_pretrained(here / "flux")
    for seed, name in enumerate(("style", "other")):
        delta = loras.delta(pipe.transformer, loras.ATTENTION, seed)
        loras.save(here / f"{name}.safetensors", loras.in_layout("kohya", delta))
    return here / "flux"


def test_a_picture_says_which_lora_it_has_and_is_made_again_with_it(
    model: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = ["a cat", "--model", str(model), "--steps", "2", "--size", "64", "--seed", "1"]
    assert run([*made, "--lora", "style.safetensors:0.5", "-o", "a.png"]) == 0
    assert run([*made, "-o", "plain.png"]) == 0
    capsys.readouterr()
    assert run(["info", "a.png"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("lora")]
    assert "style.safetensors:0.5" in line
    assert str(here) not in (here / "a.png").read_bytes().decode("latin-1")
    assert run(["replay", "a.png", "--model", str(model), "-o", "b.png"]) == 2
    assert "The picture was made with the LoRA 'style.safetensors' (SHA-256 " in capsys.readouterr().err
    (here / "style.safetensors").rename(here / "moved.safetensors")
    assert run(["replay", "a.png", "--model", str(model), "-o", "b.png", "--lora", "moved.safetensors"]) == 0
    assert np.array_equal(Image.open(here / "a.png"), Image.open(here / "b.png"))
    assert run(["replay", "a.png", "--model", str(model), "-o", "c.png", "--lora", "other.safetensors"]) == 0
    assert "made with the lora style.safetensors:0.5; this one uses other.safetensors:1" in capsys.readouterr().err
    assert run(["replay", "a.png", "--model", str(model), "-o", "d.png", "--lora", "none"]) == 0
    assert np.array_equal(Image.open(here / "d.png"), Image.open(here / "plain.png"))


def test_a_file_that_is_none_is_one_line_and_nothing_is_written(
    model: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(here.iterdir())
    assert run(["a cat", "--model", str(model), "--lora", "missing.safetensors"]) == 2
    assert capsys.readouterr().err == "h2gen: --lora: there is no file 'missing.safetensors'; check the path.\n"
    assert run(["a cat", "--lora", "style.safetensors"]) == 2
    assert "for a width of 32; 'tiny' is FLUX.1 with a width of" in capsys.readouterr().err
    assert sorted(here.iterdir()) == before


def test_models_show_tells_what_a_lora_is_for(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "show", "style.safetensors"]) == 0
    out = capsys.readouterr().out
    words = "for FLUX or HunyuanVideo, width 32", "4 layers of the transformer in 2 blocks", "Kohya"
    assert all(each in out for each in words)


def test_a_batch_makes_pictures_with_the_same_loras_one_after_the_other(model: Path, here: Path) -> None:
    own = {
        "a": "style.safetensors",
        "b": "other.safetensors:2",
        "c": "style.safetensors",
        "d": "",
        "e": "style.safetensors:2",
    }
    lines = [
        f"{prompt} --lora {lora}" if lora else prompt for prompt, lora in {**own, "f": "other.safetensors:2"}.items()
    ]
    (here / "p.txt").write_text("\n".join(lines))
    jobs = Jobs(read_prompts(["p.txt"]), {"model": str(model), "seed": 1, "steps": 2}, {})
    batch = Batch(jobs, here / "out", "png", BatchOptions())
    assert [job.settings.prompt for _, job in batch._missing()] == ["a", "c", "b", "f", "d", "e"]
    assert [job.index for _, job in batch._missing()] == [1, 3, 2, 6, 4, 5]
