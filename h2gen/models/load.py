"""A checkpoint becomes a pipeline, from safetensors or gguf alone, in silence, or an error of one line says why not."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from h2gen.errors import ModelError
from h2gen.models import files
from h2gen.models.catalogue import Checkpoint
from h2gen.models.content_hash import check_bundled
from h2gen.models.hub import download
from h2gen.models.memory import apply_offload, check_offload, choose_device, choose_dtype
from h2gen.models.translate_errors import translated
from h2gen.wording import printable

TILED_ABOVE = 1536 * 1536
"""Pixels. A larger picture is decoded in tiles, since the decoder's activations outgrow the weights."""


def load_pipeline(checkpoint: Checkpoint, *, device: str = "auto", dtype: str = "auto", offload: str = "none") -> Any:
    """Load a checkpoint into a pipeline of diffusers that is ready to call.

    Args:
        checkpoint: from ``resolve``.
        device: "auto", "cuda", "cuda:1", "mps", "xpu" or "cpu".
        dtype: of all parts: "auto", "bf16", "fp16" or "fp32".
        offload: "none", "model", "group", "sequential" or "auto"; see ``apply_offload``.

    Returns:
        A FluxPipeline, Flux2Pipeline or Flux2KleinPipeline without progress bars.

    Raises:
        ModelError: the checkpoint is missing, gated, damaged, or no Flux.
        DeviceError: the device is not there, or cannot do what is asked of it.
    """
    return load_placed(checkpoint, device=device, dtype=dtype, offload=offload)[0]


def load_placed(checkpoint: Checkpoint, *, device: str, dtype: str, offload: str) -> tuple[Any, str]:
    """As ``load_pipeline``; also says how it is offloaded, which is never "auto"."""
    where = choose_device(device)
    precision = choose_dtype(dtype, where)
    check_offload(offload, where)
    with translated(checkpoint):
        if checkpoint.kind == "bundled":
            check_bundled(checkpoint)
        pipe = _assemble(checkpoint, precision)
    pipe.set_progress_bar_config(disable=True)
    return pipe, apply_offload(pipe, offload, where)


def set_tiling(pipe: Any, width: int, height: int, *, always: bool = False) -> None:
    """Decode in tiles where pictures of this size (pixels) need it, and whole where not; those of a batch in turn."""
    big = always or width * height > TILED_ABOVE
    for switch in (f"{'enable' if big else 'disable'}_tiling", "enable_slicing"):
        change = getattr(pipe.vae, switch, None)
        if change is not None:
            change()


def _assemble(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    if checkpoint.base is None:
        return _pipeline(_folder(checkpoint), dtype)
    file = Path(checkpoint.location)
    names = _names(file)
    kind = _kind(file, names)
    folder = _folder(checkpoint.base, without="transformer")
    _check_base(checkpoint, folder, kind, names)
    with quiet():
        return _pipeline(folder, dtype, transformer=_single_file(file, kind, folder, dtype))


def _folder(checkpoint: Checkpoint, without: str | None = None) -> Path:
    if checkpoint.kind == "hub":
        return download(str(checkpoint.location), without=without)
    return Path(checkpoint.location)


def _pipeline(folder: Path, dtype: torch.dtype, **given: Any) -> Any:
    """A pipeline from a folder in diffusers' layout, each part that has weights checked as it is loaded."""
    import diffusers
    import transformers

    index = files.read_index(folder)
    files.check_parts(folder, index)
    with quiet():
        parts = dict(given)
        for name, (library, kind) in files.components(index).items():
            cls = getattr(diffusers if library == "diffusers" else transformers, kind, None)
            if cls is None:
                raise ModelError(
                    f"{files.shown(folder)} needs {library}.{kind}, which this {library} does not have; update it."
                )
            if name not in given and issubclass(cls, (diffusers.ModelMixin, transformers.PreTrainedModel)):
                parts[name] = _model(cls, folder / name, dtype)
        return getattr(diffusers, index["_class_name"]).from_pretrained(folder, local_files_only=True, **parts)


def _model(cls: Any, folder: Path, dtype: torch.dtype) -> Any:
    """One part with weights. diffusers and transformers only warn about weights that are not there."""
    files.weight_files(folder)
    model, info = cls.from_pretrained(
        folder, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
    )
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"{files.shown(folder)} lacks {len(missing)} of its weights, such as {printable(missing[0])!r}; "
            f"{files.AGAIN}."
        )
    return model.eval()


