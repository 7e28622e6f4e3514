"""A solver or a shift that a model's own scheduler does not go with is refused before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from h2gen.cli.app import run
from h2gen.errors import ModelError, SettingError
from h2gen.families import FAMILIES
from h2gen.generation.solvers import solving
from h2gen.models import CATALOGUE
from h2gen.settings.resolve import resolve_request
from tests import small

MAKERS = {
    "FLUX.1": small.flux_pipeline,
    "HunyuanVideo": small.hunyuan_video_pipeline,
    "Wan 2.1": small.wan_pipeline,
    "Qwen-Image": small.qwen_image_pipeline,
    "Z-Image": small.z_image_pipeline,
}
CHOICES: list[dict[str, Any]] = [
    *({"solver": name} for name in ("own", "unipc", "heun", "dpm++", "lcm")),
    *({"shift": value} for value in ("own", "3", "dynamic")),
]


@pytest.mark.parametrize("name", MAKERS)
def test_what_running_it_refuses_is_refused_before_it_is_loaded(name: str) -> None:
    """Of a model that is known by name only, with no file on this machine."""
    alias = next(entry.name for entry in CATALOGUE.values() if entry.repo and entry.family == name)
    pipe = MAKERS[name]()
    family = FAMILIES[type(pipe.transformer).__name__]
    assert type(pipe.scheduler).__name__ == family.scheduler["_class_name"]

    def runs(given: dict[str, Any]) -> None:
        with solving(pipe, given.get("solver", "own"), given.get("shift", "own")):
            pass

    def is_resolved(given: dict[str, Any]) -> None:
        resolve_request("a cat", {"model": alias, "seed": 7, **given}, {})

    def said(attempt: Callable[[dict[str, Any]], None], given: dict[str, Any]) -> str:
        try:
            attempt(given)
        except (ModelError, SettingError) as error:
            return str(error)
        return ""

    refused = [choice for choice in CHOICES if said(runs, choice)]
    assert [said(is_resolved, choice) for choice in CHOICES] == [said(runs, choice) for choice in CHOICES]
    assert refused == [
        *([{"solver": "lcm"}] if name == "Wan 2.1" else []),
        *([] if family.shifts_by_size else [{"shift": "dynamic"}]),
    ]


@pytest.mark.parametrize(
    ("scheduler", "words"),
    [
        ({"_class_name": "DDIMScheduler"}, "--solver lcm: the model's scheduler, DDIMScheduler, does not support flow"),
        ({"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True}, "--solver lcm: LCM cannot follow"),
        ({"_class_name": "UniPCMultistepScheduler"}, "UniPCMultistepScheduler, does not support flow matching"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, ""),
    ],
)
def test_a_folder_says_which_scheduler_it_has(
    tmp_path: Path, scheduler: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for part, config in (
        ("transformer", {**small.wan_transformer().config, "_class_name": "WanTransformer3DModel"}),
        ("scheduler", scheduler),
    ):
        (tmp_path / part).mkdir()
        (tmp_path / part / f"{'scheduler_' * (part == 'scheduler')}config.json").write_text(json.dumps(config))
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
    given = {"model": str(tmp_path), "seed": 7, "solver": "lcm"}
    if not words:
        assert resolve_request("a cat", given, {}).settings.solver == "lcm"
        return
    with pytest.raises(SettingError, match=words):
        resolve_request("a cat", given, {})
    assert run(["a cat", "-m", str(tmp_path), "--solver", "lcm", "--dry-run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line and line.endswith("leave out --solver.")
