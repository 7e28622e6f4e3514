"""What a picture is made from, and where each setting came from."""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from h2gen.cache.config import CacheConfig
from h2gen.cache.plan import parts_in, steps_in
from h2gen.errors import SettingError
from h2gen.models.choices import SOLVERS, evaluations
from h2gen.sanitize import SURROGATES
from h2gen.wording import shown

if TYPE_CHECKING:
    from h2gen.models.catalogue import ModelDefaults

LARGEST_SIDE = 8192
"""Pixels. Above it even a tiled decoder needs more memory than any one GPU has."""
MOST_STEPS = 10_000
MOST_TOKENS = 512
"""Of text: what FLUX.1's pipelines take."""
SEEDS = 2**63
FORMATS = ("png", "jpg", "webp")

LONGEST_PROMPT = 100_000
"""Characters; no text encoder reads more than a few hundred words of it."""

OFF = CacheConfig(tau1=0.0, tau2=0.0)


@dataclass(frozen=True)
class Settings:
    """All that determines a picture, apart from the checkpoint, the device and the dtype.

    Args:
        prompt: what to paint.
        seed: 0 to 2**63 - 1; the first noise is drawn from it on the CPU, so that it means the same everywhere.
        width, height: pixels.
        steps: denoising steps.
        guidance: guidance scale that a guidance-distilled model takes as an input.
        cfg: scale of true classifier-free guidance, two passes a step; 1 is off.
        negative: what to steer away from; needs ``cfg`` above 1.
        max_sequence_length: tokens of text that the model sees.
        cache: thresholds, guards and policies of H2-Cache.
        solver: one of ``SOLVERS``; ``own`` is the one that the checkpoint brings along.

    Raises:
        SettingError: a value cannot be used.
    """

    prompt: str
    seed: int
    width: int
    height: int
    steps: int
    guidance: float = 0.0
    cfg: float = 1.0
    negative: str = ""
    max_sequence_length: int = 512
    cache: CacheConfig = field(default=OFF)
    solver: str = "own"

    def __post_init__(self) -> None:
        _text("The prompt", self.prompt)
        _text("The negative prompt", self.negative)
        if not self.prompt.strip():
            raise SettingError("The prompt is empty; say what to paint, such as 'a cat'.")
        _whole("seed", self.seed, 0, SEEDS - 1)
        _whole("steps", self.steps, 1, MOST_STEPS)
        _whole("width", self.width, 1, LARGEST_SIDE)
        _whole("height", self.height, 1, LARGEST_SIDE)
        _whole("max_sequence_length", self.max_sequence_length, 1, MOST_TOKENS)
        for name in ("guidance", "cfg"):
            _scale(name, getattr(self, name))
            object.__setattr__(self, name, float(getattr(self, name)))
        if not isinstance(self.solver, str) or self.solver not in SOLVERS:
            raise SettingError(f"solver is {shown(self.solver)}; it can be {', '.join(SOLVERS)}.")
        check_length(self.cache.plan, self.steps, self.solver)
        parts = parts_in(self.cache.plan)
        if parts > (2 if self.cfg > 1 else 1):
            passes = "two passes with true guidance" if self.cfg > 1 else "one pass without true guidance (cfg above 1)"
            raise SettingError(f"plan has {parts} parts, and a step has {passes}; give a part a pass, or one for all.")
        if self.negative and self.cfg <= 1:
            raise SettingError(
                f"A negative prompt has no effect with cfg {self.cfg:g}; give a cfg above 1 too, such as 3."
            )

    @property
    def passes(self) -> int:
        """Forward passes of the transformer, all in all."""
        return evaluations(self.steps, self.solver) * (2 if self.cfg > 1 else 1)

    def goes_with(self, other: Settings) -> bool:
        """Whether both can be made in one batch: they differ in prompt and seed at most."""
        return replace(other, prompt=self.prompt, seed=self.seed) == self

    def to_json(self) -> dict[str, Any]:
        """One flat object, the cache's settings among the others; the solver where it is not the model's own, so that
        pictures from before there were others keep their ids."""
        # Not by asdict, which copies deeply: a batch asks this of every job.
        flat = {**vars(self), **vars(self.cache)}
        del flat["cache"]
        if self.solver == "own":
            del flat["solver"]
        return flat


