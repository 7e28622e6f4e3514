"""FLUX.2: double-stream blocks, then single-stream blocks over one concatenated stream of text and image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from h2gen.families.contract import Family, PictureInputs
from h2gen.families.defaults import ModelDefaults
from h2gen.families.prompt_end import PromptEnd, end_of
from h2gen.families.tasks import Limits
from h2gen.families.token_grid import unpacked, with_statistics
from h2gen.families.unused import NO_GUIDANCE, NO_NEGATIVE, NO_TRUE_GUIDANCE, NOT_DISTILLED, Unused

if TYPE_CHECKING:
    import torch

FLUX2_DEV = ModelDefaults(guidance=4.0)
KLEIN = ModelDefaults(steps=4, guidance=1.0)
KLEIN_BASE = ModelDefaults(guidance=1.0, cfg=4.0)


class Flux2(Family):
    """``Flux2Transformer2DModel``: FLUX.2 [dev] and [klein]."""

    title = "FLUX.2"
    transformer = "Flux2Transformer2DModel"
    tasks: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "Flux2Pipeline": {"text": "Flux2Pipeline", "edit": "Flux2Pipeline"},
        "Flux2KleinPipeline": {
            "text": "Flux2KleinPipeline",
            "edit": "Flux2KleinPipeline",
            "inpaint": "Flux2KleinInpaintPipeline",
        },
    }
    limits: ClassVar[Mapping[str, Limits]] = {
        "Flux2Pipeline": Limits(10),
        "Flux2KleinPipeline": Limits(10),
        "Flux2KleinInpaintPipeline": Limits(2, 1024 * 1024),  # it shrinks a larger picture, and makes one of that size
    }
    held_per_token = 21.9
    splits_tokens = True
    marks = ("double_stream_modulation_img.lin",)
    diffusers_caches = frozenset({"MagCacheConfig", "TaylorSeerCacheConfig"})
    per_picture = frozenset({"hidden_states", "encoder_hidden_states", "temb_mod_img", "temb_mod_txt", "temb_mod"})
    unsplittable = ("kv_cache_mode",)

    def added_between(self, stage: str, blocks: int, arguments: Mapping[str, Any]) -> Sequence[torch.Tensor]:
        return ()

    def defaults(self, transformer_config: Mapping[str, Any], model_index: Mapping[str, Any]) -> ModelDefaults:
        if model_index.get("_class_name") != "Flux2KleinPipeline":
            return FLUX2_DEV
        return KLEIN if model_index.get("is_distilled") else KLEIN_BASE

    def unused(
        self, pipeline: str, transformer_config: Mapping[str, Any], model_index: Mapping[str, Any]
    ) -> Mapping[str, Unused]:
        if not pipeline.startswith("Flux2Klein"):
            return {"cfg": NO_TRUE_GUIDANCE, "negative": NO_NEGATIVE}
        if not model_index.get("is_distilled"):
            return {"guidance": NOT_DISTILLED}
        return {"guidance": NO_GUIDANCE, "cfg": NO_GUIDANCE._replace(refused=True), "negative": NO_NEGATIVE}

    def encode(self, pipe: Any, prompt: str, max_sequence_length: int) -> dict[str, torch.Tensor]:
        embeddings, _ = pipe.encode_prompt(
            prompt=[prompt], device=pipe._execution_device, max_sequence_length=max_sequence_length
        )
        return {"prompt_embeds": embeddings}

    def unread(self, pipe: Any, prompt: str, max_sequence_length: int) -> PromptEnd:
        """The limit counts the chat template around the prompt, too."""
        if _is_klein(pipe):
            chat: list[dict[str, Any]] = [{"role": "user", "content": prompt}]
            options = {"add_generation_prompt": True, "enable_thinking": False}
        else:
            prompt = prompt.replace("[IMG]", "")  # as the pipeline does
            said = {"system": pipe.system_message, "user": prompt}
            chat = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in said.items()]
            options = {"add_generation_prompt": False}
        wrapped = pipe.tokenizer.apply_chat_template(chat, tokenize=False, **options)
        return end_of(pipe.tokenizer, prompt, max_sequence_length, wrapped)

    def guidance_arguments(self, pipe: Any, guidance: float, cfg: float) -> dict[str, Any]:
        # The guidance_scale of [klein] is true guidance.
        return {"guidance_scale": cfg if _is_klein(pipe) else guidance}

    def picture_arguments(self, pipe: Any, task: str, given: PictureInputs) -> dict[str, Any]:
        # Its autoencoder draws nothing: the same pictures serve the whole batch.
        arguments = super().picture_arguments(pipe, task, given._replace(together=1))
        if task == "edit":
            arguments["image"] = [*given.pictures]
        elif task == "inpaint":
            arguments["image"] = given.pictures[0]
            if len(given.pictures) > 1:
                arguments["image_reference"] = given.pictures[1]
        return arguments

    def decoder_latents(
        self, tokens: torch.Tensor, grid: tuple[int, int], autoencoder: Any, decoder: Any
    ) -> torch.Tensor:
        return unpacked(with_statistics(tokens, autoencoder), grid)

    def example_inputs(self, transformer: Any, image_tokens: int, text_tokens: int) -> dict[str, Any]:
        inputs = super().example_inputs(transformer, image_tokens, text_tokens)
        if transformer.config.guidance_embeds:
            inputs["guidance"] = inputs["img_ids"].new_full((1,), 3.5)
        return inputs

    def modulated_input(self, block: Any, arguments: Mapping[str, Any]) -> torch.Tensor:
        modulation = arguments["temb_mod_img"]  # shift, scale and gate, first of the attention
        shift, scale = (modulation if modulation.ndim == 3 else modulation.unsqueeze(1)).chunk(6, dim=-1)[:2]
        modulated: torch.Tensor = (1 + scale) * block.norm1(arguments["hidden_states"]) + shift
        return modulated


def _is_klein(pipe: Any) -> bool:
    return type(pipe).__name__.startswith("Flux2Klein")
