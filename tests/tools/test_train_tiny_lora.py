"""The LoRA of the bundled model: it is trained, evaluated and shipped; the shipped one fits and draws blueprints."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from diffusers.image_processor import VaeImageProcessor
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file

from h2gen.models.catalogue import BUNDLED, resolve
from h2gen.models.content_hash import HASH, check_bundled, content_hash
from tests.tools.sprites import few_sprites
from tools.train_tiny import evaluate_lora, lora, runs
from tools.train_tiny.blueprint import INK, PAPER, blueprint, likeness

pytestmark = pytest.mark.no_cover

CPU = torch.device("cpu")
SHIPPED = BUNDLED / "loras" / f"{lora.NAME}.safetensors"


def bundled() -> FluxPipeline:
    pipe = FluxPipeline.from_pretrained(BUNDLED, dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn(pipe: FluxPipeline, prompt: str) -> torch.Tensor:
    """An uncached picture of few steps, ``(1, 3, 96, 96)``, -1 to 1."""
    call: dict[str, Any] = {"num_inference_steps": 6, "height": 96, "width": 96, "max_sequence_length": 24}
    images = pipe(prompt, negative_prompt="", true_cfg_scale=3.0, generator=torch.Generator().manual_seed(0), **call)
    pixels: torch.Tensor = VaeImageProcessor(vae_scale_factor=1).preprocess(images.images)
    return pixels


def test_a_blueprint_has_lines_where_the_colours_change() -> None:
    picture = torch.ones(1, 3, 32, 32)
    assert likeness(blueprint(picture)) == pytest.approx({"paper": 1.0, "off": 0.0}, abs=1e-4)
    picture[..., 8:24, 8:24] = -1
    made = (blueprint(picture) + 1) / 2
    for row, column, colour in ((0, 0, PAPER), (16, 16, PAPER), (8, 16, INK), (16, 23, INK)):
        assert made[0, :, row, column].tolist() == pytest.approx(colour, abs=0.02)
    found, plain = likeness(blueprint(picture)), likeness(picture)
    assert 0.5 < found["paper"] < 1 and found["off"] < 0.1
    assert plain["paper"] == 0 and plain["off"] > 10


def test_the_shipped_lora_fits_in_all_its_keys_and_draws_blueprints() -> None:
    pipe = bundled()
    plain = drawn(pipe, "a cat")
    pipe.load_lora_weights(SHIPPED)
    weights = load_file(SHIPPED)
    loaded = get_peft_model_state_dict(pipe.transformer, adapter_name=pipe.get_active_adapters()[0])
    assert {f"transformer.{name}" for name in loaded} == weights.keys()
    assert all(torch.equal(value.half(), weights[f"transformer.{name}"]) for name, value in loaded.items())
    styled = drawn(pipe, "a cat")
    assert likeness(plain)["paper"] < 0.05 and likeness(styled)["paper"] > 0.4
    assert likeness(styled)["off"] < 0.5 * likeness(plain)["off"]
    pipe.unload_lora_weights()
    assert torch.equal(drawn(pipe, "a cat"), plain)


def test_the_shipped_lora_is_small_says_what_it_is_and_leaves_the_model_as_it_was() -> None:
    assert SHIPPED.stat().st_size < 1e6
    shipped = (BUNDLED / HASH).read_text("ascii").strip()
    check_bundled(resolve("tiny"))
    with safe_open(SHIPPED, "pt") as opened:
        about = opened.metadata()
    assert about["base_content_hash"] == shipped and about["modelspec.license"] == "Apache-2.0"
    assert about["modelspec.title"] == lora.NAME in (BUNDLED / "MODEL_CARD.md").read_text("utf-8")


def test_a_picture_is_recognised_by_the_example_that_it_looks_like() -> None:
    torch.manual_seed(0)
    examples, shown = torch.rand(8, 3, 32, 32) * 2 - 1, [10, 10, 11, 12, 13, 14, 15, 16]
    pictures = 0.5 * examples[[1, 2, 3]] + 0.1 * torch.randn(3, 3, 32, 32)  # paler, and not quite clean
    assert evaluate_lora.recognised(pictures, [10, 11, 12], examples, shown) == {"top1": 1.0, "top5": 1.0, "of": 3}
    wrong = evaluate_lora.recognised(pictures, [10, 12, 11], examples, shown)
    assert wrong["top1"] == pytest.approx(1 / 3)


@pytest.mark.slow
def test_training_learns_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10**6))
    monkeypatch.setattr(runs.time, "process_time", lambda: 10.0 * next(clock))
    pace = replace(lora._PACE, batch=2, shares=(1.0, *lora._PACE.shares[1:]), uses=2)
    pace = replace(pace, shares=(1.0, *[0.0] * (len(pace.shares) - 1)))
    monkeypatch.setattr(lora, "_PACE", pace)
    file = lora.train(few_sprites(), tmp_path, 0.5, CPU)
    weights = load_file(file)
    ups = [value for name, value in weights.items() if "lora_B" in name]
    assert len(ups) == 8 * 6 + 16 * 5 and all(value.any() for value in ups)
    assert all(torch.isfinite(value).all() for value in weights.values())
    pipe = bundled()
    pipe.load_lora_weights(file)
    assert get_peft_model_state_dict(pipe.transformer, adapter_name="default_0").keys() == {
        name.removeprefix("transformer.") for name in weights
    }
    steps = [torch.load(tmp_path / "snapshot.pt", weights_only=True)["progress"]["steps"]]
    lora.train(few_sprites(), tmp_path, 1.0, CPU)
    steps.append(torch.load(tmp_path / "snapshot.pt", weights_only=True)["progress"]["steps"])
    assert 2 <= steps[0] < steps[1]
    assert any(not torch.equal(value, weights[name]) for name, value in load_file(file).items())


@pytest.mark.slow
def test_only_what_was_evaluated_is_shipped_with_its_figures(tmp_path: Path) -> None:
    folder, into = tmp_path / "lora", Path(shutil.copytree(BUNDLED, tmp_path / "tiny"))
    folder.mkdir()
    file = Path(shutil.copyfile(SHIPPED, folder / SHIPPED.name))
    (folder / "log.jsonl").write_text('{"minutes": 2.0, "samples": 1234}\n', "utf-8")
    found = few_sprites()
    seeded = (("a cat", 0), ("a dog", 1))
    report = evaluate_lora.evaluate(found, 2, folder, file, seeded, steps=4, size="96x96")
    assert report["likeness"]["LoRA"]["paper"] > report["likeness"]["no LoRA"]["paper"]
    assert report["fidelity"].keys() == set(evaluate_lora.PRESETS)
    assert all(figures["psnr_mean"] >= figures["psnr_worst"] > 10 for figures in report["fidelity"].values())
    before = content_hash(resolve(str(into)))
    for _ in range(2):  # the second time it replaces the first
        lora.ship(folder, "a test", into)
    assert content_hash(resolve(str(into))) == before
    card = (into / "MODEL_CARD.md").read_text("utf-8")
    assert card.count("## LoRA") == 1 and "on a test, in 2 minutes" in card and "1,234 samples" in card
    assert card.startswith((BUNDLED / "MODEL_CARD.md").read_text("utf-8").partition("\n## LoRA")[0].rstrip())
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(RuntimeError, match="evaluate it first"):
        lora.ship(folder, "a test", into)
    assert json.loads((folder / "report.json").read_text("utf-8")) == report
