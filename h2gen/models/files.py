"""Look at a checkpoint's files before anything loads them: what is there, is it whole, and what does it hold.

A safetensors file says in its first bytes which tensors it holds and where each ends, so a broken one is found in
milliseconds, however large it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from h2gen.errors import ModelError
from h2gen.models.catalogue import PICKLES
from h2gen.wording import printable

INDEX = "model_index.json"
PIPELINES = ("FluxPipeline", "Flux2Pipeline", "Flux2KleinPipeline")
LIBRARIES = ("diffusers", "transformers")
LARGEST_HEADER = 100_000_000  # bytes; the safetensors format's own limit
VOCABULARIES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model", "tekken.json")
STEMS = ("diffusion_pytorch_model", "model")
AGAIN = "fetch it again"


def shown(path: Path) -> str:
    return repr(printable(str(path)))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ModelError: there is none.
    """
    try:
        data = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ModelError(f"{shown(path)} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{shown(path)} is not valid JSON; {AGAIN}.") from error
    if not isinstance(data, dict):
        raise ModelError(f"{shown(path)} does not hold a JSON object; {AGAIN}.")
    return data


def read_index(folder: Path) -> dict[str, Any]:
    """A checkpoint's ``model_index.json``, once it is known to be a Flux that needs no code but diffusers' own.

    Raises:
        ModelError: there is none, it is of another pipeline, or a part of it comes from another library.
    """
    if not (folder / INDEX).is_file():
        raise ModelError(f"{shown(folder)} is not a checkpoint in diffusers' layout: it has no {INDEX}.")
    index = read_json(folder / INDEX)
    pipeline = index.get("_class_name")
    if pipeline not in PIPELINES:
        raise ModelError(
            f"{shown(folder)} is not a Flux text-to-image checkpoint: its {INDEX} says {printable(repr(pipeline))}; "
            f"h2gen loads {', '.join(PIPELINES)}."
        )
    for name, (library, kind) in components(index).items():
        if library not in LIBRARIES or not kind.isidentifier() or kind.startswith("_") or not name.isidentifier():
            raise ModelError(
                f"{shown(folder)} takes its {printable(repr(name))} from {printable(f'{library}.{kind}')!r}; "
                "h2gen runs no code from outside diffusers and transformers."
            )
    return index


def components(index: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """The parts that an index names, each with its library and class; parts left empty are left out."""
    pairs = {key: value for key, value in index.items() if isinstance(value, list) and len(value) == 2}
    return {key: (str(library), str(kind)) for key, (library, kind) in pairs.items() if library is not None}


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of one model, each of them whole.

    Raises:
        ModelError: there are none, one of several is missing, or one is damaged.
    """
    for stem in STEMS:
        index = folder / f"{stem}.safetensors.index.json"
        if index.is_file():
            files = _shards(index)
            break
        if (folder / f"{stem}.safetensors").is_file():
            files = [folder / f"{stem}.safetensors"]
            break
    else:
        if any(path.suffix in PICKLES for path in folder.iterdir()):
            raise ModelError(
                f"{shown(folder)} has its weights only as pickles, which can run code when they are opened; "
                "h2gen reads safetensors."
            )
        raise ModelError(
            f"{shown(folder)} has no weights: there is no {STEMS[0]}.safetensors or {STEMS[1]}.safetensors."
        )
    for file in files:
        safetensors_shapes(file)
    return files


def check_parts(folder: Path, index: dict[str, Any]) -> None:
    """See that every part that an index names has its files; transformers makes an empty tokenizer where there is none.

    Raises:
        ModelError: a part has none.
    """
    for name in components(index):
        if not (folder / name).is_dir():
            raise ModelError(f"{shown(folder / name)} is missing; {AGAIN}.")
        if name.startswith("tokenizer") and not any((folder / name / file).is_file() for file in VOCABULARIES):
            raise ModelError(f"{shown(folder / name)} has no vocabulary, such as {VOCABULARIES[0]}; {AGAIN}.")


def _shards(index: Path) -> list[Path]:
    weights = read_json(index).get("weight_map")
    names = sorted(set(map(str, weights.values()))) if isinstance(weights, dict) else []
    if not names:
        raise ModelError(f"{shown(index)} names no weights; {AGAIN}.")
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelError(
                f"{shown(index)} names {printable(repr(name))}, which is not a safetensors file beside it."
            )
        if not (index.parent / name).is_file():
            raise ModelError(f"{shown(index.parent)} is missing the file {name}, one of its {len(names)}; {AGAIN}.")
    return [index.parent / name for name in names]


def safetensors_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The name and shape of each tensor of a safetensors file, without reading the tensors.

    Raises:
        ModelError: it is cut short, or is no safetensors file.
    """
    try:
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            header = file.read(length) if length <= LARGEST_HEADER else b""
        size = path.stat().st_size
    except OSError as error:
        raise ModelError(f"{shown(path)} cannot be read: {error.strerror or error}.") from error
    if len(start) < 8 or length > LARGEST_HEADER or header[:1] not in (b"{", b""):
        raise ModelError(f"{shown(path)} is not a safetensors file ({size} bytes); {AGAIN}.")
    if len(header) < length:
        raise ModelError(f"{shown(path)} is cut short: it ends inside its header, after {size} bytes; {AGAIN}.")
    try:
        tensors = {name: value for name, value in json.loads(header).items() if name != "__metadata__"}
        end = 8 + length + max((int(value["data_offsets"][1]) for value in tensors.values()), default=0)
        shapes = {name: tuple(int(side) for side in value["shape"]) for name, value in tensors.items()}
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise ModelError(f"{shown(path)} is not a safetensors file: its header is damaged; {AGAIN}.") from error
    if size < end:
        raise ModelError(f"{shown(path)} is cut short: it has {size} of {end} bytes; {AGAIN}.")
    return shapes


def family(names: Iterable[str]) -> str | None:
    """Which transformer a single file's tensors belong to, by diffusers' names or the original ones; else None."""
    found = set(names)
    if any("lora_" in name or ".lora" in name for name in found):
        return "LoRA"
    if any("double_stream_modulation_img.lin" in name for name in found):
        return "Flux2Transformer2DModel"
    if any("double_blocks.0.img_attn.qkv" in name or "transformer_blocks.0.attn.add_q_proj" in name for name in found):
        return "FluxTransformer2DModel"
    return None


def depth(names: Iterable[str]) -> tuple[int, int]:
    """How many double-stream and single-stream blocks a single file holds."""
    double: set[str] = set()
    single: set[str] = set()
    for name in names:
        block = re.search(r"(single_)?(?:transformer_)?blocks\.(\d+)\.|double_blocks\.(\d+)\.", name)
        if block is not None:
            (single if block[1] else double).add(block[2] or block[3])
    return len(double), len(single)


def takes_guidance(names: Iterable[str]) -> bool:
    """Whether a single file's transformer has been distilled to take a guidance scale."""
    return any("guidance_in." in name or "guidance_embedder." in name for name in names)
