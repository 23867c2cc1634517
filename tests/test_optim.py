"""Optimisers and schedules: NumPy's steps are PyTorch's, and every value survives JSON."""

from __future__ import annotations

import json
import math
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import FLOAT64, NUMPY, backend, close, random_images, random_params, small_spec

from capscore import AsCaps, CapsNetSpec, Conv, CrossEntropy, DenseCaps
from capscore.errors import ShapeError, SpecError
from capscore.optim import SGD, Adam, AdamW, Cosine, Exponential, OneCycle, Optimiser, Schedule, Slots, Steps
from capscore.routing import SelfRouting
from capscore.values import read, write

SPEC = small_spec()
OPTIMISERS = [
    Adam(),
    Adam(beta1=0.5, beta2=0.9, epsilon=1e-3),
    AdamW(decay=0.3),
    SGD(momentum=0.0),
    SGD(momentum=0.9, decay=0.1),
    SGD(momentum=0.8, nesterov=True),
    Adam(clip=0.05),
    SGD(clip=1e3),
]
SCHEDULES = [
    Exponential(0.5, 3, 1e-4),
    Cosine(end=0.1, warmup=2),
    OneCycle(),
    Steps((4, 9), 0.3),
    Steps((5,), warmup=3),
]
LOGITS = SelfRouting(logits=True)


class Signs(Optimiser):
    """An optimiser of somebody's own: it only looks at signs, and at the step before."""

    @property
    def slots(self) -> tuple[str, ...]:
        return ("before",)

    def update(self, ops: Any, p: Any, g: Any, slots: Slots, rate: float, step: int) -> tuple[Any, Slots]:
        size = ops.sqrt(g * g) + 1e-12
        return p - (g / size + slots["before"] * 0.5) * rate, {"before": g / size}


def learned(caps: ModuleType, optimiser: Optimiser, steps: int = 20, **options: Any) -> Any:
    """Return a learner after some steps, and the losses on the way."""
    net = caps.CapsNet(SPEC, random_params(SPEC, 3), dtype="float64")
    learner = caps.Learner(net, optimiser=optimiser, **options)
    x, t = random_images(SPEC, 5), np.eye(3)[[0, 1, 2, 0, 1]]
    return learner, [float(learner.step(x, t, 0.01)[0]) for _ in range(steps)]


@pytest.mark.parametrize("optimiser", [*OPTIMISERS, Signs()], ids=repr)
def test_twenty_steps_on_numpy_are_those_of_pytorch(optimiser: Optimiser) -> None:
    torch = backend("torch")
    ours, losses = learned(NUMPY, optimiser)
    theirs, found = learned(torch, optimiser)
    np.testing.assert_allclose(found, losses, rtol=0, atol=1e-9)
    assert losses[-1] < losses[0]
    for name, array in ours.state().items():
        close(theirs.state()[name], array, 1e-9, name)
    for name, p in ours.net.params.items():
        close(torch.to_numpy(theirs.net.params[name]), p, 1e-9, name)


@pytest.mark.parametrize("optimiser", [AdamW(decay=0.1), SGD(decay=0.1), Signs()], ids=repr)
def test_a_weight_without_a_part_in_the_loss_decays_everywhere(optimiser: Optimiser) -> None:
    """Self-routing that ends in logits has a matrix of poses that nobody asks for."""
    layers = (Conv(10, 3, activation="none"), AsCaps(2, 4, "none", True), DenseCaps(3, 4, LOGITS, bias=False))
    spec = CapsNetSpec((1, 8, 8), layers, None, CrossEntropy())
    found = []
    for name in ("numpy", "torch"):
        caps = backend(name)
        learner = caps.Learner(caps.CapsNet(spec, dtype="float64"), optimiser=optimiser)
        before = caps.to_numpy(learner.net.params["capsules.0.weight"]).copy()
        for _ in range(5):
            learner.step(random_images(spec, 3), np.eye(3), 0.1)
        found.append({key: caps.to_numpy(p) for key, p in learner.net.params.items()})
        assert isinstance(optimiser, Signs) or (np.abs(found[-1]["capsules.0.weight"]) < np.abs(before)).all()
    for key, array in found[0].items():
        close(found[1][key], array, 1e-9, key)


@pytest.mark.parametrize("name", ["numpy", "torch"])
@pytest.mark.parametrize("optimiser", [Adam(), AdamW(decay=0.3), SGD(), Signs()], ids=repr)
def test_a_learner_goes_on_from_its_state(name: str, optimiser: Optimiser) -> None:
    caps = backend(name)
    whole, losses = learned(caps, optimiser, 8, average=0.9)
    half, first = learned(caps, optimiser, 4, average=0.9)
    net = caps.CapsNet(SPEC, half.net.params, dtype="float64")
    again = caps.Learner(net, optimiser=optimiser, average=0.9)
    again.restore(half.state(), half.steps)
    x, t = random_images(SPEC, 5), np.eye(3)[[0, 1, 2, 0, 1]]
    assert first + [float(again.step(x, t, 0.01)[0]) for _ in range(4)] == losses
    for key, array in whole.state().items():
        np.testing.assert_array_equal(again.state()[key], array)


