"""Every broken checkpoint is refused in one line that names the file and says what is wrong with it."""

from __future__ import annotations

import errno
import json
import sys

import pytest
import torch
from safetensors.torch import save_file

from h2gen.errors import ModelError
from h2gen.models import load_pipeline, resolve, translated
from tests import checkpoints, small

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"


def refusal(name: object, base: object = None) -> str:
    with pytest.raises(ModelError) as caught:
        load_pipeline(resolve(str(name), None if base is None else str(base)), device="cpu")
    message = str(caught.value)
    assert message.isprintable() and "\n" not in message
    assert len(message) < 600
    return message


def test_an_empty_folder_is_no_checkpoint(tmp_path):
    assert "model_index.json" in refusal(tmp_path)
    (tmp_path / "flux.safetensors").touch()
    assert "no model_index.json; to use 'flux.safetensors' in it, give that file, with --base." in refusal(tmp_path)


def test_another_pipeline_is_named(broken):
    folder = broken()
    checkpoints.edit_json(folder / "model_index.json", _class_name="StableDiffusionPipeline")
    message = refusal(folder)
    assert "not a checkpoint that h2gen supports" in message and "'StableDiffusionPipeline'" in message
    assert "h2gen.h2_cache(pipe)" in message  # its transformer is one of ours


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "\xff"])
def test_an_index_that_is_no_json_object_is_refused(broken, text):
    folder = broken()
    (folder / "model_index.json").write_text(text, "latin-1")
    assert "model_index.json" in refusal(folder)


@pytest.mark.parametrize(
    "part", [["os", "system"], ["my_code", "Flux"], ["diffusers.pipelines.flux", "FluxPipeline"], ["diffusers", "a.b"]]
)
def test_code_from_elsewhere_is_refused_before_anything_loads(broken, part):
    folder = broken()
    checkpoints.edit_json(folder / "model_index.json", transformer=part)
    assert "no code from outside" in refusal(folder)


def test_a_part_whose_name_leaves_the_folder_is_refused(broken):
    folder = broken()
    checkpoints.edit_json(folder / "model_index.json", **{"../../vae": ["diffusers", "AutoencoderKL"]})
    assert "no code from outside" in refusal(folder)


def test_a_class_that_does_not_exist_is_named(broken):
    folder = broken()
    checkpoints.edit_json(folder / "model_index.json", transformer=["diffusers", "Flux9Transformer"])
    assert "diffusers.Flux9Transformer" in refusal(folder)


@pytest.mark.parametrize("kind", ["FluxPipeline", "AutoModel", "logging"])
def test_a_part_that_no_pipeline_is_made_of_is_refused(broken, kind):
    folder = broken()
    checkpoints.edit_json(folder / "model_index.json", scheduler=["diffusers", kind])
    refused = f"takes a part from diffusers.{kind}, which is not a model, tokenizer, processor or scheduler"
    with pytest.raises(ModelError, match=refused):
        load_pipeline(resolve(str(folder)), device="cpu")


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "text_encoder_2"])
def test_a_part_with_only_pickled_weights_is_refused(broken, part):
    folder = broken()
    for file in (folder / part).glob("*.safetensors"):
        file.rename(file.with_suffix(".bin"))
    assert part in refusal(folder) and "pickles" in refusal(folder)


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "scheduler"])
def test_a_part_that_is_missing_is_named(broken, part):
    folder = broken()
    (folder / part).rename(folder / "elsewhere")
    assert part in refusal(folder)


def test_a_part_without_weights_is_named(broken):
    folder = broken()
    (folder / TRANSFORMER).unlink()
    assert "no weights" in refusal(folder)


@pytest.mark.parametrize("size", [0, 4, 8, 100, 5_000, 50_000, -1])
def test_weights_that_were_cut_short_are_found(broken, size):
    folder = broken()
    checkpoints.truncate(folder / TRANSFORMER, size)
    message = refusal(folder)
    assert "diffusion_pytorch_model.safetensors" in message and "download it again" in message


@pytest.mark.parametrize(
    "data",
    [
        b"not a model at all, but a page that says 404",
        b"\xff" * 64,
        b"\x02\0\0\0\0\0\0\0[]",
        b"\x10\0\0\0\0\0\0\0" + b'{"a":{"shape":1}',
        b"\x08\0\0\0\0\0\0\0" + b'{"a":12}',
        b"\x39\0\0\0\0\0\0\0" + b'{"a":{"dtype":"F32","shape":[],"data_offsets":[0,1e999]}}',
    ],
)
def test_weights_that_are_something_else_are_found(broken, data):
    folder = broken()
    (folder / TRANSFORMER).write_bytes(data)
    assert "not a safetensors file" in refusal(folder)


