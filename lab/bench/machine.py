"""What every benchmark says of where it ran, and how it times: interleaved rounds, medians and quartiles."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def about(*packages: str) -> dict[str, Any]:
    """Return the hardware and the versions of `packages`."""
    found = {name: importlib.metadata.version(name) for name in ("numpy", *packages)}
    return {"cpu": processor(), "cores": os.cpu_count(), "python": platform.python_version(), **found}


def processor() -> str:
    """Return the processor's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    return names[0].split(":")[1].strip() if names else platform.processor() or platform.machine()


def interleaved(contenders: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Time every contender once per round, after one round to warm up; return [quartile, median, quartile] in ms."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for i in range(rounds + 1):
        for name, run in contenders.items():
            time.sleep(0.1)  # the threads of the one before still spin, waiting for work
            start = time.perf_counter()
            run()
            if i:
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: np.percentile(ms, [25, 50, 75]).tolist() for name, ms in times.items()}
