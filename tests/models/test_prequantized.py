"""Checkpoints that are stored quantized by bitsandbytes or torchao load as they are; every weight is accounted for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers
from bitsandbytes import functional
from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers
from diffusers.quantizers.bitsandbytes import bnb_quantizer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torchao.quantization import Int8WeightOnlyConfig

import h2gen
from h2gen.errors import DeviceError, ModelError
from h2gen.models import load_pipeline, resolve
from h2gen.models.memory import refused_by
from h2gen.models.quantization import stored_quantization
from tests import checkpoints, small
from tests.models.test_adapters import picture
from tests.models.test_quantize import WIDE, dequantized, load, wide_pipeline

BLOCK = "transformer_blocks.0.attn.to_q"


def nf4() -> Any:
    return diffusers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=["x_embedder", "context_embedder", "time_text_embed", "norm_out", "proj_out"],
    )


def llm_int8() -> Any:
    return diffusers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["x_embedder"])


def torchao() -> Any:
    return diffusers.TorchAoConfig(Int8WeightOnlyConfig(set_inductor_config=False))


def stored(folder: Path, config: Any) -> Any:
    """Save a small pipeline whose transformer diffusers has quantized; returns that pipeline."""
    plain = wide_pipeline()
    plain.save_pretrained(folder)
    options = {} if isinstance(config, diffusers.TorchAoConfig) else {"device_map": {"": "cpu"}}
    with small.no_warnings_of_diffusers(), pytest.MonkeyPatch.context() as patch:
        for kind in (bnb_quantizer.BnB4BitDiffusersQuantizer, bnb_quantizer.BnB8BitDiffusersQuantizer):
            patch.setattr(kind, "validate_environment", lambda *_args, **_options: None)  # it refuses a CPU
        transformer = diffusers.FluxTransformer2DModel.from_pretrained(
            folder / "transformer", dtype=torch.float32, quantization_config=config, **options
        )
        for file in (folder / "transformer").glob("*.safetensors"):
            file.unlink()
        transformer.save_pretrained(folder / "transformer")
    plain.register_modules(transformer=transformer.eval())
    return plain


def weights_of(folder: Path) -> Path:
    (file,) = (folder / "transformer").glob("*.safetensors")
    return file


@pytest.mark.parametrize(
    ("config", "kind"), [(nf4, "bitsandbytes nf4"), (llm_int8, "bitsandbytes"), (torchao, "torchao")]
)
def test_a_transformer_loads_as_it_is_stored(tmp_path: Path, config: Callable[[], Any], kind: str) -> None:
    saved = stored(tmp_path, config())
    assert stored_quantization(tmp_path / "transformer") == kind
    found = load(tmp_path)
    refused = {"bitsandbytes nf4": {"sequential"}, "bitsandbytes": {"group", "sequential"}, "torchao": set()}
    assert refused_by(found) == refused[kind]
    weight = found.transformer.get_submodule(BLOCK).weight
    assert type(weight) is type(saved.transformer.get_submodule(BLOCK).weight) is not torch.nn.Parameter
    assert np.array_equal(picture(found), picture(saved))
    with pytest.raises(ModelError) as caught:
        load(tmp_path, quantize="int8")
    assert str(caught.value).endswith(f"transformer' is quantized already ({kind}); leave out --quantize.")
    made = h2gen.load(str(tmp_path)).generate("a cat", size=64, steps=2, seed=1, cache=None)
    assert made.image.size == (64, 64)


def test_a_text_encoder_loads_as_it_is_stored(tmp_path: Path) -> None:
    wide_pipeline().save_pretrained(tmp_path)
    folder = tmp_path / "text_encoder_2"
    config = transformers.TorchAoConfig(Int8WeightOnlyConfig(set_inductor_config=False))
    encoder = transformers.T5EncoderModel.from_pretrained(folder, dtype=torch.float32, quantization_config=config)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    encoder.save_pretrained(folder)
    found = load(tmp_path)
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        assert torch.equal(found.text_encoder_2(ids)[0], encoder.eval()(ids)[0])
    with pytest.raises(ModelError, match=r"is quantized already \(torchao\); leave out --quantize-text\."):
        load(tmp_path, quantize_text="int8")


@pytest.fixture
def narrower_flux1(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``narrow_flux1``, for a width of 64."""
    convert = convert_flux_transformer_checkpoint_to_diffusers
    consts = tuple(64 if const == 3072 else const for const in convert.__code__.co_consts)
    monkeypatch.setattr(convert, "__code__", convert.__code__.replace(co_consts=consts))


