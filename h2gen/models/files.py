"""Check that a checkpoint's files are all present and complete, before anything loads them.

A safetensors file lists its tensors and where each ends in its first bytes, so a broken one is found in milliseconds,
however large it is.
"""

from __future__ import annotations

import importlib.util
import json
import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from h2gen.errors import ModelError
from h2gen.families import FAMILIES, PIPELINES
from h2gen.families.single_file import IN_A_BLOCK
from h2gen.wording import printable

WEIGHTS = (".safetensors", ".gguf")
PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
INDEX = "model_index.json"
MODULAR_INDEX = "modular_model_index.json"
"""The index of a modular pipeline, in place of the other one."""
LIBRARIES = ("diffusers", "transformers")
LARGEST_HEADER = 100_000_000  # bytes; the safetensors format's own limit
VOCABULARIES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model", "tekken.json")
_OF_MODULAR = ("transformer", "text_encoder", "tokenizer", "vae", "scheduler")
"""Parts of a modular pipeline that are loaded. Others, such as a model that rewrites prompts, are left out."""
STEMS = ("diffusion_pytorch_model", "model")
AGAIN = "download it again"
OWN_DTYPES = ("bf16", "fp16")
"""Variants that are preferred, if a part has no weights but variants."""
_CACHED = re.compile(r"models--([^/\\]+)--([^/\\]+)")
"""A repository's folder in the cache of the hub."""


class Stored(NamedTuple):
    """A tensor of a file, by its header: the dtype, as the file's format writes it, and the shape."""

    dtype: str
    shape: tuple[int, ...]


class Header(NamedTuple):
    """What a safetensors file says about itself: its tensors, and any other text."""

    tensors: dict[str, Stored]
    metadata: dict[str, str]


def shown(path: Path) -> str:
    """A path in quotes, safe to print."""
    return repr(printable(str(path)))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ModelError: the file cannot be read, or holds something else.
    """
    try:
        data = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{shown(path)} is not valid JSON; {AGAIN}.") from error
    if not isinstance(data, dict):
        raise ModelError(f"{shown(path)} does not hold a JSON object; {AGAIN}.")
    return data


def index_of(folder: Path) -> Path:
    """The file that is a checkpoint's index."""
    modular = folder / MODULAR_INDEX
    return modular if modular.is_file() and not (folder / INDEX).is_file() else folder / INDEX


def read_index(folder: Path) -> dict[str, Any]:
    """A checkpoint's index, checked: of a pipeline that h2gen loads, made of diffusers' own parts only.

    Raises:
        ModelError: the file is missing, names another pipeline, or takes a part from another library.
    """
    path = index_of(folder)
    if not path.is_file():
        single = sorted(path.name for path in folder.glob("*") if path.suffix.lower() in WEIGHTS)
        hint = f"; to use {printable(single[0])!r} in it, give that file, with --base" if single else ""
        if transformer_in(folder) is not None:
            hint = "; to use the transformer in it, name the model that supplies the rest, such as --base dev"
        raise ModelError(f"{shown(folder)} is not a checkpoint in diffusers' layout: it has no {INDEX}{hint}.")
    index = read_json(path)
    pipeline = index.get("_class_name")
    parts = components(index)
    if pipeline not in PIPELINES:
        family = FAMILIES.get(parts.get("transformer", ("", ""))[1])
        hint = " In Python, load it with diffusers and call h2gen.h2_cache(pipe)." if family is not None else ""
        if family is not None and family.makes_video:
            known = f"with {family.title}, h2gen makes videos from text only ({' and '.join(family.tasks)})"
        else:
            of = "" if family is None else f" of {family.title}"
            known = f"h2gen loads {', '.join(PIPELINES if family is None else family.tasks)}{of}"
        raise ModelError(
            f"{shown(folder)} is not a checkpoint that h2gen supports: its {path.name} says "
            f"{printable(repr(pipeline))}; {known}.{hint}"
        )
    if "transformer_2" in parts or index.get("boundary_ratio") is not None:
        raise ModelError(
            f"{shown(folder)} has two transformers, one for the first steps and one for the others, as Wan 2.2 has; "
            "h2gen runs models with one, such as wan and wan-14b."
        )
    if index.get("expand_timesteps"):
        raise ModelError(
            f"{shown(folder)} uses a separate timestep for each token, as Wan 2.2 5B does, which h2gen does not "
            "support; use a model such as wan or wan-14b."
        )
    for name, (library, kind) in parts.items():
        if library not in LIBRARIES or not kind.isidentifier() or kind.startswith("_") or not name.isidentifier():
            raise ModelError(
                f"{shown(folder)} takes its {printable(repr(name))} from {printable(f'{library}.{kind}')!r}; "
                "h2gen runs no code from outside diffusers and transformers."
            )
    return index


