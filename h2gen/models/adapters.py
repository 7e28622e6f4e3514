"""LoRAs on a loaded pipeline: loaded by diffusers, checked for completeness, switched on and off, and put back."""

from __future__ import annotations

import logging
import re
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers.utils import logging as of_diffusers
from safetensors import SafetensorError

from h2gen.errors import ModelError
from h2gen.families import family_of
from h2gen.models.content_hash import file_hash
from h2gen.models.files import again
from h2gen.models.load import quiet
from h2gen.models.lora_files import describe_lora, is_control_lora
from h2gen.models.lora_names import IN_A_LAYER, converted_names
from h2gen.models.memory import is_out_of_memory
from h2gen.models.translate_errors import brief
from h2gen.wording import printable

MOST_LOADED = 8
"""LoRAs that stay loaded at once; of those not in use, the one used longest ago is deleted first."""
_WIDENED = "_overwritten_params"
"""Where diffusers keeps the layers of a transformer that a Control LoRA has replaced."""
_NORM = re.compile(r"\.norm_(added_)?[qk]\.weight$")
_CONVERSION = (LookupError, RuntimeError, ValueError, AssertionError, NotImplementedError, AttributeError, TypeError)


class Lora(Protocol):
    """A LoRA to use: its name for messages, the hash of its contents, its scale, and where it is."""

    @property
    def name(self) -> str: ...
    @property
    def sha256(self) -> str: ...
    @property
    def scale(self) -> float | None: ...
    def opened(self) -> Path:
        """Its path. Raises a SettingError if it is unknown."""
        ...


class Adapters:
    """The LoRAs of one model. They are never fused into its weights, which therefore never change.

    Args:
        most: LoRAs that stay loaded at once.
    """

    def __init__(self, most: int = MOST_LOADED) -> None:
        self._most = most
        self._transformer: weakref.ref[Any] | None = None
        self._loaded: OrderedDict[str, bool] = OrderedDict()
        """By hash, in the order of use: whether it has layers in a text encoder."""
        self._control: str | None = None
        """The hash of the loaded Control LoRA."""
        self._names: dict[str, str] = {}
        """By hash: the names in peft of those that are loaded."""
        self._active: tuple[tuple[str, float], ...] | None = ()
        """Hashes and scales; None after an error, when nothing is known about the model."""

    @property
    def of_text(self) -> tuple[tuple[str, float], ...]:
        """The hashes and scales of the active LoRAs that change how text is encoded."""
        return tuple(each for each in self._active or () if self._loaded[each[0]])

    def use(self, pipe: Any, loras: Sequence[Lora], offload: str = "none", *, swap: bool = False) -> None:
        """Let the model compute with these LoRAs, and no others.

        What is loaded already is only switched on. A model that was loaded again gets its LoRAs again.

        Args:
            pipe: the loaded pipeline.
            loras: in any order.
            offload: the mode in use, never "auto".
            swap: delete those that are not in use at once, and load others in their places, with scales as tensors. A
                compiled model then needs no other graph for LoRAs of the same layers and rank.

        Raises:
            ModelError: one does not fit the model, or only partly.
        """
        if self._transformer is None or self._transformer() is not pipe.transformer:
            self._transformer, self._active = weakref.ref(pipe.transformer), ()
            self._loaded.clear()
            self._names.clear()
            self._control = None
        # The scales of a LoRA that is given twice add up.
        scales: dict[str, float] = {}
        for lora in loras:
            scales[lora.sha256] = scales.get(lora.sha256, 0.0) + (1.0 if lora.scale is None else lora.scale)
        if tuple(scales.items()) == self._active:
            return
        self._active = None
        self._widen(pipe, loras, offload, swap)
        if swap and scales:
            self._delete(pipe, scales, most=0)
        for lora in loras:
            if lora.sha256 not in self._loaded:
                self._add(pipe, lora, offload, swap)
            self._loaded.move_to_end(lora.sha256)
        self._delete(pipe, scales, self._most)
        with quiet():
            if scales:
                pipe.enable_lora()
                pipe.set_adapters([self._names[each] for each in scales], [*scales.values()])
            elif self._loaded:
                pipe.disable_lora()
        if swap and scales:
            from h2gen.models.compiling import scales_as_tensors

            scales_as_tensors(pipe.transformer)
        self._active = tuple(scales.items())

    def _add(self, pipe: Any, lora: Lora, offload: str, swap: bool) -> None:
        """Load a LoRA under a name of its own, or, to swap it for another one, under the first free name."""
        free = (name for name in map("h2gen_{}".format, count()) if name not in self._names.values())
        name = next(free) if swap else _adapter(lora.sha256)
        self._loaded[lora.sha256] = _load(pipe, lora, name, offload)
        self._names[lora.sha256] = name

    def _delete(self, pipe: Any, used: Mapping[str, float], most: int) -> None:
        """Delete LoRAs that are not used until at most so many are loaded."""
        unused = [each for each in self._loaded if each not in used]
        with quiet():
            for each in unused[: max(0, len(self._loaded) - most)]:
                pipe.delete_adapters(self._names.pop(each))
                del self._loaded[each]

    def _widen(self, pipe: Any, loras: Sequence[Lora], offload: str, swap: bool) -> None:
        """Load a Control LoRA before the others, since it replaces layers of the model; or put those layers back."""
        control = next((lora for lora in loras if lora.sha256 == self._control), None) or next(
            (lora for lora in loras if lora.sha256 not in self._loaded and is_control_lora(lora.opened())), None
        )
        if self._control == (None if control is None else control.sha256):
            return
        _restore(pipe)
        self._loaded.clear()
        self._names.clear()
        self._control = None
        if control is not None:
            self._add(pipe, control, offload, swap)
            self._control = control.sha256


