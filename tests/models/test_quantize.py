"""Quantized weights: what each mode stores, plain diffusers' pictures bit for bit, LoRAs on top; what is refused."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import bitsandbytes
import diffusers
import numpy as np
import pytest
import torch
from torchao import quantization as ao

import h2gen
from h2gen.errors import DeviceError, ModelError
from h2gen.models import load_pipeline, resolve
from h2gen.models.load_options import LoadOptions
from h2gen.models.memory import stored_bytes
from h2gen.models.quantization import QUANTIZATIONS, find_quantization, usable_on
from h2gen.models.quantize import Quantizer, quantize
from tests import checkpoints, loras, small
from tests.models.test_adapters import given, picture

CPU = torch.device("cpu")
HERE = ("int8", "int8-dynamic", "fp8", "nf4", "fp4")
"""What runs on a CPU."""
WIDE = {"attention_head_dim": 32, "axes_dims_rope": (8, 12, 12)}
"""Makes a small transformer 64 wide, so that bitsandbytes' blocks fill its rows."""
OUTSIDE = ["x_embedder", "context_embedder", "time_text_embed", "norm_out", "proj_out.weight"]
TORCHAO = {
    "int8": ao.Int8WeightOnlyConfig,
    "int8-dynamic": ao.Int8DynamicActivationInt8WeightConfig,
    "fp8": ao.Float8WeightOnlyConfig,
}


def wide_pipeline() -> Any:
    pipe = small.flux_pipeline()
    pipe.register_modules(transformer=small.flux_transformer(seed=5, **WIDE))
    return pipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("wide")
    wide_pipeline().save_pretrained(found)
    return found


def load(folder: Path, **options: str) -> Any:
    return load_pipeline(resolve(str(folder)), device="cpu", dtype="fp32", **options)


def four_bits(weight: torch.Tensor, kind: str) -> torch.Tensor:
    """A weight as it is after it was stored in 4 bits."""
    stored, state = bitsandbytes.functional.quantize_4bit(weight, quant_type=kind)
    found: torch.Tensor = bitsandbytes.functional.dequantize_4bit(stored, state)
    return found


def dequantized(module: Any) -> torch.Tensor:
    weight = module.weight
    if hasattr(weight, "quant_state"):
        return bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
    return weight.dequantize() if hasattr(weight, "dequantize") else weight


@pytest.mark.parametrize("mode", TORCHAO)
def test_with_torchao_the_picture_is_plain_diffusers_bit_for_bit(folder: Path, mode: str) -> None:
    config = diffusers.TorchAoConfig(TORCHAO[mode](set_inductor_config=False), modules_to_not_convert=[*OUTSIDE])
    with small.no_warnings_of_diffusers():
        transformer = diffusers.FluxTransformer2DModel.from_pretrained(
            folder / "transformer", dtype=torch.float32, quantization_config=config
        )
        plain = diffusers.FluxPipeline.from_pretrained(folder, transformer=transformer)
    session = h2gen.load(str(folder), quantize=mode)
    assert session.options.quantize == mode
    assert np.array_equal(picture(session.pipe), picture(plain))
    assert not np.array_equal(picture(session.pipe), picture(load(folder)))
    seen = session.generate("a cat", size=64, steps=3, seed=1, tau1=0.0, tau2=0.0)
    uncached = session.generate("a cat", size=64, steps=3, seed=1, cache=None)
    assert np.array_equal(np.asarray(seen.image), np.asarray(uncached.image))


@pytest.mark.parametrize("mode", ["nf4", "fp4"])
def test_4_bits_compute_with_the_weights_that_they_stand_for(folder: Path, mode: str) -> None:
    other = load(folder)
    with torch.no_grad():
        for name, layer in other.transformer.named_modules():
            if isinstance(layer, torch.nn.Linear) and "transformer_blocks." in name:
                layer.weight.copy_(four_bits(layer.weight, mode))
    found = load(folder, quantize=mode)
    difference = np.abs(picture(found) - picture(other)).max()
    # bitsandbytes computes in bf16 on CPUs that have it, whatever the model's dtype.
    assert difference < 0.05 < np.abs(picture(found) - picture(load(folder))).max()


