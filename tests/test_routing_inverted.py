"""Inverted dot-product attention, one layer after another and concurrently: see `routing_proof`."""

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
    AsCaps,
    CapsNetSpec,
    CapsNorm,
    Concurrent,
    Conv,
    ConvCaps,
    CrossEntropy,
    Decoder,
    DenseCaps,
    DynamicRouting,
    InvertedAttention,
    Logits,
    PrimaryCaps,
)
from capscore.errors import SpecError
from capscore.layer import Run

STEM = Conv(6, 5, stride=2)
EPSILON = 0.1  # smaller ones let small sums amplify the rounding of float32
ONCE = InvertedAttention(1, EPSILON)


def normal(how: Mapping[str, Any], p: Mapping[str, Any], x: np.ndarray) -> np.ndarray:
    """A layer norm of one capsule, which a capsule of a single number has not."""
    return oracle.standard(x, how["epsilon"]) * p["weight"] + p["bias"] if p else x


def attend(how: Mapping[str, Any], p: Mapping[str, Any], bias: Any, u_hat: np.ndarray, parents: Any) -> np.ndarray:
    """One iteration at one position: votes [S, J, D], parents [J, D] or None, bias [J, D]."""
    n, count, d = u_hat.shape
    c = np.full((n, count), 1 / count)
    if parents is not None:
        for i in range(n):
            c[i] = oracle.softmax([u_hat[i, j] @ parents[j] / math.sqrt(d) for j in range(count)], leaky=False)
    sums = [sum(c[i, j] * u_hat[i, j] for i in range(n)) + bias[j] for j in range(count)]
    return np.array([normal(how, p, s) for s in sums])


def inverted(how: Mapping[str, Any], p: Mapping[str, Any], bias: Any, seen: oracle.Seen) -> oracle.Caps:
    """All iterations of a layer by itself, for every position."""
    poses = []
    for u_hat in seen.votes:
        parents = None
        for _ in range(how["iterations"]):
            parents = attend(how, p, bias, u_hat, parents)
        poses.append(parents)
    return oracle.Caps(np.array(poses))


def concurrent(how: Mapping[str, Any], p: Mapping[str, Any], x: oracle.Caps) -> oracle.Caps:
    """Every iteration renews every layer from what the one before left; the first runs through."""

    def renew(i: int, below: oracle.Caps, above: oracle.Caps | None) -> oracle.Caps:
        def of_all(routing: Any, own: Any, bias: Any, seen: oracle.Seen) -> oracle.Caps:
            parents: Any = [None] * len(seen.votes)
            if above is not None:  # [J, H, W, D]
                parents = above.pose.transpose(1, 2, 0, 3).reshape(len(seen.votes), -1, above.pose.shape[3])
            poses = [attend(routing, own, bias, *each) for each in zip(seen.votes, parents, strict=True)]
            return oracle.Caps(np.array(poses))

        return oracle.caps_layer(how["layers"][i], oracle.part(p, f"layers.{i}."), below, of_all)

    count = len(how["layers"])
    values = [x]
    for i in range(count):
        values.append(renew(i, values[i], None))
    for _ in range(1, how["iterations"]):
        values = [x, *(renew(i, values[i], values[i + 1]) for i in range(count))]
    return values[-1]


def caps_norm(how: Mapping[str, Any], p: Mapping[str, Any], x: oracle.Caps) -> oracle.Caps:
    """Each capsule by itself, or, by the running statistics, each number of a type."""
    pose = np.zeros_like(x.pose)
    dim = pose.shape[3]
    for at in np.ndindex(*pose.shape[:3]):
        if how["over"] == "capsule":
            pose[at] = oracle.standard(x.pose[at], how["epsilon"])
            if how["affine"]:
                pose[at] = pose[at] * p["weight"] + p["bias"]
            continue
        for d in range(dim):
            c = at[0] * dim + d
            pose[(*at, d)] = (x.pose[(*at, d)] - p["mean"][c]) / math.sqrt(p["variance"][c] + how["epsilon"])
            if how["affine"]:
                pose[(*at, d)] = pose[(*at, d)] * p["weight"][c] + p["bias"][c]
    return x._replace(pose=pose)


def logits(how: Mapping[str, Any], p: Mapping[str, Any], x: oracle.Caps) -> oracle.Caps:
    return x._replace(
        activation=np.array([[[v @ p["weight"][0] + p["bias"][0] for v in r] for r in t] for t in x.pose])
    )


LOOPS = {
    "InvertedAttention": inverted,
    "Concurrent": concurrent,
    "CapsNorm": caps_norm,
    "Logits": logits,
}


def grid(**how: Any) -> Any:
    """Matrix poses on a grid, as the paper has them."""
    return ConvCaps(2, 4, 2, bias=False, pose_rows=2, **how)


