"""Checks before loading that a model can be loaded as asked; loads torch only where that may fail."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from h2gen.errors import ModelError
from h2gen.models import files
from h2gen.models.catalogue import Checkpoint
from h2gen.models.choices import memory_limit
from h2gen.models.facts import facts_of, folder_of
from h2gen.models.load_options import LoadOptions
from h2gen.models.part_files import TRANSFORMER, by_component, check_all_fit, parts_of
from h2gen.models.quantization import NONE, stored_quantization

if TYPE_CHECKING:
    import torch

    from h2gen.models.quantize import Quantizer

_LOCAL = ("auto", "cpu")
"""Devices that need no check."""


def check_options(options: LoadOptions) -> tuple[torch.device, torch.dtype, Quantizer]:
    """Check the options for any model. Returns the device, the dtype and what quantizes the weights.

    Raises:
        SettingError: the limit of memory is not a size.
        DeviceError: the device does not exist, does not support the dtype, the offloading or the quantization, or a
            package or a compiler is missing.
    """
    from h2gen.models.devices import choose_device, choose_dtype
    from h2gen.models.memory import check_offload
    from h2gen.models.quantize import Quantizer

    where = choose_device(options.device)
    precision = choose_dtype(options.dtype, where)
    check_offload(options.offload, where)
    memory_limit(options.memory)
    quantizer = Quantizer(options, where, precision)
    if options.compile and options.offload != "sequential":
        from h2gen.models.compiling import check_compile

        check_compile(where)
    return where, precision, quantizer


def check_loading(checkpoint: Checkpoint, options: LoadOptions) -> set[str]:
    """Check how a model would be loaded, with what its files on this machine say. Nothing is loaded or downloaded.

    Returns:
        The ways of offloading that do not work with its quantization, whether stored or asked for.

    Raises:
        SettingError, DeviceError: see ``check_options``.
        ModelError: a part that is to be quantized is stored quantized, or a file needs another base.
    """
    places = dict(_places(checkpoint))
    asked = options.quantize, options.quantize_text, options.compile, options.offload in ("auto", NONE)
    plain = asked == (NONE, NONE, False, True) and options.device in _LOCAL
    if plain and checkpoint.kind != "file" and not any(map(stored_quantization, places.values())):
        memory_limit(options.memory)
        return set()
    quantizer = check_options(options)[2]
    for name, path in places.items():
        quantizer.check_stored(name, path)
    if checkpoint.kind == "file":
        from h2gen.models.single_file import check_base, check_family, open_file

        folder, file = folder_of(checkpoint), open_file(Path(checkpoint.location))
        check_family(file, checkpoint)
        quantizer.keep(file.four_bits.kind, file.path)
        if folder is not None:
            check_base(file, checkpoint, folder)
    return quantizer.refused


def check_index(checkpoint: Checkpoint) -> None:
    """Check that a model on this machine is one that h2gen loads.

    Raises:
        ModelError: it is not, a transformer needs another base, or a file is of a part that it lacks; loading it would
            say the same.
    """
    folder = folder_of(checkpoint)
    if folder is None:
        return
    index = files.read_index(folder)
    if checkpoint.parts:
        check_all_fit(checkpoint.parts, index, (checkpoint.base or checkpoint).name)
    if checkpoint.kind == "transformer":
        from h2gen.models.single_file import check_transformer

        check_transformer(checkpoint, folder)


def _places(checkpoint: Checkpoint) -> Iterator[tuple[str, Path]]:
    """The parts of a checkpoint that are on this machine, by name, each with its folder or file."""
    facts = facts_of(checkpoint)
    folder = None if facts is None else facts.folder
    if folder is None:
        if checkpoint.base is not None:
            yield TRANSFORMER, Path(checkpoint.location)
        return
    try:
        index = files.read_index(folder)
    except ModelError:  # loading it reports what is wrong
        return
    others = by_component(parts_of(checkpoint), index)
    for name in files.components(index):
        yield name, others[name].path if name in others else folder / name
