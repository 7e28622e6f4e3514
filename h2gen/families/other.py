"""Models outside of diffusers: the caller says which blocks they have; the rest is read from their calls."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter, signature
from math import prod
from typing import TYPE_CHECKING, Any, NoReturn

from h2gen.errors import CacheError
from h2gen.families.contract import Family, PassInputs
from h2gen.families.given import named

if TYPE_CHECKING:
    import torch
    from torch import nn

_TEXTS = ("txt", "text", "encoder_hidden_states", "context", "contexts", "cond")
_TIMES = ("timesteps", "timestep", "t", "time", "sigma")


@dataclass(frozen=True, eq=False)
class Stages:
    """The blocks of a model that diffusers does not know, for ``h2_cache(model, stages=...)``.

    The defaults are those of FLUX.1's own code and of Hunyuan3D: blocks of two streams, called with ``img`` and
    ``txt``, which return both in this order; then blocks of one stream, the text before the image. Streams are
    ``(B, N, D)``; a block returns them as it takes them, alone or in a tuple or list. The blocks may also all have one
    stream: give the first ones as the structure. The model returns its velocity alone, first in a tuple or list, or as
    the only value of a dict.

    Args:
        structure, detail: the blocks of each stage, in the order in which the model calls them.
        image: the argument of a block with the image tokens, or with the one stream; by default its first tensor of
            three dimensions.
        text: the argument of a block of two streams with the text tokens.
        image_first: whether such a block returns image and text, rather than text and image.
        text_last: whether the text comes after the image in the one stream of the other blocks, as in HunyuanVideo's
            own code.
        latents: the argument of the model's ``forward`` with the latents, ``(B, N, C)``; by default the first.
        condition: its argument with the text tokens, or a dict that holds them: the same object at every step of a run,
            and another one in the next; by default found by the usual names.
        time: its argument with the time; by default found by the usual names.
        times: what the time is at the beginning of a run, where all is noise, and at its end: ``(1000, 0)`` if it
            counts from 1000 down to 0, ``(0, 1)`` if it counts up.
        grid: rows and columns of the picture's tokens, after the frames of a video's. It is needed where the latents
            are not tokens yet.
        per_picture: the arguments of a block that have one row per picture. Without any, a batch gets one decision.
    """

    structure: Sequence[nn.Module]
    detail: Sequence[nn.Module]
    image: str = ""
    text: str = "txt"
    image_first: bool = True
    text_last: bool = False
    latents: str = ""
    condition: str = ""
    time: str = ""
    times: tuple[float, float] = (1.0, 0.0)
    grid: tuple[int, ...] | None = None
    per_picture: Collection[str] = ()


class OtherModel(Family):
    """A model with such stages. Unlike other families it belongs to one model, and is only good for the cache.

    Args:
        stages: of the model.
        model: the name of its class.

    Raises:
        CacheError: the stages do not hold blocks, or hold one twice.
    """

    title = transformer = "other"
    tasks = {}  # noqa: RUF012
    marks = ()

    def __init__(self, stages: Stages, model: str) -> None:
        from torch import nn

        self._stages, self._model = stages, model
        lists = {"structure": stages.structure, "detail": stages.detail}
        for name, blocks in lists.items():
            if not isinstance(blocks, (Sequence, nn.ModuleList)):
                raise CacheError(f"Stages({name}=...) is a {type(blocks).__name__}; give a list of the model's blocks.")
            wrong = next((block for block in blocks if not isinstance(block, nn.Module)), None)
            if wrong is not None:
                raise CacheError(f"Stages({name}=...) holds a {type(wrong).__name__}, which is not a torch module.")
        both = [*stages.structure, *stages.detail]
        if len({*map(id, both)}) < len(both):
            raise CacheError("Stages(...) holds a block twice; each runs once per step, in one of the stages.")
        self._names = {name: _arguments_of(blocks) for name, blocks in lists.items()}
        self._containers: dict[str, type | None] = {}  # what the blocks of a stage return their streams in
        for name, given in (("image", stages.image), *(("per_picture", each) for each in stages.per_picture)):
            self._check_name(name, given)
        times = stages.times
        if not isinstance(times, Sequence) or len(times) != 2:
            raise CacheError(f"Stages(times={times}) must be two numbers: the time of noise, and that of the picture.")
        if times[0] == times[1]:
            raise CacheError(f"Stages(times={times}) gives noise and picture the same time; give each its own.")

    def _check_name(self, field: str, name: str) -> None:
        """Check that a block takes an argument of this name; one that takes any arguments may."""
        known = {each for names in self._names.values() for each in names}
        if name and name not in known and "kwargs" not in known:
            raise CacheError(
                f"Stages({field}=...) names {name!r}, which no block of {self._model} takes; they take "
                f"{', '.join(sorted(known))}."
            )

    def check_belongs(self, model: nn.Module) -> None:
        """Check that the blocks are a model's own.

        Raises:
            CacheError: one is not, so that calling the model would never run it.
        """
        own = {id(module) for module in model.modules()}
        for name, blocks in (("structure", self._stages.structure), ("detail", self._stages.detail)):
            for block in blocks:
                if id(block) not in own and id(getattr(block, "_orig_mod", block)) not in own:
                    raise CacheError(
                        f"Stages({name}=...) holds a {type(block).__name__} that is not part of this {self._model}; "
                        "give the blocks of the model that gets the cache."
                    )

    @property
    def per_picture(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset(self._stages.per_picture)

    @property
    def text_last(self) -> bool:  # type: ignore[override]
        return self._stages.text_last

    def sigma(self, time: Any) -> Any:
        """A time of the model, a number or a tensor, as 1 at the beginning of a run and 0 at its end."""
        begin, end = self._stages.times
        return time if (begin, end) == (1, 0) else (time - end) / (begin - end)

    def block_lists(self, transformer: nn.Module) -> tuple[Sequence[nn.Module], Sequence[nn.Module]]:
        return list(self._stages.structure), list(self._stages.detail)

    def pass_inputs(self, arguments: Mapping[str, Any]) -> PassInputs:
        import torch

        stages = self._stages
        latents = arguments.get(stages.latents) if stages.latents else next(iter(arguments.values()), None)
        if not isinstance(latents, torch.Tensor):
            self._missing("latents", arguments)
        if latents.ndim != 3 and stages.grid is None:
            raise CacheError(
                f"The latents of {self._model} have the shape {tuple(latents.shape)} instead of (B, N, C); give "
                "the rows and columns of its tokens: Stages(grid=...)."
            )
        condition = _tensor_in(_named(arguments, stages.condition, _TEXTS))
        if condition is None:
            self._missing("condition", arguments)
        time = _named(arguments, stages.time, _TIMES)
        if time is None:
            self._missing("time", arguments)
        sigma = self.sigma(time if isinstance(time, torch.Tensor) else torch.tensor(float(time)))
        image_ids, text_ids = (_tensor_in(arguments.get(name)) for name in ("img_ids", "txt_ids"))
        # A model without ids is recognized by its condition alone.
        return PassInputs(
            latents, condition, sigma, image_ids, condition if text_ids is None else text_ids, grid=stages.grid
        )

    def _missing(self, name: str, arguments: Mapping[str, Any]) -> NoReturn:
        given = ", ".join(arguments) or "nothing"
        called = getattr(self._stages, name)
        without = f", without {called!r}" if called and called not in arguments else ""
        raise CacheError(
            f"h2gen cannot tell which argument of {self._model} holds the {name}; it was called with {given}{without}. "
            f"Name the argument: Stages({name}=...)."
        )

    def can_split(self, arguments: Mapping[str, Any]) -> bool:
        return bool(self._stages.per_picture)

    def block_streams(self, stage: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[torch.Tensor, ...]:
        import torch

        by_name = named(self._names[stage], args, kwargs)
        text, found = by_name.get(self._stages.text), (by_name.get(self._stages.image), *by_name.values())
        tokens = next(
            (each for each in found if isinstance(each, torch.Tensor) and each.ndim == 3 and each is not text), None
        )
        if tokens is None:
            raise CacheError(
                f"A {stage} block of {self._model} was called without tokens, (B, N, D); name the argument that holds "
                "them: Stages(image=...)."
            )
        return (tokens,) if text is None else (text, tokens)

    def output_streams(self, stage: str, output: Any) -> tuple[torch.Tensor, ...]:
        container = type(output) if isinstance(output, (tuple, list)) else None
        self._containers[stage] = container
        streams = (output,) if container is None else tuple(output)
        return streams[::-1] if self._stages.image_first else streams

    def block_output(self, stage: str, streams: tuple[torch.Tensor, ...]) -> Any:
        streams = streams[::-1] if self._stages.image_first else streams
        container = self._containers.get(stage, tuple if len(streams) > 1 else None)
        return streams[0] if container is None else _filled(container, streams)

    def check_streams(self, stage: str, before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> None:
        import torch

        odd = next((each for each in after if not isinstance(each, torch.Tensor)), None)
        if odd is not None:
            raise CacheError(
                f"A {stage} block of {self._model} returns a {type(odd).__name__}; H2-Cache needs blocks that return "
                "their streams as tensors: one, or image and text in a tuple."
            )
        given, returned = ([tuple(each.shape) for each in streams] for streams in (before, after))
        if given != returned:
            raise CacheError(
                f"A {stage} block of {self._model} takes text and image of the shapes {given} and returns {returned}; "
                "H2-Cache needs blocks that return the same shapes. Check text and image_first of Stages."
            )
        grid, tokens = self._stages.grid, before[-1].shape[1]
        if grid is not None and (tokens < prod(grid) or (len(before) > 1 and tokens != prod(grid))):
            raise CacheError(
                f"Stages(grid={grid}) has {prod(grid)} tokens, but a {stage} block of {self._model} got {tokens}; give "
                "the rows and columns of the picture's tokens."
            )

    def added_between(self, stage: str, blocks: int, arguments: Mapping[str, Any]) -> Sequence[torch.Tensor]:
        return ()

    def velocity(self, output: Any) -> torch.Tensor:
        import torch

        first = output
        if isinstance(output, (tuple, list)) and output:
            first = output[0]
        elif isinstance(output, Mapping) and len(output) == 1:
            (first,) = output.values()
        if not isinstance(first, torch.Tensor):
            what = f"dict of {', '.join(map(str, output))}" if isinstance(output, Mapping) else type(output).__name__
            raise CacheError(
                f"{self._model} returns a {what}, and h2gen cannot tell where the velocity is in it; let it return the "
                "velocity alone or first in a tuple."
            )
        return first

    def with_velocity(self, output: Any, velocity: torch.Tensor) -> Any:
        if isinstance(output, Mapping):
            return type(output)(**dict.fromkeys(output, velocity))
        return _filled(type(output), (velocity, *output[1:])) if isinstance(output, (tuple, list)) else velocity

    def only_velocity(self, output: Any) -> bool:
        import torch

        return isinstance(output, torch.Tensor) or len(output) == 1

    def _only_cached(self, *_: Any, **__: Any) -> NoReturn:
        raise CacheError(f"h2gen has no pipeline for {self._model}; it can only put H2-Cache on it.")

    defaults = encode = unread = guidance_arguments = modulated_input = _only_cached


def _arguments_of(blocks: Iterable[nn.Module]) -> list[str]:
    """The names of what blocks are called with, without self."""
    block = next(iter(blocks), None)
    if block is None:
        return []
    kind: Any = type(getattr(block, "_orig_mod", block))  # what torch.compile wraps
    parameters = [*signature(kind.forward).parameters.values()][1:]
    return ["kwargs" if each.kind is Parameter.VAR_KEYWORD else each.name for each in parameters]


def _filled(container: Any, values: Sequence[Any]) -> Any:
    """A tuple, a named one or a list of these values."""
    return getattr(container, "_make", container)(values)


def _named(arguments: Mapping[str, Any], name: str, usual: Sequence[str]) -> Any:
    names = (name,) if name else usual
    return next((arguments[each] for each in names if arguments.get(each) is not None), None)


def _tensor_in(value: Any) -> torch.Tensor | None:
    """A tensor, or the first one that a dict holds."""
    import torch

    values = value.values() if isinstance(value, Mapping) else (value,)
    return next((each for each in values if isinstance(each, torch.Tensor)), None)
