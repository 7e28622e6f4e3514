"""FLUX.2: double-stream blocks, then single-stream blocks over one concatenated stream of text and image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from h2gen.errors import SettingError
from h2gen.families.contract import Family

if TYPE_CHECKING:
    import torch
    from torch import nn

    from h2gen.models.defaults import ModelDefaults


class Flux2(Family):
    """``Flux2Transformer2DModel``: FLUX.2 [dev] and [klein]."""

    name = "flux2"
    transformer = "Flux2Transformer2DModel"
    pipelines = ("Flux2Pipeline", "Flux2KleinPipeline")

    def block_lists(self, transformer: nn.Module) -> tuple[Sequence[nn.Module], Sequence[nn.Module]]:
        return list(transformer.transformer_blocks), list(transformer.single_transformer_blocks)  # type: ignore[arg-type]

    def block_streams(self, stage: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[torch.Tensor, ...]:
        image = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        text = kwargs["encoder_hidden_states"] if "encoder_hidden_states" in kwargs else args[1]
        return (image,) if text is None else (text, image)

    def block_output(self, stage: str, streams: tuple[torch.Tensor, ...]) -> Any:
        return streams if stage == "structure" else streams[0]

    def added_between(self, stage: str, blocks: int, arguments: Mapping[str, Any]) -> Sequence[torch.Tensor]:
        return ()

    def recognizes(self, tensors: set[str]) -> bool:
        return any("double_stream_modulation_img.lin" in name for name in tensors)

    def defaults(self, transformer_config: Mapping[str, Any], model_index: Mapping[str, Any]) -> ModelDefaults:
        from h2gen.models.defaults import FLUX2_DEV, KLEIN

        return KLEIN if model_index.get("is_distilled") else FLUX2_DEV

    def encode(self, pipe: Any, prompt: str, max_sequence_length: int) -> dict[str, torch.Tensor]:
        embeddings, _ = pipe.encode_prompt(
            prompt=[prompt], device=pipe._execution_device, max_sequence_length=max_sequence_length
        )
        return {"prompt_embeds": embeddings}

    def guidance_arguments(self, pipe: Any, guidance: float, cfg: float) -> dict[str, Any]:
        if type(pipe).__name__ == "Flux2KleinPipeline":  # its guidance_scale is true guidance
            if cfg > 1 and pipe.config.is_distilled:
                raise SettingError(f"cfg is {cfg:g}, but this model is distilled and takes no guidance: use 1.")
            return {"guidance_scale": cfg}
        if cfg > 1:
            raise SettingError(f"cfg is {cfg:g}, but FLUX.2-dev has no true guidance: use --guidance.")
        return {"guidance_scale": guidance}
