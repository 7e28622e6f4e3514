"""How a model would be loaded here is said before it is, with torch only where there may be a GPU."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import h2gen
from h2gen.cli.app import run
from h2gen.models import devices, fit_here, place, resolve
from h2gen.models.footprint import Work
from h2gen.models.load_options import LoadOptions, unheeded_limit
from h2gen.settings.describe import describe
from h2gen.settings.workload import default_work
from tests import checkpoints, small

AUTO = LoadOptions(offload="auto")
NO_EFFECT = "--memory 1GB has no effect on the CPU; it limits the memory of a GPU."


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for a card of 24 GiB."""
    monkeypatch.setattr(fit_here, "may_have_gpu", lambda: True)
    monkeypatch.setattr(devices, "devices", lambda: {"cuda": 1, "cpu": 1})
    monkeypatch.setattr(devices, "_has_bf16", lambda _device: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _device: (9, 0))
    monkeypatch.setattr(place, "free_memory", lambda _device: 23 * 2**30)
    monkeypatch.setattr(place, "free_host_memory", lambda: 10**11)


def line(name: str, options: LoadOptions = AUTO) -> str | None:
    return fit_here.fit_here(resolve(name), options, default_work(resolve(name)))


@pytest.mark.usefixtures("card")
def test_a_card_is_asked_what_is_free() -> None:
    assert "text encoders leave cuda" in (line("klein-9b") or "")
    assert "one block at a time" in (line("klein-9b", LoadOptions(offload="auto", dtype="fp32")) or "")
    assert line("klein-9b", LoadOptions(offload="model")) is None
    assert line("klein-9b", LoadOptions(offload="auto", memory="none")) is None
    assert "10.0 GB that --memory allows" in (line("klein-9b", LoadOptions(offload="auto", memory="10GB")) or "")
    small_text = LoadOptions(offload="auto", quantize="nf4", quantize_text="nf4")
    assert "whole model is on cuda (needs" in (line("klein-9b", small_text) or "")
    fp32 = LoadOptions(offload="auto", dtype="fp32", memory="8GB", quantize_text="nf4")
    assert "each part of the model" in (line("klein-9b", fp32) or "")  # bitsandbytes goes with nothing slower
    assert "text encoders" in describe("klein-9b")["memory"]["here"]


@pytest.mark.usefixtures("card")
def test_a_dry_run_says_if_the_cache_does_not_fit_into_main_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = resolve("klein-9b")
    work = replace(default_work(checkpoint), host_tokens=10**6)

    def lines(work: Work = work, **given: str) -> list[str]:
        return fit_here.lines_here(checkpoint, LoadOptions(**given), work)

    monkeypatch.setattr(fit_here, "free_host_memory", lambda: 10**9)
    told, fit = lines(offload="auto")
    assert "the cache needs 8.2 GB of main memory with --cache-memory cpu, but only 1.0 GB" in told
    assert "text encoders leave cuda" in fit
    assert lines(offload="model") == [told] and "16.4 GB" in lines(offload="model", dtype="fp32")[0]
    assert lines(replace(work, host_tokens=0), offload="model") == []
    monkeypatch.setattr(fit_here, "free_host_memory", lambda: 10**11)
    assert lines(offload="model") == []


@pytest.mark.usefixtures("card")
def test_a_dry_run_plans_nothing_where_a_run_does_not() -> None:
    checkpoint = resolve("klein-9b")
    assert fit_here.lines_here(checkpoint, LoadOptions(offload="auto", devices=2), default_work(checkpoint)) == []


@pytest.mark.usefixtures("card")
def test_a_dry_run_says_what_a_limit_means_for_the_bundled_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["a cat", "--dry-run", "--memory", "10MB"]) == 0
    assert "more than the 10 MB that --memory allows" in capsys.readouterr().err
    assert run(["a cat", "--dry-run"]) == 0
    assert "Memory" not in capsys.readouterr().err


