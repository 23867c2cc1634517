"""Heinsen's routing of 2022, and its votes of one matrix and a scale for each output. See `routing_proof`."""

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
    AsMap,
    CapsNetSpec,
    Conv,
    ConvCaps,
    CrossEntropy,
    Decoder,
    DenseCaps,
    GlobalPool,
    PrimaryCaps,
    VectorRouting,
)
from capscore.routing import LinearVotes, SharedVotes, ShiftedVotes

STEM = Conv(6, 5, stride=2)
EPSILON = 0.01  # float32 bears no less where first numbers make sums that are nearly constant


def normal(v: np.ndarray, epsilon: float) -> np.ndarray:
    """Layer normalisation without scale and shift; one number stays as it is."""
    if len(v) == 1:
        return v
    mean = sum(v) / len(v)
    variance = sum((x - mean) ** 2 for x in v) / len(v)
    return np.array([(x - mean) / math.sqrt(variance + epsilon) for x in v])


def vectors(how: Mapping[str, Any], p: Mapping[str, Any], bias: Any, seen: oracle.Seen) -> oracle.Caps:
    """Algorithm 1 of the paper with the networks A, G and S of its efficient form, for every position."""
    poses, epsilon = [], how["epsilon"]
    for at, votes in enumerate(seen.votes):
        (n, count, d), inputs = votes.shape, seen.pose[at]
        shown, use, ignore = np.zeros(n), np.zeros((n, count)), np.zeros((n, count))
        for i, x in enumerate(inputs):
            own = 0 if how["shared"] else i
            shown[i] = oracle.sigmoid(p["present.weight"][own] @ x / math.sqrt(n) + p["present.bias"][own])
            for j in range(count):
                use[i, j], ignore[i, j] = (
                    p[f"{name}.weight"][j] @ x + p[f"{name}.bias"][j] if how["shared"] else p[name][i, j]
                    for name in ("use", "ignore")
                )
        r = np.full((n, count), 1 / count)
        v = np.zeros((count, d))
        for iteration in range(how["iterations"]):
            if iteration:
                for i, x in enumerate(inputs):
                    own, logits = 0 if how["shared"] else i, []
                    for j in range(count):
                        predicted = p["predict.weight"] @ normal(v[j], epsilon) * p["predict.scale"][j]
                        score = x @ (predicted + p["predict.bias"][j]) * p["score.scale"][own, j]
                        logits.append(math.log(oracle.sigmoid(score + p["score.bias"][own, j])))
                    r[i] = oracle.softmax(logits, leaky=False)
            for j in range(count):
                credit = [shown[i] * (use[i, j] * r[i, j] - ignore[i, j] * (1 - r[i, j])) for i in range(n)]
                v[j] = sum(credit[i] * votes[i, j] for i in range(n))
        poses.append(np.array([normal(x, epsilon) for x in v]))
    return oracle.Caps(np.array(poses), None)


def as_map(how: Mapping[str, Any], p: Mapping[str, Any], x: oracle.Caps) -> np.ndarray:
    """The numbers of every type as channels."""
    return x.pose.transpose(0, 3, 1, 2).reshape(-1, *x.pose.shape[1:3])


class TestVectorRouting(Proof):
    ROUTINGS = {"VectorRouting": vectors, "AsMap": as_map}
    SPECS = {
        "as in the paper": CapsNetSpec(
            (1, 14, 14),
            (
                STEM,
                AsCaps(2, 3, "none"),
                DenseCaps(4, 5, VectorRouting(2, True, EPSILON), bias=False, shared="factors", vote_bias=True),
                DenseCaps(3, 6, VectorRouting(3, epsilon=EPSILON), bias=False, shared="factors", vote_bias=True),
            ),
            Decoder((6,)),
        ),
        "scores": CapsNetSpec(
            (1, 14, 14),
            (
                STEM,
                PrimaryCaps(2, 4, 3),
                DenseCaps(3, 1, VectorRouting(), bias=False, shared="all", vote_bias=True),
                AsMap(),
                GlobalPool(),
            ),
            None,
            CrossEntropy(),
        ),
        "matrices": CapsNetSpec(
            (1, 14, 14),
            (
                STEM,
                PrimaryCaps(2, 4, 3),
                DenseCaps(
                    3, 6, VectorRouting(1, epsilon=EPSILON), bias=False, shared="factors", pose_rows=2, coordinates=True
                ),
            ),
            None,
        ),
        "padded windows": CapsNetSpec(
            (1, 14, 15),
            (
                STEM,
                Conv(2 * 5, 2, activation="none"),
                AsCaps(2, 4, "none", active=True),
                ConvCaps(3, 4, 3, padding="same", stride=2, routing=VectorRouting(2, epsilon=EPSILON), bias=False),
                DenseCaps(3, 4),
            ),
            None,
        ),
    }  # fmt: skip


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("factors", [False, True])
def test_votes_of_one_matrix_are_those_of_as_many_equal_ones(rows: int, factors: bool) -> None:
    b, n, j, d, k = 2, 5, 3, 4, 6
    rng = np.random.default_rng(0)
    u, c, v = rng.normal(size=(b, n, rows * k)), rng.normal(size=(j, b, n)), rng.normal(size=(j, b, rows * d))
    weight, scale = rng.normal(size=(1 if factors else j, d, k)), rng.normal(size=(j, k)) if factors else None
    bias, shift = rng.normal(size=(j, rows * d)), rng.normal(size=(j, 1, rows * d))
    full = np.broadcast_to(weight * (1.0 if scale is None else scale[:, None]), (n, j, d, k))
    shape = n, j, d, k
    one = SharedVotes(NUMPY, u, weight, bias, shape, rows=rows, scale=scale)
    many = LinearVotes(NUMPY, u, full, bias, shape, rows=rows)
    for found, wanted in (
        (one, many),
        (ShiftedVotes(one, shift, alike=True), ShiftedVotes(many, np.broadcast_to(shift, (j, n, rows * d)))),
    ):
        assert (found.n_in, found.n_out, found.d_out) == (wanted.n_in, wanted.n_out, wanted.d_out)
        close(found.combine(c), wanted.combine(c), FLOAT64)
        close(found.combine(0.3), wanted.combine(0.3), FLOAT64)
        close(found.agree(v), wanted.agree(v), FLOAT64)
        close(found.array(), wanted.array(), FLOAT64)


def test_the_head_of_the_paper() -> None:
    def routed(count: int, dim: int, shared: bool = False) -> DenseCaps:
        return DenseCaps(count, dim, VectorRouting(shared=shared), bias=False, shared="factors", vote_bias=True)

    layers = AsCaps(25, 1024, "none"), routed(64, 1024, shared=True), routed(64, 1024), routed(10, 1)
    spec = CapsNetSpec((25 * 1024, 1, 197), layers, None)
    affine = 2 * 25 * 1024  # of the hidden states before they are routed
    assert spec.parameter_count + affine == 5_085_067
    assert spec.rows[1].plan.multiply_adds < 4925 * 64 * 1024 * 1024 / 100  # votes alone would be a hundred times more


def test_one_iteration_learns_no_predictions() -> None:
    spec = PRESETS["small-vectors"]
    once = DenseCaps(10, 1, VectorRouting(1), bias=False, shared="factors", vote_bias=True)
    layers = [*spec.layers]
    layers[layers.index(spec.capsules[-1])] = once
    names = spec.replace(layers=tuple(layers)).parameters
    assert "capsules.1.routing.predict.weight" in names
    assert not any(name.startswith("capsules.2.routing.predict") for name in names)
