"""Load a checkpoint into a pipeline of diffusers, from safetensors and gguf files only, without printing anything."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from h2gen.errors import ModelError, check_docstrings
from h2gen.families import family_of
from h2gen.models import files
from h2gen.models.catalogue import Checkpoint
from h2gen.models.check_loading import check_options
from h2gen.models.choices import LIBRARIES
from h2gen.models.content_hash import check_bundled
from h2gen.models.footprint import MEGAPIXEL, TILED_ABOVE, Work
from h2gen.models.hub import download
from h2gen.models.load_options import LoadOptions, unheeded_limit
from h2gen.models.load_part import load_part
from h2gen.models.part_files import PartFile, by_component, check_all_fit, parts_of
from h2gen.models.place import Say, check_host_memory, place, unsaid
from h2gen.models.quantization import PACKAGES, quantization_in
from h2gen.models.quantize import Quantizer, loading_quantized
from h2gen.models.quantized import check_plain
from h2gen.models.single_file import check_base, check_family, check_transformer, load_transformer, open_file
from h2gen.models.tokenizers import is_byte_level, load_byte_level
from h2gen.models.translate_errors import translated
from h2gen.wording import printable

_MAIN_MEMORY = torch.device("cpu")


def load_pipeline(checkpoint: Checkpoint, **options: Any) -> Any:
    """Load a checkpoint into a pipeline of diffusers that is ready to call.

    Args:
        checkpoint: from ``resolve``.
        options: those of ``LoadOptions``.

    Returns:
        A text-to-image pipeline of one of the families, without progress bars.

    Raises:
        ModelError: the checkpoint is missing, gated, damaged, or of an unsupported family.
        DeviceError: the device does not exist, or does not support the dtype or the offloading.
    """
    return load_placed(checkpoint, LoadOptions(**options))[0]


def load_placed(
    checkpoint: Checkpoint, options: LoadOptions, work: Work = MEGAPIXEL, say: Say = unsaid
) -> tuple[Any, LoadOptions]:
    """As ``load_pipeline``, but also returns the options in use; device, dtype and offload are never "auto".

    Args:
        checkpoint: from ``resolve``.
        options: how to load it.
        work: what will be made with it, by which ``place`` chooses.
        say: is called with each line for the user.
    """
    check_docstrings()
    where, precision, quantizer = check_options(options)
    unheeded = unheeded_limit(options, where.type)
    if unheeded is not None:
        say(unheeded)
    if where.type == "cpu":
        check_host_memory(checkpoint, options, precision, work, say)
    compiled = options.compile and options.offload != "sequential"
    if compiled:
        from h2gen.models.compiling import compile_blocks, run_eagerly

    with translated(checkpoint):
        if checkpoint.kind == "bundled":
            check_bundled(checkpoint)
        pipe = _assemble(checkpoint, precision, quantizer)
    pipe.set_progress_bar_config(disable=True)
    if compiled:
        compile_blocks(pipe.transformer)
    offload = place(pipe, options, where, replace(work, value=precision.itemsize), say, quantizer.refused)
    quantizer.check_offload(offload)
    if compiled and offload == "sequential":
        run_eagerly(pipe.transformer)
        compiled = False
        say("The blocks are not compiled, because sequential offloading fetches each layer by itself.")
    used: dict[str, Any] = {"device": str(where), "dtype": str(precision).removeprefix("torch."), "offload": offload}
    return pipe, replace(options, **used | quantizer.names, compile=compiled)


def set_tiling(pipe: Any, width: int, height: int, *, always: bool = False) -> None:
    """Decode pictures of this size (pixels) in tiles if they are large or ``always`` is set, and batches one by one.

    The frames of a video count as one picture, above one another.
    """
    tiled = always or width * height > TILED_ABOVE
    for switch in (f"{'enable' if tiled else 'disable'}_tiling", "enable_slicing"):
        change = getattr(pipe.vae, switch, None)
        if change is not None:
            change()


def _assemble(checkpoint: Checkpoint, dtype: torch.dtype, quantizer: Quantizer) -> Any:
    source, file = checkpoint.base or checkpoint, None
    if checkpoint.kind == "file":
        file = open_file(Path(checkpoint.location))
        check_family(file, checkpoint)
    parts = parts_of(checkpoint)
    folder = download(str(source.location), parts=parts) if source.kind == "hub" else Path(source.location)
    if checkpoint.parts:
        check_all_fit(checkpoint.parts, files.read_index(folder), source.name)
    if file is not None:
        check_base(file, checkpoint, folder)
        with quiet():
            quantizer.check_stored("transformer", file.path)
            quantizer.keep(file.four_bits.kind, file.path)
            transformer = load_transformer(file, folder, dtype)
            return _pipeline(folder, dtype, parts, quantizer, transformer=transformer)
    if checkpoint.kind == "transformer":
        check_transformer(checkpoint, folder)
    return _pipeline(folder, dtype, parts, quantizer)


def _pipeline(
    folder: Path, dtype: torch.dtype, files_given: Sequence[PartFile], quantizer: Quantizer, **given: Any
) -> Any:
    """A pipeline from a folder in diffusers' layout. Each part with weights is checked as it is loaded.

    Args:
        files_given: files that replace parts of the folder.
        quantizer: of the parts.
        given: loaded parts by name.
    """
    import diffusers

    index = files.read_index(folder)
    files.check_parts(folder, index)
    modular = files.index_of(folder).name == files.MODULAR_INDEX
    others = by_component(files_given, index)

    def folder_of(name: str) -> Path:
        return others[name].path if name in others else folder / name

    for name in files.components(index):
        if name not in given:
            quantizer.check_stored(name, folder_of(name))
    with quiet():
        parts = dict(given)
        for name, (library, kind) in files.components(index).items():
            if modular and name == "tokenizer":
                continue  # made without its class
            cls, has_weights = _class_of(folder, library, kind)
            if name not in given and has_weights:
                other = others.get(name)
                if other is not None and other.path.is_file():
                    parts[name] = load_part(other, cls, folder / name, dtype)
                else:
                    parts[name] = load_model(cls, folder_of(name), dtype, quantizer.device)
            elif kind.startswith("LlamaTokenizer") and is_byte_level(folder / name):
                parts[name] = load_byte_level(folder / name)
            elif modular and name == "scheduler":
                parts[name] = cls.from_pretrained(folder / name, local_files_only=True)
            if isinstance(parts.get(name), torch.nn.Module):
                quantizer.quantize(name, parts[name])
        if modular:
            return _modular_pipeline(folder, parts)
        return getattr(diffusers, index["_class_name"]).from_pretrained(folder, local_files_only=True, **parts)


def _class_of(folder: Path, library: str, kind: str) -> tuple[Any, bool]:
    """The class of a part, and whether it has weights. Any other class might load anything, such as pickles.

    Raises:
        ModelError: there is no such class, or it is not one that a pipeline is made of.
    """
    import diffusers
    import transformers

    weighty = diffusers.ModelMixin, transformers.PreTrainedModel
    others = (
        *(diffusers.SchedulerMixin, transformers.PreTrainedTokenizerBase, transformers.ProcessorMixin),
        *(transformers.FeatureExtractionMixin, transformers.ImageProcessingMixin),
    )
    cls = getattr(diffusers if library == "diffusers" else transformers, kind, None)
    if cls is None:
        raise ModelError(
            f"{files.shown(folder)} needs {library}.{kind}, which this version of {library} lacks; update it."
        )
    # Both libraries have stand-ins for classes whose package is not installed; using them says which.
    if not isinstance(cls, type) or not (issubclass(cls, (*weighty, *others)) or hasattr(cls, "_backends")):
        raise ModelError(
            f"{files.shown(folder)} takes a part from {library}.{kind}, which is not a model, tokenizer, processor or "
            "scheduler; h2gen loads nothing else."
        )
    return cls, issubclass(cls, weighty)


def _modular_pipeline(folder: Path, parts: dict[str, Any]) -> Any:
    """A modular pipeline of these parts, called like a classic one. Which it is, its transformer says."""
    import diffusers

    from h2gen.models.modular import ChatTokenizer, ModularPipe

    family: Any = family_of(parts["transformer"])
    pipeline = getattr(diffusers, family.pipeline(parts["transformer"].config))()
    pipeline.update_components(**parts, tokenizer=ChatTokenizer(folder / "tokenizer"))
    return ModularPipe(pipeline)


def load_model(cls: Any, folder: Path, dtype: torch.dtype, device: torch.device = _MAIN_MEMORY) -> Any:
    """One part with weights. diffusers and transformers only warn about missing and unknown ones.

    ``device`` is where weights that are stored quantized are prepared; they are in main memory afterwards, as others.
    """
    weights, variant = files.find_weights(folder)
    config = files.read_json(folder / "config.json")  # one that is missing or damaged is named, not the whole model
    quantized = quantization_in(config)
    for file in () if quantized else weights:
        check_plain(file)
    try:
        with loading_quantized(folder, quantized, device) as options:
            model, info = cls.from_pretrained(
                folder,
                dtype=dtype,
                variant=variant,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                **options,
            )
    except (ValueError, RuntimeError) as error:
        if "expected shape" in str(error) or "mismatched" in str(error):
            message = f"{files.shown(folder)} has weights whose shapes differ from its config.json; {files.AGAIN}."
            raise ModelError(message) from error
        raise
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"{files.shown(folder)} lacks {len(missing)} of its weights, such as {printable(missing[0])!r}; "
            f"{files.AGAIN}."
        )
    if quantized is None or quantized.startswith(PACKAGES):  # other quantizers do not say what they have used
        unused = [name for name in sorted(info["unexpected_keys"]) if not name.endswith(".position_ids")]  # 0, 1, 2...
        files.report_unused(folder, unused, cls.__name__)
    return model.eval() if quantized is None else model.to("cpu").eval()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence diffusers, transformers and what they import inside: notices, warnings, bars. The hub's bars stay."""
    from diffusers.utils import logging as of_diffusers
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging as of_transformers

    hub_bars = not are_progress_bars_disabled()
    before = [(log, log.get_verbosity(), log.is_progress_bar_enabled()) for log in (of_diffusers, of_transformers)]
    # diffusers imports these where they are installed, and they warn of what they lack, even if nothing uses them.
    imported = [logging.getLogger(name) for name in LIBRARIES if not name.startswith(("diffusers", "transformers"))]
    levels = [logger.level for logger in imported]
    for log, _, _ in before:
        log.set_verbosity_error()
        log.disable_progress_bar()
    for logger in imported:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for category in (FutureWarning, DeprecationWarning):  # about what the libraries import
                warnings.simplefilter("ignore", category)
            yield
    finally:
        for log, verbosity, bars in before:
            log.set_verbosity(verbosity)
            if bars:
                log.enable_progress_bar()
        for logger, level in zip(imported, levels, strict=True):
            logger.setLevel(level)
        if hub_bars:
            enable_progress_bars()