@pytest.mark.parametrize("mode", HERE)
def test_only_layers_in_blocks_are_quantized_and_each_is_near_its_weight(folder: Path, mode: str) -> None:
    before = dict(load(folder).transformer.named_modules())
    after = dict(load(folder, quantize=mode).transformer.named_modules())
    assert before.keys() == after.keys()
    most = {"nf4": 0.2, "fp4": 0.25}.get(mode, 0.04)
    for name, layer in before.items():
        if not isinstance(layer, torch.nn.Linear):
            continue
        own, stored = layer.weight, after[name].weight
        if "transformer_blocks." not in name:
            assert torch.equal(own, stored), name
        else:
            assert type(stored) is not torch.nn.Parameter, name
            error = (dequantized(after[name]).float() - own).abs().amax() / own.abs().amax()
            assert 0 < error < most, name


@pytest.mark.parametrize("mode", TORCHAO)
def test_text_encoders_are_quantized_apart_and_clip_stays(folder: Path, mode: str) -> None:
    plain, found = load(folder), load(folder, quantize_text=mode)
    assert type(found.transformer.transformer_blocks[0].attn.to_q.weight) is torch.nn.Parameter
    layer = found.text_encoder_2.encoder.block[0].layer[0].SelfAttention.q
    assert type(layer.weight) is not torch.nn.Parameter
    (t5, clip, _), (changed, same, _) = (
        pipe.encode_prompt("a cat", None, max_sequence_length=24) for pipe in (plain, found)
    )
    assert torch.equal(clip, same)
    assert 0 < (t5 - changed).abs().max() < 0.2 * t5.abs().max()


def test_rows_that_4_bits_do_not_fill_are_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"T5EncoderModel has no layer whose size nf4 supports.*use int8"):
        load(folder, quantize_text="nf4")


@pytest.mark.parametrize("make", [small.flux2_klein_pipeline, small.chroma_pipeline])
def test_other_families_are_quantized_in_their_blocks(make: Any, tmp_path: Path) -> None:
    make().save_pretrained(tmp_path)
    plain, found = load(tmp_path), load(tmp_path, quantize="int8", quantize_text="int8")
    assert 0 < np.abs(picture(plain) - picture(found)).max() < 0.2
    changed = {name for name, each in found.transformer.named_parameters() if type(each) is not torch.nn.Parameter}
    assert changed
    assert all("transformer_blocks." in name for name in changed)


@pytest.mark.parametrize("mode", HERE)
def test_a_lora_goes_on_top(folder: Path, tmp_path: Path, mode: str) -> None:
    from h2gen.models.adapters import Adapters

    found, other = load(folder, quantize=mode), load(folder)
    for name, layer in other.transformer.named_modules():
        if isinstance(layer, torch.nn.Linear) and "transformer_blocks." in name:
            layer.weight.data = dequantized(found.transformer.get_submodule(name)).float()
    without = picture(found)
    delta = loras.delta(other.transformer, loras.ATTENTION)
    file = loras.save(tmp_path / "style.safetensors", loras.in_layout("diffusers", delta))
    adapters = Adapters()
    adapters.use(found, [given(file, 0.5)])
    loras.merged(other.transformer, delta, 0.5)
    close = {"nf4": 0.1, "fp4": 0.1, "int8-dynamic": 0.1}.get(mode, 1e-3)
    assert np.abs(picture(found) - picture(other)).max() < close
    assert np.abs(picture(found) - without).max() > close / 4
    adapters.use(found, [])
    # On some CPUs bitsandbytes packs its weights again when PEFT lists them, which rounds differently.
    assert np.abs(picture(found) - without).max() <= (0.05 if mode in ("nf4", "fp4") else 0)


def test_a_single_file_is_quantized_too(folder: Path, tmp_path: Path) -> None:
    file = checkpoints.save_single(small.flux_transformer(seed=5, **WIDE), tmp_path / "flux.safetensors")
    found = load_pipeline(resolve(str(file), str(folder)), device="cpu", dtype="fp32", quantize="int8")
    assert np.array_equal(picture(found), picture(load(folder, quantize="int8")))


def test_a_gguf_file_is_quantized_already(folder: Path, tmp_path: Path) -> None:
    file = checkpoints.save_gguf(small.flux_transformer(seed=5, **WIDE), tmp_path / "flux.gguf", "Q8_0")
    with pytest.raises(ModelError, match=r"flux\.gguf' is quantized already \(GGUF\); leave out --quantize\.$"):
        load_pipeline(resolve(str(file), str(folder)), device="cpu", quantize="int8")


