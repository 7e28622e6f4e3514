"""What old files rely on and must never change: ids and names of jobs, decisions of every policy, keys of files.

No pixel and no clock is in it, so it holds on any machine. Where a change is meant, ``python -m tests.test_golden``
writes it anew.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from h2gen.cache import CacheConfig
from h2gen.cli.app import run

GOLDEN = Path(__file__).with_suffix(".json")

ENTRIES: list[dict[str, Any]] = [
    {"prompt": "a cat"},
    {"prompt": "a red apple", "seed": "3,8-9", "size": "96x64"},
    {"prompt": "a cat", "count": 2, "preset": "paper", "cfg": 1},
    {"prompt": "a cat", "steps": 6, "guidance": 3.5, "negative": "a dog", "max_sequence_length": 16},
    {"prompt": "a cat", "solver": "heun", "no_cache": True, "name": "plain"},
    {"prompt": "a cat", "tau1": 0.1, "tau2": 0.2, "warmup_steps": 2, "final_steps": 1, "max_consecutive": 3},
    {"prompt": "a cat", "preset": "quality", "tau2": 0.3, "forecast": 1, "budget": True},
    {"prompt": "a cat", "preset": "fast", "hierarchy": "checked", "max_detail_age": 2, "pfs": "stable"},
    {"prompt": "a cat", "steps": 4, "plan": "F,rs f", "width": 64, "height": 128},
    {"prompt": "a naïve 猫, über-long " + "word " * 20, "tolerance": 0.004, "mood": "calm"},
]
PAPER = {"tau1": 0.4, "tau2": 0.35}
"""No change of any of these runs comes within 0.8% of a threshold, so no machine's rounding decides."""
POLICIES: dict[str, dict[str, Any]] = {
    "paper": PAPER,
    "structure alone": {"tau1": 0.4, "tau2": 0},
    "detail alone": {"tau1": 0, "tau2": 0.35},
    "guards": {**PAPER, "warmup_steps": 3, "final_steps": 2, "max_consecutive": 2},
    "forecast": {**PAPER, "forecast": 1},
    "budget": {**PAPER, "budget": True},
    "checked": {**PAPER, "hierarchy": "checked"},
    "detail age": {**PAPER, "max_detail_age": 2},
    "stable": {**PAPER, "pfs": "stable"},
    "plan": {"plan": "FFRDCSSRFRSFRF"},
    "tolerance": {"tau1": 0, "tau2": 0, "tolerance": 0.01},
    "tolerance and thresholds": {**PAPER, "tolerance": 0.01},
}


def jobs(folder: Path) -> list[str]:
    """What a dry run of a prompt file says about each picture: its id, name and settings, as JSON text."""
    (folder / "p.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in ENTRIES))
    return printed(["batch", "p.jsonl", "-o", "out", "--dry-run", "--json"])


def decisions(session: Any, **policy: Any) -> str:
    """The outcomes of structure and detail in each pass, by their first letters."""
    seen: list[Any] = []
    cache = CacheConfig(**policy)
    session.generate("a cat", seed=7, steps=14, cfg=1.0, width=64, height=64, cache=cache, on_step=seen.append)
    passes = [record.to_json() for record in seen]
    return " ".join(each["structure"]["outcome"][0] + each["detail"]["outcome"][0] for each in passes)


def keys(folder: Path) -> dict[str, list[str]]:
    """The keys of each object that is written about a picture, in their order."""
    from PIL import Image

    quick = ["--steps", "2", "--size", "64x64", "--seed", "7", "--preset", "paper"]
    single = printed(["a cat", *quick, "--trace", "t.jsonl", "--json", "--no-metadata", "-o", "plain.png"])
    (folder / "p.jsonl").write_text('{"prompt": "a cat", "mood": "calm"}\n')
    several = printed(["batch", "p.jsonl", "-o", "out", *quick, "--json", "--sidecar"])
    (path,) = (folder / "out").glob("*.png")
    with Image.open(path) as image:
        picture = image.info["h2gen"]
    found = {
        "printed": single,
        "printed by batch": several,
        "picture": [picture],
        "journal": (folder / "out" / "h2gen-batch.jsonl").read_text().splitlines(),
        "trace": (folder / "t.jsonl").read_text().splitlines(),
    }
    return {
        **{name: [" ".join(paths(json.loads(text))) for text in texts] for name, texts in found.items()},
        "sidecar": [" ".join(paths(tomllib.loads(path.with_suffix(".toml").read_text(encoding="utf-8"))))],
    }


def paths(table: dict[str, Any], start: str = "") -> list[str]:
    """``{"a": {"b": 1}}`` becomes ``["a.b"]``."""
    return [
        path
        for key, value in table.items()
        for path in (paths(value, f"{start}{key}.") if isinstance(value, dict) else [start + key])
    ]


def printed(arguments: list[str]) -> list[str]:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert run(arguments) == 0
    return out.getvalue().splitlines()


@pytest.fixture
def golden() -> Any:
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


def test_ids_names_and_settings_of_jobs_stay(golden: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert jobs(tmp_path) == golden["jobs"]


@pytest.mark.parametrize("name", POLICIES)
def test_decisions_of_each_policy_stay(golden: Any, tiny: Any, name: str) -> None:
    assert decisions(tiny, **POLICIES[name]) == golden["decisions"][name]


def test_keys_of_files_stay_in_their_order(golden: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert keys(tmp_path) == golden["keys"]


def main() -> None:
    import h2gen

    session = h2gen.load("tiny")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        made = {
            "jobs": jobs(Path(folder)),
            "decisions": {name: decisions(session, **policy) for name, policy in POLICIES.items()},
            "keys": keys(Path(folder)),
        }
    GOLDEN.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
