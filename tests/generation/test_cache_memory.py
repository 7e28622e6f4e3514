"""How the cache keeps residuals, and how many bytes they are: recorded, shown, replayed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from h2gen.cli.app import run
from h2gen.output.metadata import read_metadata

QUICK = ["--steps", "4", "--size", "64", "--cfg", "1", "--seed", "3", "--plan", "FRDF"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_picture_records_what_was_kept_and_how(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found: dict[str, Any] = {}
    for how in ("device", "cpu", "fp8"):
        assert run(["a cat", *QUICK, "--cache-memory", how, "--json", "-v", "-o", f"{how}.png"]) == 0
        shown = capsys.readouterr()
        found[how] = json.loads(shown.out)
        assert "The cache kept " in shown.err and " MB per picture (residuals " in shown.err
        cache = read_metadata(here / f"{how}.png").settings.cache
        assert cache.cache_memory == found[how]["settings"]["cache_memory"] == how
    kept = {how: each["kept_bytes"] for how, each in found.items()}
    assert kept["device"] == kept["cpu"]
    assert kept["fp8"]["residuals"] < 0.3 * kept["device"]["residuals"]
    assert kept["device"]["total"] == sum(kept["device"][name] for name in ("residuals", "velocities", "decisions"))
    pixels = {how: (here / f"{how}.png").read_bytes().split(b"IDAT", 1)[1] for how in found}
    assert pixels["device"] == pixels["cpu"] != pixels["fp8"]
    assert run(["replay", "fp8.png", "-o", "again.png", "-q"]) == 0
    assert (here / "again.png").read_bytes().split(b"IDAT", 1)[1] == pixels["fp8"]
    assert run(["info", "fp8.png"]) == 0
    shown = capsys.readouterr().out
    assert "fp8" in shown and f"{kept['fp8']['total'] / 1e6:.3g} MB" in shown
