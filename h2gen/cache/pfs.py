"""Pooled feature summarization (PFS): how much a residual has changed, in a few kernels. Source: arXiv 2510.27171."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def pooling_kernel(tokens: int, divisor: int) -> int:
    """The pooling size ``k = tokens // divisor``, at least 1.

    Below ``divisor`` tokens the published code's k is 0, which crashes; 1 means no pooling.
    """
    return max(1, tokens // divisor)


def summarize(residual: torch.Tensor, kernel: int) -> torch.Tensor:
    """Average-pool a residual over windows of ``kernel`` tokens by ``kernel`` channels.

    Args:
        residual: ``(B, N, D)``.
        kernel: window and stride; at most N and D are used.

    Returns:
        ``(B, N // kernel, D // kernel)``, in the residual's dtype; the residual itself if the kernel is 1.
    """
    size = min(kernel, residual.shape[1], residual.shape[2])
    if size <= 1:
        return residual
    return F.avg_pool2d(residual.unsqueeze(1), size).squeeze(1)


def relative_change(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """``mean|old - new| / mean|old|`` of two summaries of one shape, in float32, as a tensor without dimensions.

    NaN or Inf if ``old`` is all zero or either holds a value that is not finite; the decision takes these as a miss.
    """
    # Not vector_norm, which would save a kernel: on the CPU it adds up in sequence, and at 12 M values is 0.3 % off.
    moved = (old - new).abs_().mean(dtype=torch.float32)
    return moved / old.abs().mean(dtype=torch.float32)


def relative_changes(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """``relative_change`` of each picture of a batch, ``(B,)``, from only its own row."""
    moved = (old - new).abs_().mean(dim=(1, 2), dtype=torch.float32)
    return moved / old.abs().mean(dim=(1, 2), dtype=torch.float32)
