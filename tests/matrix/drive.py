"""Builds the matrix's pipelines and calls them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import FluxControlNetPipeline
from diffusers.guiders import ClassifierFreeGuidance

from h2gen.cache.stages import stages_of
from tests.loras import control_lora
from tests.matrix.rows import Row
from tests.small import (
    HIDDEN,
    SIZE,
    chroma_pipeline,
    flux2_klein_pipeline,
    flux2_pipeline,
    flux3_pipeline,
    flux_pipeline,
    hunyuan_video_pipeline,
    mask,
    picture,
    quiet,
    qwen_image_pipeline,
    redux_prior,
    run_kwargs,
    wan_pipeline,
    z_image_pipeline,
)

STEPS = 6
STRENGTH = 0.7
SMALL = {"layers": 2, "single_layers": 3}
WIDE = {"in_channels": 32, "out_channels": 16}  # latents concatenated with those of a control picture


@functools.cache
def base_of(kind: str, is_distilled: bool = True) -> Any:
    """A pipeline whose parts the others of its kind share."""
    return {
        "FluxControlNet": lambda: flux_pipeline(FluxControlNetPipeline, **SMALL),
        "FluxControl": lambda: flux_pipeline(diffusers.FluxControlPipeline, **WIDE, **SMALL),
        "FluxFill": lambda: flux_pipeline(diffusers.FluxFillPipeline, **SMALL),
        "Flux2Klein": lambda: flux2_klein_pipeline(is_distilled=is_distilled, **SMALL),
        "Flux2": lambda: flux2_pipeline(**SMALL),
        "Flux": lambda: flux_pipeline(**SMALL),
        "Chroma": lambda: chroma_pipeline(**SMALL),
        "HunyuanVideo": lambda: hunyuan_video_pipeline(**SMALL),
        "Wan": lambda: wan_pipeline(layers=5),
        "Flux3Distilled": lambda: flux3_pipeline(flow_map=True),
        "Flux3": flux3_pipeline,
        "QwenImage": qwen_image_pipeline,
        "ZImage": z_image_pipeline,
        "with an IP-Adapter": with_ip_adapter,
        "with a Control LoRA": with_control_lora,
    }[kind]()


def with_ip_adapter() -> Any:
    """A pipeline with a random IP-Adapter, loaded as people load one."""
    pipe, random = flux_pipeline(**SMALL), torch.Generator().manual_seed(5)
    width = pipe.transformer.config.joint_attention_dim
    sizes = {
        "proj.weight": (4 * width, width),
        "proj.bias": (4 * width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    projection = {name: torch.randn(size, generator=random) for name, size in sizes.items()}
    blocks = range(len(pipe.transformer.transformer_blocks))
    names = [f"{block}.to_{part}_ip" for block in blocks for part in "kv"]
    attention = {f"{name}.weight": torch.randn(width, width, generator=random) / 4 for name in names}
    attention |= {f"{name}.bias": torch.randn(width, generator=random) / 4 for name in names}
    given = {"image_proj": projection, "ip_adapter": attention}
    pipe.load_ip_adapter(given, weight_name="", image_encoder_pretrained_model_name_or_path=None)
    return pipe


def with_control_lora() -> Any:
    """A text-to-image model that a Control LoRA has made follow a picture."""
    pipe = quiet(flux_pipeline(diffusers.FluxControlInpaintPipeline, layers=3, single_layers=4))
    pipe.load_lora_weights(control_lora(pipe.transformer, original=False))
    return pipe


KINDS = ("FluxControlNet", "FluxControl", "FluxFill", "Flux2Klein", "Flux2", "Flux", "Chroma", "HunyuanVideo", "Wan")
KINDS += ("QwenImage", "ZImage")


def pipeline_of(row: Row) -> Any:
    if "adapter_pictures" in row.call:
        return base_of("with an IP-Adapter")
    if "control_lora" in row.call:
        return base_of("with a Control LoRA")
    if row.pipeline.startswith("Flux3"):
        return _unguided("Flux3Distilled" if "Distilled" in row.pipeline else "Flux3")
    return (_modular if row.modular else _pipeline)(row.pipeline, row.config.get("is_distilled", True))


@functools.cache
def _unguided(kind: str) -> Any:
    pipe = base_of(kind)
    if "guider" in pipe.components:
        pipe.update_components(guider=ClassifierFreeGuidance(1.0))
    return quiet(pipe)


@functools.cache
def _modular(name: str, is_distilled: bool) -> Any:
    modules = ("flux.modular_blocks_flux", "flux.modular_blocks_flux_kontext", "flux2.modular_blocks_flux2")
    modules += ("flux2.modular_blocks_flux2_klein", "flux2.modular_blocks_flux2_klein_base")
    found = (import_module(f"diffusers.modular_pipelines.{module}") for module in modules)
    blocks = next(getattr(module, name) for module in found if hasattr(module, name))
    pipe = blocks().init_pipeline()
    kind = next(kind for kind in KINDS if name.startswith(kind))
    parts = base_of(kind, is_distilled).components
    wanted = {*pipe.components} - {"guider"}
    pipe.update_components(**{part: value for part, value in parts.items() if part in wanted})
    if "guider" in pipe.components:
        pipe.update_components(guider=ClassifierFreeGuidance(1.0))  # one pass; others are in test_guiders
    return quiet(pipe)


def _takes(row: Row) -> set[str]:
    """The arguments of a row's pipeline."""
    pipe = pipeline_of(row)
    if row.modular:
        return {each.name for each in pipe.blocks.inputs if each.name}
    return {*inspect.signature(pipe.__call__).parameters}


