"""Processes that each hold one contender and take turns: what one measures, no other disturbs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from subprocess import PIPE, Popen
from typing import Any

from capscore.errors import CapscoreError
from capscore.export.machine import peak_mb
from lab import ROOT

MARK = "measured "  # libraries print lines of their own


class Worker:
    """A process that holds one contender; every call is a turn of it."""

    def __init__(self, name: str, command: list[str], environment: Mapping[str, str] | None = None) -> None:
        self.name = name
        self._process = Popen([sys.executable, *command], cwd=ROOT, env=environment, stdin=PIPE, stdout=PIPE, text=True)

    def __call__(self) -> dict[str, Any]:
        """Return what it measured; raises CapscoreError if it has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            print(file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.startswith(MARK):
                return json.loads(line.removeprefix(MARK))  # type: ignore[no-any-return]
        status = self._process.wait()
        raise CapscoreError(f"{self.name} ended with status {status}; its own message stands above")

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


def take_turns(measure: Callable[[], dict[str, Any]]) -> None:
    """Be a worker: measure whenever it is its turn."""
    for _ in sys.stdin:
        print(MARK + json.dumps(measure()), flush=True)


def threads(count: int) -> dict[str, str]:
    """Return the environment of a process whose libraries have so many threads."""
    return os.environ | {"OMP_NUM_THREADS": str(count), "OPENBLAS_NUM_THREADS": str(count)}


def peak() -> float:
    """Return the most megabytes that this process has held, 0 where the system does not say."""
    return peak_mb() or 0.0
