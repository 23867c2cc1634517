"""An exported model as a model repository of Triton Inference Server."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any

from capscore.disk import write_atomically
from capscore.errors import CapscoreError, ModelFileError
from capscore.export import onnxfile

TYPES = {"float32": "TYPE_FP32", "uint8": "TYPE_UINT8"}
NAME = "capsnet"  # of a model that nobody named
NAMES = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")  # of models in a repository
CONFIG, LABELS = "config.pbtxt", "labels.txt"
USUAL: dict[str, Any] = {"max_batch": 128, "instances": 1, "device": "gpu"}
DELAY = 500  # microseconds that a request may wait for others to share its batch


def write(
    model: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    name: str = NAME,
    max_batch: int | None = None,
    instances: int | None = None,
    device: str | None = None,
) -> Path:
    """Write `folder`/`name` with the model, its configuration and its class names; return that path.

    If the repository has a model of this name already, this one becomes its next version, 2, 3, …: Triton serves the
    highest. The configuration stays as it is there, also where somebody edited it.

    `tritonserver --model-repository folder` serves it, gathering requests into batches. A model of a fixed batch is
    served as it is: every request brings a whole batch.

    Parameters
    ----------
    model : a file that `capscore export` wrote
    folder : the repository, made if it is missing; may hold other models
    name : of the model in URLs, letters, digits, ``_``, ``-`` and ``.``
    max_batch : the most images that Triton puts into one batch, 128 unless given
    instances : how many copies run side by side on each device, 1 unless given
    device : "gpu" or "cpu", "gpu" unless given

    Raises
    ------
    CapscoreError : a parameter is wrong, or the repository has another kind of model under this name
    ModelFileError : the model is none, or the folder cannot be written
    """
    file, target = onnxfile.read(model), Path(folder) / name
    text = check(file, folder, name, max_batch, instances, device)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}.") as beside:
            made = Path(beside) / name
            version = made / str(_highest_version(target) + 1)
            version.mkdir(parents=True)
            write_atomically(version / "model.onnx", file.path.read_bytes())
            if target.exists():
                version.rename(target / version.name)
                return target
            write_atomically(made / CONFIG, text.encode())
            write_atomically(made / LABELS, _labels(file).encode())
            made.rename(target)
    except OSError as error:
        raise ModelFileError(f"cannot write {target}: {error.strerror}") from None
    return target


def check(
    file: onnxfile.OnnxFile,
    folder: str | os.PathLike[str],
    name: str = NAME,
    max_batch: int | None = None,
    instances: int | None = None,
    device: str | None = None,
) -> str:
    """Return the configuration of the model where it is the first of its name; CapscoreError if `write` would raise it.

    All versions of a model share inputs, outputs and class names, and what is given of the settings.
    """
    if not NAMES.fullmatch(name):
        raise CapscoreError(f"a Triton model's name is letters, digits, _, - and ., not {name!r:.60}")
    settings = {"max_batch": max_batch, "instances": instances, "device": device}
    given = {key: value for key, value in settings.items() if value is not None}
    text = config(file, name, **(USUAL | given))
    target = Path(folder) / name
    if target.exists():
        known = [path.read_text() if path.is_file() else "" for path in (target / CONFIG, target / LABELS)]
        shared = (text,) if given else (_tensors("input", (file.input,), file), _tensors("output", file.outputs, file))
        if known[1] != _labels(file) or not all(_dense(part) in _dense(known[0]) for part in shared):
            raise CapscoreError(
                f"{target} is there already, with other inputs, outputs, classes or settings: remove it, or give this "
                "model another name (on the command line, --triton-name)"
            )
    return text


def config(file: onnxfile.OnnxFile, name: str, max_batch: int, instances: int, device: str) -> str:
    """Return config.pbtxt for a model."""
    if max_batch < 1 or instances < 1:
        raise CapscoreError(f"max_batch and instances must be at least 1, not {max_batch} and {instances}")
    if device not in ("gpu", "cpu"):
        raise CapscoreError(f'device must be "gpu" or "cpu", not {device!r:.60}')
    batching = ""
    if file.batch is None:
        preferred = ", ".join(str(n) for n in sorted({max(1, max_batch // 4), max_batch}))
        batching = (
            f"dynamic_batching {{\n  preferred_batch_size: [ {preferred} ]\n"
            f"  max_queue_delay_microseconds: {DELAY}\n}}\n"
        )
    return (
        f'name: "{name}"\nplatform: "onnxruntime_onnx"\nmax_batch_size: {max_batch if file.batch is None else 0}\n'
        f"{_tensors('input', (file.input,), file)}{_tensors('output', file.outputs, file)}"
        f"instance_group [\n  {{\n    count: {instances}\n    kind: KIND_{device.upper()}\n  }}\n]\n{batching}"
    )


def _tensors(field: str, tensors: tuple[onnxfile.Tensor, ...], file: onnxfile.OnnxFile) -> str:
    """Return what the configuration says of inputs or outputs."""
    # Triton counts batches only where their size is free; a fixed one is a dimension like any other.
    first = () if file.batch is None else (file.batch,)

    def told(part: onnxfile.Tensor) -> str:
        dims = ", ".join(map(str, first + part.shape))
        label = f'\n    label_filename: "{LABELS}"' if part.name in ("lengths", "scores") else ""
        return f'  {{\n    name: "{part.name}"\n    data_type: {TYPES[part.dtype]}\n    dims: [ {dims} ]{label}\n  }}'

    return f"{field} [\n" + ",\n".join(map(told, tensors)) + "\n]\n"


def _highest_version(target: Path) -> int:
    versions = target.iterdir() if target.is_dir() else ()
    return max((int(path.name) for path in versions if path.name.isdecimal()), default=0)


def _labels(file: onnxfile.OnnxFile) -> str:
    return "".join(f"{_one_line(label)}\n" for label in file.classes)


def _one_line(label: str) -> str:
    return " ".join(label.split())


def _dense(text: str) -> str:
    return "".join(text.split())
