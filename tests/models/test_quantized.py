"""Weights in 8 bits with scales become the weights that they stand for; other layouts are refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from h2gen.errors import ModelError
from h2gen.models import load_pipeline, resolve
from tests import checkpoints, small

LARGEST = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0, torch.int8: 127.0}
FORMATS = {torch.float8_e4m3fn: "float8_e4m3fn", torch.float8_e5m2: "float8_e5m2", torch.int8: "int8_tensorwise"}
BLOCK = "single_blocks.0.linear2"

pytestmark = pytest.mark.usefixtures("narrow_flux1")


def text(config: Any) -> torch.Tensor:
    return torch.tensor(list(json.dumps(config).encode()), dtype=torch.uint8)


def quantized(
    dtype: torch.dtype, scale: str, shape: str = "tensor", prefix: str = ""
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The tensors of a file whose blocks are quantized, and the weights that they stand for."""
    tensors: dict[str, torch.Tensor] = {}
    meant: dict[str, torch.Tensor] = {}
    for name, weight in checkpoints.original_names(small.flux_transformer(seed=5)).items():
        tensors[prefix + name] = meant[name] = weight.contiguous()
        if weight.ndim != 2 or "_blocks." not in name:
            continue
        size = weight.abs().max() if shape == "tensor" else weight.abs().amax(1, keepdim=shape == "column")
        size = size / LARGEST[dtype]
        rows = size if size.ndim != 1 else size[:, None]
        stored = (weight / rows).round().to(dtype) if dtype is torch.int8 else (weight / rows).to(dtype)
        tensors[prefix + name] = stored
        tensors[prefix + name.replace(".weight", scale)] = size
        meant[name] = stored.float() * rows
    return tensors, meant


def load(file: Path, base: Path) -> Any:
    return load_pipeline(resolve(str(file), str(base)), device="cpu", dtype="fp32")


def assert_loads(tensors: dict[str, torch.Tensor], meant: dict[str, torch.Tensor], base: Path, file: Path) -> None:
    save_file(tensors, file)
    loaded = checkpoints.original_names(load(file, base).transformer)
    assert loaded.keys() == meant.keys()
    assert all(torch.equal(loaded[name], meant[name]) for name in meant)


@pytest.mark.parametrize("shape", ["tensor", "row", "column"])
@pytest.mark.parametrize("scale", [".scale_weight", ".weight_scale"])
@pytest.mark.parametrize("dtype", LARGEST)
def test_scaled_weights_are_multiplied_by_their_scales(flux_folder, tmp_path, dtype, scale, shape):
    tensors, meant = quantized(dtype, scale, shape)
    assert_loads(tensors, meant, flux_folder, tmp_path / "flux.safetensors")


def test_what_only_8_bit_arithmetic_needs_is_left_out(flux_folder, tmp_path):
    tensors, meant = quantized(torch.float8_e4m3fn, ".scale_weight", prefix="model.diffusion_model.")
    for name in [name for name in tensors if name.endswith(".scale_weight")]:
        tensors[name.replace("scale_weight", "scale_input")] = torch.tensor(0.5)
    tensors["model.diffusion_model.scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    assert_loads(tensors, meant, flux_folder, tmp_path / "flux.safetensors")


@pytest.mark.parametrize("container", [False, True], ids=["as it is", "as bytes"])
@pytest.mark.parametrize("dtype", LARGEST)
def test_a_layer_may_say_its_own_format(flux_folder, tmp_path, dtype, container):
    tensors, meant = quantized(dtype, ".weight_scale")
    for name in [name for name in tensors if name.endswith(".weight_scale")]:
        layer = name.removesuffix(".weight_scale")
        tensors[f"{layer}.comfy_quant"] = text({"format": FORMATS[dtype], "full_precision_matrix_mult": True})
        if container:
            tensors[f"{layer}.weight"] = tensors[f"{layer}.weight"].view(torch.uint8)
    assert_loads(tensors, meant, flux_folder, tmp_path / "flux.safetensors")


def test_the_header_may_say_the_formats(flux_folder, tmp_path):
    tensors, meant = quantized(torch.float8_e4m3fn, ".weight_scale", prefix="diffusion_model.")
    layers = {name[: -len(".weight_scale")]: {"format": "float8_e4m3fn"} for name in tensors if "_scale" in name}
    metadata = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}
    save_file(tensors, tmp_path / "flux.safetensors", metadata=metadata)
    loaded = checkpoints.original_names(load(tmp_path / "flux.safetensors", flux_folder).transformer)
    assert all(torch.equal(loaded[name], meant[name]) for name in meant)


