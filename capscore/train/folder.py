"""The folder that a training writes into, and no other training."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from capscore import disk
from capscore.errors import TrainingError

BEST, LAST, LOG = "best.safetensors", "last.safetensors", "log.jsonl"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let no second training write into the folder: their checkpoints would take turns.

    Removes what one that was killed has left half-written. Windows and some network file systems cannot tell.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    try:
        handle = os.open(folder, os.O_RDONLY)  # the system lets go of it when the process ends, however it ends
    except OSError as error:
        raise TrainingError(f"cannot open the folder {folder}: {error.strerror}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise TrainingError(
            f"another training is writing into {folder}: wait for it, or choose another folder"
        ) from None
    except OSError:  # a file system without locks
        pass
    else:
        for name in (BEST, LAST, LOG):
            disk.sweep(folder / name)
    try:
        yield
    finally:
        os.close(handle)
