"""Turns entries of prompt files into jobs: one per picture, with all settings resolved. Nothing is loaded."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, NamedTuple

from h2gen.batches.prompts import Entry, Reading
from h2gen.batches.prompts.entries import Given, place_of, places_of
from h2gen.errors import ProfileError, SettingError, UsageError
from h2gen.files import sha256
from h2gen.output import names
from h2gen.settings.editing import check_inputs
from h2gen.settings.inputs import InputFile
from h2gen.settings.layers import Layers
from h2gen.settings.model_options import Remark, check_options, check_strict, ignored_options
from h2gen.settings.presets import load_preset
from h2gen.settings.remarks import remarks_on
from h2gen.settings.resolve import Request, request_from, resolve_settings
from h2gen.settings.seeds import count_seeds, derived_seed, parse_seeds
from h2gen.settings.speedup import Goal, GoalResolver, unchosen
from h2gen.settings.table import TABLE
from h2gen.settings.user_defaults import user_defaults
from h2gen.settings.values import Settings
from h2gen.wording import shown

MOST = 1_000_000
"""Pictures per run."""


@dataclass(frozen=True, slots=True)
class Job:
    """One picture to make.

    ``index`` is the job's number in the whole run, from 1, whatever the shard. ``name`` is the template of
    its file name, ``notes`` the JSON text of everything else in its line, ``source`` its ``FILE:LINE``.
    """

    index: int
    settings: Settings
    name: str
    preset: str | None
    notes: str | None
    source: str


def job_id(settings: Settings, content_hash: str, dtype: str, changing: Mapping[str, str] | None = None) -> str:
    """32 hex digits that identify everything that determines a picture, but not its name, folder or device.

    Args:
        settings: with the seed and the cache's settings.
        content_hash: of the checkpoint's files.
        dtype: that the transformer computes in, such as ``bfloat16``.
        changing: ``LoadOptions.changing``.
    """
    flat = settings.to_json()
    for row in TABLE:
        if row.of_files:
            flat[row.name] = tuple(file.identity() for file in getattr(settings, row.name))
        if row.later and row.in_picture and flat.get(row.name) == row.default:
            flat.pop(row.name, None)  # so that a batch from before the setting existed can be continued
    whole = {"settings": flat, "model": content_hash, "dtype": dtype, **(changing or {})}
    return sha256(json.dumps(whole, sort_keys=True, allow_nan=False).encode())[:32]


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
    """A shard from ``3/16``.

    Raises:
        SettingError: it has another form, or the part is out of range.
    """
    match = re.fullmatch(r"\s*(\d{1,6})\s*/\s*(\d{1,6})\s*", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise SettingError(f"--shard is {shown(text)}; give a part and the number of parts, such as 3/16.")
    return Shard(int(match[1]), int(match[2]))


class _Shared(NamedTuple):
    """What all entries with the same settings share, with a notice if their size was rounded."""

    settings: Settings
    preset: str | None
    rounded: str | None


class Jobs:
    """All jobs of a run, built one by one during iteration; iterating again gives the same ones.

    ``request`` is what applies to the whole run.

    Args:
        reading: entries and errors of the prompt files.
        given: options of the command line by name; None if not given.
        environ: environment with the ``H2GEN_...`` variables.
        goal: a speed-up or a fidelity, for which each picture's steps, solver and cache are chosen from a profile.

    Raises:
        UsageError: an option cannot be used.
        ProfileError: there is no profile for some of the pictures.
        PromptFileError: a prompt file has errors; all of them are reported at once.
    """

    def __init__(
        self,
        reading: Reading,
        given: Mapping[str, Any],
        environ: Mapping[str, str] = os.environ,
        goal: Goal | None = None,
    ) -> None:
        options = {key: value for key, value in given.items() if value is not None}
        self._option, self._user_defaults = options, user_defaults(environ)
        self._template = names.check_template(options.get("name", names.DEFAULT))
        layers: Layers = [("option", _without_seeds(options)), *self._user_defaults]
        self.request: Request = request_from("-", unchosen(goal, layers) if goal else layers)
        self._resolver = GoalResolver(goal, self.request.checkpoint) if goal else None
        self._seeds = _seeds([options])
        self._load_preset = cache(load_preset)
        self._known: dict[str, _Shared] = {}
        self._entries: list[tuple[Entry, _Shared, str, tuple[int, ...] | int]] = []
        self._count = 0
        self._reported: dict[int, bool] = {}
        for entry in reading.entries:
            try:
                self._entries.append(self._resolve(entry))
            except ProfileError:
                raise  # not an error in any line
            except UsageError:
                self._report(entry, reading)
                continue
            seeds = self._entries[-1][-1]
            self._count += seeds if isinstance(seeds, int) else len(seeds)
            if self._count > MOST:
                break  # seeds take memory
        for entry in reading.broken:  # report the errors of their other settings too
            sides = {"width", "height"} & entry.given.keys()
            rest = {key: value for key, value in entry.given.items() if len(sides) != 1 or key not in sides}
            self._report_each(Given(rest, places_of(entry.given)), entry.source, reading)
        reading.check()
        if self._count > MOST:
            raise SettingError(f"That would be more than {MOST} pictures in one run; split it.")

    def __len__(self) -> int:
        return self._count

    @property
    def notices(self) -> list[str]:
        """What the user should see before it begins."""
        return [*self.request.notices, *(self._resolver.notices if self._resolver is not None else [])]

    @cached_property
    def remarks(self) -> list[str]:
        """Remarks on prompts that are probably not read as meant: the first of each kind, and how many more."""
        return self.find_remarks()

    def find_remarks(self) -> list[str]:
        """As ``remarks``, with what is known of the model by now: more, once it has been downloaded."""
        found: dict[str, list[Any]] = {}
        for entry, shared, *_ in self._entries:
            rounded = [Remark("rounded", shared.rounded)] if shared.rounded else []
            for remark in (*rounded, *remarks_on(entry.prompt, shared.settings, self.request.checkpoint)):
                if remark.text not in self.request.notices:
                    found.setdefault(remark.kind, [f"{entry.source}: {remark.text}", 0])[1] += 1
        return [f"{text} The same applies to {n - 1} more." if n > 1 else text for text, n in found.values()]

    def check_strict(self) -> None:
        """Check that the model ignores no option, as ``--strict`` asks.

        Raises:
            SettingError: it ignores one, of the command or of a prompt.
        """
        first: dict[str, str] = {}
        for entry, shared, *_ in self._entries:
            for remark in ignored_options(shared.settings, self.request.checkpoint):
                first.setdefault(remark.text, f"{entry.source}: {remark.text}")
        of_all = [text for text in self.request.ignored if text in first]
        check_strict([*of_all, *(line for text, line in first.items() if text not in of_all)])

    @property
    def mixes_loras(self) -> bool:
        """Whether some pictures have other LoRAs than others."""
        return len({shared.settings.lora for _, shared, *_ in self._entries}) > 1

    @property
    def remarked_request(self) -> Request:
        """The request, with the remarks among its notices."""
        return replace(self.request, notices=(*self.request.notices, *self.remarks))

    def __iter__(self) -> Iterator[Job]:
        index = 0
        occurrences: Counter[str] = Counter()
        for entry, shared, name, seeds in self._entries:
            if isinstance(seeds, int):
                first = occurrences[entry.prompt]
                occurrences[entry.prompt] += seeds
                seeds = tuple(derived_seed(entry.prompt, first + ordinal) for ordinal in range(seeds))
            for seed in seeds:
                index += 1
                own = replace(shared.settings, prompt=entry.prompt, seed=seed)
                yield Job(index, own, name, shared.preset, entry.notes, entry.source)

    def _resolve(self, entry: Entry) -> tuple[Entry, _Shared, str, tuple[int, ...] | int]:
        """Everything about an entry's pictures except their seeds."""
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
                sorted((k, _whole(v)) for k, v in layer.items() if k not in _OWN_KEYS)
                for layer in (entry.given, entry.defaults)
            ]
        )
        key = f"{bool(entry.prompt)} {key}"  # not every setting does without a prompt
        if key not in self._known:
            self._known[key] = self._settings(entry)
        return entry, self._known[key], name, seeds

    def _report(self, entry: Entry, reading: Reading) -> None:
        """Report the errors of an entry: each setting that cannot be used by itself, those of the file's defaults once;
        or else that the settings contradict each other."""
        if id(entry.defaults) not in self._reported:
            self._reported[id(entry.defaults)] = self._report_each(entry.defaults, entry.source, reading, ": defaults")
        if self._report_each(entry.given, entry.source, reading):
            return
        try:
            self._resolve(replace(entry, defaults={}) if self._reported[id(entry.defaults)] else entry)
        except UsageError as error:
            reading.wrong(f"{entry.source}: {error}")

    def _report_each(self, given: Mapping[str, Any], source: str, reading: Reading, what: str = "") -> bool:
        found = False
        for key, alone in _one_by_one(given):
            try:
                if key in ("seed", "count"):
                    _seeds([alone])
                elif key == "name":
                    names.check_template(alone[key])
                else:
                    self._settings(Entry("-", source, alone, {}), alone=True)
            except UsageError as error:
                reading.wrong(f"{place_of(given, key, source)}{what}: {error}")
                found = True
        return found

    def _settings(self, entry: Entry, alone: bool = False) -> _Shared:
        """What an entry's pictures have in common.

        ``alone``: it has only one setting, so a profile need not fit.
        """
        layers: Layers = [
            (entry.source, _sized(_without_seeds(entry.given))),
            ("option", _without_seeds(self._option)),
            ("defaults", _sized(_without_seeds(entry.defaults))),
            *self._user_defaults,
        ]
        asked: Mapping[str, Any] = {}
        if self._resolver is not None and alone:
            layers = unchosen(self._resolver.goal, layers)
        elif self._resolver is not None:
            asked, layers = self._resolver.above(layers)
        settings, resolved, rounded = resolve_settings(entry.prompt, layers, self.request.checkpoint, self._load_preset)
        settings = replace(settings, **asked)
        check_options(settings, self.request.checkpoint)
        if not alone:
            check_inputs(self.request.checkpoint, settings)
        return _Shared(settings, resolved["preset"].value if "preset" in resolved else None, rounded)