def test_a_missing_shard_is_named(tmp_path):
    small.flux_pipeline().save_pretrained(tmp_path, max_shard_size="50KB")
    shard = next((tmp_path / "transformer").glob("*-00002-of-*.safetensors"))
    shard.unlink()
    assert shard.name in refusal(tmp_path)


@pytest.mark.parametrize("name", ["../vae/diffusion_pytorch_model.safetensors", "weights.bin"])
def test_a_shard_outside_its_folder_is_refused(broken, name):
    folder = broken()
    index = folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    assert "not a safetensors file in the same folder" in refusal(folder)


def test_an_index_of_no_shards_is_refused(broken):
    folder = broken()
    (folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text("{}")
    assert "lists no weights" in refusal(folder)


@pytest.mark.parametrize(
    "file, tensor",
    [
        (TRANSFORMER, "transformer_blocks.1.attn.to_q.weight"),
        ("vae/diffusion_pytorch_model.safetensors", "decoder.conv_in.weight"),
        ("text_encoder/model.safetensors", "final_layer_norm.weight"),
        ("text_encoder_2/model.safetensors", "encoder.final_layer_norm.weight"),
    ],
)
def test_missing_weights_are_found(broken, file, tensor):
    folder = broken()
    names = checkpoints.load_file(folder / file)
    checkpoints.edit_weights(folder / file, drop=next(name for name in names if name.endswith(tensor)))
    message = refusal(folder)
    assert "lacks 1 of its weights" in message and tensor in message


@pytest.mark.parametrize(
    "file, tensor",
    [
        (TRANSFORMER, "transformer_blocks.1.attn.to_q.weight"),
        ("text_encoder_2/model.safetensors", "encoder.final_layer_norm.weight"),
    ],
)
def test_weights_of_another_shape_are_found(broken, file, tensor):
    folder = broken()
    checkpoints.edit_weights(folder / file, reshape=tensor)
    assert "has weights whose shapes differ from its config.json; download it again" in refusal(folder)


def test_a_config_of_another_size_is_found(broken):
    folder = broken()
    checkpoints.edit_json(folder / "transformer" / "config.json", num_layers=5)
    assert "lacks" in refusal(folder)


def test_a_config_that_leaves_out_blocks_of_the_weights_is_found(broken):
    folder = broken()
    checkpoints.edit_json(folder / "transformer" / "config.json", num_layers=2)
    message = refusal(folder)
    assert "holds 'transformer_blocks.2." in message and "so its pictures would be wrong" in message


def test_a_part_without_a_config_is_named(broken):
    folder = broken()
    (folder / "vae" / "config.json").unlink()
    assert "config.json' is missing; download it again." in refusal(folder)


def test_a_tokenizer_without_a_vocabulary_is_found(broken):
    folder = broken()
    (folder / "tokenizer" / "tokenizer.json").unlink()
    assert "no vocabulary" in refusal(folder)


def test_a_damaged_tokenizer_is_found(broken):
    folder = broken()
    (folder / "tokenizer" / "tokenizer.json").write_text("{")
    assert "damaged" in refusal(folder)


def test_a_truncated_single_file_is_found(flux_folder, tmp_path):
    file = checkpoints.save_single(small.flux_transformer(), tmp_path / "flux.safetensors")
    checkpoints.truncate(file, -1)
    assert "cut short" in refusal(file, flux_folder)


def test_a_single_file_of_another_model_is_refused(flux_folder, tmp_path):
    save_file({"conv.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    assert "not a transformer that h2gen supports" in refusal(tmp_path / "other.safetensors", flux_folder)
    save_file({}, tmp_path / "empty.safetensors")
    assert "holds no tensors" in refusal(tmp_path / "empty.safetensors", flux_folder)


def test_a_single_file_with_missing_weights_is_found(flux_folder, tmp_path):
    file = checkpoints.save_single(small.flux_transformer(), tmp_path / "flux.safetensors")
    checkpoints.edit_weights(file, drop="transformer_blocks.1.attn.to_q.weight")
    assert "lacks 'transformer_blocks.1.attn.to_q.weight'; download it again" in refusal(file, flux_folder)


def test_a_gguf_file_with_missing_weights_is_found(flux_folder, tmp_path):
    transformer = small.flux_transformer()
    del transformer.transformer_blocks[1].attn.to_q
    file = checkpoints.save_gguf(transformer, tmp_path / "flux.gguf", "Q8_0")
    assert "lacks 2 of its weights, such as 'transformer_blocks.1.attn.to_q.bias'" in refusal(file, flux_folder)


def test_a_single_file_of_another_size_than_its_base_is_found(flux2_folder, tmp_path):
    file = checkpoints.save_single(small.flux2_transformer(num_attention_heads=4), tmp_path / "wide.safetensors")
    assert "is of another size than its base" in refusal(file, flux2_folder)


@pytest.mark.parametrize("original", [False, True], ids=["diffusers names", "original names"])
def test_a_single_file_of_more_or_fewer_blocks_than_its_base_is_refused(flux2_folder, tmp_path, original):
    for layers, single_layers in ((1, 4), (5, 4), (3, 12)):
        transformer = small.flux2_transformer(layers=layers, single_layers=single_layers)
        file = checkpoints.save_single(transformer, tmp_path / "other.safetensors", original=original)
        assert f"has {layers} + {single_layers} blocks" in refusal(file, flux2_folder)


def test_a_single_file_of_another_family_than_its_base_is_refused(flux_folder, tmp_path):
    file = checkpoints.save_single(small.flux2_transformer(), tmp_path / "flux2.safetensors")
    message = refusal(file, flux_folder)
    assert "is a transformer of FLUX.2, and its base" in message and "such as klein-4b or flux2-dev" in message


def test_a_base_that_is_known_to_be_of_another_family_is_not_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr("h2gen.models.load.download", None)
    file = checkpoints.save_single(small.flux2_transformer(), tmp_path / "flux2.safetensors")
    assert "its base 'dev' is FLUX.1; give a base of FLUX.2" in refusal(file, "dev")


def test_a_single_file_that_takes_no_guidance_does_not_go_with_a_base_that_does(flux_folder, tmp_path):
    file = checkpoints.save_single(small.flux_transformer(guidance_embeds=False), tmp_path / "schnell.safetensors")
    assert "takes no guidance scale" in refusal(file, flux_folder)


@pytest.mark.parametrize("size", [0, 4, 20, 500, 5_000, -1_000])
def test_a_truncated_gguf_file_is_found(flux2_folder, tmp_path, size):
    file = checkpoints.save_gguf(small.flux2_transformer(), tmp_path / "flux2.gguf", "Q8_0")
    checkpoints.truncate(file, size)
    assert "cut short or is not a gguf file" in refusal(file, flux2_folder)


def test_a_gguf_file_without_the_package_names_the_extra(flux2_folder, tmp_path, monkeypatch):
    file = checkpoints.save_gguf(small.flux2_transformer(), tmp_path / "flux2.gguf", "Q8_0")
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert "run: pip install gguf." in refusal(file, flux2_folder)


@pytest.mark.parametrize(
    "error, words",
    [
        (OSError(errno.ENOSPC, "No space left on device"), "HF_HOME"),
        (PermissionError(errno.EACCES, "Permission denied", "x.json"), "permissions"),
        (ImportError("PixtralProcessor requires the\nTorchvision library"), "Torchvision"),
        (ConnectionError(), "connection"),
        (ValueError("\x1b[31m" + "long " * 1000), "damaged"),
        (KeyError(), "KeyError"),
    ],
)
def test_an_error_of_another_library_becomes_one_line(error, words):
    with pytest.raises(ModelError) as caught, translated(resolve("tiny")):
        raise error
    message = str(caught.value)
    assert words in message and message.isprintable() and len(message) < 400
    assert caught.value.__cause__ is error


def test_the_cause_that_counts_may_be_hidden_behind_others():
    with pytest.raises(ModelError, match="HF_HOME"), translated(resolve("tiny")):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("could not write") from error


def test_running_out_of_memory_is_not_the_checkpoints_fault():
    with pytest.raises(torch.OutOfMemoryError), translated(resolve("tiny")):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_an_error_that_is_already_in_words_passes():
    with pytest.raises(ModelError, match=r"^as it is$"), translated(resolve("tiny")):
        raise ModelError("as it is")
