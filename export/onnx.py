"""Export to ONNX: a backend whose arrays are the values of a graph, so that exporting a model is running it.

`Recorder` supplies the ops of `capscore.ops`; each appends nodes. The routing loop unrolls because a Python
loop ran. What is computed from parameters alone is computed now, by NumPy, and stored as an initialiser. Values
are named by the path of the layer that made them (`capsules.0/route/2/softmax`).
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from json import dumps, loads
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from capscore.backends import numpy as reference
from capscore.disk import write_atomically
from capscore.errors import BackendError, CapscoreError, ModelFileError, ShapeError, short
from capscore.export import LARGEST
from capscore.export.fold import fold
from capscore.export.places import places
from capscore.export.transforms import record as record_transforms
from capscore.fast.conv import check_tiles, with_tiles
from capscore.fast.cook_toom import FEWEST, Tiling
from capscore.fast.streaming import VOTES_BYTES
from capscore.layer import Capsules, Grid
from capscore.modelfile import describe
from capscore.net import CapsNetSpec, followed, forward, reconstruct, scores
from capscore.ops import Axes, Index, to_host
from capscore.routing import ArrayVotes, DynamicRouting, LinearVotes, dynamic_routing
from capscore.routing.votes import votes_in_memory
from capscore.squash import lengths

try:
    import onnx
    from onnx import TensorProto, helper, numpy_helper
except ModuleNotFoundError as error:
    raise BackendError("ONNX export needs the onnx package: pip install 'capscore[onnx]'") from error

if TYPE_CHECKING:
    from capscore.export.onnxfile import OnnxFile

OPSETS = range(13, onnx.defs.onnx_opset_version() + 1)  # from 13 on, ReduceSum takes its axes as an input
ROUTED = {"couplings": ("couplings",), "steps": ("inputs", "lengths")}  # what is asked for; how its outputs begin
NONE = {  # why there may be none
    "couplings": "nothing is routed in more than one iteration, and those of the first are uniform",
    "steps": "no layer of the network itself routes all of its capsules at once",
}
PRECISIONS = ("fp32", "fp16", "int8", "int8-weights")
LEAST, MOST = 2.0**-14, 65504.0  # the range of numbers that float16 tells apart

# Of constants, done now.
ARITHMETIC = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}
REDUCTIONS: dict[str, Any] = {"ReduceSum": np.sum, "ReduceMax": np.max}


class Value:
    """A value of the graph: computed by a node, or a `constant` array with the name of its origin.

    `shape` is that of one image's: the batch counts as 1. `half` values are float16. `place` is where a constant was
    brought into its layout, None for one as it came.
    """

    def __init__(
        self,
        recorder: Recorder,
        name: str,
        constant: NDArray[Any] | None = None,
        half: bool = False,
        place: str | None = None,
        shape: Sequence[int] = (),
    ) -> None:
        self.recorder, self.name, self.constant, self.half, self.place = recorder, name, constant, half, place
        self.shape = tuple(shape) if constant is None else constant.shape

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
    """The ops as a graph under construction.

    A `batch` is the number of images if that is fixed. With `half`, convolutions and matrix products are in float16;
    norms, softmax and sums stay in float32, and so does what is computed from them.
    """

    def __init__(self, opset: int = 17, half: bool = False, batch: int | None = None) -> None:
        self.opset, self.half, self.batch = opset, half, batch
        self.FUSED: Mapping[type, Any] = {DynamicRouting: self.routing}
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self._stored: dict[bytes, str] = {}  # digest of an initialiser → its name: equal ones are stored once
        self._transposed: dict[str, tuple[Value, tuple[int, ...]]] = {}  # result → what it was made of, and how
        self._casts: dict[tuple[str, bool], Value] = {}
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

    def input(self, name: str, shape: Sequence[int]) -> Value:
        """Return an input [batch, *shape] of the graph."""
        return Value(self, self._unique(name), shape=(1, *shape))

    def node(
        self,
        kind: str,
        *inputs: Value,
        name: str | None = None,
        half: bool = False,
        shape: Sequence[int] | None = None,
        **attributes: Any,
    ) -> Value:
        """Append a node of one output, named by the path and `name` or its kind, of `shape` or its first input's."""
        path = self._unique("/".join([*self._path, name or kind.lower()]))
        self.nodes.append(helper.make_node(kind, [self._input(x) for x in inputs], [path], path, **attributes))
        return Value(self, path, half=half, shape=inputs[0].shape if shape is None else shape)

    def constant(self, array: Any, name: str = "constant") -> Value:
        """Return an array that is stored in the file if a node needs it."""
        array = np.asarray(array)
        return Value(self, name, array, half=array.dtype == np.float16)

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

    def _foldable(self, x: Value) -> bool:
        """Whether a change of layout is made now rather than by a node.

        A parameter is brought into the layout that its layer wants, once, while the graph is written. Further
        layouts of the same numbers are nodes on that initialiser: the file holds them once, and every runtime
        computes what hangs on constants alone when it loads.
        """
        return x.constant is not None and x.place in (None, "/".join(self._path))

    def _folded(self, x: Value, array: NDArray[Any]) -> Value:
        name = x.name if x.name.endswith(".folded") else f"{x.name}.folded"
        return Value(self, name, array, x.half, "/".join(self._path))

    def cast(self, x: Value, half: bool) -> Value:
        """Return `x` in float16 if `half`, else in float32."""
        if x.half == half:
            return x
        if x.constant is not None:
            with np.errstate(over="ignore"):
                array = x.constant.astype(np.float16 if half else np.float32)
            if not np.all(np.isfinite(array) == np.isfinite(x.constant)):
                raise CapscoreError(f"{x.name} has values beyond 65504, float16's largest; export it as fp32")
            return Value(self, x.name, array, half, x.place)
        if (x.name, half) not in self._casts:
            kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
            self._casts[x.name, half] = self.node("Cast", x, to=kind, half=half)
        return self._casts[x.name, half]

    def arithmetic(self, kind: str, a: Value, b: Value | float) -> Value:
        """Append an entry-by-entry operation of a value with a value or a Python scalar, in the wider dtype.

        A scalar that float16 cannot tell from another, as it is too large or too small, is one of float32.
        """
        if not isinstance(b, Value):
            narrow = a.half and (b == 0 or LEAST <= abs(b) <= MOST)
            b = self.constant(np.float16(b) if narrow else np.float32(b))
        half = a.half and b.half
        a, b = self.cast(a, half), self.cast(b, half)
        if a.constant is not None and b.constant is not None:
            return self.constant(ARITHMETIC[kind](a.constant, b.constant), f"{a.name}.{kind.lower()}")
        return self.node(kind, a, b, half=half, shape=np.broadcast_shapes(a.shape, b.shape))

    def asarray(self, x: Any, like: Value | None = None) -> Value:
        """Return an array as a constant of the graph."""
        return x if isinstance(x, Value) else self.constant(to_host(x).astype(np.float32))

    def to_numpy(self, x: Value) -> NDArray[Any]:
        """Return the array of a constant; nothing else has one before the graph runs."""
        if x.constant is None:
            raise CapscoreError(f"{x.name} has no value while a graph is recorded; compute it with the ops")
        return x.constant

    def reshape(self, x: Value, shape: tuple[int, ...]) -> Value:
        """Reshape."""
        if x.constant is not None and self._foldable(x):
            return self._folded(x, reference.reshape(x.constant, shape))
        wanted = self.constant(np.array(shape, np.int64), "shape")
        known = math.prod(n for n in shape if n != -1)
        rest = math.prod(x.shape) // known
        return self.node("Reshape", x, wanted, half=x.half, shape=[rest if n == -1 else n for n in shape])

    def transpose(self, x: Value, axes: tuple[int, ...]) -> Value:
        """Transpose; one that takes back another leaves neither."""
        if x.constant is not None and self._foldable(x):
            return self._folded(x, reference.transpose(x.constant, axes))
        source, before = self._transposed.get(x.name, (x, tuple(range(len(axes)))))
        perm = tuple(before[axis] for axis in axes)
        if perm == tuple(range(len(perm))):
            return source
        y = self.node("Transpose", source, perm=perm, half=x.half, shape=[source.shape[axis] for axis in perm])
        self._transposed[y.name] = source, perm
        return y

    def take(self, x: Value, index: Index, axis: int) -> Value:
        """Gather, and zeros where an index is -1."""
        if x.constant is not None and self._foldable(x):
            return self._folded(x, reference.take(x.constant, index, axis))
        shape = *x.shape[:axis], len(index.positions), *x.shape[axis + 1 :]
        positions = self.constant(np.maximum(index.positions, 0), "positions")
        y = self.node("Gather", x, positions, axis=axis, half=x.half, shape=shape)
        if index.there is None:
            return y
        there = index.there.reshape(-1, *(1 for _ in x.shape[axis + 1 :]))
        return y * self.constant(there.astype(np.float16 if x.half else np.float32), "there")

    def concat(self, xs: Sequence[Value], axis: int) -> Value:
        """Concat."""
        half = all(x.half for x in xs)
        shape = list(xs[0].shape)
        shape[axis] = sum(x.shape[axis] for x in xs)
        return self.node("Concat", *(self.cast(x, half) for x in xs), axis=axis, half=half, shape=shape)

    def matmul(self, a: Value, b: Value) -> Value:
        """MatMul."""
        lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        shape = (*lead, a.shape[-2], b.shape[-1])
        return self.node("MatMul", self.cast(a, self.half), self.cast(b, self.half), half=self.half, shape=shape)

    def conv2d(
        self,
        x: Value,
        weight: Value,
        bias: Value | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
        groups: int = 1,
    ) -> Value:
        """Conv."""
        inputs = [self.cast(value, self.half) for value in (x, weight, bias) if value is not None]
        kernel = weight.shape[2:]
        # What a runtime could read off the weight, or take as the default, is written out: not all of them do.
        written: dict[str, Any] = {"kernel_shape": kernel, "dilations": [1, 1], "group": groups}
        shape = 1, weight.shape[0], *_slide(x.shape[2:], kernel, stride, padding)
        return self.node("Conv", *inputs, strides=stride, pads=padding * 2, half=self.half, shape=shape, **written)

    def fast_conv2d(self, x: Value, weight: Value, bias: Value | None, tiling: Tiling) -> Value:
        """The matrix products of the transforms, or a Conv if the batch is fixed to too few images for them."""
        if tiling.pays(FEWEST if self.batch is None else self.batch):
            return record_transforms(self, x, weight, bias, tiling)  # type: ignore[no-any-return]
        return self.conv2d(x, weight, bias, (tiling.stride,) * 2, (tiling.padding,) * 2)

    def max_pool(self, x: Value, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]) -> Value:
        """MaxPool."""
        shape = *x.shape[:2], *_slide(x.shape[2:], kernel, stride, padding)
        settings: dict[str, Any] = {"kernel_shape": kernel, "strides": stride, "pads": padding * 2}
        return self.node("MaxPool", x, half=x.half, shape=shape, **settings)

    def sum(self, x: Value, axis: Axes, keepdims: bool = False) -> Value:
        """ReduceSum."""
        return self._reduce("ReduceSum", x, (axis,) if isinstance(axis, int) else axis, keepdims, "sum")

    def norm(self, x: Value, axis: int, keepdims: bool = False) -> Value:
        """ReduceL2 of the vectors divided by their largest entry, without which a plain one overflows."""
        with self.scope("norm"):
            x = self.cast(x, half=False)
            scale = self._reduce("ReduceMax", self.node("Abs", x), (axis,), True, "max")
            scale = self.node("Max", scale, self.constant(np.finfo(np.float32).tiny))
            n = self._reduce("ReduceL2", x / scale, (axis,), True, "length") * scale
            if keepdims:
                return n
            shape = np.zeros(n.shape).squeeze(axis).shape
            return self.node("Squeeze", n, self.constant(np.array([axis])), shape=shape)

    def max(self, x: Value, axis: int, keepdims: bool = False) -> Value:
        """ReduceMax."""
        return self._reduce("ReduceMax", x, (axis,), keepdims, "max")

    def sqrt(self, x: Value) -> Value:
        """Sqrt."""
        x = self.cast(x, half=False)
        if x.constant is not None:
            return self.constant(np.sqrt(x.constant), f"{x.name}.sqrt")
        return self.node("Sqrt", x)

    def exp(self, x: Value) -> Value:
        """Exp."""
        return self.node("Exp", self.cast(x, half=False))

    def log(self, x: Value) -> Value:
        """Log."""
        return self.node("Log", self.cast(x, half=False))

    def relu(self, x: Value) -> Value:
        """Relu."""
        return self.node("Relu", x, half=x.half)

    def sigmoid(self, x: Value, small: bool = False) -> Value:
        """Sigmoid; for `small` ones spelled out: ONNX Runtime's own is 0 below -18."""
        x = self.cast(x, half=False)
        if not small:
            return self.node("Sigmoid", x)
        with self.scope("sigmoid"):
            one = self.constant(np.float32(1))
            grown = self.node("Exp", self.node("Neg", x)) + one
        return self.node("Div", one, grown, name="sigmoid", shape=grown.shape)

    def softmax(self, x: Value, axis: int, leaky: bool = False) -> Value:
        """Softmax, spelled out: ONNX Runtime's own transposes twice where `axis` is not the last."""
        with self.scope("softmax"):
            x = self.cast(x, half=False)
            largest = self._reduce("ReduceMax", x, (axis,), True, "max")
            if leaky:
                largest = self.node("Max", largest, self.constant(np.float32(0)))
            e = self.node("Exp", x - largest)
            total = self._reduce("ReduceSum", e, (axis,), True, "sum")
            if leaky:
                total = total + self.node("Exp", self.node("Neg", largest), name="leak")
        return self.node("Div", e, total, name="softmax")

    def argmax_one_hot(self, x: Value) -> Value:
        """The entries that equal the largest, the first of them alone: ONNX's Hardmax has no CUDA kernel."""
        with self.scope("longest"):
            x = self.cast(x, half=False)
            one, last = self.constant(np.float32(1)), self.constant(np.int64(-1), "axis")
            largest = self._reduce("ReduceMax", x, (-1,), True, "max")
            equal = self.node("Cast", self.node("Equal", x, largest), to=TensorProto.FLOAT)
            first = self.node("Equal", self.node("CumSum", equal, last), one, name="first")
            return equal * self.node("Cast", first, to=TensorProto.FLOAT)

    def routing(self, routing: DynamicRouting, u: Value, weight: Value, bias: Value | None) -> Value:
        """Dynamic routing, with votes in memory if images are so few that a runtime is faster with them."""
        n, j, d, k = shape = self.to_numpy(weight).shape
        if self.batch is None or self.batch * u.shape[0] * n * j * d * 4 > VOTES_BYTES:
            return dynamic_routing(self, LinearVotes(self, u, weight, bias, shape), routing.iterations, routing.leaky)
        with self.scope("votes"):
            votes = votes_in_memory(self, self.transpose(u, (1, 0, 2)), weight, (n, j, d, k))
        return dynamic_routing(self, ArrayVotes(self, votes, bias, (n, j, d)), routing.iterations, routing.leaky)

    def _reduce(self, kind: str, x: Value, axes: Sequence[int], keepdims: bool, name: str) -> Value:
        x = self.cast(x, half=False)
        if x.constant is not None and kind in REDUCTIONS:
            array = REDUCTIONS[kind](x.constant, axis=tuple(axes), keepdims=keepdims)
            return self.constant(array, f"{x.name}.{name}")
        settings: dict[str, Any] = {
            "keepdims": int(keepdims),
            "name": name,
            "shape": np.sum(np.empty(x.shape, bool), axis=tuple(axes), keepdims=keepdims).shape,
        }
        # Until opset 18, only ReduceSum takes its axes as an input.
        if self.opset < 18 and kind != "ReduceSum":
            return self.node(kind, x, axes=axes, **settings)
        return self.node(kind, x, self.constant(np.array(axes, np.int64), "axes"), **settings)

    def model(
        self,
        inputs: dict[str, tuple[int, ...]],
        outputs: dict[str, tuple[Value, tuple[int, ...]]],
        byte: bool = False,
    ) -> onnx.ModelProto:
        """Return the graph as a checked model that computes `outputs` and nothing else.

        Inputs and outputs are named tensors [batch, *shape]: float32, the inputs uint8 if `byte`.
        """
        values = {name: self.cast(value, half=False) for name, (value, _) in outputs.items()}
        rename = {value.name: name for name, value in values.items()}
        for node in self.nodes:
            for names in (node.input, node.output):
                names[:] = [rename.get(name, name) for name in names]
        needed, nodes = set(outputs), []
        for node in reversed(self.nodes):
            if needed & set(node.output):
                needed |= set(node.input)
                nodes.append(node)
        first = "batch" if self.batch is None else self.batch
        kind = TensorProto.UINT8 if byte else TensorProto.FLOAT
        graph = helper.make_graph(
            nodes[::-1],
            "capsnet",
            [helper.make_tensor_value_info(name, kind, [first, *shape]) for name, shape in inputs.items()],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, [first, *shape])
                for name, (_, shape) in outputs.items()
            ],
            [tensor for name, tensor in self.initializers.items() if name in needed],
        )
        opsets = [helper.make_opsetid("", self.opset)]
        version = helper.find_min_ir_version_for(opsets)
        model = helper.make_model(graph, opset_imports=opsets, ir_version=version, producer_name="capscore")
        if model.ByteSize() > LARGEST:
            raise ModelFileError("the model would exceed the 2 GiB that one ONNX file can hold; export it as fp16")
        onnx.checker.check_model(model, full_check=True)  # with strict shape inference
        return model


