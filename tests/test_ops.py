"""Every op on every backend: its signature, its values against plain NumPy in float64, and its extremes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import oracle
import pytest
from conftest import BACKENDS, DTYPES, FLOAT32, FLOAT64, NUMPY, REAL_CUPY, SEEDS, TOLERANCE, backend, close, given_each
from hypothesis import strategies as st
from numpy.typing import NDArray

import capscore
from capscore import im2col
from capscore.errors import ShapeError
from capscore.grad import Tape
from capscore.ops import Index, Ops, Writable, to_host
from capscore.squash import exponential_squash, lengths, squash

OPS = {name: op for name, op in vars(Ops).items() if not name.startswith("_") and name != "FUSED"}
OF_A_BACKEND = OPS | {name: op for name, op in vars(Writable).items() if not name.startswith("_")}


def parameters(function: Callable[..., Any]) -> list[tuple[str, Any]]:
    """Names and defaults, without self."""
    found = inspect.signature(function).parameters.values()
    return [(p.name, p.default) for p in found if p.name != "self"]


@pytest.mark.parametrize("op", OF_A_BACKEND)
def test_signature_is_that_of_the_protocol(caps: ModuleType, op: str) -> None:
    wanted = OF_A_BACKEND if hasattr(caps, "empty") else OPS
    if op not in wanted:
        assert not hasattr(caps, op)
        return
    assert parameters(getattr(caps, op)) == parameters(wanted[op])
    assert op in getattr(caps, "__all__", [op])


@pytest.mark.parametrize("op", OPS)
def test_signature_of_the_tape_and_the_recorder(onnx_export: ModuleType, op: str) -> None:
    for ops in (Tape, onnx_export.Recorder):
        assert parameters(getattr(ops, op)) == parameters(OPS[op])


def test_the_ops_and_the_classes_of_a_backend_reach_the_package() -> None:
    for name in (*OPS, "CapsNet", "Learner", "load"):
        assert getattr(capscore, name) is getattr(capscore.backend("numpy"), name)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = capscore.nonsense


def softmax(x: NDArray[Any], axis: int, leaky: bool) -> NDArray[Any]:
    return np.exp(x) / (np.exp(x).sum(axis, keepdims=True) + leaky)


def hot(x: NDArray[Any]) -> NDArray[Any]:
    return np.eye(x.shape[-1])[x.argmax(-1)]


A, B = (2, 3, 4), (2, 4, 5)
HOLE = np.array([3, -1, 0, 0, -1])
TAKEN, HOLES = Index([2, 0, 2, 2, 1]), Index(HOLE)
# How each op is called, what it means in plain NumPy, and the shapes of its arrays.
VALUES: dict[str, tuple[Callable[..., Any], Callable[..., Any], list[tuple[int, ...]]]] = {
    "reshape": (lambda o, x: o.reshape(x, (-1, 6)), lambda x: x.reshape(4, 6), [A]),
    "transpose": (lambda o, x: o.transpose(x, (2, 0, 1)), lambda x: np.moveaxis(x, 2, 0), [A]),
    "take": (lambda o, x: o.take(x, TAKEN, 1), lambda x: x[:, TAKEN.positions], [A]),
    "take zeros": (
        lambda o, x: o.take(x, HOLES, 2),
        lambda x: np.pad(x, ((0, 0),) * 2 + ((1, 0),))[..., HOLE + 1],
        [A],
    ),
    "concat": (lambda o, *x: o.concat(x, 1), lambda *x: np.concatenate(x, 1), [(2, 3, 4), (2, 1, 4), (2, 3, 4)]),
    "matmul": (lambda o, a, b: o.matmul(a, b), lambda a, b: np.einsum("ij,jk->ik", a, b), [(3, 4), (4, 5)]),
    "matmul batch": (lambda o, a, b: o.matmul(a, b), lambda a, b: np.einsum("bij,bjk->bik", a, b), [A, B]),
    "matmul left": (lambda o, a, b: o.matmul(a, b), lambda a, b: np.einsum("ij,bjk->bik", a, b), [(3, 4), B]),
    "sum": (lambda o, x: o.sum(x, 1), lambda x: x.sum(1), [A]),
    "sum negative": (lambda o, x: o.sum(x, -1, keepdims=True), lambda x: x.sum(2)[..., None], [A]),
    "sum several": (lambda o, x: o.sum(x, (0, 2), keepdims=True), lambda x: x.sum((0, 2), keepdims=True), [A]),
    "sum all": (lambda o, x: o.sum(x, (0, 1, 2)), lambda x: np.array(x.sum()), [A]),
    "norm": (lambda o, x: o.norm(x, -1), lambda x: np.sqrt((x * x).sum(-1)), [A]),
    "norm kept": (lambda o, x: o.norm(x, 1, keepdims=True), lambda x: np.sqrt((x * x).sum(1))[:, None], [A]),
    "sqrt": (lambda o, x: o.sqrt(x * x), lambda x: abs(x), [A]),
    "max": (lambda o, x: o.max(x, 1), lambda x: np.maximum.reduce(x, 1), [A]),
    "max kept": (lambda o, x: o.max(x, -1, keepdims=True), lambda x: np.sort(x)[..., -1:], [A]),
    "log": (lambda o, x: o.log(x * x + 0.5), lambda x: np.log1p(x * x - 0.5), [A]),
    "exp": (lambda o, x: o.exp(x), lambda x: np.e**x, [A]),
    "relu": (lambda o, x: o.relu(x), lambda x: x * (x > 0), [A]),
    "sigmoid": (lambda o, x: o.sigmoid(x), lambda x: 1 / (1 + np.e**-x), [A]),
    "softmax": (lambda o, x: o.softmax(x, 0), lambda x: softmax(x, 0, False), [A]),
    "softmax last": (lambda o, x: o.softmax(x, -1), lambda x: softmax(x, -1, False), [A]),
    "softmax leaky": (lambda o, x: o.softmax(x, 1, leaky=True), lambda x: softmax(x, 1, True), [A]),
    "argmax_one_hot": (lambda o, x: o.argmax_one_hot(x), hot, [A]),
    "add": (lambda o, a, b: a + b + 1.5, lambda a, b: a + b + 1.5, [A, (3, 1)]),
    "subtract": (lambda o, a, b: a - b - 1.5, lambda a, b: a - b - 1.5, [(3, 1), A]),
    "multiply": (lambda o, a, b: a * b * 1.5, lambda a, b: a * b * 1.5, [A, (4,)]),
    "divide": (lambda o, a, b: a / (b * b + 1.0) / 3, lambda a, b: a / (b * b + 1) / 3, [A, (4,)]),
    "squash": (lambda o, x: squash(o, x), lambda x: np.apply_along_axis(oracle.squash, -1, x), [A]),
    "squash first": (lambda o, x: squash(o, x, 0), lambda x: np.apply_along_axis(oracle.squash, 0, x), [A]),
    "exponential": (
        lambda o, x: exponential_squash(o, x),
        lambda x: np.apply_along_axis(oracle.exponential_squash, -1, x),
        [A],
    ),
    "lengths": (lambda o, x: lengths(o, x), lambda x: np.apply_along_axis(oracle.length, -1, x), [A]),
}


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_values(caps: ModuleType, name: str, dtype: str) -> None:
    call, meaning, shapes = VALUES[name]
    rng = np.random.default_rng(1)
    arrays = [rng.normal(size=shape).astype(dtype) for shape in shapes]
    found = caps.to_numpy(call(caps, *map(caps.asarray, arrays)))
    assert found.dtype == dtype
    close(np.asarray(found), meaning(*[x.astype(np.float64) for x in arrays]), TOLERANCE[dtype])


def run_recorded(onnx_export: ModuleType, call: Callable[..., Any], arrays: list[NDArray[Any]]) -> NDArray[Any]:
    """Record what `call` does to the arrays and have ONNX Runtime do it."""
    import onnxruntime
    from onnx import TensorProto, helper

    recorder = onnx_export.Recorder()
    y = call(recorder, *[onnx_export.Value(recorder, f"x{i}", shape=x.shape) for i, x in enumerate(arrays)])
    inputs = [helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, x.shape) for i, x in enumerate(arrays)]
    output = helper.make_tensor_value_info(y.name, TensorProto.FLOAT, y.shape)
    graph = helper.make_graph(recorder.nodes, "ops", inputs, [output], list(recorder.initializers.values()))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", recorder.opset)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {f"x{i}": x for i, x in enumerate(arrays)})[0]


@pytest.mark.parametrize("name", VALUES)
def test_values_of_a_recorded_graph(onnx_export: ModuleType, runtime: ModuleType, name: str) -> None:
    call, meaning, shapes = VALUES[name]
    rng = np.random.default_rng(1)
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    found = run_recorded(onnx_export, call, arrays)
    close(found, meaning(*[x.astype(np.float64) for x in arrays]), FLOAT32)


@pytest.mark.parametrize("size", [0.0, 1e-37, 1e-20, 1e-10, 1.0, 1e10, 1e20, 1e38])
def test_extremes_of_a_recorded_graph(onnx_export: ModuleType, runtime: ModuleType, size: float) -> None:
    x = (np.array([[0.6, 0.0, -0.8], [1.0, 0.0, 0.0]]) * size).astype(np.float32)
    np.testing.assert_allclose(run_recorded(onnx_export, lengths, [x]), [size, size], rtol=FLOAT32)
    np.testing.assert_allclose(run_recorded(onnx_export, squash, [x]), squash(NUMPY, x), rtol=FLOAT32)
    wide = np.array([[-1e4, 0.0, 1e4], [-1e4, -1e4, -1e4]], np.float32)
    for leaky in (False, True):
        found = run_recorded(onnx_export, lambda ops, logits: ops.softmax(logits, -1, leaky), [wide])  # noqa: B023
        close(found, NUMPY.softmax(wide, -1, leaky), FLOAT32)
    close(run_recorded(onnx_export, lambda ops, a: ops.sigmoid(a), [wide]), NUMPY.sigmoid(wide), FLOAT32)


def test_every_op_is_tested() -> None:
    tested = {name.split()[0] for name in VALUES} | {"asarray", "to_numpy", "conv2d", "max_pool"}
    assert set(OPS) <= tested


@given_each(data=st.data(), seed=SEEDS, dtype=DTYPES)
def test_conv2d(caps: ModuleType, data: st.DataObject, seed: int, dtype: str) -> None:
    b, c, o, k = (data.draw(st.integers(1, n)) for n in (3, 3, 4, 4))
    padding, stride = data.draw(st.integers(0, 3)), data.draw(st.integers(1, 4))
    least = max(1, k - 2 * padding)
    h, w = data.draw(st.integers(least, least + 4)), data.draw(st.integers(least, least + 4))
    rng = np.random.default_rng(seed)
    x, weight, bias = (rng.normal(size=s).astype(dtype) for s in ((b, c, h, w), (o, c, k, k), (o,)))
    wanted = [oracle.conv(*(a.astype(np.float64) for a in (image, weight, bias)), stride, padding) for image in x]
    found = caps.to_numpy(caps.conv2d(*map(caps.asarray, (x, weight, bias)), (stride,) * 2, (padding,) * 2))
    close(found, np.array(wanted), TOLERANCE[dtype] * max(1, np.abs(wanted).max()))


def test_conv2d_of_a_batch_that_is_cut_into_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x, weight, bias = rng.normal(size=(5, 2, 6, 6)), rng.normal(size=(3, 2, 3, 3)), rng.normal(size=3)
    g = rng.normal(size=(5, 3, 6, 6))

    def forward_and_back() -> list[Any]:
        return [
            im2col.convolve(x, weight, bias, (1, 1), (1, 1)),
            im2col.weight_gradient(g, x, weight, (1, 1), (1, 1)),
            im2col.input_gradient(g, x, weight, (1, 1), (1, 1)),
        ]

    whole = forward_and_back()
    monkeypatch.setattr(im2col, "BLOCK_BYTES", 2 * 36 * 18 * 8)  # two images at a time
    for found, wanted in zip(forward_and_back(), whole, strict=True):
        close(found, wanted, FLOAT64)


# ------------------------------------------------------------------------------------------------------- in and out


@pytest.mark.parametrize("source", [*BACKENDS, "list"])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_arrays_of_every_library_come_in(caps: ModuleType, source: str, dtype: str) -> None:
    array = np.arange(6, dtype=dtype).reshape(2, 3)
    x = array.tolist() if source == "list" else backend(source).asarray(array)
    like = caps.asarray(np.zeros(1, dtype))
    found = caps.asarray(x, like)
    assert type(found) is type(like)
    assert found.dtype == like.dtype
    np.testing.assert_array_equal(caps.to_numpy(found), array)
    other = caps.asarray(np.zeros(1, "float32" if dtype == "float64" else "float64"))
    assert caps.asarray(x, other).dtype == other.dtype
    if source != "list":
        assert caps.asarray(x).dtype == like.dtype


def test_views_reversed_and_strided_come_in(caps: ModuleType) -> None:
    array = np.arange(24.0).reshape(4, 6)
    foreign = array.astype(array.dtype.newbyteorder("S"))
    long = array.astype(np.longdouble)
    for view in (array[::-1], array[:, ::2], array.T, np.asfortranarray(array), array[1:1], foreign, long):
        np.testing.assert_array_equal(caps.to_numpy(caps.asarray(view)), view)


@pytest.mark.parametrize(
    "x", [None, "abc", [1, "2"], [{}], [[1.0], [1.0, 2.0]], np.zeros(2, "datetime64[s]"), np.zeros(2, "f4,i4")]
)
def test_what_is_no_array_of_numbers(caps: ModuleType, x: Any) -> None:
    with pytest.raises(ShapeError, match="wanted an array of numbers, not "):
        caps.asarray(x)


def test_to_host_takes_gradients_views_and_scalars_off(torch_caps: ModuleType) -> None:
    import torch

    x = torch.arange(6.0).reshape(2, 3).requires_grad_()
    np.testing.assert_array_equal(to_host(x.T * 1), np.arange(6.0).reshape(2, 3).T)
    np.testing.assert_array_equal(to_host(backend("cupy").asarray(np.ones(2))), np.ones(2))
    assert to_host(3.0).shape == ()
    assert torch_caps.to_numpy(torch.ones(2, dtype=torch.bfloat16)).dtype == np.float32


# --------------------------------------------------------------------------------------------------------- extremes

TINY = {"float64": 1e-307, "float32": 1e-37}
HUGE = {"float64": 1e300, "float32": 1e38}
SIZES = [0.0, 1e-20, 1e-10, 1.0, 1e10, 1e20]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", SIZES)
def test_norm_and_squash_at_every_size(caps: ModuleType, size: float, dtype: str) -> None:
    direction = np.array([[0.6, 0.0, -0.8], [1.0, 0.0, 0.0]])
    x = caps.asarray((direction * size).astype(dtype))
    relative = TOLERANCE[dtype]
    np.testing.assert_allclose(caps.to_numpy(caps.norm(x, -1)), [size, size], rtol=relative)
    np.testing.assert_allclose(caps.to_numpy(lengths(caps, x)), [size, size], rtol=relative)
    v = caps.to_numpy(squash(caps, x))
    short = size**2 / (1 + size**2)
    if short < np.finfo(dtype).tiny:
        assert np.abs(v).max() <= np.finfo(dtype).tiny
    else:
        np.testing.assert_allclose(v, direction * short, rtol=relative)
    assert (caps.to_numpy(lengths(caps, squash(caps, x))) <= 1 + relative).all()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("extreme", [TINY, HUGE])
def test_norm_and_squash_at_the_ends_of_the_floats(caps: ModuleType, extreme: dict[str, float], dtype: str) -> None:
    size = extreme[dtype]
    x = caps.asarray(np.array([[size, 0, size]], dtype))
    found = caps.to_numpy(caps.norm(x, -1))
    assert np.isfinite(found).all()
    assert found[0] == pytest.approx(size * 2**0.5, rel=TOLERANCE[dtype])
    if size == 1e38 and (caps.__name__.endswith("jax") or (REAL_CUPY and caps.__name__.endswith("cupy"))):
        pytest.skip("numbers below 1e-38 are zero to XLA, and to CuPy's -ftz, and so is squash from 8.5e37 on")
    v = caps.to_numpy(squash(caps, x))
    assert np.isfinite(v).all()
    assert np.abs(v).max() == pytest.approx(0.5**0.5 if size > 1 else 0, rel=FLOAT32, abs=1e-30)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", [*SIZES, "tiny", "huge"])
@pytest.mark.parametrize("function", ["norm", "squash", "lengths of squash"])
def test_gradients_at_every_size(torch_caps: ModuleType, function: str, size: Any, dtype: str) -> None:
    """Finite, the same on the tape and in torch, and what calculus says of the norm."""
    size = {"tiny": TINY, "huge": HUGE}[size][dtype] if isinstance(size, str) else size
    x = (np.array([[0.6, 0.0, -0.8], [0.0, 1.0, 0.0]]) * size).astype(dtype)
    call = {
        "norm": lambda ops, s: ops.norm(s, -1),
        "squash": lambda ops, s: ops.sum(squash(ops, s), -1),
        "lengths of squash": lambda ops, s: lengths(ops, squash(ops, s)),
    }[function]
    tape = Tape(NUMPY)
    variable = tape.variable(x)
    by_tape = tape.gradients(tape.sum(call(tape, variable), 0), {"x": variable})["x"]
    tensor = torch_caps.asarray(x).requires_grad_()
    call(torch_caps, tensor).sum().backward()
    by_torch = tensor.grad.numpy()
    assert by_tape.dtype == by_torch.dtype == dtype
    assert np.isfinite(by_tape).all()
    assert np.isfinite(by_torch).all()
    close(by_tape, by_torch, TOLERANCE[dtype], function)
    if function == "norm":
        close(by_tape, x / size if size else x, TOLERANCE[dtype])


def test_subnormal_vectors_are_finite_with_finite_gradients(torch_caps: ModuleType) -> None:
    x = np.array([[1e-45, 0, -1e-45], [1e-40, 0, 0]], np.float32)
    tape = Tape(NUMPY)
    variable = tape.variable(x)
    y = lengths(tape, squash(tape, variable))
    tensor = torch_caps.asarray(x).requires_grad_()
    lengths(torch_caps, squash(torch_caps, tensor)).sum().backward()
    for array in (y.value, tape.gradients(tape.sum(y, 0), {"x": variable})["x"], tensor.grad.numpy()):
        assert np.isfinite(array).all()


def test_nothing_overflows_in_exponentials(caps: ModuleType) -> None:
    x = np.array([[-1e4, 0.0, 1e4], [-1e4, -1e4, -1e4]])
    np.testing.assert_array_equal(caps.to_numpy(caps.sigmoid(caps.asarray(x))), [[0, 0.5, 1], [0, 0, 0]])
    third = 1 / 3
    close(caps.to_numpy(caps.softmax(caps.asarray(x), -1)), np.array([[0, 0, 1], [third] * 3]), FLOAT64)
    close(caps.to_numpy(caps.softmax(caps.asarray(x), -1, leaky=True)), np.array([[0, 0, 1.0], [0, 0, 0]]), FLOAT64)


SMALL = np.array([-100.0, -80.0, -30.0, -20.0, -17.0, -5.0, 2.0, 30.0])


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_sigmoid_tells_small_ones_apart(caps: ModuleType, dtype: str) -> None:
    x = SMALL[1:].astype(dtype)  # beyond, a float32 has no number
    found = caps.to_numpy(caps.sigmoid(caps.asarray(x), small=True))
    np.testing.assert_allclose(found, np.exp(x) / (1 + np.exp(x)), rtol=10 * TOLERANCE[dtype])


def test_a_taped_sigmoid_tells_small_ones_apart() -> None:
    """Training sees the activations that the network in use has."""
    x = SMALL.astype(np.float32)
    tape = Tape(NUMPY)
    found = tape.sigmoid(tape.variable(x), small=True).value
    np.testing.assert_array_equal(found, NUMPY.sigmoid(x, small=True))


def test_a_recorded_sigmoid_tells_small_ones_apart(onnx_export: ModuleType, runtime: ModuleType) -> None:
    x = SMALL.astype(np.float32)
    found = run_recorded(onnx_export, lambda ops, a: ops.sigmoid(a, small=True), [x])
    wanted = np.exp(SMALL) / (1 + np.exp(SMALL))
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-37)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-8, 1e-6, 1e-4, 9e-4])
def test_an_exponential_squash_of_short_vectors_has_a_slope(caps: ModuleType, size: float) -> None:
    """d v / d s at zero is the identity; the slopes along the vector and across it are no less than 0.999."""
    from capscore.fast.streaming import exponential_gradient

    s = np.array([[size, 0.0, 0.0]], np.float32)
    for g in np.eye(3, dtype=np.float32)[:, None]:
        tape = Tape(NUMPY)
        variable = tape.variable(s)
        y = tape.sum(exponential_squash(tape, variable) * g, (0, 1))  # type: ignore[type-var]
        np.testing.assert_allclose(tape.gradients(y, {"s": variable})["s"], g, atol=1.1e-3)
        np.testing.assert_allclose(exponential_gradient(NUMPY, s, g), g, atol=1.1e-3)
    found = caps.to_numpy(exponential_squash(caps, caps.asarray(s)))
    np.testing.assert_allclose(found, s * (1 - size / 2), atol=2e-7)


def test_a_leaky_softmax_loses_the_share_of_a_zero_logit(caps: ModuleType) -> None:
    found = caps.to_numpy(caps.softmax(caps.asarray(np.zeros((3, 2))), 0, leaky=True))
    close(found, np.full((3, 2), 0.25), FLOAT64)


@pytest.mark.parametrize("leaky", [False, True])
def test_nan_stays_where_it_is(caps: ModuleType, leaky: bool) -> None:
    x = np.zeros((3, 2))
    x[1, 0] = np.nan
    a = caps.asarray(x)
    bad = np.isnan(x)
    for found in (caps.relu(a), caps.exp(a), caps.sqrt(a), caps.sigmoid(a)):
        np.testing.assert_array_equal(np.isnan(caps.to_numpy(found)), bad)
    row = np.array([[False] * 2, [True] * 2, [False] * 2])
    for found in (caps.softmax(a, -1, leaky), squash(caps, a), caps.norm(a, -1, keepdims=True) + a * 0.0):
        np.testing.assert_array_equal(np.isnan(caps.to_numpy(found)), row)
    np.testing.assert_array_equal(np.isnan(caps.to_numpy(caps.softmax(a, 0, leaky))), [[True, False]] * 3)


def test_the_first_of_equals_is_the_largest(caps: ModuleType) -> None:
    x = np.array([[[1.0, 3.0, 3.0], [0.0, 0.0, 0.0]], [[-1.0, -2.0, -1.0], [5.0, 6.0, 7.0]]])
    wanted = [[[0, 1, 0], [1, 0, 0]], [[1, 0, 0], [0, 0, 1]]]
    np.testing.assert_array_equal(caps.to_numpy(caps.argmax_one_hot(caps.asarray(x))), wanted)


def test_ops_do_not_write_to_what_they_are_given(caps: ModuleType) -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 4))
    for name, (call, _, shapes) in VALUES.items():
        arrays = [caps.asarray(np.resize(x, shape)) for shape in shapes]
        call(caps, *arrays)
        for array, shape in zip(arrays, shapes, strict=True):
            np.testing.assert_array_equal(caps.to_numpy(array), np.resize(x, shape), name)


@pytest.mark.gpu("cupy", "torch")
def test_values_on_the_gpu(torch_caps: ModuleType) -> None:
    """CuPy itself, and PyTorch's tensors on the GPU handed to it without a copy."""
    import torch

    cupy_caps = backend("cupy")
    x = torch.randn(2, 3, 4, device="cuda", dtype=torch.float64)
    shared = cupy_caps.asarray(x)
    assert shared.data.ptr == x.data_ptr()
    close(cupy_caps.to_numpy(squash(cupy_caps, shared)), torch_caps.to_numpy(squash(torch_caps, x)), FLOAT64)
    assert torch_caps.asarray(shared).data_ptr() == x.data_ptr()
