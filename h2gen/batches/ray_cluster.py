"""The Ray cluster of a batch: what ``--ray`` may be, joining and leaving it, and how many workers it has room for."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from h2gen.errors import DeviceError, SettingError
from h2gen.wording import printable, shown

if TYPE_CHECKING:
    import torch

    from h2gen.models.load_options import LoadOptions

AUTO = "auto"
INSTALL = "pip install 'h2gen[ray]'"
_ADDRESS = re.compile(r"(?P<host>[A-Za-z0-9_.-]+):(?P<port>[0-9]{1,5})")
_PATIENCE = 10
"""Seconds for a cluster's head to answer."""
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else Ray announces that this will be its default
}


@dataclass(frozen=True)
class RayOptions:
    """Where a batch's workers are.

    Args:
        address: of a cluster's head, such as ``10.0.0.1:6379``; ``auto`` starts Ray on this machine.
        slots: workers in all; None is one per GPU, or one per machine if they compute on the CPU.
        verbose: show Ray's own log and what the workers print.
    """

    address: str
    slots: int | None = None
    verbose: bool = False


@dataclass(frozen=True)
class Slots:
    """The workers that a cluster has room for: how many, and how many CPU cores or GPUs each has."""

    count: int
    cores: int
    gpus: int

    @property
    def resources(self) -> dict[str, int]:
        return {"GPU": self.gpus} if self.gpus else {"CPU": self.cores}


def check_options(
    ray: str | None, slots: int | None, gpus: str | None, device: str | None, verbose: bool
) -> RayOptions:
    """The options of ``--ray``, checked without loading Ray.

    Raises:
        SettingError: one of them cannot be used, they contradict one another, or Ray is not installed.
    """
    if ray is None:
        raise SettingError("--ray-slots has no effect without --ray; give both.")
    if gpus is not None:
        raise SettingError("--ray and --gpus contradict each other; give one. --ray uses every GPU of the cluster.")
    if device is not None and ":" in device:
        raise SettingError(f"--ray chooses the GPUs itself; give --device cuda in place of {printable(device)}.")
    if slots is not None and slots < 1:
        raise SettingError(f"ray_slots is {slots}; give a whole number of at least 1.")
    found = _ADDRESS.fullmatch(ray)
    if ray != AUTO and (found is None or int(found["port"]) > 65535):
        raise SettingError(f"ray is {shown(ray)}; give auto, or HOST:PORT of a cluster's head, such as 10.0.0.1:6379.")
    if importlib.util.find_spec("ray") is None:
        raise SettingError(f"--ray needs the package ray; run {INSTALL}.")
    return RayOptions(ray, slots, verbose)


def device_and_dtype(options: RayOptions, load: LoadOptions) -> tuple[torch.device, torch.dtype]:
    """What all workers compute on and in: as on this machine, or, in a cluster, what that has.

    The GPUs of other machines are taken to support bf16; a machine whose GPU does not is left out when it loads.

    Raises:
        DeviceError: this machine has no such device, or the cluster cannot be reached.
    """
    import torch

    from h2gen.models.devices import choose_device, choose_dtype

    if options.address == AUTO:
        device = choose_device(load.device)
        return device, choose_dtype(load.dtype, device)
    kind = load.device
    if kind == "auto":
        with joined(options):
            kind = "cuda" if any(machine.get("GPU") for machine in _machines()) else "cpu"
    if kind == "cuda" and load.dtype == "auto":
        return torch.device(kind), torch.bfloat16
    return torch.device(kind), choose_dtype(load.dtype, torch.device("cpu"))


@contextlib.contextmanager
def joined(options: RayOptions) -> Iterator[None]:
    """Within it this process takes part in the cluster. Ray that it started itself ends with it.

    Raises:
        DeviceError: the cluster cannot be reached, or Ray cannot be started.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():  # by the program that calls this function
        yield
        return
    how: dict[str, Any] = {"address": "local", "include_dashboard": False}
    if options.address != AUTO:
        _check_reachable(options.address)
        how = {"address": options.address}
    try:
        with _own_handlers(), warnings.catch_warnings():
            if not options.verbose:
                warnings.simplefilter("ignore")
            level = logging.INFO if options.verbose else logging.CRITICAL
            ray.init(**how, log_to_driver=options.verbose, logging_level=level)
    except Exception as error:  # Ray raises many kinds
        ray.shutdown()
        reason = printable(" ".join(str(error).split()))[:300]
        if options.address == AUTO:
            raise DeviceError(f"Ray could not be started on this machine: {reason}") from error
        raise DeviceError(
            f"--ray {options.address}: this machine could not join the cluster; run h2gen on a machine where "
            f"`ray start` has run: {reason}"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def find_slots(options: RayOptions, device: str) -> Slots:
    """The workers to start in the cluster that was joined.

    Raises:
        SettingError: more are wanted than it has room for.
        DeviceError: it has no room for any.
    """
    machines = _machines()
    resource = "GPU" if device == "cuda" else "CPU"
    sizes = [int(machine.get(resource, 0)) for machine in machines if machine.get(resource, 0) >= 1]
    if not sizes:
        kind = "GPU; give --device cpu" if device == "cuda" else "CPU core; start Ray with --num-cpus"
        raise DeviceError(f"The Ray cluster has no {kind}.")
    most = sum(sizes)
    wanted = options.slots or (most if device == "cuda" else len(sizes))
    if wanted > most:
        unit = "GPU" if device == "cuda" else "CPU core"
        raise SettingError(
            f"ray_slots is {wanted}, but the Ray cluster has {most} {unit}{'s' if most != 1 else ''}, and each "
            f"slot needs one; give at most {most}."
        )
    if device == "cuda":
        return Slots(wanted, 0, 1)
    cores = next(each for each in range(max(sizes), 0, -1) if sum(size // each for size in sizes) >= wanted)
    return Slots(wanted, cores, 0)


def has_room(slots: Slots) -> bool:
    """Whether any machine of the cluster could still hold a worker."""
    ((resource, amount),) = slots.resources.items()
    return any(machine.get(resource, 0) >= amount for machine in _machines())


def free_slots(slots: Slots) -> int:
    """How many workers could start now: others may be using the cluster too."""
    import ray

    ((resource, amount),) = slots.resources.items()
    return int(ray.available_resources().get(resource, 0) // amount)  # type: ignore[no-untyped-call]


def _machines() -> list[dict[str, float]]:
    """The resources of each machine that is alive."""
    import ray

    return [node.get("Resources", {}) for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def _check_reachable(address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), _PATIENCE).close()
    except OSError as error:
        reason = error.strerror or ("timed out" if isinstance(error, TimeoutError) else str(error))
        raise DeviceError(
            f"--ray {address}: nothing answers there ({reason}); start the cluster with `ray start --head`, and give "
            "the address that it prints."
        ) from error
    # Joining a server that is not Ray's can end the process; this ends another one.
    check = "ray.scripts.scripts", "health-check", "--skip-version-check", "--address", address
    try:
        done = subprocess.run([sys.executable, "-m", *check], capture_output=True, timeout=3 * _PATIENCE, check=False)
        healthy = done.returncode == 0
    except subprocess.TimeoutExpired:
        healthy = False
    if not healthy:
        raise DeviceError(f"--ray {address}: what answers there is not the head of a Ray cluster; check the address.")


@contextlib.contextmanager
def _own_handlers() -> Iterator[None]:
    """Keep this program's signal handlers: Ray replaces that of SIGTERM."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
