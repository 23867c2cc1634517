"""What every measurement says of where it was made."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any

from capscore import __version__


def about(*packages: str) -> dict[str, Any]:
    """Return the hardware, and the versions of capscore, NumPy and those of `packages` that are installed."""
    found = {"capscore": __version__}
    for name in ("numpy", *packages):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"cpu": processor(), "cores": os.cpu_count(), "python": platform.python_version(), **found}


def peak_mb() -> float | None:
    """Return the most MB of host memory that this process ever held, libraries included, where the system tells it."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux counts what the parent held into getrusage: a process is at first a copy of it
        found = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(found[0]) / 2**10 if found else None
    try:
        import resource
    except ModuleNotFoundError:  # of Unix
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def processor() -> str:
    """Return the processor's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    return names[0].split(":")[1].strip() if names else platform.processor() or platform.machine()
