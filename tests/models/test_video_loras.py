"""LoRAs of HunyuanVideo and Wan: every layout reaches the right layers; LoRAs for other models are refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import CodeType
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.loaders import lora_conversion_utils

import h2gen
from h2gen.cache import CacheConfig
from h2gen.cli.app import run
from h2gen.errors import ModelError, SettingError
from h2gen.families import family_of
from h2gen.models import resolve
from h2gen.models.adapters import Adapters
from h2gen.models.lora_files import check_loras, describe_lora
from tests import loras, small
from tests.models.test_adapters import given

Original = Mapping[str, Sequence[str]]
"""By a layer's original name: the layers in diffusers that it is made of, which share their input."""

_DOUBLE, _SINGLE = "transformer_blocks", "single_transformer_blocks"
HUNYUAN: Original = {
    "double_blocks.0.img_attn_qkv": [f"{_DOUBLE}.0.attn.to_{each}" for each in "qkv"],
    "double_blocks.1.txt_attn_qkv": [f"{_DOUBLE}.1.attn.add_{each}_proj" for each in "qkv"],
    "double_blocks.0.img_attn_proj": [f"{_DOUBLE}.0.attn.to_out.0"],
    "double_blocks.1.txt_attn_proj": [f"{_DOUBLE}.1.attn.to_add_out"],
    "double_blocks.0.img_mlp.fc1": [f"{_DOUBLE}.0.ff.net.0.proj"],
    "double_blocks.1.txt_mlp.fc2": [f"{_DOUBLE}.1.ff_context.net.2"],
    "double_blocks.0.img_mod.linear": [f"{_DOUBLE}.0.norm1.linear"],
    "single_blocks.0.linear1": [*(f"{_SINGLE}.0.attn.to_{each}" for each in "qkv"), f"{_SINGLE}.0.proj_mlp"],
    "single_blocks.1.linear2": [f"{_SINGLE}.1.proj_out"],
    "single_blocks.0.modulation.linear": [f"{_SINGLE}.0.norm.linear"],
}
WAN: Original = {
    **{f"blocks.0.self_attn.{each}": [f"blocks.0.attn1.to_{each}"] for each in "qkv"},
    "blocks.1.self_attn.o": ["blocks.1.attn1.to_out.0"],
    "blocks.1.cross_attn.k": ["blocks.1.attn2.to_k"],
    "blocks.2.ffn.0": ["blocks.2.ffn.net.0.proj"],
    "blocks.0.ffn.2": ["blocks.0.ffn.net.2"],
}
OUTSIDE: Mapping[str, Original] = {
    "HunyuanVideo": {"final_layer.adaLN_modulation.1": ["norm_out.linear"], "final_layer.linear": ["proj_out"]},
    "Wan 2.1": {"head.head": ["proj_out"], "time_projection.1": ["condition_embedder.time_proj"]},
}
NAMES: Mapping[str, Original] = {"HunyuanVideo": HUNYUAN, "Wan 2.1": WAN}
MAKERS: Mapping[str, Callable[[], Any]] = {
    "HunyuanVideo": lambda: small.hunyuan_video_pipeline(layers=2, single_layers=2),
    "Wan 2.1": lambda: small.wan_pipeline(layers=3),
}
LAYOUTS = ("diffusers", "bare", "original", "comfy", "prefixed", "peft", "kohya", "down and up")
both = pytest.mark.parametrize("name", MAKERS)


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers takes HunyuanVideo's single blocks apart only for a width of 3072; use the small model's instead."""

    def of_32(code: CodeType) -> CodeType:
        consts = (of_32(each) if isinstance(each, CodeType) else each for each in code.co_consts)
        return code.replace(co_consts=tuple(32 if each == 3072 else each for each in consts))

    convert = lora_conversion_utils._convert_hunyuan_video_lora_to_diffusers
    monkeypatch.setattr(convert, "__code__", of_32(convert.__code__))


@pytest.fixture(scope="module")
def pipes() -> dict[str, Any]:
    return {name: make() for name, make in MAKERS.items()}


def factors(transformer: Any, names: Original, seed: int = 0) -> dict[str, tuple[torch.Tensor, list[torch.Tensor]]]:
    """Random factors by the original names: the first one, and the second one of each layer."""
    generator, rank = torch.Generator().manual_seed(seed), loras.RANK
    found = {}
    for name, layers in names.items():
        inside = transformer.get_submodule(layers[0]).in_features
        out = [transformer.get_submodule(layer).out_features for layer in layers]
        found[name] = (
            torch.randn(rank, inside, generator=generator) / inside**0.5,
            [torch.randn(each, rank, generator=generator) / rank**0.5 for each in out],
        )
    return found


def in_layout(layout: str, transformer: Any, names: Original, seed: int = 0) -> dict[str, torch.Tensor]:
    """The tensors of a LoRA of these layers as a file of this layout names them."""
    tensors: dict[str, torch.Tensor] = {}
    for name, (first, seconds) in factors(transformer, names, seed).items():
        if layout in ("diffusers", "bare"):
            for layer, second in zip(names[name], seconds, strict=True):
                start = ("transformer." if layout == "diffusers" else "") + layer
                tensors |= {f"{start}.lora_A.weight": first, f"{start}.lora_B.weight": second}
            continue
        if name.endswith("adaLN_modulation.1"):
            seconds = [*seconds[0].chunk(2)][::-1]  # of the original, the shift comes before the scale
        second = torch.cat(seconds)
        if layout == "kohya":  # alpha is half the rank, so the first factors are twice as large
            start = f"lora_unet_{name.replace('.', '_')}"
            tensors |= {f"{start}.lora_down.weight": 2 * first, f"{start}.lora_up.weight": second}
            tensors[f"{start}.alpha"] = torch.tensor(loras.RANK / 2)
        elif layout == "down and up":
            start = f"diffusion_model.{name}"
            tensors |= {f"{start}.lora_down.weight": 2 * first, f"{start}.lora_up.weight": second}
            tensors[f"{start}.alpha"] = torch.tensor(loras.RANK / 2)
        else:
            prefix = {"comfy": "diffusion_model.", "prefixed": "transformer.", "peft": "base_model.model."}
            start = prefix.get(layout, "") + name
            tensors |= {f"{start}.lora_A.weight": first, f"{start}.lora_B.weight": second}
    return tensors


def merged(transformer: Any, names: Original, seed: int = 0) -> Any:
    """The transformer itself, with the LoRA in its weights."""
    with torch.no_grad():
        for name, (first, seconds) in factors(transformer, names, seed).items():
            for layer, second in zip(names[name], seconds, strict=True):
                transformer.get_submodule(layer).weight.add_(second @ first)
    return transformer


@torch.no_grad()
def velocity(transformer: Any) -> torch.Tensor:
    family = family_of(transformer)
    inputs = family.at(family.example_inputs(transformer, 16, 5), torch.tensor([0.5]))
    return family.velocity(transformer(**inputs))


@pytest.mark.parametrize("layout", LAYOUTS)
@both
def test_every_layout_changes_the_layers_that_it_means(
    pipes: dict[str, Any], tmp_path: Path, name: str, layout: str
) -> None:
    pipe, adapters = pipes[name], Adapters()
    names = NAMES[name] if layout in ("kohya", "down and up") else {**NAMES[name], **OUTSIDE[name]}
    file = loras.save(tmp_path / "style.safetensors", in_layout(layout, pipe.transformer, names))
    plain = velocity(pipe.transformer)
    adapters.use(pipe, [given(file)])
    found = velocity(pipe.transformer)
    adapters.use(pipe, [])
    assert torch.equal(velocity(pipe.transformer), plain)
    wanted = velocity(merged(MAKERS[name]().transformer, names))
    assert torch.allclose(found, wanted, atol=1e-4) and not torch.allclose(found, plain, atol=1e-2)
    pipe.unload_lora_weights()


COMFY = {"_attn_": "_attn.", "_mlp.fc1": "_mlp.0", "_mlp.fc2": "_mlp.2", ".linear": ".lin"}


def test_comfyuis_names_for_hunyuan_video_are_those_of_flux_and_biases_count(
    pipes: dict[str, Any], tmp_path: Path
) -> None:
    pipe, tensors = pipes["HunyuanVideo"], {}
    plain = velocity(pipe.transformer)
    for name, tensor in in_layout("down and up", pipe.transformer, HUNYUAN).items():
        end = name.rpartition(".lora_")[1:] if ".lora_" in name else name.rpartition(".")[1:]
        start = name.removesuffix("".join(end))
        for own, other in COMFY.items():
            start = start.replace(own, other) if "linear1" not in start and "linear2" not in start else start
        tensors["".join((start, *end))] = tensor
        if end[-1].startswith("up"):
            tensors[f"{start}.diff_b"] = torch.full((len(tensor),), 0.1)
    assert any(".img_attn.qkv." in name for name in tensors) and any(".img_mod.lin." in name for name in tensors)
    adapters = Adapters()
    adapters.use(pipe, [given(loras.save(tmp_path / "fast.safetensors", tensors))])
    found = velocity(pipe.transformer)
    adapters.use(pipe, [])
    other = merged(MAKERS["HunyuanVideo"]().transformer, HUNYUAN)
    with torch.no_grad():
        for layers in HUNYUAN.values():
            for layer in layers:
                other.get_submodule(layer).bias.add_(0.1)
    assert torch.allclose(found, velocity(other), atol=1e-4) and not torch.allclose(found, plain, atol=1e-2)
    pipe.unload_lora_weights()


@both
def test_a_layer_that_the_model_lacks_is_one_line(pipes: dict[str, Any], tmp_path: Path, name: str) -> None:
    pipe = pipes[name]
    for layout in ("diffusers", "original"):
        tensors = in_layout(layout, pipe.transformer, NAMES[name])
        tensors = {key.replace("blocks.0.", "blocks.7."): tensor for key, tensor in tensors.items()}
        file = loras.save(tmp_path / "style.safetensors", tensors)
        with pytest.raises(ModelError, match=r"only partly: no layer matches \d+ of its \d+ tensors, such as ") as one:
            Adapters().use(pipe, [given(file)])
        assert "\n" not in str(one.value) and f"fits this {name} " in str(one.value)


FULL = {"HunyuanVideo": (20, 40), "FLUX.1": (19, 38)}


def shapes(path: Path, names: Sequence[str], width: int) -> Path:
    """A LoRA of square layers with these names."""
    ends = {"lora_A": (2, width), "lora_B": (width, 2)}
    return loras.save(path, {f"{name}.{end}.weight": torch.zeros(each) for name in names for end, each in ends.items()})


@pytest.mark.parametrize("whose", FULL)
def test_the_number_of_blocks_tells_hunyuan_video_from_flux(tmp_path: Path, whose: str) -> None:
    """diffusers names the layers of both alike."""
    double, single = FULL[whose]
    every = [f"transformer.{_DOUBLE}.{block}.ff.net.0.proj" for block in range(double)]
    every += [f"transformer.{_SINGLE}.{block}.proj_mlp" for block in range(single)]
    for part in (every, every[:double], every[double:]):
        facts = describe_lora(shapes(tmp_path / "a.safetensors", part, 8))
        assert (facts.family, whose in facts.families, len(facts.families)) == (whose, True, 1 + (whose == "FLUX.1"))
    some = describe_lora(shapes(tmp_path / "a.safetensors", every[3:5], 8))
    assert some.family == "FLUX.1 or HunyuanVideo" and {"FLUX.1", "HunyuanVideo"} <= {*some.families}


@pytest.mark.parametrize(
    ("layer", "model", "words"),
    [
        ("diffusion_model.blocks.0.self_attn.q", "wan", r"for a width of 5120; 'wan' is Wan 2\.1 with a width of 1536"),
        ("transformer.blocks.0.attn1.to_q", "wan", r"for a width of 5120; 'wan' is Wan 2\.1 with a width of 1536"),
        ("lora_unet_blocks_0_self_attn_q", "hunyuan-video", r"is for Wan 2\.1: .*; 'hunyuan-video' is HunyuanVideo"),
        ("diffusion_model.double_blocks.0.img_attn_qkv", "dev", r"is for HunyuanVideo: .*; 'dev' is FLUX\.1"),
        ("lora_unet_double_blocks_0_img_mlp_fc1", "wan", r"is for HunyuanVideo: .*; 'wan' is Wan 2\.1"),
        ("lora_unet_double_blocks_0_img_mlp_0", "hunyuan-video", r"is for FLUX\.1: .*; 'hunyuan-video' is Hunyuan"),
    ],
)
def test_one_for_another_model_or_size_is_refused_before_anything_is_loaded(
    tmp_path: Path, layer: str, model: str, words: str
) -> None:
    file = shapes(tmp_path / "a.safetensors", [layer], 5120)
    if layer.endswith("mlp_0"):
        ends = {"lora_down": (2, 5120), "lora_up": (4 * 5120, 2)}
        loras.save(file, {f"{layer}.{end}.weight": torch.zeros(each) for end, each in ends.items()})
    with pytest.raises(SettingError, match=words) as one:
        check_loras([(file, "a.safetensors")], resolve(model))
    assert "\n" not in str(one.value)
    if model == "wan" and "5120" in words:
        check_loras([(file, "a.safetensors")], resolve("wan-14b"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("wan")
    MAKERS["Wan 2.1"]().save_pretrained(folder)
    yield folder


def test_a_video_is_made_with_one_and_a_cache(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    session = h2gen.load(str(folder), device="cpu")
    tensors = in_layout("kohya", session.pipe.transformer, WAN)
    file = str(loras.save(tmp_path / "style.safetensors", tensors))
    asked = {"steps": 4, "size": "64", "frames": 5, "seed": 7, "cfg": 1.0, "max_sequence_length": 16}
    plain = session.generate("a cat", cache=None, **asked).frames
    styled = session.generate("a cat", cache=None, lora=file, **asked).frames
    exact = session.generate("a cat", cache=CacheConfig(0, 0), lora=file, **asked).frames
    assert np.array_equal(styled, exact) and not np.array_equal(styled, plain)
    made = session.generate("a cat", cache=CacheConfig(1e9, 1e9), lora=file, **asked)
    assert made.summary.share < 1 and [each.name for each in made.settings.lora] == ["style.safetensors"]
    assert np.array_equal(session.generate("a cat", cache=None, **asked).frames, plain)
    assert run(["models", "show", file]) == 0
    shown = capsys.readouterr().out
    assert "for Wan 2.1, width 32" in shown and "7 layers of the transformer in 3 blocks" in shown
    assert run(["models", "show", "wan"]) == 0
    assert "no LoRAs" not in capsys.readouterr().out
