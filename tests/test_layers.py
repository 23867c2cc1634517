"""Every layer and every loss against loops in float64: on each backend, differentiated, exported, as JSON, refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np
import oracle
import pytest
from conftest import DTYPES, FLOAT32, GRADIENT, NUMPY, SEEDS, TOLERANCE, backend, close, close_gradients, given_each
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_spec import mutated, refuses_or_reads

from capscore import (
    Activation,
    AsCaps,
    AsMap,
    AveragePool,
    BatchNorm,
    CapsNetSpec,
    ChainDecoder,
    Concat,
    Conv,
    ConvCaps3D,
    ConvDecoder,
    ConvTranspose,
    Coordinates,
    CrossEntropy,
    DenseCaps,
    Dropout,
    GlobalPool,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    Linear,
    MarginLoss,
    MaxPool,
    PadChannels,
    PrimaryCaps,
    Residual,
    SelfAttention,
    SpreadLoss,
    Upsample,
)
from capscore.errors import SpecError
from capscore.grad import value_and_gradients
from capscore.init import Constant, HeNormal, TruncatedNormal
from capscore.layer import Capsules, Grid, Layer, Map, Row, Run, Vector
from capscore.layers.activation import ACTIVATIONS
from capscore.metrics import Measures
from capscore.values import Value, read, write

GRADIENT64 = 1e-9  # of the tape and of torch, relative to the largest entry

# ---------------------------------------------------------------------------- any layer, on a map that it can take


@dataclass(frozen=True)
class Case:
    """A layer, the shape that it is given, and what its parameters and input are drawn from."""

    layer: Layer
    shape: Map
    seed: int
    batch: int

    @property
    def row(self) -> Row:
        return Row("layer", self.layer, self.shape, self.layer.plan(self.shape))

    def params(self, dtype: str = "float64") -> dict[str, np.ndarray]:
        """Numbers of about 1 under which every layer speaks up; variances are positive."""
        rng = np.random.default_rng(self.seed)
        found = {}
        for name, param in self.row.parameters.items():
            array = rng.normal(0, 1 / np.sqrt(max(1, np.prod(param.shape[1:]))), param.shape)
            found[name] = (np.abs(array) + 0.5 if name.endswith("variance") else array).astype(dtype)
        return found

    def input(self, dtype: str = "float64") -> np.ndarray:
        return np.random.default_rng([self.seed, 1]).normal(size=(self.batch, *self.shape)).astype(dtype)

    def wanted(self, params: dict[str, np.ndarray], x: np.ndarray, training: bool = False) -> np.ndarray:
        """What the loops say."""
        exact = {name.removeprefix("layer."): p.astype(np.float64) for name, p in params.items()}
        return oracle.layer(write(self.layer), exact, x.astype(np.float64), training)


ACTIVATION = st.sampled_from(sorted(ACTIVATIONS))
PAIRS = st.one_of(st.integers(1, 3), st.tuples(st.integers(1, 3), st.integers(1, 3)))
EPSILON = st.sampled_from([0.01, 0.1, 1.0])  # smaller ones let near-equal numbers amplify the rounding of float32


@st.composite
def window(draw: st.DrawFn, shape: Map, most: int = 4) -> dict[str, Any]:
    """Kernel, stride and padding that fit a map; numbers or pairs, or "same"."""
    kernel = tuple(draw(st.integers(1, min(most, n))) for n in shape[1:])
    if draw(st.booleans()):
        kernel = (min(kernel),) * 2
    padding: Any = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    if all(k % 2 for k in kernel) and draw(st.booleans()):
        padding = "same"
    one = kernel[0] if kernel[0] == kernel[1] and draw(st.booleans()) else kernel
    return {"kernel": one, "stride": draw(PAIRS), "padding": padding}


@st.composite
def conv(draw: st.DrawFn, shape: Map, **fixed: Any) -> Conv:
    groups = draw(st.sampled_from([g for g in range(1, shape.channels + 1) if shape.channels % g == 0]))
    free = {
        "channels": groups * draw(st.integers(1, 2)),
        "activation": draw(ACTIVATION),
        "groups": groups,
        "bias": draw(st.booleans()),
    }
    return Conv(**(free | draw(window(shape)) | fixed))


@st.composite
def residual(draw: st.DrawFn, shape: Map) -> Residual:
    """Convolution and normalisation beside nothing or beside another convolution."""
    same: dict[str, Any] = {"kernel": 3, "padding": "same", "stride": 1}
    if draw(st.booleans()):
        block = draw(conv(shape, channels=shape.channels, groups=1, **same)), BatchNorm()
        return Residual(block, activation=draw(ACTIVATION))
    same |= {"channels": 2, "groups": 1, "stride": draw(st.integers(1, 2))}
    block = draw(conv(shape, **same)), GroupNorm(2, epsilon=0.1)
    past = draw(conv(shape, **same | {"kernel": 1, "padding": 0})), BatchNorm(activation="silu")
    return Residual(block, past, draw(ACTIVATION))


@st.composite
def concat(draw: st.DrawFn, shape: Map) -> Concat:
    """A convolution beside nothing or beside another."""
    same: dict[str, Any] = {"kernel": 3, "padding": "same", "groups": 1}
    if draw(st.booleans()):
        return Concat((draw(conv(shape, **same, stride=1)), BatchNorm()))
    same["stride"] = draw(st.integers(1, 2))
    return Concat((draw(conv(shape, **same)),), (draw(conv(shape, **same)),))


def divisors(n: int) -> Any:
    return st.sampled_from([d for d in range(1, n + 1) if n % d == 0])


KINDS: dict[str, Callable[[Map], Any]] = {
    "Activation": lambda shape: st.builds(Activation, ACTIVATION, st.sampled_from([0.0, 0.01, 0.3])),
    "AveragePool": lambda shape: window(shape).map(lambda how: AveragePool(**how)),
    "BatchNorm": lambda shape: st.builds(
        BatchNorm, st.sampled_from([0.0, 0.1, 1.0]), EPSILON, ACTIVATION, st.booleans(), st.booleans()
    ),
    "Concat": concat,
    "Conv": conv,
    "ConvTranspose": lambda shape: st.builds(
        ConvTranspose, st.integers(1, 2), st.integers(1, 4), st.integers(1, 3), ACTIVATION
    ),
    "Coordinates": lambda shape: st.just(Coordinates()),
    "Dropout": lambda shape: st.builds(Dropout, st.sampled_from([0.0, 0.5]), st.booleans()),
    "GlobalPool": lambda shape: st.just(GlobalPool()),
    "GroupNorm": lambda shape: st.builds(GroupNorm, divisors(shape.channels), EPSILON, ACTIVATION),
    "InstanceNorm": lambda shape: st.builds(InstanceNorm, EPSILON, ACTIVATION),
    "LayerNorm": lambda shape: st.builds(LayerNorm, EPSILON, ACTIVATION),
    "Linear": lambda shape: st.builds(Linear, st.sampled_from([1, 3, (2, 1, 3)]), ACTIVATION),
    "MaxPool": lambda shape: window(shape).map(lambda how: MaxPool(**how)),
    "PadChannels": lambda shape: st.builds(PadChannels, st.integers(0, 2), st.integers(0, 2)),
    "Residual": residual,
    "Upsample": lambda shape: st.builds(Upsample, st.integers(1, 3), st.sampled_from(["nearest", "bilinear"])),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


@st.composite
def cases(draw: st.DrawFn, kind: str) -> Case:
    shape = Map(draw(st.sampled_from([1, 2, 4])), draw(st.integers(2, 6)), draw(st.integers(2, 6)))
    return Case(draw(KINDS[kind](shape)), shape, draw(SEEDS), draw(st.integers(1, 3)))


# ------------------------------------------------------------------------------------------------- the same numbers


@every_kind
@given_each(20, data=st.data(), dtype=DTYPES)
def test_a_layer_computes_what_its_loops_do(caps: ModuleType, kind: str, data: st.DataObject, dtype: str) -> None:
    case = data.draw(cases(kind))
    params, x = case.params(dtype), case.input(dtype)
    arrays = {name: caps.asarray(p) for name, p in params.items()}
    y = caps.to_numpy(case.row.run(caps, arrays, caps.asarray(x), Run()))
    assert y.dtype == dtype
    assert y.shape[1:] == case.row.output.dims
    close(y, case.wanted(params, x), TOLERANCE[dtype])


@given_each(40, data=st.data(), types=st.integers(1, 3), dim=st.integers(1, 4), seed=SEEDS, dtype=DTYPES)
def test_primary_capsules_of_any_window_and_groups(
    caps: ModuleType, data: st.DataObject, types: int, dim: int, seed: int, dtype: str
) -> None:
    shape = Map(data.draw(st.sampled_from([1, 2, 4, 6])), data.draw(st.integers(2, 6)), data.draw(st.integers(2, 6)))
    groups = data.draw(divisors(math.gcd(shape.channels, types * dim)))
    layer = PrimaryCaps(types, dim, **data.draw(window(shape, most=6)), groups=groups)
    row, rng = Row("primary", layer, shape, layer.plan(shape)), np.random.default_rng(seed)
    params = {name: rng.normal(0, 0.3, param.shape).astype(dtype) for name, param in row.parameters.items()}
    x = rng.random((2, *shape)).astype(dtype)
    u = row.run(caps, {name: caps.asarray(p) for name, p in params.items()}, caps.asarray(x), Run()).pose
    weight, bias = (params[f"primary.{name}"].astype(np.float64) for name in ("weight", "bias"))
    how = layer.stride, oracle.margins(layer.padding, layer.kernel), groups
    maps = [oracle.conv(image.astype(np.float64), weight, bias, *how) for image in x]
    close(caps.to_numpy(u), np.array([oracle.primary_capsules(each, types, dim) for each in maps]), TOLERANCE[dtype])
    assert u.shape[1:] == row.output.dims


@given_each(40, case=cases("BatchNorm"), dtype=DTYPES)
def test_training_normalises_by_the_batch_and_moves_the_running_statistics(
    caps: ModuleType, case: Case, dtype: str
) -> None:
    params, x, run = case.params(dtype), case.input(dtype), Run(training=True, statistics={})
    arrays = {name: caps.asarray(p) for name, p in params.items()}
    y = caps.to_numpy(case.row.run(caps, arrays, caps.asarray(x), run))
    # Rounding is divided by the standard deviation, which is that of the batch here.
    least = np.sqrt(x.astype(np.float64).var((0, 2, 3)).min() + case.layer.epsilon)
    close(y, case.wanted(params, x, training=True), TOLERANCE[dtype] / min(1, least))
    exact = {name.removeprefix("layer."): p.astype(np.float64) for name, p in params.items()}
    _, mean, variance = oracle.batch_norm(write(case.layer), exact, x.astype(np.float64), training=True)
    close(caps.to_numpy(run.statistics["layer.mean"]), mean, TOLERANCE[dtype])
    close(caps.to_numpy(run.statistics["layer.variance"]), variance, TOLERANCE[dtype])


@given_each(30, case=cases("Residual"))
def test_statistics_within_a_residual_are_moved_under_their_names(caps: ModuleType, case: Case) -> None:
    run, params = Run(training=True, statistics={}), {n: caps.asarray(p) for n, p in case.params().items()}
    y = case.row.run(caps, params, caps.asarray(case.input()), run)
    close(caps.to_numpy(y), case.wanted(case.params(), case.input(), training=True), 1e-9)
    assert set(run.statistics) == {name for name, param in case.row.parameters.items() if not param.learns}


@given_each(
    30,
    shape=st.one_of(
        st.builds(Map, st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)), st.builds(Vector, st.integers(1, 9))
    ),
    rate=st.sampled_from([0.1, 0.5, 0.9]),
    seed=SEEDS,
    dtype=DTYPES,
)
def test_dropout_keeps_the_same_numbers_everywhere(
    caps: ModuleType, shape: Any, rate: float, seed: int, dtype: str
) -> None:
    x, row = np.ones((5, *shape.dims), dtype), Row("drop", Dropout(rate), shape, Dropout(rate).plan(shape))
    run = Run(training=True, step=3, seed=seed)
    y = caps.to_numpy(row.run(caps, {}, caps.asarray(x), run))
    np.testing.assert_array_equal(y, row.run(NUMPY, {}, x, run))
    close(y, oracle.dropout(x, y != 0, rate), TOLERANCE[dtype] * 10)  # 1 / (1 - 0.9)
    parts = [caps.to_numpy(row.run(caps, {}, caps.asarray(x[k::2]), run._replace(share=(k, 2)))) for k in (0, 1)]
    np.testing.assert_array_equal(parts[0], y[::2])  # two processes draw as one
    np.testing.assert_array_equal(parts[1], y[1::2])


def test_dropout_differs_by_step_seed_and_place() -> None:
    x, layer, run = np.ones((4, 50)), Dropout(0.5), Run(training=True)
    others = [
        Row(name, layer, Vector(50), layer.plan(Vector(50))).run(NUMPY, {}, x, run._replace(step=step, seed=seed))
        for name, step, seed in (("a", 0, 0), ("a", 1, 0), ("a", 0, 1), ("b", 0, 0))
    ]
    assert all((a != b).any() for i, a in enumerate(others) for b in others[:i])


def test_whole_dropout_takes_channels_and_capsules(caps: ModuleType) -> None:
    for shape, x in ((Map(6, 4, 3), np.ones((8, 6, 4, 3))), (Grid(6, 2, 1, 5), np.ones((8, 12, 5)))):
        row = Row("drop", Dropout(0.5, whole=True), shape, Dropout().plan(shape))
        given_x = caps.asarray(x) if isinstance(shape, Map) else Capsules(caps.asarray(x))
        y = row.run(caps, {}, given_x, Run(training=True))
        y = caps.to_numpy(y if isinstance(shape, Map) else y.pose)
        by_unit = y.reshape(*y.shape[:2], -1)
        assert set(np.unique(y)) == {0.0, 2.0}
        assert (by_unit == by_unit[:, :, :1]).all()


@settings(max_examples=30)
@given(
    input=st.tuples(st.integers(1, 3), st.sampled_from([4, 8]), st.sampled_from([4, 12])),
    channels=st.lists(st.integers(1, 3), min_size=1, max_size=2),
    kernel=st.sampled_from([1, 3, 5]),
    seed=SEEDS,
    dtype=DTYPES,
)
def test_a_conv_decoder_draws_what_its_loops_do(
    caps: ModuleType, input: Any, channels: list[int], kernel: int, seed: int, dtype: str
) -> None:
    decoder = ConvDecoder(tuple(channels), kernel)
    spec = CapsNetSpec(input, (PrimaryCaps(1, 3, 1), DenseCaps(3, 4)), decoder)
    rng = np.random.default_rng(seed)
    params = {n: rng.normal(0, 1 / np.sqrt(np.prod(s[1:]) or 1), s).astype(dtype) for n, s in spec.parameters.items()}
    v, labels = rng.normal(size=(2, 3, 4)).astype(dtype), rng.integers(0, 3, 2)
    drawn = caps.to_numpy(caps.CapsNet(spec, params, dtype=dtype).reconstruct(v, labels))
    how = {"decoder": write(decoder), "input": input}
    close(drawn, oracle.reconstruct(how, params, v, labels), TOLERANCE[dtype])


def test_a_decoder_of_given_layers_draws_what_their_loops_do(caps: ModuleType) -> None:
    chain = (Linear((2, 3, 4), "none"), Upsample(2, "bilinear"), Conv(3, 3, activation="none"),
             Activation("leaky_relu", slope=0.2), Upsample(2), Conv(1, 3, activation="sigmoid"))  # fmt: skip
    decoder = ChainDecoder(chain, image=(1, 6, 10))
    spec = CapsNetSpec((2, 12, 10), (PrimaryCaps(1, 3, 4), DenseCaps(3, 4)), decoder)
    params, v = filled(spec), np.random.default_rng(1).normal(size=(2, 3, 4))
    own = {name.removeprefix("decoder."): array for name, array in params.items() if name.startswith("decoder.")}
    wanted = v * np.eye(3)[[0, 2]][:, :, None]
    for i, layer in enumerate(chain):
        wanted = oracle.layer(write(layer), oracle.part(own, f"{i}."), wanted.reshape(2, -1) if not i else wanted)
    net = caps.CapsNet(spec, params, dtype="float64")
    close(caps.to_numpy(net.reconstruct(caps.asarray(v), [0, 2])), wanted, TOLERANCE["float64"])


# ------------------------------------------------------------------------------------------------------- gradients


def weighed(ops: Any, case: Case, p: dict[str, Any], x: Any, training: bool) -> Any:
    """A scalar of what the layer makes: its numbers, each with a weight."""
    y = case.row.run(ops, p, x, Run(training=training, statistics={}))
    weights = np.random.default_rng(case.seed).normal(size=y.shape)
    return ops.sum(y * ops.asarray(weights), tuple(range(weights.ndim)))


def by_tape(case: Case, arrays: dict[str, np.ndarray], training: bool, caps: Any = NUMPY) -> dict[str, np.ndarray]:
    there = {name: caps.asarray(array) for name, array in arrays.items()}
    _, gradients = value_and_gradients(caps, lambda tape, p: weighed(tape, case, p, p["x"], training), there)
    return {name: caps.to_numpy(g) for name, g in gradients.items()}


@every_kind
@pytest.mark.parametrize("training", [False, True])
@settings(max_examples=10)
@given(data=st.data())
def test_the_gradient_is_that_of_torch(torch_caps: ModuleType, kind: str, training: bool, data: st.DataObject) -> None:
    case = data.draw(cases(kind))
    arrays = case.params() | {"x": case.input()}
    tensors = {name: torch_caps.asarray(array).requires_grad_() for name, array in arrays.items()}
    weighed(torch_caps, case, tensors, tensors["x"], training).backward()
    expected = {name: np.zeros(t.shape) if t.grad is None else t.grad.numpy() for name, t in tensors.items()}
    for name in ("numpy", "cupy"):
        close_gradients(by_tape(case, arrays, training, backend(name)), expected, GRADIENT64)


@every_kind
@pytest.mark.parametrize("training", [False, True])
@settings(max_examples=10)
@given(data=st.data())
def test_the_gradient_is_the_limit_of_differences(kind: str, training: bool, data: st.DataObject) -> None:
    case = data.draw(cases(kind))
    arrays, rng = case.params() | {"x": case.input()}, np.random.default_rng(case.seed)
    gradients = by_tape(case, arrays, training)
    way = {name: rng.normal(size=array.shape) for name, array in arrays.items()}

    def along(step: float) -> float:
        moved = {name: array + step * way[name] for name, array in arrays.items()}
        return float(weighed(NUMPY, case, moved, moved["x"], training))

    near, far = ((along(step) - along(-step)) / (2 * step) for step in (1e-6, 2e-6))
    assume(abs(near - far) < 1e-6 * max(1, abs(far)))  # else a kink lies between, or it curves too much
    slope = sum(float((gradients[name] * way[name]).sum()) for name in arrays)
    assert slope == pytest.approx(near, rel=GRADIENT, abs=GRADIENT)


@every_kind
@settings(max_examples=20)
@given(data=st.data(), size=st.sampled_from([0.0, 1.0, -1.0, 1e20, -1e20]), training=st.booleans())
def test_layers_and_their_gradients_stay_finite(
    torch_caps: ModuleType, kind: str, data: st.DataObject, size: float, training: bool
) -> None:
    case = data.draw(cases(kind))
    if kind in ("BatchNorm", "Residual") and training:
        assume(abs(size) <= 1)  # the variance of a batch of such numbers is infinite, and so is the running one
    arrays = case.params("float32") | {"x": case.input("float32") * np.float32(size)}
    with np.errstate(over="ignore"):  # of what is then divided by, or passed through a sigmoid
        y = case.row.run(NUMPY, arrays, arrays["x"], Run(training=training, statistics={}))
        gradients = by_tape(case, arrays, training)
    assert np.isfinite(y).all()
    assert all(np.isfinite(g).all() for g in gradients.values())
    tensors = {name: torch_caps.asarray(array).requires_grad_() for name, array in arrays.items()}
    weighed(torch_caps, case, tensors, tensors["x"], training).backward()
    assert all(bool(t.grad.isfinite().all()) for t in tensors.values() if t.grad is not None)


def test_equal_numbers_in_a_window_give_the_gradient_to_the_first(torch_caps: ModuleType) -> None:
    x = np.zeros((1, 1, 4, 5))  # what relu leaves
    case = Case(MaxPool(3, stride=1, padding=1), Map(1, 4, 5), 0, 1)
    tensor = torch_caps.asarray(x).requires_grad_()
    weighed(torch_caps, case, {}, tensor, False).backward()
    close(by_tape(case, {"x": x}, False)["x"], tensor.grad.numpy(), GRADIENT64)


# ------------------------------------------------------------------------------------------------------------ losses

WEIGHTS = st.one_of(st.none(), st.lists(st.sampled_from([0.0, 0.3, 1.0, 2.5]), min_size=4, max_size=4).map(tuple))
LOSSES = {
    "MarginLoss": st.builds(
        MarginLoss, st.floats(0.5, 1), st.floats(0, 0.5), st.sampled_from([0.0, 0.5, 2.0]), class_weights=WEIGHTS
    ),
    "SpreadLoss": st.builds(
        lambda start, end, grows, weights: SpreadLoss(start, end, *grows, class_weights=weights),
        st.floats(0, 0.5),
        st.floats(0.5, 1),
        st.sampled_from([(0, False), (3, False), (50, False), (4, True)]),
        WEIGHTS,
    ),
    "CrossEntropy": st.builds(CrossEntropy, st.sampled_from([0.5, 1, 10]), st.booleans(), class_weights=WEIGHTS),
}
every_loss = pytest.mark.parametrize("kind", LOSSES)


def answers(seed: int, labels: str) -> tuple[np.ndarray, np.ndarray]:
    """Scores [5, 4] and targets: one class for each image, or any number of them."""
    rng = np.random.default_rng(seed)
    one, several = np.eye(4)[rng.integers(0, 4, 5)], rng.integers(0, 2, (5, 4)).astype(np.float64)
    return rng.random((5, 4)), one if labels == "one" else several


@every_loss
@settings(max_examples=40)
@given(data=st.data(), seed=SEEDS, labels=st.sampled_from(["one", "several"]), step=st.integers(0, 60), dtype=DTYPES)
def test_a_loss_is_its_loops(
    caps: ModuleType, kind: str, data: st.DataObject, seed: int, labels: str, step: int, dtype: str
) -> None:
    loss = data.draw(LOSSES[kind])
    scores, targets = (array.astype(dtype) for array in answers(seed, labels))
    wanted = oracle.loss(write(loss), scores.astype(np.float64), targets, step)
    found = caps.to_numpy(loss(caps, caps.asarray(scores), caps.asarray(targets), step))
    assert float(found) == pytest.approx(wanted, rel=TOLERANCE[dtype], abs=TOLERANCE[dtype])


@pytest.mark.parametrize("exclusive", [True, False])
def test_chances_are_those_whose_logarithm_the_cross_entropy_is(caps: ModuleType, exclusive: bool) -> None:
    loss = CrossEntropy(3.0, exclusive)
    scores, targets = answers(0, "one")
    p = caps.to_numpy(loss.chances(caps, caps.asarray(scores)))
    logs = targets * np.log(p) if exclusive else targets * np.log(p) + (1 - targets) * np.log(1 - p)
    found = caps.to_numpy(loss(caps, caps.asarray(scores), caps.asarray(targets)))
    assert float(found) == pytest.approx(-logs.sum(1).mean(), rel=1e-9)
    assert MarginLoss().chances(caps, scores) is SpreadLoss().chances(caps, scores) is scores


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_a_chance_is_even_at_the_score_above_which_a_class_counts_as_shown(caps: ModuleType, scale: float) -> None:
    scores = np.array([[0.0, 0.49, 0.5, 0.51, 1.0, -3.0, 40.0]])
    p = caps.to_numpy(CrossEntropy(scale, exclusive=False).chances(caps, caps.asarray(scores)))
    assert p[0, 2] == 0.5
    assert ((p > 0.5) == Measures(scores, np.zeros((1, 7)), tuple("abcdefg"), None).answers).all()


@pytest.mark.parametrize("exclusive", [True, False])
def test_lengths_that_are_right_have_hardly_a_loss(caps: ModuleType, exclusive: bool) -> None:
    """With p = sigmoid(scale · length) a class could not be denied, and networks learned to show nothing at all."""
    targets = caps.asarray(np.eye(10)[[3, 5]])
    assert float(caps.to_numpy(CrossEntropy(10.0, exclusive)(caps, targets, targets))) < 0.1


@every_loss
@settings(max_examples=20)
@given(data=st.data(), seed=SEEDS, labels=st.sampled_from(["one", "several"]))
def test_the_gradient_of_a_loss(torch_caps: ModuleType, kind: str, data: st.DataObject, seed: int, labels: str) -> None:
    loss = data.draw(LOSSES[kind])
    scores, targets = answers(seed, labels)
    _, found = value_and_gradients(
        NUMPY, lambda tape, p: loss(tape, p["scores"], tape.asarray(targets), 7), {"scores": scores}
    )
    tensor = torch_caps.asarray(scores).requires_grad_()
    loss(torch_caps, tensor, torch_caps.asarray(targets), 7).backward()
    close_gradients(found, {"scores": tensor.grad.numpy()}, GRADIENT64)
    slopes = np.zeros(scores.shape)
    for at in np.ndindex(*scores.shape):
        moved = [scores.copy(), scores.copy()]
        moved[0][at] -= 1e-6
        moved[1][at] += 1e-6
        ends = [oracle.loss(write(loss), each, targets, 7) for each in moved]
        slopes[at] = (ends[1] - ends[0]) / 2e-6
    close(found["scores"], slopes, GRADIENT)


@pytest.mark.parametrize("loss", [MarginLoss(), SpreadLoss(), CrossEntropy(), CrossEntropy(10, exclusive=False)])
def test_losses_stay_finite(torch_caps: ModuleType, loss: Any) -> None:
    targets = np.eye(3)[[0, 1]]
    for size in (0.0, 1.0, 1e6):
        scores = np.array([[size, 0, -size], [0, size, size]])
        value, found = value_and_gradients(
            NUMPY, lambda tape, p: loss(tape, p["scores"], tape.asarray(targets)), {"scores": scores}
        )
        assert np.isfinite(value)
        assert np.isfinite(found["scores"]).all()


# ------------------------------------------------------------------------------------------------------------ export


def network(case: Case) -> CapsNetSpec:
    """The layer in a network that ends in scores."""
    return CapsNetSpec(case.shape, (case.layer, Linear(3, "none", TruncatedNormal(0.05))), decoder=None)


def filled(spec: CapsNetSpec, seed: int = 0) -> dict[str, np.ndarray]:
    """First numbers of a network, its biases and statistics spread: those of a trained one, as it were."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, param in spec.params.items():
        array = param.init.draw(rng, param.shape)
        if isinstance(param.init, Constant):
            array = array + rng.uniform(-0.1, 0.3, param.shape)
        found[name] = np.abs(array) + 0.2 if name.endswith("variance") else array
    return found


