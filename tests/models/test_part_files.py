"""Text encoders and the autoencoder from files, alone or in a whole checkpoint: as from the model's own folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import h2gen
from h2gen.errors import MetadataError, ModelError
from h2gen.models import load_pipeline, resolve
from h2gen.models.catalogue import BUNDLED
from h2gen.models.content_hash import content_hash
from h2gen.output.metadata import describe, origin, read_metadata
from h2gen.output.replay import layers_of
from tests import checkpoints, small

VAE = "vae/diffusion_pytorch_model.safetensors"
CLIP, T5 = "text_encoder/model.safetensors", "text_encoder_2/model.safetensors"


def load(name: Path, base: Path | None = None, dtype: str = "fp32", **parts: Any) -> Any:
    return load_pipeline(resolve(str(name), base and str(base), **parts), device="cpu", dtype=dtype)


def assert_same(model: Any, expected: Any) -> None:
    state = expected.state_dict()
    assert model.state_dict().keys() == state.keys()
    assert not [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, state[name])]


@pytest.fixture
def bare(flux_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the Flux folder without the weights of some parts: all but their configurations."""

    def copy(*files: str) -> Path:
        folder = Path(shutil.copytree(flux_folder, tmp_path / "bare"))
        for file in files:
            (folder / file).unlink()
        return folder

    return copy


@pytest.mark.parametrize("original", [False, True], ids=["diffusers names", "original names"])
def test_an_autoencoder_in_a_file_takes_the_place_of_the_models(bare, flux2_folder, tmp_path, original):
    for vae, folder in ((small.flux_vae(seed=5), bare(VAE)), (small.flux2_vae(seed=5), flux2_folder)):
        weights = checkpoints.original_vae_names(vae) if original else vae.state_dict()
        save_file(weights, tmp_path / "ae.safetensors")
        assert_same(load(folder, vae=str(tmp_path / "ae.safetensors")).vae, vae)


def text_encoder(seed: int = 5) -> Any:
    return small.flux_text_encoders(seed)["text_encoder_2"]


def t5_weights(seed: int = 5) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in text_encoder(seed).state_dict().items()}


def test_t5_in_a_file_takes_the_place_of_the_models(bare, tmp_path):
    folder, file = bare(T5), str(tmp_path / "t5xxl_fp16.safetensors")
    save_file(t5_weights() | {"spiece_model": torch.zeros(9, dtype=torch.uint8)}, file)
    assert_same(load(folder, text_encoder=file).text_encoder_2, text_encoder())
    weights = t5_weights()
    del weights["encoder.embed_tokens.weight"]
    save_file({name: tensor.half() for name, tensor in weights.items()}, file)
    assert_same(load(folder, text_encoder=[file]).text_encoder_2, text_encoder().half().float())


@pytest.mark.parametrize("scaled", [False, True], ids=["fp8", "fp8 with scales"])
def test_t5_in_fp8_becomes_the_weights_that_it_stands_for(bare, tmp_path, scaled):
    tensors, meant = {}, {}
    for name, weight in t5_weights().items():
        tensors[name] = meant[name] = weight
        if ".layer." in name and weight.ndim == 2 and "relative" not in name:
            scale = weight.abs().max() / 448 if scaled else torch.tensor(1.0)
            tensors[name] = (weight / scale).to(torch.float8_e4m3fn)
            meant[name] = tensors[name].float() * scale
            if scaled:
                tensors[name.replace(".weight", ".scale_weight")] = scale
    if scaled:
        tensors["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    save_file(tensors, tmp_path / "t5.safetensors")
    expected = text_encoder()
    expected.load_state_dict(meant)
    assert_same(load(bare(T5), text_encoder=str(tmp_path / "t5.safetensors")).text_encoder_2, expected)


@pytest.mark.parametrize("kind, near", [("F32", 0), ("F16", 1e-3), ("Q8_0", 2e-2)])
def test_t5_as_gguf_is_nearly_the_same(bare, tmp_path, kind, near, capfd):
    file = checkpoints.save_gguf_t5(text_encoder(), tmp_path / "t5.gguf", kind)
    loaded = load(bare(T5), text_encoder=str(file)).text_encoder_2.state_dict()
    for name, tensor in text_encoder().state_dict().items():
        assert (loaded[name] - tensor).abs().max() <= near * tensor.abs().max()
    assert capfd.readouterr() == ("", "")


def test_clip_in_a_file_takes_the_place_of_the_models(bare, flux_folder, tmp_path):
    small.flux_text_encoders(5)["text_encoder"].save_pretrained(tmp_path / "clip")
    own = tmp_path / "clip" / "model.safetensors"
    older = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in load_file(own).items()}
    older |= {"text_model.embeddings.position_ids": torch.arange(32)[None], "logit_scale": torch.zeros(())}
    save_file(older | {"text_projection.weight": torch.zeros(4, 4)}, tmp_path / "clip_l.safetensors")
    folder = bare(CLIP)
    for file in (own, tmp_path / "clip_l.safetensors"):
        assert_same(load(folder, text_encoder=str(file)).text_encoder, small.flux_text_encoders(5)["text_encoder"])


