"""The non-linearity of capsules, the length that says how present each is, and logarithms of such probabilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .layer import Capsules
from .ops import A, Ops, scope
from .values import Value, check_choice

SHORT = 1e-3  # see `exponential_squash`


def squash(ops: Ops[A], s: A, axis: int = -1) -> A:
    """Shrink vectors to a length below 1, keeping their direction (equation 1): v = ‖s‖²/(1+‖s‖²) · s/‖s‖.

    Zero for the zero vector and a unit vector for a very long one, with finite gradients at both.
    """
    with scope(ops, "squash"):
        n = ops.norm(s, axis, keepdims=True)
        m = n + 1.0
        p = n / m  # n/(1+n²) = p / ((p² + (1-p)²)·(1+n)): no square leaves the range of floats
        return s * (p / ((p * (p - 1.0) * 2.0 + 1.0) * m))


def exponential_squash(ops: Ops[A], s: A, axis: int = -1) -> A:
    """Shrink vectors to a length below 1 that tells short ones apart: v = (1 - e^-‖s‖) · s/‖s‖.

    Zero for the zero vector (Mazzia, Salvetti, Chiaberge 2021, equation 3). The limit of its slope there is 1. Vectors
    shorter than SHORT are all multiplied by 0.9995, as one of that length is: for them 1 - e^-‖s‖ has lost its digits.
    """
    with scope(ops, "squash"):
        n = ops.relu(ops.norm(s, axis, keepdims=True) - SHORT) + SHORT
        return s * ((ops.exp(n * -1.0) * -1.0 + 1.0) / n)


def standardise(ops: Ops[A], x: A, size: int, epsilon: float) -> A:
    """Bring the `size` numbers along the last axis to mean 0 and variance 1: layer normalisation without its scale."""
    x = x - ops.sum(x, -1, keepdims=True) / size
    return x / ops.sqrt(ops.sum(x * x, -1, keepdims=True) / size + epsilon)


def unchanged(ops: Ops[A], s: A, axis: int = -1) -> A:
    """Return the vectors as they are."""
    return s


SQUASHES: dict[str, Callable[..., Any]] = {
    "squash": squash,
    "exponential": exponential_squash,
    "none": unchanged,
}


def check_squash(value: Value) -> None:
    """Raise SpecError unless the field `squash` names one of `SQUASHES`."""
    check_choice(value, "squash", *SQUASHES)


def lengths(ops: Ops[A], capsules: A) -> A:
    """Return the lengths [B, J] of capsules [B, J, D]: the probability that each entity is present."""
    return ops.norm(capsules, -1)


def presence(ops: Ops[A], capsules: Capsules[A]) -> A:
    """Return how present each capsule is, [B, N]: its activation, or its length if it has none."""
    return lengths(ops, capsules.pose) if capsules.activation is None else capsules.activation


def log_sigmoid(ops: Ops[A], x: Any) -> Any:
    """Return log σ(x) of every element, finite wherever x is."""
    below = ops.relu(x * -1.0)
    return (below + ops.log(ops.exp((ops.relu(x) + below) * -1.0) + 1.0)) * -1.0  # -(max(-x, 0) + log(1 + e^-|x|))
