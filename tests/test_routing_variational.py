"""Variational Bayes routing: see `routing_proof`. The loops are those of "Capsule Routing via Variational Bayes"."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
import oracle
import pytest
from conftest import FLOAT64, NUMPY, close
from routing_proof import Proof, images, numbers
from scipy.special import digamma as scipy_digamma

from capscore import (
    PRESETS,
    AsCaps,
    CapsNetSpec,
    Conv,
    ConvCaps,
    CrossEntropy,
    DenseCaps,
    PrimaryCaps,
    VariationalBayes,
)
from capscore.init import HeNormal, Uniform
from capscore.routing.variational import digamma


def posterior(found: list[tuple[float, Any]], dim: int) -> dict[str, Any]:
    """The distributions of one output capsule from its assigned votes (equations 6 to 9 and 12), priors in full."""
    alpha0, kappa0, nu0, m0, psi0 = 1.0, 1.0, dim + 1.0, np.zeros(dim), np.ones(dim)
    total = sum(r for r, _ in found)
    mean = sum(r * v for r, v in found) / total
    kappa, nu = kappa0 + total, nu0 + total
    inverse = psi0 + sum(r * (v - mean) ** 2 for r, v in found) + kappa0 * total / kappa * (mean - m0) ** 2
    log_det = dim * math.log(2) - sum(math.log(q) for q in inverse)
    log_det += sum(float(scipy_digamma((nu - d) / 2)) for d in range(dim))
    m = (total * mean + kappa0 * m0) / kappa
    return {"alpha": alpha0 + total, "kappa": kappa, "nu": nu, "m": m, "inverse": inverse, "log_det": log_det}


def variational(how: Mapping[str, Any], p: Mapping[str, Any], bias: Any, seen: oracle.Seen) -> oracle.Caps:
    """Parents are (position, type), children are numbered over the whole grid; padding is no child of anyone."""
    positions, slots, count, dim = seen.votes.shape
    children = [(at, slot, int(seen.child[at, slot])) for at, slot in np.ndindex(positions, slots)]
    children = [child for child in children if child[2] >= 0]
    assigned = np.full((positions, slots, count), 1 / count)
    for t in range(how["iterations"]):
        found: dict[tuple[int, int], dict[str, Any]] = {}
        share = np.zeros((positions, count))
        for at in range(positions):
            for j in range(count):
                own = []
                for where, slot, _ in children:
                    if where == at:
                        length = oracle.length(seen.pose[at, slot])
                        a = length if seen.activation is None else seen.activation[at, slot]
                        own.append((a * assigned[at, slot, j], seen.votes[at, slot, j]))
                found[at, j] = posterior(own, dim)
            every = sum(found[at, j]["alpha"] for j in range(count))
            for j in range(count):
                share[at, j] = scipy_digamma(found[at, j]["alpha"]) - scipy_digamma(every)
        if t == how["iterations"] - 1:
            break
        density, whole = np.zeros(assigned.shape), dict.fromkeys((i for _, _, i in children), 0.0)
        for at, slot, i in children:
            for j in range(count):
                q = found[at, j]
                away = dim / q["kappa"] + q["nu"] * ((seen.votes[at, slot, j] - q["m"]) ** 2 / q["inverse"]).sum()
                log_p = 0.5 * q["log_det"] - 0.5 * dim * math.log(2 * math.pi) - 0.5 * away
                density[at, slot, j] = math.exp(share[at, j] + log_p)
                whole[i] += density[at, slot, j]
        for at, slot, i in children:
            assigned[at, slot] = density[at, slot] / max(whole[i], 1e-11)
    pose, activation = np.zeros((positions, count, dim)), np.zeros((positions, count))
    for at, j in np.ndindex(positions, count):
        entropy = 0.5 * dim * math.log(2 * math.pi * math.e) - 0.5 * found[at, j]["log_det"]
        score = p["beta_a"][j] - (math.exp(share[at, j]) * entropy + p["beta_u"][j])
        score = (score - p["activation.mean"][j]) / math.sqrt(p["activation.variance"][j] + how["epsilon"])
        activation[at, j] = oracle.sigmoid(score)
        pose[at, j] = (found[at, j]["m"] - p["pose.mean"][j]) / math.sqrt(p["pose.variance"][j] + how["epsilon"])
    return oracle.Caps(pose, activation)


STEM = Conv(6, 5, stride=2, init=HeNormal())
PRIMARY = (
    Conv(3 * 5, 1, activation="none", bias=False, init=HeNormal()),
    AsCaps(3, 4, squash="none", active=True, norm=True),
)
CAPS: dict[str, Any] = {"dim": 4, "bias": False, "pose_rows": 2, "init": Uniform(1.0)}
CLASSES = CAPS | {"shared": True, "coordinates": True}
LOSS = CrossEntropy()


class TestVariationalBayes(Proof):
    ROUTINGS = {"VariationalBayes": variational}
    # Smaller epsilons let statistics of few near-equal numbers amplify what float32 rounds.
    SPECS = {
        "list": CapsNetSpec(
            (1, 11, 11), (STEM, *PRIMARY, DenseCaps(4, routing=VariationalBayes(epsilon=0.01), **CLASSES)), None, LOSS
        ),
        "windows": CapsNetSpec(
            (2, 15, 18),
            (
                STEM,
                *PRIMARY,
                ConvCaps(2, kernel=(3, 2), stride=2, routing=VariationalBayes(epsilon=0.01), **CAPS),
                ConvCaps(3, kernel=2, routing=VariationalBayes(2, epsilon=0.01), **CAPS),
                DenseCaps(4, routing=VariationalBayes(epsilon=0.01), **CLASSES),
            ),
            None,
            LOSS,
        ),
        "padded": CapsNetSpec(
            (1, 13, 12),
            (
                STEM,
                *PRIMARY,
                ConvCaps(2, kernel=3, stride=(2, 1), padding=(1, 2), routing=VariationalBayes(), **CAPS),
                DenseCaps(3, routing=VariationalBayes(epsilon=0.01), **CLASSES),
            ),
            None,
            LOSS,
        ),
        "lengths": CapsNetSpec(
            (1, 13, 13),
            (STEM, PrimaryCaps(3, 4, 2), DenseCaps(3, 6, VariationalBayes(), bias=False, init=Uniform(4.0))),
            None,
            LOSS,
        ),
    }


@pytest.mark.parametrize("size", [1.0, 6.0])
def test_inputs_that_fit_nothing_are_given_away_in_part(caps: ModuleType, size: float) -> None:
    """Votes far from one another have densities below the floor of the authors' code."""
    spec = TestVariationalBayes.SPECS["padded"]
    params = numbers(spec)
    for name in ("capsules.0.weight", "capsules.1.weight"):
        params[name] = params[name] * size
    x = images(spec)
    out = caps.CapsNet(spec, params, dtype="float64")(caps.asarray(x), couplings=True)
    totals = [caps.to_numpy(c).sum(2).min() for c in out.couplings[1][1:]]
    assert (min(totals) < 0.5) == (size > 1)
    wanted = [TestVariationalBayes().wanted(spec, params, image)[0] for image in x]
    close(caps.to_numpy(out.scores), np.array(wanted), FLOAT64)