@dataclass(frozen=True)
class Report:
    """What was exported: the file, its size, and its largest differences from float64 by output, if verified."""

    path: Path
    bytes: int
    differences: dict[str, float] | None


def export(
    net: Any,
    path: str | os.PathLike[str],
    *,
    precision: str = "fp32",
    batch: int | None = None,
    opset: int = 17,
    outputs: Sequence[str] | None = None,
    byte_images: bool = False,
    calibration: Any = None,
    fast_conv: str | None = None,
    verify: bool = True,
    json: bool = False,
    accept: Callable[[OnnxFile], object] | None = None,
) -> Report:
    """Write a network of any backend as one ONNX file, and prove that it computes the same.

    Input `images` [batch, C, H, W] in [0, 1]. Outputs `lengths` [batch, J], `capsules` [batch, J, D] and, with a
    decoder, `reconstruction` [batch, C, H, W] of the longest capsule. Spec, class names, preprocessing, provenance
    and the largest differences found travel in the metadata.

    Parameters
    ----------
    precision : "fp32"; "fp16", in which norms, squash and softmax stay float32; "int8", static quantisation of the
        convolutions and the decoder, per channel, routing in float; "int8-weights", a quarter of the file with all of
        the arithmetic in float32, on any device and without calibration
    batch : a fixed number of images, which makes a single one faster; any number when None
    outputs : some of lengths, capsules, reconstruction, couplings, steps; all but the last two when None. For these,
        `couplings.{layer}.{iteration}` [batch, N, J], `inputs.{layer}` [batch, N] and `lengths.{layer}.{iteration}`
        [batch, J], see `capscore.net.followed`
    byte_images : take uint8 images 0 to 255, scaled inside the graph
    calibration : images [N, C, H, W] in [0, 1] of the kind that the model will see: they show int8 the range of
        every activation, and the first of them take part in the verification
    fast_conv : "3x3" or "6x6" for convolutions as fewer multiplications, in fp32 alone: for batches of 8 and more;
        a file for a fixed smaller `batch` convolves directly. Their errors are those of `capscore.fast.cook_toom`, and
        the file holds the transformed weights, 2.5 and 4.9 times larger
    verify : run the graph in ONNX Runtime against NumPy in float64; on a mismatch nothing is written
    json : write the metadata, with inputs and outputs, to a .json file of the same name too: browsers read no graph
    accept : is told what the file will say of itself; if it raises, nothing is written

    Raises
    ------
    ModelFileError : the graph differs from the network; the message names the first node, or layer, that does
    """
    _check_precision(precision, calibration is not None, fast_conv)
    _check(opset, batch)
    wanted = _wanted(net.spec, outputs)
    calibration = _calibration(calibration, net.spec.input)
    narrowed = precision == "int8-weights"

    def record(half: bool) -> onnx.ModelProto:
        return _graph(net, Recorder(opset, half, batch), wanted, byte_images, fast_conv, behind=not narrowed)

    plain = record(half=False)
    model = record(half=True) if precision == "fp16" else plain
    if precision.startswith("int8"):
        from capscore.export.precision import narrow, quantize

        model = narrow(plain) if narrowed else quantize(net.spec, plain, calibration, byte_images)
    return _finish(net, model, plain, path, precision, verify, calibration, fast_conv, json, accept)


