"""Frames, frames per second and formats of videos: checked against the model before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from h2gen.errors import SettingError
from h2gen.models.catalogue import CATALOGUE, Checkpoint
from h2gen.models.facts import facts_of
from h2gen.settings.layers import Resolved
from h2gen.settings.table import FORMATS
from h2gen.settings.video_rows import MOST_FRAMES, VIDEO_FORMATS
from h2gen.wording import printable, shown

if TYPE_CHECKING:
    from h2gen.settings.values import Settings

_ROWS = ("frames", "fps")
_OF_USER = ("environment", "configuration")
_FPS = 16.0
"""Of a model that is not known yet."""


def with_frames(checkpoint: Checkpoint, resolved: dict[str, Resolved]) -> None:
    """Complete the number of frames and their rate for a model that makes videos, and leave them out for others.

    The environment and the configuration hold for all models, so values there that do not suit this one are ignored.

    Args:
        checkpoint: of the model.
        resolved: all settings, with those of the model.

    Raises:
        SettingError: they were given for a model that makes pictures.
    """
    facts = facts_of(checkpoint)
    videos = facts is not None and facts.family.makes_video
    format = resolved.get("format")
    if format and format.source in _OF_USER and format.value not in (VIDEO_FORMATS if videos else FORMATS):
        del resolved["format"]
    for name in _ROWS:
        if name in resolved and resolved[name] == Resolved(0, "model default"):  # it makes pictures, or does not say
            del resolved[name]
    if facts is not None and videos:
        own = facts.family.defaults(facts.config, facts.index)
        for name in _ROWS:
            resolved.setdefault(name, Resolved(getattr(own, name), "model default"))
        return
    for name in _ROWS:
        if name in resolved and resolved[name].source in _OF_USER:
            del resolved[name]
    given = [name for name in _ROWS if name in resolved]
    if given and (facts is not None or checkpoint.kind != "hub"):
        raise _makes_pictures(given[0], resolved, checkpoint)
    if given == ["fps"]:
        raise SettingError("fps has no effect without frames; give both.")
    if "frames" in resolved:
        resolved.setdefault("fps", Resolved(_FPS, "built in"))


def check_frames(settings: Settings, checkpoint: Checkpoint) -> None:
    """Check that a model makes videos of this number of frames, as far as the model is known.

    Raises:
        SettingError: it does not, or it makes pictures; or only its download showed that it makes videos.
    """
    facts = facts_of(checkpoint)
    if facts is None:
        return
    frames, step, name = settings.frames, facts.family.frame_step, _name(checkpoint)
    if not facts.family.makes_video:
        if frames is not None:
            raise SettingError(f"frames is {frames}, but {name} makes pictures; leave it out.")
        return
    if frames is None:
        raise SettingError(f"{name} makes videos, which its download has shown only now; run the command again.")
    if over := (frames - 1) % step:
        nearest = [each for each in (frames - over, frames - over + step) if each <= MOST_FRAMES]
        raise SettingError(
            f"frames is {frames}, but {name} takes 1 plus a multiple of {step}; give {' or '.join(map(str, nearest))}."
        )


def latent_frames(frames: int, checkpoint: Checkpoint) -> int:
    """The frames of a video as its model computes them; 1 for a picture, whose number of frames is 0."""
    facts = facts_of(checkpoint)
    return -(-(max(1, frames) - 1) // (1 if facts is None else facts.family.frame_step)) + 1


def _makes_pictures(name: str, resolved: Mapping[str, Resolved], checkpoint: Checkpoint) -> SettingError:
    value = resolved[name].value
    able = [alias for alias, entry in CATALOGUE.items() if entry.of_family.makes_video]
    other = f"choose a model that makes videos ({', '.join(able)}), or leave it out" if able else "leave it out"
    return SettingError(f"{name} is {shown(value)}, but {_name(checkpoint)} makes pictures; {other}.")


def _name(checkpoint: Checkpoint) -> str:
    return repr(printable(checkpoint.name))
