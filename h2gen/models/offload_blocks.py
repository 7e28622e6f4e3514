"""Group offloading of a transformer that knows which block runs next, so that no others are fetched.

The weights stay in main memory, pinned where the device has streams. Those of a block are on the device while it runs;
meanwhile those of the next one are copied on a stream of their own. If a cache is on, it says which one is next: blocks
that it skips are not fetched, and a step that is skipped entirely moves nothing. What is outside of the blocks stays on
the device until another part of the pipeline runs.

diffusers' hooks and groups of weights do the moving. Its own prefetching expects all passes to run the same blocks: the
block after a skipped one would never be fetched.
"""

from __future__ import annotations

import os
import warnings
import weakref
from collections.abc import Iterable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from itertools import pairwise
from types import EllipsisType
from typing import Any

import torch
from diffusers.hooks import HookRegistry, apply_group_offloading
from diffusers.hooks.group_offloading import GroupOffloadingHook, ModuleGroup
from torch import nn

from h2gen.cache.attach import next_block_to_run
from h2gen.cache.block_call import outside_graphs
from h2gen.cache.stages import own_stages_of, stages_of

_HOOK = "group_offloading"
"""The name of diffusers' hook."""
_MAIN_MEMORY = torch.device("cpu")


@dataclass
class Moves:
    """What was fetched so far, in blocks.

    Args:
        fetched: all; each time that a block's weights went to the device.
        ahead: of these, while another block ran.
        unneeded: of those ahead, what was dropped without having run.
    """

    fetched: int = 0
    ahead: int = 0
    unneeded: int = 0


class Weights(ModuleGroup):  # type: ignore[misc]
    """The weights of one block, or what is outside of the blocks. diffusers' hook calls it around ``forward``.

    Args:
        owner: of all of them.
        leader: the module around whose ``forward`` it is called.
        tensors: what it moves, without the parameters and buffers of ``modules``.
        modules: that it moves.
    """

    def __init__(
        self, owner: BlockOffload, leader: nn.Module, tensors: Sequence[Any], modules: Sequence[nn.Module] = ()
    ) -> None:
        self._owner = weakref.ref(owner)
        self.here = self.ran = False
        """Whether it is on the device, and has been used there."""
        super().__init__(
            modules=[*modules],
            offload_device=_MAIN_MEMORY,
            onload_device=owner.device,
            offload_leader=leader,
            onload_leader=leader,
            parameters=[each for each in tensors if isinstance(each, nn.Parameter)],
            buffers=[each for each in tensors if not isinstance(each, nn.Parameter)],
            stream=owner.stream,
            record_stream=owner.stream is not None,
        )

    @outside_graphs
    def onload_(self) -> None:
        """Called before ``forward``."""
        if (owner := self._owner()) is not None:
            owner.enter(self)

    @outside_graphs
    def offload_(self) -> None:
        """Called after ``forward``, and when the hook is put on."""
        if (owner := self._owner()) is not None:
            owner.leave(self)

    def fetch(self) -> None:
        """Queue its copies to the device; on the owner's stream if there is one."""
        with _current(self.onload_device):
            super().onload_()
        self.here, self.ran = True, False

    def _onload_from_memory(self) -> None:
        """As diffusers', but the host does not wait for what was queued on the stream before: the copies of two blocks
        follow each other without a gap."""
        if self.stream is None:
            super()._onload_from_memory()
            return
        module = torch.get_device_module(self.onload_device)
        computing = module.current_stream(self.onload_device)
        with module.stream(self.stream):
            self._process_tensors_from_modules(self.cpu_param_dict, default_stream=computing)

    def drop(self) -> None:
        """Let go of what is on the device. With a stream nothing is copied back."""
        super().offload_()
        self.here = False


