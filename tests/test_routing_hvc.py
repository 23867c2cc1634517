"""Homogeneous vector capsules, and branches whose scores are added: see `routing_proof`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import oracle
import pytest
from conftest import FLOAT64, NUMPY, close
from routing_proof import Proof

from capscore import (
    PRESETS,
    AsCaps,
    BatchNorm,
    BranchScores,
    CapsNetSpec,
    Conv,
    CrossEntropy,
    Decoder,
    Grid,
    HomogeneousCaps,
    PrimaryCaps,
    Residual,
)
from capscore.errors import SpecError
from capscore.layer import Capsules, Row, Run

STEM = Conv(4, 5, stride=2)


def summed(weight: np.ndarray, poses: np.ndarray) -> np.ndarray:
    """y_j = Σ_i w_ij ⊙ x_i: [J, D]."""
    y = np.zeros(weight.shape[1:])
    for i, j, d in np.ndindex(*weight.shape):
        y[j, d] += weight[i, j, d] * poses[i, d]
    return y


def settled(how: Mapping[str, Any], p: Mapping[str, Any], x: float, d: int) -> float:
    """A number after the normalisation with running statistics, and the activation after that."""
    y = (x - p["norm.mean"][d]) / math.sqrt(p["norm.variance"][d] + how["epsilon"])
    y = y * p["norm.weight"][d] if how["scale"] else y
    y = y + p["norm.bias"][d] if how["shift"] else y
    return float(oracle.activation(np.array([y]), how["activation"])[0])


def homogeneous(how: Mapping[str, Any], p: Mapping[str, Any], x: oracle.Caps) -> oracle.Caps:
    y = summed(p["weight"], x.pose.reshape(-1, x.pose.shape[-1]))
    v = np.array([[settled(how["norm"], p, n, d) for d, n in enumerate(row)] for row in y])
    return oracle.Caps(v[:, None, None])


def scores(how: Mapping[str, Any], p: Mapping[str, Any], x: oracle.Caps) -> np.ndarray:
    poses = x.pose.reshape(-1, x.pose.shape[-1])
    return np.array([settled(how["norm"], p, oracle.length(v) * p["weight"][0], 0) for v in poses])


def branches(how: Mapping[str, Any], p: Mapping[str, Any], x: np.ndarray) -> np.ndarray:
    """The sum of what both ways make of one image."""
    ends = []
    for way in ("layers", "shortcut"):
        y: Any = x
        for i, layer in enumerate(how[way]):
            own = oracle.part(p, f"{way}.{i}.")
            match layer["type"]:
                case "AsCaps":
                    y = oracle.capsules_of(layer, own, y)
                case kind if kind in LOOPS:
                    y = LOOPS[kind](layer, own, y)
                case _:
                    y = oracle.layer(layer, own, y[None])[0]
        ends.append(y)
    return ends[0] + ends[1]


LOOPS = {"HomogeneousCaps": homogeneous, "BranchScores": scores, "Residual": branches}


def branch(dim: int) -> tuple[Any, ...]:
    scores = BranchScores(BatchNorm(epsilon=0.1, scale=False))  # in training, the weight counts by this epsilon alone
    return AsCaps(1, dim, squash="none"), HomogeneousCaps(3), scores


class TestHomogeneousCaps(Proof):
    ROUTINGS = LOOPS
    SPECS = {
        "class capsules": CapsNetSpec(
            (1, 14, 14),
            (STEM, PrimaryCaps(2, 5, 3), HomogeneousCaps(3, BatchNorm(epsilon=0.1, activation="silu"))),
            Decoder((6,)),
        ),
        "branches": CapsNetSpec(
            (1, 12, 13),
            (
                Conv(4, 3, activation="none", bias=False),
                BatchNorm(activation="relu", scale=False),
                Residual(
                    (
                        Conv(5, 3),
                        Residual((Conv(6, 3, 2), *branch(6)), branch(5), activation="none"),
                    ),
                    branch(4),
                    activation="none",
                ),
            ),
            None,
            CrossEntropy(),
        ),
    }


def run(layer: Any, grid: Grid, params: Mapping[str, Any], x: Any) -> tuple[Any, dict[str, Any]]:
    """What the layer makes of capsules in training, and its new statistics."""
    row, statistics = Row("layer", layer, grid, layer.plan(grid)), dict[str, Any]()
    own = {f"layer.{name}": params[name] for name in row.plan.params}
    return row.run(NUMPY, own, Capsules(x), Run(training=True, statistics=statistics)), statistics


def test_statistics_in_training_are_over_the_batch_and_the_capsules() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 4, 3))
    weight, bias = rng.normal(size=(4, 6, 3)), rng.normal(size=3)
    running = {"norm.mean": np.zeros(3), "norm.variance": np.ones(3)}
    layer = HomogeneousCaps(6, BatchNorm(momentum=0.25, epsilon=1e-3, activation="relu", scale=False))
    found, statistics = run(layer, Grid(1, 2, 2, 3), {"weight": weight, "norm.bias": bias} | running, x)
    y = np.array([summed(weight, poses) for poses in x])  # [B, J, D]
    for d in range(3):
        close(found.pose[:, :, d], np.maximum(oracle.standard(y[:, :, d], 1e-3) + bias[d], 0), FLOAT64)
        assert statistics["layer.norm.mean"][d] == pytest.approx(0.25 * y[:, :, d].mean())
        assert statistics["layer.norm.variance"][d] == pytest.approx(0.75 + 0.25 * y[:, :, d].var())
    running = {"norm.mean": np.zeros(1), "norm.variance": np.ones(1)}
    how = {"weight": np.array([1.5]), "norm.bias": np.array([0.3])} | running
    found, _ = run(BranchScores(), Grid(4, 1, 1, 3), how, x)
    sizes = np.array([[oracle.length(v) * 1.5 for v in poses] for poses in x])
    close(found, oracle.standard(sizes, 1e-3) + 0.3, FLOAT64)


def test_the_published_network() -> None:
    spec = PRESETS["hvc-mnist"]
    assert spec.parameter_count == 1_513_686  # betas of the normalisations and three weights of branches among them
    inner = spec.layers[-1].rows(spec.rows[-1].input)
    capsules = [row for row in inner if row.kind == "HomogeneousCaps"]
    assert [row.plan.params["weight"].shape for row in capsules] == [(484, 10, 64)]


def test_they_take_capsules_alone() -> None:
    for layer in (HomogeneousCaps(3), BranchScores()):
        with pytest.raises(SpecError, match=f"{type(layer).__name__} takes capsules, not Map"):
            CapsNetSpec((1, 8, 8), (layer,), None)
    with pytest.raises(SpecError, match=r"HomogeneousCaps: norm must be a BatchNorm such as BatchNorm\(scale=False\)"):
        HomogeneousCaps(3, norm=None)  # type: ignore[arg-type]
