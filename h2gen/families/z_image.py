"""Z-Image: refiners of the image and of the text, then one list of blocks over both; true guidance in one pass.

The transformer takes lists: latents and text of each picture, which it makes tokens of itself. Image tokens come first,
and both kinds are filled up to a multiple of 32. The text's refiners know no timestep, so their result stays the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from h2gen.errors import CacheError
from h2gen.families.contract import PassInputs
from h2gen.families.defaults import ModelDefaults
from h2gen.families.one_list import OneListFamily
from h2gen.families.prompt_end import PromptEnd, end_of
from h2gen.families.unused import NO_GUIDANCE, NOT_DISTILLED, Unused

if TYPE_CHECKING:
    import torch
    from torch import nn

Z_IMAGE = ModelDefaults(guidance=0.0, cfg=4.0)
TURBO = ModelDefaults(steps=8, guidance=0.0)
"""Sources: the models' own pages. A ``guidance_scale`` of 4 at 50 steps; 8 steps without guidance."""
_TURBO_SHIFT = 3.0
"""Of the schedule of Z-Image-Turbo; Z-Image's is 6."""
_PADDED_TO = 32
_WITHOUT_GUIDANCE = 0.0


class ZImage(OneListFamily):
    """``ZImageTransformer2DModel``: Z-Image and Z-Image-Turbo."""

    title = "Z-Image"
    transformer = "ZImageTransformer2DModel"
    tasks: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "ZImagePipeline": {
            "text": "ZImagePipeline",
            "image": "ZImageImg2ImgPipeline",
            "inpaint": "ZImageInpaintPipeline",
        },
    }
    held_per_token = 15.9
    blocks = "layers"
    count = "n_layers"
    pads_text = False
    guides_in_one_pass = True
    text_last = True
    marks = ("cap_embedder.1.",)
    per_picture = frozenset({"x", "attn_mask", "freqs_cis", "adaln_input"})
    unsplittable = ("controlnet_block_samples",)

    def own_blocks(self, transformer: nn.Module) -> Mapping[str, Sequence[nn.Module]]:
        image: Any = transformer.noise_refiner
        text: Any = transformer.context_refiner
        return {"image": list(image), "text": list(text)}

    def constants(self, arguments: Mapping[str, Any]) -> Mapping[str, tuple[Any, ...]]:
        scale = (arguments.get("joint_attention_kwargs") or {}).get("scale")
        return {"text": (*arguments["cap_feats"], scale)}

    def pass_inputs(self, arguments: Mapping[str, Any]) -> PassInputs:
        latents, texts = arguments["x"], arguments["cap_feats"]
        if isinstance(latents[0], list):
            raise CacheError("H2-Cache does not support reference pictures of Z-Image; switch the cache off.")
        patch = arguments.get("patch_size", 2)
        rows, columns = (side // patch for side in latents[0].shape[-2:])
        tokens = _padded(rows * columns), _padded(max(map(len, texts)))
        # A view, which copies nothing; there are no position ids, and all steps get the same text.
        all_latents = latents[0].expand(len(latents), *latents[0].shape)
        return PassInputs(
            all_latents,
            texts[0],
            1 - arguments["t"],
            None,
            texts[0],
            grid=(rows, columns),
            tokens=tokens,
            shared=latents[0],
        )

    def passes_at_once(self, arguments: Mapping[str, Any], callers: Callable[[], Iterable[Any]]) -> int:
        pipe = next((each for each in callers() if hasattr(each, "do_classifier_free_guidance")), None)
        if pipe is None or not pipe.do_classifier_free_guidance:
            return 1
        last = getattr(pipe, "_cfg_truncation", None)  # the time from which the pipeline leaves guidance out
        return 1 if last is not None and last < 1 and float(arguments["t"].flatten()[0]) > last else 2

    def can_split(self, arguments: Mapping[str, Any]) -> bool:
        return all(arguments.get(name) is None for name in self.unsplittable)

    def block_streams(self, stage: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[torch.Tensor, ...]:
        return (kwargs["x"] if "x" in kwargs else args[0],)

    def added_between(self, stage: str, blocks: int, arguments: Mapping[str, Any]) -> Sequence[torch.Tensor]:
        if arguments.get("controlnet_block_samples") is not None:
            raise CacheError("H2-Cache does not support ControlNets of Z-Image; switch the cache off.")
        return ()

    def velocity(self, output: Any) -> torch.Tensor:
        import torch

        return torch.stack(output[0])

    def with_velocity(self, output: Any, velocity: torch.Tensor) -> Any:
        return super().with_velocity(output, list(velocity.unbind()))  # type: ignore[arg-type]

    def file_traits(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
        layers = {name.partition("layers.")[2].split(".")[0] for name in shapes if "layers." in name}
        return _traits(len(layers), *(shape[-1] for name, shape in shapes.items() if "cap_embedder.1.weight" in name))

    def config_traits(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        return _traits(config.get("n_layers"), config.get("cap_feat_dim"))

    def completed(self, model_index: Mapping[str, Any], scheduler_config: Mapping[str, Any]) -> Mapping[str, Any]:
        """Both models have the same ``model_index.json`` and transformer; the shift of their schedule differs."""
        turbo = scheduler_config.get("shift") == _TURBO_SHIFT and not scheduler_config.get("use_dynamic_shifting")
        return {"is_distilled": turbo, **model_index}

    def defaults(self, transformer_config: Mapping[str, Any], model_index: Mapping[str, Any]) -> ModelDefaults:
        return TURBO if model_index.get("is_distilled") else Z_IMAGE

    def unused(
        self, pipeline: str, transformer_config: Mapping[str, Any], model_index: Mapping[str, Any]
    ) -> Mapping[str, Unused]:
        return {"guidance": NO_GUIDANCE if model_index.get("is_distilled") else NOT_DISTILLED}

    def encode(self, pipe: Any, prompt: str, max_sequence_length: int) -> dict[str, torch.Tensor]:
        (embeddings,), _ = pipe.encode_prompt(
            prompt=[prompt],
            device=pipe._execution_device,
            do_classifier_free_guidance=False,
            max_sequence_length=max_sequence_length,
        )
        return {"prompt_embeds": embeddings[None]}

    def text_arguments(self, encoded: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        return {name: list(tensor.unbind()) for name, tensor in encoded.items()}

    def unread(self, pipe: Any, prompt: str, max_sequence_length: int) -> PromptEnd:
        """The limit counts the chat template around the prompt, too."""
        chat = [{"role": "user", "content": prompt}]
        options = {"add_generation_prompt": True, "enable_thinking": True}
        wrapped = pipe.tokenizer.apply_chat_template(chat, tokenize=False, **options)
        return end_of(pipe.tokenizer, prompt, max_sequence_length, wrapped)

    def guidance_arguments(self, pipe: Any, guidance: float, cfg: float) -> dict[str, Any]:
        """The scale is the pipeline's own, to which the usual formula for true guidance would add 1."""
        return {"guidance_scale": cfg if cfg > 1 else _WITHOUT_GUIDANCE}

    def decoder_latents(
        self, tokens: torch.Tensor, grid: tuple[int, int], autoencoder: Any, decoder: Any
    ) -> torch.Tensor:
        config = decoder.config  # what the pipeline denoises is not packed into tokens
        latents: torch.Tensor = tokens / config.scaling_factor + (config.shift_factor or 0.0)
        return latents

    def example_inputs(self, transformer: Any, image_tokens: int, text_tokens: int) -> dict[str, Any]:
        import torch

        config, weight = transformer.config, transformer.layers[0].feed_forward.w1.weight
        generator = torch.Generator("cpu").manual_seed(0)
        side = max(1, int(image_tokens**0.5))
        shapes = (config.in_channels, 1, 2 * side, 2 * (image_tokens // side)), (text_tokens, config.cap_feat_dim)
        latents, text = (torch.randn(shape, generator=generator).to(weight) for shape in shapes)
        return {"x": [latents], "cap_feats": [text], "return_dict": False}

    def at(self, inputs: Mapping[str, Any], timestep: torch.Tensor) -> dict[str, Any]:
        return {**inputs, "x": [each.detach() for each in inputs["x"]], "t": 1 - timestep}

    def head(self, transformer: Any) -> tuple[nn.Module, nn.Module | None]:
        return next(iter(transformer.all_final_layer.values())), None

    def guidance_weight(self, cfg: float) -> float:
        return 1 + cfg

    def modulated_input(self, block: Any, arguments: Mapping[str, Any]) -> torch.Tensor:
        scale = 1 + block.adaLN_modulation(arguments["adaln_input"]).unsqueeze(1).chunk(4, dim=2)[0]
        modulated: torch.Tensor = block.attention_norm1(arguments["x"]) * scale
        return modulated


def _padded(tokens: int) -> int:
    return -(-tokens // _PADDED_TO) * _PADDED_TO


def _traits(blocks: int | None, width: int | None = None) -> tuple[str, ...]:
    return f"has {blocks} blocks", f"takes texts of {width} channels"