def is_widened(pipe: Any) -> bool:
    """Whether a Control LoRA has widened the input of a model, for the latents of a picture beside its own."""
    return getattr(pipe.transformer, _WIDENED, None) is not None


def _restore(pipe: Any) -> None:
    """Take all LoRAs off, and put back the layers that a Control LoRA has replaced."""
    with quiet():
        if getattr(pipe.transformer, "peft_config", None) or is_widened(pipe):
            pipe.unload_lora_weights(**({"reset_to_overwritten_params": True} if is_widened(pipe) else {}))
    if is_widened(pipe):
        setattr(pipe.transformer, _WIDENED, None)
        # With text encoders offloaded, the transformer may have moved since its layer was exchanged.
        pipe.transformer.x_embedder.to(pipe.transformer.proj_out.weight.device)


def _adapter(sha256: str) -> str:
    """The name of an adapter in peft, which allows no dots."""
    return f"h2gen_{sha256[:16]}"


def _load(pipe: Any, lora: Lora, name: str, offload: str) -> bool:
    """Load all of a LoRA or nothing, under a name. Returns whether it has layers in a text encoder."""
    path = lora.opened()
    facts = describe_lora(path)
    if file_hash(path) != lora.sha256:
        raise ModelError(f"The LoRA {printable(lora.name)!r} has changed since this command began; run it again.")
    title = family_of(pipe.transformer).title
    called = f"The LoRA {printable(lora.name)!r}"
    if not hasattr(pipe, "load_lora_weights"):
        raise ModelError(f"{called} cannot be used: diffusers has no loader for LoRAs of {title}.")
    if facts.control:
        _check_exchangeable(pipe, called, offload)
    with quiet(), warnings.catch_warnings():
        of_diffusers.set_verbosity(logging.CRITICAL)  # it logs each error that it raises
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # it means a second LoRA
        # It warns of layers that the file lacks if their names end like a layer's in it. What matches is checked below.
        warnings.filterwarnings("ignore", "While injecting the PEFT adapters")
        try:
            converted, dropped, as_is = converted_names(pipe, path)
        except SafetensorError as error:
            raise ModelError(
                f"{called} is damaged: its header does not fit its tensors; {again(path, damaged=True)}."
            ) from error
        except _CONVERSION as error:
            raise ModelError(
                f"{called} is {facts}; its names cannot be converted to {title}'s ({brief(error)})."
            ) from error
        misfits = [*dropped, *_misfits(pipe, converted, control=facts.control)]
        if misfits:
            _refuse(called, str(facts), title, misfits, len(converted) + len(dropped))
        before = _layers(pipe, name)
        try:
            # From the file if diffusers reads its names: only the file has PEFT's configuration.
            pipe.load_lora_weights(
                *([str(path.parent)] if as_is else [converted]),
                adapter_name=name,
                **({"weight_name": path.name, "use_safetensors": True, "local_files_only": True} if as_is else {}),
            )
        except BaseException as error:
            _restore(pipe) if facts.control else _take_off(pipe, name)
            if not isinstance(error, Exception) or is_out_of_memory(error):
                raise
            raise ModelError(f"{called} cannot be loaded ({brief(error)}); it is {facts}.") from error
        missing = {_layer(each) for each in converted if not _NORM.search(each)} - _layers(pipe, name)
        if missing or before:
            _restore(pipe) if facts.control else _take_off(pipe, name)
            _refuse(called, str(facts), title, sorted(missing), len(converted))
    return any(each.startswith("text_encoder") for each in converted)


