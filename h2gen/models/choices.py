"""The names of offloading modes, dtypes and solvers; without torch, so that a wrong name is found at once."""

from __future__ import annotations

OFFLOADS = ("none", "model", "group", "sequential", "auto")
STRONGER = {"none": "model", "model": "group", "group": "sequential"}
"""The next mode that needs less memory."""

DTYPES = {
    "bf16": "bfloat16",
    "bfloat16": "bfloat16",
    "fp16": "float16",
    "float16": "float16",
    "fp32": "float32",
    "float32": "float32",
}
"""The name in torch of each dtype."""

SOLVERS = {
    "own": "the model's own",
    "unipc": "UniPC",
    "heun": "Heun",
}
"""The solvers, each with its display name."""


def evaluations(steps: int, solver: str) -> int:
    """How often a solver calls the model in this number of steps: Heun twice per step, except in the last."""
    return 2 * steps - 1 if solver == "heun" else steps
