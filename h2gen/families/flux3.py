"""FLUX.3: blocks of their own for text, image and reference pictures, then joint blocks; modular pipelines only.

The text and the reference pictures sit at time 0 at every step, so their own blocks return the same each time. Text
meets the image in the joint blocks alone. Their first third is the structure stage, the rest the detail stage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from h2gen.families.contract import PassInputs, PictureInputs
from h2gen.families.defaults import ModelDefaults
from h2gen.families.one_list import OneListFamily
from h2gen.families.prompt_end import PromptEnd, end_of
from h2gen.families.single_file import block_counts
from h2gen.families.tasks import Limits
from h2gen.families.token_grid import unpacked, with_statistics
from h2gen.families.unused import NO_GUIDANCE, NO_NEGATIVE, NOT_DISTILLED, Unused

if TYPE_CHECKING:
    import torch
    from torch import nn

KLEIN_BASE = ModelDefaults(steps=50, guidance=0.0, cfg=3.5, max_sequence_length=8192)
KLEIN = ModelDefaults(steps=16, guidance=0.0, max_sequence_length=8192)
_BASE, _DISTILLED = "Flux3ModularPipeline", "Flux3DistilledModularPipeline"


class Flux3(OneListFamily):
    """``Flux3Transformer2DModel``: FLUX.3 [klein], the base model and the one distilled to few steps."""

    title = "FLUX.3"
    transformer = "Flux3Transformer2DModel"
    tasks: ClassVar[Mapping[str, Mapping[str, str]]] = {
        name: {"text": name, "edit": name} for name in (_BASE, _DISTILLED)
    }
    limits: ClassVar[Mapping[str, Limits]] = {_BASE: Limits(10), _DISTILLED: Limits(10)}
    pads_text = False
    held_per_token = 25.0
    blocks = "single_transformer_blocks"
    count = "num_single_layers"
    shifts_by_size = False
    marks = ("early_stream_modulations.",)
    per_picture = frozenset({"hidden_states", "encoder_hidden_states", "temb_mod", "temb_mod_context"})
    unsplittable = ()

    def own_blocks(self, transformer: nn.Module) -> Mapping[str, Sequence[nn.Module]]:
        modes: Any = transformer.mode_blocks
        text: Any = transformer.txt_mode_blocks
        return {"text": list(text), "image": list(modes["image"]), "references": list(modes["image_cond"])}

    def constants(self, arguments: Mapping[str, Any]) -> Mapping[str, tuple[Any, ...]]:
        if arguments.get("target_timestep") is not None:  # it modulates the text and the references too
            return {}
        scale = (arguments.get("attention_kwargs") or {}).get("scale")
        found = {"text": (arguments["encoder_hidden_states"], arguments["txt_ids"], scale)}
        if arguments.get("image_cond_hidden_states") is not None:
            found["references"] = (arguments["image_cond_hidden_states"], arguments["image_cond_ids"], scale)
        return found

    def mean_velocity(self, transformer_config: Mapping[str, Any]) -> bool:
        return bool(transformer_config.get("flow_map"))

    def pass_inputs(self, arguments: Mapping[str, Any]) -> PassInputs:
        return super().pass_inputs(arguments)._replace(references=arguments.get("image_cond_hidden_states"))

    def block_streams(self, stage: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[torch.Tensor, ...]:
        if stage in ("structure", "detail"):
            return super().block_streams(stage, args, kwargs)
        return (kwargs["hidden_states"] if "hidden_states" in kwargs else args[0],)

    def added_between(self, stage: str, blocks: int, arguments: Mapping[str, Any]) -> Sequence[torch.Tensor]:
        return ()

    def file_traits(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
        own, joint = block_counts(shapes)
        distilled = any("target_timestep_embedder." in name or "ref_time_in." in name for name in shapes)
        return _traits(own, joint, distilled)

    def config_traits(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        return _traits(config.get("num_layers"), config.get("num_single_layers"), config.get("flow_map", False))

    def defaults(self, transformer_config: Mapping[str, Any], model_index: Mapping[str, Any]) -> ModelDefaults:
        return KLEIN if self.mean_velocity(transformer_config) else KLEIN_BASE

    def unused(
        self, pipeline: str, transformer_config: Mapping[str, Any], model_index: Mapping[str, Any]
    ) -> Mapping[str, Unused]:
        if not self.mean_velocity(transformer_config):
            return {"guidance": NOT_DISTILLED}
        return {
            "guidance": NO_GUIDANCE,
            "cfg": NO_GUIDANCE._replace(refused=True),
            "negative": NO_NEGATIVE,
            "solver": Unused("is distilled for its own solver; leave it out", refused=True),
            "shift": Unused("is distilled for its own schedule; leave it out", refused=True),
        }

    def pipeline(self, transformer_config: Mapping[str, Any]) -> str:
        """The modular pipeline in diffusers that runs a transformer."""
        return _DISTILLED if self.mean_velocity(transformer_config) else _BASE

    def encode(self, pipe: Any, prompt: str, max_sequence_length: int) -> dict[str, torch.Tensor]:
        return {"prompt_embeds": pipe.encode_prompt(prompt, max_sequence_length)}

    def unread(self, pipe: Any, prompt: str, max_sequence_length: int) -> PromptEnd:
        """The limit counts the chat template around the prompt, too."""
        chat = [{"role": "user", "content": prompt}]
        wrapped = pipe.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        return end_of(pipe.tokenizer, prompt, max_sequence_length, wrapped)

    def guidance_arguments(self, pipe: Any, guidance: float, cfg: float) -> dict[str, Any]:
        return {"guidance_scale": max(cfg, 1.0)}  # below 1, guidance is off

    def picture_arguments(self, pipe: Any, task: str, given: PictureInputs) -> dict[str, Any]:
        arguments = super().picture_arguments(pipe, task, given)
        if given.pictures:
            arguments["image"] = [*given.pictures]  # the same for the whole batch
        return arguments

    def decoder_latents(
        self, tokens: torch.Tensor, grid: tuple[int, int], autoencoder: Any, decoder: Any
    ) -> torch.Tensor:
        return unpacked(with_statistics(tokens, autoencoder), grid)

    def example_inputs(self, transformer: Any, image_tokens: int, text_tokens: int) -> dict[str, Any]:
        inputs = super().example_inputs(transformer, image_tokens, text_tokens)
        if self.mean_velocity(transformer.config):
            inputs["target_timestep"] = inputs["hidden_states"].new_zeros(1)
        return inputs

    def modulated_input(self, block: Any, arguments: Mapping[str, Any]) -> torch.Tensor:
        shift, scale = arguments["temb_mod"].chunk(3, dim=-1)[:2]
        modulated: torch.Tensor = (1 + scale) * block.norm(arguments["hidden_states"]) + shift
        return modulated


def _traits(own: int | None, joint: int | None, distilled: bool) -> tuple[str, ...]:
    return f"has {own} + {joint} blocks", f"is {'' if distilled else 'not '}distilled"