@every_kind
@pytest.mark.parametrize("opset", [17, 18, 20])
@settings(max_examples=4)
@given(data=st.data())
def test_onnx_runtime_computes_what_the_loops_do(
    onnx_export: ModuleType,
    runtime: ModuleType,
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    opset: int,
    data: st.DataObject,
) -> None:
    case = data.draw(cases(kind))
    spec, path = network(case), tmp_path_factory.mktemp("onnx") / "model.onnx"
    net = NUMPY.CapsNet(spec, filled(spec, case.seed))
    onnx_export.export(net, path, opset=opset, verify=False)
    session = runtime.Session(path, threads=1)
    params = {name: p.astype(np.float64) for name, p in net.params.items()}
    own, last = oracle.part(params, f"{spec.rows[0].name}."), oracle.part(params, f"{spec.rows[1].name}.")
    for batch in (1, 2, 7):  # of one file
        x = np.random.default_rng([case.seed, batch]).random((batch, *case.shape)).astype(np.float32)
        y = oracle.layer(write(case.layer), own, x.astype(np.float64))
        close(session(x).scores, oracle.layer(write(spec.layers[1]), last, y), FLOAT32)


EVERYTHING = CapsNetSpec(
    (3, 16, 12),
    (
        Conv(8, 3, padding="same", activation="none", bias=False),
        BatchNorm(activation="relu"),
        MaxPool(3, stride=2, padding=1),
        Residual(
            (Conv(8, 3, padding="same", groups=8, activation="none"), BatchNorm(), Conv(12, 1), GroupNorm(3)),
            (Conv(12, 1, activation="none"), BatchNorm()),
        ),
        LayerNorm(activation="gelu"),
        BatchNorm(),
        Dropout(0.2),
        AveragePool(2, stride=1),
        InstanceNorm(activation="leaky_relu"),
        Upsample(2),
        PrimaryCaps(3, 4, kernel=(14, 10), groups=12),
        DenseCaps(4, 6),
    ),
    ConvDecoder((4, 3), kernel=3),
    CrossEntropy(8.0, class_weights=(1, 2, 1, 0.5)),
)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_network_of_everything_is_exported(
    onnx_export: ModuleType, runtime: ModuleType, tmp_path: Any, precision: str
) -> None:
    net = NUMPY.CapsNet(EVERYTHING, filled(EVERYTHING))
    images = np.random.default_rng(0).random((64, *EVERYTHING.input)).astype(np.float32)
    report = onnx_export.export(net, tmp_path / "m.onnx", precision=precision, calibration=images)  # which verifies
    assert report.differences is not None
    exact = NUMPY.CapsNet(EVERYTHING, net.params, dtype="float64")(images)
    allowed = {"fp32": FLOAT32, "fp16": 5e-3, "int8": 0.1}[precision]
    close(runtime.Session(tmp_path / "m.onnx")(images).lengths, exact.lengths, allowed)
    assert exact.lengths.std(0).min() > 5 * {"fp32": FLOAT32, "fp16": 1e-4, "int8": 1e-3}[precision]  # they tell apart


