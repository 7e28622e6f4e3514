"""Plans that others have published for FLUX.1 [dev], for a model that has no profile yet; not measured with h2gen."""

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
from h2gen.families.flux1 import Flux1, paints_as_dev
from h2gen.models.catalogue import CATALOGUE, Checkpoint
from h2gen.models.hub import transformer_config
from h2gen.models.translate_errors import translated
from h2gen.settings.profiles.find import HOW_LONG
from h2gen.settings.profiles.profile import ProfileKey, stretched
from h2gen.settings.table import BY_NAME
from h2gen.toml import read_toml

WORDS = "published, not measured with h2gen"
"""What messages say about these plans."""
MODELS = ("dev", "krea")
"""The models of the catalogue that they apply to: FLUX.1 [dev] and its relatives, with guidance distilled into them."""
FILE = Path(__file__).with_name("published_plans.toml")
"""The plans that ship with h2gen; ``tools/choose_published.py`` chooses and writes them."""


@dataclass(frozen=True)
class PublishedPlan:
    """A plan that others have published, with its origin.

    Args:
        plan: one letter per step: F computed, S skipped.
        method: the method that found it.
        paper: the method's paper; empty if there is none.
        made_for: the model that it was found for.
        size: the size that it was found at, such as ``1024x1024``; empty if its authors do not say.
        source: where it is published.
        licence: of the source.
        made_steps: the number of steps that it was published for, if it was stretched to another; otherwise 0.
    """

    plan: str
    method: str
    paper: str
    made_for: str
    size: str
    source: str
    licence: str
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
        size = f", {self.size}" if self.size else ""
        return f"{self.source} ({self.licence}), for {self.made_for} at {self.made_steps or self.steps} steps{size}"

    def expectation(self, key: ProfileKey, command: str) -> str:
        """One line about the plan, its origin, and the conditions that it was made for.

        Args:
            key: of the pictures that it is used for.
            command: the command that makes a profile for them.
        """
        line = f"Using a plan from {self._by}: {self._does}. It is {WORDS}: {self._origin}."
        other_size = bool(self.size) and self.size != f"{key.width}x{key.height}"
        if self.made_steps or other_size or not _is_dev_itself(key.model):
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
            f"{self.command} ({HOW_LONG})."
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
    if key.guidance_mode == "true" or key.shift != "own" or not is_relative(checkpoint):
        return None
    nearest = min({plan.steps for plan in shipped_plans()}, key=lambda steps: abs(math.log(steps / key.steps)))
    plans = [_fitted(plan, key.steps) for plan in shipped_plans() if plan.steps == nearest]
    return PublishedPlans(key, plans, command)


def is_relative(checkpoint: Checkpoint) -> bool:
    """Whether a model is FLUX.1 [dev] or has its architecture, with guidance distilled into it."""
    whole = checkpoint.base or checkpoint  # a file that differs from its base is refused when it is loaded
    if whole.kind == "hub":
        known = [entry.name for entry in CATALOGUE.values() if entry.repo == whole.location]
        if known:
            return known[0] in MODELS
        with translated(whole):
            file = transformer_config(str(whole.location))
    else:
        file = Path(whole.location) / "transformer" / "config.json"
    config = _read(file)
    index = _read(file.parents[1] / "model_index.json")
    return config.get("_class_name") == Flux1.transformer and paints_as_dev(config, index)


def summary_lines() -> Iterator[str]:
    """The shipped plans, one line per number of steps: ``50 steps: 21, 13 or 9 computed, ...``."""
    for steps in dict.fromkeys(plan.steps for plan in shipped_plans()):
        plans = [plan for plan in shipped_plans() if plan.steps == steps]
        computed, speeds = (
            ", ".join(words)
            for words in zip(*((str(p.computed), rounded_down(p.estimated_speedup)) for p in plans), strict=True)
        )
        yield f"{steps} steps: {computed} computed, an estimated {speeds}"


def _fitted(plan: PublishedPlan, steps: int) -> PublishedPlan:
    if steps == plan.steps:
        return plan
    return replace(plan, plan=stretched(plan.plan, steps), made_steps=plan.steps)


def _is_dev_itself(model: str) -> bool:
    return model in ("dev", CATALOGUE["dev"].repo)


def _read(file: Path) -> Mapping[str, Any]:
    """A JSON object, or an empty one: loading the model reports what is wrong with the file."""
    try:
        data = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
