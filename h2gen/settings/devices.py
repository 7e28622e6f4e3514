"""Whether one picture can be made on several devices. Loads no torch."""

from __future__ import annotations

from h2gen.errors import SettingError
from h2gen.models.catalogue import Checkpoint
from h2gen.models.choices import split_device
from h2gen.models.facts import facts_of
from h2gen.models.fit_here import is_cpu
from h2gen.models.load_options import LoadOptions
from h2gen.models.parallel import check_heads
from h2gen.settings.solver_rows import ATTENTION
from h2gen.settings.values import Settings
from h2gen.wording import printable


def check_devices(load: LoadOptions, checkpoint: Checkpoint) -> None:
    """Check that a model can be loaded on several devices in this way.

    Raises:
        SettingError: the options do not go together, or diffusers cannot split the model's tokens.
        DeviceError: so many devices cannot share its attention heads.
    """
    if load.devices == 1:
        return
    given = f"--devices {load.devices}"
    kind, _ = split_device(load.device)
    if ":" in load.device:
        raise SettingError(f"--device {load.device} names one device, and {given} needs several; give only one.")
    if kind not in ("auto", "cpu", "cuda"):
        raise SettingError(f"{given} needs CUDA devices, or the CPU; leave out --device {load.device}.")
    if load.offload not in ("auto", "none"):
        raise SettingError(f"{given} keeps the whole model on each device; leave out --offload {load.offload}.")
    _refuse(given, compile=load.compile, quantize=load.quantize != "none", quantize_text=load.quantize_text != "none")
    facts = facts_of(checkpoint)
    if facts is not None:
        if not facts.family.splits_tokens:
            raise SettingError(
                f"{given} does not work with {printable(checkpoint.name)!r}; use a model of FLUX.1 or FLUX.2."
            )
        check_heads(facts.config, load.devices)


def check_picture(load: LoadOptions, settings: Settings, checkpoint: Checkpoint) -> None:
    """Check that several devices can make a picture together.

    Raises:
        SettingError: they cannot.
    """
    if load.devices == 1:
        return
    other = settings.attention != ATTENTION.default
    _refuse(f"--devices {load.devices}", attention=other, controlnet=bool(settings.controlnet))
    if is_cpu(load.device):
        _check_shared_out(load.devices, settings, checkpoint.defaults.size_multiple)


def _check_shared_out(devices: int, settings: Settings, multiple: int) -> None:
    """Check that processes on the CPU can have equally many tokens each.

    The tokens of reference pictures and of Redux are known only when a picture is made; see ``split_tokens``.
    """
    wide, high = settings.width // multiple, settings.height // multiple
    shared = f"cannot be shared out evenly among {devices} processes on the CPU"
    if wide * high % devices and all(file.scale is not None for file in settings.image):
        near = [(wide + x, high + y) for x in range(-devices, devices + 1) for y in range(-devices, devices + 1)]
        fitting = [(x, y) for x, y in near if x > 0 < y and x * y % devices == 0]
        x, y = min(fitting, key=lambda each: (abs(each[0] - wide) + abs(each[1] - high), -sum(each)))
        raise SettingError(
            f"size is {settings.width}x{settings.height}, whose tokens, one per {multiple}x{multiple} pixels, "
            f"{shared}; give {x * multiple}x{y * multiple}, for example."
        )
    if (length := settings.max_sequence_length) % devices and not settings.redux:
        fits = length // devices * devices or devices  # down, since the model has a maximum
        raise SettingError(f"max_sequence_length is {length}, which {shared}; give {fits}.")


def _refuse(given: str, **found: bool) -> None:
    for name, is_there in found.items():
        if is_there:
            option = f"--{name.replace('_', '-')}"
            raise SettingError(f"{option} does not work with {given}; leave one of them out.")