def test_every_backend_runs_a_network_of_everything(caps: ModuleType) -> None:
    params, images = filled(EVERYTHING), np.random.default_rng(0).random((3, *EVERYTHING.input))
    for dtype in ("float64", "float32"):
        exact, net = NUMPY.CapsNet(EVERYTHING, params, dtype="float64"), caps.CapsNet(EVERYTHING, params, dtype=dtype)
        out, wanted = net(images), exact(images)
        close(caps.to_numpy(out.lengths), wanted.lengths, TOLERANCE[dtype])
        close(caps.to_numpy(net.reconstruct(out.capsules, [0, 1, 2])), exact.reconstruct(wanted.capsules, [0, 1, 2]),
              TOLERANCE[dtype])  # fmt: skip


@pytest.mark.parametrize("tiles", ["3x3", "6x6"])
def test_fast_convolutions_leave_the_layers_as_they_are(
    eager_caps: ModuleType, onnx_export: ModuleType, tmp_path: Any, tiles: str
) -> None:
    """In groups, of windows that are no squares, with strides: by transforms or not, the same network."""
    params, images = filled(EVERYTHING), np.random.default_rng(0).random((9, *EVERYTHING.input)).astype(np.float32)
    exact = NUMPY.CapsNet(EVERYTHING, params, dtype="float64")(images)
    net = eager_caps.CapsNet(EVERYTHING, params, fast_conv=tiles)
    close(eager_caps.to_numpy(net(images).lengths), exact.lengths, 2e-5)
    loss, _ = eager_caps.Learner(net).step(images, np.eye(4)[np.arange(9) % 4], 1e-3)
    other = NUMPY.Learner(NUMPY.CapsNet(EVERYTHING, params)).step(images, np.eye(4)[np.arange(9) % 4], 1e-3)[0]
    assert float(loss) == pytest.approx(float(other), rel=1e-4)
    onnx_export.export(net, tmp_path / "m.onnx", fast_conv=tiles)  # which verifies