def single_file(path: Path, kind: str, prefix: str = "", **more: Any) -> dict[str, torch.Tensor]:
    """Save a transformer in one file, its blocks in 4 bits and with the original names; returns what it stands for."""
    tensors: dict[str, torch.Tensor] = {}
    meant: dict[str, torch.Tensor] = {}
    for name, weight in checkpoints.original_names(small.flux_transformer(seed=5, **WIDE)).items():
        tensors[prefix + name] = meant[name] = weight.contiguous()
        if weight.ndim == 2 and "_blocks." in name:
            packed, state = functional.quantize_4bit(weight, quant_type=kind, **more)
            meant[name] = functional.dequantize_4bit(packed, state)
            tensors[prefix + name] = packed
            tensors |= {f"{prefix}{name}.{end}": each for end, each in state.as_dict(packed=True).items()}
    save_file(tensors, path)
    return meant


@pytest.mark.usefixtures("narrower_flux1")
@pytest.mark.parametrize("nested", [False, True], ids=["scales in fp32", "nested scales"])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_a_single_file_in_4_bits_stays_in_4_bits(tmp_path: Path, kind: str, nested: bool) -> None:
    base = tmp_path / "base"
    wide_pipeline().save_pretrained(base)
    file = tmp_path / "flux.safetensors"
    meant = single_file(file, kind, "model.diffusion_model.", compress_statistics=nested)
    session = h2gen.load(str(file), base=str(base), device="cpu")
    assert session.options.quantize == kind
    other = single_file_without(tmp_path / "plain.safetensors", meant)
    plain = load_pipeline(resolve(str(other), str(base)), device="cpu", dtype="fp32")
    for name, layer in plain.transformer.named_modules():
        if isinstance(layer, torch.nn.Linear):
            assert (dequantized(session.pipe.transformer.get_submodule(name)) - layer.weight).abs().max() < 1e-5, name
    int8 = load_pipeline(resolve(str(file), str(base)), device="cpu", dtype="fp32", quantize="int8")
    weight = int8.transformer.get_submodule(BLOCK).weight
    assert type(weight).__name__ == "Int8Tensor"


def single_file_without(path: Path, weights: dict[str, torch.Tensor]) -> Path:
    save_file({name: weight.contiguous() for name, weight in weights.items()}, path)
    return path


@pytest.mark.usefixtures("narrower_flux1")
@pytest.mark.parametrize("lost", ["absmax", "quant_map"])
def test_a_single_file_in_4_bits_without_its_scales_is_damaged(tmp_path: Path, lost: str) -> None:
    base = tmp_path / "base"
    wide_pipeline().save_pretrained(base)
    single_file(tmp_path / "flux.safetensors", "nf4")
    edit(tmp_path / "flux.safetensors", drop=f"single_blocks.0.linear2.weight.{lost}")
    with pytest.raises(
        ModelError, match=r"single_blocks\.0\.linear2\.weight' in 4 bits \(bitsandbytes\), but lacks its scales"
    ):
        load_pipeline(resolve(str(tmp_path / "flux.safetensors"), str(base)), device="cpu")


def edit(file: Path, *, drop: str = "", add: str = "") -> None:
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    weights = load_file(file)
    if drop:
        del weights[drop]
    if add:
        weights[add] = torch.zeros(3)
    save_file(weights, file, metadata=metadata)


@pytest.mark.parametrize(
    "lost",
    [f"{BLOCK}.weight", f"{BLOCK}.weight.absmax", f"{BLOCK}.weight.quant_state.bitsandbytes__nf4", f"{BLOCK}.bias"],
)
def test_a_lost_weight_or_scale_is_an_error(tmp_path: Path, lost: str) -> None:
    stored(tmp_path, nf4())
    edit(weights_of(tmp_path), drop=lost)
    with pytest.raises(ModelError, match="Download it again"):
        load(tmp_path)


def test_an_unknown_tensor_in_a_block_is_an_error(tmp_path: Path) -> None:
    stored(tmp_path, nf4())
    edit(weights_of(tmp_path), add="transformer_blocks.0.other.weight")
    with pytest.raises(ModelError, match=r"holds 'transformer_blocks\.0\.other\.weight'"):
        load(tmp_path)


def test_without_its_package_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    stored(tmp_path, nf4())
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    with pytest.raises(DeviceError, match=r"transformer' needs the package bitsandbytes; run: pip install"):
        load(tmp_path)
