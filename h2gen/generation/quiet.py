"""What a process does that makes pictures for another one, which owns the terminal."""

from __future__ import annotations

import logging
import threading
import warnings

from h2gen.models.choices import LIBRARIES


def be_quiet() -> None:
    """Keep the libraries of this process from writing to the terminal."""
    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())  # tqdm's own lock is a system semaphore, which a killed process leaks
    for name in LIBRARIES:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [logging.NullHandler()], False
    warnings.simplefilter("ignore")
