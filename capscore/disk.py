"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from contextlib import suppress
from pathlib import Path

from .errors import ModelFileError

PART = ".part"  # how the name of a file ends that is not yet written whole


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file so that its final name never holds half of it: write beside, fsync, rename.

    Of a symbolic link the file that it points at is written; the link stays. What is no file is refused. A file that
    was there keeps its permissions.
    """
    target = _target(path)
    beside = target.parent / f"{_beside(target)}{secrets.token_hex(8)}{PART}"
    try:
        file = open(beside, "xb")  # noqa: SIM115 - closed below, where another error is told
    except OSError as error:
        raise ModelFileError(f"cannot write {path}: {error.strerror}; is its folder there and writable?") from None
    try:
        with file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if target.is_file():
            shutil.copymode(target, beside)
        os.replace(beside, target)
    except BaseException as error:
        with suppress(OSError):
            os.unlink(beside)
        if isinstance(error, OSError):
            raise ModelFileError(f"cannot write {path}: {error.strerror}; nothing was changed") from None
        raise
    _sync_folder(target.parent)


def make_folder(folder: str | os.PathLike[str]) -> Path:
    """Return a folder to write into, made if it is not there; ModelFileError says why it cannot be used."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelFileError(f"cannot make the folder {folder}: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise ModelFileError(f"cannot write into the folder {folder}: choose another one")
    return folder


def sweep(path: str | os.PathLike[str]) -> None:
    """Remove what writers of `path` that were killed have left beside it; only while no other process writes it."""
    target = _target(path)
    with suppress(OSError):  # what cannot be removed stays, and harms nothing
        for entry in target.parent.iterdir():
            if entry.name.startswith(_beside(target)) and entry.name.endswith(PART):
                entry.unlink()


def _target(path: str | os.PathLike[str]) -> Path:
    """Return the file that writing `path` replaces, there or not, or say why it is none.

    A symbolic link that leads back to itself leads to no file: it is replaced.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError:  # nothing is there yet; or nothing can be, and to write will tell why
        mode = stat.S_IFREG
    kinds = {stat.S_IFREG: "", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    if what := kinds.get(stat.S_IFMT(mode), "a device"):
        raise ModelFileError(f"cannot write {path}: it is {what}; nothing was changed; name a file")
    return Path(os.path.realpath(path))


def _beside(target: Path) -> str:
    return f".{target.name}."


def _sync_folder(folder: Path) -> None:
    """Make a new name in the folder outlast a loss of power, where the system can."""
    with suppress(OSError):  # Windows opens no folders; what was written is there all the same
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
