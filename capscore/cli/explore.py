"""`capscore explore`: pictures of what a model does."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from capscore import backend
from capscore.cli.app import app, say
from capscore.cli.datasets import datasets, usual
from capscore.cli.shared import Backend, DataDir, DataOf, Import, Weights, default_backend
from capscore.train import LOG


@app.command("explore")
def explore_command(
    model: Weights,
    data: DataOf = None,
    data_dir: DataDir = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("figures"),
    backend_name: Backend = None,
    imports: Import = None,
) -> None:
    """Draw what a model does: reconstructions, what each dimension means, couplings, lengths, training curves."""
    from capscore.figures import explore

    net = backend(backend_name or default_backend()).load(model)
    _, test = datasets(net, data or usual(net), data_dir)
    for path in explore(net, test, out, read_log(model.parent / LOG)):
        say(str(path))


def read_log(path: Path) -> list[dict[str, Any]] | None:
    """Return the rows of a training's log, None if there is none that can be read."""
    if not path.exists():
        return None
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        told = [{name: float(row[name]) for name in ("loss", "accuracy", "held_out_accuracy")} for row in rows]
        if not all(math.isfinite(value) for row in told for value in row.values()):
            raise ValueError("its numbers are not finite")
        return [{"epoch": int(row["epoch"]), **numbers} for row, numbers in zip(rows, told, strict=True)]
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        say(f"note: no training curves: {path} cannot be read ({error})")
        return None
