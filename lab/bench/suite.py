"""The benchmark suite: every contender in a process of its own, timed in turn, medians and quartiles.

A round times every contender once; between two, all processes sleep. A process also tells the most memory it ever
held, libraries included.
"""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from capscore.export.machine import about
from lab import files
from lab.bench.contenders import Settings, contenders
from lab.bench.workers import Worker, peak, take_turns

SAMPLE = 200  # ms that a contender runs at a time, warm as in a loop of a user's
PAUSE = 0.1  # seconds: the threads of the one before still spin, waiting for work


def worker(what: str, name: str, settings: Settings) -> Worker:
    """Return a process that holds one contender."""
    return Worker(name, ["-m", "lab.bench.suite", what, name, json.dumps(asdict(settings))])


def serve(what: str, name: str, settings: Settings) -> None:
    """Be a worker: in every turn, tell {"ms": one run, "peak_mb": most memory so far}."""
    run, times = contenders(settings.device)[what][name](settings), 1

    def measure() -> dict[str, float]:
        nonlocal times
        start = time.perf_counter()
        for _ in range(times):
            run()
        ms = (time.perf_counter() - start) * 1e3 / times
        times = max(times, math.ceil(SAMPLE / ms))
        return {"ms": ms, "peak_mb": round(_peak(settings.device))}

    take_turns(measure)


def _peak(device: str) -> float:
    """Return the most MB held so far: by this process, or of a GPU by the library that fills it."""
    if device == "cpu":
        return peak()
    if "cupy" in sys.modules:
        return float(sys.modules["cupy"].get_default_memory_pool().total_bytes()) / 2**20
    return float(sys.modules["torch"].cuda.max_memory_allocated()) / 2**20


def compare(what: str, settings: Settings, rounds: int, only: tuple[str, ...] = ()) -> dict[str, dict[str, float]]:
    """Time all contenders at `what`, or those in `only`: name → quartiles of the milliseconds, peak memory."""
    names = [name for name in contenders(settings.device)[what] if not only or name in only]
    rows = interleaved([worker(what, name, settings) for name in names], rounds)
    return dict(zip(names, rows, strict=True))


def interleaved(workers: list[Worker], rounds: int) -> list[dict[str, float]]:
    """Time the workers in turn, then end them; return of each the quartiles of the milliseconds and the peak memory."""
    times: list[list[float]] = [[] for _ in workers]
    held = [0.0] * len(workers)
    try:
        for each in workers:  # one at a time: what they prepare, they prepare undisturbed
            each()
            each()
        for _ in range(rounds):
            for i, each in enumerate(workers):
                time.sleep(PAUSE)
                found = each()
                times[i].append(found["ms"])
                held[i] = found["peak_mb"]
    finally:
        for each in workers:
            each.close()
    rows = []
    for ms, most in zip(times, held, strict=True):
        low, middle, high = np.percentile(ms, [25, 50, 75]).tolist()
        rows.append({"ms": middle, "low": low, "high": high, "best": min(ms), "peak_mb": most})
    return rows


