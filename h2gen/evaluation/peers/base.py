"""What all peers have in common: names, ranges of settings, and how they are put on a pipeline and taken off again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from h2gen.errors import CacheError

Value = float | tuple[int, ...]
"""One setting of a peer: a threshold, or one whole number a knob."""


@dataclass(frozen=True)
class Span:
    """Thresholds from ``low``, where a peer reuses next to nothing, to ``high``, where it reuses all that it may."""

    low: float
    high: float


@dataclass(frozen=True)
class Peer(ABC):
    """Another cache to compare with.

    ``title`` is its name for people, ``knobs`` are the settings that trade fidelity for speed, as its package calls
    them, and ``note`` says what a reader of a comparison should know. ``guard`` is a setting that forbids reuse
    whatever the knobs say, such as a cap on steps in a row; it stands as the peer's authors advise, unless ``guarded``
    is off.
    """

    name: str
    title: str
    note: str = ""
    guarded: bool = True

    package: ClassVar[str] = "diffusers"
    knobs: ClassVar[tuple[str, ...]] = ("threshold",)
    guard: ClassVar[str] = ""
    span: ClassVar[Span] = Span(0.001, 5.0)

    @property
    @abstractmethod
    def source(self) -> str:
        """Whose code runs: package, version and what of it."""

    def values(self, steps: int) -> Span | tuple[Value, ...]:
        """What is searched: a span of thresholds, or values in order; the later, the fewer blocks run."""
        return self.span

    def settings(self, value: Value) -> dict[str, float | int]:
        """The value by its knobs."""
        numbers = value if isinstance(value, tuple) else (value,)
        return dict(zip(self.knobs, numbers, strict=True))

    def label(self, value: Value) -> str:
        """For people: ``FBCache, threshold 0.12``."""
        words = [self.title, *(f"{knob} {number:g}" for knob, number in self.settings(value).items())]
        return ", ".join(words if self.guarded else [*words, f"no {self.guard}"])

    @property
    def beyond(self) -> Peer | None:
        """The same cache without its guard, for shares that the guard keeps out of reach; None where it has none."""
        return replace(self, guarded=False) if self.guard and self.guarded else None

    def calibrated(self, pipe: Any, run: Callable[[], Any], *, steps: int) -> Peer:
        """The peer made ready for this model and this number of steps; most need nothing.

        Args:
            pipe: the pipeline that the peer will be applied to.
            run: makes one picture with it, in ``steps`` steps.
        """
        return self

    @contextmanager
    def applied(self, pipe: Any, value: Value, *, steps: int, passes: int = 1) -> Iterator[None]:
        """The peer's cache on a pipeline for the length of a ``with`` block; afterwards the model is as before.

        Every call of the pipeline starts afresh, also after one that was broken off.

        Args:
            pipe: a diffusers pipeline of a Flux model.
            value: one of ``values``.
            steps: denoising steps of the calls to come.
            passes: forward passes a step; 2 with true classifier-free guidance.

        Raises:
            CacheError: the cache does not work on this model, or another one is on it.
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
    """Undo whatever is set on the transformer or a module in it: hooks' registries, patched forward passes, marks.

    Caches switch themselves off, but leave such things behind; cache-dit also leaves a model's lists of blocks in
    another order, in which other caches then look for the first block. Modules that accelerate offloads are left to it.
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
    """Have every forward pass run in a cache context, without which diffusers' caches raise or do nothing.

    Most pipelines set one, named ``cond`` or ``uncond``; for the others it is ``cond``. Before a picture's first pass
    all that is kept is dropped: pipelines do so at their end, but a call that was broken off never came there.

    Args:
        where: what the context should say beyond its name.
    """
    transformer = pipe.transformer
    original = transformer.cache_context
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
                transformer._reset_stateful_cache()
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
