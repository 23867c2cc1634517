"""EM routing: see `routing_proof`. The loops are procedure 1 of "Matrix Capsules with EM Routing"."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import oracle
import pytest
from conftest import NUMPY, close
from routing_proof import Proof

from capscore import PRESETS, AsCaps, CapsNetSpec, Conv, ConvCaps, DenseCaps, EMRouting, PrimaryCaps, SpreadLoss
from capscore.init import TruncatedNormal
from capscore.layer import Grid
from capscore.values import write

EPSILON = 1e-9


def expectation_maximisation(how: Mapping[str, Any], p: Mapping[str, Any], bias: Any, seen: oracle.Seen) -> oracle.Caps:
    """Parents are (position, type), children are numbered over the whole grid; padding is no child of anyone."""
    positions, slots, count, dim = seen.votes.shape
    parents = list(np.ndindex(positions, count))
    votes: dict[int, dict[tuple[int, ...], Any]] = {}  # child → parent → vote
    present: dict[int, float] = {}
    for at, slot in np.ndindex(positions, slots):
        child = int(seen.child[at, slot])
        if child < 0:
            continue
        a = oracle.length(seen.pose[at, slot]) if seen.activation is None else seen.activation[at, slot]
        present[child] = float(a)
        for j in range(count):
            votes.setdefault(child, {})[at, j] = seen.votes[at, slot, j]
    assigned = {child: {parent: 1 / len(own) for parent in own} for child, own in votes.items()}
    scale = 1.0 if how["information"] is None else how["information"] * count / slots
    pose, activation = np.zeros((positions, count, dim)), np.zeros((positions, count))
    variance = np.zeros((positions, count, dim))
    for t in range(how["iterations"]):
        for at, j in parents:
            own = [(present[i] * assigned[i][at, j], votes[i][at, j]) for i in votes if (at, j) in votes[i]]
            total = sum(r for r, _ in own)
            pose[at, j] = sum(r * v for r, v in own) / (total + EPSILON)
            variance[at, j] = sum(r * (v - pose[at, j]) ** 2 for r, v in own) / (total + EPSILON) + EPSILON
            cost = sum((p["beta_u"][j] + math.log(math.sqrt(v))) * total * scale for v in variance[at, j])
            temperature = how["inverse_temperature"] * (1 - how["decay"] ** (t + 1))
            activation[at, j] = oracle.sigmoid(temperature * (p["beta_a"][j] - cost))
        for i, own in votes.items():
            logits = []
            for parent, vote in own.items():
                around = (vote - pose[parent]) ** 2 / (2 * variance[parent])
                density = -around.sum() - 0.5 * np.log(2 * math.pi * variance[parent]).sum()
                logits.append(math.log(activation[parent] + EPSILON) + density)
            assigned[i] = dict(zip(own, oracle.softmax(logits, leaky=False), strict=True))
    return oracle.Caps(pose, activation)


def matrices(**how: Any) -> dict[str, Any]:
    """Settings of a layer of 2×2 matrices, with votes of the size that the betas' first numbers are made for."""
    return {"dim": 4, "routing": EMRouting(**how), "bias": False, "pose_rows": 2, "init": TruncatedNormal(1.0)}


STEM = Conv(6, 5, stride=2)
PRIMARY = Conv(3 * 5, 1, activation="none"), AsCaps(3, 4, squash="none", active=True)
CLASSES: dict[str, Any] = {"shared": True, "coordinates": True}


