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
