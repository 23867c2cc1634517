"""Files for the page in docs/playground: networks and their decoders as ONNX, and models.json, which lists them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from capscore import backend
from capscore.disk import make_folder, write_atomically
from capscore.errors import CapscoreError
from capscore.export import onnxfile
from capscore.export.onnx import export, export_decoder
from capscore.layer import Grid
from capscore.net import followed

LIST = "models.json"


def write(
    models: Sequence[str | os.PathLike[str]], folder: str | os.PathLike[str], precision: str = "fp32", **about: Any
) -> list[Path]:
    """Write what the page needs of each model into a folder, and return the files, the list among them.

    Models are .safetensors files, exported with all that the page can show, or .onnx exports, which are checked and
    copied. The page shows the first, and compares all; their names are those of the files. `precision` is that of
    `capscore.export.onnx.export`, without int8. `about` are JSON values that the page reads from the list: `runtime`,
    the address of the folder `dist` of onnxruntime-web, relative to the page, by default a content delivery network's;
    `two`, the name of the model that the page turns to when two digits are drawn.

    Raises
    ------
    CapscoreError : there is no model, or two of one name; the page has no pictures for one
    ModelFileError : a file is foreign or damaged
    """
    paths = [Path(model) for model in models]
    if not paths:
        raise CapscoreError("no model for the page: name at least one .safetensors or .onnx file")
    names = [path.stem for path in paths]
    names += [_decoder(path) for path in paths if path.suffix.lower() != ".onnx"]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise CapscoreError(f"two models, or one and the decoder of another, are called {twice[0]}: rename one")
    folder = make_folder(folder)
    listed, files = [], []
    for path in paths:
        entry, made = (_copied if path.suffix.lower() == ".onnx" else _exported)(path, folder, precision)
        listed.append({"name": path.stem, **entry})
        files += made
    write_atomically(folder / LIST, (json.dumps({**about, "models": listed}, indent=1) + "\n").encode())
    return [*files, folder / LIST]


def _copied(path: Path, folder: Path, precision: str) -> tuple[dict[str, Any], list[Path]]:
    file = onnxfile.read(path)
    if file.input.name != "images":
        raise CapscoreError(f"{path} is a decoder: give the network, as a .safetensors model, to have both on the page")
    if file.batch not in (None, 1):
        raise CapscoreError(f"{path} takes {file.batch} images at a time: export it without --batch")
    target = folder / path.name
    write_atomically(target, path.read_bytes())
    return {"file": target.name, **_told(path, file.spec)}, [target]


def _exported(path: Path, folder: Path, precision: str) -> tuple[dict[str, Any], list[Path]]:
    net = backend("numpy").load(path)
    spec = net.spec
    _, told = followed(net.ops, spec, net.params, np.zeros((1, *spec.input), np.float32))
    outputs = ["lengths", "capsules"] if isinstance(spec.output, Grid) else []
    outputs += ["scores"] if spec.own_scores else []
    outputs += ["couplings"] if any(name.startswith("couplings") for name in told) else []
    outputs += ["steps"] if any(not name.startswith("couplings") for name in told) else []
    files = [folder / f"{path.stem}.onnx"]
    export(net, files[0], precision=precision, outputs=outputs)
    entry = {"file": files[0].name, **_told(path, spec)}
    if spec.decoder is not None:
        files.append(folder / f"{_decoder(path)}.onnx")
        export_decoder(net, files[1], precision=precision)
        entry["decoder"] = files[1].name
    return entry, files


def _decoder(path: Path) -> str:
    """Return the name of a model's decoder, without its end."""
    return f"{path.stem}-decoder"


def _told(path: Path, spec: Any) -> dict[str, Any]:
    """Return what the page tells of a network before it is loaded; the numbers of its decoder do not count."""
    if spec.input[0] not in (1, 3):
        raise CapscoreError(f"{path} takes {spec.input[0]} channels: the page has grey and colour pictures")
    told: dict[str, Any] = {"parameters": sum(row.parameter_count for row in spec.rows)}
    if routings := [layer.routing for layer in spec.layers if hasattr(layer, "routing")]:
        words = re.sub(r"(?<=[A-Za-z])(?=[A-Z][a-z])", " ", type(routings[-1]).__name__)
        steps = getattr(routings[-1], "iterations", None)
        told["routing"] = words if steps is None else f"{words}, {steps} step{'s' if steps > 1 else ''}"
    return told
