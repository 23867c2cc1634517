"""An exported model as a model repository of Triton Inference Server."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from capscore.disk import write_atomically
from capscore.errors import CapscoreError, ModelFileError
from capscore.export import onnxfile

TYPES = {"float32": "TYPE_FP32", "uint8": "TYPE_UINT8"}
LABELS = "labels.txt"
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")  # of a model in a repository
DELAY = 500  # microseconds that a request may wait for others to share its batch


def write(
    model: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    name: str = "capsnet",
    max_batch: int = 128,
    instances: int = 1,
    device: str = "gpu",
) -> Path:
    """Write `folder`/`name` with the model, its configuration and its class names; return that path.

    If the repository has a model of this name already, this one becomes its next version.

    `tritonserver --model-repository folder` serves it, gathering requests into batches. A model of a fixed batch is
    served as it is: every request brings a whole batch.

    Parameters
    ----------
    model : a file that `capscore export` wrote
    folder : the repository, made if it is missing; may hold other models
    name : of the model in URLs, letters, digits, ``_``, ``-`` and ``.``
    max_batch : the most images that Triton puts into one batch
    instances : how many copies run side by side on each device
    device : "gpu" or "cpu"

    Raises
    ------
    CapscoreError : a parameter is wrong, or the repository has another kind of model under this name
    ModelFileError : the model is none, or the folder cannot be written
    """
    if not NAME.fullmatch(name):
        raise CapscoreError(f"a Triton model's name is letters, digits, _, - and ., not {name!r:.60}")
    if max_batch < 1 or instances < 1:
        raise CapscoreError(f"max_batch and instances must be at least 1, not {max_batch} and {instances}")
    if device not in ("gpu", "cpu"):
        raise CapscoreError(f'device must be "gpu" or "cpu", not {device!r:.60}')
    file, target = onnxfile.read(model), Path(folder) / name
    try:
        if target.exists():
            return _add_version(file, target, config(file, name, max_batch, instances, device))
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}.") as beside:
            made = Path(beside) / name
            (made / "1").mkdir(parents=True)  # version 1
            write_atomically(made / "1" / "model.onnx", file.path.read_bytes())
            write_atomically(made / "config.pbtxt", config(file, name, max_batch, instances, device).encode())
            write_atomically(made / LABELS, _labels(file).encode())
            made.rename(target)
    except OSError as error:
        raise ModelFileError(f"cannot write {target}: {error.strerror}") from None
    return target


def _add_version(file: onnxfile.OnnxFile, target: Path, text: str) -> Path:
    """Put a model beside the versions that a repository has of it; Triton serves the highest one.

    All versions share inputs, outputs and class names: CapscoreError if this one has others.
    """
    settings, labels = target / "config.pbtxt", target / LABELS
    same = settings.is_file() and labels.is_file() and settings.read_text() == text
    if not same or labels.read_text() != _labels(file):
        raise CapscoreError(
            f"{target} is there already, with other inputs, outputs, classes or settings: remove it, or give this "
            "model another name"
        )
    versions = [int(path.name) for path in target.iterdir() if path.name.isdecimal()]
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as beside:
        made = Path(beside) / "version"
        made.mkdir()
        write_atomically(made / "model.onnx", file.path.read_bytes())
        made.rename(target / str(max(versions, default=0) + 1))
    return target


def config(file: onnxfile.OnnxFile, name: str, max_batch: int, instances: int, device: str) -> str:
    """Return config.pbtxt for a model."""
    # Triton counts batches only where their size is free; a fixed one is a dimension like any other.
    first = () if file.batch is None else (file.batch,)

    def tensor(part: onnxfile.Tensor) -> str:
        dims = ", ".join(map(str, first + part.shape))
        label = f'\n    label_filename: "{LABELS}"' if part.name == "lengths" else ""
        return f'  {{\n    name: "{part.name}"\n    data_type: {TYPES[part.dtype]}\n    dims: [ {dims} ]{label}\n  }}'

    batching = ""
    if file.batch is None:
        preferred = ", ".join(str(n) for n in sorted({max(1, max_batch // 4), max_batch}))
        batching = (
            f"dynamic_batching {{\n  preferred_batch_size: [ {preferred} ]\n"
            f"  max_queue_delay_microseconds: {DELAY}\n}}\n"
        )
    outputs = ",\n".join(map(tensor, file.outputs))
    return (
        f'name: "{name}"\nplatform: "onnxruntime_onnx"\nmax_batch_size: {max_batch if file.batch is None else 0}\n'
        f"input [\n{tensor(file.input)}\n]\n"
        f"output [\n{outputs}\n]\n"
        f"instance_group [\n  {{\n    count: {instances}\n    kind: KIND_{device.upper()}\n  }}\n]\n{batching}"
    )


def _labels(file: onnxfile.OnnxFile) -> str:
    return "".join(f"{_one_line(label)}\n" for label in file.classes)


def _one_line(label: str) -> str:
    return " ".join(label.split())
