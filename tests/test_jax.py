"""The jax backend as JAX's users meet it: immutable arrays, dictionaries of parameters, whole steps compiled."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from conftest import (
    FLOAT32,
    FLOAT64,
    GRADIENT,
    NUMPY,
    TOLERANCE,
    backend,
    close,
    close_gradients,
    need,
    random_images,
    random_params,
)
from test_grad import PIECES, piece, weighed
from test_ops import HUGE, SIZES, TINY

from capscore import (
    BatchNorm,
    CapsNetSpec,
    Conv,
    CrossEntropy,
    Decoder,
    DenseCaps,
    Dropout,
    DynamicRouting,
    GroupNorm,
    Linear,
    MaxPool,
    PrimaryCaps,
    Residual,
    SpreadLoss,
)
from capscore.errors import BackendError
from capscore.grad import Tape, value_and_gradients
from capscore.layer import Layer, Plan
from capscore.model import objective
from capscore.ops import to_host
from capscore.squash import lengths, squash

jax = need("jax", "jax")
ops = backend("jax")

CAPSULES = PrimaryCaps(2, 3, kernel=2), DenseCaps(3, dim=4, routing=DynamicRouting(2))
SPEC = CapsNetSpec((1, 4, 5), (Conv(3, kernel=2), *CAPSULES), Decoder((5,)))
STEM = (
    Conv(4, kernel=2),
    BatchNorm(activation="relu"),
    MaxPool(2, stride=1),
    Residual((Conv(4, kernel=3, padding="same", groups=4, bias=False), GroupNorm(2), Dropout(0.3))),
    Dropout(0.2, whole=True),
)
EVERYTHING = CapsNetSpec((1, 6, 5), (*STEM, *CAPSULES), None)


def learn(caps: Any, spec: CapsNetSpec, dtype: str = "float64", steps: int = 20) -> tuple[list[float], dict[str, Any]]:
    net = caps.CapsNet(spec, seed=1, dtype=dtype)
    learner, losses = caps.Learner(net), []
    for step in range(steps):
        t = np.eye(spec.classes)[[0, 1, 2, step % 3]]
        losses.append(float(learner.step(random_images(spec, 4, step, dtype), t, 1e-3)[0]))
    return losses, {name: caps.to_numpy(p) for name, p in net.params.items()}


# ------------------------------------------------------------------------------------------------------- arithmetic


def test_float32_stays_float32_beside_the_numbers_of_python() -> None:
    x = ops.asarray(np.ones((2, 3), np.float32))
    assert ops.asarray(np.ones(2)).dtype == np.float64
    for y in (x * 2, x / 3, x - 0.5, x + 1, ops.sum(x, 0) / 7, ops.max_pool(x[None, None], (2, 2), (1, 1), (1, 1))):
        assert y.dtype == np.float32


def test_bfloat16_leaves_as_float32() -> None:
    x = jax.numpy.array([1.5, -2.0], "bfloat16")
    assert to_host(x).dtype == np.float32
    np.testing.assert_array_equal(NUMPY.asarray(x), [1.5, -2])
    np.testing.assert_array_equal(ops.to_numpy(x), [1.5, -2])


def test_an_array_shares_no_memory_with_what_it_was_made_of() -> None:
    x = np.zeros((64, 64))
    y = ops.asarray(x)
    x += 1
    assert not ops.to_numpy(y).any()


@pytest.mark.parametrize("name", PIECES)
def test_gradient_is_that_of_the_tape(name: str) -> None:
    function, arrays, weights = piece(name)
    _, expected = value_and_gradients(
        NUMPY, lambda tape, x: weighed(tape, function(tape, *x.values()), weights), arrays
    )
    slope = jax.jit(jax.grad(lambda x: weighed(ops, function(ops, *x.values()), weights)))
    found = slope({key: ops.asarray(x) for key, x in arrays.items()})
    close_gradients({key: ops.to_numpy(g) for key, g in found.items()}, expected, FLOAT64, each=True)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("function", ["norm", "squash", "lengths of squash"])
def test_gradients_at_every_size(function: str, dtype: str) -> None:
    """Finite, and those of the tape. (From 8.5e37 on squash is zero in float32: its divisor is 0 to XLA.)"""
    call = {
        "norm": lambda o, s: o.norm(s, -1),
        "squash": lambda o, s: o.sum(squash(o, s), -1),
        "lengths of squash": lambda o, s: lengths(o, squash(o, s)),
    }[function]
    slope = jax.jit(jax.grad(lambda s: call(ops, s).sum()))
    for size in (*SIZES, TINY[dtype], *([HUGE[dtype]] if function == "norm" or dtype == "float64" else [])):
        x = (np.array([[0.6, 0.0, -0.8], [0.0, 1.0, 0.0]]) * size).astype(dtype)
        tape = Tape(NUMPY)
        variable = tape.variable(x)
        expected = tape.gradients(tape.sum(call(tape, variable), 0), {"x": variable})["x"]
        found = ops.to_numpy(slope(x))
        assert found.dtype == dtype
        assert np.isfinite(found).all()
        close(found, expected, TOLERANCE[dtype], f"{function} at {size}")


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_gradient_of_a_pool_goes_to_the_first_of_equals(dtype: str) -> None:
    x = np.random.default_rng(0).integers(0, 3, (2, 3, 7, 6)).astype(dtype)
    settings = (3, 2), (2, 1), (1, 1)
    _, expected = value_and_gradients(
        NUMPY, lambda tape, p: tape.sum(tape.max_pool(p["x"], *settings) * 1.5, (0, 1, 2, 3)), {"x": x}
    )
    found = jax.grad(lambda x: ops.max_pool(x, *settings).sum() * 1.5)(ops.asarray(x))
    np.testing.assert_array_equal(ops.to_numpy(found), expected["x"])


# --------------------------------------------------------------------------------------------------------- training


@pytest.fixture
def optimised() -> Iterator[None]:
    """As users compile."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.mark.parametrize(
    "spec", [EVERYTHING, SPEC.replace(loss=SpreadLoss(steps=9)), SPEC.replace(loss=CrossEntropy(scale=8))]
)
def test_twenty_steps_of_every_kind_of_layer_and_loss(spec: CapsNetSpec, optimised: None) -> None:
    """Running statistics, what Dropout draws and a margin that grows included."""
    expected, wanted = learn(NUMPY, spec)
    losses, params = learn(ops, spec)
    np.testing.assert_allclose(losses, expected, rtol=10 * FLOAT64)
    for name, p in params.items():
        close(p, wanted[name], 10 * FLOAT64, name)
    assert list(params) == list(spec.parameters)


