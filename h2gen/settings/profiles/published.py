"""Plans that others have published, for a model that has no profile yet; not measured with h2gen."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from h2gen.cache.config import CacheConfig
from h2gen.errors import ProfileError
from h2gen.families import FAMILIES
from h2gen.models.catalogue import CATALOGUE, Checkpoint
from h2gen.models.hub import transformer_config
from h2gen.models.translate_errors import translated
from h2gen.settings.profiles.find import how_long
from h2gen.settings.profiles.profile import ProfileKey, stretched
from h2gen.settings.table import BY_NAME
from h2gen.toml import read_toml
from h2gen.wording import listed

WORDS = "published, not measured with h2gen"
"""What messages say about these plans."""
FILE = Path(__file__).with_name("published_plans.toml")
"""The plans that ship with h2gen; ``tools/choose_published.py`` chooses and writes them."""


@dataclass(frozen=True)
class PublishedPlan:
    """A plan that others have published, with its origin.

    Args:
        plan: one letter per step: F computed, S skipped.
        method: the method that found it.
        paper: the method's paper; empty if there is none.
        made_for: the model that it was found for, or two with "and" between them.
        size: the size that it was found at, such as ``1024x1024``; empty if its authors do not say.
        source: where it is published.
        licence: of the source.
        cfg: the scale of true guidance that it was found at; 0 if there was none, or its authors do not say.
        frames: of the videos that it was found for; 0 for pictures.
        made_steps: the number of steps that it was published for, if it was stretched to another; otherwise 0.
    """

    plan: str
    method: str
    paper: str
    made_for: str
    size: str
    source: str
    licence: str
    cfg: float = 0.0
    frames: int = 0
    made_steps: int = 0

    @property
    def steps(self) -> int:
        return len(self.plan)

    @property
    def computed(self) -> int:
        """The number of steps that are not skipped."""
        return self.plan.count("F")

    @property
    def estimated_speedup(self) -> float:
        """Steps per computed step. An estimate: text encoders, autoencoder and forecasts take time too."""
        return self.steps / self.computed

    @property
    def cache(self) -> CacheConfig:
        return CacheConfig(0.0, 0.0, plan=self.plan)

    @property
    def words(self) -> str:
        """Its origin and what it does, as a picture records them."""
        return f"from {self._by}, {self._does}; {WORDS}; {self._origin}"

    @property
    def _by(self) -> str:
        return f"{self.method} ({self.paper})" if self.paper else self.method

    @property
    def _does(self) -> str:
        return f"{self.computed} of {self.steps} steps computed, an estimated {rounded_down(self.estimated_speedup)}"

    @property
    def _origin(self) -> str:
        found = f"for {self.made_for} at {self.made_steps or self.steps} steps"
        at = (self.size, f"true guidance {self.cfg:g}" * bool(self.cfg), f"{self.frames} frames" * bool(self.frames))
        return ", ".join((f"{self.source} ({self.licence})", found, *filter(None, at)))

    @property
    def models(self) -> Sequence[str]:
        """The models that it was found for."""
        return self.made_for.split(" and ")

    def expectation(self, key: ProfileKey, command: str) -> str:
        """One line about the plan, its origin, and the conditions that it was made for.

        Args:
            key: of the pictures that it is used for.
            command: the command that makes a profile for them.
        """
        line = f"Using a plan from {self._by}: {self._does}. It is {WORDS}: {self._origin}."
        other_size = bool(self.size) and self.size != f"{key.width}x{key.height}"
        other_frames = bool(self.frames) and self.frames != key.frames
        if self.made_steps or other_size or other_frames or _name_of(key.model) not in self.models:
            line += f" Here it is used for {key}{', stretched to these steps' if self.made_steps else ''}."
        return f"{line} To measure a profile of your own: {command}"


def rounded_down(speedup: float) -> str:
    """A speed-up with one decimal, rounded down so that ``--speedup`` can ask for it: ``3.8x``."""
    return f"{math.floor(speedup * 10) / 10:.1f}x"


def read_plans(path: Path = FILE) -> list[PublishedPlan]:
    """The plans in a file.

    Raises:
        ValueError: it cannot be read.
        TypeError: a plan lacks a key, or has an unknown one.
    """
    return [PublishedPlan(**row) for row in read_toml(path)["plans"]]


@cache
def shipped_plans() -> Sequence[PublishedPlan]:
    """The plans that ship with h2gen, those for the most steps first, then those with the most computed ones."""
    return sorted(read_plans(), key=lambda plan: (-plan.steps, -plan.computed))


@dataclass(frozen=True)
class PublishedPlans:
    """The plans for a model that has no profile, the slowest first.

    Args:
        key: of the pictures.
        plans: for its number of steps, stretched if none was published for it.
        command: the command that makes a profile.
    """

    key: ProfileKey
    plans: Sequence[PublishedPlan]
    command: str

    def for_speedup(self, speedup: float) -> PublishedPlan:
        """The plan with the most computed steps among those with at least this estimated speed-up.

        Raises:
            SettingError: it is not above 1.
            ProfileError: no plan is that fast.
        """
        BY_NAME["speedup"].check(speedup)
        enough = [plan for plan in self.plans if plan.estimated_speedup >= speedup]
        if enough:
            return max(enough, key=lambda plan: plan.computed)
        fastest = max(self.plans, key=lambda plan: plan.estimated_speedup)
        raise ProfileError(
            f"speedup is {speedup:g}, faster than the plans for {self.key} allow, which are {WORDS}: the maximum is an "
            f"estimated {rounded_down(fastest.estimated_speedup)} ({fastest.computed} of {fastest.steps} steps "
            "computed); give that or less, or fewer --steps."
        )

    def no_fidelity(self) -> ProfileError:
        """The error for a goal that is a fidelity."""
        return ProfileError(
            f"--fidelity needs measured figures, and the plans for {self.key} are {WORDS}; give --speedup, or measure: "
            f"{self.command} ({how_long(self.key.noun)})."
        )


def published_for(checkpoint: Checkpoint, key: ProfileKey, command: str) -> PublishedPlans | None:
    """The plans for a model; None if they were found for a model of another kind, or true guidance is on.

    Args:
        checkpoint: the model. A repository's configuration is downloaded if it is missing.
        key: of the pictures.
        command: the command that makes a profile for them.

    Raises:
        ModelError: the configuration is needed, and cannot be downloaded.
    """
    guided = (key.guidance_mode == "true") == (checkpoint.defaults.cfg > 1)  # as they were found
    if not guided or key.shift != "own" or not (model := published_model(checkpoint)):
        return None
    shipped = plans_for(model)
    nearest = min({plan.steps for plan in shipped}, key=lambda steps: abs(math.log(steps / key.steps)))
    plans = [_fitted(plan, key.steps) for plan in shipped if plan.steps == nearest]
    return PublishedPlans(key, plans, command)


def plans_for(model: str) -> Sequence[PublishedPlan]:
    """The shipped plans that were found for a model, such as ``FLUX.1-dev``; in the order of ``shipped_plans``."""
    return [plan for plan in shipped_plans() if model in plan.models]


def published_model(checkpoint: Checkpoint) -> str:
    """The model whose published plans a checkpoint can use: itself, or one that it was made from; empty if none.

    Raises:
        ModelError: its configuration is needed, and cannot be downloaded.
    """
    whole = checkpoint.base or checkpoint  # a file that differs from its base is refused when it is loaded
    if whole.kind == "hub":
        known = [entry for entry in CATALOGUE.values() if entry.repo == whole.location]
        if known:
            return known[0].of_family.published(known[0].config, known[0].index)
        with translated(whole):
            file = transformer_config(str(whole.location))
    else:
        file = Path(whole.location) / "transformer" / "config.json"
    config = _read(file)
    index = _read(file.parents[1] / "model_index.json")
    family = FAMILIES.get(str(config.get("_class_name")))
    return "" if family is None else family.published(config, index)


def models_with_plans() -> Sequence[str]:
    """The models of the catalogue that they apply to."""
    return [name for name, entry in CATALOGUE.items() if entry.of_family.published(entry.config, entry.index)]


def summary_lines(model: str) -> Iterator[str]:
    """The shipped plans for a model, one line per number of steps, such as ``50 steps: 21 or 13 computed, ...``."""
    for steps in dict.fromkeys(plan.steps for plan in plans_for(model)):
        plans = [plan for plan in plans_for(model) if plan.steps == steps]
        computed, speeds = (
            listed(words, "or")
            for words in zip(*((str(p.computed), rounded_down(p.estimated_speedup)) for p in plans), strict=True)
        )
        yield f"{steps} steps: {computed} computed, an estimated {speeds}"


def _fitted(plan: PublishedPlan, steps: int) -> PublishedPlan:
    if steps == plan.steps:
        return plan
    return replace(plan, plan=stretched(plan.plan, steps), made_steps=plan.steps)


def _name_of(model: str) -> str:
    """The name of an alias's or a repository's model, as its makers write it."""
    repo = CATALOGUE[model].repo if model in CATALOGUE else model
    return (repo or "").rpartition("/")[2].removesuffix("-Diffusers")


def _read(file: Path) -> Mapping[str, Any]:
    """A JSON object, or an empty one: loading the model reports what is wrong with the file."""
    try:
        data = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
