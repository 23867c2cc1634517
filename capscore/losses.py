"""The two losses of the paper. Both are sums over what one image has and means over the batch."""

from __future__ import annotations

from typing import Any

from .errors import ShapeError
from .ops import A, Ops


def margin_loss(
    ops: Ops[A],
    lengths: A,
    one_hot: A,
    m_plus: float = 0.9,
    m_minus: float = 0.1,
    down_weight: float = 0.5,
) -> A:
    """Return the margin loss (equation 4): summed over classes, averaged over the batch, as in the paper.

    L_k = T_k max(0, m⁺ - ‖v_k‖)² + λ (1 - T_k) max(0, ‖v_k‖ - m⁻)²

    (The authors' code averages over the classes too and halves the result: 1/20 of this value for ten classes.)

    Parameters
    ----------
    lengths : [B, J], lengths of the class capsules
    one_hot : [B, J], T: 1 for each class present in the image, several allowed, 0 elsewhere
    m_plus, m_minus, down_weight : m⁺, m⁻ and λ
    """
    _check_alike("lengths", lengths, "one_hot", one_hot, "[B, J]: np.eye(J)[labels] makes one_hot of labels")
    short = ops.relu(lengths * -1.0 + m_plus)
    long = ops.relu(lengths - m_minus)
    loss = one_hot * short * short + (one_hot * -1.0 + 1.0) * long * long * down_weight  # [B, J]
    return _mean(ops, loss, 2)


def reconstruction_loss(ops: Ops[A], images: A, reconstruction: A, weight: float = 0.0005) -> A:
    """Return weight × Σ (image - reconstruction)², summed over pixels, averaged over the batch (section 4.1).

    Both arrays are [B, C, H, W].
    """
    _check_alike("images", images, "reconstruction", reconstruction, "[B, C, H, W]")
    difference = reconstruction - images
    return _mean(ops, difference * difference, 4) * weight


def _check_alike(name: str, x: Any, other: str, y: Any, wanted: str) -> None:
    if tuple(x.shape) != tuple(y.shape):  # else they would be broadcast, to another loss
        raise ShapeError(f"{name} {list(x.shape)} and {other} {list(y.shape)} must be of one shape {wanted}")


def _mean(ops: Ops[A], x: Any, ndim: int) -> A:
    # Losses are never recorded, so they alone may read the batch size.
    return ops.sum(x, tuple(range(ndim))) / x.shape[0]  # type: ignore[no-any-return]
