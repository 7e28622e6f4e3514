"""Whether one picture can be made on several devices. Loads no torch."""

from __future__ import annotations

from h2gen.errors import SettingError
from h2gen.models.catalogue import Checkpoint
from h2gen.models.choices import split_device
from h2gen.models.facts import facts_of
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


def check_picture(devices: int, settings: Settings) -> None:
    """Check that several devices can make a picture together.

    Raises:
        SettingError: they cannot.
    """
    if devices > 1:
        other = settings.attention != ATTENTION.default
        _refuse(f"--devices {devices}", attention=other, controlnet=bool(settings.controlnet))


def _refuse(given: str, **found: bool) -> None:
    for name, is_there in found.items():
        if is_there:
            option = f"--{name.replace('_', '-')}"
            raise SettingError(f"{option} does not work with {given}; leave one of them out.")
