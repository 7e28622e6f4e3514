"""Folders that hold their weights only as a variant such as fp16, and folders that hold only a transformer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from h2gen.errors import ModelError
from h2gen.models import load_pipeline, resolve
from h2gen.models.content_hash import content_hash
from h2gen.models.files import find_weights
from tests import checkpoints, small

TRANSFORMER = "transformer/diffusion_pytorch_model"


def load(name: Path, base: Path | None = None, dtype: str = "fp32"):
    return load_pipeline(resolve(str(name), base and str(base)), device="cpu", dtype=dtype)


@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "50KB"}], ids=["one file", "shards"])
def test_a_folder_with_only_fp16_files_is_loaded_in_the_dtype_that_is_wanted(tmp_path, shards):
    pipe = small.flux_pipeline(seed=5).to(torch.float16)
    pipe.save_pretrained(tmp_path, variant="fp16", **shards)
    assert not list(tmp_path.rglob("diffusion_pytorch_model.safetensors"))
    assert find_weights(tmp_path / "transformer").variant == "fp16"
    for dtype, expected in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        loaded = load(tmp_path, dtype=dtype)
        for part in ("transformer", "vae", "text_encoder", "text_encoder_2"):
            saved = getattr(pipe, part).state_dict()
            state = getattr(loaded, part).state_dict()
            assert all(torch.equal(state[name], tensor.to(expected)) for name, tensor in saved.items())
    assert len(content_hash(resolve(str(tmp_path)))) == 64


def test_weights_without_a_variant_are_preferred(broken):
    folder = broken()
    file = folder / f"{TRANSFORMER}.safetensors"
    shutil.copy(file, folder / f"{TRANSFORMER}.fp16.safetensors")
    assert find_weights(folder / "transformer") == ([file], None)
    shutil.copy(file, folder / f"{TRANSFORMER}.bf16.safetensors")
    file.unlink()
    assert find_weights(folder / "transformer").variant == "bf16"


def test_a_missing_shard_of_a_variant_is_named(tmp_path):
    small.flux_pipeline().save_pretrained(tmp_path, variant="fp16", max_shard_size="50KB")
    shard = sorted((tmp_path / "transformer").glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ModelError, match=shard.name):
        load(tmp_path)


@pytest.mark.parametrize("inside", [False, True], ids=["the folder itself", "transformer/"])
def test_a_folder_with_only_a_transformer_takes_the_rest_from_its_base(flux_folder, tmp_path, inside):
    # Fewer blocks than the base: the folder has its own configuration.
    transformer = small.flux_transformer(seed=5, layers=2, single_layers=1)
    transformer.save_pretrained(tmp_path / "transformer" if inside else tmp_path)
    checkpoint = resolve(str(tmp_path), str(flux_folder))
    assert (checkpoint.kind, checkpoint.defaults) == ("transformer", resolve(str(flux_folder)).defaults)
    loaded = load(tmp_path, flux_folder)
    state = loaded.transformer.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in transformer.state_dict().items())
    text = load_file(flux_folder / "text_encoder" / "model.safetensors")
    assert loaded.text_encoder.num_parameters() == sum(tensor.numel() for tensor in text.values())
    first = content_hash(checkpoint)
    small.flux_transformer(seed=6, layers=2, single_layers=1).save_pretrained(
        tmp_path / "transformer" if inside else tmp_path
    )
    assert content_hash(resolve(str(tmp_path), str(flux_folder))) != first


def test_a_folder_with_only_a_transformer_without_a_base_is_told_so(tmp_path):
    small.flux_transformer().save_pretrained(tmp_path / "transformer")
    for folder in (tmp_path, tmp_path / "transformer"):
        with pytest.raises(ModelError, match=r"no model_index\.json; to use the transformer in it.*--base dev\.$"):
            load(folder)


def test_a_transformer_that_does_not_go_with_its_base_is_refused(flux_folder, flux2_folder, tmp_path):
    small.flux2_transformer().save_pretrained(tmp_path / "two")
    with pytest.raises(ModelError, match=r"is a transformer of FLUX\.2, and its base .* is FLUX\.1; give a base"):
        load(tmp_path / "two", flux_folder)
    small.flux_transformer(joint_attention_dim=48).save_pretrained(tmp_path / "wide")
    with pytest.raises(ModelError, match=r"wide' has joint_attention_dim 48, but its base .* has 32; give another"):
        load(tmp_path / "wide", flux_folder)


@pytest.mark.parametrize("size", [0, 4, 100, -1])
@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
def test_a_damaged_file_without_a_base_is_called_damaged(tmp_path, size, kind):
    file = tmp_path / f"flux.{kind}"
    if kind == "gguf":
        checkpoints.save_gguf(small.flux_transformer(), file, "Q8_0")
    else:
        checkpoints.save_single(small.flux_transformer(), file)
    checkpoints.truncate(file, size)
    with pytest.raises(ModelError, match=rf"not a {kind} file|is cut short"):
        resolve(str(file))


def test_what_is_missing_in_the_cache_of_the_hub_is_told_with_the_command(flux_folder, tmp_path):
    folder = tmp_path / "models--someone--flux" / "snapshots" / "abc"
    shutil.copytree(flux_folder, folder)
    weights = folder / f"{TRANSFORMER}.safetensors"
    command = "run `hf download someone/flux --include"
    checkpoints.truncate(weights, -1)
    with pytest.raises(ModelError, match=rf"{command} '{TRANSFORMER}.safetensors' --force-download`"):
        load(folder)
    weights.unlink()
    with pytest.raises(ModelError, match=rf"no weights: .*; {command} 'transformer/\*'`\.$"):
        load(folder)
    index = folder / f"{TRANSFORMER}.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(ModelError, match=rf"{command} 'transformer/model-00001-of-00002"):
        load(folder)