def components(index: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """The parts that an index names, each with its library and class; empty parts are left out."""
    pairs = {key: value for key, value in index.items() if isinstance(value, list) and len(value) == 2}
    for name in _OF_MODULAR:
        value = index.get(name)
        if isinstance(value, list) and len(value) == 3:  # not loaded when it was saved: only a hint at the type
            hint = value[2].get("type_hint") if isinstance(value[2], dict) else None
            pairs[name] = value[:2] if value[0] is not None or not isinstance(hint, list) else hint
    return {key: (str(library), str(kind)) for key, (library, kind) in pairs.items() if library is not None}


def transformer_in(folder: Path) -> Path | None:
    """Where in a folder that is not a whole model a transformer of a family is: in itself or in ``transformer``."""
    if index_of(folder).is_file():
        return None
    for part in (folder, folder / "transformer"):
        try:
            if read_json(part / "config.json").get("_class_name") in FAMILIES:
                return part
        except ModelError:
            continue
    return None


class Weights(NamedTuple):
    """The safetensors files of one part, and the variant that they are, such as ``fp16``; None for the usual ones."""

    files: list[Path]
    variant: str | None


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of one part, each checked for completeness.

    Raises:
        ModelError: the part has none, a shard is missing, or a file is damaged.
    """
    return find_weights(folder).files


def files_of_part(folder: Path) -> list[Path]:
    """The files that are read to load one part: its weights and its configurations.

    Raises:
        ModelError: as ``weight_files``.
    """
    return [*weight_files(folder), *sorted(folder.glob("*.json"))]


def find_weights(folder: Path) -> Weights:
    """The safetensors files of one part, each checked for completeness; a variant's if it has only variants.

    Raises:
        ModelError: the part has none, a shard is missing, or a file is damaged.
    """
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError as error:
        raise unreadable(folder, error) from error
    found = next((each for variant in (None, *_variants(names)) if (each := _listed(folder, variant))), None)
    if found is None:
        if any(name.endswith(PICKLES) for name in names):
            raise ModelError(
                f"{shown(folder)} has its weights only as pickles, which can run code when they are opened; "
                "h2gen reads safetensors files only. Use a checkpoint that has them."
            )
        raise ModelError(
            f"{shown(folder)} has no weights: it holds neither {STEMS[0]}.safetensors nor {STEMS[1]}.safetensors; "
            f"{again(folder / '*')}."
        )
    for file in found.files:
        read_header(file)
    return found


def _listed(folder: Path, variant: str | None) -> Weights | None:
    """The files of a variant by the names that diffusers and transformers give them; None if there are none."""
    dotted = "" if variant is None else f".{variant}"
    for stem in STEMS:
        index = folder / f"{stem}.safetensors.index{dotted}.json"
        if index.is_file():
            return Weights(_shards(index), variant)
        if (file := folder / f"{stem}{dotted}.safetensors").is_file():
            return Weights([file], variant)
    return None


def _variants(files: Iterable[str]) -> list[str]:
    """The variants of a part's weights among the names of its files, the preferred one first."""
    names = "|".join(STEMS)
    pattern = re.compile(rf"(?:{names})\.(?:(\w+)\.safetensors|safetensors\.index\.(\w+)\.json)")
    found = {match[1] or match[2] for file in files if (match := pattern.fullmatch(file))}
    return sorted(found, key=lambda name: (name not in OWN_DTYPES, name))


def again(path: Path, *, damaged: bool = False) -> str:
    """What to do about a file or a folder that is missing or damaged: for one from the hub, the command."""
    parts, force = path.parts, " --force-download" if damaged else ""
    for index, part in enumerate(parts):
        if (repo := _CACHED.fullmatch(part)) and parts[index + 1 : index + 2] == ("snapshots",):
            inside = "/".join(parts[index + 3 :])
            what = f" --include {printable(inside)!r}" if inside else ""
            return f"run `hf download {printable(repo[1])}/{printable(repo[2])}{what}{force}`"
    return AGAIN


def report_unused(where: Path, names: Sequence[str], model: str) -> None:
    """Report tensors that the model does not take: with a warning, or an error if they would change its pictures.

    Args:
        where: the file or folder that holds them.
        names: of the tensors.
        model: which does not take them.

    Raises:
        ModelError: some belong to its blocks, or are scales of its weights.
    """
    if inside := [name for name in names if IN_A_BLOCK.search(name) or "scale" in name]:
        raise ModelError(
            f"{shown(where)} holds {_some(inside)}, which {model} does not have, so its pictures would be wrong; use "
            "another file of this model."
        )
    if names:
        message = f"{shown(where)} also holds {_some(names)}, which {model} does not have; ignored."
        warnings.warn(message, RuntimeWarning, stacklevel=2)


def unreadable(path: Path, error: OSError) -> ModelError:
    """The error for a file or a folder that cannot be opened."""
    if isinstance(error, FileNotFoundError):
        return ModelError(f"{shown(path)} is missing; {again(path)}.")
    return ModelError(f"{shown(path)} cannot be read: {error.strerror or error}; check its permissions.")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{printable(names[0])!r}{more}"


def check_parts(folder: Path, index: dict[str, Any]) -> None:
    """Check that every part that an index names has its files. Without them transformers makes an empty tokenizer.

    Raises:
        ModelError: a part has no folder, or a tokenizer no vocabulary.
    """
    for name in components(index):
        if not (folder / name).is_dir():
            raise ModelError(f"{shown(folder / name)} is missing; {again(folder / name / '*')}.")
        if name.startswith("tokenizer") and not any((folder / name / file).is_file() for file in VOCABULARIES):
            mend = again(folder / name / VOCABULARIES[0])
            raise ModelError(f"{shown(folder / name)} has no vocabulary, such as {VOCABULARIES[0]}; {mend}.")


def _shards(index: Path) -> list[Path]:
    weights = read_json(index).get("weight_map")
    names = sorted(set(map(str, weights.values()))) if isinstance(weights, dict) else []
    if not names:
        raise ModelError(f"{shown(index)} lists no weights; {AGAIN}.")
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelError(
                f"{shown(index)} names {printable(repr(name))}, which is not a safetensors file in the same folder; "
                f"{AGAIN}."
            )
        if not (index.parent / name).is_file():
            raise ModelError(
                f"{shown(index.parent)} is missing the file {name}, one of its {len(names)}; "
                f"{again(index.parent / name)}."
            )
    return [index.parent / name for name in names]


def read_header(path: Path) -> Header:
    """The header of a safetensors file, without reading its tensors.

    Raises:
        ModelError: the file is cut short, or is not a safetensors file.
    """
    try:
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            header = file.read(length) if length <= LARGEST_HEADER else b""
        size = path.stat().st_size
    except OSError as error:
        raise unreadable(path, error) from error
    mend = again(path, damaged=True)
    if len(start) < 8 or length > LARGEST_HEADER or header[:1] not in (b"{", b""):
        raise ModelError(f"{shown(path)} is not a safetensors file ({size} bytes); {mend}.")
    if len(header) < length:
        raise ModelError(f"{shown(path)} is cut short: it ends inside its header, after {size} bytes; {mend}.")
    try:
        tensors = dict(json.loads(header))
        metadata = {str(key): str(value) for key, value in dict(tensors.pop("__metadata__", {})).items()}
        end = 8 + length + max((int(value["data_offsets"][1]) for value in tensors.values()), default=0)
        stored = {
            name: Stored(str(value["dtype"]), tuple(int(side) for side in value["shape"]))
            for name, value in tensors.items()
        }
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ModelError(f"{shown(path)} is not a safetensors file: its header is damaged; {mend}.") from error
    if size < end:
        raise ModelError(f"{shown(path)} is cut short: it has {size} of {end} bytes; {mend}.")
    return Header(stored, metadata)


def tensors_of(path: Path) -> Header:
    """The header of a .safetensors or .gguf file.

    Raises:
        ModelError: the file is damaged, or the gguf package is not installed.
    """
    return Header(_gguf_tensors(path), {}) if path.suffix.lower() == ".gguf" else read_header(path)


def bits_of(dtype: str) -> float:
    """The bits that a weight takes in a file; 16 if the type is unknown.

    Args:
        dtype: of a ``Stored`` tensor, in the words of safetensors or GGUF.
    """
    if "Q" in dtype and importlib.util.find_spec("gguf") is not None:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        if dtype in GGMLQuantizationType.__members__:
            weights, size = GGML_QUANT_SIZES[GGMLQuantizationType[dtype]]
            return 8.0 * int(size) / int(weights)
    number = re.search(r"\d+", dtype)
    return float(number[0]) if number else 16.0


def _gguf_tensors(file: Path) -> dict[str, Stored]:
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(f"{shown(file)} needs the gguf package; run: pip install gguf.")
    import gguf

    try:
        return {
            tensor.name: Stored(tensor.tensor_type.name, tuple(int(side) for side in reversed(tensor.shape)))
            for tensor in gguf.GGUFReader(file).tensors
        }
    except Exception as error:
        # The reader checks nothing itself, so numpy, struct and enum errors all mean the same.
        raise ModelError(f"{shown(file)} is cut short or is not a gguf file; {AGAIN}.") from error
