"""Reading an ONNX file that may come from anywhere: what it takes and gives, checked before anything runs it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capscore.errors import BackendError, ModelFileError, short
from capscore.export import LARGEST
from capscore.layer import Grid
from capscore.modelfile import as_path, read_description
from capscore.net import CapsNetSpec

try:
    import onnx
    from google.protobuf.message import DecodeError, Message
    from google.protobuf.unknown_fields import UnknownFieldSet
except ModuleNotFoundError as error:
    raise BackendError("reading ONNX files needs the onnx package: pip install 'capscore[onnx]'") from error

COUPLINGS = re.compile(r"couplings\.([\w.]{1,200})\.(\d{1,3})")  # of a layer that routes, and an iteration
STEPS = re.compile(r"inputs\.(\d{1,3})|lengths\.(\d{1,3})\.\d{1,3}")  # what comes into one; what comes out
KINDS = {  # of messages that make up a capscore model
    "ModelProto", "GraphProto", "NodeProto", "AttributeProto", "TensorProto", "ValueInfoProto", "TypeProto",
    "TypeProto.Tensor", "TensorShapeProto", "TensorShapeProto.Dimension", "OperatorSetIdProto",
    "StringStringEntryProto",
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """An input or output: dtype by NumPy's name, and its shape without the batch."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class OnnxFile:
    """What an exported file says of itself: one input, its outputs, and the network it was made from.

    `batch` is None where any number of images will do. `precision` is what the graph computes in: fp32, fp16 or int8.
    """

    path: Path
    spec: CapsNetSpec
    classes: tuple[str, ...]
    provenance: dict[str, Any]
    batch: int | None
    input: Tensor
    outputs: tuple[Tensor, ...]
    precision: str


def read(path: str | os.PathLike[str]) -> OnnxFile:
    """Read an untrusted ONNX file that `capscore export` is said to have written.

    Raises ModelFileError for a file that is damaged, foreign, too large, not of one piece (external data), not
    flat (subgraphs), or whose graph is not that of its spec.
    """
    path = as_path(path)
    try:
        if not path.is_file():
            raise ModelFileError("there is no such file")
        if (size := path.stat().st_size) > LARGEST:
            raise ModelFileError(f"it has {size:,} bytes; an ONNX file has less than 2 GiB")
        return about(onnx.ModelProto.FromString(path.read_bytes()), path)
    except (ModelFileError, ValueError, OSError, DecodeError, MemoryError) as error:
        raise ModelFileError(f"cannot load the ONNX model {path}: {error}") from None


def about(model: Any, path: Path) -> OnnxFile:
    """Return what a model says of itself that lies, or is to lie, in a file."""
    texts = [entry.value for entry in model.metadata_props if entry.key == "capscore"]
    if not texts:
        raise ModelFileError("it has no capscore metadata; `capscore export` writes files that do")
    spec, classes, provenance = read_description(texts[0])
    _check_one_flat_file(model)
    batches, inputs = _tensors(model.graph.input)
    more, outputs = _tensors(model.graph.output)
    takes, gives = [tensor.name for tensor in inputs], [tensor.name for tensor in outputs]
    network = takes == ["images"] and gives and "images" not in gives
    if not network and (takes, gives) != (["capsules"], ["reconstruction"]):
        raise ModelFileError(f"it turns {short(takes)} into {short(gives)}, not images into lengths")
    if len({*batches, *more}) > 1:
        raise ModelFileError(f"its inputs and outputs have different batches: {short(batches + more)}")
    for tensor in (*inputs, *outputs):
        _check_tensor(spec, tensor)
    return OnnxFile(path, spec, classes, provenance, batches[0], inputs[0], tuple(outputs), _precision(model.graph))


