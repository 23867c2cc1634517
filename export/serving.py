"""The runtime that serves an exported model in MLServer: requests checked, gathered into batches, and answered.

MLServer imports it by the name that `model-settings.json` gives; `capscore.export.mlserver` writes that file.
"""

from __future__ import annotations

import asyncio
import json
import math
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capscore.errors import BackendError, CapscoreError, ShapeError, check_whole, short
from capscore.export.gather import Gather
from capscore.export.mlserver import MODEL
from capscore.export.onnxfile import OnnxFile
from capscore.export.runtime import Session
from capscore.model import check_images
from capscore.modelfile import preprocessing
from capscore.ops import out_of_range

try:
    from mlserver import MLModel
    from mlserver.codecs import NumpyCodec
    from mlserver.errors import InferenceError, MLServerError
    from mlserver.types import (
        InferenceRequest,
        InferenceResponse,
        MetadataModelResponse,
        MetadataTensor,
        Parameters,
        RequestInput,
    )
    from mlserver.utils import get_model_uri
except ModuleNotFoundError as error:
    raise BackendError("serving with MLServer needs it: pip install 'capscore[mlserver]'") from error

DATATYPES = {"float32": "FP32", "uint8": "UINT8"}
EXTRA: dict[str, Any] = {"max_batch_size": 128, "max_batch_time": 0.0, "provider": "auto", "device": 0, "threads": 0}


class Runtime(MLModel):  # type: ignore[misc]  # MLServer has no types where it is not installed
    """An exported model in MLServer, over HTTP and gRPC.

    A request has one input, `images`, of the model's dtype and shape, and answers come by the names of the file's
    outputs; a request may name those that it wants. What is wrong with a request is its client's to know, as status
    400, and never gets into the batch of another.

    In `model-settings.json`, `parameters.uri` is the file or its folder, and `parameters.extra` may have
    `max_batch_size`, the most images of a request and of a batch; `max_batch_time`, seconds that a request may wait
    for others; and `provider`, `device` and `threads` of `Session`. MLServer's own settings of the first two names
    stay out: its batches hold requests that nobody has checked, and end when a model is loaded again.
    """

    async def load(self) -> bool:
        """Open the model and run it once, beside the requests that another version of it is answering."""
        try:
            path = await get_model_uri(self.settings, wellknown_filenames=[MODEL])
            self._session, self._gather = await asyncio.to_thread(self._open, path)
        except CapscoreError as error:
            raise MLServerError(f"cannot load the model {self.name}: {error}", 422) from None
        file = self._session.file
        first = file.batch or -1
        self.inputs, self.outputs = (
            [MetadataTensor(name=x.name, datatype=DATATYPES[x.dtype], shape=[first, *x.shape]) for x in tensors]
            for tensors in ((file.input,), file.outputs)
        )
        return True

    def _open(self, path: str) -> tuple[Session, Gather]:
        given = (self.settings.parameters and self.settings.parameters.extra) or {}
        if unknown := [name for name in given if name not in EXTRA]:
            raise CapscoreError(f"parameters.extra has no {short(unknown[0])}; it may have {', '.join(EXTRA)}")
        if self.settings.max_batch_size > 1:
            raise CapscoreError(
                "max_batch_size is to be in parameters.extra: MLServer's own batches hold requests that nobody has "
                "checked, and end when a model is loaded again"
            )
        extra = EXTRA | given
        session = Session(path, extra["provider"], extra["threads"], device=extra["device"])
        most = extra["max_batch_size"] if session.batch is None else session.batch
        check_whole("max_batch_size", most, 1)
        session.named(np.zeros((session.batch or 1, *session.file.input.shape), session.dtype))
        return session, Gather(session.named, most, float(extra["max_batch_time"]), session.batch)

    async def metadata(self) -> MetadataModelResponse:
        """Return inputs and outputs, and as `parameters` the class names and the preprocessing, each as JSON."""
        found = await super().metadata()
        file = self._session.file
        about = {"classes": file.classes, "preprocessing": preprocessing(file.spec)}
        found.platform = "capscore"
        found.parameters = Parameters(**{name: json.dumps(value) for name, value in about.items()})
        return found

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer a request; InferenceError (400) says what is wrong with it."""
        try:
            images = checked(payload.inputs, self._session.file)
            names = self._wanted(payload)
            found = await self._gather(images)
        except ShapeError as error:
            raise InferenceError(str(error)) from None
        except CapscoreError as error:  # of the machine that the model runs on
            raise MLServerError(str(error), 500) from None
        outputs = [NumpyCodec.encode_output(name, found[name]) for name in names]
        return InferenceResponse(model_name=self.name, model_version=self.version, outputs=outputs)

    def _wanted(self, payload: InferenceRequest) -> list[str]:
        offered = [output.name for output in self._session.file.outputs]
        wanted = list(dict.fromkeys(output.name for output in payload.outputs or ()))
        if unknown := [name for name in wanted if name not in offered]:
            raise ShapeError(f"there is no output {short(unknown[0])}; this model has {', '.join(offered)}")
        return wanted or offered


def checked(inputs: list[RequestInput], file: OnnxFile) -> NDArray[Any]:
    """Return the images [n, C, H, W] of a request, or raise ShapeError: inputs come from anywhere."""
    names = [given.name for given in inputs]
    if names != ["images"]:
        raise ShapeError(f"a request has the one input images, not {short(names)}")
    (given,), dtype = inputs, file.input.dtype
    if given.datatype != DATATYPES[dtype]:
        what = "floats in [0, 1]" if dtype == "float32" else "whole numbers from 0 to 255"
        raise ShapeError(f"images are {short(given.datatype)}; this model takes {DATATYPES[dtype]}, {what}")
    x = _array(getattr(given.data, "root", given.data), dtype)
    if x.dtype.kind not in ("iu" if dtype == "uint8" else "iuf"):
        raise ShapeError(f"the data of images are not {'whole ' if dtype == 'uint8' else ''}numbers")
    if min(given.shape, default=1) < 1 or x.size != math.prod(given.shape):
        raise ShapeError(f"images of shape {short(given.shape)} come with {x.size} numbers")
    if dtype == "uint8" and (x.min() < 0 or x.max() > 255):
        raise ShapeError(f"images go from {x.min()} to {x.max()}; wanted 0 to 255")
    with np.errstate(over="ignore"):
        x = x.reshape(given.shape).astype(dtype, copy=False)
    check_images(file.spec, x, dtype, least=1)
    if not np.isfinite(x).all():
        raise ShapeError("images hold NaN or infinity; wanted floats in [0, 1]")
    if found := out_of_range(x):
        problem, cure = found
        raise ShapeError(f"{problem}; wanted 0 to 1: {cure}")
    return x


def _array(data: Any, dtype: str) -> NDArray[Any]:
    """Return a request's numbers as an array, of `dtype` if they are one list that fits into it.

    MLServer makes a list of objects of all that comes, binary or not. `struct` reads one three times as fast as NumPy,
    which looks for a dtype first.
    """
    try:
        return np.frombuffer(struct.pack(f"{len(data)}{np.dtype(dtype).char}", *data), dtype)
    except (TypeError, struct.error, OverflowError):  # lists in lists, numbers too large, no numbers
        pass
    try:
        return np.asarray(data)
    except ValueError:
        raise ShapeError("the data of images are lists of several lengths; one flat list will do") from None
