"""What keeps libraries from writing to the terminal in a process that makes pictures together with, or for, others."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import sys
import threading
import warnings

from h2gen.models.choices import LIBRARIES

_ERRORS = 2
"""The level of torch's log at which it writes only errors."""


def be_quiet() -> None:
    """Keep the libraries of this process from writing to the terminal."""
    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())  # tqdm's own lock is a system semaphore, which a killed process leaks
    for name in LIBRARIES:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [logging.NullHandler()], False
    warnings.simplefilter("ignore")


def quiet_torch() -> None:
    """Let torch write only errors, not its remarks on groups of processes, of which some come when a process ends.

    It reads its environment variable for that only when it is imported, which may have been long ago.
    """
    import torch

    if "TORCH_CPP_LOG_LEVEL" in os.environ:
        return
    library = {"darwin": "libc10.dylib", "win32": "c10.dll"}.get(sys.platform, "libc10.so")
    with contextlib.suppress(OSError, ValueError):  # a torch that was built in another way keeps its remarks
        loaded = ctypes.CDLL(os.path.join(os.path.dirname(torch.__file__), "lib", library))
        ctypes.c_int.in_dll(loaded, "FLAGS_caffe2_log_level").value = _ERRORS
