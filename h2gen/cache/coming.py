"""Which block runs next, if that is known while another one runs; needed to fetch weights in time."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from h2gen.cache.engine import Engine
from h2gen.cache.policies.plan import plan_of
from h2gen.cache.stages import Stage
from h2gen.cache.step import Step


def next_block(engine: Engine, block: nn.Module | None) -> nn.Module | None:
    """The block that certainly runs after another one, in this pass or a later one; None if there is none.

    While a stage's first block runs, its change is not known yet. The blocks after it may then be skipped; the next
    stage's first block runs in any case.

    Args:
        engine: in the middle of a pass.
        block: that runs now; None before the first one.
    """
    step = engine.step
    if step is None or step.skipped:
        return None
    stages = [*engine.own, *engine.stages]
    following = stages
    for place, stage in enumerate(stages):
        index = next((index for index, each in enumerate(stage.blocks) if each is block), None)
        if index is not None:
            if index + 1 < len(stage.blocks) and (index or _continues(engine, step, stage)):
                return stage.blocks[index + 1]
            following = stages[place + 1 :]
    begin = (stage for stage in following if stage.name not in step.exact and _has_tokens(step, stage))
    first = next(begin, None)
    if first is None and not _nothing_left(engine, step):
        first = next(_in_later_passes(engine, step), None)
    return None if first is None else first.blocks[0]


def _continues(engine: Engine, step: Step, stage: Stage) -> bool:
    """Whether the blocks after a stage's first one certainly run, for any picture."""
    if stage.own or not step.memory(stage.name).residuals:
        return True
    decided = [(row, step.outcomes[stage.name][row]) for row in step.present]
    unchecked = engine.policy.tau(stage.name) == 0  # a stage that is never checked runs, unless it is forced not to
    forced = stage.name == "detail" and engine.config.hierarchy == "forced"
    return any(
        outcome.ran if outcome is not None else unchecked and not (forced and not step.outcome("structure", row).ran)
        for row, outcome in decided
    )


def _has_tokens(step: Step, stage: Stage) -> bool:
    return step.inputs.parts.get(stage.name, 1) > 0


def _in_later_passes(engine: Engine, step: Step) -> Iterator[Stage]:
    """The stages whose first block runs in every pass that is not skipped; results that are kept need no block."""
    kept = step.inputs.constants if engine.config.enabled else {}
    return (stage for stage in (*engine.own, *engine.stages) if stage.name not in kept and _has_tokens(step, stage))


def _nothing_left(engine: Engine, step: Step) -> bool:
    """Whether it is known that no later pass of this trajectory runs a block."""
    run, config = step.run, engine.config
    own = step.current.index + step.current.together
    passes = max(sum(each.together for each in run.passes), own)
    later = range(own, passes)
    if config.plan_alone:
        parts = [plan_of(config.plan, index) for index in range(passes)]
        left = "".join(part[step.index + 1 :] for part in parts) + "".join(parts[index][step.index] for index in later)
        return {*left} <= {"S"}
    return run.steps_total is not None and step.index + 1 >= run.steps_total and not later
