"""Gradients: every backward rule against differences and PyTorch, whole networks against PyTorch, and training."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import oracle
import pytest
from conftest import (
    DTYPES,
    FLOAT64,
    GRADIENT,
    NUMPY,
    SEEDS,
    TOLERANCE,
    backend,
    close,
    close_gradients,
    given_each,
    plain,
    random_images,
    random_params,
    small_spec,
    specs,
    whole,
)
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from capscore import CapsNetSpec, DenseCaps, DynamicRouting
from capscore.grad import Tape, value_and_gradients
from capscore.losses import MarginLoss, reconstruction_loss
from capscore.model import objective
from capscore.routing import dynamic_routing
from capscore.squash import lengths, squash

# Every op and every piece made of them, as a function of the ops and its arrays, with the shapes of the arrays.
PIECES: dict[str, tuple[Callable[..., Any], list[tuple[int, ...]]]] = {
    "add": (lambda ops, a, b: a + b, [(2, 3, 4), (3, 1)]),
    "add scalar": (lambda ops, a: a + 2.0, [(2, 3)]),
    "subtract": (lambda ops, a, b: a - b, [(3, 1), (2, 3, 4)]),
    "multiply": (lambda ops, a, b: a * b, [(2, 1, 4), (3, 1)]),
    "multiply scalar": (lambda ops, a: a * -3.0, [(2, 3)]),
    "divide": (lambda ops, a, b: a / (b * b + 0.5), [(2, 3, 4), (4,)]),
    "divide scalar": (lambda ops, a: a / 7, [(2, 3)]),
    "twice": (lambda ops, a: a * a + a, [(2, 3)]),
    "reshape": (lambda ops, a: ops.reshape(a, (-1, 6)) * 1.0, [(2, 4, 3)]),
    "transpose": (lambda ops, a: ops.transpose(a, (2, 0, 1)), [(2, 4, 3)]),
    "matmul": (lambda ops, a, b: ops.matmul(a, b), [(2, 3), (3, 4)]),
    "matmul batch": (lambda ops, a, b: ops.matmul(a, b), [(5, 2, 3), (5, 3, 4)]),
    "matmul broadcast": (lambda ops, a, b: ops.matmul(a, b), [(5, 1, 2, 3), (6, 3, 4)]),
    "conv2d": (lambda ops, x, w, b: ops.conv2d(x, w, b, (1, 1), (0, 0)), [(2, 3, 5, 6), (4, 3, 3, 3), (4,)]),
    "conv2d stride": (lambda ops, x, w, b: ops.conv2d(x, w, b, (2, 2), (0, 0)), [(2, 3, 6, 7), (4, 3, 3, 3), (4,)]),
    "conv2d strides over": (
        lambda ops, x, w, b: ops.conv2d(x, w, b, (3, 3), (1, 1)),
        [(1, 2, 6, 8), (3, 2, 2, 2), (3,)],
    ),
    "conv2d padding": (lambda ops, x, w, b: ops.conv2d(x, w, b, (2, 2), (2, 2)), [(2, 1, 4, 4), (2, 1, 3, 3), (2,)]),
    "conv2d wide frame": (lambda ops, x, w, b: ops.conv2d(x, w, b, (1, 1), (2, 2)), [(1, 1, 2, 3), (2, 1, 1, 1), (2,)]),
    "sum": (lambda ops, a: ops.sum(a, 1), [(2, 3, 4)]),
    "sum last": (lambda ops, a: ops.sum(a, -1, keepdims=True), [(2, 3, 4)]),
    "sum two": (lambda ops, a: ops.sum(a, (0, 2)), [(2, 3, 4)]),
    "norm": (lambda ops, a: ops.norm(a, -1), [(2, 3, 4)]),
    "norm kept": (lambda ops, a: ops.norm(a, 1, keepdims=True), [(2, 3, 4)]),
    "sqrt": (lambda ops, a: ops.sqrt(a * a + 0.1), [(2, 3)]),
    "max": (lambda ops, a: ops.max(a, 1), [(2, 3, 4)]),
    "max kept": (lambda ops, a: ops.max(a, -1, keepdims=True), [(2, 3, 4)]),
    "log": (lambda ops, a: ops.log(a * a + 0.1), [(2, 3)]),
    "exp": (lambda ops, a: ops.exp(a), [(2, 3)]),
    "relu": (lambda ops, a: ops.relu(a), [(4, 5)]),
    "sigmoid": (lambda ops, a: ops.sigmoid(a), [(2, 3)]),
    "softmax": (lambda ops, a: ops.softmax(a, 0), [(3, 2, 4)]),
    "softmax last": (lambda ops, a: ops.softmax(a, -1), [(3, 4)]),
    "softmax leaky": (lambda ops, a: ops.softmax(a, 0, leaky=True), [(3, 2, 4)]),
    "argmax_one_hot": (lambda ops, a: ops.argmax_one_hot(a) * a, [(3, 4)]),
    "squash": (lambda ops, a: squash(ops, a), [(2, 3, 4)]),
    "lengths": (lambda ops, a: lengths(ops, a), [(2, 3, 4)]),
    "routing": (lambda ops, a: dynamic_routing(ops, a, 3), [(2, 5, 3, 4)]),
    "routing leaky": (lambda ops, a: dynamic_routing(ops, a, 4, leaky=True), [(2, 5, 3, 4)]),
}


def piece(name: str) -> tuple[Callable[..., Any], dict[str, np.ndarray], np.ndarray]:
    """One piece, its arrays, and weights that make a scalar of what it returns."""
    function, shapes = PIECES[name]
    rng = np.random.default_rng(len(name))
    arrays = {f"x{i}": rng.normal(size=shape) for i, shape in enumerate(shapes)}
    weights = rng.normal(size=function(NUMPY, *arrays.values()).shape)
    return function, arrays, weights


def weighed(ops: Any, y: Any, weights: Any) -> Any:
    return ops.sum(y * ops.asarray(weights), tuple(range(weights.ndim)))


@pytest.mark.parametrize("name", PIECES)
def test_gradient_is_the_limit_of_differences(name: str) -> None:
    function, arrays, weights = piece(name)
    _, gradients = value_and_gradients(
        NUMPY, lambda tape, x: weighed(tape, function(tape, *x.values()), weights), arrays
    )
    for key, array in arrays.items():
        for index in np.ndindex(array.shape):
            ends = []
            for step in (-1e-5, 1e-5):
                moved = array.copy()
                moved[index] += step
                ends.append(weighed(NUMPY, function(NUMPY, *(arrays | {key: moved}).values()), weights))
            slope = (ends[1] - ends[0]) / 2e-5
            assert gradients[key][index] == pytest.approx(slope, rel=GRADIENT, abs=GRADIENT), (key, index)


@pytest.mark.parametrize("name", PIECES)
def test_gradient_is_that_of_torch(name: str, torch_caps: ModuleType) -> None:
    function, arrays, weights = piece(name)
    _, gradients = value_and_gradients(
        NUMPY, lambda tape, x: weighed(tape, function(tape, *x.values()), weights), arrays
    )
    tensors = [torch_caps.asarray(array).requires_grad_() for array in arrays.values()]
    weighed(torch_caps, function(torch_caps, *tensors), weights).backward()
    close_gradients(gradients, dict(zip(arrays, (t.grad.numpy() for t in tensors), strict=True)), FLOAT64, each=True)


def test_a_constant_has_no_gradient_and_an_unused_parameter_a_zero_one() -> None:
    tape = Tape(NUMPY)
    x, unused = tape.variable(np.ones(3)), tape.variable(np.ones((2, 2)))
    y = tape.asarray(np.arange(3.0))
    gradients = tape.gradients(tape.sum(x * y, 0), {"x": x, "unused": unused})
    np.testing.assert_array_equal(gradients["x"], [0, 1, 2])
    np.testing.assert_array_equal(gradients["unused"], np.zeros((2, 2)))
    assert y.grad is None
    assert tape.made == []


# ------------------------------------------------------------------------------------------------ whole networks


def targets(spec: CapsNetSpec, batch: int, seed: int) -> np.ndarray:
    """Any number of classes present, as in MultiMNIST."""
    return np.random.default_rng(seed).integers(0, 2, (batch, spec.classes)).astype(np.float64)


def by_tape(caps: ModuleType, spec: CapsNetSpec, params: Any, x: np.ndarray, t: np.ndarray) -> tuple[float, Any]:
    """Loss and gradients through the tape over NumPy or CuPy."""
    arrays = {name: caps.asarray(p) for name, p in params.items()}
    loss, gradients = value_and_gradients(
        caps,
        lambda tape, p: objective(tape, spec, p, tape.asarray(caps.asarray(x)), tape.asarray(caps.asarray(t)))[0],
        arrays,
    )
    return float(loss), {name: caps.to_numpy(g) for name, g in gradients.items()}


def by_torch(torch_caps: ModuleType, spec: CapsNetSpec, params: Any, x: Any, t: Any) -> tuple[float, Any]:
    tensors = {name: torch_caps.asarray(p).requires_grad_() for name, p in params.items()}
    loss, _ = objective(torch_caps, spec, tensors, torch_caps.asarray(x), torch_caps.asarray(t))
    loss.backward()
    gradients = {name: np.zeros(p.shape) if p.grad is None else p.grad.numpy() for name, p in tensors.items()}
    return loss.item(), gradients


@pytest.mark.parametrize("below", ["numpy", "cupy"])
@given(spec=specs(), seed=SEEDS, batch=st.integers(1, 3))
def test_gradients_of_the_objective_are_those_of_torch(
    below: str, torch_caps: ModuleType, spec: CapsNetSpec, seed: int, batch: int
) -> None:
    caps = backend(below)
    params, x, t = random_params(spec, seed), random_images(spec, batch, seed), targets(spec, batch, seed)
    expected_loss, expected = by_torch(torch_caps, spec, params, x, t)
    loss, gradients = by_tape(caps, spec, params, x, t)
    assert loss == pytest.approx(expected_loss, rel=FLOAT64)
    close_gradients(gradients, expected, FLOAT64, each=True)
    assert {name: g.shape for name, g in gradients.items()} == spec.parameters


@given(spec=specs(iterations=3), seed=SEEDS, batch=st.integers(1, 3))
def test_gradients_in_float32_are_close(torch_caps: ModuleType, spec: CapsNetSpec, seed: int, batch: int) -> None:
    low, x = random_params(spec, seed, "float32"), random_images(spec, batch, seed, "float32")
    t = targets(spec, batch, seed).astype(np.float32)
    params = {name: p.astype(np.float64) for name, p in low.items()}
    _, expected = by_tape(NUMPY, spec, params, x.astype(np.float64), t.astype(np.float64))
    assume(max(np.abs(g).max() for g in expected.values()) > 0.1)  # what nearly cancels is rounding
    for _, gradients in (by_tape(NUMPY, spec, low, x, t), by_torch(torch_caps, spec, low, x, t)):
        assert all(g.dtype == np.float32 for g in gradients.values() if g.any())
        close_gradients(gradients, expected, GRADIENT)


@given_each(spec=specs(), seed=SEEDS, batch=st.integers(1, 3), dtype=DTYPES)
def test_the_losses_are_those_of_the_paper(
    caps: ModuleType, spec: CapsNetSpec, seed: int, batch: int, dtype: str
) -> None:
    params, x = random_params(spec, seed, dtype), random_images(spec, batch, seed, dtype)
    labels = np.random.default_rng(seed).integers(0, spec.classes, batch)
    t = np.eye(spec.classes, dtype=dtype)[labels]
    expected = oracle.network(plain(spec), params, x)
    margin = oracle.margin_loss(expected.lengths, t)
    arrays = {name: caps.asarray(p) for name, p in params.items()}

    def losses(arrays: Any, x: Any, t: Any) -> Any:
        return objective(caps, spec, arrays, x, t), objective(caps, spec, arrays, x, t, weight=0)

    (loss, found), (alone, _) = whole(caps, losses)(arrays, caps.asarray(x), caps.asarray(t))
    close(caps.to_numpy(found), expected.lengths, TOLERANCE[dtype])
    drawn = 0.0
    if spec.decoder is not None:
        pictures = oracle.reconstruct(plain(spec), params, expected.capsules, labels)
        drawn = oracle.reconstruction_loss(x.astype(np.float64), pictures)
    assert float(loss) == pytest.approx(margin + drawn, abs=TOLERANCE[dtype])
    assert float(alone) == pytest.approx(margin, abs=TOLERANCE[dtype])


def test_losses_by_hand(caps: ModuleType) -> None:
    rows = caps.asarray(np.array([[1.0, 0.3, 0.05], [0.5, 0.1, 0.0]]))
    t = caps.asarray(np.array([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]]))
    first, second = 0.5 * 0.2**2, 0.4**2 + 0.8**2
    assert float(MarginLoss()(caps, rows, t)) == pytest.approx((first + second) / 2, rel=1e-12)
    images, drawn = np.zeros((2, 1, 2, 2)), np.full((2, 1, 2, 2), 0.5)
    assert float(reconstruction_loss(caps, caps.asarray(images), caps.asarray(drawn))) == pytest.approx(0.0005)


# --------------------------------------------------------------------------------------------- gradients stay finite


@pytest.mark.parametrize("images", ["zeros", "ones", "1e20"])
@settings(max_examples=15)
@given(spec=specs(), seed=SEEDS, dtype=DTYPES, blank=st.booleans())
@example(spec=small_spec(), seed=0, dtype="float32", blank=True)
def test_gradients_stay_finite(
    torch_caps: ModuleType, images: str, spec: CapsNetSpec, seed: int, dtype: str, blank: bool
) -> None:
    params = random_params(spec, seed, dtype)
    if blank:  # without biases a black image leaves every vector of the network at zero
        params = {name: p * 0 if name.endswith("bias") else p for name, p in params.items()}
    x = np.full((2, *spec.input), {"zeros": 0, "ones": 1, "1e20": 1e20}[images], dtype)
    t = targets(spec, 2, seed).astype(dtype)
    weight = 0 if images == "1e20" else 0.0005  # the square of 1e20 is no float32
    tensors = {name: torch_caps.asarray(p).requires_grad_() for name, p in params.items()}
    loss, _ = objective(torch_caps, spec, tensors, torch_caps.asarray(x), torch_caps.asarray(t), weight)
    loss.backward()
    assert np.isfinite(loss.item())
    assert all(bool(p.grad.isfinite().all()) for p in tensors.values() if p.grad is not None)
    loss, gradients = value_and_gradients(
        NUMPY, lambda tape, p: objective(tape, spec, p, tape.asarray(x), tape.asarray(t), weight)[0], params
    )
    assert np.isfinite(loss)
    assert all(np.isfinite(g).all() for g in gradients.values())


# ------------------------------------------------------------------------------------------------------- training


def learn(caps: ModuleType, dtype: str, steps: int = 20, **spec: Any) -> tuple[list[float], dict[str, np.ndarray]]:
    net = caps.CapsNet(small_spec(**spec), random_params(small_spec(**spec)), dtype=dtype)
    learner = caps.Learner(net)
    losses = []
    for step in range(steps):
        x, t = random_images(net.spec, 4, step, dtype), np.eye(net.spec.classes)[[0, 1, 2, step % 3]].astype(dtype)
        loss, found = learner.step(x, t, 1e-3)
        assert found.shape == (4, net.spec.classes)
        losses.append(float(loss))
    return losses, {name: caps.to_numpy(p) for name, p in net.params.items()}


def test_twenty_steps_of_training_are_the_same(caps: ModuleType) -> None:
    expected, wanted = learn(NUMPY, "float64")
    losses, params = learn(caps, "float64")
    np.testing.assert_allclose(losses, expected, rtol=10 * FLOAT64)  # twenty steps carry each difference on
    for name, p in params.items():
        close(p, wanted[name], 10 * FLOAT64, name)
    assert losses[-1] < losses[0]


def test_training_in_float32_stays_in_float32(caps: ModuleType) -> None:
    expected, _ = learn(NUMPY, "float64")
    losses, params = learn(caps, "float32")
    np.testing.assert_allclose(losses, expected, rtol=GRADIENT)
    assert all(p.dtype == np.float32 for p in params.values())


def test_a_learner_goes_on_from_the_state_of_any_other(caps: ModuleType) -> None:
    """Ten steps on NumPy and ten more here, by way of what a checkpoint keeps, are twenty steps."""
    expected, _ = learn(NUMPY, "float64")
    spec = small_spec()
    net = NUMPY.CapsNet(spec, random_params(spec), dtype="float64")
    learner, losses = NUMPY.Learner(net), []
    for step in range(20):
        if step == 10:
            state = learner.state()
            net = caps.CapsNet(spec, net.params, dtype="float64")
            learner = caps.Learner(net)
            learner.restore(state, steps=10)
        x, t = random_images(spec, 4, step), np.eye(3)[[0, 1, 2, step % 3]]
        losses.append(float(learner.step(x, t, 1e-3)[0]))
    np.testing.assert_allclose(losses, expected, rtol=10 * FLOAT64)
    assert learner.steps == 20
    assert all(isinstance(array, np.ndarray) for array in learner.state().values())


def test_a_learner_starts_with_an_empty_state_and_keeps_its_own(caps: ModuleType) -> None:
    net = caps.CapsNet(small_spec(), dtype="float64")
    learner = caps.Learner(net)
    before = learner.state()
    assert set(before) == {f"{moment}.{name}" for name in net.params for moment in ("first", "second")}
    assert not any(array.any() for array in before.values())
    learner.restore(before, steps=0)
    kept = {name: array.copy() for name, array in before.items()}
    learner.step(random_images(net.spec, 4), np.eye(3)[[0, 1, 2, 0]], 1e-3)
    for name, array in before.items():  # a checkpoint does not change after it was taken
        np.testing.assert_array_equal(array, kept[name])


def test_one_step_without_a_decoder_or_with_the_reconstruction_off(caps: ModuleType) -> None:
    with_decoder = learn(caps, "float64", steps=3)[0]
    without = learn(caps, "float64", steps=3, decoder=None)[0]
    assert all(a > b for a, b in zip(with_decoder, without, strict=True))
    net = caps.CapsNet(small_spec(), random_params(small_spec()), dtype="float64")
    loss, _ = caps.Learner(net, reconstruction=0).step(random_images(net.spec, 4, 0), np.eye(3)[[0, 1, 2, 0]], 1e-3)
    assert float(loss) == pytest.approx(without[0], rel=FLOAT64)


def test_gradients_flow_through_every_iteration() -> None:
    """The couplings are no constants: along any direction the loss changes as the gradient says."""
    spec = small_spec(capsules=(DenseCaps(3, dim=4, routing=DynamicRouting(4)),), decoder=None)
    params, x, t = random_params(spec), random_images(spec, 2), np.eye(3)[:2]
    name, step = "capsules.0.weight", 1e-6
    direction = np.random.default_rng(0).normal(size=params[name].shape)
    ends = [
        float(objective(NUMPY, spec, params | {name: params[name] + sign * step * direction}, x, t)[0])
        for sign in (-1, 1)
    ]
    _, gradients = by_tape(NUMPY, spec, params, x, t)
    assert (gradients[name] * direction).sum() == pytest.approx((ends[1] - ends[0]) / (2 * step), rel=GRADIENT)
