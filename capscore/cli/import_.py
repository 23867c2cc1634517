"""`capscore import`: a checkpoint of other people's code as a model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from capscore import modelfile
from capscore.cli.app import app, say
from capscore.cli.shared import read_spec, size_text
from capscore.errors import CapscoreError, ModelFileError, short
from capscore.files.importers import convert
from capscore.files.importers.mapping import read_mapping


@app.command("import")
def import_command(
    file: Annotated[
        Path,
        typer.Argument(
            help="A Keras .h5 or .keras, a PyTorch .pt or .pth, a .safetensors or .npz file.", show_default=False
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="The model to write; FILE with .safetensors if not given.")] = None,
    spec: Annotated[Path | None, typer.Option(help="Network: a JSON file, for code that is not known.")] = None,
    mapping: Annotated[Path | None, typer.Option(help="JSON from their names to those of the spec.")] = None,
    input_size: Annotated[
        str | None,
        typer.Option("--input", help="Size of the images, such as 1,28,28, where the weights leave it open."),
    ] = None,
    iterations: Annotated[int | None, typer.Option(help="Of the routing, of known code; 3 if not given.")] = None,
    classes: Annotated[str | None, typer.Option(help="Names of the classes: zero,one,…")] = None,
) -> None:
    """Make a model of a checkpoint of other people's code, CapsNets of the best known authors by themselves."""
    target = out or file.with_suffix(".safetensors")
    if os.path.realpath(target) == os.path.realpath(file):
        raise ModelFileError(f"{target} would be written over; name another file with --out")
    model = convert(
        file,
        None if spec is None else read_spec(spec),
        None if mapping is None else _read_mapping(mapping),
        input=None if input_size is None else _size(input_size),
        iterations=iterations,
        classes=None if classes is None else [name.strip() for name in classes.split(",")],
    )
    modelfile.save(target, model)
    about = model.provenance["imported"]
    say(f"{target}: {about['by']}, {size_text(model.spec.input)} images, {model.spec.classes} classes, "
        f"{model.spec.parameter_count:,} parameters")  # fmt: skip
    for note in about["notes"]:
        say(f"note: {note}")


def _read_mapping(path: Path) -> dict[str, object]:
    try:
        return read_mapping(path.read_bytes())
    except OSError as error:
        raise ModelFileError(f"cannot read {path}: {error.strerror}") from None


def _size(text: str) -> tuple[int, int, int]:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() for part in parts):
        raise CapscoreError(f"--input takes channels,height,width, such as 1,28,28, not {short(text)}")
    channels, height, width = map(int, parts)
    return channels, height, width
