"""Files that a picture is made from, such as LoRAs and pictures: how they are given, found, hashed and recorded."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from h2gen.checks import Rule
from h2gen.errors import MetadataError, SettingError, UsageError
from h2gen.files import expanded
from h2gen.wording import printable, shown

MOST_FILES = 32
"""Of one setting."""
_NONE = "none"
"""Given instead of a file, it overrides what a preset or the configuration gives."""
_NAME = Rule(str, longest=500)
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class InputFile:
    """A file that a picture is made from. Two are equal if they have the same contents, number and kind.

    Args:
        name: what metadata keep: a repository's id with the file in it, or the last part of a path.
        sha256: of its contents, 64 hex digits; empty until the file has been looked for.
        scale: the number after the colon, such as the scale of a LoRA; None if the model decides.
        kind: the word before the file, such as "canny"; empty if the setting has none.
        path: where it is; None if only metadata name it. It is never recorded.
    """

    name: str = field(compare=False)
    sha256: str
    scale: float | None = None
    kind: str = ""
    path: Path | str | None = field(default=None, compare=False, repr=False)

    def to_json(self) -> dict[str, Any]:
        """What metadata keep."""
        return {"name": self.name, **self.identity()}

    def identity(self) -> dict[str, Any]:
        """What determines its effect, so not its name: the hash, and the number and the kind if it has them."""
        scale = {} if self.scale is None else {"scale": self.scale}
        return {"sha256": self.sha256, **scale, **({"kind": self.kind} if self.kind else {})}

    def typed(self) -> str:
        """The file as it can be given again on this machine, such as ``canny:/home/me/edges.png:0.8``."""
        return self._with(str(self.name if self.path is None else self.path))

    def opened(self) -> Path:
        """Where it is.

        Raises:
            SettingError: only metadata name it.
        """
        if self.path is None:
            raise SettingError(f"{_quoted(self.name)} is only the name of a file in metadata; give the file.")
        return Path(self.path)

    def __str__(self) -> str:
        return self._with(self.name)

    def _with(self, file: str) -> str:
        kind = f"{self.kind}:" if self.kind else ""
        number = "" if self.scale is None else f":{self.scale!r}".removesuffix(".0")
        return f"{kind}{file}{number}"


def find_file(name: str) -> tuple[Path | str, str]:
    """Where a file is, and its name in metadata.

    Raises:
        SettingError: there is none; the message begins after the option's name.
    """
    path = expanded(name)
    if path.is_dir():
        raise SettingError(f"{shown(name)} is a folder; give a file in it.")
    if not path.is_file():
        raise SettingError(f"there is no file {_quoted(name)}; check the path.")
    return Path(os.path.abspath(path)), printable(path.name)


def hash_file(path: Path | str) -> str:
    """The hash of a file's contents."""
    from h2gen.models.content_hash import file_hash

    return file_hash(Path(path))


def only_file(path: Path) -> list[Path]:
    """The files that are read of a file."""
    return [path]


def nothing_known(_name: str) -> None:
    """For settings whose files are never found by a recorded name."""