def _check_one_flat_file(model: Any) -> None:
    """Refuse all that is not in a capscore model: another file's data, subgraphs, functions, what is unknown."""
    again = "`capscore export` writes it again"
    if engines := [node.name for node in model.graph.node if node.op_type == "EPContext"]:
        raise ModelFileError(
            f"its node {short(engines[0])} holds code compiled for a device, or the path of some: take the plain file; "
            "Session(..., cache=folder) keeps what is compiled of it"
        )
    for where, message in _messages(model):
        kind = message.DESCRIPTOR.full_name.removeprefix("onnx.")
        if kind not in KINDS or (kind == "GraphProto" and where != ".graph"):
            raise ModelFileError(f"its {where} is a {kind}: a capscore model is one flat graph of nodes; {again}")
        if kind == "TensorProto" and (message.external_data or message.data_location != onnx.TensorProto.DEFAULT):
            raise ModelFileError(
                f"the data of {where} is in another file, which is not followed: a capscore model is one file; {again}"
            )
        if len(UnknownFieldSet(message)):
            raise ModelFileError(f"its {where or 'beginning'} says what this version of onnx does not know; {again}")


def _messages(message: Message, where: str = "") -> Iterator[tuple[str, Any]]:
    """Yield a message and all within it, in whatever fields, each with the way to it. All text must be UTF-8."""
    yield where, message
    for field in message.DESCRIPTOR.fields:
        if field.type not in (field.TYPE_STRING, field.TYPE_MESSAGE):
            continue
        value = getattr(message, field.name)
        single = isinstance(value, str | bytes | Message)
        for inner in [value] if single else value:
            if isinstance(inner, bytes):  # where another reader's rules allow what Python's str cannot hold
                raise ModelFileError(f"its {where}.{field.name} is not UTF-8: {short(inner)}")
            if isinstance(inner, Message) and (not single or message.HasField(field.name)):
                which = "" if single else f" {short(getattr(inner, 'name', ''))}"
                yield from _messages(inner, f"{where}.{field.name}{which}")


def _precision(graph: Any) -> str:
    """Return what a graph computes in, by its own nodes and constants: other tools quantise exports as well."""
    if any("Quantize" in node.op_type for node in graph.node):
        return "int8"
    return "fp16" if any(x.data_type == onnx.TensorProto.FLOAT16 for x in graph.initializer) else "fp32"


def _tensors(values: Sequence[Any]) -> tuple[list[int | None], list[Tensor]]:
    """Return the batches (None for a symbolic one) and the tensors of graph inputs or outputs."""
    batches, tensors = [], []
    for value in values:
        kind = value.type.tensor_type
        dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim]
        shape = tuple(n for n in dims[1:] if n is not None and n > 0)
        if not dims or len(shape) != len(dims) - 1 or (dims[0] is not None and dims[0] < 1):
            raise ModelFileError(f"{short(value.name)} has the shape {short(dims)}, not [batch, sizes above 0]")
        if kind.elem_type not in (onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8):
            raise ModelFileError(f"{short(value.name)} is neither of float32 nor of uint8")
        batches.append(dims[0])
        tensors.append(Tensor(value.name, "uint8" if kind.elem_type == onnx.TensorProto.UINT8 else "float32", shape))
    return batches, tensors


def _check_tensor(spec: CapsNetSpec, tensor: Tensor) -> None:
    known: dict[str, tuple[int, ...]] = {"images": spec.input, "scores": (spec.classes,)}
    if isinstance(spec.output, Grid):
        known |= {"lengths": (spec.classes,), "capsules": spec.output.dims, "reconstruction": tuple(spec.image)}
    if found := COUPLINGS.fullmatch(tensor.name):
        pairs = {name.removeprefix("capsules."): pairs for name, pairs in spec.routed.items()}.get(found[1])
        known |= {} if pairs is None else {tensor.name: pairs}
    if found := STEPS.fullmatch(tensor.name):
        row = next((row for row in spec.rows if row.name == f"capsules.{found[1] or found[2]}"), None)
        if row is not None:
            known[tensor.name] = (row.input if found[1] else row.output).dims[:1]
    if (wanted := known.get(tensor.name)) is None:
        raise ModelFileError(
            f"it has an output {short(tensor.name)}; known are {', '.join(known)}, couplings and steps of routings"
        )
    if tensor.shape != wanted:
        raise ModelFileError(f"its {tensor.name} are {list(tensor.shape)}; its spec says {list(wanted)}")
    if tensor.dtype != "float32" and tensor.name != "images":
        raise ModelFileError(f"its {tensor.name} are {tensor.dtype}, not float32")
