"""A FLUX.1 pipeline of random weights, made on the device itself, and what it is called with."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from h2gen.models import compiling
from h2gen.models import quantize as quantizing
from h2gen.models.load import quiet
from h2gen.models.quantization import QUANTIZATIONS


def _hide(package: str) -> Exception | None:
    """Hide a package that cannot be imported: diffusers imports those that it finds, and would fail in every part.

    Returns:
        Why it cannot be imported.
    """
    try:
        import_module(package)
    except Exception as error:  # noqa: BLE001 - such as OSError for a library that is built for another CUDA
        sys.modules[package] = None  # type: ignore[assignment] # Python's mark for "not there"
        return error
    return None


logging.disable()  # what they lack themselves
HIDDEN = {package: _hide(package) for package in ("torchao", "bitsandbytes", "torchvision")}
logging.disable(logging.NOTSET)
tqdm.set_lock(threading.RLock())  # its own lock, a semaphore, is left behind if a process is killed
with quiet():  # it imports torchao, which tells the terminal what it lacks
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

FAST = "FFFFFFSFSSSFSSSSFSSSSSFSSSSF"
ULTRA = "FFFFSSFSSSSSFSSSSSSFSSSSSSSF"
"""cache-dit's masks "fast" (11 of 28 steps computed) and "ultra" (8)."""


@dataclass(frozen=True)
class Scale:
    """What is measured.

    Args:
        config: of the transformer, beside its defaults.
        size: of the picture's sides, in pixels.
        text_tokens: of the prompt.
        steps: of a whole run.
        repeats: of each measurement.
        backend: of torch.compile.
    """

    device: torch.device
    dtype: torch.dtype
    config: Mapping[str, Any]
    size: int
    text_tokens: int
    steps: int
    repeats: int
    backend: str

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"


def scale_of(small: bool) -> Scale:
    """FLUX.1 [dev] at 1024x1024 in bfloat16 on the GPU; or a tiny model in float32 on the CPU."""
    if not small:
        return Scale(torch.device("cuda"), torch.bfloat16, {"guidance_embeds": True}, 1024, 512, 28, 2, "inductor")
    config = {
        "guidance_embeds": True,
        "num_layers": 1,
        "num_single_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "axes_dims_rope": (4, 6, 6),
        "joint_attention_dim": 32,
        "pooled_projection_dim": 16,
    }
    torch.set_num_threads(1)
    return Scale(torch.device("cpu"), torch.float32, config, 64, 8, 8, 1, "eager")


def make_pipeline(scale: Scale) -> Any:
    """A pipeline without text encoders and autoencoder: prompt embeddings go in and latents come out."""
    torch.manual_seed(0)
    with _default_dtype(scale.dtype), scale.device:
        transformer: nn.Module = FluxTransformer2DModel(**scale.config)
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)
    nothing = dict.fromkeys(("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    pipe = FluxPipeline(scheduler=scheduler, transformer=transformer.eval().requires_grad_(False), **nothing)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class Caller:
    """Calls a pipeline with the same text each time, as a session does that keeps its prompt's embeddings.

    Args:
        pictures: in one batch.
    """

    def __init__(self, pipe: Any, scale: Scale, pictures: int = 1) -> None:
        self.pipe, self.scale, self.pictures = pipe, scale, pictures
        config = pipe.transformer.config
        generator = torch.Generator().manual_seed(1)
        text = torch.randn(pictures, scale.text_tokens, config.joint_attention_dim, generator=generator)
        pooled = torch.randn(pictures, config.pooled_projection_dim, generator=generator)
        self._given = {
            "prompt_embeds": text.to(scale.device, scale.dtype),
            "pooled_prompt_embeds": pooled.to(scale.device, scale.dtype),
            "width": scale.size,
            "height": scale.size,
            "output_type": "latent",
        }

    def __call__(self, steps: int | None = None, at_end_of: Callable[[int], None] | None = None) -> torch.Tensor:
        """Denoise.

        Args:
            steps: of the scale by default.
            at_end_of: is called with the number of each step, from 0, at its end.

        Returns:
            The latents, ``(B, N, C)``.
        """
        given = dict(self._given)
        if at_end_of is not None:

            def callback(_pipe: Any, step: int, _timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
                at_end_of(step)
                return kwargs

            given["callback_on_step_end"] = callback
        generator = torch.Generator(self.scale.device).manual_seed(2)
        latents: torch.Tensor = self.pipe(
            **given, num_inference_steps=steps or self.scale.steps, generator=generator
        ).images
        return latents


def wait(scale: Scale) -> None:
    """Wait for the device."""
    if scale.cuda:
        torch.cuda.synchronize()


def compile_blocks(transformer: nn.Module, scale: Scale) -> None:
    """Compile the repeated blocks, as ``--compile`` does."""
    compiling.compile_blocks(transformer, scale.backend)


def quantize(transformer: nn.Module, scale: Scale) -> str:
    """Quantize the blocks as ``--quantize`` does, for faster products. Returns how.

    float8 needs a GPU that has it; a CPU gets int8, both with activations quantized as they come.
    """
    if (error := HIDDEN["torchao"]) is not None:
        raise error
    name = "fp8-dynamic" if scale.cuda else "int8-dynamic"
    quantizing.quantize(transformer, QUANTIZATIONS[name], scale.device, blocks=True)
    transformer.to(scale.device)
    return name
