"""Heinsen's routing of 2019, and what it needs: one matrix for all capsules, a bias of votes. See `routing_proof`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import oracle
import pytest
from routing_proof import Proof

from capscore import (
    PRESETS,
    AsCaps,
    CapsNetSpec,
    Conv,
    ConvCaps,
    CrossEntropy,
    Decoder,
    DenseCaps,
    Grid,
    HeinsenRouting,
    PrimaryCaps,
)
from capscore.errors import SpecError

STEM = Conv(6, 5, stride=2)


def heinsen(how: Mapping[str, Any], p: Mapping[str, Any], bias: Any, seen: oracle.Seen) -> oracle.Caps:
    """Algorithm 1 of the paper, for every position; inputs without an activation are as present as they are long."""
    poses, activations, epsilon = [], [], how["epsilon"]
    for at, votes in enumerate(seen.votes):
        n, count, d = votes.shape
        shown = [oracle.length(u) for u in seen.pose[at]] if seen.activation is None else seen.activation[at]
        r = np.full((n, count), 1 / count)
        for iteration in range(how["iterations"]):
            if iteration:
                for i in range(n):
                    logits = []
                    for j in range(count):
                        far = sum((votes[i, j, h] - mean[j, h]) ** 2 / (2 * spread[j, h]) for h in range(d))  # noqa: F821
                        wide = sum(math.log(math.sqrt(spread[j, h])) for h in range(d))  # noqa: F821
                        logits.append(math.log(oracle.sigmoid(a[j])) - far - wide)  # noqa: F821
                    r[i] = oracle.softmax(logits, leaky=False)
            a, mean, spread = np.zeros(count), np.zeros((count, d)), np.zeros((count, d))
            for j in range(count):
                used = [shown[i] * r[i, j] for i in range(n)]
                for i in range(n):
                    own = 0 if how["shared"] else i
                    a[j] += p["beta_use"][own, j] * used[i] - p["beta_ign"][own, j] * (shown[i] - used[i])
                total = sum(used) + epsilon
                for h in range(d):
                    mean[j, h] = sum(used[i] * votes[i, j, h] for i in range(n)) / total
                    spread[j, h] = sum(used[i] * (votes[i, j, h] - mean[j, h]) ** 2 for i in range(n)) / total + epsilon
        poses.append(mean)
        activations.append(a if how["logits"] else [oracle.sigmoid(x) for x in a])
    return oracle.Caps(np.array(poses), np.array(activations))


class TestHeinsenRouting(Proof):
    ROUTINGS = {"HeinsenRouting": heinsen}
    SPECS = {
        "as in the paper": CapsNetSpec(
            (1, 14, 14),
            (
                STEM,
                Conv(3 * 7, 1, activation="none"),
                AsCaps(3, 6, "none", active=True),
                DenseCaps(
                    4, 8, HeinsenRouting(shared=True), bias=False, vote_bias=True, pose_rows=2, shared="all"
                ),
                DenseCaps(3, 6, HeinsenRouting(logits=True), bias=False, vote_bias=True, pose_rows=2),
            ),
            Decoder((6,)),
            CrossEntropy(),
        ),
        "of lengths": CapsNetSpec(
            (1, 14, 14),
            (STEM, PrimaryCaps(2, 4, 3), DenseCaps(3, 5, HeinsenRouting(2, 0.1), bias=False, shared=True)),
            None,
        ),
        "padded windows": CapsNetSpec(
            (1, 14, 15),
            (
                STEM,
                Conv(2 * 5, 2, activation="none"),
                AsCaps(2, 4, "none", active=True),
                ConvCaps(3, 4, 3, padding="same", stride=2, routing=HeinsenRouting(2), bias=False),
                DenseCaps(3, 4, HeinsenRouting(1, logits=True), bias=False, vote_bias=True),
            ),
            None,
            CrossEntropy(),
        ),
    }  # fmt: skip


def test_what_means_nothing_is_refused() -> None:
    with pytest.raises(SpecError, match="DenseCaps: HeinsenRouting adds no bias to its capsules: bias=False"):
        DenseCaps(3, 4, HeinsenRouting())
    with pytest.raises(SpecError, match='DenseCaps: shared must be true, false, "all" or "factors", not 1'):
        DenseCaps(3, 4, shared=1)  # type: ignore[arg-type]


def test_the_published_network() -> None:
    spec = PRESETS["heinsen-smallnorb"]
    assert spec.parameter_count == 271_688
    rows = {row.name: row for row in spec.rows}
    assert rows["primary"].output == Grid(64, 9, 9, 16, active=True)
    assert rows["capsules.0"].plan.params["weight"].shape == (1, 64, 4, 4)  # one for all 5,184 capsules
    assert rows["capsules.0"].plan.params["routing.beta_use"].shape == (1, 64)
    assert rows["capsules.1"].plan.params["weight"].shape == (64, 5, 4, 4)
