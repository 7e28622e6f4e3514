"""A modular pipeline of diffusers behind the interface of a classic one, as far as h2gen uses it.

diffusers has FLUX.3 only as a modular pipeline: a sequence of blocks, without callbacks. Here text is encoded before
the call, and a block of ours at the end of each denoising step calls ``callback_on_step_end`` and stops if it has to.
"""

from __future__ import annotations

import json
import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import ModularPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline import LoopSequentialPipelineBlocks, PipelineState

_IN_ORDER = ("text_encoder", "transformer", "vae")
"""The parts with weights, as they run."""


class ModularPipe:
    """A modular pipeline that is called like a classic one. All else, such as its parts, is the pipeline's own.

    Args:
        pipeline: of diffusers, with its parts. It is left as it is.
    """

    def __init__(self, pipeline: Any) -> None:
        blocks = pipeline.blocks  # a copy
        encoder = blocks.sub_blocks["text_encoder"]
        blocks.sub_blocks["text_encoder"] = _Encoded(encoder.expected_components)
        blocks.sub_blocks.pop("prompt_upsampler", None)
        loops = [*_loops(blocks)]
        for loop in loops:
            loop.sub_blocks["after_step"] = _AfterStep(self)
        own = type(pipeline)(blocks=blocks)
        own.update_components(**{name: part for name, part in pipeline.components.items() if name in own.components})
        vars(self).update(pipeline=own, _encoder=encoder, _loops=loops)
        self._offloading: list[Any] = []
        self._callback: Callable[..., Any] | None = None
        self._interrupt = False
        self._progress_bar_config: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        if name == "pipeline":  # while it is copied
            raise AttributeError(name)
        return getattr(self.pipeline, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Attributes of its own; parts, such as the scheduler, are exchanged in the pipeline."""
        if name in self.pipeline.components:
            setattr(self.pipeline, name, value)
        else:
            vars(self)[name] = value

    def __call__(
        self,
        prompt: str | None = None,
        *,
        negative_prompt: str = "",
        guidance_scale: float | None = None,
        max_sequence_length: int = 8192,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        output_type: str = "pil",
        callback_on_step_end: Callable[..., Any] | None = None,
        **given: Any,
    ) -> SimpleNamespace:
        """Make pictures, one per row of ``prompt_embeds``, which may be given instead of a prompt.

        Args:
            prompt, negative_prompt: texts.
            guidance_scale: of true guidance; by default the guider's own.
            max_sequence_length: tokens of a text that are read.
            prompt_embeds, negative_prompt_embeds: what ``encode_prompt`` returns, one row per picture.
            output_type: ``pil``, ``np`` or ``pt``.
            callback_on_step_end: as in classic pipelines; the latents that it returns are continued with.
            given: inputs of the pipeline's blocks, such as ``width``, ``image`` or ``generator``.

        Returns:
            An object with ``images``.
        """
        self._interrupt, self._callback = False, callback_on_step_end
        try:
            with _silent(), self._guided_by(guidance_scale):
                if prompt_embeds is None:
                    prompt_embeds = self.encode_prompt(prompt or "", max_sequence_length)
                if self.requires_unconditional_embeds:
                    if negative_prompt_embeds is None:
                        negative_prompt_embeds = self.encode_prompt(negative_prompt, max_sequence_length)
                    given["negative_prompt_embeds"] = negative_prompt_embeds
                given |= {"prompt_embeds": prompt_embeds, "output_type": output_type}
                return SimpleNamespace(images=self.pipeline(**given, output="images"))
        finally:
            self._callback = None
            for hook in self._offloading:
                hook.offload()

    @torch.no_grad()
    def encode_prompt(self, prompt: str, max_sequence_length: int) -> torch.Tensor:
        """The embeddings of a text, ``(1, tokens, width)``, as the pipeline's own block makes them."""
        parts = SimpleNamespace(
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            _execution_device=self._execution_device,
            guider=None,
            requires_unconditional_embeds=False,  # a text at a time
        )
        state = PipelineState()
        for each in self._encoder.inputs:
            state.set(each.name, each.default)
        state.set("prompt", prompt)
        state.set("max_sequence_length", max_sequence_length)
        _, state = self._encoder(parts, state)
        embeddings: torch.Tensor = state.get("prompt_embeds")
        return embeddings

    def to(self, *args: Any, **kwargs: Any) -> ModularPipe:
        self.pipeline.to(*args, **kwargs)
        return self

    def set_progress_bar_config(self, **config: Any) -> None:
        self._progress_bar_config = config
        for loop in self._loops:
            loop.set_progress_bar_config(**config)

    def enable_model_cpu_offload(self, device: torch.device) -> None:
        """Keep only the part on the device that is running."""
        from accelerate import cpu_offload_with_hook

        hook = None
        for name in _IN_ORDER:
            _, hook = cpu_offload_with_hook(getattr(self, name), device, prev_module_hook=hook)
            self._offloading.append(hook)

    def enable_sequential_cpu_offload(self, device: torch.device) -> None:
        """Keep only the layer on the device that is running."""
        from accelerate import cpu_offload

        for name in _IN_ORDER:
            part = getattr(self, name)
            # As in classic pipelines: the pipeline itself reads buffers of the autoencoder.
            cpu_offload(part, device, offload_buffers=len(part._parameters) > 0)

    @contextmanager
    def _guided_by(self, scale: float | None) -> Iterator[None]:
        guider: Any = getattr(self.pipeline, "guider", None)
        own = getattr(guider, "guidance_scale", None)
        if scale is None or own is None:
            yield
            return
        guider.guidance_scale = scale
        try:
            yield
        finally:
            guider.guidance_scale = own

    def _after_step(self, state: Any, i: int, t: torch.Tensor) -> None:
        if self._interrupt:
            raise KeyboardInterrupt
        if self._callback is not None:
            changed = self._callback(self, i, t, {"latents": state.latents})
            state.latents = changed.get("latents", state.latents)


class _Encoded(ModularPipelineBlocks):  # type: ignore[misc]
    """Stands in for the block that encodes text: it was encoded before the call."""

    def __init__(self, expected_components: Sequence[Any]) -> None:
        super().__init__()
        self._expected = list(expected_components)

    @property
    def expected_components(self) -> list[Any]:
        return self._expected

    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        return components, state


class _AfterStep(ModularPipelineBlocks):  # type: ignore[misc]
    """The last block of each denoising step. It does not keep its owner alive, which has the weights."""

    def __init__(self, owner: ModularPipe) -> None:
        super().__init__()
        self._owner = weakref.ref(owner)

    def __call__(self, components: Any, state: Any, i: int, t: torch.Tensor) -> tuple[Any, Any]:
        owner = self._owner()
        if owner is not None:
            owner._after_step(state, i, t)
        return components, state


class ChatTokenizer:
    """A tokenizer in the place of a processor of text and pictures, of which text needs no more.

    The processor itself would need torchvision.

    Args:
        folder: with the files of a processor or a tokenizer.
    """

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        older = folder / "chat_template.json"
        if not self.tokenizer.chat_template and older.is_file():
            self.tokenizer.chat_template = json.loads(older.read_text("utf-8"))["chat_template"]

    def apply_chat_template(self, *args: Any, **kwargs: Any) -> Any:
        return self.tokenizer.apply_chat_template(*args, **kwargs)


def _loops(blocks: Any) -> Iterator[Any]:
    """The denoising loops among blocks: one per workflow."""
    if isinstance(blocks, LoopSequentialPipelineBlocks):
        yield blocks
        return
    for block in blocks.sub_blocks.values():
        yield from _loops(block)


@contextmanager
def _silent() -> Iterator[None]:
    """Keep diffusers from logging the traceback of an error in a block: whoever catches the error reports it."""
    log = logging.getLogger(ModularPipelineBlocks.__module__)
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before
