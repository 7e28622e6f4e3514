"""The interface of all peers: name, range of settings, and a context manager that applies the cache to a pipeline."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

from h2gen.errors import CacheError
from h2gen.families import Family

Value = float | tuple[int, ...]
"""One setting of a peer: a threshold, or one whole number per knob."""


@dataclass(frozen=True)
class Span:
    """Thresholds from ``low``, where a peer reuses almost nothing, to ``high``, where it reuses all it can."""

    low: float
    high: float


@dataclass(frozen=True)
class Peer(ABC):
    """Another cache to compare with.

    ``title`` is its display name, ``knobs`` are the settings that trade fidelity for speed, as its package calls
    them, and ``note`` says what a reader of a comparison should know. ``guard`` is a setting that forbids reuse
    regardless of the knobs, such as a cap on consecutive steps, and ``guard_words`` says what that is; it is set as the
    peer's authors advise, unless ``guarded`` is off. ``choices`` are the values to try of further settings, by field,
    the authors' own first; they change the fidelity, but not the number of blocks. ``calibration`` is the maximum
    number of images that ``calibrated`` makes.
    """

    name: str
    title: str
    note: str = ""
    guarded: bool = True

    package: ClassVar[str] = "diffusers"
    knobs: ClassVar[tuple[str, ...]] = ("threshold",)
    guard: ClassVar[str] = ""
    guard_words: ClassVar[str] = ""
    choices: ClassVar[Mapping[str, Sequence[float]]] = {}
    calibration: ClassVar[int] = 0
    span: ClassVar[Span] = Span(0.001, 5.0)

    @property
    @abstractmethod
    def source(self) -> str:
        """Whose code runs: package, version and class."""

    def values(self, steps: int) -> Span | tuple[Value, ...]:
        """What is searched: a span of thresholds, or values in order of fewer blocks."""
        return self.span

    def settings(self, value: Value) -> dict[str, float | int]:
        """The value as one number per knob."""
        numbers = value if isinstance(value, tuple) else (value,)
        return dict(zip(self.knobs, numbers, strict=True))

    def label(self, value: Value) -> str:
        """The peer with this value, for display."""
        return f"{self.title} {', '.join(f'{number:.4g}' for number in self.settings(value).values())}"

    def share(self, value: Value, steps: int) -> float | None:
        """The share of the blocks that it runs at a value; None if that is not known without running it."""
        return None

    @property
    def beyond(self) -> Peer | None:
        """The same cache without its guard, for shares that the guard makes unreachable; None if it has none."""
        return replace(self, guarded=False) if self.guard and self.guarded else None

    @property
    def calibrates(self) -> bool:
        """Whether ``calibrated`` makes images."""
        return type(self).calibrated is not Peer.calibrated

    def calibrated(self, pipe: Any, runs: Sequence[Callable[[], Any]], *, steps: int) -> Peer:
        """The peer calibrated for this model and number of steps; most need no calibration.

        Args:
            pipe: the pipeline that the peer will be applied to.
            runs: at least one; each makes one image in ``steps`` steps, of a prompt that is not compared.
        """
        return self

    def check_family(self, family: Family) -> None:  # noqa: B027
        """Check that the cache works on a family's models.

        Raises:
            CacheError: it does not.
        """

    @contextmanager
    def applied(self, pipe: Any, value: Value, *, steps: int, passes: int = 1) -> Iterator[None]:
        """Apply the peer's cache to a pipeline within a ``with`` block; afterwards the model is as before.

        Every call of the pipeline starts with an empty cache, also after one that was interrupted.

        Args:
            pipe: a diffusers pipeline of any of the families.
            value: one of ``values``.
            steps: denoising steps of the following calls.
            passes: forward passes per step; 2 with true classifier-free guidance.

        Raises:
            CacheError: the cache does not work on this model, or another cache is on it.
        """
        transformer = pipe.transformer
        if getattr(transformer, "is_cache_enabled", False):
            name = type(transformer.__dict__["_cache_config"]).__name__
            raise CacheError(f"diffusers' own cache ({name}) is on this transformer; call its disable_cache() first.")
        with left_as_found(transformer), self._on(pipe, value, steps, passes):
            yield

    @abstractmethod
    def _on(self, pipe: Any, value: Value, steps: int, passes: int) -> AbstractContextManager[None]: ...


def threshold_of(value: Value) -> float:
    """The value of a peer whose only knob is a threshold."""
    assert not isinstance(value, tuple)
    return value


def version_of(package: str) -> str:
    from importlib.metadata import version

    return f"{package} {version(package)}"


@contextmanager
def left_as_found(transformer: Any) -> Iterator[None]:
    """Undo all changes to the transformer's modules: hook registries, patched forward passes, marker attributes.

    Caches switch themselves off but leave such things behind; cache-dit also reorders a model's lists of blocks, where
    other caches then look for the first block. Modules that accelerate offloads are not touched.
    """
    found = [(module, dict(vars(module)), list(module._modules)) for module in transformer.modules()]
    try:
        yield
    finally:
        for module, before, order in found:
            now, children = vars(module), module._modules
            if "_hf_hook" in now or "_hf_hook" in before:
                continue
            for key in [key for key in now if key not in before]:
                del now[key]
            now.update({key: value for key, value in before.items() if now.get(key) is not value})
            if list(children) != order and children.keys() == set(order):
                for name in order:
                    children[name] = children.pop(name)
        registry = getattr(transformer, "_diffusers_hook", None)
        if registry is not None:  # it remembers which blocks had hooks
            registry.invalidate_child_registries_cache()


@contextmanager
def contexts(pipe: Any, where: Callable[[], dict[str, Any]] = dict) -> Iterator[None]:
    """Run every forward pass in a cache context, without which diffusers' caches raise or do nothing.

    Most pipelines set one, named ``cond`` or ``uncond``; for the others it is ``cond``. Before an image's first pass
    the cache is emptied: pipelines do that at their end, which an interrupted call never reached.

    Args:
        where: what the context should contain besides its name.
    """
    from diffusers.hooks import HookRegistry
    from diffusers.models.cache_utils import CacheMixin

    transformer = pipe.transformer
    # A transformer without diffusers' caches has no contexts; the hooks of other caches need one all the same.
    original = getattr(transformer, "cache_context", None) or partial(CacheMixin.cache_context, transformer)
    stack = ExitStack()
    begun: set[str] = set()
    inside = 0

    @contextmanager
    def cache_context(name: str, **details: Any) -> Iterator[None]:
        nonlocal inside
        if getattr(pipe.scheduler, "step_index", 0) is not None:
            begun.clear()
        else:  # the scheduler's timesteps are new
            if not begun or name in begun:
                HookRegistry.check_if_exists_or_initialize(transformer).reset_stateful_hooks(recurse=True)
                begun.clear()
            begun.add(name)
        inside += 1
        try:
            with original(name, **{**where(), **details}):
                yield
        finally:
            inside -= 1

    def begin(*_: Any) -> None:
        if not inside:
            stack.enter_context(cache_context("cond"))

    def end(*_: Any) -> None:
        stack.close()

    handles = [
        transformer.register_forward_pre_hook(begin),
        transformer.register_forward_hook(end, always_call=True),
    ]
    transformer.cache_context = cache_context
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        del transformer.cache_context