def test_digamma(caps: ModuleType) -> None:
    x = np.concatenate([np.linspace(1, 30, 4001), np.geomspace(30, 1e6, 500)])
    close(caps.to_numpy(digamma(caps, caps.asarray(x))), scipy_digamma(x), 1e-12)


def test_running_statistics_are_those_of_the_batches() -> None:
    """After enough steps without learning, the network in use computes what it did in training."""
    spec = TestVariationalBayes.SPECS["windows"]
    net = NUMPY.CapsNet(spec, numbers(spec), dtype="float64")
    learner, x = NUMPY.Learner(net), images(spec, 6)
    for _ in range(300):
        _, scores = learner.step(x, np.eye(4)[[0, 1, 2, 3, 0, 1]], 0.0)
    close(net(x).scores, scores, 1e-9)


def test_the_preset_has_the_published_size() -> None:
    """Betas and the primary capsules' normalisations are counted, running statistics are not."""
    spec = PRESETS["vb-smallnorb"]
    assert spec.parameter_count == 68_714
    assert [tuple(row.output[:3]) for row in spec.rows[3:]] == [(8, 14, 14), (16, 6, 6), (16, 4, 4), (5, 1, 1)]


@pytest.mark.parametrize("seed", range(10))
def test_absent_inputs(seed: int) -> None:
    """The authors' code divides by the sum of all assignments, which is 0 where no input is present."""
    spec = TestVariationalBayes.SPECS["padded"]
    net = NUMPY.CapsNet(spec, seed=seed)
    for bias in (-200.0, 200.0):
        net.assign(net.params | {"primary.activation.bias": np.full(3, bias, "float32")})
        learner = NUMPY.Learner(net)
        for x in (np.zeros((1, *spec.input)), np.ones((2, *spec.input)), images(spec, 1)):
            assert np.isfinite(learner.step(x.astype("float32"), np.eye(3)[: len(x)], 1e-3)[0])
            assert all(np.isfinite(p).all() for p in net.params.values())
