"""The pipelines of a loaded model, one per task, and what each is called with besides the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from h2gen.families import STRENGTHS, TASKS, family_of
from h2gen.generation.solvers import strength_for
from h2gen.models.tasks import check_complete, name_of, pipeline_for, task_of
from h2gen.settings.values import Settings


class TaskPipelines:
    """The pipelines of one checkpoint: the loaded one, and others of diffusers on its parts, built when needed.

    Args:
        name: of the model, for messages.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._others: dict[str, Any] = {}

    def of(self, pipe: Any, settings: Settings) -> Any:
        """The pipeline that makes such a picture.

        Args:
            pipe: the loaded one.
            settings: of the picture.

        Raises:
            SettingError: the model cannot make it.
        """
        tasks = _tasks(pipe)
        name = tasks[self._task(tasks, settings)]
        if name == name_of(pipe):
            return pipe
        if name not in self._others:
            self._others[name] = pipeline_for(pipe, name)
        return self._others[name]

    def forget(self) -> None:
        """Let go of the others, and with them of the loaded one's parts."""
        self._others.clear()

    def arguments(self, pipe: Any, together: Sequence[Settings]) -> dict[str, Any]:
        """What the pipeline of these pictures is called with, apart from prompts and noise.

        Args:
            pipe: the loaded one.
            together: the settings of the pictures of a batch.

        Raises:
            SettingError: the model cannot make them, or an input picture cannot be opened any more.
        """
        settings, family = together[0], family_of(pipe.transformer)
        family.check_cfg(pipe, settings.cfg)
        task, own = self._task(_tasks(pipe), settings), self.of(pipe, settings)
        size = settings.width, settings.height
        return {
            "num_inference_steps": settings.steps,
            "max_sequence_length": settings.max_sequence_length,
            "output_type": "np",
            **family.picture_arguments(own, task, size, together=len(together), **_inputs(task, settings)),
            **family.guidance_arguments(own, settings.guidance, settings.cfg),
        }

    def _task(self, tasks: dict[str, str], settings: Settings) -> str:
        mask = bool(settings.mask)
        task = task_of(self._name, tasks, pictures=len(settings.image), mask=mask)
        check_complete(self._name, task, mask=mask)
        return task


def _tasks(pipe: Any) -> dict[str, str]:
    name = name_of(pipe)
    return {**TASKS.get(name, {"text": name})}


def _inputs(task: str, settings: Settings) -> dict[str, Any]:
    """The input pictures, as ``Family.picture_arguments`` takes them."""
    if not settings.image:
        return {}
    from h2gen.settings.pictures import fitted, open_picture

    size = settings.width, settings.height
    first, *more = (open_picture(file).image for file in settings.image)
    given: dict[str, Any] = {"pictures": [first if task == "edit" else fitted(first, size), *more]}
    if settings.mask:
        given["mask"] = fitted(open_picture(settings.mask[0], mask=True).image, size)
    if task in STRENGTHS:
        given["strength"] = strength_for(settings)
    return given
