"""A picture's own tokens and their rows and columns, which are read from the position ids of diffusers' pipelines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def grid_of(image_ids: torch.Tensor | None, image_tokens: int) -> tuple[int, int] | None:
    """The rows and columns of the picture that is being made; None if its ids do not describe a grid.

    Args:
        image_ids: ``(N, axes)`` or ``(B, N, axes)``: the picture that a token belongs to, its row, its column. Tokens
            of reference pictures come after those of the picture itself. Reading the ids waits for the device.
        image_tokens: N.
    """
    if image_ids is None:
        return None
    ids = image_ids.detach().float().cpu().numpy()
    ids = ids[0] if ids.ndim == 3 else ids
    if ids.shape[0] != image_tokens or ids.shape[1] < 3:
        return None
    own = int((ids[:, 0] == ids[0, 0]).sum())
    # Columns are counted up to where the second row begins: bfloat16 holds whole numbers exactly only up to 256, so
    # that neighbours above that share an id.
    row, column = ids[:own, 1], ids[:own, 2]
    columns = int((row != row[0]).argmax()) or own
    if own % columns:
        return None
    row, column = row.reshape(-1, columns), column.reshape(-1, columns)
    if (row != row[:, :1]).any() or (column != column[:1]).any() or (columns > 1 and column[0, 0] == column[0, 1]):
        return None
    return own // columns, columns


def own_tokens(image_ids: torch.Tensor | None, image_tokens: int, device: torch.device) -> torch.Tensor:
    """Which image tokens belong to the picture that is being made: ``(N,)``, 1 if so, 0 for reference pictures.

    All of them if the ids do not tell. Nothing is read from the device.

    Args:
        image_ids, image_tokens: as in ``grid_of``.
        device: of the result.
    """
    import torch

    ids = image_ids[0] if image_ids is not None and image_ids.ndim == 3 else image_ids
    if ids is None or ids.shape[0] != image_tokens:
        return torch.ones(image_tokens, device=device)
    return is_own(ids[:, 0]).to(device, torch.float32)


def is_own(numbers: torch.Tensor) -> torch.Tensor:
    """Whether the picture of this number is the one that is being made: ``(N,)``, from the ids' first column."""
    # The pictures of a grid that is made as a whole (VisualCloze) are counted from 1, reference pictures after a 0.
    return (numbers == numbers[0]) | (numbers[0] != 0)


def unpacked(tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Tokens of 2 x 2 latents each, ``(B, rows * columns, 4 * C)``, as ``(B, C, 2 * rows, 2 * columns)``."""
    rows, columns = grid
    parts = tokens.reshape(len(tokens), rows, columns, -1, 2, 2)
    return parts.permute(0, 3, 1, 4, 2, 5).reshape(len(tokens), -1, 2 * rows, 2 * columns)


def with_statistics(tokens: torch.Tensor, autoencoder: Any) -> torch.Tensor:
    """Tokens of FLUX.2's autoencoder, which pipelines normalise by its statistics, without that."""
    norm = autoencoder.bn
    mean, variance = (each.to(tokens) for each in (norm.running_mean, norm.running_var))
    raw: torch.Tensor = tokens * (variance + autoencoder.config.batch_norm_eps).sqrt() + mean
    return raw
