"""Redux: pictures that are read like a prompt, as text tokens behind those of the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from h2gen.families import family_of
from h2gen.settings.inputs import InputFile
from h2gen.settings.values import Settings

MOST_KEPT = 8
"""Pictures whose tokens are kept; each has 6 MB in 16 bits."""


class ReduxTokens:
    """Reads pictures with Redux's own model, which stays in main memory between them."""

    def __init__(self) -> None:
        self._prior: tuple[str, Any] | None = None
        self._kept: dict[tuple[str, str], torch.Tensor] = {}

    def added(self, pipe: Any, settings: Settings, text: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The encoded prompts of a batch with the tokens of its pictures, each times its weight, added up.

        Args:
            pipe: the loaded pipeline.
            settings: of the batch.
            text: what the family's ``encode`` returned.

        Raises:
            ModelError: Redux's model cannot be loaded.
            SettingError: a picture cannot be opened any more.
        """
        model = settings.redux_model[0]
        weighted = [
            self._tokens(pipe, model, picture) * (1.0 if picture.scale is None else picture.scale)
            for picture in settings.redux
        ]
        return family_of(pipe.transformer).with_redux(text, torch.stack(weighted).sum(dim=0))

    @torch.no_grad()
    def _tokens(self, pipe: Any, model: InputFile, picture: InputFile) -> torch.Tensor:
        """Of one picture, ``(1, tokens, width)``."""
        from h2gen.settings.pictures import open_picture

        key, device = (model.sha256, picture.sha256), pipe._execution_device
        if key not in self._kept:
            prior = self._loaded(model, pipe.transformer.dtype)
            parts = prior.image_encoder, prior.image_embedder
            for part in parts:
                part.to(device)
            tokens = prior.image_embedder(prior.encode_image(open_picture(picture).image, device, 1)).image_embeds
            for part in parts:
                part.to("cpu")
            while len(self._kept) >= MOST_KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = tokens.to("cpu")
        return self._kept[key].to(device)

    def _loaded(self, model: InputFile, dtype: torch.dtype) -> Any:
        from h2gen.models.redux import load_redux

        if self._prior is None or self._prior[0] != model.sha256:
            self._prior = None
            self._prior = model.sha256, load_redux(Path(str(model.path)), dtype)
        return self._prior[1]