def _names(file: Path) -> list[str]:
    return _gguf_names(file) if file.suffix.lower() == ".gguf" else list(files.safetensors_shapes(file))


def _kind(file: Path, names: list[str]) -> str:
    """The class of the transformer that a single file holds."""
    kind = files.family(names)
    if kind == "LoRA":
        raise ModelError(f"{files.shown(file)} is a LoRA, not a model; load a model and give this file as its LoRA.")
    if kind is None:
        example = f", its tensors are called such as {printable(names[0])!r}" if names else ", it holds no tensors"
        raise ModelError(f"{files.shown(file)} is not a Flux transformer{example}.")
    return kind


def _gguf_names(file: Path) -> list[str]:
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(f"{files.shown(file)} needs the gguf package; run: pip install 'h2gen[gguf]'.")
    import gguf

    try:
        return [tensor.name for tensor in gguf.GGUFReader(file).tensors]
    except Exception as error:
        # A reader without checks of its own: numpy, struct and enum errors all mean the same.
        raise ModelError(f"{files.shown(file)} is cut short or is not a gguf file; {files.AGAIN}.") from error


def _check_base(checkpoint: Checkpoint, folder: Path, kind: str, names: list[str]) -> None:
    """A single file is read by its base's config; diffusers drops silently what that config does not ask for."""
    base = repr(checkpoint.base.name if checkpoint.base else None)
    wanted = files.components(files.read_index(folder)).get("transformer", ("", "nothing"))[1]
    if wanted != kind:
        raise ModelError(f"{checkpoint.name!r} is a {kind} and its base {base} has a {wanted}; give another base.")
    config = files.read_json(folder / "transformer" / "config.json")
    blocks = (config.get("num_layers"), config.get("num_single_layers"))
    if files.depth(names) != blocks:
        has, base_has = (f"{double} + {single} blocks" for double, single in (files.depth(names), blocks))
        raise ModelError(f"{checkpoint.name!r} has {has} and its base {base} has {base_has}; give another base.")
    if files.takes_guidance(names) != bool(config.get("guidance_embeds")):
        takes, not_takes = (
            ("no guidance scale", "one") if config.get("guidance_embeds") else ("a guidance scale", "none")
        )
        raise ModelError(f"{checkpoint.name!r} takes {takes} and its base {base} takes {not_takes}; give another base.")


def _single_file(file: Path, kind: str, folder: Path, dtype: torch.dtype) -> Any:
    import diffusers

    options: dict[str, Any] = {}
    if file.suffix.lower() == ".gguf":
        options["quantization_config"] = diffusers.GGUFQuantizationConfig(compute_dtype=dtype)
    lacking = ModelError(f"{files.shown(file)} lacks some of its weights; {files.AGAIN}, or give another base.")
    try:
        model = getattr(diffusers, kind).from_single_file(
            str(file), config=str(folder), subfolder="transformer", dtype=dtype, local_files_only=True, **options
        )
    except (NotImplementedError, LookupError) as error:
        # torch cannot move a weight that nothing has filled, and diffusers' conversion looks up what is not there.
        raise lacking from error
    if any(parameter.is_meta for parameter in model.parameters()):
        raise lacking
    return model.eval()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep diffusers and transformers from printing inside: notices, warnings and bars. The hub's bars stay."""
    from diffusers.utils import logging as of_diffusers
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging as of_transformers

    hub_bars = not are_progress_bars_disabled()
    before = [(log, log.get_verbosity(), log.is_progress_bar_enabled()) for log in (of_diffusers, of_transformers)]
    for log, _, _ in before:
        log.set_verbosity_error()
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log, verbosity, bars in before:
            log.set_verbosity(verbosity)
            if bars:
                log.enable_progress_bar()
        if hub_bars:
            enable_progress_bars()
