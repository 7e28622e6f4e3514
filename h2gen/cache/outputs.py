"""The transformer's output: forecast in skipped steps, without running it; kept and corrected in computed ones."""

from __future__ import annotations

from typing import Any

import torch

from h2gen.cache.batch import joined, replaced, rows_of
from h2gen.cache.step import Step
from h2gen.families import Family

_NOTHING = torch.empty(0)


class Outputs:
    """The outputs of one family's transformers.

    Args:
        family: knows the velocity in them.
    """

    def __init__(self, family: Family) -> None:
        self._family = family

    def known(self, step: Step | None) -> bool:
        """Whether the transformer need not run: all pictures skip the step, and it is known what it returns."""
        return step is not None and step.skipped and step.inputs.return_dict in step.current.memory.returned

    @torch.no_grad()
    def forecast(self, step: Step | None) -> Any:
        """What the transformer returns in a step that all pictures skip; None if it has to run."""
        if step is not None and step.output is None and self.known(step):
            forecasts = [each.forecast(step.sigma, step.interval) for each in step.current.memory.velocities]
            like = step.current.memory.returned[step.inputs.return_dict]
            step.output = self._family.with_velocity(like, joined(forecasts))
        return None if step is None else step.output

    def of(self, step: Step, output: Any, skipped: set[int], fresh: set[int]) -> Any:
        """The output with forecast velocities for skipped steps, and corrected ones for the steps after them.

        Args:
            output: of the transformer.
            skipped: pictures that skipped the step.
            fresh: those whose velocity is kept.
        """
        if step.output is not None:
            return step.output  # whatever hooks of others have made of it
        velocity, parts = self._family.velocity(output), []
        returned, how = step.current.memory.returned, step.inputs.return_dict
        if how not in returned and self._family.only_velocity(output):
            returned[how] = self._family.with_velocity(output, _NOTHING)
        for row in sorted(skipped | fresh):
            history = step.current.memory.velocities[row]
            if row in skipped:
                parts.append(([row], history.forecast(step.sigma, step.interval)))
                continue
            own = rows_of(velocity, [row])
            corrected = history.keep(own, step.sigma, step.interval, step.own)
            if corrected is not own:
                parts.append(([row], corrected))
        return self._family.with_velocity(output, replaced(velocity, *parts)) if parts else output