def test_statistics_and_growing_margins_stay_in_float32() -> None:
    spec = EVERYTHING.replace(loss=SpreadLoss(steps=3))
    expected, _ = learn(NUMPY, spec, "float64", 4)
    losses, params = learn(ops, spec, "float32", 4)
    np.testing.assert_allclose(losses, expected, rtol=GRADIENT)
    assert {p.dtype.name for p in params.values()} == {"float32"}


def test_dropout_draws_anew_in_every_compiled_step() -> None:
    """At rate 0 nothing changes, so losses tell the masks apart."""
    spec = CapsNetSpec((1, 4, 4), (Dropout(0.5), *CAPSULES), None)
    x, t = random_images(spec, 4), np.eye(3)[[0, 1, 2, 0]]
    losses = []
    for caps in (NUMPY, ops):
        learner = caps.Learner(caps.CapsNet(spec, random_params(spec), dtype="float64"))
        losses.append([float(learner.step(x, t, 0.0)[0]) for _ in range(5)])
    np.testing.assert_allclose(losses[1], losses[0], rtol=FLOAT64)
    assert len(set(losses[1])) == 5


COUNTED: list[str] = []


@dataclass(frozen=True)
class Counted(Layer):
    """A layer that tells when its Python runs."""

    quantises: ClassVar[bool] = False

    def plan(self, x: Any) -> Plan:
        return Plan(x, {}, 0)

    def __call__(self, ops: Any, p: Mapping[str, Any], x: Any, run: Any) -> Any:
        COUNTED.append("training" if run.training else "inference")
        return x


