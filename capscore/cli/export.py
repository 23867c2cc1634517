"""`capscore export`: a model as an ONNX file."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from capscore import backend, zoo
from capscore.cli.app import app, console, say
from capscore.cli.datasets import calibrating, counted, datasets
from capscore.cli.shared import DataDir, Import, TakesFloats, Weights
from capscore.errors import CapscoreError, ModelFileError
from capscore.train import accuracy


@app.command("export")
def export_command(
    model: Weights,
    onnx: Annotated[Path | None, typer.Argument(help="The file to write; MODEL with .onnx if not given.")] = None,
    precision: Annotated[str, typer.Option(help="fp32, fp16, int8 or int8-weights.")] = "fp32",
    batch: Annotated[int | None, typer.Option(help="A fixed number of images; any number if not given.")] = None,
    opset: Annotated[int, typer.Option(help="ONNX operator set, 13 or later.")] = 17,
    outputs: Annotated[
        str | None, typer.Option(help="Of lengths,capsules,reconstruction,couplings,steps; scores of its own.")
    ] = None,
    byte_images: Annotated[bool, typer.Option("--byte-images", help="Take uint8 images, 0 to 255.")] = False,
    decoder: Annotated[Path | None, typer.Option(help="Write the decoder as a model of its own here.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Calibrate int8 on its training images; report accuracy on its test images.")
    ] = None,
    data_dir: DataDir = None,
    fast_conv: Annotated[str | None, typer.Option(help="3x3 or 6x6: fp32 for large batches, in a larger file.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Tell browsers and the like in a .json beside it.")] = False,
    verify: Annotated[bool, typer.Option(help="Prove that the graph computes the same.")] = True,
    triton: Annotated[Path | None, typer.Option(help="A Triton model repository to put the file into, too.")] = None,
    triton_name: Annotated[str | None, typer.Option(help="The model's name there; capsnet if not given.")] = None,
    mlserver: Annotated[Path | None, typer.Option(help="A model repository of MLServer, likewise.")] = None,
    imports: Import = None,
) -> None:
    """Write a model as one ONNX file, routing unrolled, and prove that it computes the same as the network."""
    from capscore.export.onnx import export, export_decoder

    net = backend("numpy").load(model)
    beside = Path(model.name) if model.parent == zoo.FOLDER else model  # what ships is not written beside
    target = onnx or beside.with_suffix(".onnx")
    side = target.with_suffix(".json") if json else None
    files = [path for path in (model, target, decoder, side) if path is not None]
    if len({os.path.realpath(path) for path in files}) < len(files):
        raise ModelFileError(f"one file would be written over another: {', '.join(map(str, files))} must differ")
    chosen = None if outputs is None else [name.strip() for name in outputs.split(",")]
    sets = None if data is None else datasets(net, data, data_dir)
    shown = None
    if sets is not None:
        shown = calibrating(sets[0], batch)
    accept, put = _into(triton, triton_name)
    written: dict[str, Any] = {"batch": batch, "opset": opset, "verify": verify}
    told = export(net, target, precision=precision, outputs=chosen, byte_images=byte_images, calibration=shown,
                  fast_conv=fast_conv, json=json, accept=accept, **written)  # fmt: skip
    _exported(told, model)
    if decoder is not None:
        same = "fp32" if precision == "int8" else precision  # calibration is not for decoders alone
        _exported(export_decoder(net, decoder, precision=same, **written), model)
    if sets is not None and (chosen is None or ("scores" if net.spec.own_scores else "lengths") in chosen):
        from capscore.export.runtime import Session

        session = Session(target)
        after = accuracy(TakesFloats(session, session.classes) if byte_images else session, sets[1])
        say(f"accuracy on {counted(sets[1:], 'held-out', data or '')}: {accuracy(net, sets[1]):.2%} before, "
            f"{after:.2%} exported")  # fmt: skip
    if put is not None:
        say(f"{put(target)}: serve it with tritonserver --model-repository {triton}")
    if mlserver is not None:
        from capscore.export.mlserver import write as write_for_mlserver

        say(f"{write_for_mlserver(target, mlserver)}: serve it with mlserver start {mlserver}")


def _into(folder: Path | None, name: str | None) -> tuple[Callable[[Any], Any] | None, Callable[[Path], Path] | None]:
    """Return who refuses a model that a Triton repository cannot take, before it is written, and who puts it there."""
    if folder is None:
        if name is not None:
            raise CapscoreError(f"--triton-name {name} names a model of a repository: give that by --triton")
        return None, None
    from capscore.export import triton

    to: dict[str, Any] = {"folder": folder, "name": name or triton.NAME}
    return partial(triton.check, **to), partial(triton.write, **to)


def _exported(report: Any, model: Path) -> None:
    """Tell of a file that was written: its size, and its largest differences."""
    say(f"{report.path}: {report.bytes / 1e6:.2f} MB from {model.stat().st_size / 1e6:.2f} MB")
    if report.differences is None:
        say("not verified")
        return
    table = Table("output", "largest difference from float64", box=None)
    for name, difference in report.differences.items():
        table.add_row(name, f"{difference:.1e}")
    console.print(table)