def run(
    what: list[str], batches: list[int], rounds: int, settings: Settings, only: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Compare at every batch size; return settings, machine and rows, and print each table as it is done."""
    machine = about("torch", "onnxruntime", "onnx")
    if settings.device != "cpu":
        import torch

        machine |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    results: dict[str, Any] = {"machine": machine, "rounds": rounds, "settings": asdict(settings), "tables": []}
    for name in what:
        for batch in [settings.batch] if name == "machine" else batches:
            rows = compare(name, replace(settings, batch=batch), rounds, only)
            results["tables"].append({"what": name, "preset": settings.preset, "batch": batch, "rows": rows})
            print(table(name, batch, rows), flush=True)
    return results


def table(what: str, batch: int, rows: dict[str, dict[str, float]]) -> str:
    """Return the rows as text: medians, quartiles, images per second, the factor to the textbook, peak memory."""
    base = next((row["ms"] for name, row in rows.items() if name.startswith("textbook, PyTorch")), None)
    lines = [f"{what}, batch {batch}", f"{'':34s} {'ms':>9s} {'quartiles':>19s} {'images/s':>9s} {'×':>6s} {'MB':>6s}"]
    for name, row in rows.items():
        factor = f"{base / row['ms']:6.2f}" if base else ""
        spread = f"{row['low']:.1f}-{row['high']:.1f}"
        speed = batch / row["ms"] * 1e3
        lines.append(f"{name:34s} {row['ms']:9.1f} {spread:>19s} {speed:9.0f} {factor:>6s} {row['peak_mb']:6.0f}")
    return "\n".join(lines) + "\n"


def scaling(settings: Settings, rounds: int) -> dict[str, Any]:
    """Time the routing layer, forward and gradient on torch, as batch, input capsules and iterations grow."""
    grown: dict[str, list[Any]] = {"batch": [16, 32, 64, 128, 256], "inputs": [1_000, 3_000, 10_000, 30_000, 100_000],
                                   "iterations": [1, 2, 3, 4, 5, 6]}  # fmt: skip
    found: dict[str, Any] = {}
    for name, values in grown.items():
        base = replace(settings, batch=16 if name == "inputs" else 64)
        workers = [worker("routing and gradient", "torch", replace(base, **{name: value})) for value in values]
        found[name] = [{"value": v, **row} for v, row in zip(values, interleaved(workers, rounds), strict=True)]
        for row in found[name]:
            print(f"{name} {row['value']}: {row['ms']:.1f} ms, peak {row['peak_mb']:.0f} MB", flush=True)
    return found


def plots(results: dict[str, Any], folder: Path, name: str) -> None:
    """Draw images per second against the batch, and the growth of the routing layer if it was measured."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figures = {}
    if tables := [t for t in results["tables"] if t["what"] in ("inference", "training")]:
        figures["batch"] = _speeds(tables)
    if grown := results.get("scaling"):
        figures["scaling"] = _growth(grown)
    for what, figure in figures.items():
        files.write_figure(folder / f"{name}-{what}.png", figure, 120)
        plt.close(figure)


def _speeds(tables: list[dict[str, Any]]) -> Any:
    """Return the figure of images per second against the batch.

    A colour is an engine; dotted is the textbook, dashed the convolutions alone, both with open marks. The 3x3 tiles
    are left to the tables.
    """
    import matplotlib.pyplot as plt

    from capscore.figures import BLUE, GREEN, ORANGE, PURPLE

    engines = {"numpy": ORANGE, "ONNX": GREEN, "cupy": PURPLE}  # whatever is none of them is PyTorch
    markers = {"6x6": "s", "int8": "D", "tf32": "^", "bf16": "v", "compiled": "X"}
    lines = {"textbook": ":", "convolutions alone": "--"}

    def style(contender: str, of: dict[str, str], otherwise: str) -> str:
        return next((value for part, value in of.items() if part in contender), otherwise)

    whats = sorted({t["what"] for t in tables})
    figure, axes = plt.subplots(1, len(whats), figsize=(7.5 * len(whats), 4.2), squeeze=False, layout="constrained")
    for ax, what in zip(axes[0], whats, strict=True):
        of = [t for t in tables if t["what"] == what]
        batches = [t["batch"] for t in of]
        speeds = {
            contender: [t["batch"] / t["rows"][contender]["ms"] * 1e3 for t in of]
            for contender in of[0]["rows"]
            if "3x3" not in contender
        }
        for contender in sorted(speeds, key=lambda name: -speeds[name][-1]):  # the legend from fast to slow
            ax.plot(
                batches,
                speeds[contender],
                color=style(contender, engines, BLUE),
                linestyle=style(contender, lines, "-"),
                marker=style(contender, markers, "o"),
                markersize=5,
                markerfacecolor=style(contender, dict.fromkeys(lines, "white"), style(contender, engines, BLUE)),
                label=contender,
            )
        ax.set(xscale="log", xlabel="images in a batch", ylabel="images per second", ylim=(0, None), title=what)
        ax.set_xticks(batches, batches)
        ax.minorticks_off()
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


def _growth(grown: dict[str, Any]) -> Any:
    """Return the figure of the routing layer's time against its sizes."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    from capscore.figures import BLUE

    figure, axes = plt.subplots(1, len(grown), figsize=(4 * len(grown), 3.4), layout="constrained")
    labels = {"batch": "images", "inputs": "input capsules", "iterations": "iterations"}
    for ax, (what, rows) in zip(axes, grown.items(), strict=True):
        ax.plot([row["value"] for row in rows], [row["ms"] for row in rows], color=BLUE, marker="o")
        ax.set(xlabel=labels[what], ylabel="routing and gradient, ms", xlim=(0, None), ylim=(0, None))
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
        ax.xaxis.set_major_formatter("{x:,.0f}")
    return figure


def save(path: Path, results: dict[str, Any]) -> None:
    """Write the results as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, results)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], Settings(**json.loads(sys.argv[3])))