def _check_precision(precision: str, calibrated: bool, fast_conv: str | None) -> None:
    if precision not in PRECISIONS:
        raise CapscoreError(f"precision must be one of {', '.join(PRECISIONS)}, not {short(precision)}")
    if precision == "int8" and not calibrated:
        raise CapscoreError(
            "int8 needs calibration images, some hundred of the kind that the model will see: calibration=, or --data"
        )
    if fast_conv is not None and precision != "fp32":
        raise CapscoreError(f"fast_conv needs precision fp32: {precision} would round too much between its transforms")
    check_tiles(fast_conv)


def _wanted(spec: CapsNetSpec, outputs: Sequence[str] | str | None) -> tuple[str, ...]:
    """Return the names of the outputs that are asked for: all but those of `ROUTED` for None."""
    offered = _outputs(spec)
    outputs = (outputs,) if isinstance(outputs, str) else outputs
    if unknown := [name for name in outputs or () if name not in offered]:
        raise CapscoreError(f"this network has no output {short(unknown[0])}; it has {', '.join(sorted(offered))}")
    return tuple(outputs) if outputs else tuple(name for name in offered if name not in ROUTED)


def _graph(
    net: Any, recorder: Recorder, wanted: tuple[str, ...], byte_images: bool, fast_conv: str | None, behind: bool
) -> onnx.ModelProto:
    """Run the network on the recorder, and return the graph of the outputs that are wanted."""
    spec, params = recorded(recorder, net, behind)
    images = recorder.input("images", spec.input)
    x = images if not byte_images else recorder.node("Cast", images, to=TensorProto.FLOAT) * (1 / 255)
    ops, told = with_tiles(recorder, fast_conv), dict[str, tuple[Any, tuple[int, ...]]]()
    asked = {start: name for name in ROUTED if name in wanted for start in ROUTED[name]}
    if asked:
        v, told = followed(ops, spec, params, x)
    else:
        v = forward(ops, spec, params, x)
    said = scores(recorder, v)
    found: dict[str, tuple[Any, tuple[int, ...]]] = {"scores": (said, (spec.classes,))}
    if isinstance(v, Capsules):
        found |= {"lengths": (said, (spec.classes,)), "capsules": (v.pose, spec.output.dims)}
        if v.activation is not None:
            found["lengths"] = (lengths(recorder, v.pose), (spec.classes,))
        if spec.decoder is not None:
            drawn = reconstruct(recorder, spec, params, v.pose, recorder.argmax_one_hot(said))
            found["reconstruction"] = (drawn, tuple(spec.image))
    found = {name: value for name, value in found.items() if name in wanted}
    found |= {name: value for name, value in told.items() if name.split(".")[0] in asked}
    for name in asked.values():
        if not any(output.split(".")[0] in ROUTED[name] and "." in output for output in found):
            raise CapscoreError(f"no {name} to export: {NONE[name]}")
    return recorder.model({"images": spec.input}, found, byte_images)


