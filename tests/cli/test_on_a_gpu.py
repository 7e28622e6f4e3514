"""The program on a GPU: ways of loading and of keeping residuals that only a GPU has give the right picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from h2gen.cli.app import run

pytestmark = pytest.mark.gpu
QUICK = ["a cat", "--device", "cuda", "--seed", "7", "--steps", "4", "--size", "64", "--cfg", "1"]
QUICK += ["--plan", "FRDF", "--json"]


def made(capsys: pytest.CaptureFixture[str], *given: str) -> tuple[dict[str, Any], bytes]:
    """What is recorded of a picture, and its pixels."""
    assert run([*QUICK, "-o", "a.png", "--overwrite", *given]) == 0
    return json.loads(capsys.readouterr().out), Path("a.png").read_bytes().split(b"IDAT", 1)[1]


def test_the_way_of_loading_changes_no_pixel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    facts, plain = made(capsys)
    assert facts["device"].startswith("cuda") and facts["peak_memory"]["of"] == "allocated"
    for way in ("text", "model", "group", "sequential"):
        facts, pixels = made(capsys, "--offload", way)
        assert pixels == plain and facts["offload"] == way
    for more in (["--cache-memory", "cpu"], ["--memory", "4GB"], ["--preview-file", "preview.png"]):
        assert made(capsys, *more)[1] == plain, more


@pytest.mark.parametrize("name", ["int8", "int8-dynamic", "fp8", "nf4"])
def test_quantized_weights_make_a_picture_with_group_offloading_too(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("bitsandbytes" if name == "nf4" else "torchao")
    monkeypatch.chdir(tmp_path)
    facts, plain = made(capsys, "--quantize", name)
    assert facts["quantize"] == name
    assert made(capsys, "--quantize", name, "--offload", "group")[1] == plain
