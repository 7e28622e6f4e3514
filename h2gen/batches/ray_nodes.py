"""Asks the machines of a Ray cluster which devices and which precision they compute with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_PATIENCE = 60.0
"""Seconds for a machine to answer: it has to load torch."""
_KINDS = ("cuda", "xpu", "cpu")
"""Devices that a cluster may have, the best first."""
_HIDING = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ONEAPI_DEVICE_SELECTOR")
"""Variables by which Ray hides all GPUs from a task that reserves none."""

Found = tuple[str, str]
"""A machine's device and the dtype that it computes in by default, such as ``("cuda", "float16")``."""


def look(device: str) -> Found:
    """What this machine computes with; called on the machine itself."""
    for name in _HIDING:
        os.environ.pop(name, None)
    from h2gen.models.devices import choose_device, choose_dtype

    found = choose_device(device)
    return found.type, str(choose_dtype("auto", found)).removeprefix("torch.")


def ask(machines: Sequence[str], device: str) -> list[Found]:
    """What machines have, except those that do not answer: these are left out again when the model is loaded.

    Args:
        machines: their ids, of the cluster that was joined.
        device: as ``LoadOptions`` has it.
    """
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote: Any = ray.remote(num_cpus=0, max_calls=1, max_retries=0)(look)
    asked = [
        remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(machine, soft=False)).remote(device)
        for machine in machines
    ]
    found = []
    for answer in ray.wait(asked, num_returns=len(asked), timeout=_PATIENCE)[0] if asked else ():
        try:
            found.append(ray.get(answer))
        except RayError:
            continue
    return found


def decide(device: str, dtype: str, found: Sequence[Found]) -> tuple[torch.device, torch.dtype]:
    """The device and the dtype of all workers: the best device, in bf16 if at least one of the machines supports it.

    Args:
        device, dtype: as ``LoadOptions`` has them.
        found: by the machines with GPUs.
    """
    import torch

    from h2gen.models.devices import choose_dtype

    if device == "auto":
        device = next((kind for kind in _KINDS if any(kind == each for each, _ in found)), "cpu")
    dtypes = {name for kind, name in found if kind == device}
    if dtype != "auto" or device == "cpu":
        return torch.device(device), choose_dtype(dtype, torch.device("cpu"))
    return torch.device(device), torch.float16 if dtypes == {"float16"} else torch.bfloat16
