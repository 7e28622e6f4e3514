"""``--speedup`` and ``--fidelity``: settings chosen from a profile, and what to expect of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from h2gen.cache.config import CacheConfig
from h2gen.errors import SettingError
from h2gen.models.choices import SOLVERS
from h2gen.models.identity import content_hash
from h2gen.profiles import FEWEST_STEPS, Choice, Profile, Situation, find_profile
from h2gen.run.metadata import model_name
from h2gen.run.plan import Layers, Plan, plan_from
from h2gen.run.settings import OFF, Resolved


@dataclass(frozen=True)
class Wish:
    """What the user wants: so many times as fast, or so close to the uncached picture (SSIM); and whether the nearest
    profile will do."""

    speedup: float | None = None
    fidelity: float | None = None
    nearest: bool = False

    def __bool__(self) -> bool:
        return self.speedup is not None or self.fidelity is not None


def situation_of(plan: Plan, content_hash: str = "") -> Situation:
    """What a plan's pictures are made in."""
    settings = plan.settings
    return Situation(
        model_name(plan.checkpoint),
        content_hash,
        settings.steps,
        settings.width,
        settings.height,
        "true" if settings.cfg > 1 else "plain",
    )


def chosen_plan(prompt: str, layers: Layers, wish: Wish) -> Plan:
    """A plan like ``plan_from``'s, its steps, solver and cache taken from the profile that fits it.

    The steps that the user gives, or the model's own, are those of the picture that it is to be as fast as or close to.

    Raises:
        SettingError: the wish contradicts itself or an option, or is more than any choice gives.
        ProfileError: there is no profile that fits.
        UsageError: as ``plan_from``.
    """
    if not wish:
        if wish.nearest:
            raise SettingError("--nearest says which profile to use; give --speedup or --fidelity too.")
        return plan_from(prompt, layers)
    if wish.speedup is not None and wish.fidelity is not None:
        raise SettingError("--speedup and --fidelity contradict each other; give one.")
    name = "speedup" if wish.speedup is not None else "fidelity"
    for option in ("preset", "solver", "no_cache", *asdict(CacheConfig())):
        if any(values.get(option) not in (None, False) for source, values in layers if source in ("option", "trace")):
            option = option.replace("_", "-")
            raise SettingError(f"--{name} chooses solver and cache itself; leave out --{option}, or --{name}.")
    layers = [(source, {**values, "solver": None}) for source, values in layers]
    base = plan_from(prompt, layers)
    wanted = situation_of(base)
    if wanted.steps < FEWEST_STEPS:
        raise SettingError(
            f"{wanted.model!r} takes {wanted.steps} steps here, and a cache cannot help below {FEWEST_STEPS}; what is "
            f"faster is fewer --steps. Leave out --{name}."
        )
    profile, notices = find_profile(wanted, lambda: content_hash(base.checkpoint), command_for(base), wish.nearest)
    choice = _pick(profile, wish)
    if choice is None:
        best = max(profile.choices, key=lambda each: each.figures.ssim_mean)
        words = (
            f"No choice of the profile is as close as {wish.fidelity:g} (the closest: {best.figures.ssim_mean:.4f}); "
            "making the uncached picture."
        )
        values: dict[str, Any] = asdict(OFF)
    else:
        words = expectation(choice, profile)
        values = {"steps": choice.steps, "solver": choice.solver, **asdict(choice.cache)}
    made = plan_from(prompt, [("profile", values), *layers])
    resolved: dict[str, Resolved] = {key: value for key, value in made.resolved.items() if key != "preset"}
    return replace(made, resolved=resolved, notices=(*made.notices, *notices, words))


def _pick(profile: Profile, wish: Wish) -> Choice | None:
    if wish.speedup is not None:
        return profile.for_speedup(wish.speedup)
    assert wish.fidelity is not None
    return profile.for_fidelity(wish.fidelity)


def expectation(choice: Choice, profile: Profile) -> str:
    """What was chosen, and what to expect of it, in a line."""
    figures, steps = choice.figures, profile.situation.steps
    what = choice.label
    if not choice.cache.enabled:
        solver = "" if choice.solver == "own" else f" of {SOLVERS[choice.solver]}"
        what = f"{choice.steps} steps{solver} and no cache, which is closer here than any cache of that speed"
    count = f" over {profile.pictures} pictures" if profile.pictures else ""
    return (
        f"Chosen: {what}. Expect about {figures.speedup:.1f} times the speed of {steps} steps "
        f"({figures.share:.0%} of the blocks), and an SSIM of {figures.ssim_mean:.3f} to their picture "
        f"({figures.ssim_worst:.3f} at worst{count})."
    )


def command_for(plan: Plan) -> str:
    """What would make a profile for a plan."""
    settings, defaults = plan.settings, plan.checkpoint.defaults
    words = [f"h2gen tune --model {plan.checkpoint.name}"]
    if settings.steps != defaults.steps:
        words.append(f"--steps {settings.steps}")
    if (settings.width, settings.height) != (defaults.width, defaults.height):
        words.append(f"--size {settings.width}x{settings.height}")
    if settings.cfg != defaults.cfg:
        words.append(f"--cfg {settings.cfg:g}")
    return " ".join(words)