def nodes(onnx_export: ModuleType, layers: tuple[Layer, ...], path: Any) -> list[str]:
    """Kinds of the nodes of an export of these layers, and of some scores where they make no capsules."""
    import onnx

    scores = () if isinstance(layers[-1], DenseCaps) else (Linear(2),)
    spec = CapsNetSpec((3, 8, 7), (*layers, *scores), decoder=None)
    onnx_export.export(NUMPY.CapsNet(spec, filled(spec)), path)  # which verifies that it computes the same
    return [node.op_type for node in onnx.load(path).graph.node]


@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
@pytest.mark.parametrize("how", [{}, {"groups": 3}, {"bias": False}, {"kernel": (2, 3), "stride": 2, "padding": 1}])
def test_batch_normalisation_leaves_no_node(
    onnx_export: ModuleType, tmp_path: Any, activation: str, how: dict[str, Any]
) -> None:
    settings = {"channels": 3, "kernel": 3, "padding": 1} | how
    pair_of_layers = Conv(**settings, activation="none"), BatchNorm(activation=activation)
    single = (Conv(**settings, activation=activation),)
    path = tmp_path / "m.onnx"
    assert nodes(onnx_export, pair_of_layers, path) == nodes(onnx_export, single, path)
    past = {"channels": 3, "kernel": settings["kernel"], "stride": settings.get("stride", 1), "padding": 1}
    blocks = [
        Residual((*block, *block), (Conv(**past, activation="none"), *norm, Conv(**past)), "relu")
        for block, norm in ((pair_of_layers, (BatchNorm(scale=False),)), (single, ()))
    ]
    assert nodes(onnx_export, (blocks[0],), path) == nodes(onnx_export, (blocks[1],), path)
    inside = [(Residual((Residual(block.layers, block.shortcut),), (Conv(**past), Conv(**past))),) for block in blocks]
    assert nodes(onnx_export, inside[0], path) == nodes(onnx_export, inside[1], path)


