"""Entries become jobs: each one picture, with all that determines it settled before a model is loaded."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

from h2gen.batches.prompts import Entry, Reading
from h2gen.batches.prompts.entries import Given, place_of, places_of
from h2gen.cache.config import POLICIES, CacheConfig
from h2gen.errors import ProfileError, SettingError, UsageError
from h2gen.output import names
from h2gen.settings.presets import load_preset
from h2gen.settings.resolve import Layers, Request, request_from, resolve_settings, user_defaults
from h2gen.settings.seeds import count_seeds, derived_seed, parse_seeds
from h2gen.settings.speedup import Goal, GoalResolver, unchosen
from h2gen.settings.values import Settings

MOST = 1_000_000
"""Pictures of one run."""


@dataclass(frozen=True, slots=True)
class Job:
    """One picture to make.

    ``index`` counts from 1 over the whole run, whatever part of it is made here. ``name`` is the template of its
    file's name, ``notes`` the JSON text of what else its line held, ``source`` its ``FILE:LINE``.
    """

    index: int
    settings: Settings
    name: str
    preset: str | None
    notes: str | None
    source: str


def job_id(settings: Settings, content_hash: str, dtype: str) -> str:
    """32 hex digits that stand for all that determines a picture; not for its name, its place or the device.

    Args:
        settings: with the seed and the cache's settings.
        content_hash: of the checkpoint's files.
        dtype: what the transformer computes in, such as ``bfloat16``.
    """
    flat = settings.to_json()
    for name, default in _POLICIES.items():
        if flat[name] == default:  # what came later and is left off: a batch that was begun before goes on
            del flat[name]
    whole = {"settings": flat, "model": content_hash, "dtype": dtype}
    return hashlib.sha256(json.dumps(whole, sort_keys=True, allow_nan=False).encode()).hexdigest()[:32]


_POLICIES = {field.name: field.default for field in fields(CacheConfig) if field.name in POLICIES}


@dataclass(frozen=True)
class Shard:
    """Part ``part`` of ``parts`` of a run, from 1."""

    part: int
    parts: int

    def takes(self, index: int) -> bool:
        """Whether the job of this index (from 1) belongs to it."""
        return (index - 1) % self.parts == self.part - 1

    def __str__(self) -> str:
        return f"{self.part}of{self.parts}"


def parse_shard(text: str) -> Shard:
    """A part from ``3/16``.

    Raises:
        SettingError: it is none.
    """
    match = re.fullmatch(r"\s*(\d{1,6})\s*/\s*(\d{1,6})\s*", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise SettingError(f"shard is {text!r}; give a part and the number of parts, such as 3/16.")
    return Shard(int(match[1]), int(match[2]))


class Jobs:
    """All jobs of a run, made one after the other as they are read; reading them again gives the same ones.

    ``plan`` is what holds for the whole run.

    Args:
        reading: entries and mistakes of the prompt files.
        given: options of the command line: the keys of ``USER_DEFAULTS``, of ``CacheConfig``, ``seed``, ``count``,
            ``no_cache`` and ``name``; None where not given.
        environ: where ``H2GEN_...`` is looked up.
        wish: a speed or a fidelity, for which each picture's steps, solver and cache are chosen from a profile.

    Raises:
        UsageError: an option cannot be used.
        ProfileError: there is no profile for some of the pictures.
        PromptFileError: a prompt file has mistakes; all of them are told at once.
    """

    def __init__(
        self,
        reading: Reading,
        given: Mapping[str, Any],
        environ: Mapping[str, str] = os.environ,
        wish: Goal | None = None,
    ) -> None:
        options = {key: value for key, value in given.items() if value is not None}
        self._option, self._lasting = options, user_defaults(environ)
        self._template = names.check_template(options.get("name", names.DEFAULT))
        layers: Layers = [("option", _without_seeds(options)), *self._lasting]
        self.plan: Request = request_from("-", unchosen(wish, layers) if wish else layers)
        self._chooser = GoalResolver(wish, self.plan.checkpoint) if wish else None
        self._seeds = _seeds([options])
        self._load_preset = cache(load_preset)
        self._settled: dict[str, tuple[Settings, str | None]] = {}
        self._entries: list[tuple[Entry, Settings, str | None, str, tuple[int, ...] | int]] = []
        self._count = 0
        self._told: dict[int, bool] = {}
        for entry in reading.entries:
            try:
                self._entries.append(self._settle(entry))
            except ProfileError:
                raise  # no line of a file is to blame
            except UsageError:
                self._tell(entry, reading)
                continue
            seeds = self._entries[-1][-1]
            self._count += seeds if isinstance(seeds, int) else len(seeds)
            if self._count > MOST:
                break  # seeds take memory
        for entry in reading.broken:  # what is wrong with the rest of them
            sides = {"width", "height"} & entry.given.keys()
            rest = {key: value for key, value in entry.given.items() if len(sides) != 1 or key not in sides}
            self._tell_each(Given(rest, places_of(entry.given)), entry.source, reading)
        reading.check()
        if self._count > MOST:
            raise SettingError(f"That would be more than {MOST} pictures in one run; split it.")

    def __len__(self) -> int:
        return self._count

    @property
    def notices(self) -> list[str]:
        """What the user should see before it begins."""
        return [*self.plan.notices, *(self._chooser.notices if self._chooser is not None else [])]

    def __iter__(self) -> Iterator[Job]:
        index = 0
        occurrences: Counter[str] = Counter()
        for entry, settings, preset, name, seeds in self._entries:
            if isinstance(seeds, int):
                first = occurrences[entry.prompt]
                occurrences[entry.prompt] += seeds
                seeds = tuple(derived_seed(entry.prompt, first + ordinal) for ordinal in range(seeds))
            for seed in seeds:
                index += 1
                made = replace(settings, prompt=entry.prompt, seed=seed)
                yield Job(index, made, name, preset, entry.notes, entry.source)

    def _settle(self, entry: Entry) -> tuple[Entry, Settings, str | None, str, tuple[int, ...] | int]:
        """Everything about an entry's pictures but their seeds' values."""
        seeds = self._seeds  # one object, however many seeds and entries there are
        if not {"seed", "count"}.isdisjoint((*entry.given, *entry.defaults)):
            seeds = _seeds([entry.given, self._option, entry.defaults])
        name = self._template
        own = next((layer["name"] for layer in (entry.given, entry.defaults) if "name" in layer), None)
        if own is not None and ("name" in entry.given or "name" not in self._option):
            name = names.check_template(own)
            if (not isinstance(seeds, int) and len(seeds) > 1) or (isinstance(seeds, int) and seeds > 1):
                name = name if names.distinguishes(name) else f"{name}-{{seed}}"
        key = repr(
            [
                sorted((k, v) for k, v in layer.items() if k not in _NOT_SETTLED)
                for layer in (entry.given, entry.defaults)
            ]
        )
        if key not in self._settled:
            self._settled[key] = self._lay(entry)
        settings, preset = self._settled[key]
        return entry, settings, preset, name, seeds

    def _tell(self, entry: Entry, reading: Reading) -> None:
        """Tell what is wrong with an entry: each setting that cannot be used whatever the others are, of its file's
        defaults once; or else that they do not go together."""
        if id(entry.defaults) not in self._told:
            self._told[id(entry.defaults)] = self._tell_each(entry.defaults, entry.source, reading, ": defaults")
        if self._tell_each(entry.given, entry.source, reading):
            return
        try:
            self._settle(replace(entry, defaults={}) if self._told[id(entry.defaults)] else entry)
        except UsageError as error:
            reading.wrong(f"{entry.source}: {error}")

    def _tell_each(self, given: Mapping[str, Any], source: str, reading: Reading, what: str = "") -> bool:
        found = False
        for key, alone in _one_by_one(given):
            try:
                if key in ("seed", "count"):
                    _seeds([alone])
                elif key == "name":
                    names.check_template(alone[key])
                else:
                    self._lay(Entry("-", source, alone, {}), alone=True)
            except UsageError as error:
                reading.wrong(f"{place_of(given, key, source)}{what}: {error}")
                found = True
        return found

    def _lay(self, entry: Entry, alone: bool = False) -> tuple[Settings, str | None]:
        """An entry's settings; ``alone``, it holds but one of them, which a profile need not fit."""
        layers: Layers = [
            (entry.source, _sized(_without_seeds(entry.given))),
            ("option", _without_seeds(self._option)),
            ("defaults", _sized(_without_seeds(entry.defaults))),
            *self._lasting,
        ]
        if self._chooser is not None:
            layers = unchosen(self._chooser.wish, layers) if alone else self._chooser.above(layers)
        settings, resolved, _ = resolve_settings(entry.prompt, layers, self.plan.checkpoint.defaults, self._load_preset)
        return settings, resolved["preset"].value if "preset" in resolved else None