def export_decoder(
    net: Any,
    path: str | os.PathLike[str],
    *,
    precision: str = "fp32",
    batch: int | None = None,
    opset: int = 17,
    verify: bool = True,
) -> Report:
    """Write the decoder as a model of its own, `capsules` [batch, J, D] → `reconstruction` [batch, C, H, W].

    It draws the longest capsule, so that a client can move the numbers of one and see what they mean. `precision` is
    fp32, fp16 or int8-weights; the other parameters are those of `export`.
    """
    if precision not in ("fp32", "fp16", "int8-weights"):
        raise CapscoreError(f"a decoder is exported as fp32, fp16 or int8-weights, not {short(precision)}")
    if net.spec.decoder is None:
        raise CapscoreError("this network has no decoder (decoder=None in its spec)")
    _check(opset, batch)

    def record(half: bool) -> onnx.ModelProto:
        recorder = Recorder(opset, half, batch)
        spec, params = recorded(recorder, net)
        v = recorder.input("capsules", spec.output.dims)
        drawn = reconstruct(recorder, spec, params, v, recorder.argmax_one_hot(lengths(recorder, v)))
        return recorder.model({"capsules": spec.output.dims}, {"reconstruction": (drawn, tuple(spec.image))})

    plain = record(half=False)
    model = record(half=True) if precision == "fp16" else plain
    if precision == "int8-weights":
        from capscore.export.precision import narrow

        model = narrow(plain)
    return _finish(net, model, plain, path, precision, verify)


