"""Choose how to load a model so that it fits into memory, and say so in one line. Pure arithmetic; loads no torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from h2gen.models.choices import WAYS
from h2gen.models.footprint import Part, Work, footprint
from h2gen.models.load_options import LoadOptions
from h2gen.models.quantization import QUANTIZATIONS, find_quantization
from h2gen.wording import gigabytes

_DOES = {
    "none": "the whole model is on {device}",
    "text": "the text encoders leave {device} before denoising",
    "model": "each part of the model is on {device} only while it runs",
    "group": "the transformer is on {device} one block at a time",
    "sequential": "the model is on {device} one layer at a time",
}
"""What each way of loading means, in a sentence."""
_WOULD = {
    "none": "the whole model at once",
    "text": "keeping the transformer there",
    "model": "one whole part at a time",
    "group": "one block at a time",
}
_OFFERED = ("int8", "nf4")
"""Of what ``--quantize`` takes, the most faithful first."""


@dataclass(frozen=True)
class Available:
    """The memory that can be used, in bytes.

    Args:
        device: its name, such as ``cuda:0``.
        free: on the device.
        limit: what ``--memory`` allows of it; None for all.
        host: free main memory; None if it is not known, or is the device's own.
    """

    device: str
    free: int
    limit: int | None = None
    host: int | None = None

    @property
    def usable(self) -> int:
        return self.free if self.limit is None else min(self.free, self.limit)

    def __str__(self) -> str:
        if self.limit is not None and self.limit < self.free:
            return f"the {gigabytes(self.limit)} that --memory allows"
        return f"the {gigabytes(self.free)} that is free"


@dataclass(frozen=True)
class Fit:
    """How to load a model, and why.

    Args:
        offload: the way, one of ``WAYS``.
        needs: bytes on the device by each way that can be used, the fastest first; they include activations, the cache
            and a margin.
        available: the memory that it was chosen for.
        host_needs: bytes of main memory for the weights that are not on the device.
        quantized: what ``--quantize`` would make possible: its arguments, the way, and its bytes.
    """

    offload: str
    needs: Mapping[str, int]
    available: Available
    host_needs: int = 0
    quantized: tuple[str, str, int] | None = None

    @property
    def fits(self) -> bool:
        return self.needs[self.offload] <= self.available.usable

    def __str__(self) -> str:
        """The line for the user."""
        does = _DOES[self.offload].format(device=self.available.device)
        need = gigabytes(self.needs[self.offload])
        found = f"needs {need} of {self.available}" if self.fits else f"needs {need}, more than {self.available}"
        faster = [way for way in WAYS[: WAYS.index(self.offload)] if way in self.needs]
        next_faster = [way for way in faster if self.needs[way] > self.needs[self.offload]][-1:]
        would = "".join(f"; {_WOULD[way]} would need {gigabytes(self.needs[way])}" for way in next_faster)
        line = f"Memory: {does} ({found}{would})."
        if not self.fits:
            line += " It will probably run out; use a smaller --size or model."
        host = self.available.host
        if host is not None and host < self.host_needs:
            needed = gigabytes(self.host_needs)
            line += f" The rest needs {needed} of main memory, but only {gigabytes(host)} is free; it will be slow."
        if self.quantized is not None:
            options, way, size = self.quantized
            line += f" With {options}, {_WOULD[way]} needs only {gigabytes(size)}; the result changes a little."
        return line


def choose_fit(
    parts: Sequence[Part],
    work: Work,
    available: Available,
    *,
    offload: str = "auto",
    quantizable: bool = False,
    without: Collection[str] = (),
) -> Fit:
    """The fastest way of loading a model that fits into the device's memory; the smallest if none does.

    Args:
        parts: of the model, in bytes.
        work: what is made.
        available: the memory.
        offload: a way that was asked for; ``auto`` chooses.
        quantizable: whether to say what quantization would make possible; the parts are then in ``work.value`` bytes.
        without: ways that this model cannot be loaded in.
    """
    needs = {way: size for way, size in footprint(parts, work).items() if way not in without}
    way = _fastest(needs, available.usable) if offload == "auto" else offload
    host = 0 if way == "none" else sum(part.all for part in parts)
    offered = _offered(parts, work, available, way) if quantizable and offload == "auto" else None
    return Fit(way, needs, available, host, offered)


def _fastest(needs: Mapping[str, int], usable: int) -> str:
    fitting = [way for way in WAYS if way in needs and needs[way] <= usable]
    return fitting[0] if fitting else min(needs, key=lambda way: needs[way])


def _offered(parts: Sequence[Part], work: Work, available: Available, way: str) -> tuple[str, str, int] | None:
    """The most faithful quantization with which the transformer can stay on the device; None if it does already."""
    if way in ("none", "text"):
        return None
    for text in (False, True):
        for name in _OFFERED:
            factor = QUANTIZATIONS[name].bits / 8 / work.value
            needs = footprint([quantized(part, factor, factor if text else 1.0) for part in parts], work)
            found = _fastest(needs, available.usable)
            if needs[found] <= available.usable and found in ("none", "text"):
                options = f"--quantize {name}" + (f" --quantize-text {name}" if text else "")
                return options, found, needs[found]
    return None


def quantized(part: Part, factor: float, text_factor: float = 1.0) -> Part:
    """A part once its weights are quantized.

    Args:
        part: as it is loaded.
        factor: of the size of a transformer's blocks; what is outside of them stays as it is.
        text_factor: of a text encoder's, whose embeddings, the largest layer, stay as they are.
    """
    if part.is_transformer:
        outside, less = part.block - part.next, part.times(factor)
        return replace(less, all=outside + round((part.all - outside) * factor), block=outside + less.next)
    if not part.encodes or part.name.startswith("CLIP"):
        return part
    return replace(part, all=part.layer + round((part.all - part.layer) * text_factor))


def as_loaded(parts: Iterable[Part], options: LoadOptions, value: int) -> list[Part]:
    """Parts, whose weights have ``value`` bytes, as ``--quantize`` and ``--quantize-text`` store them.

    Raises:
        DeviceError: there is no such quantization.
    """
    hows = map(find_quantization, (options.quantize, options.quantize_text))
    factors = [1.0 if how is None else how.bits / 8 / value for how in hows]
    return [quantized(part, *factors) for part in parts]


@dataclass(frozen=True)
class NeededOnCPU:
    """The bytes of main memory that a model needs on a CPU: while it is loaded, and while it runs."""

    loading: int
    running: int

    @property
    def most(self) -> int:
        return max(self.loading, self.running)

    def __str__(self) -> str:
        when = " while loading" if self.loading > self.running else ""
        return f"{gigabytes(self.most)} of main memory{when}"


def needed_on_cpu(parts: Sequence[Part], options: LoadOptions, work: Work) -> NeededOnCPU:
    """The main memory for loading a model and for computing with it.

    Args:
        parts: of the model, in ``work.value`` bytes per weight. A quantized part is first loaded whole.
        options: how it is loaded.
        work: what is made.
    """
    work = replace(work, kept_tokens=work.kept_tokens + work.host_tokens)  # the device's memory is main memory
    loaded = as_loaded(parts, options, work.value)
    before = max((whole.all - part.all for whole, part in zip(parts, loaded, strict=True)), default=0)
    return NeededOnCPU(sum(part.all for part in loaded) + before, footprint(loaded, work)["none"])


def cache_line(parts: Iterable[Part], work: Work, free: int) -> str | None:
    """What to say if main memory does not suffice for what the cache keeps there; None if it does.

    Args:
        parts: of the model.
        work: what is made.
        free: bytes of main memory.
    """
    needed = work.kept_in_main_memory(next((part.width for part in parts if part.is_transformer), 0))
    if needed <= free:
        return None
    return (
        f"Memory: the cache needs {gigabytes(needed)} of main memory with --cache-memory cpu, but only "
        f"{gigabytes(free)} is free; it will probably run out. Use --cache-memory fp8, or leave out --cache-memory."
    )


def host_line(needed: NeededOnCPU, work: Work, available: Available) -> str | None:
    """What to say on a CPU: nothing, unless main memory does not suffice."""
    if needed.most <= available.usable:
        return None
    half = " --dtype bf16 halves the weights." if work.value == 4 else ""
    return f"Memory: the model needs {needed}, more than {available}; it may be slow, or run out.{half}"