class TestInvertedAttention(Proof):
    ROUTINGS = LOOPS
    SPECS = {
        "list": CapsNetSpec(
            (1, 14, 14),
            (
                STEM,
                PrimaryCaps(3, 4, 3, 2),
                CapsNorm(epsilon=EPSILON),
                DenseCaps(4, 6, InvertedAttention(3, EPSILON)),
                Logits(),
            ),
            Decoder((5,)),
            CrossEntropy(),
        ),
        "windows": CapsNetSpec(
            (1, 14, 15),
            (
                STEM,
                Conv(8, 1, activation="none", bias=False),
                AsCaps(2, 4, "none"),
                CapsNorm(affine=False, epsilon=EPSILON),
                grid(routing=InvertedAttention(2, EPSILON), stride=(1, 2)),
                DenseCaps(3, 4, InvertedAttention(2, EPSILON), bias=False, pose_rows=2),
                Logits(),
            ),
            None,
            CrossEntropy(),
        ),
        "single numbers": CapsNetSpec(
            (1, 13, 13),
            (
                STEM,
                PrimaryCaps(2, 4, 3),
                DenseCaps(3, 1, InvertedAttention(2, EPSILON)),
                Logits(),
            ),
            None,
            CrossEntropy(),
        ),
        "concurrent": CapsNetSpec(
            (1, 15, 15),
            (
                STEM,
                PrimaryCaps(2, 4, 2, squash="none"),
                CapsNorm(epsilon=EPSILON),
                Concurrent(
                    (
                        grid(routing=ONCE, stride=2),
                        grid(routing=ONCE),
                        DenseCaps(3, 4, ONCE, bias=False, pose_rows=2),
                    ),
                    iterations=3,
                ),
                Logits(),
            ),
            None,
            CrossEntropy(),
        ),
        "scrambled": CapsNetSpec(
            (1, 15, 17),
            (
                STEM,
                PrimaryCaps(2, 4, 2, squash="none"),
                CapsNorm(epsilon=EPSILON),
                grid(routing=InvertedAttention(2, EPSILON), stride=2, scrambled=True),
                DenseCaps(3, 4, InvertedAttention(2, EPSILON), bias=False, pose_rows=2),
                Logits(),
            ),
            None,
            CrossEntropy(),
        ),
    }


class TestCapsulesNormalisedOverTheBatch(Proof):
    ROUTINGS = LOOPS
    EXACT_TRAINING = False
    SPECS = {
        "grid": CapsNetSpec(
            (1, 14, 14),
            (
                STEM,
                PrimaryCaps(2, 3, 3),
                CapsNorm("batch", momentum=0.2),
                ConvCaps(2, 4, 2, routing=DynamicRouting(2)),
                CapsNorm("batch", affine=False, epsilon=0.1),
                DenseCaps(3, 4),
            ),
            None,
        ),
    }


@pytest.mark.parametrize("affine", [True, False])
def test_training_moves_the_running_statistics_of_every_number_of_a_type(affine: bool) -> None:
    spec = CapsNetSpec((1, 9, 9), (PrimaryCaps(2, 3, 5, squash="none"), CapsNorm("batch", affine), DenseCaps(2)), None)
    net = NUMPY.CapsNet(spec, numbers(spec), dtype="float64")
    before, x = {name: p.copy() for name, p in net.params.items()}, images(spec, 5)
    pose = spec.rows[0].run(NUMPY, before, x, Run()).pose.reshape(5, 2, 25, 3)
    NUMPY.Learner(net).step(x, np.eye(2)[[0, 1, 0, 1, 1]], 0.0)
    assert ("capsules.0.weight" in before) is affine
    for kind in range(2):
        for d in range(3):
            found = pose[:, kind, :, d]
            for name, now in (("mean", found.mean()), ("variance", found.var())):
                name = f"capsules.0.{name}"
                wanted = 0.9 * before[name][kind * 3 + d] + 0.1 * now
                close(net.params[name][kind * 3 + d], wanted, FLOAT64)


def test_the_last_layer_of_two_iterations_alone_attends() -> None:
    """Whatever renews a layer reaches the one above an iteration later: nothing of it is computed for nothing."""
    spec = TestInvertedAttention.SPECS["concurrent"]
    x = images(spec)
    for iterations, attending in ((1, []), (2, [2]), (3, [1, 2, 2])):
        layers = (*spec.layers[:3], Concurrent(spec.layers[3].layers, iterations), Logits())
        net = NUMPY.CapsNet(spec.replace(layers=layers), numbers(spec), dtype="float64")
        told = net(x, couplings=True).couplings
        assert [i for i, layer in enumerate(told) for _ in layer[1:]] == attending
        uniform = sum(row.plan.multiply_adds for row in net.spec.rows[3].layer.rows(net.spec.rows[3].input))
        assert (net.spec.rows[3].plan.multiply_adds > uniform) is (iterations > 1)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Concurrent(()), "Concurrent: layers is empty; it needs at least one, such as DenseCaps"),
        (
            lambda: Concurrent((CapsNorm(epsilon=EPSILON),)),
            "Concurrent: CapsNorm with routing None is no layer of it; give DenseCaps",
        ),
        (
            lambda: Concurrent((DenseCaps(2),)),
            r"with routing DynamicRouting\(.*routing=InvertedAttention\(iterations=1",
        ),
        (
            lambda: Concurrent((DenseCaps(2, 4, InvertedAttention(2, EPSILON)),)),
            "the routing of DenseCaps has 2 iterations; give",
        ),
        (lambda: CapsNorm("type"), 'CapsNorm: over must be "capsule" or "batch", not '),
        (lambda: CapsNetSpec((1, 8, 8), (CapsNorm(epsilon=EPSILON),)), r"CapsNorm takes capsules, not Map"),
        (lambda: CapsNetSpec((1, 8, 8), (Logits(),)), r"Logits takes capsules, not Map"),
        (
            lambda: CapsNetSpec((1, 8, 8), (Concurrent((DenseCaps(2, 4, ONCE),)),)),
            r"Concurrent takes capsules, not Map",
        ),
    ],
)
def test_messages(build: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        build()