def test_the_same_holds_for_flux2(flux2_folder, tmp_path):
    transformer = small.flux2_transformer(seed=5)
    tensors = {name: tensor.contiguous() for name, tensor in checkpoints.original_names(transformer).items()}
    meant = tensors[f"{BLOCK}.weight"]
    tensors |= {
        f"{BLOCK}.weight": (meant / 0.001).to(torch.float8_e4m3fn),
        f"{BLOCK}.weight_scale": torch.tensor(0.001),
    }
    tensors[f"{BLOCK}.input_scale"] = torch.tensor(1.0)
    save_file(tensors, tmp_path / "flux2.safetensors")
    loaded = load(tmp_path / "flux2.safetensors", flux2_folder).transformer.single_transformer_blocks[0].attn.to_out
    assert torch.equal(loaded.weight, tensors[f"{BLOCK}.weight"].float() * tensors[f"{BLOCK}.weight_scale"])


def refusal(changes: dict[str, torch.Tensor], base: Path, file: Path) -> str:
    tensors, _ = quantized(torch.float8_e4m3fn, ".weight_scale")
    save_file(tensors | changes, file)
    with pytest.raises(ModelError) as caught:
        load(file, base)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 600 and "GGUF file of this model" in message
    return message


@pytest.mark.parametrize(
    "changes, words",
    [
        ({f"{BLOCK}.weight_scale_2": torch.tensor(1.0)}, "NVFP4"),
        (
            {f"{BLOCK}.weight.quant_state.bitsandbytes__nf4": torch.zeros(4, dtype=torch.uint8)},
            "in 4 bits (bitsandbytes)",
        ),
        ({f"{BLOCK}.weight.absmax": torch.zeros(4)}, "bitsandbytes (4-bit"),
        ({f"{BLOCK}.wscales": torch.zeros(4), f"{BLOCK}.lora_down": torch.zeros(4, 4)}, "SVDQuant"),
        ({f"{BLOCK}.weight_scale": torch.zeros(2, 2)}, "a scale of shape [2, 2] in F32"),
        ({f"{BLOCK}.weight_scale": torch.zeros(32, dtype=torch.uint8)}, "in U8"),
        ({f"{BLOCK}.weight": torch.zeros(32, 160)}, "F32 with a scale"),
        ({"img_in.weight": torch.zeros(32, 16, dtype=torch.int8)}, "I8 with no scale"),
        ({"nothing.weight_scale": torch.tensor(1.0)}, "nothing.weight_scale"),
        ({f"{BLOCK}.comfy_quant": text({"format": "mxfp8"})}, "format=mxfp8"),
        ({f"{BLOCK}.comfy_quant": text({"format": "int8_tensorwise", "convrot": True})}, "convrot=True"),
        ({f"{BLOCK}.comfy_quant": torch.zeros(4, dtype=torch.uint8)}, "not in valid JSON"),
    ],
)
def test_a_layout_that_is_not_known_is_refused_by_name(flux_folder, tmp_path, changes, words):
    assert words in refusal(changes, flux_folder, tmp_path / "flux.safetensors")


def test_a_folder_with_scales_that_its_configuration_does_not_mention_is_refused(broken):
    folder = broken()
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = checkpoints.load_file(file)
    name = "transformer_blocks.0.attn.to_q.weight"
    save_file(weights | {f"{name}_scale": torch.tensor(2.0)}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"to_q.weight_scale.*quantization_config"):
        load_pipeline(resolve(str(folder)), device="cpu")
    save_file(weights | {name: weights[name].to(torch.int8)}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"to_q.weight.*I8"):
        load_pipeline(resolve(str(folder)), device="cpu")
