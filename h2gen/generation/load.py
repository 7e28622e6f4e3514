"""``h2gen.load``: a model by its name."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from h2gen.arguments import names_checked
from h2gen.generation.session import Session, open_session
from h2gen.models import resolve
from h2gen.models.load_options import LoadOptions, check_together, unheeded_limit
from h2gen.settings.devices import check_devices
from h2gen.settings.synonyms import meant_or_close
from h2gen.settings.table import BY_NAME


@names_checked("load", meant_or_close)
def load(
    model: str = "tiny",
    *,
    base: str | None = None,
    vae: str | None = None,
    text_encoder: str | Sequence[str] | None = None,
    device: str = "auto",
    dtype: str = "auto",
    offload: str = "auto",
    memory: str = "auto",
    quantize: str = "none",
    quantize_text: str = "none",
    compile: bool = False,
    devices: int = 1,
) -> Session:
    """Load a model by alias, hub id, folder or file.

    Args:
        model: an alias that ``h2gen models`` lists, such as ``tiny`` or ``dev``; a hub id, a diffusers folder, or a
            ``.safetensors`` or ``.gguf`` file that holds only a transformer.
        base: the model that supplies the rest of a single file.
        vae: a file to take the autoencoder from.
        text_encoder: a file to take a text encoder from, or several.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``, ...
        dtype: ``auto`` (bf16 on a GPU that has it, fp32 on the CPU), ``bf16``, ``fp16``, ``fp32``.
        offload: what is on a GPU at a time: ``none`` (everything), ``text``, ``model``, ``group`` or ``sequential``;
            ``auto`` is the first of these that fits.
        memory: GPU memory that ``offload="auto"`` may use: ``auto`` (what is free), or at most ``10GB``; ``none`` loads
            everything without asking.
        quantize: how the transformer's weights are stored: ``int8``, ``fp8``, ``nf4``, ...; see docs/quantize.md.
        quantize_text: likewise those of the text encoders, except CLIP's.
        compile: compile the transformer's blocks when they first run, which takes up to minutes.
        devices: that make each picture together, each in a process of its own with the whole model.

    Raises:
        ArgumentError: there is no such argument.
        ModelError: the checkpoint is unknown, missing, gated, damaged or not supported.
        SettingError: ``memory`` is not a size, or the options do not go together.
        DeviceError: the device does not exist, or does not support the dtype, offloading, quantization or compiling.
        OutOfMemory: memory does not suffice for loading it.

    >>> session = h2gen.load("tiny")  # doctest: +SKIP
    >>> session.generate("a cat", seed=7).image  # doctest: +SKIP
    """
    device, memory = BY_NAME["device"].check(device), BY_NAME["memory"].check(memory)
    options = LoadOptions(device, dtype, offload, memory, quantize, quantize_text, compile, devices)
    check_together(options)
    checkpoint = resolve(model, base, vae, text_encoder)
    if devices == 1:
        session = open_session(checkpoint, options)
    else:
        check_devices(options, checkpoint)
        from h2gen.generation.companions import open_together

        session = open_together(checkpoint, options)
    unheeded = unheeded_limit(options, session.device.type)
    if unheeded is not None:
        warnings.warn(unheeded, RuntimeWarning, stacklevel=3)  # 2 is the decorator
    return session
