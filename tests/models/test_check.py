"""What ``h2gen models check`` finds, in whole models and in broken ones, without the network."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from h2gen.cli.app import run
from h2gen.errors import ModelError
from h2gen.models import load_pipeline, resolve
from h2gen.models.check import Checked, check_model
from h2gen.models.entries import CATALOGUE
from tests import checkpoints, small

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
REPO = "someone/flux"


@pytest.fixture
def cached(flux_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Puts the Flux folder into a cache of the hub, as the hub's client does; returns the snapshot."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)

    def put(repo: str = REPO) -> Path:
        root = tmp_path / f"models--{repo.replace('/', '--')}"
        snapshot = root / "snapshots" / "0123"
        (root / "refs").mkdir(parents=True)
        (root / "refs" / "main").write_text("0123")
        for file in (each for each in flux_folder.rglob("*") if each.is_file()):
            data = file.read_bytes()
            large = file.suffix == ".safetensors"
            name = hashlib.sha256(data) if large else hashlib.sha1(f"blob {len(data)}\0".encode() + data)
            blob = root / "blobs" / name.hexdigest()
            blob.parent.mkdir(exist_ok=True)
            blob.write_bytes(data)
            link = snapshot / file.relative_to(flux_folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(blob)
        return snapshot

    return put


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here may reach for the network: it would wait where there is none."""

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)


def problems(found: Checked) -> dict[str, tuple[str, str]]:
    return {line.subject: (line.text, line.fix) for line in found.lines if not line.ok}


@pytest.mark.parametrize("name", ["tiny", "tiny-video"])
def test_a_bundled_model_is_as_it_was_shipped(name):
    found = check_model(name)
    assert found.ok and found.kind == "bundled"
    assert {line.subject: line.text for line in found.lines}["hash"] == "all files are as shipped"


def test_a_whole_folder_is_right(flux_folder):
    found = check_model(str(flux_folder))
    assert found.ok and {line.subject for line in found.lines} > {"transformer", "vae", "tokenizer", "scheduler"}
    assert {line.subject: line.text for line in found.lines}["hash"] == "no hashes are known for these files"
    text = next(line.text for line in found.lines if line.subject == "transformer")
    assert text.startswith("1 file, ") and text.endswith("complete; its tensors match its config.json")


def test_everything_that_is_wrong_is_found_at_once(broken):
    folder = broken()
    checkpoints.truncate(folder / TRANSFORMER, -1)
    (folder / "text_encoder" / "model.safetensors").unlink()
    (folder / "tokenizer" / "tokenizer.json").write_text("{")
    shutil.rmtree(folder / "scheduler")
    checkpoints.edit_json(folder / "vae" / "config.json", latent_channels=8)
    found = problems(check_model(str(folder)))
    assert found.keys() == {"transformer", "text_encoder", "tokenizer", "scheduler", "vae"}
    assert "is cut short" in found["transformer"][0] and "not valid JSON" in found["tokenizer"][0]
    assert "whose shapes differ from its config.json" in found["vae"][0]
    assert {fix for _, fix in found.values()} == {"download it again"}


def test_a_missing_shard_is_named(tmp_path):
    small.flux_pipeline().save_pretrained(tmp_path, max_shard_size="50KB")
    shard = next((tmp_path / "transformer").glob("*-00002-of-*.safetensors"))
    shard.unlink()
    assert shard.name in problems(check_model(str(tmp_path)))["transformer"][0]


def test_the_cache_of_the_hub_has_the_hashes_of_its_files(cached):
    snapshot = cached()
    read: list[tuple[str, int, int]] = []
    found = check_model(REPO, on_read=lambda file, done, size: read.append((file.name, done, size)))
    assert found.ok and found.location == str(snapshot)
    assert "match the hub's hashes" in found.lines[-1].text
    assert read[-1][1] == read[-1][2] == sum(file.stat().st_size for file in snapshot.rglob("*") if file.is_file())
    blob = (snapshot / TRANSFORMER).resolve()
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1  # one bit of the weights
    blob.write_bytes(data)
    text, fix = problems(check_model(REPO))["hash"]
    assert "its hash differs" in text
    assert fix == f"run `hf download {REPO} --include '{TRANSFORMER}' --force-download`"
    assert check_model(REPO, hashes=False).ok


def test_a_folder_that_the_hubs_client_wrote_has_them_in_notes(flux_folder, tmp_path):
    folder = Path(shutil.copytree(flux_folder, tmp_path / "local"))
    note = folder / ".cache" / "huggingface" / "download" / f"{TRANSFORMER}.metadata"
    note.parent.mkdir(parents=True)
    digest = hashlib.sha256((folder / TRANSFORMER).read_bytes()).hexdigest()
    note.write_text(f"0123\n{digest}\n1700000000.0\n")
    assert check_model(str(folder)).lines[-1].text.startswith("1 file, ")
    note.write_text(f"0123\n{'0' * 64}\n1700000000.0\n")
    assert "its hash differs" in problems(check_model(str(folder)))["hash"][0]


def test_a_model_of_the_hub_loads_from_its_cache_without_the_network(cached):
    cached()
    assert type(load_pipeline(resolve(REPO), device="cpu")).__name__ == "FluxPipeline"


