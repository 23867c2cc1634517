"""What the trials of the claims say: paired differences of networks over the seeds, with intervals and verdicts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from lab.experiments.attack import STRENGTHS
from lab.experiments.equivariance import FACTORS
from lab.experiments.heads import ALIKE, ATTENTION, CNN, DRAWING, DYNAMIC, NARROW, NONE, POOLED, ROUTINGS
from lab.experiments.trials import Values

CONFIDENCE, LEAST = 0.95, 3  # of intervals; seeds that one takes
HOLDS, FAILS, OPEN = "holds", "does not hold", "undecided"


class Difference(NamedTuple):
    """How much larger one value is than another, of the same seeds: the mean of the differences and its interval."""

    mean: float
    low: float
    high: float
    n: int

    def verdict(self, more: bool) -> str:
        """Say whether it is a larger (`more`) or a smaller value, as is better, by its interval; NaN tells nothing."""
        low, high = (self.low, self.high) if more else (-self.high, -self.low)
        return HOLDS if low > 0 else FAILS if high < 0 else OPEN


def difference(a: Mapping[int, float], b: Mapping[int, float], confidence: float = CONFIDENCE) -> Difference:
    """Compare values by seed, of the seeds that both have, by Student's t; with fewer than LEAST no interval, NaN."""
    each = np.array([a[seed] - b[seed] for seed in sorted(set(a) & set(b))])
    if len(each) < LEAST:
        return Difference(float(each.mean()) if len(each) else math.nan, math.nan, math.nan, len(each))
    reach = stats.t.ppf((1 + confidence) / 2, len(each) - 1) * each.std(ddof=1) / math.sqrt(len(each))
    return Difference(float(each.mean()), float(each.mean() - reach), float(each.mean() + reach), len(each))


def interval(a: Mapping[str, Any], b: Mapping[str, Any], name: str) -> tuple[float, float]:
    """Return the 95% interval of one mean's excess over another's, of other seeds (Welch); NaN for a single seed."""
    if min(a["n"], b["n"]) < 2:
        return math.nan, math.nan
    parts = [row["std"][name] ** 2 / row["n"] for row in (a, b)]
    excess, error = a["mean"][name] - b["mean"][name], math.sqrt(sum(parts))
    free = sum(parts) ** 2 / max(sum(part**2 / (row["n"] - 1) for part, row in zip(parts, (a, b), strict=True)), 1e-30)
    reach = error * float(stats.t.ppf((1 + CONFIDENCE) / 2, max(1.0, free)))
    return excess - reach, excess + reach


class Claim(NamedTuple):
    """What is claimed, and the one number that it is judged by."""

    name: str
    number: str  # what it is, and its unit
    trial: str  # the trials' own name of it
    more: bool  # is more better?
    value: Callable[[Values], float]
    digits: int = 2
    rival: str = CNN  # the CNN that the best capsules are compared with


def _mean(*names: str) -> Callable[[Values], float]:
    return lambda values: float(np.mean([values[name] for name in names]))


def _geometric(values: Values) -> float:
    """Return the geometric mean of errors, of which none counts as 0.01: where every size of a set weighs alike."""
    return float(np.exp(np.mean(np.log(np.maximum(list(values.values()), 0.01)))))


CLAIMS = (
    Claim("digits", "test error, %", "error", False, _mean("error")),
    Claim("equivariance", "R² of the pose, mean of four factors", "equivariance", True, _mean(*FACTORS), 3, NARROW),
    Claim("overlapping digits", "error of pairs, %", "overlap", False, _mean("error")),
    Claim("parts rearranged", "told apart from whole ones, share", "part-whole", True, _mean("told apart"), 3),
    *(
        Claim(f"{kind} attacks", "error, mean of all ε, %", "adversarial", False, _mean(*names), 1)
        for kind in ("FGSM", "PGD")
        for names in [[f"{kind} {strength:g}" for strength in STRENGTHS]]
    ),
    Claim("few examples", "test error, geometric mean of all sizes, %", "efficiency", False, _geometric),
)
OF_POOLING = (
    CLAIMS[0],
    CLAIMS[1],
    Claim("first map", "R² of the pixels drawn back from it", "pooling", True, _mean("map 1"), 3),
    Claim("last map", "R² of the pixels drawn back from it", "pooling", True, _mean("map 2"), 3),
)
OF_DECODER = CLAIMS[:2]


class Judged(NamedTuple):
    """A claim, a network, another, and how they differ."""

    claim: Claim
    better: str  # the network that is said to be better
    other: str
    found: Difference

    @property
    def verdict(self) -> str:
        """Whether the claim holds."""
        return self.found.verdict(self.claim.more)


def values(trials: Sequence[Mapping[str, Any]], claim: Claim, network: str) -> dict[int, float]:
    """Return the number of a claim by seed. Of trials with few examples, a seed has to have all their sizes."""
    found: dict[int, dict[int, Values]] = {}
    for trial in trials:
        told = trial["settings"]
        if (told["claim"], told["network"]) == (claim.trial, network):
            found.setdefault(told["seed"], {})[told.get("examples", 0)] = trial["values"]
    sizes = {trial["settings"].get("examples", 0) for trial in trials if trial["settings"]["claim"] == claim.trial}
    return {
        seed: claim.value(each[0] if 0 in each else {str(size): each[size]["error"] for size in each})
        for seed, each in found.items()
        if set(each) == sizes
    }


def best_routing(trials: Sequence[Mapping[str, Any]], claim: Claim) -> str:
    """Return the capsule head with the best mean, of those with the most seeds."""
    found = {name: list(values(trials, claim, name).values()) for name in ROUTINGS}
    most = max(map(len, found.values()))
    means = {name: float(np.mean(each)) for name, each in found.items() if most and len(each) == most}
    return (max if claim.more else min)(means, key=lambda name: means[name], default=NONE)


def judged(trials: Sequence[Mapping[str, Any]], at_once: int = 1) -> list[Judged]:
    """Return every claim's four comparisons: routings with their twins, both with none, the best capsules with a CNN.

    The best of four is chosen by the same numbers: its interval is at 1 - 0.05/4 (Bonferroni). All are wider for so
    many comparisons `at_once`.
    """
    return [each for claim in CLAIMS for each in _of_claim(trials, claim, at_once)]


def _of_claim(trials: Sequence[Mapping[str, Any]], claim: Claim, at_once: int) -> Iterator[Judged]:
    best = best_routing(trials, claim)
    pairs = ((ATTENTION, ALIKE, 1), (ATTENTION, NONE, 1), (DYNAMIC, NONE, 1), (best, claim.rival, len(ROUTINGS)))
    for better, other, chosen_of in pairs:
        a, b = (values(trials, claim, name) for name in (better, other))
        yield Judged(claim, better, other, difference(a, b, _confidence(at_once * chosen_of)))


def others(trials: Sequence[Mapping[str, Any]], at_once: int = 1) -> list[Judged]:
    """Return the comparisons of strides with max-pooling, and of a decoder with none; see `judged`."""
    pairs = [(claim, NARROW, POOLED) for claim in OF_POOLING] + [(claim, DRAWING, ATTENTION) for claim in OF_DECODER]
    found = [(values(trials, claim, a), values(trials, claim, b)) for claim, a, b in pairs]
    return [Judged(*pair, difference(*two, _confidence(at_once))) for pair, two in zip(pairs, found, strict=True)]


def _confidence(at_once: int) -> float:
    return 1 - (1 - CONFIDENCE) / at_once