class BlockOffload:
    """Group offloading of one transformer.

    Args:
        transformer: in main memory, of a family in ``h2gen.families``.
        device: to compute on.
        stream: of the device, to fetch weights on while others compute; None fetches each block when it is needed.
        ahead: fetch each block while the one before it runs, if there is a stream.
    """

    def __init__(self, transformer: nn.Module, device: torch.device, stream: Any = None, *, ahead: bool = True) -> None:
        self.device, self.stream, self.moves, self._ahead = device, stream, Moves(), ahead
        self._transformer = weakref.ref(transformer)
        self._blocks: dict[nn.Module | None, Weights] = {}
        self._outside: Weights | None = None
        self._follows: dict[nn.Module | None, nn.Module] = {}
        """The block that runs after each one, as seen in passes without a cache; after None the first one."""
        self._last: nn.Module | None = None
        """The last block that ran without a cache."""
        self._done: Any = None
        """The device's event at the end of the last block."""
        apply_group_offloading(
            transformer, device, _MAIN_MEMORY, offload_type="block_level", num_blocks_per_group=1, use_stream=False
        )
        self._take_over(transformer)
        transformer.register_forward_pre_hook(self._begin)

    def enter(self, weights: Weights) -> None:
        """A block, or the whole transformer, is about to run: fetch its weights."""
        outside = weights is self._outside
        if not weights.here:
            self._wait_for(self._done)
            weights.fetch()
            self.moves.fetched += not outside
        weights.ran = True
        if self.stream is not None:
            self._now.wait_stream(self.stream)
            if outside:
                self._fetch_after(None, self._done)

    def leave(self, weights: Weights) -> None:
        """A block's kernels are queued, or its hook was just put on: drop its weights, and fetch the next block's.

        Fetching them earlier would leave the device idle while the host waits for the previous block and queues copies.
        """
        if weights is self._outside and weights.here:
            return  # a step that is skipped entirely would fetch it again
        if self.stream is None or not weights.here:
            weights.drop()
            return
        before, self._done = self._done, self._now.record_event()
        weights.drop()
        self._fetch_after(weights.onload_leader, before)

    def _fetch_after(self, block: nn.Module | None, done: Any) -> None:
        """Begin to fetch the weights of the block that follows another one, if it is known which one that is.

        Args:
            block: the other one; None before the first.
            done: the event after which what they replace is not needed any more.
        """
        following = self._blocks.get(self._next(block)) if self._ahead else None
        if following is not None and not following.here:
            self._wait_for(done)
            following.fetch()
            self.moves.fetched += 1
            self.moves.ahead += 1

    def _wait_for(self, done: Any) -> None:
        """Let the host wait until a block has finished: otherwise all queued weights would be in memory at once."""
        if done is not None:
            done.synchronize()

    def release(self, *_: Any) -> None:
        """Drop everything that is on the device: another part of the pipeline runs now."""
        self._last = None
        for weights in self._blocks.values():
            if weights.here:
                self.moves.unneeded += not weights.ran
                weights.drop()
        if self._outside is not None and self._outside.here:
            self._outside.drop()

    @property
    def _now(self) -> Any:
        """The stream that computes."""
        return torch.get_device_module(self.device).current_stream(self.device)

    def _next(self, block: nn.Module | None) -> nn.Module | None:
        """The block that runs after another one, if that is known; otherwise None."""
        transformer = self._transformer()
        assert transformer is not None
        found = next_block_to_run(transformer, block)
        if not isinstance(found, EllipsisType):
            return found
        if block is not None:
            self._follows[self._last] = block
            self._last = block
        return self._follows.get(self._last)

    def _begin(self, transformer: nn.Module, _args: Any) -> None:
        """Before a pass. Loading a LoRA makes diffusers put on groups of its own, which have the new weights."""
        hook = _hook_of(transformer)
        if hook is not None and hook.group is not self._outside:
            self._take_over(transformer)

    def _take_over(self, transformer: nn.Module) -> None:
        """Put our groups into diffusers' hooks."""
        try:
            self._group(transformer)
        except RuntimeError as error:
            if self.stream is None:
                raise
            self.stream = None
            reason = str(error).partition("\n")[0]
            warnings.warn(
                f"The transformer's weights cannot be pinned in main memory ({reason}); group offloading fetches each "
                "block only when it is needed, which is slower.",
                RuntimeWarning,
                stacklevel=2,
            )
            self._group(transformer)

    def _group(self, transformer: nn.Module) -> None:
        stages = (*own_stages_of(transformer), *stages_of(transformer))
        blocks = [block for stage in stages for block in stage.blocks]
        config = _hook_of(transformer).config
        self._outside, self._last, self._done, self._blocks = None, None, None, {}
        for block in blocks:
            group = self._blocks[block] = Weights(self, block, _scales(block.parameters()), [block])
            registry = HookRegistry.check_if_exists_or_initialize(block)
            hook = registry.get_hook(_HOOK)
            if hook is None:
                registry.register_hook(GroupOffloadingHook(group, config=config), _HOOK)
            else:
                hook.group = group
            group.drop()  # now: main memory need not hold all weights twice, pinned and not
        self._outside = Weights(self, transformer, _outside(transformer))
        self._outside.drop()
        _hook_of(transformer).group = self._outside
        *_, structure, detail = stages
        self._follows = {None: blocks[0], structure.blocks[-1]: detail.blocks[0]}
        self._follows |= {before: after for stage in stages for before, after in pairwise(stage.blocks)}


def _scales(weights: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """What belongs to weights and is neither a parameter nor a buffer: the scales of bitsandbytes' 4 bits."""
    states = [state for each in weights if (state := getattr(each, "quant_state", None)) is not None]
    states += [state.state2 for state in states if state.nested]
    return [value for state in states for value in vars(state).values() if isinstance(value, torch.Tensor)]


def _outside(transformer: nn.Module) -> list[torch.Tensor]:
    """The tensors of a transformer that no hook of one of its modules moves."""
    modules = [*transformer.modules()]
    hooked = {each for module in modules[1:] if _hook_of(module) is not None for each in module.modules()}
    rest = [module for module in modules if module not in hooked]
    weights = [each for module in rest for each in module.parameters(recurse=False)]
    return [*weights, *_scales(weights), *(each for module in rest for each in module.buffers(recurse=False))]


def stream_of(device: torch.device) -> Any:
    """A stream to fetch weights on; None if the device has none."""
    module = torch.get_device_module(device)
    if device.type == "cpu" or not hasattr(module, "Stream"):
        return None
    if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys():
        # torch rounds pinned memory up to powers of two, for a Flux to half as much again.
        with suppress(AttributeError, RuntimeError, ValueError):
            torch._C._accelerator_setAllocatorSettings("pinned_max_round_threshold_mb:1")
    return module.Stream(device)


def _current(device: torch.device) -> Any:
    """Make a device the current one: diffusers asks for its stream without naming it."""
    guard = getattr(torch.get_device_module(device), "device", None)
    return nullcontext() if guard is None else guard(device)


def _hook_of(transformer: nn.Module) -> Any:
    registry = vars(transformer).get("_diffusers_hook")
    return None if registry is None else registry.get_hook(_HOOK)
