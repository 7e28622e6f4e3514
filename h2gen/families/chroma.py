"""Chroma: FLUX.1's blocks without its modulation layers and CLIP; masked text, and true guidance only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from h2gen.families.contract import Family
from h2gen.families.defaults import ModelDefaults
from h2gen.families.flux1 import controlnet_samples
from h2gen.families.prompt_end import PromptEnd, end_of
from h2gen.families.unused import NOT_DISTILLED, Unused

if TYPE_CHECKING:
    import torch

CHROMA = ModelDefaults(steps=40, guidance=0.0, cfg=3.0)


class Chroma(Family):
    """``ChromaTransformer2DModel``: Chroma1-HD, -Base and -Flash."""

    title = "Chroma"
    transformer = "ChromaTransformer2DModel"
    tasks: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "ChromaPipeline": {
            "text": "ChromaPipeline",
            "image": "ChromaImg2ImgPipeline",
            "inpaint": "ChromaInpaintPipeline",
        },
    }
    held_per_token = 18.1
    marks = ("distilled_guidance_layer.",)
    diffusers_caches = frozenset({"TaylorSeerCacheConfig"})
    per_picture = Family.per_picture | {"attention_mask"}

    def added_between(self, stage: str, blocks: int, arguments: Mapping[str, Any]) -> Sequence[torch.Tensor]:
        """Source: ``ChromaTransformer2DModel.forward``, which adds in place to the streams of single-stream blocks."""
        samples = controlnet_samples(stage, blocks, arguments)
        return samples if stage == "structure" else samples[1:]

    def defaults(self, transformer_config: Mapping[str, Any], model_index: Mapping[str, Any]) -> ModelDefaults:
        return CHROMA

    def unused(
        self, pipeline: str, transformer_config: Mapping[str, Any], model_index: Mapping[str, Any]
    ) -> Mapping[str, Unused]:
        return {"guidance": NOT_DISTILLED}

    def encode(self, pipe: Any, prompt: str, max_sequence_length: int) -> dict[str, torch.Tensor]:
        embeddings, _, mask, *_ = pipe.encode_prompt(
            prompt=[prompt],
            device=pipe._execution_device,
            do_classifier_free_guidance=False,
            max_sequence_length=max_sequence_length,
        )
        return {"prompt_embeds": embeddings, "prompt_attention_mask": mask}

    def unread(self, pipe: Any, prompt: str, max_sequence_length: int) -> PromptEnd:
        return end_of(pipe.tokenizer, prompt, max_sequence_length)

    def guidance_arguments(self, pipe: Any, guidance: float, cfg: float) -> dict[str, Any]:
        return {"guidance_scale": cfg}

    def example_inputs(self, transformer: Any, image_tokens: int, text_tokens: int) -> dict[str, Any]:
        inputs = super().example_inputs(transformer, image_tokens, text_tokens)
        inputs["attention_mask"] = inputs["hidden_states"].new_ones(1, text_tokens + image_tokens)
        return inputs

    def modulated_input(self, block: Any, arguments: Mapping[str, Any]) -> torch.Tensor:
        # The first six modulation vectors are the image's, the others the text's.
        modulated: torch.Tensor = block.norm1(arguments["hidden_states"], emb=arguments["temb"][:, :6])[0]
        return modulated
