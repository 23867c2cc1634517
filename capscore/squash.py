"""The non-linearity of capsules, and the length that says how present each is."""

from __future__ import annotations

from .ops import A, Ops, scope


def squash(ops: Ops[A], s: A, axis: int = -1) -> A:
    """Shrink vectors to a length below 1, keeping their direction (equation 1): v = ‖s‖²/(1+‖s‖²) · s/‖s‖.

    Zero for the zero vector and a unit vector for a very long one, with finite gradients at both.
    """
    with scope(ops, "squash"):
        n = ops.norm(s, axis, keepdims=True)
        m = n + 1.0
        p = n / m  # n/(1+n²) = p / ((p² + (1-p)²)·(1+n)): no square leaves the range of floats
        return s * (p / ((p * (p - 1.0) * 2.0 + 1.0) * m))


def lengths(ops: Ops[A], capsules: A) -> A:
    """Return the lengths [B, J] of capsules [B, J, D]: the probability that each entity is present."""
    return ops.norm(capsules, -1)
