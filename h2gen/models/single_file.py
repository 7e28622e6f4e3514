"""Load a transformer from a single file. Each of its tensors is used or reported, and none of the model's is random.

Everything is checked by the file's header and the base's configuration, before any weights are read.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from h2gen.errors import ModelError
from h2gen.families import FAMILIES, Family, recognize
from h2gen.families.single_file import ONLY, input_channels, other_kind
from h2gen.models import files
from h2gen.models.catalogue import CATALOGUE, Checkpoint
from h2gen.models.files import Stored, shown
from h2gen.models.four_bits import FourBits
from h2gen.models.part_files import sections_beside
from h2gen.models.quantized import Scales, check_layout, read_configs
from h2gen.wording import printable

_PARTS = ("text_encoders.", "text_encoder.", "vae.", "first_stage_model.", "cond_stage_model.", "conditioner.")
"""What names of the other parts begin with in a file that holds a whole checkpoint."""


@dataclass(frozen=True)
class SingleFile:
    """A file that holds a transformer; only its header has been read.

    Args:
        path: of the file.
        family: of the transformer.
        prefix: before the transformer's names in the file, such as ``model.diffusion_model.``.
        tensors: of the transformer, by their names without the prefix; scales are left out.
        four_bits: those of the weights that are stored in 4 bits.
        scales: of the weights that have some.
        others: the names of all other tensors.
    """

    path: Path
    family: Family
    prefix: str
    tensors: dict[str, Stored]
    four_bits: FourBits
    scales: Scales
    others: tuple[str, ...]

    @property
    def is_gguf(self) -> bool:
        return self.path.suffix.lower() == ".gguf"


def open_file(path: Path) -> SingleFile:
    """Read the header of a single file.

    Raises:
        ModelError: the file is damaged, is not a transformer of a family, or is quantized in a way that h2gen does not
            read.
    """
    gguf = path.suffix.lower() == ".gguf"
    header = files.tensors_of(path)
    names = list(header.tensors)
    check_layout(path, names, four_bits=any(".quant_state.bitsandbytes__" in name for name in names))
    if gguf:
        _check_types(path, header.tensors)
    family = recognize(names)
    kind = other_kind(names, family, path)
    if kind is not None:
        raise kind.refusal(path)
    if family is None:
        example = f"its first tensor is {printable(names[0])!r}" if names else "it holds no tensors"
        raise ModelError(f"{shown(path)} is not a transformer that h2gen supports ({example}). {ONLY}.")
    prefix = family.prefix(names) or ""
    tensors = {name.removeprefix(prefix): header.tensors[name] for name in names if name.startswith(prefix)}
    others = [name for name in names if not name.startswith(prefix)]
    if not prefix:
        others += [name for name in names if name.startswith(_PARTS)]
        tensors = {name: stored for name, stored in tensors.items() if not name.startswith(_PARTS)}
    configs: dict[str, dict[str, Any]] = {}
    if not gguf:
        for layer, config in read_configs(path, names, header.metadata).items():
            if not layer.startswith(_PARTS):
                configs[layer.removeprefix(prefix)] = config
    four_bits = FourBits(path, tensors, prefix)
    scales = Scales(path, {} if gguf else tensors, configs)
    return SingleFile(path, family, prefix, tensors, four_bits, scales, tuple(others))


def _check_types(path: Path, tensors: Mapping[str, Stored]) -> None:
    """Check that diffusers can compute with every type of a GGUF file; it has fewer than the gguf package.

    Raises:
        ModelError: it cannot.
    """
    from diffusers.quantizers.gguf.utils import SUPPORTED_GGUF_QUANT_TYPES

    known = [*(kind.name for kind in SUPPORTED_GGUF_QUANT_TYPES), "F16", "F32"]
    for name, stored in tensors.items():
        if stored.dtype not in known:
            raise ModelError(
                f"{shown(path)} stores {printable(name)!r} as {stored.dtype}, which diffusers cannot compute with; use "
                f"a file of one of these types: {', '.join(dict.fromkeys(known))}."
            )


def check_family(file: SingleFile, checkpoint: Checkpoint) -> None:
    """As ``check_base``, as far as can be said before the base is downloaded.

    Raises:
        ModelError: the base is known to be of another family.
    """
    entry = CATALOGUE.get(checkpoint.base.name) if checkpoint.base else None
    if entry is not None and entry.family != file.family.title:
        raise _wrong_family(file.family, checkpoint, entry.family)


def check_base(file: SingleFile, checkpoint: Checkpoint, folder: Path) -> None:
    """Check that the file's transformer is the one of its base.

    Args:
        file: the checkpoint's.
        checkpoint: a single file with a base.
        folder: of the base.

    Raises:
        ModelError: it is of another family, or differs in its blocks or inputs.
    """
    name, base = repr(checkpoint.name), repr(checkpoint.base.name if checkpoint.base else None)
    kind = files.components(files.read_index(folder)).get("transformer", ("", "nothing"))[1]
    family = file.family
    if kind != family.transformer:
        raise _wrong_family(family, checkpoint, FAMILIES[kind].title if kind in FAMILIES else kind)
    shapes = {tensor: stored.shape for tensor, stored in file.tensors.items()}
    config = files.read_json(folder / "transformer" / "config.json")
    channels = input_channels(shapes)
    if channels is not None and channels in family.with_pictures and channels != config.get("in_channels"):
        title, pipeline = family.with_pictures[channels]
        bases = [alias for alias, entry in CATALOGUE.items() if entry.index["_class_name"] == pipeline]
        raise ModelError(
            f"{name} is {title}, which takes a picture besides the prompt, and its base {base} does not; give "
            f"--base {' or '.join(bases)}."
        )
    for ours, theirs in zip(family.file_traits(shapes), family.config_traits(config), strict=True):
        if ours != theirs and "None" not in ours + theirs:
            raise ModelError(f"{name} {ours} and its base {base} {theirs}; {_way_out([ours])}.")


_OF_THE_BASE = {"in_channels", "joint_attention_dim", "pooled_projection_dim", "text_dim", "text_embed_dim"}
"""What a transformer's configuration must have in common with its base's: what the other parts give and take."""
_TASK = "image_condition_type"
"""Set in the configuration of a HunyuanVideo transformer that starts from a picture, and missing for text-to-video."""


def check_transformer(checkpoint: Checkpoint, folder: Path) -> None:
    """As ``check_base``, for a folder with a transformer, which has its own configuration: its blocks may differ.

    Raises:
        ModelError: it is of another family than its base, or does not go with the base's other parts.
    """
    own = files.read_json(Path(checkpoint.location) / "config.json")
    theirs = files.read_json(folder / "transformer" / "config.json")
    family = FAMILIES[str(own["_class_name"])]
    found = str(theirs.get("_class_name"))
    if found != family.transformer:
        raise _wrong_family(family, checkpoint, FAMILIES[found].title if found in FAMILIES else printable(found))
    base = checkpoint.base.name if checkpoint.base else None
    way_out = _way_out(family.config_traits(own), starts_from_picture=own.get(_TASK) is not None)
    for key in (own.keys() & theirs.keys() & _OF_THE_BASE) | {_TASK}:
        if own.get(key) != theirs.get(key):
            ours, other = (printable(repr(config.get(key)))[:40] for config in (own, theirs))
            raise ModelError(f"{checkpoint.name!r} has {key} {ours}, but its base {base!r} has {other}; {way_out}.")


def _way_out(traits: Iterable[str], *, starts_from_picture: bool = False) -> str:
    """What to say about a transformer that does not go with its base; no base helps if it is image-to-video."""
    if starts_from_picture or any("(image-to-video)" in trait for trait in traits):
        return "h2gen makes videos from text only"
    return "give another base"


def _wrong_family(family: Family, checkpoint: Checkpoint, found: str) -> ModelError:
    title, base = family.title, checkpoint.base.name if checkpoint.base else None
    bases = [alias for alias, entry in CATALOGUE.items() if entry.family == title and entry.repo]
    return ModelError(
        f"{checkpoint.name!r} is a transformer of {title}, and its base {base!r} is {found}; give a base of {title}, "
        f"such as {' or '.join([*bases[:1], *bases[1:][-1:]])}."
    )


def load_transformer(file: SingleFile, folder: Path, dtype: torch.dtype) -> Any:
    """The transformer, with all its weights from the file.

    Args:
        file: from ``open_file``.
        folder: of the base, which has the configuration.
        dtype: of the weights; of the computation, if they are quantized as GGUF.

    Raises:
        ModelError: the file lacks weights, has some of other shapes, or has some that the model does not take.
    """
    import diffusers

    unused = check_fit(file, folder)
    weights = _read(file)
    for name in unused:
        weights.pop(name, None)
    file.four_bits.apply(weights, dtype)
    file.scales.apply(weights, dtype)
    options: dict[str, Any] = {}
    if file.is_gguf:
        options["quantization_config"] = diffusers.GGUFQuantizationConfig(compute_dtype=dtype)
    model = getattr(diffusers, file.family.transformer).from_single_file(
        weights, config=str(folder), subfolder="transformer", dtype=dtype, local_files_only=True, **options
    )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ModelError(f"{shown(file.path)} lacks some of its weights; {files.AGAIN}, or give another base.")
    return model.eval()


def check_fit(file: SingleFile, folder: Path) -> list[str]:
    """Convert the file's names on tensors without data, and compare the result with the model.

    Returns the names of tensors that the model does not take, all of them reported.
    """
    import diffusers
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    cls = getattr(diffusers, file.family.transformer)
    with torch.device("meta"):
        model = cls.from_config(files.read_json(folder / "transformer" / "config.json"))
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    weights = {name: torch.empty(stored.shape, device="meta") for name, stored in file.tensors.items()}
    left = weights
    if not (wanted.keys() <= weights.keys() or any("transformer_blocks." in name for name in weights)):
        convert = SINGLE_FILE_LOADABLE_CLASSES[file.family.transformer]["checkpoint_mapping_fn"]
        try:
            weights = convert(checkpoint=left, config=model.config)
        except KeyError as error:
            raise _lacks(file, [str(error.args[0])], file.tensors) from error
        except (LookupError, RuntimeError, ValueError) as error:
            raise ModelError(
                f"{shown(file.path)} cannot be converted to diffusers' names ({printable(str(error))[:200]}); use a "
                "file that has them."
            ) from error
    if missing := sorted(wanted.keys() - weights.keys()):
        raise _lacks(file, missing, {})
    for name, shape in wanted.items():
        if tuple(weights[name].shape) != shape:
            raise ModelError(
                f"{shown(file.path)} is of another size than its base: {printable(name)!r} has the shape "
                f"{list(weights[name].shape)}, and the base's has {list(shape)}; give another base."
            )
    unused = [name for name in dict.fromkeys([*left, *weights]) if name not in wanted]
    _report(file, unused)
    return unused


def _lacks(file: SingleFile, missing: list[str], present: dict[str, Stored]) -> ModelError:
    # diffusers' conversion also looks up parts of names that it does not know.
    unknown = [name for name in present if f".{missing[0]}." in name]
    if unknown:
        files.report_unused(file.path, unknown, file.family.title)
    count = f"{len(missing)} of its weights, such as " if len(missing) > 1 else ""
    return ModelError(
        f"{shown(file.path)} lacks {count}{printable(missing[0])!r}; {files.AGAIN}, or give another base."
    )


def _report(file: SingleFile, unused: list[str]) -> None:
    parts = [name for name in file.others if name.startswith(_PARTS)]
    files.report_unused(file.path, [*unused, *(name for name in file.others if name not in parts)], file.family.title)
    known = tuple(part.prefix.removesuffix("transformer.") for part in sections_beside(file.path))
    if others := [name for name in parts if not name.startswith(known)]:
        warnings.warn(
            f"{shown(file.path)} also holds {printable(others[0])!r}, a part that h2gen does not know; the base's is "
            "used.",
            RuntimeWarning,
            stacklevel=2,
        )


def _read(file: SingleFile) -> dict[str, Any]:
    """The tensors of the transformer, with their scales, by names without the prefix. They stay in the mapped file."""
    from diffusers.models.model_loading_utils import load_gguf_checkpoint
    from safetensors.torch import load_file

    every = load_gguf_checkpoint(str(file.path)) if file.is_gguf else load_file(file.path)
    others = {*file.others}
    return {name.removeprefix(file.prefix): tensor for name, tensor in every.items() if name not in others}
