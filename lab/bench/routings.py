"""Every routing beside the others: parameters, arithmetic, memory, time, and what it learns of the embedded digits.

    python -m lab.bench.routings --json lab/bench/results/routings.json

The networks are the `small` presets. Each task of a network is a process of its own; they take turns. Memory is how far
the process of a training step grows beyond what it holds after one of one image. With `--train`, each network also
learns the 5,000 digits on one thread, and is measured on the 1,000 others after the last epoch: `--only` some of them
and `--rounds 0` leave the times, and the other networks, of the file as they are.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from capscore import PRESETS, backend
from capscore.data import load
from capscore.export.machine import about
from capscore.optim import Cosine
from capscore.train import Recipe, accuracy, train
from lab import files
from lab.bench.workers import Worker, peak, take_turns, threads

NETWORKS = [name for name in PRESETS if name.split("-")[0] == "small"]
SECONDS = 0.5  # of a turn, at least
EPOCHS = {"small-em": 12, "small-vb": 6, "small-self-routing": 12, "small-deepcaps": 3}  # others: 8

Run = Callable[[], object]


def forward(name: str, batch: int) -> Run:
    """PyTorch, in inference."""
    import torch

    net = backend("torch").CapsNet(PRESETS[name])
    x = torch.from_numpy(_images(name, batch))

    def run() -> object:
        with torch.inference_mode():
            return net(x)

    return run


def step(name: str, batch: int) -> Run:
    """A step of training on PyTorch."""
    caps = backend("torch")
    net = caps.CapsNet(PRESETS[name])
    learner = caps.Learner(net)
    targets = np.eye(10)[np.arange(batch) % 10]
    return lambda: float(learner.step(_images(name, batch), targets, 1e-4)[0])


def runtime(name: str, batch: int) -> Run:
    """ONNX Runtime on the CPU."""
    from capscore.export import onnx
    from capscore.export.runtime import Session

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        onnx.export(backend("numpy").CapsNet(PRESETS[name]), path, verify=False)
        session = Session(path, provider="cpu", threads=1)
    return lambda: session(_images(name, batch))


TASKS: dict[str, Callable[[str, int], Run]] = {"forward": forward, "step": step, "onnx": runtime}


def _images(name: str, batch: int) -> Any:
    return np.random.default_rng(0).random((batch, *PRESETS[name].input), np.float32)


def serve(task: str, name: str, batch: int) -> None:
    """Be a worker: in every turn, tell milliseconds and how far the memory has grown."""
    TASKS[task](name, 1)()
    held = peak()
    run = TASKS[task](name, batch)
    run()

    def measure() -> dict[str, float]:
        start, times = time.perf_counter(), 0
        while time.perf_counter() - start < SECONDS:
            run()
            times += 1
        return {"ms": 1e3 * (time.perf_counter() - start) / times, "mb": peak() - held}

    take_turns(measure)


def worker(task: str, name: str, batch: int) -> Worker:
    """Return a process, of one thread, for one task of a network."""
    return Worker(f"{name}, {task}", ["-m", "lab.bench.routings", "--serve", task, name, str(batch)], threads(1))


def measured(names: list[str], batch: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Return by network the quartiles of each task's milliseconds, and the megabytes of a step."""
    told: dict[tuple[str, str], list[dict[str, float]]] = {}
    for name in names:  # its tasks take turns; all networks at once would not fit the memory of a small machine
        workers = {task: worker(task, name, batch) for task in TASKS}
        try:
            for _ in range(rounds):
                for task, each in workers.items():
                    told.setdefault((name, task), []).append(each())
        finally:
            for each in workers.values():
                each.close()
    rows = {}
    for name in names:
        ms = {task: [turn["ms"] for turn in told[name, task]] for task in TASKS}
        quartiles = {task: np.percentile(each, [25, 50, 75]).tolist() for task, each in ms.items()}
        rows[name] = {"ms": quartiles, "mb": max(turn["mb"] for turn in told[name, "step"])}
    return rows


def learned(name: str, library: str) -> dict[str, float]:
    """Return the accuracy on the held-out digits after the last epoch, and seconds of training: waited, and of a core.

    Other processes make both longer, the first by as much as they take, the second by the memory they share.
    """
    caps, (learn, test), epochs = backend(library), load("digits"), EPOCHS.get(name, 8)
    recipe = Recipe(epochs=epochs, batch=32, rate=2e-3, schedule=Cosine(warmup=100))
    net = caps.CapsNet(PRESETS[name], seed=recipe.seed)
    began, worked = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        learner = caps.Learner(net, recipe.reconstruction, recipe.optimiser, recipe.average)
        train(net, learner, learn, test, recipe, Path(folder) / "run", reporters=())
    waited, worked = time.perf_counter() - began, time.process_time() - worked
    return {"accuracy": accuracy(net, test), "epochs": epochs, "seconds": waited, "core_seconds": worked}


def main() -> None:
    """Print the table; write the same as JSON."""
    if sys.argv[1:2] == ["--serve"]:
        task, name, batch = sys.argv[2:]
        serve(task, name, int(batch))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--train", action="store_true", help="also learn the digits")
    parser.add_argument("--backends", nargs="+", default=["torch"], help="that learn them")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.json:
        files.check(args.json)
    about_it = {"machine": about("torch", "onnxruntime"), "batch": args.batch, "rounds": args.rounds}
    results: dict[str, Any] = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    known = results.setdefault("networks", {})
    if args.rounds:
        results |= about_it
        for name, row in measured(args.only, args.batch, args.rounds).items():
            known[name] = known.get(name, {}) | row
    for name in args.only:
        spec, row = PRESETS[name], known.setdefault(name, {})
        row |= {"parameters": spec.parameter_count, "multiply_adds": spec.multiply_adds}
        if args.train:
            row["learned"] = row.get("learned", {}) | {library: learned(name, library) for library in args.backends}
        print(f"| `{name}` | {_cells(row)} |", flush=True)
        if args.json:
            files.write_json(args.json, results)


def _cells(row: dict[str, Any]) -> str:
    """Return the numbers of a network as the page of all routings has them."""
    cells = [f"{row['parameters']:,}", f"{row['multiply_adds'] / 1e6:.1f} million"]
    if "ms" in row:
        cells += [*(f"{row['ms'][task][1]:.1f}" for task in TASKS), f"{row['mb']:.0f}"]
    for library, told in row.get("learned", {}).items():
        how = f"{told['epochs']} epochs, {told['core_seconds']:.0f} s"
        cells.append(f"{told['accuracy']:.1%} ({library}, {how})")
    return " | ".join(cells)


if __name__ == "__main__":
    main()
