"""What waiting threads cost: training beside 0, 1, 2 and 4 busy processes, by how threads wait and how many there are.

    python -m lab.bench.waiting --json waiting.json

Every contender is a process of its own that trains `small` on digits for a moment whenever its turn comes; all take
turns in every round, and the busy processes of a round are this program's own. About four minutes on a quiet machine.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lab import files
from lab.bench.workers import Worker

# → the environment of a process. PyTorch's threads are OpenMP's and wait as it says; NumPy's are BLAS's own. What
# capscore chooses when nothing is set is the last of each.
CONTENDERS: dict[str, dict[str, dict[str, str]]] = {
    "torch": {
        "OpenMP's own way": {},
        "GOMP_SPINCOUNT=3000": {"GOMP_SPINCOUNT": "3000"},
        "GOMP_SPINCOUNT=300": {"GOMP_SPINCOUNT": "300"},
        "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    },
    "numpy": {
        "a BLAS thread for each core": {"OPENBLAS_NUM_THREADS": str(os.cpu_count())},
        "one BLAS thread": {"OPENBLAS_NUM_THREADS": "1"},
    },
}
UNSET = "OMP_", "GOMP_", "KMP_", "OPENBLAS_"

# The array library comes first: capscore then leaves it as it is, and a contender has what its environment says.
WORKER = """
import importlib, sys, time
name, preset, batch, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
importlib.import_module(name)
from capscore import PRESETS, backend
from capscore.data import load
from capscore.model import one_hot
caps, data = backend(name), load("digits")[0]
learner = caps.Learner(caps.CapsNet(PRESETS[preset]))
images, labels = data.batch(slice(0, batch))
targets = one_hot(labels, batch, 10)
def train(seconds):
    start, steps = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        float(learner.step(images, targets, 1e-3)[0])
        steps += 1
    return steps * batch / (time.perf_counter() - start)
from lab.bench.workers import take_turns
take_turns(lambda: {"images_per_second": train(seconds)})
"""


def worker(backend: str, name: str, args: argparse.Namespace) -> Worker:
    """Return a process that trains for a moment in every turn."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(UNSET)}
    command = ["-c", WORKER, backend, args.preset, str(args.batch), str(args.seconds)]
    return Worker(f"{backend}, {name}", command, environment | CONTENDERS[backend][name])


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Keep so many processes busy."""
    made = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        time.sleep(0.2)
        yield
    finally:
        for process in made:
            process.kill()
            process.wait()


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """Return images per second by load, backend and setting: every measurement."""
    workers = {
        (backend, name): worker(backend, name, args) for backend in args.backends for name in CONTENDERS[backend]
    }
    speeds: dict[str, Any] = {
        str(load): {backend: {name: [] for name in CONTENDERS[backend]} for backend in args.backends}
        for load in args.loads
    }
    try:
        for each in workers.values():
            each()  # to warm up, which is no measurement
        for i in range(args.rounds):
            for load in args.loads:
                with busy(load):
                    for (backend, name), each in workers.items():
                        speeds[str(load)][backend][name].append(each()["images_per_second"])
            print(f"round {i + 1}/{args.rounds}", file=sys.stderr)
    finally:
        for each in workers.values():
            each.close()
    return speeds


def main() -> None:
    """Measure, print a table and write all numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS))
    parser.add_argument("--preset", default="small")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--loads", nargs="+", type=int, default=[0, 1, 2, 4], help="busy processes")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.8, help="of one measurement, at least")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.json:
        files.check(args.json)
    began = time.monotonic()
    speeds = measured(args)
    about = {"cores": os.cpu_count(), "machine": platform.platform(), "python": platform.python_version()}
    about |= {"preset": args.preset, "batch": args.batch, "rounds": args.rounds, "seconds": args.seconds}
    print(f"training of {args.preset}, images/s: median (quartiles) of n = {args.rounds}, {os.cpu_count()} cores")
    for backend in args.backends:
        for name in CONTENDERS[backend]:
            cells = []
            for load in args.loads:
                low, middle, high = np.percentile(speeds[str(load)][backend][name], [25, 50, 75])
                cells.append(f"{load} busy: {middle:5.0f} ({low:.0f}–{high:.0f})")
            print(f"{backend:6}{name:28}{'  '.join(cells)}")
    print(f"{time.monotonic() - began:.0f} s")
    if args.json:
        files.write_json(args.json, about | {"images_per_second": speeds})


if __name__ == "__main__":
    main()
