"""A layer and a routing that exist in this file alone: trained, saved, loaded, inspected, verified and exported."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
from conftest import FLOAT32, FLOAT64, NUMPY, backend, close
from typer.testing import CliRunner

from capscore import CapsNetSpec, Conv, Decoder, DenseCaps, PrimaryCaps
from capscore.cli import app
from capscore.data import load
from capscore.errors import ShapeError, SpecError
from capscore.grad import value_and_gradients
from capscore.init import Constant, HeNormal
from capscore.layer import Capsules, Layer, Map, Param, Plan, Run, Shape, need_map
from capscore.model import objective
from capscore.net import init_params
from capscore.ops import A, Ops, scope
from capscore.routing import Routing, Votes, VotesShape
from capscore.squash import lengths, squash
from capscore.train import BEST, LOG
from capscore.values import check_numbers, check_whole


@dataclass(frozen=True)
class ChannelGate(Layer):
    """Every channel of a map times a number between 0 and 1 that depends on the means of all channels."""

    quantises: ClassVar[bool] = False

    def plan(self, x: Shape) -> Plan:
        """Return the same shape."""
        c, h, w = need_map(self, x)
        params = {"weight": Param((c, c), HeNormal()), "bias": Param((c,), Constant(1.0))}
        return Plan(x, params, 2 * c * h * w + c * c)

    def __call__(self, ops: Ops[A], p: Mapping[str, A], x: A, run: Run) -> A:
        """Return a map of the same shape."""
        assert isinstance(run.input, Map)
        c, h, w = run.input
        means = ops.sum(x, (2, 3)) / (h * w)  # [B, C]
        gate = ops.sigmoid(ops.matmul(means, ops.transpose(p["weight"], (1, 0))) + p["bias"])
        return x * ops.reshape(gate, (-1, c, 1, 1))


@dataclass(frozen=True)
class PriorRouting(Routing):
    """Routing by agreement whose logits start at what it has learned; so does the length that counts as present."""

    activates: ClassVar[bool] = True

    iterations: int = 2
    sharpness: float = 8.0

    def __post_init__(self) -> None:
        """Check the settings."""
        check_whole(self, "iterations", most=20)
        check_numbers(self, "sharpness", least=0.1, most=100)

    def params(self, votes: VotesShape) -> dict[str, Param]:
        """Return a logit for every pair of capsules, and a length for every output capsule."""
        return {
            "prior": Param((votes.n_out, votes.n_in), Constant(0.0)),
            "threshold": Param((votes.n_out,), Constant(0.3)),
        }

    def multiply_adds(self, votes: VotesShape) -> int:
        """Return the multiply-adds of one image."""
        return 2 * self.iterations * votes.n_in * votes.n_out * votes.d_out * votes.d_in

    def __call__(self, ops: Ops[A], votes: Votes[A], p: Mapping[str, A], run: Run) -> Capsules[A]:
        """Route the votes to output capsules [B, J, D] with activations [B, J]."""
        v = squash(ops, votes.combine(1 / votes.n_out))  # [J, B, D]
        run.iteration(1 / votes.n_out, v)
        logits = ops.reshape(p["prior"], (votes.n_out, 1, votes.n_in))
        for r in range(self.iterations):
            with scope(ops, f"route/{r}"):
                logits = logits + votes.agree(v)  # [J, B, N]
                c = ops.softmax(logits, 0)
                v = squash(ops, votes.combine(c))
            run.iteration(c, v)
        pose = ops.transpose(v, (1, 0, 2))  # [B, J, D]
        activation = ops.sigmoid((lengths(ops, pose) - p["threshold"]) * self.sharpness)
        return Capsules(pose, activation)


SPEC = CapsNetSpec(
    (1, 28, 28),
    (Conv(6, 5, stride=2), ChannelGate(), PrimaryCaps(3, 4, 5, stride=2), DenseCaps(10, 5, PriorRouting())),
    Decoder((8,)),
)


def say(*args: Any) -> str:
    """Run the command in this process, where the classes are known, and return what it prints."""
    done = CliRunner().invoke(app, [str(arg) for arg in args], env={"COLUMNS": "200"})
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some digits and the spec, as files."""
    folder = tmp_path_factory.mktemp("one")
    learn, test = load("digits")
    arrays = {"train_images": learn.images[:96], "train_labels": learn.labels[:96]}
    np.savez(folder / "some.npz", **arrays, test_images=test.images[:40], test_labels=test.labels[:40])
    (folder / "spec.json").write_text(SPEC.to_json())
    return folder


def trained(folder: Path, name: str) -> Path:
    """Return the folder of a training by a backend."""
    backend(name)  # or skip
    if not (folder / name).exists():
        how = {"data": folder / "some.npz", "epochs": 2, "batch": 16, "dtype": "float64", "backend": name}
        options = [word for key, value in how.items() for word in (f"--{key}", value)]
        say("train", "--spec", folder / "spec.json", "--out", folder / name, *options)
    return folder / name


@pytest.fixture(scope="module")
def other(folder: Path) -> Path:
    """Return the file of a network whose highest score is not that of its longest capsule."""
    params = NUMPY.load(trained(folder, "numpy") / BEST).params
    thresholds = np.linspace(0, 1, 10).astype(np.float32)
    NUMPY.CapsNet(SPEC, params | {"capsules.0.routing.threshold": thresholds}).save(folder / "other.safetensors")
    return folder / "other.safetensors"


