"""What several commands take and do: options, models and sessions, tables."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from capscore import PRESETS, CapsNetSpec, backend, modelfile, zoo
from capscore.agree import verify
from capscore.cli.app import console, say
from capscore.data import NAMES
from capscore.errors import CapscoreError, SpecError, short


def found(path: Path) -> Path:
    """Return the path of a model: of the trained network of that name, where there is no such file."""
    return zoo.path(str(path)) if not path.exists() and str(path) in zoo.list_models(pretrained=True) else path


ModelPath = Annotated[
    Path,
    typer.Argument(help="A .safetensors model, an .onnx export, or a name of `capscore models`.", show_default=False,
                   callback=found),
]  # fmt: skip
Weights = Annotated[
    Path,
    typer.Argument(help="A .safetensors model, or a name of `capscore models`.", show_default=False, callback=found),
]
DATA = f"{', '.join(NAMES)}, a folder or list of images, .npz, .npy, .csv, IDX."
Data = Annotated[str, typer.Option(help=DATA)]
DataOf = Annotated[
    str | None,
    typer.Option("--data", help=f"{DATA} If not given, what a network of the zoo was made for, else digits."),
]
DataDir = Annotated[Path | None, typer.Option(help="Folder with mnist/, cifar10/ and so on; else CAPSCORE_DATA.")]
Backend = Annotated[
    str | None,
    typer.Option("--backend", help="numpy, torch or cupy; else CAPSCORE_BACKEND, else torch if installed, else numpy."),
]
Provider = Annotated[
    str | None,
    typer.Option(
        help=".onnx: auto (CUDA if it is there, else the CPU), cpu, cuda, tensorrt, tensorrt-rtx, openvino, webgpu, or "
        "ONNX Runtime's name."
    ),
]
Threads = Annotated[int | None, typer.Option(help=".onnx on the CPU: how many; all cores if not given.")]


def _imported(paths: list[Path] | None) -> list[Path] | None:
    """Run Python files, so that the layers, routings, losses and optimisers in them are known by their names."""
    for path in paths or ():
        if not path.is_file():
            raise CapscoreError(f"there is no {path} to import: name a Python file")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise CapscoreError(f"{path} cannot be imported: name a Python file, which ends in .py")
        sys.modules[path.stem] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return paths


Import = Annotated[
    list[Path] | None,
    typer.Option("--import", help="A Python file with layers, routings, losses of your own; more than once.",
                 callback=_imported, is_eager=True),
]  # fmt: skip

NETWORK = "network"  # what config.json calls the network among the settings


def default_backend() -> str:
    """Return the name of the backend that is used where none is named."""
    chosen = os.environ.get("CAPSCORE_BACKEND")
    return chosen or ("torch" if importlib.util.find_spec("torch") else "numpy")


def open_model(path: Path, name: str | None = None, provider: str | None = None, threads: int | None = None) -> Any:
    """Return a network, or for an .onnx file a session."""
    if path.suffix.lower() == ".onnx":
        from capscore.export.runtime import Session

        if name is not None:
            raise CapscoreError(f"--backend is for .safetensors models; {path} runs in ONNX Runtime, on a --provider")
        return Session(path, provider or "auto", threads or 0)
    if provider is not None or threads is not None:
        raise CapscoreError(f"--provider and --threads are for .onnx models; {path} runs on a --backend")
    return backend(name or default_backend()).load(path)


def takes_bytes(net: Any) -> bool:
    """Whether this is a session that takes uint8 images."""
    return getattr(net, "dtype", "") == "uint8"  # only a session has one


@dataclass(frozen=True)
class TakesFloats:
    """A session that takes bytes, for a dataset that gives floats in [0, 1]."""

    session: Any
    classes: tuple[str, ...]

    def predict(self, images: Any) -> Any:
        """Return the scores [N, J]."""
        return self.session.predict(np.rint(images * 255).astype(np.uint8))


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file."""
    try:
        told = json.loads(path.read_bytes())
    except OSError as error:
        raise SpecError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{path} is not JSON: {error}") from None
    if not isinstance(told, dict):
        raise SpecError(f"{path} holds {short(told)}: a JSON object is needed")
    return told


def read_spec(path: Path) -> CapsNetSpec:
    """Read a network's JSON from a file: its own, or the config.json of a training."""
    told = read_object(path)
    try:
        return CapsNetSpec.from_json(json.dumps(told.get(NETWORK, told)))
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from None


def preset(name: str) -> CapsNetSpec:
    """Return a preset, or say which there are."""
    if name not in PRESETS:
        raise SpecError(f"there is no preset {name!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


def show_agreement(model: modelfile.Model, images: Any, providers: Sequence[str] = ("cpu",)) -> bool:
    """Print the table of differences; return whether all are within the tolerances."""
    rows = verify(model, images, providers=providers)
    outputs = [difference.output for difference in rows[0].differences]
    table = Table("engine", "dtype", *outputs, "", box=None)
    for row in rows:
        sizes = [f"{difference.size:.1e}" for difference in row.differences]
        table.add_row(row.engine, row.dtype, *sizes, "agrees" if row.agrees else f"differs (> {row.allowed:.1g})")
    console.print(table)
    for row in rows:
        if not row.agrees:
            say(f"{row.engine} in {row.dtype}: the first that differs is {row.first}")
    return all(row.agrees for row in rows)


def quoted(text: str) -> str:
    """Return an argument as this system's shell takes it."""
    return subprocess.list2cmdline([text]) if sys.platform == "win32" else shlex.quote(text)


def size_text(shape: tuple[int, ...]) -> str:
    """Return a shape as text: 1×28×28."""
    return "×".join(map(str, shape))
