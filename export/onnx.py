"""Export to ONNX: a backend whose arrays are the values of a graph, so that exporting a model is running it.

`Recorder` supplies the ops of `capscore.ops`; each appends nodes. The routing loop unrolls because a Python
loop ran. What is computed from parameters alone is computed now, by NumPy, and stored as an initialiser. Values
are named by the path of the layer that made them (`capsules.0/route/2/softmax`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capscore import layers
from capscore.backends import numpy as reference
from capscore.errors import BackendError, CapscoreError, ModelFileError
from capscore.modelfile import describe, write_atomically
from capscore.ops import Axes, to_host

try:
    import onnx
    from onnx import TensorProto, helper, numpy_helper
except ModuleNotFoundError as error:
    raise BackendError("ONNX export needs the onnx package: pip install 'capscore[onnx]'") from error

OPSETS = range(17, 24)


class Value:
    """A value of the graph: computed by a node, or a `constant` array with the name of its origin."""

    def __init__(self, recorder: Recorder, name: str, constant: NDArray[Any] | None = None) -> None:
        self.recorder, self.name, self.constant = recorder, name, constant

    def __add__(self, other: Any) -> Value:
        """self + other."""
        return self.recorder.arithmetic("Add", self, other)

    def __sub__(self, other: Any) -> Value:
        """self - other."""
        return self.recorder.arithmetic("Sub", self, other)

    def __mul__(self, other: Any) -> Value:
        """self · other, entry by entry."""
        return self.recorder.arithmetic("Mul", self, other)

    def __truediv__(self, other: Any) -> Value:
        """self / other, entry by entry."""
        return self.recorder.arithmetic("Div", self, other)


class Recorder:
    """The ops as a graph under construction."""

    def __init__(self, opset: int = 18) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self._stored: dict[bytes, str] = {}  # digest of an initialiser → its name: equal ones are stored once
        self._path: list[str] = []
        self._taken: set[str] = set()

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Name what is recorded inside."""
        self._path.append(name)
        try:
            yield
        finally:
            self._path.pop()

    def node(self, kind: str, *inputs: Value, name: str | None = None, **attributes: Any) -> Value:
        """Append a node of one output, named by the path and `name` or its kind."""
        path = self._unique("/".join([*self._path, name or kind.lower()]))
        self.nodes.append(helper.make_node(kind, [self._input(x) for x in inputs], [path], path, **attributes))
        return Value(self, path)

    def constant(self, array: Any, name: str = "constant") -> Value:
        """Return an array that is stored in the file if a node needs it."""
        return Value(self, name, np.asarray(array))

    def _input(self, x: Value) -> str:
        if x.constant is None:
            return x.name
        array = np.ascontiguousarray(x.constant).reshape(x.constant.shape)
        digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode() + array.tobytes()).digest()
        if digest not in self._stored:
            self._stored[digest] = name = self._unique(x.name)
            self.initializers[name] = numpy_helper.from_array(array, name)
        return self._stored[digest]

    def _unique(self, name: str) -> str:
        free, n = name, 1
        while free in self._taken:
            free, n = f"{name}_{n}", n + 1
        self._taken.add(free)
        return free

    def _folded(self, x: Value, array: NDArray[Any]) -> Value:
        return Value(self, x.name if x.name.endswith(".folded") else f"{x.name}.folded", array)

    def arithmetic(self, kind: str, a: Value, b: Value | float) -> Value:
        """Append an entry-by-entry operation of a value with a value or a Python scalar."""
        if not isinstance(b, Value):
            b = self.constant(np.float32(b))
        return self.node(kind, a, b)

    def asarray(self, x: Any, like: Value | None = None) -> Value:
        """Return an array as a constant of the graph."""
        return x if isinstance(x, Value) else self.constant(to_host(x))

    def to_numpy(self, x: Value) -> NDArray[Any]:
        """Return the array of a constant; nothing else has one before the graph runs."""
        if x.constant is None:
            raise CapscoreError(f"{x.name} has no value while a graph is recorded; compute it with the ops")
        return x.constant

    def reshape(self, x: Value, shape: tuple[int, ...]) -> Value:
        """Reshape; a constant is reshaped now."""
        if x.constant is not None:
            return self._folded(x, reference.reshape(x.constant, shape))
        return self.node("Reshape", x, self.constant(np.array(shape, np.int64), "shape"))

    def transpose(self, x: Value, axes: tuple[int, ...]) -> Value:
        """Transpose; a constant is transposed now."""
        if x.constant is not None:
            return self._folded(x, reference.transpose(x.constant, axes))
        return self.node("Transpose", x, perm=axes)

    def matmul(self, a: Value, b: Value) -> Value:
        """MatMul."""
        return self.node("MatMul", a, b)

    def conv2d(self, x: Value, weight: Value, bias: Value, stride: int, padding: int) -> Value:
        """Conv."""
        return self.node("Conv", x, weight, bias, strides=[stride] * 2, pads=[padding] * 4)

    def sum(self, x: Value, axis: Axes, keepdims: bool = False) -> Value:
        """ReduceSum."""
        return self._reduce("ReduceSum", x, (axis,) if isinstance(axis, int) else axis, keepdims, "sum")

    def norm(self, x: Value, axis: int, keepdims: bool = False) -> Value:
        """ReduceL2 of the vectors divided by their largest entry, without which a plain one overflows."""
        with self.scope("norm"):
            scale = self._reduce("ReduceMax", self.node("Abs", x), (axis,), True, "max")
            scale = self.node("Max", scale, self.constant(np.finfo(np.float32).tiny))
            n = self._reduce("ReduceL2", x / scale, (axis,), True, "length") * scale
            return n if keepdims else self.node("Squeeze", n, self.constant(np.array([axis])))

    def sqrt(self, x: Value) -> Value:
        """Sqrt."""
        return self.node("Sqrt", x)

    def exp(self, x: Value) -> Value:
        """Exp."""
        return self.node("Exp", x)

    def relu(self, x: Value) -> Value:
        """Relu."""
        return self.node("Relu", x)

    def sigmoid(self, x: Value) -> Value:
        """Sigmoid."""
        return self.node("Sigmoid", x)

    def softmax(self, x: Value, axis: int, leaky: bool = False) -> Value:
        """Softmax, spelled out: ONNX Runtime's own transposes twice where `axis` is not the last."""
        with self.scope("softmax"):
            largest = self._reduce("ReduceMax", x, (axis,), True, "max")
            if leaky:
                largest = self.node("Max", largest, self.constant(np.float32(0)))
            e = self.node("Exp", x - largest)
            total = self._reduce("ReduceSum", e, (axis,), True, "sum")
            if leaky:
                total = total + self.node("Exp", self.node("Neg", largest), name="leak")
        return self.node("Div", e, total, name="softmax")

    def argmax_one_hot(self, x: Value) -> Value:
        """Hardmax."""
        return self.node("Hardmax", x, axis=-1)

    def _reduce(self, kind: str, x: Value, axes: Sequence[int], keepdims: bool, name: str) -> Value:
        # Until opset 18, only ReduceSum takes its axes as an input.
        if self.opset < 18 and kind != "ReduceSum":
            return self.node(kind, x, axes=axes, keepdims=int(keepdims), name=name)
        return self.node(kind, x, self.constant(np.array(axes, np.int64), "axes"), keepdims=int(keepdims), name=name)

    def model(
        self, inputs: dict[str, tuple[int, ...]], outputs: dict[str, tuple[Value, tuple[int, ...]]], about: str
    ) -> onnx.ModelProto:
        """Return the checked model; inputs and outputs are float32, by name, [batch, *shape]."""
        rename = {value.name: name for name, (value, _) in outputs.items()}
        for node in self.nodes:
            for names in (node.input, node.output):
                names[:] = [rename.get(name, name) for name in names]
        graph = helper.make_graph(
            self.nodes,
            "capsnet",
            [_tensor(name, shape) for name, shape in inputs.items()],
            [_tensor(name, shape) for name, (_, shape) in outputs.items()],
            list(self.initializers.values()),
        )
        opsets = [helper.make_opsetid("", self.opset)]
        version = helper.find_min_ir_version_for(opsets)
        model = helper.make_model(graph, opset_imports=opsets, ir_version=version, producer_name="capscore")
        helper.set_model_props(model, {"capscore": about})
        onnx.checker.check_model(model, full_check=True)
        return model


