"""What a model takes and needs is said before it is loaded, by the same table that warns about ignored options."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from h2gen.cli.app import run
from h2gen.errors import ModelError, SettingError
from h2gen.families import TASKS
from h2gen.models.catalogue import CATALOGUE, resolve
from h2gen.models.facts import facts_of
from h2gen.models.load import load_pipeline
from h2gen.models.memory import component_bytes
from h2gen.models.memory_needed import memory_needed
from h2gen.models.quantization import QUANTIZATIONS
from h2gen.models.tasks import complete_task, tasks_of
from h2gen.settings.describe import OPTIONS, describe
from tests import small
from tests.checkpoints import edit_json

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def flux_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "flux"
    small.flux_pipeline().save_pretrained(folder)
    return folder


def uses(name: str) -> dict[str, str]:
    return {option: each["use"] for option, each in describe(name)["options"].items()}


def test_every_model_of_the_catalogue_says_what_it_takes() -> None:
    for name, entry in CATALOGUE.items():
        found = describe(name)
        assert found["tasks"] or entry.pipeline not in TASKS
        assert found["options"].keys() == {*OPTIONS} and sum(found["stages"].values()) > 20
        assert found["family"] == entry.family and found["memory"]["bytes"]["none"] > 0
        assert json.loads(json.dumps(found)) == found


def test_options_are_those_that_are_told_and_refused_when_they_are_given() -> None:
    for name in CATALOGUE:
        facts = facts_of(resolve(name))
        assert facts is not None
        for option, unused in facts.unused.items():
            assert uses(name)[option] == ("refused" if unused.refused else "ignored")
    assert (uses("dev")["guidance"], uses("schnell")["guidance"], uses("fill")["cfg"]) == ("used", "ignored", "refused")


def test_frames_are_of_videos_and_loras_of_both() -> None:
    for name, entry in CATALOGUE.items():
        told = uses(name)
        expected = "used" if entry.of_family.makes_video else "refused"
        assert (told["frames"], told["fps"], told["lora"]) == (expected, expected, "used"), name


def test_stages_are_those_of_the_paper_for_the_model_in_it() -> None:
    assert describe("dev")["stages"] == {"structure": 19, "detail": 38}
    assert describe("klein-9b")["stages"] == {"structure": 8, "detail": 24}


def test_a_cache_has_nothing_to_skip_at_four_steps() -> None:
    assert describe("klein-4b")["cache"] == {"preset": "balanced", "steps": 4, "most_reused": 1, "helps": False}
    assert describe("dev")["cache"] == {"preset": "balanced", "steps": 50, "most_reused": 47, "helps": True}


def test_published_plans_are_not_for_models_that_take_a_picture(tmp_path: Path) -> None:
    having = [name for name in CATALOGUE if describe(name)["published_plans"]]
    assert having == ["dev", "krea", "qwen-image", "hunyuan-video", "wan"]
    assert describe("wan")["published_plans"] == ["50 steps: 21 or 13 computed, an estimated 2.3x or 3.8x"]
    for pipeline, channels, is_for in (("FluxPipeline", 64, True), ("FluxKontextPipeline", 64, False)):
        folder = tmp_path / pipeline
        (folder / "transformer").mkdir(parents=True)
        (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
        config = {"num_layers": 19, "num_single_layers": 38, "guidance_embeds": True, "in_channels": channels}
        (folder / "transformer" / "config.json").write_text(
            json.dumps({"_class_name": "FluxTransformer2DModel", **config})
        )
        assert bool(describe(str(folder))["published_plans"]) is is_for
    edit_json(tmp_path / "FluxPipeline" / "transformer" / "config.json", in_channels=384)
    assert describe(str(tmp_path / "FluxPipeline"))["published_plans"] == []


def test_the_memory_of_a_folder_is_that_of_the_loaded_pipeline(flux_folder: Path, tmp_path: Path) -> None:
    klein = small.flux2_klein_pipeline()
    klein.save_pretrained(tmp_path)
    for folder, pipe in ((flux_folder, small.flux_pipeline()), (tmp_path, klein)):
        checkpoint = resolve(str(folder))
        facts = facts_of(checkpoint)
        assert facts is not None
        needed = memory_needed(checkpoint, facts)
        sizes = component_bytes(pipe.to(dtype=torch.bfloat16))
        assert needed is not None and needed.source == "files"
        assert needed.bytes["none"] == pytest.approx(sum(sizes.values()), rel=0.01)
        assert needed.bytes["model"] == pytest.approx(max(sizes.values()), rel=0.01)
        assert needed.bytes["sequential"] <= needed.bytes["group"] <= needed.bytes["model"] <= needed.bytes["none"]


def test_memory_is_told_of_weights_alone_with_a_picture_and_quantized(capsys: pytest.CaptureFixture[str]) -> None:
    memory = describe("dev")["memory"]
    assert memory["with_picture"].keys() == memory["bytes"].keys() and memory["quantized"].keys() == {*QUANTIZATIONS}
    assert all(memory["with_picture"][way] > size for way, size in memory["bytes"].items())
    assert run(["models", "show", "dev"]) == 0
    rows = {line[:20].strip(): line[21:] for line in capsys.readouterr().out.splitlines()}
    assert rows["memory"].startswith("none 36.0 GB, text 26.2 GB") and "weights included" in rows["memory"]
    assert rows["weights alone"].startswith("none 33.7 GB, text 24.0 GB")
    assert rows["--quantize int8"].endswith("of weights; the same with int8-dynamic, fp8, fp8-dynamic")
    assert "--quantize int4" in rows and "--quantize fp8" not in rows


@pytest.mark.parametrize("name", ["int8", "nf4"])
def test_quantized_weights_take_what_is_told(name: str) -> None:
    pytest.importorskip("torchao" if name == "int8" else "bitsandbytes")
    pipe = load_pipeline(resolve("tiny"), dtype="bf16", device="cpu", quantize=name)
    told = describe("tiny")["memory"]["quantized"][name]["none"]
    assert told == pytest.approx(sum(component_bytes(pipe).values()), rel=0.03)


def test_what_is_quantized_already_is_not_told_quantized(flux_folder: Path, tmp_path: Path) -> None:
    assert describe(str(flux_folder))["memory"]["quantized"]
    folder = tmp_path / "flux"
    shutil.copytree(flux_folder, folder)
    edit_json(folder / "transformer" / "config.json", quantization_config={"quant_method": "torchao"})
    assert describe(str(folder))["memory"]["quantized"] == {}


def test_a_folder_without_its_weights_does_not_say_what_they_need(tmp_path: Path) -> None:
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text('{"_class_name": "FluxTransformer2DModel"}')
    assert "memory" not in describe(str(tmp_path)) and "options" in describe(str(tmp_path))
    assert "options" not in describe("someone/unknown") and not describe("someone/unknown")["here"]


def test_a_single_file_says_what_is_in_it_and_with_a_base_all_the_rest(tmp_path: Path, flux_folder: Path) -> None:
    file = tmp_path / "flux.safetensors"
    transformer = small.flux_transformer()
    save_file(transformer.state_dict(), file)
    found = describe(str(file))
    assert (found["family"], found["stages"]) == ("FLUX.1", {"structure": 3, "detail": 4})
    assert found["parameters"] == sum(each.numel() for each in transformer.parameters())
    assert found["takes_guidance"] and found["bases"] == []
    whole = describe(str(file), str(flux_folder))
    assert whole["options"]["guidance"] == {"use": "used"} and whole["base"] == str(flux_folder)
    assert whole["memory"]["bytes"]["none"] == describe(str(flux_folder))["memory"]["bytes"]["none"]
    (tmp_path / "vae.safetensors").write_bytes(b"")
    with pytest.raises(ModelError):
        describe(str(tmp_path / "vae.safetensors"))


@pytest.mark.parametrize("columns", [50, 80])
def test_the_list_of_models_fits_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from h2gen.cli.views import models

    monkeypatch.setattr(models, "stdout", lambda: Console(width=columns))
    models.print_catalogue()
    lines = capsys.readouterr().out.splitlines()
    assert sum(line[:1] != " " for line in lines) == len(CATALOGUE) + 1 and max(map(len, lines)) <= columns
    assert all(not line.rstrip().endswith("…") for line in lines)


def test_models_show_prints_one_json_object_and_the_list_one_per_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "show", "fill", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert run(["models", "--json"]) == 0
    listed = {each["name"]: each for each in map(json.loads, capsys.readouterr().out.splitlines())}
    assert listed.keys() == CATALOGUE.keys() and listed["fill"] == shown


def test_a_model_is_described_without_torch() -> None:
    code = "import sys; from h2gen.settings.describe import describe; describe('dev'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "False"


def test_flux3_is_cut_within_its_joint_blocks_and_its_distilled_model_is_not_promised_a_cache() -> None:
    base, distilled = describe("flux3-klein-base"), describe("flux3-klein")
    assert base["stages"] == distilled["stages"] == {"structure": 9, "detail": 19}
    assert (base["tasks"].keys(), base["defaults"]["cfg"]) == ({"text", "edit"}, 3.5)
    assert base["cache"]["helps"] and base["cache"]["most_reused"] > 0
    assert (distilled["cache"]["helps"], distilled["cache"]["most_reused"]) == (False, 0)
    uses = {name: distilled["options"][name]["use"] for name in ("cfg", "negative", "solver", "guidance", "steps")}
    assert uses == {
        "cfg": "refused",
        "negative": "refused",
        "solver": "refused",
        "guidance": "ignored",
        "steps": "used",
    }


def test_what_a_model_cannot_do_without_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    needs = {name: describe(name)["needs"] for name in CATALOGUE}
    assert {name: need for name, need in needs.items() if need} == {
        "fill": ["image", "mask"], "depth": ["control"], "canny": ["control"],
    }  # fmt: skip
    for name, need in needs.items():  # as when a picture is made
        if need:
            with pytest.raises(SettingError, match=f"--{need[-1]}"):
                complete_task(name, tasks_of(resolve(name)), mask=False, control=0, pictures="image" in need)
        else:
            complete_task(name, tasks_of(resolve(name)), mask=False, control=0)
    assert run(["models", "show", "depth"]) == 0
    assert "--control; made for --control depth:FILE" in capsys.readouterr().out
