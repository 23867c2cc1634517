"""`capscore inspect`: what a model is made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from capscore import PRESETS, CapsNetSpec, modelfile
from capscore.cli.app import app, console, say
from capscore.cli.shared import Import, found, read_spec, size_text


@app.command("inspect")
def inspect_command(
    model: Annotated[
        str,
        typer.Argument(help="A .safetensors or .onnx file, a name of `capscore models`, a spec's JSON, or a preset."),
    ],
    imports: Import = None,
) -> None:
    """Show layers, shapes, parameters and multiply-adds of a model."""
    spec, about = _read(model)
    table = Table("layer", "kind", "output", "parameters", "multiply-adds", box=None)
    for column in table.columns[3:]:
        column.justify = "right"
    table.add_row("images", "", size_text(spec.input))
    for row in (*spec.rows, *spec.decoder_rows):
        cost = f"{row.parameter_count:,}", f"{row.plan.multiply_adds:,}"
        table.add_row(row.name, row.kind, size_text(row.output.dims), *cost)
    table.add_section()
    table.add_row("total", "", "", f"{spec.parameter_count:,}", f"{spec.multiply_adds:,}")
    console.print(table)
    for name, value in about.items():
        if name not in modelfile.CHECKPOINT:  # the run's log.jsonl has most of it
            say(f"{name}: {json.dumps(value) if isinstance(value, dict) else value}")


def _read(model: str) -> tuple[CapsNetSpec, dict[str, Any]]:
    """Return the spec of a file or preset, and what the file tells beside it."""
    if not (path := found(Path(model))).exists() and model in PRESETS:
        return PRESETS[model], {}
    if model.endswith(".json"):
        return read_spec(Path(model)), {}
    if model.lower().endswith(".onnx"):
        from capscore.export.onnxfile import read as read_onnx

        file = read_onnx(model)
        return file.spec, {"classes": ", ".join(file.classes)} | file.provenance
    read = modelfile.read(path)
    stored = sorted({str(array.dtype) for array in read.params.values()})
    return read.spec, {"stored as": ", ".join(stored), "classes": ", ".join(read.classes)} | read.provenance
