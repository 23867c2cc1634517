"""What every measurement says of where it was made."""

from __future__ import annotations

import importlib.metadata
import os
import platform
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


def processor() -> str:
    """Return the processor's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    return names[0].split(":")[1].strip() if names else platform.processor() or platform.machine()
