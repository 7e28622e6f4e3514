"""A single file is a transformer that fits its base, or one line says what it is and what to do with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from h2gen.errors import ModelError
from h2gen.models import load_pipeline, resolve
from tests import checkpoints, small


def load(file: Path, base: Path) -> Any:
    return load_pipeline(resolve(str(file), str(base)), device="cpu", dtype="fp32")


def refusal(names: list[str], base: Path, file: Path) -> str:
    save_file({name: torch.zeros(2, 2) for name in names}, file)
    with pytest.raises(ModelError) as caught:
        load(file, base)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 600
    return message


@pytest.mark.usefixtures("narrow_flux1")
@pytest.mark.parametrize("original", [False, True], ids=["diffusers names", "original names"])
@pytest.mark.parametrize("prefix", ["diffusion_model.", "model.diffusion_model.", "transformer.", "model."])
def test_a_prefix_before_all_names_makes_no_difference(flux_folder, tmp_path, prefix, original):
    transformer = small.flux_transformer(seed=5)
    plain = load_file(checkpoints.save_single(transformer, tmp_path / "plain.safetensors", original=original))
    save_file({prefix + name: tensor for name, tensor in plain.items()}, tmp_path / "flux.safetensors")
    loaded = load(tmp_path / "flux.safetensors", flux_folder).transformer.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in transformer.state_dict().items())


@pytest.mark.usefixtures("narrow_flux1")
def test_an_unknown_part_of_a_whole_checkpoint_is_reported(flux_folder, tmp_path):
    transformer = small.flux_transformer(seed=5)
    plain = load_file(checkpoints.save_single(transformer, tmp_path / "plain.safetensors", original=True))
    whole = {f"model.diffusion_model.{name}": tensor for name, tensor in plain.items()}
    others = ("text_encoders.other.x", "vae.y")
    save_file(whole | {name: torch.zeros(1) for name in others}, tmp_path / "flux.safetensors")
    with pytest.warns(
        RuntimeWarning,
        match=r"also holds .text_encoders\.other\.x., a part that h2gen does not know; ",
    ):
        loaded = load(tmp_path / "flux.safetensors", flux_folder).transformer.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in transformer.state_dict().items())


FAMILIES = [
    ("flux_folder", small.flux_transformer, "FLUX.1"),
    ("flux2_folder", small.flux2_transformer, "FLUX.2"),
]
every_file = pytest.mark.parametrize("base, make, title", FAMILIES, ids=["flux1", "flux2"])
both_namings = pytest.mark.parametrize("original", [False, True], ids=["diffusers names", "original names"])


@pytest.mark.usefixtures("narrow_flux1")
@every_file
@both_namings
def test_a_tensor_that_the_model_does_not_take_is_reported(request, tmp_path, base, make, title, original):
    file = checkpoints.save_single(make(), tmp_path / "flux.safetensors", original=original)
    save_file(load_file(file) | {"extra.weight": torch.zeros(1), "extra.bias": torch.zeros(1)}, file)
    with pytest.warns(
        RuntimeWarning, match=rf"also holds 'extra\.\w+' and 1 more, which {title} does not have; ignored"
    ):
        load(file, request.getfixturevalue(base))


def test_a_gguf_file_is_held_to_the_same(flux_folder, tmp_path):
    transformer = small.flux_transformer()
    transformer.extra = torch.nn.Linear(1, 1)
    with pytest.warns(RuntimeWarning, match=r"also holds 'extra\.\w+' and 1 more"):
        load(checkpoints.save_gguf(transformer, tmp_path / "flux.gguf", "Q8_0"), flux_folder)
    transformer.transformer_blocks[0].gate = torch.nn.Linear(1, 1)
    with pytest.raises(ModelError, match=r"gate\.\w+' and 1 more, which FLUX\.1 does not have"):
        load(checkpoints.save_gguf(transformer, tmp_path / "flux.gguf", "Q8_0"), flux_folder)


@pytest.mark.usefixtures("narrow_flux1")
@every_file
@both_namings
def test_a_tensor_in_a_block_that_the_model_does_not_take_is_refused(request, tmp_path, base, make, title, original):
    file = checkpoints.save_single(make(), tmp_path / "flux.safetensors", original=original)
    name = "single_blocks.0.gate.weight" if original else "single_transformer_blocks.0.gate.weight"
    save_file(load_file(file) | {name: torch.zeros(1)}, file)
    with pytest.raises(ModelError, match=rf"gate.*, which {title} does not have, so its pictures would be wrong"):
        load(file, request.getfixturevalue(base))


@pytest.mark.usefixtures("narrow_flux1")
@every_file
@both_namings
def test_a_missing_tensor_is_named(request, tmp_path, base, make, title, original):
    file = checkpoints.save_single(make(), tmp_path / "flux.safetensors", original=original)
    name = "double_blocks.1.img_mlp.0.weight" if original else "transformer_blocks.1.attn.to_k.weight"
    checkpoints.edit_weights(file, drop=name)
    with pytest.raises(ModelError, match=r"lacks '(double|transformer)_blocks\.1\..*'; download it again"):
        load(file, request.getfixturevalue(base))


def test_a_folder_with_tensors_that_its_model_does_not_take_is_reported(broken):
    folder = broken()
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    save_file(weights | {"extra.weight": torch.zeros(1)}, file, metadata={"format": "pt"})
    with pytest.warns(RuntimeWarning, match=r"also holds 'extra\.weight', which FluxTransformer2DModel does not have"):
        load_pipeline(resolve(str(folder)), device="cpu")
    save_file(weights | {"transformer_blocks.7.x.weight": torch.zeros(1)}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"transformer_blocks\.7\.x\.weight.*pictures would be wrong"):
        load_pipeline(resolve(str(folder)), device="cpu")


@pytest.mark.parametrize(
    "channels, model, bases", [(384, "FLUX.1 Fill", "fill"), (128, "FLUX.1 Canny or Depth", "depth")]
)
def test_a_model_that_takes_a_picture_too_is_recognised(flux_folder, tmp_path, channels, model, bases):
    transformer = small.flux_transformer(in_channels=channels, out_channels=16, layers=2)
    for kind in ("safetensors", "gguf"):
        file = tmp_path / f"flux.{kind}"
        if kind == "gguf":
            checkpoints.save_gguf(transformer, file, "Q8_0")
        else:
            checkpoints.save_single(transformer, file)
        with pytest.raises(ModelError) as caught:
            load(file, flux_folder)
        message = str(caught.value)
        assert f"is {model}, which takes a picture besides the prompt" in message
        assert "its base" in message and f"--base {bases}" in message.replace("canny or ", "")


@pytest.mark.parametrize(
    "name",
    [
        "transformer.x_embedder.lora_A.weight",
        "lora_unet_double_blocks_0_img_attn_proj.lora_down.weight",
        "diffusion_model.double_blocks.0.img_attn.qkv.lokr_w1",
        "double_blocks.0.img_attn.qkv.lora_B.weight",
    ],
)
def test_a_lora_is_told_where_loras_go(flux_folder, tmp_path, name):
    message = refusal([name], flux_folder, tmp_path / "style.safetensors")
    assert "style.safetensors' is a LoRA, not a model" in message
    assert "Give it with --lora, together with the model that it is for." in message
    with pytest.raises(ModelError, match=r"style.safetensors' is a LoRA, not a model"):
        resolve(str(tmp_path / "style.safetensors"))


@pytest.mark.parametrize(
    "names, what",
    [
        (["encoder.block.0.layer.0.SelfAttention.q.weight"], "a text encoder"),
        (["text_model.encoder.layers.0.self_attn.q_proj.weight"], "a text encoder"),
        (["model.layers.0.self_attn.q_proj.weight"], "a text encoder"),
        (["decoder.conv_in.weight", "encoder.down.0.block.0.conv1.weight"], "a VAE"),
        (["controlnet_x_embedder.weight", "transformer_blocks.0.attn.add_q_proj.weight"], "a ControlNet"),
        (["double_blocks.0.processor.ip_adapter_double_stream_k_proj.weight"], "an IP-Adapter"),
        (["model.diffusion_model.input_blocks.0.0.weight", "vae.decoder.conv_in.weight"], "Stable Diffusion or SDXL"),
        (["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"], "Stable Diffusion 3"),
        (["pos_embed.proj.weight", "transformer_blocks.0.attn.add_q_proj.weight"], "Stable Diffusion 3"),
        (["txt_in.text_norm.weight", "transformer_blocks.0.attn.add_q_proj.weight"], "Qwen-Image 2.1"),
        (["nerf_blocks.0.x.weight", "distilled_guidance_layer.in_proj.weight"], "Chroma Radiance"),
        (["redux_up.weight", "redux_down.weight"], "FLUX.1 Redux"),
        (["emb_params"], "an embedding"),
    ],
)
def test_another_kind_of_file_is_named(flux_folder, tmp_path, names, what):
    message = refusal(names, flux_folder, tmp_path / "other.safetensors")
    assert f"other.safetensors' is {what}" in message or f" of {what}" in message
    assert ", not a model that h2gen loads. " in message