def _tensor(name: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])


def export(net: Any, path: str | os.PathLike[str], *, opset: int = 18) -> None:
    """Write a network of any backend as one float32 ONNX file.

    Input `images` [batch, C, H, W] in [0, 1]; outputs `lengths` [batch, J], `capsules` [batch, J, D] and, with
    a decoder, `reconstruction` [batch, C, H, W] of the longest capsule. The batch is symbolic. Spec, class names
    and provenance travel in the metadata.
    """
    if opset not in OPSETS:
        raise CapscoreError(f"opset must be from {OPSETS[0]} to {OPSETS[-1]}, not {opset!r}")
    spec, last = net.spec, net.spec.capsules[-1]
    recorder = Recorder(opset)
    arrays = {name: to_host(array).astype(np.float32) for name, array in net.params.items()}
    params = {name: recorder.constant(array, name) for name, array in arrays.items()}
    images = Value(recorder, recorder._unique("images"))
    v = layers.forward(recorder, spec, params, images)
    lengths = layers.lengths(recorder, v)
    outputs = {"lengths": (lengths, (last.count,)), "capsules": (v, (last.count, last.dim))}
    if spec.decoder is not None:
        drawn = layers.reconstruct(recorder, spec, params, v, recorder.argmax_one_hot(lengths))
        outputs["reconstruction"] = (drawn, spec.input)
    model = recorder.model({"images": spec.input}, outputs, describe(spec, net.classes, net.provenance))
    if model.ByteSize() >= 2**31:
        raise ModelFileError(f"{Path(path).name} would exceed the 2 GiB that one ONNX file can hold")
    write_atomically(path, model.SerializeToString(deterministic=True))
