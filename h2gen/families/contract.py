"""The contract of a family: everything about one transformer architecture that the rest of h2gen must ask for.

The first half is what the cache needs of a transformer, the second what loading and generating need of its pipelines.
Only the standard library and ``h2gen.errors`` are imported at module level, so that the catalogue can be read without
loading torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import torch
    from torch import nn

    from h2gen.models.defaults import ModelDefaults


class Family(ABC):
    """One transformer architecture and the pipelines that use it. Stateless; there is one instance per family."""

    name: ClassVar[str]
    """Such as ``flux1``."""
    transformer: ClassVar[str]
    """The transformer's class in diffusers, such as ``FluxTransformer2DModel``."""
    pipelines: ClassVar[tuple[str, ...]]
    """The text-to-image pipelines in diffusers that h2gen loads, such as ``FluxPipeline``."""

    # What the cache needs.

    @abstractmethod
    def block_lists(self, transformer: nn.Module) -> tuple[Sequence[nn.Module], Sequence[nn.Module]]:
        """The blocks of the structure stage and of the detail stage."""

    @abstractmethod
    def block_streams(self, stage: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[torch.Tensor, ...]:
        """The token streams that a block of a stage was called with: ``(text, image)`` or one concatenated stream."""

    @abstractmethod
    def block_output(self, stage: str, streams: tuple[torch.Tensor, ...]) -> Any:
        """The streams as a block of a stage returns them."""

    @abstractmethod
    def added_between(self, stage: str, blocks: int, arguments: Mapping[str, Any]) -> Sequence[torch.Tensor]:
        """What the model itself adds to the image stream between a stage's first and last block (ControlNet).

        Args:
            blocks: of the stage.
            arguments: of the transformer's forward pass.
        """

    # What loading and generating need.

    @abstractmethod
    def recognizes(self, tensors: set[str]) -> bool:
        """Whether a single file with these tensor names holds a transformer of this family."""

    @abstractmethod
    def defaults(self, transformer_config: Mapping[str, Any], model_index: Mapping[str, Any]) -> ModelDefaults:
        """The defaults of a local checkpoint that says nothing itself."""

    @abstractmethod
    def encode(self, pipe: Any, prompt: str, max_sequence_length: int) -> dict[str, torch.Tensor]:
        """A prompt as arguments of the pipeline, such as ``prompt_embeds`` of shape ``(1, tokens, width)``."""

    @abstractmethod
    def guidance_arguments(self, pipe: Any, guidance: float, cfg: float) -> dict[str, Any]:
        """How the pipeline spells distilled guidance and true classifier-free guidance.

        Raises:
            SettingError: the model cannot do what is asked of it.
        """