def test_a_cpu_needs_twice_as_much_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_here, "free_host_memory", lambda: 10**11)
    cpu = LoadOptions(device="cpu", offload="auto")
    whole, half = line("dev", cpu), line("dev", LoadOptions(device="cpu", dtype="bf16", offload="auto"))
    assert whole == "Memory: on the CPU the model needs 71.7 GB of main memory, out of the 100.0 GB that is free."
    assert half is not None and "36.0 GB" in half
    eight = line("dev", replace(cpu, quantize="int8"))
    assert eight is not None and "the model needs 67.5 GB of main memory while loading, out of" in eight
    assert line("someone/unknown", cpu) is None


@pytest.mark.parametrize("memory", ["auto", "none"])
def test_a_dry_run_says_if_a_cpu_has_too_little_memory(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_here, "free_host_memory", lambda: 225 * 10**8)
    said = line("dev", LoadOptions(device="cpu", offload="auto", memory=memory))
    assert said is not None and "needs 71.7 GB of main memory, more than the 22.5 GB that is free" in said


def test_a_dry_run_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small.flux_pipeline().save_pretrained(tmp_path)
    assert run(["a cat", "--model", str(tmp_path), "--device", "cpu", "--dry-run", "--size", "64x64"]) == 0
    assert "Memory: on the CPU the model needs" in capsys.readouterr().err
    assert run(["a cat", "--model", str(tmp_path), "--device", "cpu:0", "--dry-run", "--size", "64x64"]) == 0
    assert "Memory: on the CPU the model needs" in capsys.readouterr().err
    assert run(["a cat", "--device", "cpu", "--dry-run", "--json"]) == 0
    shown = capsys.readouterr()
    assert "Memory" not in shown.err and json.loads(shown.out)["settings"]["memory"]["value"] == "auto"


ONLINE = "; {} would be downloaded."
OFFLINE = ", and HF_HUB_OFFLINE is set, so a run would fail; unset it to download {}."
network = pytest.mark.parametrize(("offline", "says"), [(False, ONLINE), (True, OFFLINE)])


