"""Imported once by the fork server of worker processes in tests, which saves seconds per process."""

from __future__ import annotations

import diffusers
import transformers

import h2gen.batches.worker
import h2gen.generation.session  # noqa: F401

# These two libraries import a class only on first use.
for _library, _names in (
    (diffusers, "AutoencoderKL AutoencoderTiny FlowMatchEulerDiscreteScheduler FluxPipeline Flux2KleinPipeline"),
    (transformers, "CLIPTextModel CLIPTokenizer T5EncoderModel T5TokenizerFast Qwen3ForCausalLM Qwen2TokenizerFast"),
):
    for _name in _names.split():
        getattr(_library, _name)