@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
def test_averaged_weights_are_there_while_they_are_asked_for(name: str) -> None:
    caps = backend(name)
    net = caps.CapsNet(SPEC, random_params(SPEC, 3), dtype="float64")
    learner = caps.Learner(net, average=0.4)
    x, t = random_images(SPEC, 5), np.eye(3)[[0, 1, 2, 0, 1]]
    mean = {key: caps.to_numpy(p).copy() for key, p in net.params.items()}
    for decay in (2 / 11, 3 / 12, 4 / 13, 5 / 14, 6 / 15, *[0.4] * 3):  # less in the first steps, which are far off
        learner.step(x, t, 0.05)
        mean = {key: decay * mean[key] + (1 - decay) * caps.to_numpy(p) for key, p in net.params.items()}
    own = {key: caps.to_numpy(p).copy() for key, p in net.params.items()}
    with learner.averaged():
        for key, p in net.params.items():
            close(caps.to_numpy(p), mean[key], FLOAT64, key)
    for key, p in net.params.items():
        np.testing.assert_array_equal(caps.to_numpy(p), own[key])


def test_clipping_shortens_all_gradients_together() -> None:
    gradients = {"a": np.array([3.0, 0.0]), "b": np.array([[4.0]])}
    short = Adam(clip=1.0).clipped(NUMPY, gradients)
    assert math.hypot(*short["a"], *short["b"][0]) == pytest.approx(1, rel=1e-6)
    assert short["a"][0] / short["b"][0, 0] == pytest.approx(3 / 4)
    beyond = Adam(clip=1.0).clipped(NUMPY, {"a": np.array([1e20, 1.0], np.float32)})  # its square is no float32
    np.testing.assert_allclose(beyond["a"], [1, 1e-20])
    for optimiser in (Adam(clip=100.0), Adam()):
        found = optimiser.clipped(NUMPY, gradients)
        np.testing.assert_array_equal(found["a"], gradients["a"])


# --------------------------------------------------------------------------------------------------------- schedules


def test_one_cycle_and_cosine_are_those_of_pytorch() -> None:
    torch = pytest.importorskip("torch")
    total = 40
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=0.5, total_steps=total, cycle_momentum=False)
    for step in range(total):
        assert OneCycle()(0.5, step, total) == pytest.approx(optimiser.param_groups[0]["lr"], rel=1e-12), step
        optimiser.step()
        if step + 1 < total:
            theirs.step()
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=total - 1)
    for step in range(total):
        assert Cosine()(0.5, step, total) == pytest.approx(optimiser.param_groups[0]["lr"], abs=1e-15), step
        optimiser.step()
        theirs.step()


def test_the_other_schedules() -> None:
    assert [Steps((2, 4), 0.1)(1.0, step, 6) for step in range(6)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert Exponential(0.96, 2000, 1e-6)(1e-3, 2000, 10**6) == pytest.approx(0.96e-3)
    assert Exponential(0.96, 2000, 1e-6)(1e-3, 10**6, 10**6) == 1e-6
    assert [Steps((9,), warmup=3)(1.0, step, 9) for step in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1, 1])


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("total", [1, 2, 3, 100])
def test_rates_are_positive_numbers_for_every_length_of_a_training(schedule: Schedule, total: int) -> None:
    rates = [schedule(0.1, step, total) for step in range(total + 2)]
    assert all(0 <= rate <= 0.1 for rate in rates)


# ------------------------------------------------------------------------------------------------------------ values


@pytest.mark.parametrize("value", [*OPTIMISERS, *SCHEDULES], ids=repr)
def test_they_survive_json(value: Any) -> None:
    assert read(json.loads(json.dumps(write(value))), "it") == value


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Adam(beta1=1.0), "Adam: beta1 must be a number from 0 to 1, not 1.0"),
        (lambda: Adam(clip=0), "Adam: clip must be a number"),
        (lambda: SGD(momentum=0, nesterov=True), "nesterov needs a momentum above 0"),
        (lambda: AdamW(decay=-1), "AdamW: decay must be"),
        (lambda: Steps((0,)), "Steps: at must be whole numbers from 1"),
        (lambda: Cosine(warmup=-1), "Cosine: warmup must be a whole number from 0"),
        (lambda: OneCycle(rise=2), "OneCycle: rise must be a number from 0 to 1"),
    ],
)
def test_messages(build: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        build()


@pytest.mark.parametrize("average", [1.0, -0.1, "0.9", None])
def test_an_average_that_is_none(average: Any) -> None:
    with pytest.raises(ShapeError, match="average must be a number from 0"):
        NUMPY.Learner(NUMPY.CapsNet(SPEC), average=average)
