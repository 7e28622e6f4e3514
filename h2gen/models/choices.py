"""What can be asked of a device, in words; here, and not beside torch, so that a wrong word is found at once."""

from __future__ import annotations

OFFLOADS = ("none", "model", "group", "sequential", "auto")
STRONGER = {"none": "model", "model": "group", "group": "sequential"}
"""Which offloading needs less memory than another."""

DTYPES = {
    "bf16": "bfloat16",
    "bfloat16": "bfloat16",
    "fp16": "float16",
    "float16": "float16",
    "fp32": "float32",
    "float32": "float32",
}
"""Each name's dtype in torch."""

SOLVERS = {
    "own": "the model's own",
    "unipc": "UniPC",
    "heun": "Heun",
}
"""What can solve a model's flow, and its name for people."""


def evaluations(steps: int, solver: str) -> int:
    """How often a solver asks the model in so many steps: Heun twice in each but the last."""
    return 2 * steps - 1 if solver == "heun" else steps