@pytest.mark.parametrize(
    "behind",
    [Conv(4, 3), Conv(6, (2, 3), 2, groups=3, bias=False), PrimaryCaps(2, 3, (8, 7), groups=3), PrimaryCaps(2, 3, 3)],
)
@pytest.mark.parametrize("norm", [BatchNorm(), BatchNorm(scale=False), BatchNorm(shift=False)])
def test_batch_normalisation_after_an_activation_leaves_no_node(
    onnx_export: ModuleType, tmp_path: Any, behind: Layer, norm: Layer
) -> None:
    first, last = (Conv(3, 3, padding=1),), (behind, DenseCaps(2, 4)) if isinstance(behind, PrimaryCaps) else (behind,)
    path = tmp_path / "m.onnx"
    assert nodes(onnx_export, (*first, norm, *last), path) == nodes(onnx_export, (*first, *last), path)
    seen = Conv(4, 3, padding=1)  # a margin of zeros, which the norm does not shift
    assert len(nodes(onnx_export, (*first, norm, seen), path)) > len(nodes(onnx_export, (*first, seen), path))


# -------------------------------------------------------------------------------------------------------------- JSON


@st.composite
def networks(draw: st.DrawFn) -> CapsNetSpec:
    """A network with one layer of any kind, any loss, and some decoder."""
    case = draw(st.sampled_from(sorted(KINDS)).flatmap(cases))
    loss = draw(st.one_of(*LOSSES.values()))
    loss = replace(loss, class_weights=(1.0, 2.0) if loss.class_weights else None)
    init = draw(st.sampled_from([None, HeNormal(), Constant(0.1), TruncatedNormal(1)]))
    layers: tuple[Layer, ...] = (case.layer, Linear(2, init=init))
    if not isinstance(case.row.output, Vector):
        layers = (case.layer, PrimaryCaps(2, 3, 1), Dropout(0.1, whole=True), DenseCaps(2, 4))
    if not isinstance(case.row.output, Vector) and not any(size % 2 for size in case.shape[1:]):
        decoder = ConvDecoder((3,), 3, image=(1, *case.shape[1:]))
        return CapsNetSpec(case.shape, layers, decoder, loss)
    return CapsNetSpec(case.shape, layers, None, loss)


