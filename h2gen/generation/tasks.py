"""The pipelines of a loaded model, one per task, and what each is called with besides the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from h2gen.families import CONTROLLED, STRENGTHS, TASKS, Family, family_of
from h2gen.families.contract import PictureInputs
from h2gen.generation.solvers import strength_for
from h2gen.models.adapters import is_widened
from h2gen.models.tasks import complete_task, name_of, pipeline_for
from h2gen.settings.controls import mode_for, nets_of
from h2gen.settings.edges import canny
from h2gen.settings.inputs import InputFile
from h2gen.settings.values import Settings

if TYPE_CHECKING:
    import torch

    from h2gen.generation.redux import ReduxTokens


class TaskPipelines:
    """The pipelines of one checkpoint: the loaded one, and others of diffusers on its parts, built when needed.

    Args:
        name: of the model, for messages.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._others: dict[tuple[str, ...], Any] = {}
        """By class, followed by the hashes of their ControlNets."""
        self._nets: dict[str, Any] = {}
        """The ControlNets of the last pictures, by hash."""
        self._redux: ReduxTokens | None = None

    def of(self, pipe: Any, settings: Settings, offload: str = "none") -> Any:
        """The pipeline that makes such a picture.

        Args:
            pipe: the loaded one.
            settings: of the picture.
            offload: the mode in use, never "auto".

        Raises:
            SettingError: the model cannot make it.
            ModelError: one of its ControlNets cannot be loaded, or does not fit the model.
        """
        tasks = _tasks(pipe)
        name = tasks[self._task(tasks, settings)]
        if name == name_of(pipe):
            return pipe
        files = nets_of(settings.controlnet, settings.control)
        key = name, *(file.sha256 for file in files)
        if key not in self._others:
            more = {"controlnet": self._controlnets(pipe, files, offload)} if files else {}
            self._others[key] = pipeline_for(pipe, name, **more)
        return self._others[key]

    def _controlnets(self, pipe: Any, files: Sequence[InputFile], offload: str) -> Any:
        """The ControlNets as diffusers takes them; those of earlier pictures are let go."""
        from h2gen.models.controlnet import check_fits, load_controlnet, read_controlnet
        from h2gen.models.memory import place_part

        wanted = {file.sha256: file for file in files}
        self._others = {key: other for key, other in self._others.items() if len(key) == 1}
        self._nets = {key: net for key, net in self._nets.items() if key in wanted}
        for key, file in wanted.items():
            if key not in self._nets:
                path = Path(str(file.path))
                check_fits(file.name, read_controlnet(path), self._name, pipe.transformer.config)
                net = load_controlnet(path, pipe.transformer.config, pipe.transformer.dtype)
                place_part(net, pipe, offload)
                self._nets[key] = net
        nets = [self._nets[file.sha256] for file in files]
        return nets[0] if len(nets) == 1 else nets

    def forget(self) -> None:
        """Let go of the others, and with them of the loaded one's parts."""
        self._others.clear()
        self._nets.clear()
        self._redux = None

    def with_redux(self, pipe: Any, settings: Settings, text: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The encoded prompts of a batch, with what Redux reads from its pictures; see ``ReduxTokens.added``."""
        if not settings.redux:
            return text
        if self._redux is None:
            from h2gen.generation.redux import ReduxTokens

            self._redux = ReduxTokens()
        return self._redux.added(pipe, settings, text)

    def arguments(self, pipe: Any, together: Sequence[Settings], offload: str = "none") -> dict[str, Any]:
        """What the pipeline of these pictures is called with, apart from prompts and noise.

        Args:
            pipe: the loaded one.
            together: the settings of the pictures of a batch.
            offload: the mode in use, never "auto".

        Raises:
            SettingError: the model cannot make them, or an input picture cannot be opened any more.
        """
        settings, family = together[0], family_of(pipe.transformer)
        task, own = self._task(_tasks(pipe), settings), self.of(pipe, settings, offload)
        family.check_cfg(own, settings.cfg)
        return {
            "num_inference_steps": settings.steps,
            "max_sequence_length": settings.max_sequence_length,
            "output_type": "np",
            **family.picture_arguments(own, task, _inputs(task, settings)._replace(together=len(together))),
            **(self._control(family, task, settings) if settings.control else {}),
            **family.guidance_arguments(own, settings.guidance, settings.cfg),
        }

    def _control(self, family: Family, task: str, settings: Settings) -> dict[str, Any]:
        """The pipeline's arguments for control pictures."""
        from h2gen.settings.pictures import fitted, open_picture

        size = settings.width, settings.height
        pictures = [fitted(open_picture(file).image, size) for file in settings.control]
        pictures = [
            canny(image) if file.kind == "canny" else image
            for image, file in zip(pictures, settings.control, strict=True)
        ]
        nets = [
            (1.0 if file.scale is None else file.scale, mode_for(self._nets[file.sha256].config, file.name, control))
            for file, control in zip(nets_of(settings.controlnet, settings.control), settings.control, strict=False)
        ]
        return family.control_arguments(task, pictures, nets)

    def _task(self, tasks: dict[str, str], settings: Settings) -> str:
        return complete_task(self._name, tasks, **settings.inputs)


def _tasks(pipe: Any) -> dict[str, str]:
    name = name_of(pipe)
    if is_widened(pipe):
        name = CONTROLLED[name]
    return {**TASKS.get(name, {"text": name})}


def _inputs(task: str, settings: Settings) -> PictureInputs:
    """What a picture is made from, with its input pictures opened."""
    given = PictureInputs((settings.width, settings.height), frames=settings.frames or 0)
    if not settings.image:
        return given
    from h2gen.settings.pictures import fitted, open_picture

    first, *more = (open_picture(file).image for file in settings.image)
    masks = [fitted(open_picture(file, mask=True).image, given.size) for file in settings.mask]
    return given._replace(
        pictures=[first if task == "edit" else fitted(first, given.size), *more],
        mask=masks[0] if masks else None,
        strength=strength_for(settings) if task in STRENGTHS else None,
    )
