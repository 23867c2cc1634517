"""An exported model in a model repository of MLServer, which speaks the Open Inference Protocol (KServe V2)."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from capscore.disk import write_atomically
from capscore.errors import CapscoreError, ModelFileError
from capscore.export import onnxfile
from capscore.export.triton import NAMES

MODEL, SETTINGS, SERVER = "model.onnx", "model-settings.json", "settings.json"
RUNTIME = "capscore.export.serving.Runtime"
IN_ONE_PROCESS = {"parallel_workers": 0, "debug": False}  # a session has threads of its own; debug writes every request


def write(
    model: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    name: str = "capsnet",
    max_batch: int = 128,
    max_wait: float = 0.0005,
    provider: str = "auto",
    threads: int = 0,
) -> Path:
    """Write `folder`/`name` with the model and its settings, `folder`/settings.json if there is none; return the path.

    `mlserver start folder` serves it, with `capscore.export.serving.Runtime`. If the repository has a model of this
    name already, this one takes its place: a server that runs goes over to it when it is told to load the model, by
    `POST /v2/repository/models/{name}/load`, and answers every request meanwhile.

    Parameters
    ----------
    model : a file that `capscore export` wrote
    folder : the repository, made if it is missing; may hold other models
    name : of the model in URLs, letters, digits, ``_``, ``-`` and ``.``
    max_batch : the most images of a request, and of requests that are run together
    max_wait : seconds that a request may wait for others while nothing else is to be done
    provider, threads : where it runs, as of `capscore.export.runtime.Session`

    Raises
    ------
    CapscoreError : a parameter is wrong, or the repository has another kind of model under this name
    ModelFileError : the model is none, or the folder cannot be written
    """
    if not NAMES.fullmatch(name):
        raise CapscoreError(f"a model's name is letters, digits, _, - and ., not {name!r:.60}")
    if max_batch < 1 or not 0 <= max_wait <= 10:
        raise CapscoreError(
            f"max_batch must be at least 1 and max_wait 0 to 10 seconds, not {max_batch} and {max_wait}"
        )
    extra = {"max_batch_size": max_batch, "max_batch_time": max_wait, "provider": provider, "threads": threads}
    about = {"name": name, "implementation": RUNTIME, "parameters": {"uri": f"./{MODEL}", "extra": extra}}
    file, target, text = onnxfile.read(model), Path(folder) / name, _json(about)
    try:
        if target.exists():
            return _replace(file, target, text)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}.") as beside:
            made = Path(beside) / name
            made.mkdir()
            write_atomically(made / MODEL, file.path.read_bytes())
            write_atomically(made / SETTINGS, text.encode())
            made.rename(target)
        if not (server := target.parent / SERVER).exists():
            write_atomically(server, _json(IN_ONE_PROCESS).encode())
    except OSError as error:
        raise ModelFileError(f"cannot write {target}: {error.strerror}") from None
    return target


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=1) + "\n"


def _replace(file: onnxfile.OnnxFile, target: Path, text: str) -> Path:
    """Put a model in the place of one with the same inputs, outputs, class names and settings."""
    settings, model = target / SETTINGS, target / MODEL
    same = settings.is_file() and model.is_file() and settings.read_text("utf-8") == text
    if same:
        before = onnxfile.read(model)
        same = (before.input, before.outputs, before.classes) == (file.input, file.outputs, file.classes)
    if not same:
        raise CapscoreError(
            f"{target} is there already, with other inputs, outputs, classes or settings: remove it, or give this "
            "model another name"
        )
    write_atomically(model, file.path.read_bytes())
    return target