def _text(what: str, words: Any) -> None:
    if not isinstance(words, str):
        raise SettingError(f"{what} is {shown(words)}; give it as text.")
    if SURROGATES.search(words):
        raise SettingError(f"{what} is not UTF-8 text.")
    if len(words) > LONGEST_PROMPT:
        raise SettingError(f"{what} has more than {LONGEST_PROMPT} characters; shorten it.")


def _whole(name: str, value: Any, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise SettingError(f"{name} is {shown(value)}; give a whole number from {least} to {most}.")


def _scale(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1000:
        raise SettingError(f"{name} is {shown(value)}; give a number from 0 to 1000.")


def check_length(plan: str, steps: int, solver: str, origin: str = "") -> None:
    """Whether a plan has a letter for each time that the solver asks the model.

    Args:
        plan: as ``CacheConfig`` holds it; an empty one is none.
        steps, solver: of the picture.
        origin: who gave the plan, for the message.

    Raises:
        SettingError: it has more letters, or fewer.
    """
    letters, passes = steps_in(plan), evaluations(steps, solver)
    if not plan or letters == passes:
        return
    whose = f" (from {origin})" if origin else ""
    if passes == steps:
        raise SettingError(
            f"plan{whose} is for {letters} steps, and steps is {steps}; give a letter a step, or an empty plan."
        )
    raise SettingError(
        f"plan{whose} has {letters} letters, and {steps} steps of {SOLVERS[solver]} are {passes} passes; give a letter "
        "a pass, or an empty plan."
    )


def clean_prompt(words: str) -> str:
    """The prompt in one line, without blanks around it.

    Raises:
        SettingError: it is empty, too long, or no text.
    """
    words = " ".join(words.split())
    _text("The prompt", words)
    if not words:
        raise SettingError("The prompt is empty; say what to paint, such as 'a cat'.")
    return words


def random_seed() -> int:
    """A seed short enough to be typed again."""
    return secrets.randbelow(2**32)


def parse_size(text: str, defaults: ModelDefaults) -> tuple[int, int, str | None]:
    """Width and height from ``1024x768``, or from a ratio such as ``16:9`` with the area of the model's default.

    Returns:
        Width, height, and a notice where the size was not a multiple of what the model needs and had to be rounded.

    Raises:
        SettingError: the text is neither, or a side would be 0 or above ``LARGEST_SIDE``.
    """
    multiple = defaults.size_multiple
    pixels = re.fullmatch(r"\s*(\d{1,9})\s*[xX×]\s*(\d{1,9})\s*", text)
    ratio = re.fullmatch(r"\s*(\d{1,5}(?:\.\d{1,5})?)\s*:\s*(\d{1,5}(?:\.\d{1,5})?)\s*", text)
    if pixels:
        wide, high = int(pixels[1]), int(pixels[2])
        width, height = (int(side / multiple + 0.5) * multiple for side in (wide, high))
        if not 0 < width <= LARGEST_SIDE or not 0 < height <= LARGEST_SIDE:
            raise SettingError(f"size is {shown(text)}; each side must be from {multiple} to {LARGEST_SIDE} pixels.")
        rounded = (width, height) != (wide, high)
        notice = f"{wide}x{high} is not a multiple of {multiple}: making {width}x{height}." if rounded else None
        return width, height, notice
    if ratio and float(ratio[1]) > 0 and float(ratio[2]) > 0:
        shape = float(ratio[1]) / float(ratio[2])
        area = defaults.width * defaults.height
        width = round(math.sqrt(area * shape) / multiple) * multiple
        height = round(math.sqrt(area / shape) / multiple) * multiple
        if 0 < width <= LARGEST_SIDE and 0 < height <= LARGEST_SIDE:
            return width, height, None
    raise SettingError(f"size is {shown(text)}; give pixels such as 1024x768, or a ratio such as 16:9.")


@dataclass(frozen=True)
class Resolved:
    """A setting's value, and who gave it: an option, the environment, the configuration, a preset, the model."""

    value: Any
    source: str


def resolve(layers: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, Resolved]:
    """Merge layers of settings, the strongest first; a value of None was not given."""
    resolved: dict[str, Resolved] = {}
    for source, values in layers:
        for name, value in values.items():
            if value is not None and name not in resolved:
                resolved[name] = Resolved(value, source)
    return resolved
