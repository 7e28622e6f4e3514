"""Measure what each --quantize costs in fidelity on the bundled model, and what its weights take.

    python -m tools.measure_quantization                   # 16 prompts, 28 steps, what runs on a CPU
    python -m tools.measure_quantization --modes int8,nf4 --dtype bf16

Prints PSNR and SSIM to the pictures of the same prompts and seeds with fp32 weights, both uncached, and the megabytes
of the transformer.
"""

from __future__ import annotations

import argparse
from statistics import mean
from typing import Any

import h2gen
from h2gen.evaluation.metrics.psnr_ssim import psnr, ssim
from h2gen.models.quantization import usable_on
from tools.choose_presets import PROMPTS


def stored(part: Any) -> int:
    """Bytes of a part's weights, with their scales."""
    total = 0
    for tensor in part.parameters():
        state = getattr(tensor, "quant_state", None)
        inner = getattr(tensor, "tensor_data_names", None)
        if inner is not None:
            total += sum(getattr(tensor, name).nbytes for name in inner)
        else:
            total += tensor.nbytes + (0 if state is None else state.absmax.nbytes)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--text", action="store_true", help="quantize the text encoder too")
    parser.add_argument("--modes", default=",".join(usable_on("cpu", "fp32")))
    options = parser.parse_args()

    def pictures(**more: str) -> tuple[list[Any], int]:
        session = h2gen.load("tiny", device="cpu", **more)
        size = stored(session.pipe.transformer)
        return [
            session.generate(prompt, seed=100 + index, steps=options.steps, cache=None, progress=False).image
            for index, prompt in enumerate(PROMPTS[: options.prompts])
        ], size

    modes = options.modes.split(",")
    rows: list[tuple[str, dict[str, str]]] = [("none", {})]
    for mode in modes:
        rows.append((mode, {"quantize": mode, **({"quantize_text": mode} if options.text else {})}))
    plain, size = pictures(dtype="fp32")
    print("| weights | transformer | PSNR mean | PSNR worst | SSIM mean | SSIM worst |\n|---|---|---|---|---|---|")
    print(f"| fp32 | {size / 1e6:.1f} MB | | | | |", flush=True)
    for name, given in rows:
        if name == "none" and options.dtype == "fp32":
            continue
        found, size = pictures(dtype=options.dtype, **given)
        signal = [psnr(one, two) for one, two in zip(found, plain, strict=True)]
        similar = [ssim(one, two) for one, two in zip(found, plain, strict=True)]
        called = options.dtype if name == "none" else f"`{name}`"
        print(
            f"| {called} | {size / 1e6:.1f} MB | {mean(signal):.1f} dB | {min(signal):.1f} dB | {mean(similar):.3f} | "
            f"{min(similar):.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