class TestEM(Proof):
    ROUTINGS = {"EMRouting": expectation_maximisation}
    SPECS = {
        "list": CapsNetSpec((1, 11, 11), (STEM, *PRIMARY, DenseCaps(4, **CLASSES, **matrices())), None, SpreadLoss()),
        "windows": CapsNetSpec(
            (2, 15, 18),
            (
                STEM,
                *PRIMARY,
                ConvCaps(2, kernel=(3, 2), stride=2, **matrices()),
                ConvCaps(3, kernel=2, **matrices(iterations=2)),
                DenseCaps(4, **CLASSES, **matrices()),
            ),
            None,
            SpreadLoss(smooth=True),
        ),
        "padded, as in the paper": CapsNetSpec(
            (1, 13, 12),
            (
                STEM,
                *PRIMARY,
                ConvCaps(2, kernel=3, stride=(2, 1), padding=(1, 2), **matrices(information=None)),
                DenseCaps(3, **CLASSES, **matrices(information=None, inverse_temperature=0.0005, decay=0.0)),
            ),
            None,
        ),
        "lengths": CapsNetSpec(
            (1, 13, 13),
            (STEM, PrimaryCaps(3, 4, 2), DenseCaps(3, dim=6, routing=EMRouting(inverse_temperature=0.003), bias=False)),
            None,
        ),
    }


@pytest.mark.parametrize(
    ("name", "parameters", "grids"),
    [
        ("em-smallnorb", 317_194, [(32, 14, 14), (32, 6, 6), (32, 4, 4), (5, 1, 1)]),
        ("em-small", 67_154, [(8, 16, 16), (16, 7, 7), (16, 5, 5), (5, 1, 1)]),
    ],
)
def test_presets_have_the_published_sizes(name: str, parameters: int, grids: list[Any]) -> None:
    spec = PRESETS[name]
    assert spec.parameter_count == parameters
    assert [tuple(row.output[:3]) for row in spec.rows if isinstance(row.output, Grid)] == grids


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("routing", [EMRouting(), EMRouting(information=None), EMRouting(5, 1.0)])
def test_equal_votes_and_absent_inputs(seed: int, routing: EMRouting) -> None:
    """Variances are 0 where all votes agree, sums are 0 where no input is present: float32 stays finite."""
    spec = TestEM.SPECS["padded, as in the paper"]
    layers = [replace(x, routing=routing) if hasattr(x, "routing") else x for x in spec.layers]
    spec = spec.replace(layers=layers)
    net = NUMPY.CapsNet(spec, seed=seed)
    for bias in (0.0, -200.0, 200.0):  # of the activations' channels
        shifted = np.repeat([0.0, bias], [12, 3]).astype("float32")
        net.assign(net.params | {"stem.1.bias": shifted})
        learner = NUMPY.Learner(net)
        for x in (np.zeros((1, *spec.input)), np.ones((2, *spec.input))):
            assert np.isfinite(learner.step(x.astype("float32"), np.eye(3)[: len(x)], 1e-3)[0])
            assert all(np.isfinite(p).all() for p in net.params.values())


def test_padding_is_coupled_to_nothing(caps: ModuleType) -> None:
    """Votes that all but agree have densities beyond float32, and padding has them too."""
    how: dict[str, Any] = matrices() | {"dim": 16, "pose_rows": 4, "init": TruncatedNormal(1e-3)}
    primary = Conv(2 * 17, 1, activation="none"), AsCaps(2, 16, squash="none", active=True)
    layers = (STEM, *primary, ConvCaps(2, kernel=3, padding=1, **how), DenseCaps(3, **CLASSES, **how))
    spec = CapsNetSpec((1, 11, 11), layers, None, SpreadLoss())
    x = np.random.default_rng(0).random((2, *spec.input)).astype("float32")
    out = caps.CapsNet(spec, seed=0)(caps.asarray(x), couplings=True)
    assert np.isfinite(caps.to_numpy(out.scores)).all()
    first = oracle.Caps(np.zeros((2, 4, 4, 16)))
    seen, _, _ = oracle.seen_by_windows(write(layers[3]), {"weight": np.zeros((18, 2, 4, 4))}, first)
    for c in out.couplings[0]:
        given = caps.to_numpy(c)  # [B, positions · slots, J]
        assert (given[:, seen.child.reshape(-1) < 0] == 0).all()
        close(given.sum((1, 2)), np.full(2, 32.0), 1e-4)  # each of 32 inputs is shared out once
    loss, _ = caps.Learner(caps.CapsNet(spec, seed=0)).step(x, np.eye(3)[:2], 1e-3)
    assert np.isfinite(float(loss))