@functools.cache
def _pipeline(name: str, is_distilled: bool) -> Any:
    cls = getattr(diffusers, name)
    kind = next(kind for kind in KINDS if name.startswith(kind))
    parts = base_of(kind, is_distilled).components
    wanted = inspect.signature(cls.__init__).parameters
    parts = {part: value for part, value in parts.items() if part in wanted}
    parts["scheduler"] = type(parts["scheduler"]).from_config(parts["scheduler"].config)
    if "is_distilled" in wanted:
        parts["is_distilled"] = is_distilled
    return quiet(cls(**parts))


def asked(row: Row, steps: int = STEPS, seed: int = 7, **more: Any) -> dict[str, Any]:
    """What to call a row's pipeline with."""
    pipe = pipeline_of(row)
    kwargs = run_kwargs(pipe, steps=steps, seed=seed)
    takes = _takes(row)
    if "strength" in takes and row.pipeline != "FluxFillPipeline":
        kwargs["strength"] = STRENGTH
    if "Img2Img" in row.pipeline or "Inpaint" in row.pipeline or row.task == "image-to-image":
        kwargs["image"] = picture()
    elif row.modular:
        kwargs.pop("strength", None)
    if "Inpaint" in row.pipeline:
        kwargs["mask_image"] = mask()
    if "guidance_scale" in row.guided:
        kwargs.setdefault("guidance_scale", 1.0)  # otherwise it is true guidance
    call = {name: value for name, value in row.call.items() if name != "control_lora"}
    references = [picture(150 + 60 * number) for number in range(call.pop("references", 0))]
    if references:
        kwargs |= {"image_reference": references[0]} if "image_reference" in takes else {"image": references}
    if call.pop("redux", 0):
        kwargs |= _with_redux(pipe, more.get("prompt", kwargs["prompt"]))
        more = {**more, "prompt": None}
    if call.pop("adapter_pictures", 0):
        random = torch.Generator().manual_seed(4)
        for name in ("ip_adapter_image_embeds", "negative_ip_adapter_image_embeds"):
            kwargs[name] = [torch.randn(1, 1, HIDDEN, generator=random)]
    # FLUX.3 always decodes.
    kwargs |= {"output_type": "pt" if row.pipeline.startswith("Flux3") else "latent", **call, **more}
    return {name: value for name, value in kwargs.items() if name in takes}


def _with_redux(pipe: Any, prompt: str | list[str]) -> dict[str, Any]:
    """Embeddings of a prompt, followed by the tokens of a picture."""
    with torch.no_grad():
        text, pooled, _ = pipe.encode_prompt(prompt, None, max_sequence_length=16)
    tokens = _redux_tokens().expand(len(text), -1, -1)
    return {"prompt_embeds": torch.cat([text, tokens], 1), "pooled_prompt_embeds": pooled}


