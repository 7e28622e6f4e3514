"""H2-Cache itself: the six steps of docs/method.md in one forward pass, for each picture of a batch.

The model calls its own blocks, so that LoRA, offloading and ControlNet stay as they are. A stage is therefore a
generator that starts once the stage's first block has run: ``yield`` hands over the streams that the other blocks are
to run on and waits for what they make of them; ``return`` hands over what leaves the stage. Inference only: gradients
do not flow through what is kept.
"""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch.nn import functional as F

from h2gen.cache.batch import Rows, Streams, merged
from h2gen.cache.config import CacheConfig
from h2gen.cache.decide_batch import BatchDecision
from h2gen.cache.policies import Policy
from h2gen.cache.probe import Probe
from h2gen.cache.stages import Stage
from h2gen.cache.step import Step

StageSteps = Generator[Streams, Streams, Streams]


class Method:
    """The method on one transformer.

    Args:
        config: of the cache.
        policy: its thresholds, tolerance or plan.
        decide: compares changes with thresholds.
    """

    def __init__(self, config: CacheConfig, policy: Policy, decide: BatchDecision) -> None:
        self._config, self._policy, self._decide = config, policy, decide

    def fetch(self, step: Step, stage: Stage) -> None:
        """Before a stage's first block: begin to bring kept residuals back from main memory, if they may be needed."""
        if self._config.cache_memory != "cpu" or not self._policy.reuses(stage.name):
            return
        residuals, decided = step.memory(stage.name).residuals, [step.outcomes[stage.name][row] for row in step.present]
        # With two values, a stage that is computed needs them too: it is compared with the line through them.
        if len(residuals) > 1 or any(outcome is None or not outcome.ran for outcome in decided):
            residuals.fetch()

    def structure_stage(self, step: Step, stage: Stage, probe: Probe) -> StageSteps:
        """Steps 1 to 3."""
        # 1. Probe the structure stage: its first block has run. The indicator is the residual of the image tokens.
        # 2. Decide: a hit if the indicator has changed by less than tau1 since the stage was last computed.
        self._decide.by_change(step, stage, probe)
        # 3. Hit: add the kept residual. Miss: run the other blocks and keep their residual, of text and image tokens.
        return (yield from self._reuse_or_run(step, stage, probe))

    def detail_stage(self, step: Step, stage: Stage, probe: Probe) -> StageSteps:
        """Steps 4 to 6. Afterwards the model's own norm_out and proj_out follow."""
        # 4. Probe the detail stage: its first block has run. The indicator is the residual of text and image tokens.
        # 5. Decide: after a structure hit the detail stage is a forced hit, whatever its change. Otherwise it is a hit
        #    if the indicator has changed by less than tau2.
        self._decide.unseen(step, stage)
        self._decide.by_change(step, stage, probe)
        # 6. Hit: add the kept residual. Miss: run the other blocks and keep their residual. The model drops the text
        #    after this stage, so that the last stream is enough.
        return (yield from self._reuse_or_run(step, stage, probe))

    def own_stage(self, step: Step, stage: Stage, probe: Probe) -> StageSteps:
        """The blocks before the stages that see one kind of tokens only: they run unless their result is known."""
        constants = step.inputs.constants.get(stage.name)
        if constants is not None:
            last = yield probe.after
            if self._config.enabled:
                step.current.memory.results.keep(stage.name, constants, last[0])
            return last
        step.running = [*step.present]
        whole = probe.whole if len(step.present) < step.pictures else ()
        last = yield probe.take(step, step.present)
        return merged(whole, [(step.present, last)]) if whole else last

    def _reuse_or_run(self, step: Step, stage: Stage, probe: Probe) -> StageSteps:
        """Add the kept residual for the hits; run the other blocks for the misses, and keep what they add."""
        computed = step.ran(stage.name)
        hits = [row for row in step.present if row not in computed]
        step.running = misses = [row for row in step.present if row in computed]
        parts = [(hits, self._reuse(step, stage, probe, hits))] if hits else []
        if not misses:
            return merged(probe.whole, parts)
        whole = probe.whole if len(misses) < step.pictures else ()
        if self._policy.reuses(stage.name):
            first = probe.take(step, misses)
            last = yield first
            self._keep(step, stage, first, last)
            del first  # the residual is kept, not the streams
        else:
            last = yield probe.take(step, misses)
        return merged(whole, [*parts, (misses, last)]) if whole else last

    def _reuse(self, step: Step, stage: Stage, probe: Probe, rows: Rows) -> Streams:
        """The streams of some pictures as the stage's last block would have left them."""
        first = probe.of(step, rows)
        residual = step.memory(stage.name).residuals.forecast(self._sigma(step), rows)
        untouched = len(first) - len(residual)
        return first[:untouched] + tuple(x + r for x, r in zip(first[untouched:], residual, strict=True))

    @torch.no_grad()
    def _keep(self, step: Step, stage: Stage, first: Streams, last: Streams) -> None:
        """Keep what the blocks after the first added to the streams of the pictures that ran."""
        if stage.name == "detail":
            first, last = first[-1:], last[-1:]
        if any(x.shape != y.shape for x, y in zip(first, last, strict=True)):
            return  # diffusers' hook on a skipped layer hands the text on as image and the image as text
        residual = [y - x for x, y in zip(first, last, strict=True)]
        # The model adds ControlNet's samples after each block, skipped or not: they are not part of the residual.
        for sample in step.inputs.added(stage):
            residual[-1][:, -sample.shape[1] :].sub_(sample)
        own, ranks = step.own if self._config.forecast else None, step.inputs.ranks
        if own is not None and step.inputs.reference_tokens:
            own = F.pad(own, (0, step.inputs.reference_tokens))
        if own is not None and ranks is not None:
            own = ranks.own_part(own)
        step.memory(stage.name).keep_residual(residual, self._sigma(step), step.index, step.running, own, ranks)

    def _sigma(self, step: Step) -> float:
        """A step's sigma; 0 for the paper's method, which does not read it from the device."""
        return step.sigma if self._config.needs_time else 0.0
