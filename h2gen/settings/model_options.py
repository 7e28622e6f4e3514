"""Options that a model ignores or refuses: known before it is loaded, as far as its configuration is there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from h2gen.errors import SettingError
from h2gen.families.unused import Unused
from h2gen.models.catalogue import Checkpoint
from h2gen.models.facts import facts_of
from h2gen.models.tasks import pipeline_of
from h2gen.settings.solvers import check_solver
from h2gen.settings.table import BY_NAME
from h2gen.settings.values import Settings
from h2gen.settings.video import check_frames
from h2gen.wording import printable, shown


@dataclass(frozen=True)
class Remark:
    """A line about one prompt; ``kind`` is the same for all prompts with the same fault.

    ``ignored`` says whether it is about an option that the model ignores, which ``--strict`` makes an error.
    """

    kind: str
    text: str
    ignored: bool = False


def check_options(settings: Settings, checkpoint: Checkpoint) -> None:
    """Check that a model takes the settings of a picture.

    Raises:
        SettingError: it refuses one, or a LoRA is for another model, or a solver for another scheduler.
    """
    if settings.lora:
        from h2gen.models.lora_files import check_loras

        check_loras([(file.opened(), file.name) for file in settings.lora], checkpoint)
    check_frames(settings, checkpoint)
    for name, unused, value in _given_in_vain(settings, checkpoint):
        if unused.refused:
            raise SettingError(f"{name} is {shown(value)}, but {_name(checkpoint)} {unused.why}.")
    check_solver(settings, checkpoint)


def ignored_options(settings: Settings, checkpoint: Checkpoint) -> Iterator[Remark]:
    """A line for each setting that has no effect with a model."""
    for name, unused, _ in _given_in_vain(settings, checkpoint):
        if not unused.refused:
            text = f"{BY_NAME[name].option} has no effect: {_name(checkpoint)} {unused.why}."
            yield Remark(name, text, ignored=True)


def check_strict(ignored: Sequence[str]) -> None:
    """Check that nothing is ignored, as ``--strict`` asks.

    Args:
        ignored: a line for each option that the model ignores.

    Raises:
        SettingError: there is one.
    """
    if ignored:
        others = len(ignored) - 1
        more = f" {others} more {'is' if others == 1 else 'are'} ignored." if others else ""
        raise SettingError(f"{ignored[0]}{more} With --strict this is an error.")


def _given_in_vain(settings: Settings, checkpoint: Checkpoint) -> Iterator[tuple[str, Unused, Any]]:
    """The settings that a model does not use, and that differ from what it gets without them."""
    facts = facts_of(checkpoint)
    if facts is None:
        return
    pipeline = pipeline_of(checkpoint, (file.path for file in settings.lora))
    for name, unused in facts.family.unused(pipeline, facts.config, facts.index).items():
        value = getattr(settings, name) if hasattr(settings, name) else getattr(settings.cache, name)
        without = getattr(checkpoint.defaults, name, BY_NAME[name].default)
        if value != without and not (name == "cfg" and value <= 1):
            yield name, unused, value


def _name(checkpoint: Checkpoint) -> str:
    return repr(printable(checkpoint.name))
