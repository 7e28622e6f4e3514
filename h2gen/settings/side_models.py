"""Rules of settings that name a model besides the one that paints: ControlNets, and Redux's own model."""

from __future__ import annotations

from pathlib import Path

from h2gen.checks import Rule
from h2gen.errors import SettingError
from h2gen.models.choices import MODES
from h2gen.settings.inputs import FileRule, find_file
from h2gen.settings.pictures import PictureRule

# Imported when they are needed: the table of settings is read at every start.


def _find_controlnet(name: str) -> tuple[Path | str, str]:
    from h2gen.models.controlnet import find_controlnet

    return find_controlnet(name)


def _known_controlnet(name: str) -> Path | None:
    from h2gen.models.controlnet import known_controlnet

    return known_controlnet(name)


def _hash_controlnet(path: Path | str) -> str:
    from h2gen.models.controlnet import hash_controlnet

    return hash_controlnet(path)


def _files_of_controlnet(path: Path) -> list[Path]:
    from h2gen.models.controlnet import files_of_controlnet

    return files_of_controlnet(path)


def _find_redux(name: str) -> tuple[Path | str, str]:
    from h2gen.models.redux import find_redux

    return find_redux(name)


def _known_redux(name: str) -> Path | None:
    from h2gen.models.redux import known_redux

    return known_redux(name)


def _hash_redux(path: Path | str) -> str:
    from h2gen.models.redux import hash_redux

    return hash_redux(path)


def _files_of_redux(folder: Path) -> list[Path]:
    from h2gen.models.redux import files_of_redux

    return files_of_redux(folder)


def _find_control(name: str) -> tuple[Path | str, str]:
    word = name.partition(":")[0]
    try:
        return find_file(name)
    except SettingError as error:
        if len(word) > 1 and word.isalpha() and word != name:
            raise SettingError(f"{error} A kind of control picture is one of {', '.join(MODES)}.") from error
        raise


CONTROL = PictureRule(what="control picture", kinds=tuple(MODES), find=_find_control)
CONTROLNET = FileRule(
    what="ControlNet",
    number=Rule(float, 0, 10),
    scale=1.0,
    find=_find_controlnet,
    known=_known_controlnet,
    hashed=_hash_controlnet,
    read_of=_files_of_controlnet,
)
REDUX_MODEL = FileRule(
    what="Redux model",
    several=False,
    find=_find_redux,
    known=_known_redux,
    hashed=_hash_redux,
    read_of=_files_of_redux,
)
