"""The algorithm of the paper on one transformer: follow its trajectories, decide each stage, keep residuals, add them.

It knows nothing of hooks: they call it before and after the transformer's forward pass, and after a stage's first and
last block. Inference only: what is kept from one step is not meant to be differentiated through.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from h2gen.cache.config import CacheConfig
from h2gen.cache.gate import gate, is_guarded
from h2gen.cache.inputs import ContextName, Inputs, as_timestep
from h2gen.cache.layout import Pooling, layout_of
from h2gen.cache.outcome import Outcome
from h2gen.cache.plan import OUTCOMES, parts_in, plan_of, reuses
from h2gen.cache.rows import Rows, Streams, replaced, rows_of, some_of, whole_of
from h2gen.cache.samples import samples_within
from h2gen.cache.schedule import Schedule
from h2gen.cache.stages import Stage, stages_of
from h2gen.cache.state import Branch, Run
from h2gen.cache.step import FinishedStep, Step
from h2gen.cache.summary import pooling_kernel, relative_change, relative_changes, summarize
from h2gen.cache.tolerance import Bend
from h2gen.cache.trace import Trace
from h2gen.cache.velocity import curvatures, velocity_in, with_velocity
from h2gen.errors import CacheError

_GUARDED = Outcome.GUARDED, Outcome.GUARDED
_ROUNDED = 2**-7
"""How far a timestep may be off, relatively, that was rounded to bfloat16 and then divided by 1000 in it."""


class Engine:
    """The cache on one transformer: follows its trajectories, decides, keeps, adds."""

    def __init__(
        self,
        transformer: nn.Module,
        config: CacheConfig,
        schedule: Callable[[], Schedule | None] | None,
        trace: Trace,
    ) -> None:
        self.config, self.trace = config, trace
        self.stages = stages_of(transformer)
        self.blocks_total = sum(len(stage.blocks) for stage in self.stages)
        self._skipping = "S" in config.plan if config.plan else config.tolerance > 0
        self._wanted = {stage.name for stage in self.stages if self._may_reuse(stage)}
        self.hooked = [stage for stage in self.stages if self._skipping or stage.name in self._wanted]
        self.context = ContextName()
        self.step: Step | None = None
        self._schedule = schedule
        self._measuring = config.tolerance > 0 and not config.plan
        self._timed = bool(config.plan or config.forecast)
        self._run: Run | None = None
        self._runs = 0
        self._warned: set[str] = set()
        self._names = list(inspect.signature(type(transformer).forward).parameters)[1:]

    def _sigma(self, step: Step) -> float:
        """Where on the schedule a step is, for those policies that care; the paper does not ask the device."""
        return step.sigma if self._timed else 0.0

    def _may_reuse(self, stage: Stage) -> bool:
        """Whether the stage's residual may ever be wanted: the detail's is after a structure hit too."""
        if self.config.plan:
            return reuses(self.config.plan, stage.name)
        return self.config.tau1 > 0 or self.tau(stage) > 0

    def tau(self, stage: Stage) -> float:
        return self.config.tau1 if stage.name == "structure" else self.config.tau2

    # The transformer's forward pass begins and ends.

    def begin(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.step is not None:  # the pass before this one never ended: what it kept is half of a step
            self.forget()
        inputs = Inputs({**dict(zip(self._names, args, strict=False)), **kwargs})
        branch = None if self._run is None else self._run.branch(inputs.ids, self.context.name)
        if self._timed and not self._is_scheduled(branch):
            inputs.read_timestep()  # now, while nothing of this pass is queued, rather than in its midst
        if branch is None or self._went_back(branch, inputs.timestep):
            branch = self._new_run(inputs)
        branch.fit(inputs.signature, inputs.pictures)
        assert self._run is not None
        timestep = self._timestep(inputs, branch)
        errors: list[float | None] = [None] * inputs.pictures
        if self.config.plan:
            outcomes = [OUTCOMES[self._planned(self._run, branch)]] * inputs.pictures
        else:
            errors = self._look_ahead(self._run, branch)
            outcomes = [self._unseen(self._run, branch, row) for row in range(inputs.pictures)]
            if not inputs.separable and len({*outcomes}) > 1:
                outcomes = [OUTCOMES["F"]] * inputs.pictures
        self.trace.flush()
        self.step = Step(self._run, branch, inputs, outcomes, timestep, errors)

    @torch.no_grad()
    def end(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        """The transformer's output: its own, or the forecast where the step was skipped."""
        step, self.step = self.step, None
        if step is None:
            return output
        branch, (structure, detail) = step.branch, (step.ran(stage.name) for stage in self.stages)
        full, skipped = structure & detail, {*range(step.pictures)} - {*step.present}
        if self._skipping and (self.config.plan or step.run.schedule is not None):
            # With the detail reused as it was, the velocity is worse than the line through full ones (1 to 2 dB on the
            # bundled model); with the detail forecast it is better (0.5 dB). With the structure reused it never is.
            output = self._velocities(step, output, skipped, structure if self.config.forecast else full)
        step.watch.stop()
        branch.step += 1
        told = step.inputs.timestep if isinstance(step.inputs.timestep, float) else step.timestep
        if isinstance(told, float):
            branch.timestep = told
        computed = list(zip(self.stages, (structure, detail), strict=True))
        for row in range(step.pictures):
            branch.since_full[row] = 0 if row in full else branch.since_full[row] + 1
            ran = [len(stage.blocks) if row in rows else 1 for stage, rows in computed]
            self.trace.add(FinishedStep(step, row, 0 if row in skipped else sum(ran), self.blocks_total))
        return output

    def _velocities(self, step: Step, output: Any, skipped: set[int], fresh: set[int]) -> Any:
        """The output with the velocities of skipped steps, and with those that make good for them."""
        velocity, parts = velocity_in(output), []
        for row in sorted(skipped | fresh):
            kept = step.branch.velocities[row]
            if row in skipped:
                parts.append(([row], kept.forecast(step.sigma, step.interval)))
                continue
            own = rows_of(velocity, [row])
            handed_on = kept.keep(own, step.sigma, step.interval)
            if handed_on is not own:
                parts.append(([row], handed_on))
        return with_velocity(output, replaced(velocity, *parts)) if parts else output

    def forget(self) -> None:
        """Drop all that is kept."""
        self.step = self._run = None

    def _over(self, run: Run) -> None:
        if run is self._run:
            self.forget()

    def _new_run(self, inputs: Inputs) -> Branch:
        schedule = None if self._schedule is None else self._schedule()
        self._run = Run(self._runs, schedule, self._over, self.config.forecast, self._measuring)
        self._runs += 1
        branch = self._run.branch(inputs.ids, self.context.name)
        assert branch is not None
        return branch

    def _planned(self, run: Run, branch: Branch) -> str:
        """The plan's letter for the step that begins.

        Raises:
            CacheError: the plan is for another number of steps.
        """
        plan, parts = plan_of(self.config.plan, branch.turn), parts_in(self.config.plan)
        if (branch.step == 0 and run.steps_total not in (None, len(plan))) or branch.step >= len(plan):
            self.forget()
            steps = "more" if run.steps_total is None else run.steps_total
            raise CacheError(
                f"The plan is for {len(plan)} steps, and this run has {steps}; give a letter for each step."
            )
        if branch.step == 1 and len(run.branches) < parts:
            self.forget()
            raise CacheError(
                f"The plan has a part for each of {parts} passes, and this run's steps have {len(run.branches)}; "
                "give one part a pass, or one for all."
            )
        letter = plan[branch.step]
        wants: dict[str, Sequence[Any]] = {
            "D": (branch.detail.residuals,),
            "C": (branch.structure.residuals,),
            "R": (branch.structure.residuals, branch.detail.residuals),
            "S": branch.velocities,
        }
        if not all(wants.get(letter, ())):
            self._warn_once(
                "H2-Cache: the inputs changed their shape in mid-run, so that there is nothing to reuse where the plan "
                "wants it; such steps are computed in full."
            )
            return "F"
        return letter

    def _unseen(self, run: Run, branch: Branch, row: int) -> tuple[Outcome, Outcome]:
        """What is known of a picture's step before anything is measured: as far as nothing is, it is computed."""
        velocities = branch.velocities[row]
        if row in run.skipped and velocities:
            return OUTCOMES["S"]
        # What makes good for skipped steps is computed in full: their error was foretold for that.
        owing = velocities.owing and (self.config.tau1 > 0 or self.config.tau2 > 0)
        if owing or is_guarded(self.config, branch.step, run.steps_total, branch.since_full[row]):
            return _GUARDED
        return OUTCOMES["F"]

    def _look_ahead(self, run: Run, branch: Branch) -> list[float | None]:
        """How far each picture would be off if the step that begins were skipped; None where nobody knows.

        All passes of true guidance skip the same steps: what they are off by is then alike, and guidance, which
        multiplies their difference, does not multiply their errors. So the first pass of a step decides for all, by
        the largest of their errors.
        """
        count = len(branch.velocities)
        if not self.config.tolerance or run.schedule is None:
            run.skipped.clear()
            return [None] * count
        sigmas = run.schedule.sigmas
        if branch.turn == 0:
            passes = [each for each in run.branches if len(each.velocities) == count]
            seen: dict[int, list[float]] = {}
            known = curvatures([velocities for each in passes for velocities in each.velocities])
            for place, curvature in known.items():  # read with one synchronisation
                seen.setdefault(place % count, []).append(curvature if math.isfinite(curvature) else math.inf)
            for row, found in seen.items():
                before = branch.velocities[row].gap if run.schedule.intervals is None else None
                run.bends[row] = Bend(sigmas[branch.step - 1], max(found), before)
        errors: list[float | None] = [None] * count
        if branch.step + 1 < len(sigmas):  # the last step makes good for all that was skipped
            errors = [
                run.bends[row].displacement(sigmas[branch.step + 1]) if row in run.bends else None
                for row in range(count)
            ]
        if branch.turn == 0:
            run.skipped = {
                row
                for row, error in enumerate(errors)
                if error is not None
                and error <= self.config.tolerance
                and all(len(each.velocities[row]) > 1 for each in passes)
                and not any(
                    is_guarded(self.config, branch.step, run.steps_total, each.since_full[row]) for each in passes
                )
            }
        return errors

    def _is_scheduled(self, branch: Branch | None) -> bool:
        """Whether the schedule tells the time of the step that begins; it is not believed before its first step."""
        known = None if self._run is None else self._run.schedule
        return branch is not None and known is not None and 0 < branch.step < len(known)

    def _timestep(self, inputs: Inputs, branch: Branch) -> float | torch.Tensor:
        """The timestep, 0 to 1000: the schedule's own where it is known, for the model's is rounded to its dtype."""
        assert self._run is not None
        if self._run.schedule is None:
            return inputs.timestep
        known = self._run.schedule.timesteps
        if branch.step == 0:  # a look at each run's first step, so that the schedule of another call is not believed
            inputs.read_timestep()
        expected = known[branch.step] if branch.step < len(known) else math.nan
        told = inputs.timestep if isinstance(inputs.timestep, float) else expected
        if not math.isclose(told, expected, rel_tol=_ROUNDED):
            self._run.schedule = None
            for name in ("final_steps", "tolerance"):
                if getattr(self.config, name):
                    self._warn_once(
                        f"H2-Cache: {name} has no effect here, since the steps are not those of the pipeline that the "
                        "cache was applied to."
                    )
            return inputs.timestep
        return expected

    def _went_back(self, branch: Branch, timestep: float | torch.Tensor) -> bool:
        """A timestep above the last one: a loop that reuses its inputs' objects has begun again."""
        return isinstance(timestep, float) and branch.timestep is not None and timestep > branch.timestep

    # A stage's first block has run, and its last.

    @property
    def pictures(self) -> int:
        """In the batch."""
        return 1 if self.step is None else self.step.pictures

    def rows(self, *, first: bool) -> Rows | None:
        """The pictures of the batch that a stage's first block, or the next one after it, runs for; None for all."""
        if self.step is None:
            return None
        rows = self.step.present if first else self.step.running
        return None if len(rows) == self.step.pictures else rows

    def skips(self, stage: Stage, *, first: bool = False) -> bool:
        """Whether the stage's first block, or the blocks after it, are to be passed by in this step."""
        return self.step is not None and (self.step.skipped or not (first or self.step.ran(stage.name)))

    def after_first(self, stage: Stage, whole: Streams, before: Streams, after: Streams) -> Streams | None:
        """Decide the stage for each picture.

        Args:
            whole: the streams before the block, of all pictures.
            before, after: the streams of those that the block ran for.

        Returns:
            The streams to go on with: as the last block would have left them where no picture needs the others, else
            those of the pictures that do; None where they are what the block returned.
        """
        step = self.step
        if step is None:
            return None
        self._decide(step, stage, before, after)
        ran, present = step.ran(stage.name), step.present
        hits, step.running = [row for row in present if row not in ran], [row for row in present if row in ran]
        parts: list[tuple[Rows, Streams]] = [(hits, self._reused(step, stage, hits, after))] if hits else []
        if not step.running:
            return whole_of(whole, parts)
        left = some_of(after, present, step.running)
        step.after_first = left if stage.name in self._wanted else ()
        step.whole, step.aside = (whole, parts) if len(step.running) < step.pictures else ((), [])
        return left if hits else None

    def _reused(self, step: Step, stage: Stage, hits: Rows, after: Streams) -> Streams:
        """The streams of the pictures whose residual is reused, as the last block would have left them."""
        after = some_of(after, step.present, hits)
        residual = step.branch.kept(stage).residuals.forecast(self._sigma(step), hits)
        untouched = len(after) - len(residual)
        return after[:untouched] + tuple(x + r for x, r in zip(after[untouched:], residual, strict=True))

    @torch.no_grad()
    def after_last(self, stage: Stage, after: Streams) -> Streams | None:
        """Keep the residual of the blocks after the first, which ran.

        Returns:
            The streams of all pictures; None where they are what the block returned.
        """
        step = self.step
        if step is None:
            return None
        if stage.name in self._wanted:
            self._keep(step, stage, step.after_first, after)
        if len(step.running) == step.pictures:
            return None
        merged = whole_of(step.whole, [*step.aside, (step.running, after)])
        step.whole, step.aside = (), []
        return merged

    def _keep(self, step: Step, stage: Stage, first: Streams, last: Streams) -> None:
        if stage.name == "detail":  # the model drops the text stream here, so it need not be kept
            first, last = first[-1:], last[-1:]
        residual = [y - x for x, y in zip(first, last, strict=True)]
        # The model itself adds ControlNet's samples after each block, skipped or not: they are no part of the residual.
        for sample in samples_within(step.inputs, stage):
            residual[-1] = residual[-1] - sample
        kept = step.branch.kept(stage)
        kept.residuals.keep(tuple(residual), self._sigma(step), step.running)
        for row in step.running:
            kept.steps[row] = step.index
        step.after_first = ()

    def _decide(self, step: Step, stage: Stage, before: Streams, after: Streams) -> None:
        """What becomes of the stage, for each picture that is present."""
        if self.config.plan:
            return
        config, kept, tau = self.config, step.branch.kept(stage), self.tau(stage)
        outcomes = step.outcomes[stage.name]
        if stage.name == "detail" and kept.residuals:
            for row in step.present:
                if 0 < config.max_detail_age < step.index - kept.steps[row]:
                    outcomes[row] = Outcome.GUARDED
                elif not step.outcomes["structure"][row].ran and config.hierarchy == "forced":
                    outcomes[row] = Outcome.FORCED
        looked = [row for row in step.present if outcomes[row].ran]
        if tau == 0 or not looked:
            return
        indicator, spent = self._indicator(step, stage, before, after), [0.0] * step.pictures
        asked = [row for row in looked if outcomes[row] is Outcome.COMPUTED]
        if asked and kept.indicator is not None and kept.residuals:
            changes = self._changes(step, kept.indicator, indicator, asked)
            if self._begun_again(step):
                kept, asked = step.branch.kept(stage), []
            for row, change in zip(asked, changes, strict=False):
                spent[row] = step.changes[stage.name][row] = kept.spent[row] + change
                outcomes[row] = gate(spent[row], tau)
                if not math.isfinite(change):
                    self._warn_once("H2-Cache: a change is not finite; such steps are computed in full.")
        if not step.inputs.separable and step.ran(stage.name):
            outcomes[:] = [outcome if outcome.ran else Outcome.COMPUTED for outcome in outcomes]
        moved = [row for row in looked if outcomes[row].ran or config.budget]
        if moved:
            (part,) = some_of((indicator,), step.present, moved)
            kept.indicator = part if kept.indicator is None else replaced(kept.indicator, (moved, part))
        for row in moved:
            kept.spent[row] = 0.0 if outcomes[row].ran else spent[row]

    def _changes(self, step: Step, old: torch.Tensor, new: torch.Tensor, asked: Rows) -> list[float]:
        """The change of each picture that is asked for, or where they cannot be parted one for all: one
        synchronisation."""
        old, (new,) = rows_of(old, asked), some_of((new,), step.present, asked)
        if step.inputs.separable:
            changes: list[float] = relative_changes(old, new).tolist()
            return changes
        return [relative_change(old, new).item()] * len(asked)

    @torch.no_grad()
    def _indicator(self, step: Step, stage: Stage, before: Streams, after: Streams) -> torch.Tensor:
        if stage.name == "structure":  # the image stream alone
            before, after = before[-1:], after[-1:]
        tokens = sum(x.shape[1] for x in after)
        residual = after[0].new_empty(after[0].shape[0], tokens, after[0].shape[2])
        start = 0
        for x, y in zip(before, after, strict=True):
            torch.sub(y, x, out=residual[:, start : start + x.shape[1]])
            start += x.shape[1]
        if self.config.pfs == "paper":
            return summarize(residual, pooling_kernel(tokens, stage.divisor))
        poolings = step.branch.poolings
        if stage.name not in poolings:
            text = 0 if stage.name == "structure" else step.inputs.text_tokens
            poolings[stage.name] = Pooling(layout_of(step.inputs.ids.img_ids, tokens - text, text), residual)
        return poolings[stage.name](residual)

    def _begun_again(self, step: Step) -> bool:
        """Catch on an accelerator, where the timestep is known only now, what ``begin`` catches on the CPU."""
        if isinstance(step.inputs.timestep, float):
            return False
        timestep = step.inputs.timestep = as_timestep(step.inputs.timestep)
        if step.run.schedule is not None:
            return False
        step.timestep = timestep
        if not self._went_back(step.branch, timestep):
            return False
        step.branch = self._new_run(step.inputs)
        assert self._run is not None
        step.branch.fit(step.inputs.signature, step.inputs.pictures)
        step.run, step.index = self._run, 0
        return True

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, RuntimeWarning, stacklevel=2)