def test_a_chat_model_in_a_file_takes_the_place_of_the_models(klein_folder, tmp_path):
    file = shutil.copy(klein_folder / "text_encoder" / "model.safetensors", tmp_path / "qwen.safetensors")
    folder = Path(shutil.copytree(klein_folder, tmp_path / "bare"))
    (folder / "text_encoder" / "model.safetensors").unlink()
    assert_same(load(folder, text_encoder=str(file)).text_encoder, load(klein_folder).text_encoder)


def whole(pipe: Any, folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file that ComfyUI calls a checkpoint, from a pipeline and the folder that it was saved in."""
    clip, t5 = load_file(folder / CLIP), load_file(folder / T5)
    parts = {
        "model.diffusion_model.": checkpoints.original_names(pipe.transformer),
        "vae.": checkpoints.original_vae_names(pipe.vae),
        "text_encoders.clip_l.transformer.text_model.": {
            name.removeprefix("text_model."): tensor for name, tensor in clip.items()
        },
        "text_encoders.t5xxl.transformer.": t5,
    }
    tensors = {prefix + name: tensor for prefix, part in parts.items() for name, tensor in part.items()}
    tensors |= {f"text_encoders.{name}.logit_scale": torch.zeros(()) for name in ("clip_l", "t5xxl")}
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


@pytest.mark.usefixtures("narrow_flux1")
def test_a_whole_checkpoint_needs_only_the_configurations_of_its_base(bare, tmp_path):
    pipe = small.flux_pipeline(seed=5)
    pipe.save_pretrained(tmp_path / "own")
    file = tmp_path / "flux1-dev-fp8.safetensors"
    save_file(whole(pipe, tmp_path / "own"), file)
    folder = bare("transformer/diffusion_pytorch_model.safetensors", VAE, CLIP, T5)
    with pytest.raises(ModelError, match=r"lacks configurations and tokenizers; name a model that has them: --base"):
        resolve(str(file))
    loaded = load(file, folder)
    for part in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        assert_same(getattr(loaded, part), getattr(pipe, part))
    first = content_hash(resolve(str(file), str(folder)))
    # A file for a part comes before the same part of the whole checkpoint.
    save_file(small.flux_vae(seed=6).state_dict(), tmp_path / "ae.safetensors")
    assert_same(load(file, folder, vae=str(tmp_path / "ae.safetensors")).vae, small.flux_vae(seed=6))
    assert content_hash(resolve(str(file), str(folder), vae=str(tmp_path / "ae.safetensors"))) != first


def refusal(folder: Path, **parts: Any) -> str:
    with pytest.raises(ModelError) as caught:
        load(folder, **parts)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 600
    return message


def test_what_is_no_such_part_is_told_what_it_is(flux_folder, klein_folder, tmp_path):
    files = {name: str(tmp_path / f"{name}.safetensors") for name in ("vae", "t5", "flux", "lora", "wide", "small")}
    save_file(small.flux_vae().state_dict(), files["vae"])
    save_file(t5_weights(), files["t5"])
    checkpoints.save_single(small.flux_transformer(), Path(files["flux"]))
    save_file({"x.lora_A.weight": torch.zeros(1)}, files["lora"])
    assert "t5.safetensors' is not an autoencoder but a T5 text encoder; give it with --text-encoder." in refusal(
        flux_folder, vae=files["t5"]
    )
    assert "vae.safetensors' is not a text encoder but an autoencoder; give it with --vae." in refusal(
        flux_folder, text_encoder=files["vae"]
    )
    assert "but a transformer of FLUX.1; give it with --model." in refusal(flux_folder, vae=files["flux"])
    assert "but a LoRA; give another file." in refusal(flux_folder, text_encoder=files["lora"])
    assert "are both a T5 text encoder; give one." in refusal(flux_folder, text_encoder=[files["t5"]] * 2)
    assert "There is no file 'none.safetensors' for the autoencoder; check the path." in refusal(
        flux_folder, vae="none.safetensors"
    )
    assert "is a T5 text encoder, but" in (message := refusal(klein_folder, text_encoder=files["t5"]))
    assert "has a chat model; leave it out, or give another file." in message
    weights = t5_weights()
    del weights["encoder.block.1.layer.0.SelfAttention.q.weight"]
    save_file(weights, files["small"])
    assert "lacks 1 of the weights of a T5 text encoder, such as 'encoder.block.1" in refusal(
        flux_folder, text_encoder=files["small"]
    )
    save_file({name: torch.zeros(*tensor.shape[:-1], 5) for name, tensor in t5_weights().items()}, files["wide"])
    assert "is a T5 text encoder, but not of the model's size; give another file." in refusal(
        flux_folder, text_encoder=files["wide"]
    )
    checkpoints.truncate(Path(files["vae"]), -1)
    assert "is cut short" in refusal(flux_folder, vae=files["vae"])


def test_the_bundled_models_own_parts_as_files_paint_the_same_and_are_recorded(tmp_path):
    vae = shutil.copy(BUNDLED / VAE, tmp_path / "ae.safetensors")
    t5 = shutil.copy(BUNDLED / T5, tmp_path / "t5.safetensors")
    own, session = h2gen.load("tiny"), h2gen.load("tiny", vae=str(vae), text_encoder=str(t5))
    plain, image = (
        np.asarray(each.generate("a cat", seed=1, steps=2, size="96x96", no_cache=True, progress=False).image)
        for each in (own, session)
    )
    assert np.array_equal(plain, image)
    assert session.content_hash() != own.content_hash()
    made = session.generate("a cat", seed=1, steps=1, size="96x96", progress=False, out=str(tmp_path / "cat.png"))
    found = read_metadata(made.path)
    assert found.parts == ("ae.safetensors", "t5.safetensors")
    with pytest.raises(
        MetadataError, match=r"with 'ae\.safetensors', 't5\.safetensors' in place .* --vae or --text-enc"
    ):
        layers_of(found, {}, [])
    assert dict(layers_of(found, {"vae": str(vae)}, []))["option"] == {"vae": str(vae)}
    facts = describe(made.settings, replace(origin(own), content_hash="0"), seconds=1.0, summary=None)
    assert "parts" not in facts["model"]


def test_options_name_the_files(tmp_path):
    from h2gen.settings.resolve import resolve_request

    shutil.copy(BUNDLED / T5, tmp_path / "t5.safetensors")
    given = {"text_encoder": [str(tmp_path / "t5.safetensors")], "model": "tiny", "vae": str(BUNDLED / VAE)}
    checkpoint = resolve_request("a cat", given, {}).checkpoint
    assert [part.kind for part in checkpoint.parts] == ["VAE", "T5"]
    assert resolve_request("a cat", {"model": "tiny", "text_encoder": []}, {}).checkpoint.parts == ()


@pytest.mark.parametrize("name", ["~nobody/x.safetensors", f"{'x' * 300}.safetensors"])
def test_names_that_the_system_cannot_look_up_are_no_files(name):
    from h2gen.models.check import check_model
    from h2gen.settings.describe import describe

    for look in (lambda: resolve("tiny", vae=name), lambda: check_model(name), lambda: describe(name)):
        with pytest.raises(ModelError, match="There is no"):
            look()
