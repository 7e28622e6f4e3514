"""Every accepted format loads with the very weights that were saved, and makes the same picture.

The pictures may differ in their last bits: weights that lie in a mapped file are aligned otherwise than in memory, so
the CPU's matrix kernels add up in another order.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
import transformers

from h2gen.models import files, load_pipeline, resolve, set_tiling
from h2gen.models.load import load_model, quiet
from tests import checkpoints, small


def paint(pipe) -> np.ndarray:
    return pipe(**small.run_kwargs(pipe, steps=2)).images


def assert_same(loaded, made) -> None:
    assert type(loaded) is type(made)
    for name, part in made.components.items():
        if isinstance(part, torch.nn.Module):
            weights = getattr(loaded, name).state_dict()
            assert weights.keys() == part.state_dict().keys()
            assert all(torch.equal(weights[key], value) for key, value in part.state_dict().items()), name
    assert np.abs(paint(loaded) - paint(made)).max() < 1e-5


def load(name: Path | str, base: Path | str | None = None, dtype: str = "fp32"):
    return load_pipeline(resolve(str(name), None if base is None else str(base)), device="cpu", dtype=dtype)


def test_a_folder_paints_what_was_saved(flux_folder):
    assert_same(load(flux_folder), small.flux_pipeline())


def test_the_configuration_of_a_part_is_read_once_before_the_library_reads_it(tmp_path, monkeypatch):
    part = small.redux_prior().image_embedder
    part.save_pretrained(tmp_path)
    read = []
    monkeypatch.setattr(files, "read_json", lambda path, own=files.read_json: read.append(path) or own(path))
    loaded = load_model(type(part), tmp_path, torch.float32).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in part.state_dict().items())
    assert read == [tmp_path / "config.json"]


def test_a_klein_folder_paints_what_was_saved(klein_folder):
    pipe = load(klein_folder)
    assert type(pipe) is diffusers.Flux2KleinPipeline
    assert pipe.config.is_distilled is True
    assert_same(pipe, small.flux2_klein_pipeline())


def test_a_flux2_folder_paints_what_was_saved(flux2_folder):
    assert_same(load(flux2_folder), small.flux2_pipeline())


def test_a_folder_in_shards_paints_what_was_saved(tmp_path):
    pipe = small.flux_pipeline()
    pipe.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list((tmp_path / "transformer").glob("*-of-*.safetensors"))) > 2
    assert_same(load(tmp_path), pipe)


def test_a_file_with_diffusers_names_paints_what_was_saved(flux_folder, tmp_path):
    transformer = small.flux_transformer(seed=5)
    file = checkpoints.save_single(transformer, tmp_path / "flux.safetensors")
    assert_same(load(file, flux_folder), small.flux_pipeline(transformer=transformer))


@pytest.mark.parametrize("original", [False, True], ids=["diffusers names", "original names"])
def test_a_flux2_file_paints_what_was_saved(flux2_folder, tmp_path, original):
    transformer = small.flux2_transformer(seed=5)
    file = checkpoints.save_single(transformer, tmp_path / "flux2.safetensors", original=original)
    assert_same(load(file, flux2_folder), small.flux2_pipeline(transformer=transformer))


@pytest.mark.usefixtures("narrow_flux1")
@pytest.mark.parametrize("guided", [True, False], ids=["dev", "schnell"])
def test_a_flux1_file_with_original_names_paints_what_was_saved(tmp_path, guided):
    transformer = small.flux_transformer(seed=5, guidance_embeds=guided)
    expected = small.flux_pipeline(transformer=transformer)
    expected.save_pretrained(tmp_path / "base")
    file = checkpoints.save_single(transformer, tmp_path / "flux.safetensors", original=True)
    assert_same(load(file, tmp_path / "base"), expected)


@pytest.mark.usefixtures("narrow_flux1")
def test_a_flux1_gguf_file_with_original_names_paints_nearly_what_was_saved(flux_folder, tmp_path):
    transformer = small.flux_transformer(seed=5)
    file = checkpoints.save_gguf(transformer, tmp_path / "flux.gguf", "Q8_0", original=True)
    painted, expected = paint(load(file, flux_folder)), paint(small.flux_pipeline(transformer=transformer))
    assert 0 < np.abs(painted - expected).max() < 2e-2


def test_a_file_does_not_need_the_weights_of_its_base(flux_folder, tmp_path):
    base = Path(shutil.copytree(flux_folder, tmp_path / "base"))
    (base / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    file = checkpoints.save_single(small.flux_transformer(), tmp_path / "flux.safetensors")
    assert_same(load(file, base), small.flux_pipeline())


@pytest.mark.parametrize("original", [False, True], ids=["diffusers names", "original names"])
@pytest.mark.parametrize("kind, near", [("F16", 1e-3), ("Q8_0", 2e-2)])
def test_a_gguf_file_paints_nearly_what_was_saved(flux2_folder, tmp_path, kind, near, original):
    transformer = small.flux2_transformer(seed=5)
    file = checkpoints.save_gguf(transformer, tmp_path / "flux2.gguf", kind, original=original)
    painted, expected = paint(load(file, flux2_folder)), paint(small.flux2_pipeline(transformer=transformer))
    assert 0 < np.abs(painted - expected).max() < near


def test_a_flux1_gguf_file_paints_nearly_what_was_saved(flux_folder, tmp_path):
    transformer = small.flux_transformer(seed=5)
    file = checkpoints.save_gguf(transformer, tmp_path / "flux.gguf", "Q8_0")
    painted, expected = paint(load(file, flux_folder)), paint(small.flux_pipeline(transformer=transformer))
    assert 0 < np.abs(painted - expected).max() < 2e-2


@pytest.mark.parametrize("dtype, expected", [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_all_parts_have_the_wanted_dtype(klein_folder, dtype, expected):
    pipe = load(klein_folder, dtype=dtype)
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    assert {parameter.dtype for part in parts for parameter in part.parameters()} == {expected}


def test_the_bundled_model_paints_in_float32_with_its_own_defaults():
    checkpoint = resolve("tiny")
    pipe = load_pipeline(checkpoint, device="cpu")
    wanted = checkpoint.defaults
    image = pipe(
        "birthday cake",
        negative_prompt="",
        true_cfg_scale=wanted.cfg,
        width=wanted.width,
        height=wanted.height,
        max_sequence_length=wanted.max_sequence_length,
        num_inference_steps=4,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images[0]
    assert image.shape == (128, 128, 3)
    # It was trained on pictures on white, so even four steps leave a bright border and something darker inside.
    assert image[:4].mean() > 0.8
    assert image[32:96, 32:96].mean() < image[:4].mean()


@pytest.mark.slow
def test_the_bundled_model_loads_in_silence():
    code = "from h2gen.models import *; load_pipeline(resolve('tiny'), device='cpu')"
    done = subprocess.run([sys.executable, "-W", "always", "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_loading_leaves_the_libraries_as_talkative_as_they_were(flux_folder):
    logs = (diffusers.utils.logging, transformers.utils.logging)
    before = [(log.get_verbosity(), log.is_progress_bar_enabled()) for log in logs]
    load(flux_folder)
    assert [(log.get_verbosity(), log.is_progress_bar_enabled()) for log in logs] == before


def test_nothing_is_logged_while_loading(flux_folder, caplog):
    with caplog.at_level(logging.WARNING):
        load(flux_folder)
    assert caplog.records == []


def test_what_the_libraries_import_is_silent_too():
    loggers = [logging.getLogger(name) for name in ("torchao", "bitsandbytes", "torch.utils._pytree")]
    before = [logger.level for logger in loggers]
    with quiet():
        assert not any(logger.isEnabledFor(logging.WARNING) for logger in loggers)
    assert [logger.level for logger in loggers] == before


def test_only_big_pictures_are_decoded_in_tiles(flux_folder):
    pipe = load(flux_folder)
    for width, height, tiled in ((2048, 2048, True), (1536, 1536, False), (64, 64, False), (512, 8192, True)):
        set_tiling(pipe, width, height)
        assert (pipe.vae.use_tiling, pipe.vae.use_slicing) == (tiled, True)


def test_tiles_show_the_same_picture():
    pipe = load("tiny")
    latents = torch.randn(1, pipe.vae.config.latent_channels, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = pipe.vae.decode(latents).sample
        set_tiling(pipe, 2048, 2048)
        tiled = pipe.vae.decode(latents).sample
    assert (whole - tiled).abs().mean() < 0.02


def test_an_autoencoder_without_tiles_is_left_alone():
    class Pipe:
        vae = torch.nn.Identity()

    set_tiling(Pipe(), 4096, 4096)