@settings(max_examples=200)
@given(spec=networks())
def test_json_round_trip(spec: CapsNetSpec) -> None:
    assert CapsNetSpec.from_json(spec.to_json()) == spec
    for value in (*spec.layers, spec.loss, *([spec.decoder] if spec.decoder else [])):
        assert read(write(value), "value") == value


@settings(max_examples=400)
@given(text=mutated(networks()))
def test_json_gone_wrong(text: str) -> None:
    refuses_or_reads(text)


HOSTILE = [
    lambda n: {"type": "Upsample", "factor": n},
    lambda n: {"type": "Residual", "layers": [{"type": "Upsample", "factor": n}, {"type": "MaxPool", "kernel": n}]},
    lambda n: {"type": "Residual", "layers": [{"type": "Linear", "output": n}], "shortcut": [{"type": "GlobalPool"}]},
    lambda n: {"type": "Conv", "channels": n, "kernel": 1},
    lambda n: {"type": "Conv", "channels": 1, "kernel": n, "padding": n},
    lambda n: {"type": "Conv", "channels": 1, "kernel": [1, 1], "padding": [n, 1]},
    lambda n: {"type": "MaxPool", "kernel": n, "padding": n // 2},
    lambda n: {"type": "AveragePool", "kernel": 1, "padding": n},
    lambda n: {"type": "AveragePool", "kernel": n, "stride": n, "padding": n},
    lambda n: {"type": "Conv", "channels": 1, "kernel": 1, "stride": n, "padding": [n, n]},
    lambda n: {"type": "ConvTranspose", "channels": 1, "kernel": n},
    lambda n: {"type": "ConvTranspose", "channels": 1, "kernel": 1, "stride": n},
    lambda n: {"type": "GroupNorm", "groups": n},
    lambda n: {"type": "Linear", "output": n},
    lambda n: {"type": "Linear", "output": [n, n, n]},
    lambda n: {"type": "PrimaryCaps", "types": n, "dim": n, "kernel": 1},
    lambda n: {"type": "PrimaryCaps", "types": 1, "dim": 1, "kernel": 1, "groups": n},
]


def stranger(*layers: dict[str, Any]) -> str:
    """JSON of a network that begins with these layers."""
    end = [{"type": "GlobalPool"}, {"type": "Linear", "output": 2}]
    return json.dumps({"input": [1, 200, 200], "layers": [*layers, *end], "decoder": None})


@pytest.mark.parametrize("size", [10**5, 10**6, 10**6 + 1, 2**63])
@pytest.mark.parametrize("make", HOSTILE)
def test_a_layer_of_a_stranger_takes_no_memory(make: Callable[[int], dict[str, Any]], size: int) -> None:
    refuses_or_reads(stranger(*[make(size)] * 3))
    if size > 10**6 or any(word in make(size) for word in ("layers", "stride")):
        # What is held in between counts, too, when the output is small.
        with pytest.raises(SpecError):
            CapsNetSpec.from_json(stranger(make(size)))


PLACES = {
    "layer": '{"input": [1, 9, 9], "layers": [%s]}',
    "inner layer": '{"input": [1, 9, 9], "layers": [{"type": "Residual", "layers": [%s]}]}',
    "init": '{"input": [1, 9, 9], "layers": [{"type": "Linear", "output": 2, "init": %s}], "decoder": null}',
    "routing": '{"input": [1, 9, 9], "layers": [{"type": "DenseCaps", "count": 2, "routing": %s}]}',
    "number": '{"input": [1, 9, 9], "layers": [{"type": "Conv", "channels": %s, "kernel": 3}]}',
    "choice": '{"input": [1, 9, 9], "layers": [{"type": "Activation", "activation": %s}]}',
    "padding": '{"input": [1, 9, 9], "layers": [{"type": "MaxPool", "padding": %s}]}',
    "decoder": '{"input": [1, 9, 9], "layers": [{"type": "Linear", "output": 2}], "decoder": %s}',
    "loss": '{"input": [1, 9, 9], "layers": [{"type": "Linear", "output": 2}], "decoder": null, "loss": %s}',
    "input": '{"input": %s, "layers": [{"type": "Linear", "output": 2}], "decoder": null}',
}


def test_a_misspelt_class_is_told_its_name() -> None:
    for wrong, right in (("Cov", "Conv"), ("conv", "Conv"), ("Maxpool", "MaxPool"), ("GroupNorm2d", "GroupNorm")):
        with pytest.raises(
            SpecError, match=rf"layers\.0: type '{wrong}' is unknown; the nearest known are .*{right}\b"
        ):
            CapsNetSpec.from_json(PLACES["layer"] % json.dumps({"type": wrong}))


@pytest.mark.parametrize("place", PLACES)
def test_every_class_in_every_place(place: str) -> None:
    """Abstract ones, those of another kind, and names that are none."""
    for name in (*Value.known, "Value", "object", "x" * 200, ""):
        refuses_or_reads(PLACES[place] % json.dumps({"type": name}))
        refuses_or_reads(PLACES[place] % json.dumps([{"type": name}]))


# ----------------------------------------------------------------------------------------------- messages that help

MAP = (2, 6, 9)


def scores(*layers: Layer, **how: Any) -> CapsNetSpec:
    return CapsNetSpec(MAP, (*layers, GlobalPool(), Linear(3)), None, **how)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: scores(PrimaryCaps(1, 2, 3), Conv(1, 3)), r"layers\.1: Conv takes a map, not Grid.*put it before the"),
        (lambda: scores(GlobalPool(), MaxPool()), r"layers\.1: MaxPool takes a map, not Vector.*put it before"),
        (lambda: scores(GlobalPool(), Upsample()), r"layers\.1: Upsample takes a map, not Vector\(size=2\)"),
        (lambda: scores(GlobalPool(), AveragePool()), r"layers\.1: AveragePool takes a map"),
        (lambda: scores(GlobalPool(), BatchNorm()), r"layers\.1: BatchNorm takes a map"),
        (lambda: scores(GlobalPool(), GroupNorm(1)), r"layers\.1: GroupNorm takes a map"),
        (lambda: scores(GlobalPool(), InstanceNorm()), r"layers\.1: InstanceNorm takes a map"),
        (lambda: scores(GlobalPool(), LayerNorm()), r"layers\.1: LayerNorm takes a map"),
        (lambda: scores(GlobalPool()), r"layers\.1: GlobalPool takes a map"),
        (lambda: scores(PrimaryCaps(1, 2, 3), Activation()), r"Activation takes a map or a vector, not Grid"),
        (lambda: scores(PrimaryCaps(1, 2, 3), Linear(2)), r"layers\.1: Linear takes a map or a vector, not Grid"),
        (lambda: scores(DenseCaps(2)), "layers.0: DenseCaps takes capsules, not Map.*: PrimaryCaps makes them"),
        (lambda: scores(GlobalPool(), PrimaryCaps(1, 2, 1)), r"layers\.1: PrimaryCaps takes a map, not Vector"),
        (
            lambda: scores(Conv(6, 1, groups=4)),
            r"layers\.0: 4 groups do not divide 2 channels of the input and 6 of the output; 2 would",
        ),
        (lambda: scores(PrimaryCaps(2, 3, 1, groups=3)), r"3 groups do not divide 2 channels .* and 6 .*; 2 would"),
        (lambda: scores(GroupNorm(3)), r"layers\.0: 3 groups do not divide 2 channels; 2 would"),
        (
            lambda: scores(Conv(1, (7, 2))),
            r"kernel \(7, 2\) is larger than its 6×9 input map with padding 0; "
            r"a kernel of at most 6×9 or a padding of at least 1 would fit",
        ),
        (lambda: scores(MaxPool(7)), r"kernel 7 is larger than its 6×9 input map"),
        (lambda: MaxPool(3, padding=2), "MaxPool: padding 2 is more than half the kernel 3; at most 1 would fit"),
        (lambda: Conv(1, (3, 2), padding="same"), 'Conv: padding "same" needs an odd kernel, not .*: an even'),
        (lambda: Conv(1, (3, 2, 1)), r"kernel must be a whole number .*, or two: \(height, width\), not \(3, 2, 1\)"),
        (lambda: Conv(1, 3, init=0.1), r"init must be a Init such as HeNormal\(\) or None, not 0\.1"),
        (lambda: scores(Residual((Conv(3, 1),))), r"makes Map\(channels=3.*, the shortcut Map.*a Conv of kernel 1"),
        (
            lambda: scores(Residual((PrimaryCaps(1, 2, 1),), (PrimaryCaps(1, 2, 1),))),
            "Residual: poses are added as they are: activation=\"none\", not 'relu'",
        ),
        (
            lambda: scores(Residual((AsCaps(1, 1, active=True),), (AsCaps(1, 1, active=True),), "none")),
            "Residual adds poses, and Grid.* has activations, which have no sum: end block",
        ),
        (lambda: scores(Concat((Conv(2, 3),))), "Concat: the block makes Map.*, the shortcut Map.*of one height and"),
        (lambda: scores(Concat((PrimaryCaps(1, 3, 1),), (PrimaryCaps(1, 2, 1),))), "Concat: .* or capsules of one dim"),
        (lambda: scores(Concat((GlobalPool(),))), "Concat: the block makes Vector.*, the shortcut Map"),
        (lambda: scores(AsMap()), r"layers\.0: AsMap takes capsules, not Map.*: put it behind the layer that makes"),
        (lambda: scores(ConvCaps3D(1, 2, 1)), r"layers\.0: ConvCaps3D takes capsules, not Map.*: PrimaryCaps makes"),
        (
            lambda: ConvCaps3D(1, 2, 1, routing=SelfAttention()),
            r"ConvCaps3D: routing must be a DynamicRouting such as DynamicRouting\(\), not SelfAttention",
        ),
        (lambda: scores(PrimaryCaps(1, 2, 1), ConvCaps3D(1, 2, 8)), "kernel 8 is larger than its 6×9 input map"),
        (
            lambda: CapsNetSpec(MAP, (PrimaryCaps(1, 2, 1), DenseCaps(2)), ChainDecoder((Linear((2, 6, 8)),))),
            r"decoder: its last layer makes Map\(channels=2, height=6, width=8\), not the image Map",
        ),
        (lambda: ConvDecoder(class_independent=1), "ConvDecoder: class_independent must be true or false, not 1"),
        (
            lambda: scores(Conv(1, 1, stride=10**5, padding=10**5)),
            "padding 100000 makes more than 1,073,741,824 numbers of its 6×9 input map; a smaller padding would fit",
        ),
        (lambda: scores(Residual((Conv(2, 9),))), r"layers\.0: layers\.0: kernel 9 is larger"),
        (lambda: Residual(Conv(2, 1)), "Residual: layers must be a tuple of layers, not Conv"),
        (lambda: Dropout(1.0), "Dropout: rate must be a number from 0 to 0.99, not 1.0"),
        (lambda: Dropout(0.5, whole=1), "Dropout: whole must be true or false, not 1"),
        (lambda: BatchNorm(momentum=float("nan")), "BatchNorm: momentum must be a number from 0 to 1, not nan"),
        (lambda: BatchNorm(epsilon=0), "BatchNorm: epsilon must be a number from 1e-12 to 1, not 0"),
        (lambda: LayerNorm(activation="swish"), 'LayerNorm: activation must be "relu" or .*, not \'swish\''),
        (lambda: Upsample(mode="cubic"), 'Upsample: mode must be "nearest" or "bilinear", not'),
        (lambda: Activation("leaky_relu", slope=2), "Activation: slope must be a number from 0 to 1, not 2"),
        (lambda: Upsample(0), "Upsample: factor must be a whole number from 1"),
        (lambda: Linear((2, 3)), r"Linear: output must be one size or \(channels, height, width\), not \(2, 3\)"),
        (lambda: ConvDecoder(()), "ConvDecoder: channels is empty; it needs at least one map"),
        (lambda: ConvDecoder(kernel=4), "ConvDecoder: kernel must be odd, not 4"),
        (lambda: ConvDecoder(image=(1, 2)), r"ConvDecoder: image must be \(channels, height, width\), not \(1, 2\)"),
        (
            lambda: CapsNetSpec(MAP, (PrimaryCaps(1, 2, 1), DenseCaps(2)), ConvDecoder((3,))),
            "ConvDecoder: 1 maps: a factor of 2; 6×9 is no multiple of 2: fewer channels, or an image",
        ),
        (
            lambda: CapsNetSpec(MAP, (PrimaryCaps(1, 2, 1), DenseCaps(2)), ConvDecoder((3,), image=(1, 4, 4))),
            r"its image \(1, 4, 4\) must divide the input \(2, 6, 9\)",
        ),
        (lambda: scores(loss=MarginLoss(class_weights=(1, 2))), "2 class weights for 3 classes; give one for each"),
        (lambda: scores(loss=MarginLoss(class_weights=(1, -2, 1))), "MarginLoss: class_weights must be numbers from 0"),
        (lambda: SpreadLoss(class_weights=(10**5000,)), "class_weights must be numbers .*cannot be printed"),
        (lambda: SpreadLoss(steps=0, smooth=True), "SpreadLoss: a smooth margin .* steps must be at least 1"),
        (lambda: SpreadLoss(steps=-1), "SpreadLoss: steps must be a whole number from 0"),
        (lambda: CrossEntropy(scale=0), "CrossEntropy: scale must be a number from 1e-06"),
        (lambda: scores(loss="margin"), r"loss must be a Loss such as MarginLoss\(\), not 'margin'"),
        (lambda: scores(Upsample(1000), Upsample(1000)), r"stem\.1: output of shape .* more than .* would fit"),
        (
            lambda: scores(Residual((Upsample(10**5), MaxPool(10**5)))),
            r"layers\.0: layers\.0: output of shape .* more than .* would fit",
        ),
    ],
)  # fmt: skip
def test_messages(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        build()


def test_the_cures_cure() -> None:
    scores(Conv(6, 1, groups=2))
    scores(GroupNorm(2))
    scores(Conv(1, (6, 2)))
    scores(Conv(1, (7, 2), padding=1))
    MaxPool(3, padding=1)
    scores(Residual((Conv(3, 1),), (Conv(3, 1),)))
    scores(loss=MarginLoss(class_weights=(1, 2, 3)))