@pytest.fixture
def hub(offline: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of downloads, which is empty."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    return tmp_path


@network
def test_a_dry_run_says_what_a_run_would_download(hub: Path, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(checkpoints.save_single(small.flux_transformer(), hub / "flux.safetensors"))
    for words, absent, needs in (
        (["-m", "dev"], "'dev'", "33.7 GB"),
        (["-m", "someone/unknown"], "'someone/unknown'", "it"),
        (["-m", file, "--base", "dev"], "'dev'", "its other parts"),
    ):
        assert run(["a cat", *words, "--device", "cpu", "--dry-run"]) == 0
        assert capsys.readouterr().err.splitlines()[0] == f"{absent} is not on this machine{says.format(needs)}"


@network
def test_a_dry_run_says_that_a_run_would_download_the_rest(
    hub: Path, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = hub / "models--black-forest-labs--FLUX.1-dev"
    begun = repository / "snapshots" / ("1" * 40)
    small.flux_pipeline().save_pretrained(begun)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(begun.name)
    words = ["a cat", "-m", "dev", "--device", "cpu", "--dry-run"]
    assert run(words) == 0 and "download" not in capsys.readouterr().err
    (begun / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    assert run(words) == 0
    said = f"'dev' is not complete on this machine{says.format('the rest of it')}"
    assert capsys.readouterr().err.splitlines()[0] == said


@pytest.mark.parametrize("command", [["a cat"], ["compare", "a cat"], ["tune", "--steps", "9"]])
def test_a_dry_run_says_that_a_limit_has_no_effect_on_a_cpu(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*command, "--device", "cpu", "--memory", "1GB", "--dry-run"]) == 0
    assert capsys.readouterr().err.count(NO_EFFECT) == 1


def test_a_run_says_that_a_limit_has_no_effect_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["a cat", "--device", "cpu", "--steps", "1", "--size", "64x64", "--out", str(tmp_path)]
    assert run([*given, "--memory", "1GB"]) == 0
    assert capsys.readouterr().err.count(NO_EFFECT) == 1
    for unlimited in ("auto", "none"):
        assert run([*given, "--memory", unlimited]) == 0
        assert "--memory" not in capsys.readouterr().err


def test_python_is_warned_that_a_limit_has_no_effect_on_a_cpu() -> None:
    with pytest.warns(RuntimeWarning, match=NO_EFFECT) as issued:
        h2gen.load("tiny", device="cpu", memory="1GB")
    assert issued[0].filename == __file__


@pytest.mark.parametrize(
    ("device", "offload", "said"),
    [
        ("cuda", "model", None),
        ("mps", "auto", None),
        ("mps", "model", "--memory 9GB has no effect on mps with --offload model; use --offload auto."),
        ("xpu", "none", "--memory 9GB has no effect on xpu with --offload none; use --offload auto."),
    ],
)
def test_a_limit_that_nothing_keeps_to_is_mentioned(device: str, offload: str, said: str | None) -> None:
    assert unheeded_limit(LoadOptions(offload=offload, memory="9GB"), device) == said


@pytest.mark.parametrize("given", ["10", "lots", "-3GB"])
def test_a_limit_that_is_not_a_size_is_refused_before_anything_is_loaded(
    given: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["a cat", "--memory", given, "--dry-run"]) == 2
    shown = capsys.readouterr().err
    assert f"--memory '{given}' is not supported; give auto, none or a size such as 10GB." in shown


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--quantize", "int4"], "--quantize int4 does not run on the device 'cpu'; choose from int8, "),
        (["--quantize-text", "fp8-dynamic"], "--quantize-text fp8-dynamic does not run on the device 'cpu'; choose"),
        (["--offload", "group"], "--offload group saves GPU memory, but the device is the CPU; leave it out."),
    ],
)
def test_a_dry_run_refuses_what_a_run_would(given: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["a cat"], ["compare", "a cat"], ["tune", "--steps", "9"]):
        assert run([*command, "--device", "cpu", "--dry-run", *given]) == 2
        shown = capsys.readouterr()
        assert says in shown.err and len(shown.err.splitlines()) == 1 and shown.out == ""


@pytest.mark.parametrize("package", ["torchao", "bitsandbytes"])
def test_a_dry_run_says_which_package_is_missing(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == package else find(name, *rest))
    mode = "int8" if package == "torchao" else "nf4"
    assert run(["a cat", "--device", "cpu", "--dry-run", "--quantize", mode]) == 2
    needs = f"needs the package {package}; run: pip install 'h2gen[quantize]'."
    assert f"--quantize {mode} {needs}" in capsys.readouterr().err

    small.flux_pipeline().save_pretrained(tmp_path)  # a part that is stored so needs it too
    config = tmp_path / "transformer" / "config.json"
    stored = {"quant_method": package, "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    config.write_text(json.dumps({**json.loads(config.read_text()), "quantization_config": stored}))
    given = ["a cat", "--model", str(tmp_path), "--device", "cpu", "--dry-run", "--size", "64x64"]
    assert run(given) == 2
    assert needs in capsys.readouterr().err
    monkeypatch.undo()
    assert run(given) == 0
    assert run([*given, "--quantize", "int8"]) == 2
    assert "is quantized already" in capsys.readouterr().err


def test_a_dry_run_knows_what_a_quantized_model_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small.flux_pipeline().save_pretrained(tmp_path)
    given = ["a cat", "--model", str(tmp_path), "--device", "cpu", "--dry-run", "--size", "64x64", "--quantize", "int8"]
    assert run(given) == 0
    assert "Memory: on the CPU the model needs" in capsys.readouterr().err
    lines = [line("dev", LoadOptions(device="cpu", offload="auto", quantize=how)) for how in ("none", "int8")]
    whole, eight = (float(str(each).split("needs ")[1].split(" GB")[0]) for each in lines)
    assert whole > eight > whole / 2


@network
def test_a_dry_run_downloads_no_tiny_autoencoder(
    hub: Path, says: str, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr("h2gen.models.tiny_autoencoder.download_part", lambda *_: pytest.fail("it was downloaded"))
    given = ["a cat", "--device", "cpu", "--dry-run", "--preview-file", "p.png", "--preview-model", "someone/taef1"]
    assert run(given) == 0
    assert f"'someone/taef1' is not on this machine{says.format('it')}" in capsys.readouterr().err