def _check_exchangeable(pipe: Any, called: str, offload: str) -> None:
    """Check that a layer of the model can be replaced: it is not quantized, and no hook holds it."""
    plain = type(pipe.transformer.x_embedder.weight.data) is torch.Tensor
    if getattr(pipe.transformer, "hf_quantizer", None) is not None or not plain:
        raise ModelError(f"{called} is a Control LoRA, which a quantized model cannot use; use an unquantized one.")
    if offload not in ("none", "text", "model"):
        raise ModelError(
            f"{called} is a Control LoRA, which replaces a layer of the model, so it cannot be used with --offload "
            f"{offload}; use none, text or model."
        )


def _refuse(called: str, facts: str, title: str, misfits: Sequence[str], total: int) -> None:
    some = ", ".join(repr(printable(each)) for each in misfits[:2])
    if len(misfits) >= total:
        raise ModelError(f"{called} does not fit this {title}: no layer matches {some}; it is {facts}.")
    raise ModelError(
        f"{called} fits this {title} only partly: no layer matches {len(misfits)} of its {total} tensors, such as "
        f"{some}; it is {facts}."
    )


def _misfits(pipe: Any, tensors: Mapping[str, torch.Tensor], *, control: bool) -> Iterator[str]:
    """The names of tensors that no layer of the model takes.

    Args:
        pipe: the loaded pipeline.
        tensors: by the names of its layers.
        control: whether it is a Control LoRA, which may also have weights of norms, and a wider input.
    """
    modules = {
        f"{part}.{name}": module
        for part in ("transformer", "text_encoder")
        if isinstance(getattr(pipe, part, None), torch.nn.Module)
        for name, module in getattr(pipe, part).named_modules()
    }
    for name, tensor in tensors.items():
        if control and _NORM.search(name):
            norm = modules.get(name.removesuffix(".weight"))
            if norm is None or norm.weight.shape != tensor.shape:
                yield name
            continue
        module = modules.get(_layer(name))
        inside, outside = getattr(module, "in_features", None), getattr(module, "out_features", None)
        flat = tensor.ndim != 2 and name.endswith(("lora_A.weight", "lora_B.weight"))
        if module is None or inside is None or flat or not IN_A_LAYER.search(name):
            yield name
        elif ".lora_A." in name and tensor.shape[1] != inside:
            # diffusers pads the input of a LoRA that was trained before the model got more channels, as Fill has.
            widened = control and tensor.shape[1] == 2 * inside
            if (tensor.shape[1] > inside and not widened) or not _layer(name).endswith("x_embedder"):
                yield name
        elif ".lora_B." in name and tensor.shape[0] != outside:
            yield name


def _layer(name: str) -> str:
    return IN_A_LAYER.split(name)[0]


def _layers(pipe: Any, adapter: str) -> set[str]:
    """The layers that have an adapter of this name."""
    return {
        f"{part}.{name}"
        for part in ("transformer", "text_encoder")
        if isinstance(getattr(pipe, part, None), torch.nn.Module)
        for name, module in getattr(pipe, part).named_modules()
        if adapter in getattr(module, "r", {}) or adapter in getattr(module, "lokr_w1", {})
    }


def _take_off(pipe: Any, adapter: str) -> None:
    """Remove what a failed load has left behind."""
    if _layers(pipe, adapter):
        pipe.delete_adapters(adapter)
