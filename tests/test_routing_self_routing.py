"""Self-routing, with votes and without: see `routing_proof`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import oracle
import pytest
from conftest import FLOAT64, NUMPY, close
from routing_proof import Proof, images, numbers

from capscore import (
    PRESETS,
    AsCaps,
    BatchNorm,
    CapsNetSpec,
    Conv,
    ConvCaps,
    CrossEntropy,
    Decoder,
    DenseCaps,
    Grid,
    PrimaryCaps,
    SelfRoutedClasses,
    SelfRouting,
)
from capscore.errors import SpecError

STEM = Conv(6, 5, stride=2)
ACTIVE = Conv(3 * 5, 3, activation="none", bias=False), BatchNorm(), AsCaps(3, 4, "none", active=True)


def shares(p: Mapping[str, Any], pose: np.ndarray) -> np.ndarray:
    """How each input shares itself among the outputs, by its pose alone: [N, J]."""
    return np.array(
        [oracle.softmax(weight @ u + b, leaky=False) for weight, u, b in zip(p["weight"], pose, p["bias"], strict=True)]
    )


def activations(c: np.ndarray, shown: Any) -> np.ndarray:
    """How much of all that is present goes to each output: [J]."""
    return np.array([sum(c[i, j] * a for i, a in enumerate(shown)) / sum(shown) for j in range(c.shape[1])])


def self_routing(how: Mapping[str, Any], p: Mapping[str, Any], bias: Any, seen: oracle.Seen) -> oracle.Caps:
    """Equations 1 to 4 of the paper, for every position; inputs without an activation are as present as long."""
    poses, said = [], []
    for at, votes in enumerate(seen.votes):
        n, count, _ = votes.shape
        shown = [oracle.length(u) for u in seen.pose[at]] if seen.activation is None else seen.activation[at]
        c = shares(p, seen.pose[at])
        of_all = [sum(c[i, j] * shown[i] for i in range(n)) for j in range(count)]
        poses.append(
            [bias[j] + sum(c[i, j] * shown[i] / of_all[j] * votes[i, j] for i in range(n)) for j in range(count)]
        )
        a = activations(c, shown)
        said.append(np.log(a) if how["logits"] else a)
    return oracle.Caps(np.array(poses), np.array(said))


def classes(how: Mapping[str, Any], p: Mapping[str, Any], x: oracle.Caps) -> np.ndarray:
    """The logarithms of what the classes get."""
    pose = x.pose.reshape(-1, x.pose.shape[-1])
    shown = [oracle.length(u) for u in pose] if x.activation is None else x.activation.reshape(-1)
    return np.array([math.log(a) for a in activations(shares(p, pose), shown)])


class TestSelfRouting(Proof):
    ROUTINGS = {"SelfRouting": self_routing, "SelfRoutedClasses": classes}
    SPECS = {
        "list": CapsNetSpec(
            (1, 14, 14), (STEM, *ACTIVE, DenseCaps(4, 5, SelfRouting(logits=True))), Decoder((6,)), CrossEntropy()
        ),
        "padded windows": CapsNetSpec(
            (1, 14, 15),
            (
                STEM,
                *ACTIVE,
                ConvCaps(2, 3, 3, stride=2, padding="same", routing=SelfRouting(), bias=False),
                SelfRoutedClasses(4),
            ),
            None,
            CrossEntropy(),
        ),
        "of lengths": CapsNetSpec(
            (1, 14, 14),
            (STEM, PrimaryCaps(2, 4, 3), DenseCaps(4, 6, SelfRouting(), pose_rows=2), SelfRoutedClasses(3)),
            None,
            CrossEntropy(),
        ),
    }


def test_shares_sum_to_1_and_the_loss_is_the_likelihood() -> None:
    spec = TestSelfRouting.SPECS["padded windows"]
    x = images(spec)
    scores = NUMPY.CapsNet(spec, numbers(spec), dtype="float64")(x).scores
    close(np.exp(scores).sum(1), np.ones(len(x)), FLOAT64)
    targets = np.eye(4)[[0, 1, 3]]
    assert float(spec.loss(NUMPY, scores, targets)) == pytest.approx(-(targets * scores).sum() / 3)


def test_inputs_that_are_not_there_leave_all_finite() -> None:
    spec = TestSelfRouting.SPECS["of lengths"]
    params = numbers(spec) | {
        f"primary.{name}": np.zeros(spec.parameters[f"primary.{name}"]) for name in ("weight", "bias")
    }
    net = NUMPY.CapsNet(spec, params)
    x = images(spec, dtype="float32")
    assert np.isfinite(net(x).scores).all()
    assert np.isfinite(NUMPY.Learner(net).step(x, np.eye(3), 1e-3)[0])
    assert all(np.isfinite(p).all() for p in net.params.values())


def test_it_takes_capsules_alone() -> None:
    with pytest.raises(SpecError, match="SelfRoutedClasses takes capsules, not Map"):
        CapsNetSpec((1, 8, 8), (SelfRoutedClasses(3),), None)


def test_the_published_network() -> None:
    spec = PRESETS["self-routing-resnet20"]
    assert spec.parameter_count == 931_664
    rows = {row.name: row for row in spec.rows}
    assert rows["primary"].output == Grid(32, 8, 8, 16, active=True)
    assert rows["head.0"].parameter_count == 2048 * 10 * (16 + 1)  # no votes
