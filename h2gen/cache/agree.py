"""Agreement between processes that make one picture together, each with a part of the tokens (context parallel).

diffusers' ``enable_parallelism`` splits the arguments inside the transformer's forward pass, and gathers its output.
The cache's hooks are outside: they see whole arguments and outputs, the same in every process. The blocks in between
have a part of the tokens, so a sum over tokens is added up over the processes, and all of them decide alike. A single
process adds up nothing: it has no ``Ranks``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn


class Ranks(NamedTuple):
    """The processes that share the tokens of a forward pass.

    Args:
        group: of ``torch.distributed``.
        rank: of this process, from 0.
        size: the number of processes.
    """

    group: Any
    rank: int
    size: int

    def part(self, tokens: int, rank: int | None = None) -> tuple[int, int]:
        """The first token that a process has, this one unless told otherwise, and the one after its last.

        Args:
            tokens: in all. The first processes have one more if they cannot be shared out evenly.
        """
        rank = self.rank if rank is None else rank
        each, more = divmod(tokens, self.size)
        return rank * each + min(rank, more), (rank + 1) * each + min(rank + 1, more)

    def own_part(self, whole: torch.Tensor) -> torch.Tensor:
        """What this process has of ``(N,)``, one value per token."""
        return whole[slice(*self.part(len(whole)))]

    def add_up(self, sums: torch.Tensor) -> torch.Tensor:
        """The sum of all processes' tensors, bit for bit the same for each. Overwrites ``sums``; queued on a GPU."""
        import torch.distributed as dist

        dist.all_reduce(sums, group=self.group)
        return sums

    def added_up(self, sums: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """The same for several tensors of one shape at once."""
        return self.add_up(torch.stack([*sums])).unbind()

    def of_first(self, values: torch.Tensor) -> torch.Tensor:
        """The first process's values. All have nearly the same, but other devices may round differently."""
        import torch.distributed as dist

        dist.broadcast(values, group=self.group, group_src=0)
        return values


def ranks_of(transformer: nn.Module) -> Ranks | None:
    """The processes that share a transformer's tokens; None if it runs in this one alone."""
    config = getattr(getattr(transformer, "_parallel_config", None), "context_parallel_config", None)
    mesh = getattr(config, "_flattened_mesh", None)
    if mesh is None:
        return None
    import torch.distributed as dist

    group = mesh.get_group()
    return Ranks(group, dist.get_rank(group), mesh.size())
