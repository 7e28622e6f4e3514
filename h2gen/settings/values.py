"""``Settings``: everything that determines a picture, checked."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import PurePath
from typing import Any

from h2gen.arguments import fields_checked
from h2gen.cache.config import CacheConfig
from h2gen.cache.policies.plan import end_of_plan, parts_in, steps_in
from h2gen.checks import Rule
from h2gen.errors import SettingError
from h2gen.models.attention_names import DEFAULT
from h2gen.models.choices import SOLVERS, evaluations, steps_run
from h2gen.settings.inputs import InputFile
from h2gen.settings.synonyms import meant_or_close
from h2gen.settings.table import BY_NAME

OFF = CacheConfig(tau1=0.0, tau2=0.0)
"""No cache."""


@fields_checked(meant_or_close)
@dataclass(frozen=True)
class Settings:
    """Everything that determines a picture, apart from the checkpoint, the device and the dtype.

    Its fields, and those of ``CacheConfig``, are the rows of the table of settings that are ``in_picture``.

    Args:
        prompt: the text. It may be empty if pictures are read like a prompt.
        seed: 0 to 2**63 - 1; the initial noise is drawn from it on the CPU, so that it is the same on all devices.
        width, height: in pixels.
        steps: denoising steps.
        guidance: guidance scale that a guidance-distilled model takes as an input.
        cfg: scale of true classifier-free guidance, two passes per step; 1 is off.
        negative: what to steer away from; needs ``cfg`` above 1.
        max_sequence_length: prompt tokens that the model reads.
        cache: thresholds, guards and policies of H2-Cache.
        solver: one of ``SOLVERS``; ``own`` is the checkpoint's.
        shift: of the schedule: a number as text, ``dynamic`` (by the picture's size), or ``own``, the checkpoint's.
        attention: diffusers' name of the attention backend; ``default`` is the one that diffusers chooses.
        lora: LoRAs that the model is loaded with, with their scales.
        image: input pictures. If the first one has a strength, above 0 and up to 1, this picture starts from it, and
            only that share of the steps runs, the last ones. Pictures without a strength are references.
        mask: the part of the first input picture that changes.
        control: pictures whose lines, depths or poses this one follows, with their kinds.
        controlnet: what follows them, with their scales, if the model itself does not.
        redux: pictures that are read like a prompt, with their weights.
        redux_model: what reads them.
        frames: of a video; None for a picture.
        fps: frames per second of a video; None for a picture.
        reference_steps: steps of the uncached picture that was asked for, if a profile chose other settings to come
            close to it; None if it is the one with these ``steps``. It determines no pixel: shares of blocks and
            estimated speed-ups are against it.
        published_plan: the origin of the cache's plan, if others have published it; it determines no pixel either.

    Raises:
        SettingError: a value cannot be used, or contradicts another one.
    """

    prompt: str
    seed: int
    width: int
    height: int
    steps: int
    guidance: float = 0.0
    cfg: float = 1.0
    negative: str = ""
    max_sequence_length: int = 512
    cache: CacheConfig = field(default=OFF)
    solver: str = "own"
    shift: str = "own"
    attention: str = DEFAULT
    lora: tuple[InputFile, ...] = ()
    image: tuple[InputFile, ...] = ()
    mask: tuple[InputFile, ...] = ()
    control: tuple[InputFile, ...] = ()
    controlnet: tuple[InputFile, ...] = ()
    redux: tuple[InputFile, ...] = ()
    redux_model: tuple[InputFile, ...] = ()
    frames: int | None = None
    fps: float | None = None
    reference_steps: int | None = None
    published_plan: str | None = None

    @property
    def noun(self) -> str:
        """What messages call what is made."""
        return "picture" if self.frames is None else "video"

    def __post_init__(self) -> None:
        for name in FIELDS:
            object.__setattr__(self, name, BY_NAME[name].check(getattr(self, name)))
        for name in FILES:
            if unfound := [file for file in getattr(self, name) if not file.sha256]:
                raise SettingError(
                    f"{name} {str(unfound[0])!r} has not been opened; give it to a session's generate instead."
                )
        if self.reference_steps is not None:
            BY_NAME["steps"].check(self.reference_steps, "reference_steps")
        if self.published_plan is not None:
            _ORIGIN.check("published_plan", self.published_plan)
        if not self.prompt.strip() and not self.redux:
            raise _empty_prompt()
        check_length(self.cache.plan, self.steps, self.solver, strength=self.strength)
        parts = parts_in(self.cache.plan)
        if parts > (2 if self.cfg > 1 else 1):
            passes = "two passes with true guidance" if self.cfg > 1 else "one pass without true guidance (cfg above 1)"
            raise SettingError(
                f"plan has {parts} parts, and a step has {passes}; give one part per pass, or one for all."
            )
        if (self.frames is None) != (self.fps is None):
            raise SettingError("frames and fps belong together; give both for a video, and neither for a picture.")
        if self.negative and self.cfg <= 1:
            raise SettingError(
                f"A negative prompt has no effect with cfg {self.cfg:g}; also give a cfg above 1, such as 3."
            )

    @property
    def title(self) -> str:
        """The prompt, or without one the names of the pictures that are read in its place."""
        return self.prompt or " ".join(PurePath(file.name).stem for file in self.redux)

    @property
    def inputs(self) -> dict[str, Any]:
        """The numbers of input files that decide on the task, as ``task_of`` takes them."""
        numbers = {"pictures": len(self.image), "control": len(self.control), "controlnet": len(self.controlnet)}
        return {**numbers, "mask": bool(self.mask)}

    @property
    def strength(self) -> float:
        """The share of the schedule that runs, at its end: 1 unless the picture starts from an input picture."""
        return next((file.scale for file in self.image if file.scale is not None), 1.0)

    @property
    def steps_run(self) -> int:
        """The number of steps that run."""
        return steps_run(self.steps, self.strength)

    @property
    def passes(self) -> int:
        """The number of forward passes of the transformer."""
        return evaluations(self.steps_run, self.solver) * (2 if self.cfg > 1 else 1)

    @property
    def reference(self) -> float:
        """Passes of the uncached run that was asked for, with the model's own solver, per pass of this one."""
        asked = steps_run(self.reference_steps or self.steps, self.strength)
        return asked * (2 if self.cfg > 1 else 1) / self.passes

    @property
    def running_cache(self) -> CacheConfig:
        """The cache for the steps that run: of a plan for all steps, only the last letters."""
        passes = evaluations(self.steps_run, self.solver)
        if not self.cache.plan or steps_in(self.cache.plan) == passes:
            return self.cache
        return replace(self.cache, plan=end_of_plan(self.cache.plan, passes))

    @property
    def asked(self) -> dict[str, Any]:
        """What to record besides the settings: the fields in ``NOT_SETTINGS`` that are known."""
        return {name: getattr(self, name) for name in NOT_SETTINGS if getattr(self, name) is not None}

    def goes_with(self, other: Settings) -> bool:
        """Whether both can be made in one batch: they differ in prompt and seed at most."""
        alone = {"prompt": None, "seed": None}
        return {**vars(self), **alone} == {**vars(other), **alone}

    def to_json(self) -> dict[str, Any]:
        """One flat object, with the cache's settings among the others; without files, a shift, an attention and
        numbers of frames that are not given."""
        # Not by asdict, which copies deeply: a batch asks this of every job.
        flat = {**vars(self), **vars(self.cache)}
        for name in ("cache", *NOT_SETTINGS):
            del flat[name]
        for name in FILES:
            flat[name] = [file.to_json() for file in flat[name]]
            if not flat[name]:
                del flat[name]
        for name in ("shift", "attention", "frames", "fps"):
            if flat[name] == BY_NAME[name].default:  # as in pictures that are older than the setting
                del flat[name]
        return flat


NOT_SETTINGS = ("reference_steps", "published_plan")
"""The fields of ``Settings`` that say how the settings were chosen."""
_ORIGIN = Rule(str, longest=500)

FIELDS = tuple(each.name for each in fields(Settings) if each.name not in ("cache", *NOT_SETTINGS))
"""The settings of ``Settings`` that the table has a row for, apart from the cache's."""
FILES = tuple(name for name in FIELDS if BY_NAME[name].of_files)
"""Those that are files."""


def _empty_prompt() -> SettingError:
    return SettingError("The prompt is empty; describe a picture, such as 'a cat', or give one with --redux.")


def check_length(plan: str, steps: int, solver: str, origin: str = "", strength: float = 1.0) -> None:
    """Check that a plan has one letter per forward pass of the solver.

    If an input picture is changed, it may be for all steps or only for those that run.

    Args:
        plan: as ``CacheConfig`` holds it; nothing is checked if it is empty.
        steps, solver, strength: of the picture.
        origin: where the plan comes from, for the message.

    Raises:
        SettingError: it has more letters, or fewer.
    """
    letters, passes = steps_in(plan), evaluations(steps, solver)
    run = evaluations(steps_run(steps, strength), solver)
    if not plan or letters in (passes, run):
        return
    whose = f" (from {origin})" if origin else ""
    if run != passes:
        raise SettingError(
            f"plan{whose} has {letters} letters; give {passes}, one per pass, or {run}, one per pass that runs at "
            f"strength {strength:g}, or an empty plan."
        )
    if passes == steps:
        raise SettingError(
            f"plan{whose} is for {letters} steps, and steps is {steps}; give one letter per step, or an empty plan."
        )
    raise SettingError(
        f"plan{whose} has {letters} letters, and {steps} steps of {SOLVERS[solver]} are {passes} passes; give one "
        "letter per pass, or an empty plan."
    )


def clean_prompt(text: str, *, may_be_empty: bool = False) -> str:
    """The prompt in one line, without surrounding blanks.

    Args:
        text: the prompt as it was given.
        may_be_empty: pictures may be read in its place; ``Settings`` checks that.

    Raises:
        SettingError: it is empty, too long, or not text.
    """
    text = BY_NAME["prompt"].check(" ".join(text.split()))
    if not text and not may_be_empty:
        raise _empty_prompt()
    return text