@dataclass(frozen=True)
class FileRule(Rule):
    """What a setting with files may be: ``[KIND:]FILE[:NUMBER]`` as text, a path, or a list of them.

    Args:
        what: one of its files, for messages.
        number: what the number may be; None if there is no number.
        scale: the number, if none is given.
        kinds: words that may stand before the file.
        several: whether there may be more than one file.
        find: where a file is, and its name in metadata; or a SettingError.
        known: where a file with a recorded name is, if h2gen ships it or the user has downloaded it under that name.
        hashed: the hash of what ``find`` has found.
        read_of: the files that are read of what ``find`` has found, which may be a folder.
    """

    kind: type = list
    what: str = "file"
    number: Rule | None = None
    scale: float | None = None
    kinds: tuple[str, ...] = ()
    several: bool = True
    find: Callable[[str], tuple[Path | str, str]] = find_file
    known: Callable[[str], Path | str | None] = nothing_known
    hashed: Callable[[Path | str], str] = hash_file
    read_of: Callable[[Path], list[Path]] = only_file

    def check(self, name: str, value: Any) -> tuple[InputFile, ...]:
        """The files, as they are written: nothing looks for them yet. They have no hash, unless they had one before.

        Args:
            name: what the caller calls the setting, for messages.
            value: text, a path, an ``InputFile``, its ``to_json()``, or a list of these.

        Raises:
            SettingError: it cannot be used.
        """
        items = value if isinstance(value, (list, tuple)) else [value]
        if [*items] == [_NONE]:
            return ()
        if len(items) > (most := MOST_FILES if self.several else 1):
            raise SettingError(f"{name} has {len(items)} files; give {f'at most {most}' if most > 1 else 'one'}.")
        return tuple(self._checked(name, item) for item in items)

    def check_kind(self, name: str, value: Any) -> None:
        """As ``check``."""
        self.check(name, value)

    def resolve(self, name: str, value: Any) -> tuple[InputFile, ...]:
        """The files, found and hashed, with their numbers.

        Raises:
            SettingError: a value cannot be used, or a file is missing or cannot be read.
        """
        return tuple(self._complete(name, self._found(name, item)) for item in self.check(name, value))

    def again(self, name: str, recorded: Sequence[InputFile], value: Any, noun: str) -> tuple[InputFile, ...]:
        """The files for making a picture again. A file is matched by its hash; nothing that only a picture names is
        opened.

        Args:
            name: what the user calls the setting.
            recorded: the picture's files.
            value: the files that the user gave, which replace the picture's if one of them is another; None if none.
            noun: what was made with them, a picture or a video.

        Raises:
            SettingError: as ``resolve``.
            MetadataError: some of the picture's files are missing.
        """
        given = () if value is None else tuple(self._found(name, item) for item in self.check(name, value))
        files = {item.sha256: item for item in given}
        if not {item.sha256 for item in recorded} >= files.keys() or (value is not None and not given):
            return tuple(self._complete(name, item) for item in given)
        found = [self._as_recorded(item, files.get(item.sha256)) for item in recorded]
        if missing := [each for each, file in zip(recorded, found, strict=True) if file is None]:
            names = " and ".join(_quoted(each.name) for each in missing)
            hashes = ", ".join(f"{each.sha256[:12]}..." for each in missing)
            raise MetadataError(
                f"The {noun} was made with the {self.what} {names} (SHA-256 {hashes}); give the file again with "
                f"{name}, or leave it out with {name} {_NONE}."
            )
        return tuple(file for file in found if file is not None)

    def beside(self, folder: Path, name: str, value: Any) -> tuple[InputFile, ...]:
        """The files that a file in ``folder`` names: relative paths start there, if they exist there."""

        def moved(item: InputFile) -> InputFile:
            there = None if item.path is None else folder / expanded(str(item.path))
            return replace(item, path=there) if there is not None and _is_file(str(there)) else item

        return tuple(moved(item) for item in self.check(name, value))

    def _checked(self, name: str, item: Any) -> InputFile:
        if isinstance(item, InputFile):
            return item
        if isinstance(item, Mapping):
            return self._recorded(name, item)
        if isinstance(item, os.PathLike):
            return InputFile(os.fspath(item), "", path=os.fspath(item))
        if not isinstance(item, str) or not item.strip():
            raise SettingError(f"{name} is {shown(item)}; give {self._form}.")
        text = _NAME.check(name, item.strip())
        kind, _, rest = text.partition(":")
        kind, rest = (kind, rest) if rest and kind in self.kinds else ("", text)
        before, _, number = rest.rpartition(":")
        if self.number is None or not before or _is_file(rest):
            return InputFile(rest, "", None, kind, rest)
        try:
            scale = float(number)
        except ValueError:
            if _is_file(before):
                raise SettingError(
                    f"{name} is {shown(text)}: {shown(number)} is not a number; give {self._form}."
                ) from None
            return InputFile(rest, "", None, kind, rest)
        return InputFile(before, "", self.number.check(f"{name} {_quoted(before)}: the number", scale), kind, before)

    def _recorded(self, name: str, item: Mapping[str, Any]) -> InputFile:
        """A file of metadata, which anybody may have written."""
        known, digest, scale, kind = (item.get(key) for key in ("name", "sha256", "scale", "kind"))
        if not isinstance(digest, str) or not _SHA256.fullmatch(digest) or not known:
            raise SettingError(f"{name} is {shown(item)}; give {self._form}.")
        scale = None if scale is None or self.number is None else self.number.check(f"{name}: the number", scale)
        if kind is not None and kind not in self.kinds:
            raise SettingError(f"{name} has the unknown kind {shown(kind)}.")
        return InputFile(str(_NAME.check(name, known)), digest, scale, kind or "")

    def _found(self, name: str, item: InputFile) -> InputFile:
        if item.path is None:
            raise SettingError(f"{name} {_quoted(item.name)} is only the name of a {self.what}; give the file.")
        if item.sha256:
            return item
        try:
            path, known = self.find(str(item.path))
            return replace(item, name=known, path=path, sha256=self.hashed(path))
        except UsageError as error:
            raise SettingError(f"{name}: {error}") from error
        except OSError as error:
            raise SettingError(f"{name}: {_quoted(item.name)} cannot be read: {error.strerror or error}.") from error

    def _complete(self, name: str, item: InputFile) -> InputFile:
        return replace(item, scale=self.scale) if item.scale is None else item

    def _as_recorded(self, recorded: InputFile, given: InputFile | None) -> InputFile | None:
        if given is not None:
            return replace(recorded, path=given.path, scale=recorded.scale if given.scale is None else given.scale)
        try:
            path = self.known(recorded.name)
            return None if path is None or self.hashed(path) != recorded.sha256 else replace(recorded, path=path)
        except (OSError, UsageError):  # it cannot be read, or is damaged: as if it were not there
            return None

    @property
    def _form(self) -> str:
        kinds = f"one of {', '.join(self.kinds)}, a colon and " if self.kinds else ""
        return f"{kinds}a {self.what}'s path{', if need be followed by :NUMBER' if self.number else ''}"


def _is_file(name: str) -> bool:
    return os.path.isfile(expanded(name))


def _quoted(name: str) -> str:
    return repr(printable(name))


def _find_lora(name: str) -> tuple[Path | str, str]:
    from h2gen.models.lora_files import find_lora  # not for --help

    return find_lora(name)


def _known_lora(name: str) -> Path | str | None:
    from h2gen.models.lora_files import known_lora

    return known_lora(name)


LORA = FileRule(what="LoRA", number=Rule(float, -100, 100), scale=1.0, find=_find_lora, known=_known_lora)
"""A LoRA's file or repository, with its scale."""
