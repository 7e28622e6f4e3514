"""The prompts and seeds that compare, tune and frontier run on: a prompt, prompt files, or those built into h2gen."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from h2gen.arguments import check_names
from h2gen.batches.jobs import Jobs
from h2gen.batches.prompts import Entry, Reading, read_prompts
from h2gen.errors import SettingError
from h2gen.evaluation.results import Case
from h2gen.settings.layers import Resolved
from h2gen.settings.resolve import CACHE, Request, resolve_request
from h2gen.settings.synonyms import meant_or_close
from h2gen.settings.table import TABLE
from h2gen.settings.values import Settings, clean_prompt

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

PromptFiles = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None
"""One prompt file or several: ``.txt``, ``.yaml``, ``.jsonl``, ``.json``, ``.csv`` or ``.tsv``."""


_O = TypeVar("_O", bound="DataclassInstance")


def split_options(command: str, given: Mapping[str, Any], options: _O, own: Sequence[str]) -> tuple[dict[str, Any], _O]:
    """What a Python function was given by name, as settings and as its options.

    Args:
        command: the function's name, and that of its command.
        given: keyword arguments that are not its own.
        options: a dataclass; fields of it that are given replace its values.
        own: names of its own arguments.

    Returns:
        The settings, and the options.

    Raises:
        ArgumentError: it has no argument of one of the names.
    """
    known = [row.name for row in TABLE if row.is_setting and command in row.commands]
    fields_of_options = [field.name for field in fields(options)]

    def meant(name: str, names: Collection[str]) -> str | None:
        close = difflib.get_close_matches(name, fields_of_options, n=1, cutoff=0.85)
        return close[0] if close else meant_or_close(name, names)  # "repeats" is ours before it is another program's

    check_names(command, given, (*own, *known, *fields_of_options), meant)
    replaced = {name: given[name] for name in fields_of_options if name in given}
    return {name: given[name] for name in known if name in given}, replace(options, **replaced)


def read_entries(prompt: str | None, files: PromptFiles, key: str | None, *, may_be_empty: bool = False) -> Reading:
    """The entries of prompt files, or the one prompt, which ``may_be_empty``.

    Raises:
        SettingError: there is neither, or both, or the prompt is empty.
        PromptFileError: the files have very many errors; with fewer, ``Reading.check`` raises it.
    """
    paths = file_names(files)
    if (prompt is None) == (not paths):
        raise SettingError("Give a prompt, or --prompts with a file of them.")
    if paths:
        return read_prompts(paths, key)
    return Reading([Entry(clean_prompt(prompt or "", may_be_empty=may_be_empty), "the prompt", {}, {})])


def file_names(files: PromptFiles) -> list[str]:
    """Prompt files as a list of paths."""
    if files is None:
        return []
    return [os.fspath(path) for path in ([files] if isinstance(files, (str, os.PathLike)) else files)]


def cases_of(jobs: Jobs, limit: int | None = None) -> tuple[list[Case], Settings]:
    """The cases of some jobs, without repetitions, and the settings that they share.

    Args:
        jobs: of prompt files and options.
        limit: number of cases, at most; None takes all.

    Raises:
        SettingError: an entry of a prompt file has its own settings.
    """
    cases: dict[Case, None] = {}
    shared: Settings | None = None
    for job in jobs:
        if limit is not None and len(cases) >= limit:
            break
        settings = replace(job.settings, prompt="-", seed=0)
        if shared is not None and settings != shared:
            raise SettingError(
                f"{job.source} has its own settings; a comparison needs the same settings for all pictures: give "
                "them as options."
            )
        shared = settings
        cases[Case(job.settings.prompt, job.settings.seed)] = None
    if shared is None:
        raise SettingError("There is nothing to compare; give a prompt.")
    return list(cases), shared


def uncached_request(
    given: Mapping[str, Any],
    files: PromptFiles,
    key: str | None,
    built_in: Callable[[bool], Sequence[Case]],
    limit: int,
) -> tuple[Request, Sequence[Case]]:
    """The request for the uncached reference images, and their cases.

    Args:
        given: settings, as in ``resolve_request``.
        files: prompt files. Settings in them must be the same for all prompts.
        key: of the prompt in JSON Lines.
        built_in: the cases if there are no files, given whether they are of videos.
        limit: number of cases, at most.

    Raises:
        UsageError: a setting or a prompt file cannot be used.
    """
    given = {**given, "no_cache": True}
    paths = file_names(files)
    if not paths:
        request = resolve_request("-", {**given, "seed": 0})
        return _without_cache(request), built_in(request.settings.frames is not None)[:limit]
    jobs = Jobs(read_prompts(paths, key), given)
    cases, settings = cases_of(jobs, limit)
    shared = {"size": f"{settings.width}x{settings.height}", **settings.to_json()}
    resolved = {
        name: Resolved(shared[name], "prompt file")
        if name != "seed" and shared.get(name, item.value) != item.value
        else item
        for name, item in jobs.request.resolved.items()
    }
    return _without_cache(replace(jobs.remarked_request, settings=settings, resolved=resolved)), cases


def _without_cache(request: Request) -> Request:
    """The request without saying that the user switched the cache off."""
    resolved = {
        name: Resolved(item.value, "uncached reference") if name in CACHE else item
        for name, item in request.resolved.items()
    }
    return replace(request, resolved=resolved)
