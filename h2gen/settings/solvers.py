"""Which solvers and shifts go with a model's own scheduler: the same answer before it is loaded and when it runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from h2gen.errors import SettingError
from h2gen.families import Family
from h2gen.models.catalogue import Checkpoint
from h2gen.models.defaults import read_config
from h2gen.models.facts import facts_of
from h2gen.settings.shift import DYNAMIC, OWN

if TYPE_CHECKING:
    from h2gen.settings.values import Settings

_CLASS = "_class_name"


def check_solver(settings: Settings, checkpoint: Checkpoint) -> None:
    """Check that a model takes a solver and a shift, as far as the model is known.

    Raises:
        SettingError: it does not.
    """
    if settings.solver == "own" and settings.shift == OWN:
        return
    facts = facts_of(checkpoint)
    if facts is None:
        return
    scheduler: Mapping[str, Any] = {}
    if facts.folder is not None:
        scheduler = read_config(facts.folder / "scheduler" / "scheduler_config.json")
    scheduler = scheduler if _CLASS in scheduler else facts.family.scheduler
    why = why_not(facts.family, facts.config, str(scheduler[_CLASS]), scheduler, settings.solver, settings.shift)
    if why:
        raise SettingError(why)


def why_not(
    family: Family, transformer: Mapping[str, Any], name: str, config: Mapping[str, Any], solver: str, shift: str
) -> str:
    """Why a model does not take a solver or a shift, and what to do; empty if it does.

    Args:
        family: of the model.
        transformer: the transformer's configuration.
        name: the class of the model's own scheduler in diffusers.
        config: that scheduler's configuration.
        solver, shift: as ``Settings`` has them.
    """
    if solver == "own" and shift == OWN:
        return ""
    option = f"--shift {shift}" if solver == "own" else f"--solver {solver}"
    leave_out = f"leave out {option.split()[0]}"
    if family.mean_velocity(transformer):
        return (
            f"{option}: this model is distilled to jump between the times of its own schedule, with its own solver; "
            f"{leave_out}."
        )
    unipc = is_flow_unipc(name, config)
    if not (unipc or name.startswith("FlowMatch")):
        return f"{option}: the model's scheduler, {name}, does not support flow matching; {leave_out}."
    if unipc and solver == "lcm":
        return f"{option}: LCM cannot follow the schedule of UniPC, this model's own solver; {leave_out}."
    if shift == DYNAMIC and not family.shifts_by_size:
        return f"--shift dynamic: {family.title} has one shift for all sizes; give a number."
    return ""


def is_flow_unipc(name: str, config: Mapping[str, Any]) -> bool:
    """Whether a scheduler is UniPC on flow-matching sigmas, as Wan's is."""
    return name == "UniPCMultistepScheduler" and bool(config.get("use_flow_sigmas"))