@functools.cache
def _redux_tokens() -> torch.Tensor:
    prior = redux_prior()
    with torch.no_grad():
        tokens: torch.Tensor = prior.image_embedder(prior.encode_image(picture(), "cpu", 1)).image_embeds
    return tokens


@contextmanager
def _guided_by(pipe: Any, scale: float | None) -> Iterator[None]:
    if scale is None:
        yield
        return
    before, pipe.guider.guidance_scale = pipe.guider.guidance_scale, scale
    try:
        yield
    finally:
        pipe.guider.guidance_scale = before


def made(row: Row, guider_scale: float | None = None, **more: Any) -> np.ndarray:
    """The latents of a row's picture or video, or of its batch."""
    pipe, kwargs = pipeline_of(row), asked(row, **more)
    with _guided_by(pipe, guider_scale):
        images = pipe(**kwargs, output="latents") if row.modular else pipe(**kwargs)[0]
    assert torch.isfinite(images).all()
    result: np.ndarray = images.float().numpy()
    return result


@functools.cache
def plain(row: Row, guided: bool = False) -> np.ndarray:
    """What diffusers makes on its own."""
    return made(row, **(row.guided if guided else {}))


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.mean((a - b) ** 2)))


def steps_of(row: Row) -> int:
    """The steps that a pipeline runs: at a strength below 1 not all that it is asked for."""
    return len(asked(row).get("sigmas", range(STEPS))) - (int(STEPS - STEPS * asked(row).get("strength", 1)))


def larger(row: Row) -> dict[str, Any]:
    """What asks for a larger picture of another shape; some pipelines take the size of the picture that they change."""
    width, height = SIZE, SIZE + 32
    pictures = {name: asked(row)[name] for name in ("image", "mask_image", "control_image") if name in asked(row)}
    resized = {name: each.resize((width, height)) for name, each in pictures.items() if not isinstance(each, list)}
    return {"height": height, "width": width, "max_area": height * width, **resized}


REFINERS = "noise_refiner", "context_refiner"


def attention_of(block: torch.nn.Module) -> torch.nn.Module:
    """What a block that is skipped never calls: its attention over its own tokens."""
    name = next(name for name in ("attention", "attn1", "attn") if hasattr(block, name))
    return block.get_submodule(name)


def attentions(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Of the blocks of both stages, in order."""
    return [attention_of(block) for stage in stages_of(model) for block in stage.blocks]


@contextmanager
def counted(model: torch.nn.Module) -> Iterator[Callable[[], float]]:
    """The blocks that really run, each counted once per picture: a block that is skipped never calls its attention.

    A block that sees one kind of tokens only counts by its share of the tokens that the joint blocks see.
    """
    runs: list[float] = []
    parts: list[tuple[int, int]] = []

    def count(_module: Any, _args: Any, output: Any) -> None:
        streams = output if isinstance(output, tuple) else (output,)
        runs.extend(pictures * tokens / streams[0].shape[1] for pictures, tokens in parts)
        parts.clear()
        runs.append(len(streams[0]))

    def count_part(_module: Any, _args: Any, output: torch.Tensor) -> None:
        parts.append((len(output), output.shape[1]))

    own = [block for each in ("txt_mode_blocks", *REFINERS) for block in getattr(model, each, ())]
    own += [block for mode in getattr(model, "mode_blocks", {}).values() for block in mode]
    hooks = [attention.register_forward_hook(count) for attention in attentions(model)]
    hooks += [attention_of(block).register_forward_hook(count_part) for block in own]
    try:
        yield lambda: sum(runs)
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def lora(pipe: Any) -> Iterator[None]:
    """A random LoRA, loaded as people load one."""
    weights, random = {}, torch.Generator().manual_seed(3)
    for name, module in pipe.transformer.named_modules():
        if name.endswith(("attn.to_q", "attn1.to_q", "attn.to_qkv_mlp_proj", "attention.to_q")):
            sizes = {"lora_A": (4, module.in_features), "lora_B": (module.out_features, 4)}
            for part, size in sizes.items():
                weights[f"transformer.{name}.{part}.weight"] = torch.randn(size, generator=random) / 4
    pipe.load_lora_weights(weights)
    try:
        yield
    finally:
        pipe.unload_lora_weights()
