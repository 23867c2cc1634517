"""A network for colour images of 64×64: batch norm, residual stem, depthwise capsules, convolutional decoder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import oracle
import pytest
from conftest import FLOAT32, FLOAT64, NUMPY, backend, close, plain
from test_train import stopping

from capscore import BatchNorm, CapsNetSpec, Conv, ConvDecoder, DenseCaps, Dropout, MaxPool, PrimaryCaps, Residual
from capscore.agree import verify
from capscore.data import Dataset
from capscore.layer import Grid
from capscore.train import LAST, Recipe, train

# No bias before a normalisation: its gradient is rounding, which Adam divides by rounding.
LINEAR: dict[str, Any] = {"activation": "none", "bias": False}
SPEC = CapsNetSpec(
    (3, 64, 64),
    (
        Conv(4, 3, stride=2, padding=1, **LINEAR),
        BatchNorm(activation="relu"),
        Residual(
            (
                Conv(4, 3, stride=2, padding=1, groups=4, **LINEAR), BatchNorm(activation="silu"),
                Conv(8, 1, **LINEAR), BatchNorm(),
            ),
            (Conv(8, 1, stride=2, **LINEAR), BatchNorm()),
        ),
        MaxPool(2),
        PrimaryCaps(types=2, dim=4, kernel=8, groups=8),
        DenseCaps(3, dim=4),
    ),
    ConvDecoder((4, 3, 3), kernel=3),
)  # fmt: skip
STATISTICS = [name for name, param in SPEC.params.items() if not param.learns]


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 64, 64)).astype(np.uint8)


def targets(count: int, step: int = 0) -> np.ndarray:
    return np.eye(3)[(np.arange(count) + step) % 3]


def learned(caps: ModuleType) -> tuple[list[float], dict[str, np.ndarray]]:
    """Losses of twenty steps, and the parameters after them."""
    net = caps.CapsNet(SPEC, seed=1, dtype="float64")
    learner = caps.Learner(net)
    losses = [float(learner.step(images(4, step) / 255, targets(4, step), 1e-3)[0]) for step in range(20)]
    return losses, {name: caps.to_numpy(p) for name, p in net.params.items()}


@pytest.fixture(scope="module")
def reference() -> tuple[list[float], dict[str, np.ndarray]]:
    return learned(NUMPY)


def test_the_primary_capsules_are_one_position() -> None:
    rows = {row.name: row for row in SPEC.rows}
    assert rows["primary"].output == Grid(2, 1, 1, 4)
    assert SPEC.parameters["primary.weight"] == (8, 1, 8, 8)
    assert SPEC.decoder_rows[-1].output == (3, 64, 64)
    assert len(STATISTICS) == 8


def test_twenty_steps_are_the_same_on_every_backend(caps: ModuleType, reference: Any) -> None:
    losses, params = learned(caps)
    np.testing.assert_allclose(losses, reference[0], rtol=10 * FLOAT64)
    for name, array in reference[1].items():
        close(params[name], array, 10 * FLOAT64, name)
    fresh = NUMPY.CapsNet(SPEC, seed=1).params
    assert all((params[name] != fresh[name]).any() for name in params)  # statistics too
    assert losses[-1] < losses[0]


def test_what_was_trained_is_what_the_loops_say(reference: Any) -> None:
    x = images(2, 9) / 255
    net = NUMPY.CapsNet(SPEC, reference[1], dtype="float64")
    expected = oracle.network(plain(SPEC), reference[1], x)
    out = net(x)
    close(out.lengths, expected.lengths, FLOAT64)
    drawn = oracle.reconstruct(plain(SPEC), reference[1], expected.capsules, [0, 2])
    close(net.reconstruct(out.capsules, [0, 2]), drawn, FLOAT64)


def test_it_is_saved_loaded_verified_and_exported(
    caps: ModuleType, reference: Any, onnx_export: ModuleType, runtime: ModuleType, tmp_path: Path
) -> None:
    net = caps.CapsNet(SPEC, reference[1])
    net.save(tmp_path / "model.safetensors")
    again = caps.load(tmp_path / "model.safetensors")
    assert again.spec == SPEC
    for name, array in net.params.items():
        np.testing.assert_array_equal(caps.to_numpy(again.params[name]), caps.to_numpy(array))
    report = onnx_export.export(again, tmp_path / "model.onnx")  # which verifies, with 1, 2 and 7 images
    assert set(report.differences) == {"lengths", "capsules", "reconstruction"}
    import onnx

    kinds = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert kinds.index("MaxPool") == 9  # 5 convolutions with their activations: normalisation has left no node
    x = images(3).astype(np.float32) / 255
    close(runtime.Session(tmp_path / "model.onnx")(x).lengths, caps.to_numpy(net(x).lengths), FLOAT32)


def test_it_is_verified(reference: Any) -> None:
    from capscore.modelfile import Model

    rows = verify(Model(SPEC, reference[1], ("a", "b", "c"), {}))
    assert {"numpy", "torch", "ONNX Runtime"} <= {row.engine for row in rows}
    assert all(row.agrees for row in rows)


def test_what_is_dropped_follows_from_the_seed(caps: ModuleType) -> None:
    spec = SPEC.replace(layers=(*SPEC.layers[:3], Dropout(0.3), *SPEC.layers[3:]))

    def loss(seed: int, module: ModuleType = caps) -> float:
        learner = module.Learner(module.CapsNet(spec, seed=1, dtype="float64"))
        learner.seed = seed
        return [float(learner.step(images(4) / 255, targets(4), 1e-3)[0]) for _ in range(2)][1]

    assert loss(1) == loss(1) != loss(2)
    assert loss(1) == pytest.approx(loss(1, NUMPY), rel=10 * FLOAT64)


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_it_is_resumed_to_the_bit(name: str, tmp_path: Path) -> None:
    """Within an epoch, running statistics, dropout and all."""
    caps = backend(name)
    data = Dataset(images(20), np.arange(20) % 3, ("a", "b", "c"))
    recipe = Recipe(epochs=2, batch=8, seed=2)
    spec = SPEC.replace(layers=(*SPEC.layers[:3], Dropout(0.3), *SPEC.layers[3:]))

    def run(folder: str, stop: int = 0, resume: bool = False) -> dict[str, np.ndarray]:
        net = caps.CapsNet(spec, seed=recipe.seed, classes=data.classes)
        learner = stopping(caps.Learner(net, recipe.reconstruction), stop)
        train(net, learner, data, replace(data, images=data.images[:6], labels=data.labels[:6]), recipe,
              tmp_path / folder, resume)  # fmt: skip
        assert learner.seed == recipe.seed
        return {key: caps.to_numpy(value) for key, value in net.params.items()}

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("cut", stop=4)
    assert (tmp_path / "cut" / LAST).exists()
    resumed = run("cut", resume=True)
    for key, array in whole.items():
        np.testing.assert_array_equal(resumed[key], array, err_msg=key)
