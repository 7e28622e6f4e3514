"""The Ray cluster of a batch: what ``--ray`` may be, joining and leaving it, and how many workers it has room for."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
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
_VERSIONS = re.compile(r"started with: Ray: (\S+) Python: (\S+) This process.* Ray: (\S+) Python: (\S+)")
"""In Ray's message about other versions than the cluster's."""
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


def device_and_dtype(
    options: RayOptions, load: LoadOptions, notice: Callable[[str], None] = lambda _line: None
) -> tuple[torch.device, torch.dtype]:
    """What all workers compute on and in: as on this machine, or, in a cluster, what its machines say that they have.

    ``notice`` is called with a line for the user before a cluster is asked, which may take half a minute.

    Raises:
        DeviceError: this machine has no such device, or the cluster cannot be reached.
    """
    from h2gen.batches.ray_nodes import ask, decide
    from h2gen.models.devices import choose_device, choose_dtype

    if options.address == AUTO:
        device = choose_device(load.device)
        return device, choose_dtype(load.dtype, device)
    notice(f"Connecting to the Ray cluster at {options.address} ...")
    if load.device == "cpu" or "auto" not in (load.device, load.dtype):
        _check_answers(options.address)
        return decide(load.device, load.dtype, ())
    with joined(options):
        found = ask([node["NodeID"] for node in _nodes() if node.get("Resources", {}).get("GPU")], load.device)
    return decide(load.device, load.dtype, found)


@contextlib.contextmanager
def joined(options: RayOptions) -> Iterator[None]:
    """Within it this process takes part in the cluster. Ray that it started itself ends with it.

    What it and Ray set in the environment for that is put back at the end.

    Raises:
        DeviceError: the cluster cannot be reached, or Ray cannot be started.
    """
    before, changed = dict(os.environ), None
    try:
        with _taking_part(options):
            changed = _changed_since(before)  # what changes later is not ours
            yield
    finally:
        for name in _changed_since(before) if changed is None else changed:
            if name in before:
                os.environ[name] = before[name]
            else:
                os.environ.pop(name, None)


def _changed_since(before: Mapping[str, str]) -> set[str]:
    """The variables of the environment that were set, changed or removed since then."""
    return {name for name in before.keys() | os.environ.keys() if before.get(name) != os.environ.get(name)}


@contextlib.contextmanager
def _taking_part(options: RayOptions) -> Iterator[None]:
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
    with _printing_to_stderr(options.verbose):
        try:
            with _own_handlers(), warnings.catch_warnings(), _seen_by_nobody(options.address == AUTO):
                if not options.verbose:
                    warnings.simplefilter("ignore")
                level = logging.INFO if options.verbose else logging.CRITICAL
                ray.init(**how, log_to_driver=options.verbose, logging_level=level)
        except Exception as error:  # Ray raises many kinds
            ray.shutdown()
            raise _not_joined(options.address, error) from error
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
    on_gpu = device not in ("cpu", "mps")
    resource = "GPU" if on_gpu else "CPU"
    sizes = [int(machine.get(resource, 0)) for machine in machines if machine.get(resource, 0) >= 1]
    if not sizes:
        kind = "GPU; give --device cpu" if on_gpu else "CPU core; start Ray with --num-cpus"
        raise DeviceError(f"The Ray cluster has no {kind}.")
    most = sum(sizes)
    wanted = options.slots or (most if on_gpu else len(sizes))
    if wanted > most:
        unit = "GPU" if on_gpu else "CPU core"
        raise SettingError(
            f"ray_slots is {wanted}, but the Ray cluster has {most} {unit}{'s' if most != 1 else ''}, and each "
            f"slot needs one; give at most {most}."
        )
    if on_gpu:
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
    return [node.get("Resources", {}) for node in _nodes()]


def _nodes() -> list[dict[str, Any]]:
    """The machines that are alive, as Ray describes them."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def _not_joined(address: str, error: Exception) -> DeviceError:
    """Why Ray could not be started or joined, and what to do about it."""
    reasons = [" ".join(str(each).split()) for each in (error, error.__cause__) if each is not None]
    if address == AUTO:
        if "AF_UNIX path" in reasons[0]:  # Ray puts its sockets there
            return DeviceError(
                f"Ray could not be started on this machine: the path of the folder for temporary files is too long for "
                f"it ({printable(tempfile.gettempdir())}); set TMPDIR to a shorter one."
            )
        return DeviceError(f"Ray could not be started on this machine: {printable(reasons[0])[:300]}")
    for reason in reasons:
        if found := _VERSIONS.search(reason):
            theirs, ours = f"Ray {found[1]} and Python {found[2]}", f"Ray {found[3]} and Python {found[4]}"
            return DeviceError(
                f"--ray {address}: the cluster runs {theirs}, and this machine {ours}; install the same versions."
            )
    return DeviceError(
        f"--ray {address}: this machine could not join the cluster; is `ray start --address {address}` running on it? "
        f"({printable(reasons[-1])[:300]})"
    )


def _check_answers(address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), _PATIENCE).close()
    except OSError as error:
        reason = error.strerror or ("timed out" if isinstance(error, TimeoutError) else str(error))
        raise DeviceError(
            f"--ray {address}: nothing answers there ({reason}); start the cluster with `ray start --head`, and give "
            "the address that it prints."
        ) from error


def _check_reachable(address: str) -> None:
    _check_answers(address)
    # Joining a server that is not Ray's can end the process; this ends another one.
    check = "ray.scripts.scripts", "health-check", "--skip-version-check", "--address", address
    try:
        done = subprocess.run([sys.executable, "-m", *check], capture_output=True, timeout=3 * _PATIENCE, check=False)
        healthy, said = done.returncode == 0, done.stderr
    except subprocess.TimeoutExpired:
        healthy, said = False, b""
    if b"uthentication token" in said and not healthy:
        raise DeviceError(
            f"--ray {address}: the cluster asks for a token; copy ~/.ray/auth_token from its first machine to this "
            "one, and set RAY_AUTH_MODE=token."
        )
    if not healthy:
        raise DeviceError(f"--ray {address}: what answers there is not the head of a Ray cluster; check the address.")
    from ray._private.services import find_node_ids

    if not find_node_ids():  # type: ignore[no-untyped-call]  # Ray would look for them for a minute
        raise DeviceError(
            f"--ray {address}: this machine is not in the cluster; run `ray start --address {address}` on it first."
        )


@contextlib.contextmanager
def _seen_by_nobody(alone: bool) -> Iterator[None]:
    """While Ray is started for this machine alone: let it listen on 127.0.0.1 only, not on the network as usual.

    Its processes recognize each other by a token. Without one in the environment, Ray would write one to the home
    folder, and later clusters would ask for it.
    """
    from ray._private import ray_constants

    if not alone:
        yield
        return
    if not any(name.startswith("RAY_AUTH_") for name in os.environ):
        os.environ["RAY_AUTH_TOKEN"] = _token()
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@functools.cache
def _token() -> str:
    """One for all that this process starts: Ray remembers the first that it read."""
    return secrets.token_hex(32)


@contextlib.contextmanager
def _printing_to_stderr(verbose: bool) -> Iterator[None]:
    """Keep Ray's notices out of stdout, where it prints them, even those of a run that asked for no log."""
    from ray._private import worker

    before = worker.print_to_stdstream
    worker.print_to_stdstream = lambda data, **more: before({**data, "is_err": True}, **more) if verbose else None
    try:
        yield
    finally:
        worker.print_to_stdstream = before


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
