"""``--compile``: the transformer's blocks, compiled by torch, once for all blocks of a kind.

What is compiled is a block's own ``forward``. Hooks around it, such as offloading's, the cache's and those of other
caches, stay outside, so a block's graph is the same with and without them, whether it runs or is skipped.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import sysconfig
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from h2gen.errors import DeviceError, RunError
from h2gen.models.translate_errors import brief

BACKEND = "inductor"
MOST_GRAPHS = 64
"""Of one kind of block: sizes, LoRAs and batches that differ too much for one graph; torch's own limit is 8."""


def check_compile(device: torch.device) -> None:
    """Check that blocks can be compiled, before anything is loaded.

    Raises:
        DeviceError: there is no compiler for the device.
    """
    if device.type == "cpu":
        with _imports_quietly():
            from torch._inductor.cpp_builder import get_cpp_compiler
            from torch._inductor.exc import InvalidCxxCompiler
        try:
            get_cpp_compiler()
        except InvalidCxxCompiler:
            raise _lacks("a C++ compiler", "apt install g++") from None
    elif device.type in ("cuda", "xpu"):
        if importlib.util.find_spec("triton") is None:
            raise _lacks("the package triton", "pip install triton")
        if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
            raise _lacks("a C compiler", "apt install gcc")
    if device.type != "mps" and not Path(sysconfig.get_path("include"), "Python.h").is_file():
        raise _lacks("Python's headers", "apt install python3-dev")


def _lacks(what: str, command: str) -> DeviceError:
    return DeviceError(f"--compile needs {what}; install it ({command}, for example), or leave out --compile.")


def compile_blocks(transformer: nn.Module, backend: str | None = None) -> None:
    """Compile a transformer's repeated blocks, when they first run. Call it before offloading puts hooks on them.

    The kinds of blocks are those that diffusers' ``compile_repeated_blocks`` compiles. It compiles them with their
    hooks, which would need a graph per block with offloading.
    """
    kinds = getattr(transformer, "_repeated_blocks", None) or ()
    for block in transformer.modules():
        if type(block).__name__ in kinds:
            block.__dict__["forward"] = CompiledForward(block, backend or BACKEND)


def run_eagerly(transformer: nn.Module) -> None:
    """Undo ``compile_blocks``."""
    for block in transformer.modules():
        if isinstance(vars(block).get("forward"), CompiledForward):
            del block.__dict__["forward"]


class CompiledForward:
    """A block's ``forward``, compiled. A copy of the block has one of its own."""

    def __init__(self, block: nn.Module, backend: str) -> None:
        kind: Any = type(block)
        self._block, self._backend, self._compiled = weakref.ref(block), backend, _compiled(kind, backend)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
        if tensors and (pictures := len(tensors[0])) > 1:
            # The cache runs a block for some pictures of a batch, so their number is not part of the graph.
            for tensor in tensors:
                if len(tensor) == pictures:
                    torch._dynamo.maybe_mark_dynamic(tensor, 0)
        else:
            args = tuple(map(_of_its_own, args))
            kwargs = {name: _of_its_own(value) for name, value in kwargs.items()}
        return self._compiled(self._block(), *args, **kwargs)

    def __reduce__(self) -> Any:
        return CompiledForward, (self._block(), self._backend)


def _of_its_own(value: Any) -> Any:
    """One picture of a batch in storage of its own: where in its storage an input begins is part of a graph."""
    base = value._base if isinstance(value, torch.Tensor) else None
    return value if base is None or base.ndim == 0 or len(base) == 1 or len(value) == len(base) else value.clone()


def scales_as_tensors(transformer: nn.Module) -> None:
    """Make the LoRAs' scales inputs of compiled graphs; as numbers they would be built into a graph."""
    for layer in transformer.modules():
        scaling = getattr(layer, "scaling", None)
        if isinstance(scaling, dict):
            scaling.update({name: torch.tensor(float(scale)) for name, scale in scaling.items()})


@functools.cache
def _compiled(kind: Any, backend: str) -> Any:
    """One function for all blocks of a kind: their weights are inputs of its graph."""
    with _imports_quietly():
        return torch.compile(kind.forward, backend=backend)


@contextmanager
def _imports_quietly() -> Iterator[None]:
    """Without the warnings about torch's own imports of what it has deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


@contextmanager
def compiled_run() -> Iterator[None]:
    """Around running compiled blocks.

    Raises:
        RunError: compiling them failed.
    """
    from torch._dynamo.exc import TorchDynamoException

    try:
        with torch._dynamo.config.patch(recompile_limit=MOST_GRAPHS):
            yield
    except TorchDynamoException as error:
        raise RunError(f"Compiling the blocks failed ({brief(error)}); leave out --compile.") from error