def test_steps_and_networks_of_one_shape_are_compiled_once() -> None:
    COUNTED.clear()
    spec = SPEC.replace(layers=(Counted(), *CAPSULES))
    net = ops.CapsNet(spec)
    learner, t = ops.Learner(net), np.eye(3)[[0, 1]]
    for step in range(4):
        learner.step(random_images(spec, 2, step), t, 1e-3 / (step + 1))
    assert COUNTED == ["training"]
    for seed in range(3):
        ops.CapsNet(spec, seed=seed)(random_images(spec, 2, seed))
        net(random_images(spec, 2, seed))
    assert COUNTED == ["training", "inference"]
    net(random_images(spec, 3))
    assert COUNTED == ["training", "inference", "inference"]


def test_training_puts_other_parameters_in_their_place_and_writes_into_none() -> None:
    spec = SPEC
    net = ops.CapsNet(spec, random_params(spec), dtype="float64")
    before = net.params
    kept = {name: np.array(p) for name, p in before.items()}
    learner = ops.Learner(net)
    learner.step(random_images(spec, 4), np.eye(3)[[0, 1, 2, 0]], 1e-2)
    assert net.params is not before
    assert list(net.params) == list(spec.parameters)
    for name, p in before.items():
        np.testing.assert_array_equal(p, kept[name])
        assert (np.asarray(net.params[name]) != kept[name]).any()
    net.assign(kept)
    other = copy.deepcopy(net)
    learner.step(random_images(spec, 4), np.eye(3)[[0, 1, 2, 0]], 1e-2)  # of the assigned ones
    assert any((np.asarray(p) != kept[name]).any() for name, p in net.params.items())
    for name, p in other.params.items():
        np.testing.assert_array_equal(p, kept[name])


def test_a_learner_learns_what_was_assigned_after_it_was_made() -> None:
    spec = SPEC
    for caps in (NUMPY, ops):
        net = caps.CapsNet(spec, seed=0, dtype="float64")
        learner = caps.Learner(net)
        net.assign({name: np.zeros(shape) for name, shape in spec.parameters.items()})
        learner.step(random_images(spec, 4), np.eye(3)[[0, 1, 2, 0]], 1e-3)
        assert all(np.abs(caps.to_numpy(p)).max() < 2e-3 for p in net.params.values())


# --------------------------------------------------------------------------------------------------- in JAX's hands


def test_parameters_are_a_pytree_for_jax_s_own_transformations() -> None:
    spec = SPEC
    net = ops.CapsNet(spec, random_params(spec), dtype="float64")
    x, t = ops.asarray(random_images(spec, 3)), ops.asarray(np.eye(3))
    _, expected = value_and_gradients(
        NUMPY,
        lambda tape, p: objective(tape, spec, p, tape.asarray(x), tape.asarray(t))[0],
        random_params(spec),
    )
    found = jax.jit(jax.grad(lambda p: objective(ops, spec, p, x, t)[0]))(net.params)
    close_gradients({name: np.asarray(found[name]) for name in expected}, expected, FLOAT64, each=True)
    each = jax.vmap(lambda image: net(image[None]).lengths[0])(x)
    close(np.asarray(each), np.asarray(net(x).lengths), FLOAT64)


def test_a_network_without_capsules_runs_and_predicts() -> None:
    spec = CapsNetSpec((1, 5, 4), (Conv(3, 2), Linear(4, "none")), None, CrossEntropy())
    x = random_images(spec, 3, dtype="float32")
    close(ops.CapsNet(spec).predict(x, batch=2), NUMPY.CapsNet(spec).predict(x), FLOAT32)


def test_fast_convolutions_are_refused_with_the_backends_that_have_them() -> None:
    with pytest.raises(BackendError, match="no fast_conv; numpy, cupy and torch have it"):
        ops.CapsNet(SPEC, fast_conv="6x6")