def test_it_survives_json_and_checks_itself() -> None:
    assert CapsNetSpec.from_json(SPEC.to_json()) == SPEC
    with pytest.raises(SpecError, match=r"layers\.3\.routing: PriorRouting: iterations must be a whole number from 1"):
        CapsNetSpec.from_json(SPEC.to_json().replace('"iterations": 2', '"iterations": 2000'))
    with pytest.raises(SpecError, match=r"layers\.3: ChannelGate takes a map, not Grid.*put it before"):
        SPEC.replace(layers=(*SPEC.layers[:3], ChannelGate(), SPEC.layers[3]))


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_it_trains_alike_on_every_backend(folder: Path, name: str) -> None:
    folders = [trained(folder, name) for name in ("numpy", name)]
    logs = [[json.loads(line) for line in (run / LOG).read_text().splitlines()] for run in folders]
    for a, b in zip(*logs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=10 * FLOAT64)
    assert logs[0][1]["loss"] < logs[0][0]["loss"]
    one, two = (NUMPY.load(run / BEST, dtype="float64") for run in folders)
    assert one.spec == SPEC
    fresh = init_params(SPEC)
    for key, p in one.params.items():
        close(two.params[key], p, 10 * FLOAT64, key)
        assert (p != fresh[key]).any(), key  # the routing's too: capsules.0.routing.prior
    assert {"stem.1.weight", "capsules.0.routing.prior", "capsules.0.routing.threshold"} <= set(one.params)


def test_its_gradients_are_those_of_torch(torch_caps: ModuleType) -> None:
    params = {name: p + 0.01 for name, p in init_params(SPEC, 1).items()}
    x, t = np.random.default_rng(0).random((3, *SPEC.input)), np.eye(10)[:3]
    _, found = value_and_gradients(
        NUMPY, lambda tape, p: objective(tape, SPEC, p, tape.asarray(x), tape.asarray(t))[0], params
    )
    tensors = {name: torch_caps.asarray(p).requires_grad_() for name, p in params.items()}
    objective(torch_caps, SPEC, tensors, torch_caps.asarray(x), torch_caps.asarray(t))[0].backward()
    for name, tensor in tensors.items():
        close(found[name], tensor.grad.numpy(), 1e-9 * np.abs(tensor.grad.numpy()).max(), name)


def test_every_backend_computes_the_same(caps: ModuleType, folder: Path) -> None:
    x = np.random.default_rng(0).random((3, *SPEC.input))
    model = trained(folder, "numpy") / BEST
    wanted = NUMPY.load(model, dtype="float64")(x, couplings=True)
    out = caps.load(model, dtype="float64")(x, couplings=True)
    for found, array in ((out.scores, wanted.scores), (out.lengths, wanted.lengths), (out.capsules, wanted.capsules)):
        close(caps.to_numpy(found), array, FLOAT64)
    for found, array in zip(out.couplings[0], wanted.couplings[0], strict=True):
        close(caps.to_numpy(found), array, FLOAT64)
    assert len(out.couplings[0]) == 3
    assert np.abs(wanted.scores - wanted.lengths).max() > 0.01  # activations and lengths are two things


def test_the_capsule_of_the_highest_score_is_drawn(caps: ModuleType, other: Path) -> None:
    net, x = caps.load(other), np.random.default_rng(0).random((3, *SPEC.input)).astype(np.float32)
    out = net(x)
    highest, longest = (caps.to_numpy(found).argmax(1) for found in (out.scores, out.lengths))
    assert (highest != longest).any()
    drawn, wanted = (caps.to_numpy(x) for x in (net.reconstruct(out), net.reconstruct(out.capsules, highest)))
    np.testing.assert_array_equal(drawn, wanted)
    with pytest.raises(ShapeError, match=r"lack the activations .* give all that the network said"):
        net.reconstruct(out.capsules)


@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
def test_the_command_line_knows_it(folder: Path, name: str) -> None:
    model = trained(folder, name) / BEST
    told = say("inspect", model)
    assert "ChannelGate" in told
    assert f"{SPEC.parameter_count:,}" in told
    assert "differs" not in say("verify", model)
    assert "test images" in say("eval", model, "--data", folder / "some.npz", "--backend", name)


def test_verify_goes_by_the_scores(other: Path) -> None:
    assert "differs" not in say("verify", other)


@pytest.mark.parametrize(
    ("name", "precision"), [("torch", "fp32"), ("torch", "fp16"), ("torch", "int8"), ("jax", "fp32")]
)
def test_it_is_exported(folder: Path, name: str, precision: str, runtime: ModuleType) -> None:
    model, path = trained(folder, name) / BEST, folder / f"{name}-{precision}.onnx"
    told = say("export", model, path, "--precision", precision, "--data", folder / "some.npz")
    assert "scores" in told  # verified like every output
    session = runtime.Session(path)
    assert session.spec == SPEC
    x = np.random.default_rng(1).random((3, *SPEC.input)).astype(np.float32)
    net = NUMPY.load(model, dtype="float64")
    expected, out = net(x), session(x)
    allowed = {"fp32": FLOAT32, "fp16": 5e-3, "int8": 0.2}[precision]
    close(out.scores, expected.scores, allowed)
    close(out.lengths, expected.lengths, allowed)
    np.testing.assert_allclose(session.predict(x), net.predict(x), atol=allowed)
    if precision == "fp32":
        close(out.reconstruction, net.reconstruct(expected.capsules, expected.scores.argmax(1)), FLOAT32)
        say("export", model, path, "--outputs", "scores,couplings")
        told = runtime.Session(path)(x).couplings[0]
        for found, wanted in zip(told, net(x, couplings=True).couplings[0][1:], strict=True):
            close(found, wanted, FLOAT32)
