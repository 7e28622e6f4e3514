"""Peers that compute some steps whole and forecast the others: MeanCache, DPCache, L2P, Spectrum, cache-dit's masks.

None of them has a package for Flux in diffusers, so all are implemented here; each module says from what. What they
fit, and their further settings, come from prompts that are not compared.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

from h2gen.errors import CacheError
from h2gen.evaluation.builtin_prompts import TUNING
from h2gen.evaluation.peers.base import Peer, Value, version_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from h2gen.evaluation.peers.skipping import Forecaster, Target

Sigmas = Callable[[], Sequence[float]]

LEAST = 3
"""The minimum number of computed steps, if the image has that many."""


@dataclass(frozen=True)
class Scheduled(Peer):
    """A schedule of computed steps, and a forecast for the others.

    The value is the number of computed steps. The fields named in ``choices`` are the method's further settings.
    """

    knobs: ClassVar[tuple[str, ...]] = ("computed_steps",)
    paper: ClassVar[str]
    target: ClassVar[Target]

    @property
    def source(self) -> str:
        return f"h2gen, after {self.paper}"

    def values(self, steps: int) -> tuple[Value, ...]:
        return tuple((computed,) for computed in range(steps, min(LEAST, steps) - 1, -1))

    def settings(self, value: Value) -> dict[str, float | int]:
        return {**super().settings(value), **{name: getattr(self, name) for name in self.choices}}

    def label(self, value: Value) -> str:
        return f"{self.title}, {_computed(value)} steps computed"

    def share(self, value: Value, steps: int) -> float | None:
        return _computed(value) / steps

    @abstractmethod
    def schedule(self, computed: int, steps: int) -> tuple[int, ...]:
        """Which steps are computed, in order, from step 0.

        Raises:
            CacheError: the peer is not calibrated for this number of steps.
        """

    @abstractmethod
    def forecaster(self, schedule: Sequence[int], steps: int, sigmas: Sigmas) -> Callable[[], Forecaster]:
        """A factory of the forecasters, one per pass of an image.

        Args:
            schedule: the computed steps.
            steps: of an image.
            sigmas: returns those of the current image, one more than there are steps.
        """

    @contextmanager
    def _on(self, pipe: Any, value: Value, steps: int, passes: int) -> Iterator[None]:
        from h2gen.evaluation.peers.skipping import skipping

        schedule = self.schedule(_computed(value), steps)

        def sigmas() -> Sequence[float]:
            found: list[float] = pipe.scheduler.sigmas.tolist()
            return found

        skipped = frozenset(range(steps)) - frozenset(schedule)
        with skipping(pipe, skipped, self.forecaster(schedule, steps, sigmas), self.target):
            yield

    def _for_steps(self, table: NDArray[np.float64] | None, steps: int, ends: int = 0) -> NDArray[np.float64]:
        """The calibrated table, whose axis 1 has ``steps + ends`` entries; an error if it is for other steps."""
        if table is None or table.shape[1] != steps + ends:
            raise CacheError(f"{self.name} is not calibrated for {steps} steps; call its calibrated() first.")
        return table


def _computed(value: Value) -> int:
    assert isinstance(value, tuple)
    return value[0]


def _not_fitted(name: str, found: int, steps: int) -> CacheError:
    return CacheError(f"{name} could not be calibrated: a run took {found} steps instead of {steps}.")


def _mean_over_runs(
    name: str, pipe: Any, runs: Sequence[Callable[[], Any]], steps: int, measure: Callable[[Sequence[Any]], Any]
) -> Any:
    """The mean of what is measured on the velocities that the solver gets in each run, one float32 tensor per step."""
    from h2gen.evaluation.peers.skipping import solver_inputs

    total: Any = 0.0
    for run in runs:
        with solver_inputs(pipe) as velocities:
            run()
        if len(velocities) != steps:
            raise _not_fitted(name, len(velocities), steps)
        total = total + measure(velocities)
    return total / len(runs)


@dataclass(frozen=True)
class MeanCache(Scheduled):
    """MeanCache (arXiv 2601.19961): see ``meancache``. ``power`` suppresses peaks in the path's costs.

    With ``whole``, one velocity is estimated for all steps up to the next computed one, as in the paper; its authors'
    code makes a new estimate at each step.
    """

    power: float = 4
    whole: int = 1
    costs: NDArray[np.float64] | None = field(default=None, repr=False, compare=False)

    paper: ClassVar[str] = "arXiv 2601.19961"
    calibration: ClassVar[int] = len(TUNING)
    target: ClassVar[Target] = "output"
    choices: ClassVar[Mapping[str, Sequence[float]]] = {"whole": (1, 0), "power": (4, 1, 2, 3, 5)}

    def schedule(self, computed: int, steps: int) -> tuple[int, ...]:
        from h2gen.evaluation.peers.paths import cheapest_path, longest_gap

        costs = self._for_steps(self.costs, steps, ends=1).min(0) ** self.power
        return cheapest_path(costs, computed, longest_gap(steps))

    def forecaster(self, schedule: Sequence[int], steps: int, sigmas: Sigmas) -> Callable[[], Forecaster]:
        from h2gen.evaluation.peers.meancache import SPANS, MeanVelocity

        best = self._for_steps(self.costs, steps, ends=1).argmin(0)
        ends = [*schedule[1:], steps]
        spans = {step: SPANS[best[step, end]] for step, end in zip(schedule, ends, strict=True)}
        return lambda: MeanVelocity(sigmas(), schedule, spans, whole=bool(self.whole))

    def calibrated(self, pipe: Any, runs: Sequence[Callable[[], Any]], *, steps: int) -> Peer:
        from h2gen.evaluation.peers.meancache import edge_costs

        def costs(velocities: Sequence[Any]) -> Any:
            return edge_costs(velocities, pipe.scheduler.sigmas.tolist())

        return replace(self, costs=_mean_over_runs(self.name, pipe, runs, steps, costs))


@dataclass(frozen=True)
class DPCache(Scheduled):
    """DPCache (arXiv 2602.22654): see ``dpcache``. ``order`` is the Taylor expansion's; the paper's is 2.

    The first three steps are computed, as in the paper. The path is the exact optimum; the paper's recursion keeps one
    predecessor per step.
    """

    order: int = 2
    costs: NDArray[np.float64] | None = field(default=None, repr=False, compare=False)
    """``(orders, T, T, T + 1)``"""

    paper: ClassVar[str] = "arXiv 2602.22654"
    calibration: ClassVar[int] = len(TUNING)
    target: ClassVar[Target] = "features"
    choices: ClassVar[Mapping[str, Sequence[float]]] = {"order": (2, 1, 0)}

    def schedule(self, computed: int, steps: int) -> tuple[int, ...]:
        from h2gen.evaluation.peers.paths import cheapest_path_of_pairs, longest_gap

        costs = self._for_steps(self.costs, steps)[self.order]
        return cheapest_path_of_pairs(costs, computed, longest_gap(steps), first=LEAST)

    def forecaster(self, schedule: Sequence[int], steps: int, sigmas: Sigmas) -> Callable[[], Forecaster]:
        from h2gen.evaluation.peers.dpcache import Taylor

        return lambda: Taylor(self.order)

    def calibrated(self, pipe: Any, runs: Sequence[Callable[[], Any]], *, steps: int) -> Peer:
        import numpy as np

        from h2gen.evaluation.peers.dpcache import path_costs
        from h2gen.evaluation.peers.skipping import recorded

        orders = range(len(self.choices["order"]))
        tables = []
        for run in runs:
            for features in recorded(pipe, self.target, run):
                if len(features) != steps:
                    raise _not_fitted(self.name, len(features), steps)
                tables.append(np.stack([path_costs(features, order) for order in orders]))
        return replace(self, costs=np.mean(tables, axis=0))


@dataclass(frozen=True)
class LinearPredictor(Scheduled):
    """L2P (arXiv 2604.26365): see ``l2p``.

    ``ridge`` is the penalty on departing from the last output. With ``forecasts``, forecast outputs are combined too,
    as in its authors' code; without, only computed ones. The first ``first`` steps are computed, and the rest spread
    evenly; at 0 the authors' own steps are computed, or steps that begin like those.
    """

    ridge: float = 1e-3
    forecasts: int = 1
    first: int = 0
    inner: NDArray[np.float64] | None = field(default=None, repr=False, compare=False)

    paper: ClassVar[str] = "arXiv 2604.26365"
    calibration: ClassVar[int] = len(TUNING)
    target: ClassVar[Target] = "output"
    choices: ClassVar[Mapping[str, Sequence[float]]] = {
        "forecasts": (1, 0),
        "first": (0, 1, 3, 5),
        "ridge": (1e-3, 1e-1, 1e-5),
    }

    def schedule(self, computed: int, steps: int) -> tuple[int, ...]:
        from h2gen.evaluation.peers.l2p import PUBLISHED, START, spread

        if self.first:
            return spread(computed, steps, range(self.first))
        published = PUBLISHED.get(computed) if steps == 50 else None
        return published or spread(computed, steps, START)

    def forecaster(self, schedule: Sequence[int], steps: int, sigmas: Sigmas) -> Callable[[], Forecaster]:
        from h2gen.evaluation.peers.l2p import Linear, weights

        inner = self._for_steps(self.inner, steps)
        rows = {}
        for step in sorted(set(range(steps)) - set(schedule)):
            known = [before for before in range(step) if self.forecasts or before in schedule]
            rows[step] = known, weights(inner, known, step, self.ridge)
        return lambda: Linear(rows)

    def calibrated(self, pipe: Any, runs: Sequence[Callable[[], Any]], *, steps: int) -> Peer:
        from h2gen.evaluation.peers.l2p import products

        return replace(self, inner=_mean_over_runs(self.name, pipe, runs, steps, products))


@dataclass(frozen=True)
class Spectrum(Scheduled):
    """Spectrum (arXiv 2603.01623): see ``spectrum``.

    ``polynomials`` is their share of the forecast: 1 in the paper; its authors have since advised 0.5 to 1. Less is
    tried too, because it is closer on the bundled model.
    """

    polynomials: float = 1.0
    degree: int = 4
    ridge: float = 0.1
    warmup: int = 5

    paper: ClassVar[str] = "arXiv 2603.01623"
    target: ClassVar[Target] = "features"
    choices: ClassVar[Mapping[str, Sequence[float]]] = {
        "polynomials": (1.0, 0.5, 0.25),
        "warmup": (5, 3),
        "degree": (4, 3, 6),
        "ridge": (0.1, 0.01, 0.001),
    }

    def schedule(self, computed: int, steps: int) -> tuple[int, ...]:
        from h2gen.evaluation.peers.spectrum import schedule

        return schedule(computed, steps, self.warmup)

    def forecaster(self, schedule: Sequence[int], steps: int, sigmas: Sigmas) -> Callable[[], Forecaster]:
        from h2gen.evaluation.peers.spectrum import Chebyshev

        return lambda: Chebyshev(steps, self.degree, self.ridge, self.polynomials)


@dataclass(frozen=True)
class StepMasks(Scheduled):
    """The four masks of computed steps that cache-dit has for any number of steps.

    At the other steps cache-dit runs the first block and adds the last residual of all others, held or extrapolated
    along a line. Here the last layer's features are held or extrapolated (``order`` 1), which saves that block too.
    """

    order: int = 0

    package: ClassVar[str] = "cache-dit"
    target: ClassVar[Target] = "features"
    choices: ClassVar[Mapping[str, Sequence[float]]] = {"order": (0, 1)}

    @property
    def source(self) -> str:
        return f"{version_of('cache-dit')} steps_mask"

    def values(self, steps: int) -> tuple[Value, ...]:
        return tuple((computed,) for computed in sorted(self._masks(steps), reverse=True))

    def schedule(self, computed: int, steps: int) -> tuple[int, ...]:
        return self._masks(steps)[computed]

    def forecaster(self, schedule: Sequence[int], steps: int, sigmas: Sigmas) -> Callable[[], Forecaster]:
        from h2gen.evaluation.peers.dpcache import Taylor

        return lambda: Taylor(self.order)

    def _masks(self, steps: int) -> dict[int, tuple[int, ...]]:
        """The schedules, by number of computed steps: cache-dit's, and one with all steps."""
        from h2gen.evaluation.peers.dbcache import quiet

        found = {steps: tuple(range(steps))}
        with quiet():
            steps_mask = import_module("cache_dit").steps_mask
            for policy in ("slow", "medium", "fast", "ultra"):
                try:
                    mask = steps_mask(total_steps=steps, mask_policy=policy)
                except AssertionError as error:
                    raise CacheError(f"cache-dit has no masks for {steps} steps; leave {self.name} out.") from error
                schedule = tuple(step for step, computed in enumerate(mask) if computed)
                found.setdefault(len(schedule), schedule)
        return found