@pytest.mark.parametrize("folder", ["flux_folder", "klein_folder", "flux2_folder"])
def test_a_folder_of_every_family_loads_without_the_network(request, folder):
    pipe = load_pipeline(resolve(str(request.getfixturevalue(folder))), device="cpu")
    assert pipe.tokenizer("a cat").input_ids


def test_a_model_that_is_not_here_says_what_it_needs(cached, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _path: usage(0, 0, 10**9))
    found = problems(check_model("dev"))
    assert found["files"] == ("not on this machine", 'run `h2gen "a cat" --model dev`, which downloads it')
    assert "1.0 GB free, and 33." in found["disk"][0] and "HF_HOME" in found["disk"][1]
    assert "gated, and no token is set" in found["licence"][0]
    assert "accept it on https://huggingface.co/black-forest-labs/FLUX.1-dev, then run `hf auth" in found["licence"][1]
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_x")
    monkeypatch.setattr("shutil.disk_usage", lambda _path: usage(0, 0, 10**12))
    assert problems(check_model("dev")).keys() == {"files"}


def test_a_gated_model_that_is_here_needs_no_token(cached):
    cached(str(CATALOGUE["dev"].repo))
    lines = {line.subject: line for line in check_model("dev", hashes=False).lines}
    assert lines["licence"].ok and "already downloaded" in lines["licence"].text


def test_a_single_file_is_told_what_it_holds(flux_folder, tmp_path):
    file = checkpoints.save_single(small.flux_transformer(), tmp_path / "flux.safetensors")
    assert check_model(str(file)).lines[0].text.startswith("a transformer of FLUX.1; complete, ")
    found = check_model(str(file), str(flux_folder))
    assert found.ok and found.lines[-1].text == "the file's tensors match its base"
    wide = checkpoints.save_single(small.flux_transformer(layers=2), tmp_path / "other.safetensors")
    assert "has 2 + 4 blocks" in problems(check_model(str(wide), str(flux_folder)))["fit"][0]
    save_file(small.flux_vae().state_dict(), tmp_path / "ae.safetensors")
    assert "an autoencoder (use it with --vae)" in check_model(str(tmp_path / "ae.safetensors")).lines[0].text
    ends = {"lora_A.weight": torch.zeros(4, 32), "lora_B.weight": torch.zeros(32, 4)}
    lora = {f"transformer.transformer_blocks.0.attn.add_q_proj.{end}": tensor for end, tensor in ends.items()}
    save_file(lora, tmp_path / "style.safetensors")
    text = check_model(str(tmp_path / "style.safetensors")).lines[0].text
    assert (
        text.startswith("a LoRA for FLUX, Qwen-Image or HunyuanVideo: rank 4, ")
        and "; complete, " in text
        and text.endswith("with --lora")
    )
    checkpoints.truncate(file, -1)
    assert "is cut short" in problems(check_model(str(file)))["file"][0]


def test_a_folder_with_only_a_transformer_is_checked_alone(flux_folder, tmp_path):
    small.flux_transformer().save_pretrained(tmp_path / "transformer")
    assert [line.subject for line in check_model(str(tmp_path), str(flux_folder)).lines] == ["transformer"]
    with pytest.raises(ModelError, match="no model called"):
        check_model("tny")


def test_the_command_says_how_to_mend_and_exits_with_1(broken, capsys):
    folder = broken()
    assert run(["models", "check", str(folder), "--quick"]) == 0
    assert "wrong" not in capsys.readouterr().out
    (folder / "vae" / "config.json").unlink()
    assert run(["models", "check", str(folder)]) == 1
    line = next(line for line in capsys.readouterr().out.splitlines() if "wrong" in line)
    assert line.startswith("vae ") and "config.json' is missing; download it again" in line
    assert run(["models", "check", str(folder), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is False and found["kind"] == "folder"
    assert {
        key: each for line in found["lines"] if not line["ok"] for key, each in line.items() if key in ("subject", "ok")
    } == {"subject": "vae", "ok": False}
    assert run(["models", "check", "tny"]) == 2


def test_a_file_that_may_not_be_read_is_one_line(cached, monkeypatch):
    snapshot = cached()
    hidden = snapshot / "scheduler" / "scheduler_config.json"
    opened = Path.open

    def refuse(path, *arguments, **named):
        if path == hidden and arguments[:1] == ("rb",):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **named)

    monkeypatch.setattr(Path, "open", refuse)
    text, fix = problems(check_model(REPO))["hash"]
    assert text == f"{str(hidden)!r} cannot be read: Permission denied" and fix == "check its permissions"


def test_a_folder_that_may_not_be_entered_is_one_line(broken, monkeypatch):
    folder = broken()
    is_dir = Path.is_dir

    def refuse(path):
        if path.name == "vae":
            raise PermissionError(13, "Permission denied", str(path))
        return is_dir(path)

    monkeypatch.setattr(Path, "is_dir", refuse)
    text, fix = problems(check_model(str(folder)))["files"]
    assert text == f"{str(folder / 'vae')!r} cannot be read: Permission denied" and fix == "check its permissions"


def test_a_class_that_is_not_a_model_is_not_made(broken, monkeypatch):
    folder = broken()
    checkpoints.edit_json(folder / "transformer" / "config.json", _class_name="FluxPipeline")
    monkeypatch.setattr("diffusers.FluxPipeline.from_config", lambda *_: pytest.fail("it was made"))
    (line,) = (line for line in check_model(str(folder)).lines if line.subject == "transformer")
    assert line.text.endswith("complete")