_NOT_SETTLED = ("seed", "count", "name")


def _one_by_one(given: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each setting with the others that it means nothing without: a width and a height are one, a negative prompt
    wants guidance."""
    for key, value in given.items():
        if key == "negative":
            yield key, {key: value, "cfg": 2.0}
        elif key == "width" and "height" in given:
            yield key, {key: value, "height": given["height"]}
        elif key != "height" or "width" not in given:
            yield key, {key: value}


def _without_seeds(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in _NOT_SETTLED}


def _seeds(layers: Sequence[Mapping[str, Any]]) -> tuple[int, ...] | int:
    """What the layers say of seeds, the strongest first; an entry's own seeds are all that it wants."""
    given = next((layer["seed"] for layer in layers if "seed" in layer), None)
    count = next((layer["count"] for layer in layers if "count" in layer), None)
    if "seed" in layers[0] and "count" not in layers[0]:
        count = None
    return count_seeds(None if given is None else parse_seeds(given), count)


def _sized(values: dict[str, Any]) -> dict[str, Any]:
    """Width and height as one size."""
    if "width" not in values and "height" not in values:
        return values
    if "size" in values or "width" not in values or "height" not in values:
        raise SettingError("width and height go together, and without a size; give both, or size.")
    return {**values, "size": f"{values.pop('width')}x{values.pop('height')}"}


def file_name(job: Job, job_id: str, model: str) -> str:
    """The name of a job's picture, without its suffix."""
    from h2gen.output.save import slug

    settings = job.settings
    return names.fill(
        job.name,
        {
            "index": job.index,
            "slug": slug(settings.prompt),
            "seed": settings.seed,
            "steps": settings.steps,
            "width": settings.width,
            "height": settings.height,
            "guidance": settings.guidance,
            "cfg": settings.cfg,
            "tau1": settings.cache.tau1,
            "tau2": settings.cache.tau2,
            "tolerance": settings.cache.tolerance,
            "preset": job.preset or "none",
            "model": model,
            "id": job_id[:8],
        },
    )