@pytest.mark.parametrize("package", ["torchao", "bitsandbytes"])
def test_without_its_package_a_mode_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    mode = "int8" if package == "torchao" else "nf4"
    with pytest.raises(DeviceError) as caught:
        load(folder, quantize=mode)
    assert str(caught.value) == f"--quantize {mode} needs the package {package}; run: pip install 'h2gen[quantize]'."


@pytest.mark.parametrize(("mode", "option"), [("fp8-dynamic", "quantize"), ("int4", "quantize_text")])
def test_what_a_cpu_cannot_do_is_said_before_anything_is_loaded(mode: str, option: str) -> None:
    here = "int8, int8-dynamic, fp8, nf4, fp4"
    with pytest.raises(DeviceError) as caught:
        h2gen.load("tiny", device="cpu", **{option: mode})
    name = f"--{option.replace('_', '-')} {mode}"
    assert str(caught.value) == f"{name} does not run on the device 'cpu'; choose from {here}."


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({"quantize": "nf4", "offload": "sequential"}, "--quantize nf4"),
        ({"quantize_text": "fp4", "offload": "group"}, "--quantize-text fp4"),
        ({"quantize": "nf4", "offload": "group"}, ""),
        ({"quantize": "int8", "quantize_text": "int8", "offload": "sequential"}, ""),
        ({"quantize_text": "nf4", "offload": "model"}, ""),
    ],
)
def test_offloading_that_would_leave_scales_behind_is_refused(options: dict[str, str], refused: str) -> None:
    if not refused:
        Quantizer(LoadOptions(**options), torch.device("xpu"), torch.float16)
        return
    with pytest.raises(DeviceError, match=f"^{refused} does not work with --offload {options['offload']}, which would"):
        Quantizer(LoadOptions(**options), torch.device("xpu"), torch.float16)


def test_the_modes_of_a_gpu_depend_on_its_age_and_on_the_dtype() -> None:
    assert usable_on("cuda", "bf16", (9, 0)) == [*QUANTIZATIONS]
    assert usable_on("cuda", "fp16", (9, 0)) == ["int8", "int8-dynamic", "fp8", "nf4", "fp4"]
    assert usable_on("cuda", "bf16", (7, 5)) == ["int8", "fp8", "nf4", "fp4"]
    assert usable_on("mps", "fp16") == ["int8", "nf4", "fp4"]


def test_torchaos_names_are_known_and_a_wrong_one_is_not() -> None:
    assert find_quantization("int8dq") is QUANTIZATIONS["int8-dynamic"]
    assert find_quantization("none") is None
    with pytest.raises(DeviceError, match="There is no quantization 'nf5'; did you mean 'nf4'"):
        find_quantization("nf5")


@pytest.mark.parametrize("mode", HERE)
def test_bits_per_weight_are_what_a_wide_layer_takes(mode: str) -> None:
    part = small.flux_transformer(layers=1, single_layers=0, attention_head_dim=512, axes_dims_rope=(128, 192, 192))
    quantize(part, QUANTIZATIONS[mode], CPU, blocks=True)
    layer = part.transformer_blocks[0].attn.to_q
    weight = layer.weight
    if hasattr(weight, "quant_state"):
        stored = weight.data.nbytes + weight.quant_state.absmax.nbytes
    else:
        stored = weight.qdata.nbytes + weight.scale.nbytes
        assert stored_bytes(weight) == stored
    bits = 8 * stored / (layer.in_features * layer.out_features)
    assert bits == pytest.approx(QUANTIZATIONS[mode].bits, abs=0.03)


@pytest.mark.gpu
@pytest.mark.parametrize("offload", ["none", "model"])
@pytest.mark.parametrize("mode", QUANTIZATIONS)
def test_a_gpu_makes_nearly_the_same_picture(mode: str, offload: str) -> None:
    from h2gen.evaluation.metrics.psnr_ssim import psnr

    if mode not in usable_on("cuda", "bf16", torch.cuda.get_device_capability()):
        pytest.skip("this GPU cannot")
    plain, found = (
        h2gen.load("tiny", device="cuda", dtype="bf16", offload=offload, quantize=each).generate(
            "a cat", seed=7, steps=8, cache=None
        )
        for each in ("none", mode)
    )
    assert psnr(found.image, plain.image) > (18 if QUANTIZATIONS[mode].bits < 5 else 28)
