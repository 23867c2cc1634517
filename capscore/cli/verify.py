"""`capscore verify`: whether a model computes the same everywhere."""

from __future__ import annotations

from typing import Annotated

import typer

from capscore import modelfile
from capscore.cli.app import app
from capscore.cli.datasets import datasets
from capscore.cli.shared import DataDir, Import, Weights, show_agreement


@app.command("verify")
def verify_command(
    model: Weights,
    data: Annotated[str | None, typer.Option(help="Use 32 of its test images too.")] = None,
    data_dir: DataDir = None,
    providers: Annotated[
        list[str] | None,
        typer.Option("--provider", help="Of ONNX Runtime, beside cpu: webgpu, openvino, cuda, …; may be said again."),
    ] = None,
    imports: Import = None,
) -> None:
    """Run a model on every backend at hand and ONNX Runtime; show the largest differences from NumPy in float64."""
    read = modelfile.read(model)
    images = None
    if data is not None:
        images = datasets(read, data, data_dir)[1].batch(slice(0, 32))[0]
    if not show_agreement(read, images, ("cpu", *(providers or ()))):
        raise typer.Exit(1)