def _calibration(images: Any, wanted: tuple[int, ...]) -> Any:
    """Return calibration images on the host, of the network's size, if there are any."""
    if images is None:
        return None
    images = to_host(images)
    if images.ndim != 4 or images.shape[1:] != tuple(wanted):
        raise ShapeError(f"calibration images have shape {list(images.shape)}; wanted [N, {str([*wanted])[1:]}")
    return images


def _check(opset: int, batch: int | None) -> None:
    if opset not in OPSETS:
        raise CapscoreError(f"opset must be from {OPSETS[0]} to {OPSETS[-1]}, not {short(opset)}")
    if batch is not None and (type(batch) is not int or batch < 1):
        raise CapscoreError(f"batch must be a whole number of at least 1 or None for any, not {short(batch)}")


def _outputs(spec: CapsNetSpec) -> list[str]:
    """Return the names of all outputs of a network, those of its routings last."""
    drawn = ["reconstruction"] if spec.decoder else []
    own = ["scores"] if spec.own_scores else []
    capsules = ["lengths", "capsules"] if isinstance(spec.output, Grid) else []
    return [*drawn, *own, *capsules, *ROUTED]


def recorded(recorder: Recorder, net: Any, behind: bool = True) -> tuple[CapsNetSpec, dict[str, Value]]:
    """Return the spec and the parameters as they are recorded: normalisation folded into convolutions, see `fold`."""
    arrays = {name: to_host(array).astype(np.float32) for name, array in net.params.items()}
    if broken := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
        raise CapscoreError(f"{broken[0]} holds NaN or infinity: such a network is not exported")
    spec, folded = fold(net.spec, arrays, behind)
    values = {name: recorder.constant(array.astype(np.float32), name) for name, array in folded.items()}
    half = {name for name, param in spec.params.items() if param.learns and recorder.half}
    return spec, {name: recorder.cast(value, name in half) for name, value in values.items()}


