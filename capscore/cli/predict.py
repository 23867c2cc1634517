"""`capscore predict`: which class image files show."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.table import Table

from capscore.cli.app import app, console
from capscore.cli.shared import Backend, ModelPath, Provider, Threads, open_model, takes_bytes
from capscore.data import read_image
from capscore.terminal import json_line


@app.command("predict")
def predict_command(
    model: ModelPath,
    images: Annotated[list[Path], typer.Argument(help="PNG, JPEG, BMP, GIF, TIFF or WebP files.", show_default=False)],
    invert: Annotated[
        bool, typer.Option("--invert", help="The images are dark on light (transparency: white); the model's are not.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines: file, class, all lengths.")] = False,
    backend_name: Backend = None,
    provider: Provider = None,
    threads: Threads = None,
) -> None:
    """Say which class image files show, and how long its capsule is."""
    net = open_model(model, backend_name, provider, threads)
    pixels = np.stack([read_image(path, net.spec.input, "white" if invert else None) for path in images])
    pixels = 255 - pixels if invert else pixels
    lengths = net.predict(pixels if takes_bytes(net) else pixels.astype(np.float32) / 255)
    table = Table("file", "class", "length", "next", "length", box=None)
    for path, row in zip(images, lengths, strict=True):
        order = np.argsort(-row, kind="stable")
        names = [net.classes[i] for i in order]
        if as_json:
            found = {net.classes[i]: round(float(n), 6) for i, n in enumerate(row)}
            file = os.fsencode(path).decode("utf-8", "backslashreplace")  # JSON has no words for other bytes
            print(json_line({"file": file, "class": names[0], "lengths": found}))
        else:
            second = (names[1], f"{row[order[1]]:.3f}") if len(names) > 1 else ("", "")
            table.add_row(str(path), names[0], f"{row[order[0]]:.3f}", *second)
    if not as_json:
        console.print(table)