def _whole(value: Any) -> Any:
    """A value that only equal ones have the same repr of: files of one name may be in different folders."""
    if not isinstance(value, tuple):
        return value
    return [(each, str(each.path)) if isinstance(each, InputFile) else each for each in value]


_OWN_KEYS = ("seed", "count", "name")


def _one_by_one(given: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each setting, with what it needs: width with height, a negative prompt with guidance, a mask with its picture, a
    ControlNet with its control picture."""
    together = {"mask": ("image",), "control": ("controlnet",), "controlnet": ("control",), "redux_model": ("redux",)}
    for key, value in given.items():
        if key == "negative":
            yield key, {key: value, "cfg": 2.0}
        elif key in together:
            yield key, {key: value, **{other: given[other] for other in together[key] if other in given}}
        elif key == "width" and "height" in given:
            yield key, {key: value, "height": given["height"]}
        elif key != "height" or "width" not in given:
            yield key, {key: value}


def _without_seeds(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in _OWN_KEYS}


def _seeds(layers: Sequence[Mapping[str, Any]]) -> tuple[int, ...] | int:
    """The seeds of the first layer that gives some, or their number; a count does not apply to an entry's own seeds."""
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
        raise SettingError("width and height go together, without a size; give both, or size.")
    return {**values, "size": f"{values.pop('width')}x{values.pop('height')}"}


def file_name(job: Job, job_id: str, model: str) -> str:
    """The file name of a job's picture, without its suffix."""
    from h2gen.output.save import slug

    settings = job.settings
    return names.fill(
        job.name,
        {
            "index": job.index,
            "slug": slug(settings.title),
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
