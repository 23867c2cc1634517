"""Running an exported model with ONNX Runtime, with the call signature of a model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capscore.errors import BackendError, ModelFileError, short
from capscore.model import Output, check_images, predict
from capscore.modelfile import understand
from capscore.ops import to_host

try:
    import onnxruntime
except ModuleNotFoundError as error:
    raise BackendError("running ONNX needs ONNX Runtime: pip install 'capscore[onnx]' or 'capscore[gpu]'") from error


class Session:
    """An exported model in ONNX Runtime: called on images, it returns the same `Output` as the network.

    `spec`, `classes` and `provenance` are those of the network. `providers` names ONNX Runtime's execution
    providers in order of preference, the CPU by default; `threads` is how many the CPU provider may use.
    """

    def __init__(
        self, path: str | os.PathLike[str], providers: tuple[str, ...] = ("CPUExecutionProvider",), threads: int = 0
    ) -> None:
        if absent := [name for name in providers if name not in onnxruntime.get_available_providers()]:
            there = ", ".join(onnxruntime.get_available_providers())
            raise BackendError(f"this ONNX Runtime has no {absent[0]}, only {there}; GPU: pip install 'capscore[gpu]'")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.path = Path(path)
        try:
            if not self.path.is_file():
                raise ModelFileError("there is no such file")
            self._session = onnxruntime.InferenceSession(
                os.fspath(path), options, providers=list(providers), enable_fallback=0
            )
            about = self._session.get_modelmeta().custom_metadata_map.get("capscore")
            if about is None:
                raise ModelFileError("it has no capscore metadata; `capscore export` writes files that do")
            self.spec, self.classes, self.provenance = understand(about)
            takes = [value.name for value in self._session.get_inputs()]
            self._outputs = [value.name for value in self._session.get_outputs()]
            if takes != ["images"] or not {"lengths", "capsules"} <= set(self._outputs):
                raise ModelFileError(f"it turns {short(takes)} into {short(self._outputs)}, not images into lengths")
        except Exception as error:  # ONNX Runtime's errors share no base class
            raise ModelFileError(f"cannot load the ONNX model {path}: {error}") from None

    def __call__(self, images: Any) -> Output[NDArray[Any]]:
        """Run the model on images [B, C, H, W] in [0, 1], floats of any backend."""
        x = to_host(images)
        check_images(self.spec, x)
        try:
            found = self._session.run(self._outputs, {"images": np.ascontiguousarray(x, dtype=np.float32)})
        except Exception as error:  # a graph that does not fit its own spec shows when it runs
            raise ModelFileError(f"cannot run the ONNX model {self.path}: {error}") from None
        by_name = dict(zip(self._outputs, found, strict=True))
        return Output(by_name["lengths"], by_name["capsules"], by_name.get("reconstruction"))

    def predict(self, images: Any, batch: int = 128) -> NDArray[Any]:
        """Return the lengths [N, J] for images [N, C, H, W], `batch` images at a time."""
        return predict(self, images, batch)
