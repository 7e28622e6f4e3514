"""Shared by all trainings: a time budget, its learning-rate schedule, snapshots to resume from, and a log."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

_REPORT = 20.0
"""Seconds between lines of the log."""
_WARM = 100
"""Steps of learning-rate warm-up."""
DECAY = 0.3
"""Share of the budget, at its end, in which the learning rate falls to 0."""


@dataclass(frozen=True)
class Progress:
    """Progress of a run over all its sessions, with ``seconds`` spent of ``budget``."""

    budget: float
    seconds: float = 0.0
    steps: int = 0
    samples: int = 0
    decay: float = DECAY

    @property
    def share(self) -> float:
        return min(1.0, self.seconds / self.budget) if self.budget else 1.0

    @property
    def rate(self) -> float:
        """Factor of the learning rate: warm-up, constant, then linear decay."""
        falling = (1 - self.share) / self.decay if self.decay else 1.0
        return min(1.0, (self.steps + 1) / _WARM, max(0.02, falling))

    @property
    def cooling(self) -> bool:
        """Whether the learning rate is already falling."""
        return self.share > 1 - self.decay


class Run:
    """A training in a folder. Iterate over it: one iteration is one step, until the time is spent.

    Saves ``state`` every few minutes and at the end, and resumes from there when created again: if killed at any time,
    it loses no more than that. Just before the learning rate falls it keeps a copy, from which a longer budget
    continues: a network that has been cooled down learns little more.

    Args:
        folder: for snapshots and ``log.jsonl``.
        minutes: the budget of all its sessions together.
        state: gives what a snapshot holds.
        restore: takes it back.
        decay: the last share of the budget, in which the learning rate falls; 0 if another training follows.
        every: minutes between two snapshots.
        processor: the budget is the processor's time, which does not pass while other programs run.
    """

    def __init__(
        self,
        folder: Path,
        minutes: float,
        state: Callable[[], dict[str, Any]],
        restore: Callable[[dict[str, Any]], None],
        decay: float = DECAY,
        every: float = 5.0,
        processor: bool = False,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._state, self._every = folder, state, every * 60
        self._now = time.process_time if processor else time.monotonic
        self._snapshot, self._level = folder / "snapshot.pt", folder / "level.pt"
        self.progress = Progress(minutes * 60, decay=decay)
        for path in (self._snapshot, self._level):
            if path.exists() and self._goes_on_from(path, restore):
                break

    def _goes_on_from(self, path: Path, restore: Callable[[dict[str, Any]], None]) -> bool:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        before = Progress(**saved["progress"])
        cooled = before.cooling and self.progress.budget > before.budget
        if cooled and path != self._level and self._level.exists():
            return False
        restore(saved["state"])
        self.progress = replace(before, budget=self.progress.budget)
        return True

    def __iter__(self) -> Iterator[Progress]:
        last = saved = self._now()
        begun = self.progress.steps
        while self.progress.share < 1:
            level = not self.progress.cooling
            yield self.progress
            now = self._now()
            self.progress = replace(
                self.progress, seconds=self.progress.seconds + now - last, steps=self.progress.steps + 1
            )
            last = now
            if level and self.progress.cooling:
                self._save(self._level)
            if now - saved > self._every:
                saved = now
                self._save(self._snapshot)
        if self.progress.steps > begun:
            self._save(self._snapshot)

    def count(self, samples: int) -> None:
        """Add to the number of samples."""
        self.progress = replace(self.progress, samples=self.progress.samples + samples)

    def _save(self, path: Path) -> None:
        partial = path.with_suffix(".partial")
        torch.save({"progress": asdict(self.progress), "state": self._state()}, partial)
        os.replace(partial, path)


class Log:
    """Logs means of values, one line every few seconds, on the terminal and in ``log.jsonl``."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "log.jsonl"
        self._told: dict[str, list[torch.Tensor]] = {}
        self._since = time.monotonic()
        self._samples: int | None = None

    def tell(self, progress: Progress, values: Mapping[str, torch.Tensor]) -> None:
        """Record values of a step; reads them, which waits for the device, only when a line is due."""
        for name, value in values.items():
            self._told.setdefault(name, []).append(value.detach())
        if self._samples is None:
            self._samples = progress.samples
        if time.monotonic() - self._since >= _REPORT:
            self.write(progress)

    def write(self, progress: Progress) -> None:
        """Write means since the last line; also to be called at the end."""
        if not self._told or self._samples is None:
            return
        elapsed = time.monotonic() - self._since
        line: dict[str, float] = {
            "minutes": round(progress.seconds / 60, 2),
            "steps": progress.steps,
            "samples": progress.samples,
            "samples_per_second": round((progress.samples - self._samples) / elapsed, 1),
            "rate": round(progress.rate, 3),
        }
        line |= {name: round(torch.stack(told).float().mean().item(), 5) for name, told in self._told.items()}
        print("  ".join(f"{name} {value}" for name, value in line.items()), flush=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self._told.clear()
        self._since, self._samples = time.monotonic(), progress.samples


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set the learning rates to a multiple of the optimizer's initial ones, also after it was restored."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


class Average:
    """A moving average of the weights, which gives better pictures than the weights themselves."""

    def __init__(self, parameters: Sequence[torch.Tensor], decay: float) -> None:
        self._parameters, self._decay = parameters, decay
        self.values = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def update(self, steps: int) -> None:
        decay = min(self._decay, (1 + steps) / (10 + steps))
        torch._foreach_lerp_(self.values, [p.detach() for p in self._parameters], 1 - decay)

    @torch.no_grad()
    def restore(self, values: Sequence[torch.Tensor]) -> None:
        """Restore the average from a snapshot."""
        for own, value in zip(self.values, values, strict=True):
            own.copy_(value)

    @torch.no_grad()
    def hand_over(self) -> None:
        """Replace the weights by the average."""
        for parameter, value in zip(self._parameters, self.values, strict=True):
            parameter.copy_(value)


class Kept:
    """What a snapshot holds of a training: the model, the average of its weights, and what optimizes it."""

    def __init__(self, model: torch.nn.Module, average: Average, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self._model, self._average, self._optimizers = model, average, optimizers

    def state(self) -> dict[str, Any]:
        return {
            "model": self._model.state_dict(),
            "average": self._average.values,
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
        }

    def restore(self, saved: dict[str, Any]) -> None:
        self._model.load_state_dict(saved["model"])
        self._average.restore(saved["average"])
        for optimizer, kept in zip(self._optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