def _slide(
    size: tuple[int, ...], kernel: tuple[int, ...], stride: tuple[int, int], padding: tuple[int, int]
) -> tuple[int, int]:
    y, x = ((n + 2 * p - k) // s + 1 for n, k, s, p in zip(size, kernel, stride, padding, strict=True))
    return y, x


def _side(graph: onnx.GraphProto, text: str) -> str:
    """Return the metadata as JSON, with the name, dtype and shape of what goes in and out; null is any batch."""

    def told(values: Sequence[onnx.ValueInfoProto]) -> dict[str, Any]:
        kinds = {value.name: value.type.tensor_type for value in values}
        return {
            name: {
                "dtype": str(helper.tensor_dtype_to_np_dtype(kind.elem_type)),
                "shape": [dim.dim_value or None for dim in kind.shape.dim],
            }
            for name, kind in kinds.items()
        }

    return dumps(loads(text) | {"inputs": told(graph.input), "outputs": told(graph.output)}, indent=1)


def _finish(
    net: Any,
    model: onnx.ModelProto,
    plain: onnx.ModelProto,
    path: Any,
    precision: str,
    verify: bool,
    examples: Any = None,
    fast_conv: str | None = None,
    json: bool = False,
    accept: Callable[[OnnxFile], object] | None = None,
) -> Report:
    """Verify the graph, tell in its metadata what it is, and write it."""
    from capscore import __version__

    differences = None
    if verify:
        from capscore.export.check import check

        differences = check(net, model, plain, precision, examples, fast_conv)
    about: dict[str, Any] = {"capscore": __version__, "precision": precision}
    if net.spec.own_scores:  # for who reads the file without capscore
        about["own_scores"] = True
    if fast_conv is not None:
        about["fast_conv"] = fast_conv
    if differences is not None:  # to one digit, so that the rounding of another machine rarely changes the file
        about["largest_differences"] = {name: float(f"{value:.0e}") for name, value in differences.items()}
    if lie := places(net.spec, [output.name for output in model.graph.output]):
        about["places"] = lie
    text = describe(net.spec, net.classes, {**net.provenance, "export": about})
    helper.set_model_props(model, {"capscore": text})
    content = model.SerializeToString(deterministic=True)
    if json and Path(path).suffix.lower() == ".json":
        raise ModelFileError(f"{path} would be written over by its own .json: name it .onnx")
    if accept:
        from capscore.export import onnxfile

        accept(onnxfile.about(model, Path(path)))
    write_atomically(path, content)
    if json:
        write_atomically(Path(path).with_suffix(".json"), _side(model.graph, text).encode())
    return Report(Path(path), len(content), differences)
