"""The algorithm of the paper on one transformer: follow its trajectories, decide each stage, keep residuals, add them.

It knows nothing of hooks: they call it before and after the transformer's forward pass, and after a stage's first and
last block. Inference only: what is kept from one step is not meant to be differentiated through.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from h2gen.cache.config import CacheConfig
from h2gen.cache.gate import gate, is_guarded
from h2gen.cache.inputs import ContextName, Inputs, as_timestep
from h2gen.cache.layout import Pooling, layout_of
from h2gen.cache.outcome import Outcome
from h2gen.cache.plan import OUTCOMES, parts_in, plan_of
from h2gen.cache.schedule import Schedule
from h2gen.cache.stages import Stage, stages_of
from h2gen.cache.state import Branch, Run
from h2gen.cache.step import FinishedStep, Step, Streams
from h2gen.cache.summary import pooling_kernel, relative_change, summarize
from h2gen.cache.tolerance import next_computed
from h2gen.cache.trace import Trace
from h2gen.cache.velocity import velocity_in, with_velocity
from h2gen.errors import CacheError

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
        self._reused = {stage.name for stage in self.stages if self._may_reuse(stage)}
        self.hooked = [stage for stage in self.stages if self._skipping or stage.name in self._reused]
        self.context = ContextName()
        self.step: Step | None = None
        self._schedule = schedule
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
            return bool(_letters(stage) & {*self.config.plan})
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
        if branch.signature != inputs.signature:
            branch.forget()
            branch.signature = inputs.signature
        assert self._run is not None
        timestep = self._timestep(inputs, branch)
        settled = bool(self.config.plan)
        if settled:
            outcomes = OUTCOMES[self._planned(self._run, branch)]
        elif is_guarded(self.config, branch.step, self._run.steps_total, branch.since_full):
            outcomes = Outcome.GUARDED, Outcome.GUARDED
        elif self.config.tolerance and not self._is_due(self._run, branch):
            settled, outcomes = True, OUTCOMES["S"]
        else:
            outcomes = Outcome.COMPUTED, Outcome.COMPUTED
        self.trace.flush()
        self.step = Step(self._run, branch, inputs, outcomes, settled, timestep)

    @torch.no_grad()
    def end(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        """The transformer's output: its own, or the forecast where the step was skipped."""
        step, self.step = self.step, None
        if step is None:
            return output
        branch = step.branch
        ran = [step.outcomes[stage.name].ran for stage in self.stages]
        if step.skipped:
            output = with_velocity(output, branch.velocities.forecast(step.sigma, step.interval))
        elif self._skipping and (all(ran) or (ran[0] and self.config.forecast)):
            # With the detail reused as it was, the velocity is worse than the line through full ones (1 to 2 dB on the
            # bundled model); with the detail forecast it is better (0.5 dB). With the structure reused it never is.
            output = with_velocity(output, branch.velocities.keep(velocity_in(output), step.sigma, step.interval))
        step.watch.stop()
        blocks_run = 0
        if not step.skipped:
            blocks_run = sum(len(stage.blocks) if every else 1 for stage, every in zip(self.stages, ran, strict=True))
        branch.step += 1
        branch.since_full = 0 if all(ran) else branch.since_full + 1
        told = step.inputs.timestep if isinstance(step.inputs.timestep, float) else step.timestep
        if isinstance(told, float):
            branch.timestep = told
        self.trace.add(FinishedStep(step, blocks_run, self.blocks_total))
        return output

    def forget(self) -> None:
        """Drop all that is kept."""
        self.step = self._run = None

    def _over(self, run: Run) -> None:
        if run is self._run:
            self.forget()

    def _new_run(self, inputs: Inputs) -> Branch:
        schedule = None if self._schedule is None else self._schedule()
        self._run = Run(self._runs, schedule, self._over, self.config.forecast, self.config.tolerance > 0)
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
        wants = {
            "D": (branch.detail.residuals,),
            "C": (branch.structure.residuals,),
            "R": (branch.structure.residuals, branch.detail.residuals),
            "S": (branch.velocities,),
        }
        if not all(wants.get(letter, ())):
            self._warn_once(
                "H2-Cache: the inputs changed their shape in mid-run, so that there is nothing to reuse where the plan "
                "wants it; such steps are computed in full."
            )
            return "F"
        return letter

    def _is_due(self, run: Run, branch: Branch) -> bool:
        """Whether the step that begins is to be computed, by what the last computed one says of the way ahead.

        All passes of true guidance skip the same steps: what they are off by is then alike, and guidance, which
        multiplies their difference, does not multiply their errors.
        """
        if run.schedule is None or not branch.velocities:
            return True
        if branch.turn == 0:
            known = [each.velocities.curvature() for each in run.branches]  # the one synchronisation a computed pass
            curvatures = [curvature for curvature in known if curvature is not None]
            if curvatures:
                before = branch.velocities.gap if run.schedule.intervals is None else None
                sigmas, tolerance = run.schedule.sigmas, self.config.tolerance
                run.due = next_computed(branch.step - 1, sigmas, max(curvatures), tolerance, before)
        return branch.step >= run.due

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

    def after_first(self, stage: Stage, before: Streams, after: Streams) -> Streams | None:
        """Decide the stage. On a hit, the streams as its last block would have left them; on a miss, None."""
        step = self.step
        if step is None:
            return None
        outcome = step.outcomes[stage.name] = self._decide(step, stage, before, after)
        if outcome.ran:
            step.after_first = after if stage.name in self._reused else ()
            return None
        residual = step.branch.kept(stage).residuals.forecast(self._sigma(step))
        untouched = len(after) - len(residual)
        return after[:untouched] + tuple(x + r for x, r in zip(after[untouched:], residual, strict=True))

    def skips(self, stage: Stage, *, first: bool = False) -> bool:
        """Whether the stage's first block, or the blocks after it, are to be passed by in this step."""
        return self.step is not None and (self.step.skipped or not (first or self.step.outcomes[stage.name].ran))

    @torch.no_grad()
    def after_last(self, stage: Stage, after: Streams) -> None:
        """Keep the residual of the blocks after the first; the stage was computed."""
        step = self.step
        if step is None or stage.name not in self._reused:
            return
        first = step.after_first
        if stage.name == "detail":  # the model drops the text stream here, so it need not be kept
            first, after = first[-1:], after[-1:]
        residual = [y - x for x, y in zip(first, after, strict=True)]
        # The model itself adds ControlNet's samples after each block, skipped or not: they are no part of the residual.
        for sample in _samples_within(step.inputs, stage):
            residual[-1] = residual[-1] - sample
        kept = step.branch.kept(stage)
        kept.residuals.keep(tuple(residual), self._sigma(step))
        kept.step = step.index
        step.after_first = ()

    def _decide(self, step: Step, stage: Stage, before: Streams, after: Streams) -> Outcome:
        if step.settled:
            return step.outcomes[stage.name]
        config, kept, tau = self.config, step.branch.kept(stage), self.tau(stage)
        outcome = Outcome.GUARDED if step.guarded else Outcome.COMPUTED
        if stage.name == "detail" and kept.residuals:
            if 0 < config.max_detail_age < step.index - kept.step:
                outcome = Outcome.GUARDED
            elif not step.outcomes["structure"].ran and config.hierarchy == "forced":
                return Outcome.FORCED
        if tau > 0:
            indicator, spent = self._indicator(step, stage, before, after), 0.0
            if outcome is Outcome.COMPUTED and kept.indicator is not None and kept.residuals:
                change = relative_change(kept.indicator, indicator).item()  # the one synchronisation
                if self._begun_again(step):
                    kept = step.branch.kept(stage)
                else:
                    spent = step.changes[stage.name] = kept.spent + change
                    outcome = gate(spent, tau)
                    if not math.isfinite(change):
                        self._warn_once("H2-Cache: a change is not finite; such steps are computed in full.")
            if outcome.ran or config.budget:
                kept.indicator = indicator
                kept.spent = 0.0 if outcome.ran else spent
        return outcome

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
        step.branch.signature = step.inputs.signature
        step.run, step.index = self._run, 0
        return True

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, RuntimeWarning, stacklevel=2)


def _letters(stage: Stage) -> set[str]:
    """The letters of a plan that want the stage's residual."""
    return {"R", "C" if stage.name == "structure" else "D"}


def _samples_within(inputs: Inputs, stage: Stage) -> list[torch.Tensor]:
    """The ControlNet samples that the model adds between the stage's first block and its last.

    Source: ``FluxTransformer2DModel.forward``.
    """
    samples = inputs.block_samples if stage.name == "structure" else inputs.single_block_samples
    if samples is None:
        return []
    between = range(len(stage.blocks) - 1)
    if stage.name == "structure" and inputs.blocks_repeat:
        return [samples[i % len(samples)] for i in between]
    interval = math.ceil(len(stage.blocks) / len(samples))
    return [samples[i // interval] for i in between]
