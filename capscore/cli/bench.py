"""`capscore bench`: engines side by side on one model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from capscore import modelfile
from capscore.cli.app import app, console, say
from capscore.cli.datasets import calibrating, datasets
from capscore.cli.shared import DataDir, ModelPath
from capscore.disk import write_atomically
from capscore.errors import CapscoreError


@app.command("bench")
def bench_command(
    model: ModelPath,
    engines: Annotated[
        list[str] | None,
        typer.Option("--engine", help="A part of a name, such as webgpu; may be said again; else all."),
    ] = None,
    batches: Annotated[str, typer.Option(help="How many images at a time.")] = "1,32,128",
    rounds: Annotated[int, typer.Option(min=1, help="How often each engine is asked, in turn.")] = 10,
    threads: Annotated[int, typer.Option(min=0, help="Of each engine on the CPU; 0 for as many as it likes.")] = 0,
    longest: Annotated[float, typer.Option(help="Seconds that a batch may take; longer ones are left out.")] = 10.0,
    data: Annotated[
        str | None, typer.Option(help="Calibrate int8 on its training images; without it, no int8.")
    ] = None,
    data_dir: DataDir = None,
    out: Annotated[Path | None, typer.Option("--json", help="Write all of it to this file.")] = None,
) -> None:
    """Measure every engine at hand on a model, in turn: latency, parity, file, start, memory, nodes left to the CPU."""
    from capscore.export.bench import bench

    try:
        sizes = [int(batch) for batch in batches.split(",")]
    except ValueError:
        raise CapscoreError(f"--batches takes whole numbers such as 1,32,128, not {batches}") from None
    shown = None
    if data is not None:
        if model.suffix == ".onnx":
            raise CapscoreError(f"{model} is an export: --data calibrates an int8 one of a .safetensors model")
        shown = calibrating(datasets(modelfile.read(model), data, data_dir)[0])
    found = bench(model, engines=engines or (), batches=sizes, rounds=rounds, threads=threads, longest=longest,
                  calibration=shown)  # fmt: skip
    machine = found["machine"]
    say(f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}")
    say(", ".join(f"{name} {version}" for name, version in machine.items() if name not in ("cpu", "cores", "python")))
    here = [row for row in found["rows"] if row["absent"] is None]
    _speeds(here)
    _sizes(here)
    absent = {row["engine"]: row["absent"] for row in reversed(found["rows"]) if row["absent"] is not None}
    for engine, why in reversed(absent.items()):
        say(f"not here: {engine}: {why}")
    if out is not None:
        write_atomically(out, json.dumps(found, indent=1).encode())


def _speeds(rows: list[dict[str, Any]]) -> None:
    """Print what a batch takes, by the median and at the worst of a hundred, and the images in a second."""
    batches = sorted({batch for row in rows for batch in row["batches"]})
    table = _table("engine", "format", *(head for batch in batches for head in (f"ms at {batch}", "p99", "images/s")))
    for row in rows:
        found = [row["batches"].get(batch) for batch in batches]
        cells = [
            [f"{each['ms']:.2f}", f"{each['p99_ms']:.2f}", f"{each['images_s']:.0f}"] if each else ["", "", ""]
            for each in found
        ]
        table.add_row(row["engine"], row["format"], *(cell for three in cells for cell in three))
    console.print(table)


def _sizes(rows: list[dict[str, Any]]) -> None:
    """Print how far the answers are from the truth, the file, start and memory, and the nodes left to the CPU."""
    table = _table("engine", "format", "differs", "MB", "load s", "start s", "peak MB", "on CPU", "copies")
    for row in rows:
        nodes = row["nodes"] or {}
        left = nodes.get("CPUExecutionProvider", 0) if row["engine"] != "ORT cpu" and nodes else None
        table.add_row(
            row["engine"],
            row["format"],
            f"{row['difference']:.0e}",
            f"{row['bytes'] / 1e6:.2f}",
            f"{row['load_s']:.2f}",
            f"{row['start_s']:.1f}",
            "" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}",
            "" if left is None else f"{left}/{sum(nodes.values())}",
            "" if left is None else str(row["copies"]),
        )
    console.print(table)


def _table(*heads: str) -> Table:
    table = Table(*heads, box=None)
    for column in table.columns[2:]:
        column.justify = "right"
    return table
