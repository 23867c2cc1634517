"""Losses: what training makes small. Each is summed over what one image has, and averaged over the batch.

Scores [B, J] are what a network says of each class: the activation of the class capsules where their layer gives one,
else their length. Targets [B, J] are 1 for each class that the image shows, several allowed, and 0 elsewhere.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

from .errors import ShapeError, SpecError, short
from .ops import A, Ops
from .squash import log_sigmoid
from .values import Value, check_flags, check_numbers, check_whole

SHOWN = 0.5  # the score above which an image is said to show a class, where it may show several or none


@dataclass(frozen=True)
class Loss(Value, ABC):
    """A loss and its settings. Subclasses are frozen dataclasses of JSON values.

    An image counts as much as the mean of `class_weights` over the classes it shows; 1 for all when None.
    """

    class_weights: tuple[float, ...] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Check the weights; any sequence is taken as a tuple."""
        weights = self.class_weights
        if weights is None:
            return
        if not isinstance(weights, list | tuple) or not all(type(w) in (int, float) and 0 <= w <= 1e9 for w in weights):
            raise SpecError(f"{type(self).__name__}: class_weights must be numbers from 0 to 1e9, not {short(weights)}")
        object.__setattr__(self, "class_weights", tuple(weights))

    @property
    def ranks(self) -> bool:
        """Whether it only puts the classes of an image in order, and cannot teach how many of them the image shows."""
        return False

    @abstractmethod
    def each(self, ops: Ops[A], scores: Any, targets: Any, step: int) -> Any:
        """Return the loss [B, 1] of each image at a step of training."""

    def chances(self, ops: Ops[A], scores: Any) -> Any:
        """Return how sure of each class a network is that learned by this loss, [B, J] in [0, 1]: its scores."""
        return scores

    def __call__(self, ops: Ops[A], scores: Any, targets: Any, step: int = 0) -> Any:
        """Return the mean loss of a batch: scores [B, J], targets [B, J]."""
        _check_alike("scores", scores, "targets", targets, "[B, J]: np.eye(J)[labels] makes targets of labels")
        loss = self.each(ops, scores, targets, step)
        if self.class_weights is not None:
            if len(self.class_weights) != scores.shape[1]:
                raise ShapeError(f"{len(self.class_weights)} class weights for {scores.shape[1]} classes")
            weights = ops.asarray([self.class_weights], scores)  # [1, J]
            shown = ops.sum(targets, 1, keepdims=True)
            none = ops.relu(shown * -1.0 + 1.0)  # 1 for an image that shows no class: it weighs 1
            loss = loss * (ops.sum(targets * weights, 1, keepdims=True) / (shown + none) + none)
        return _mean(ops, loss, 2)


@dataclass(frozen=True)
class MarginLoss(Loss):
    """L_k = T_k max(0, m⁺ - ‖v_k‖)² + λ (1 - T_k) max(0, ‖v_k‖ - m⁻)², summed over the classes (equation 4).

    (The authors' code averages over the classes too and halves the result: 1/20 of this value for ten classes.)
    `m_plus`, `m_minus` and `down_weight` are m⁺, m⁻ and λ.
    """

    m_plus: float = 0.9
    m_minus: float = 0.1
    down_weight: float = 0.5

    def __post_init__(self) -> None:
        """Check every setting."""
        super().__post_init__()
        check_numbers(self, "m_plus", "m_minus", most=1)
        check_numbers(self, "down_weight")

    def each(self, ops: Ops[A], scores: Any, targets: Any, step: int) -> Any:
        """Return the loss of each image."""
        short = ops.relu(scores * -1.0 + self.m_plus)
        long = ops.relu(scores - self.m_minus)
        loss = targets * short * short + (targets * -1.0 + 1.0) * long * long * self.down_weight  # [B, J]
        return ops.sum(loss, 1, keepdims=True)


@dataclass(frozen=True)
class SpreadLoss(Loss):
    """L = Σ_{t shown} Σ_{i not shown} max(0, m - (a_t - a_i))² (Hinton, Sabour, Frosst 2018, equation 3).

    The margin m grows from `start` to `end` with the steps of training: in equal steps over the first `steps` of them,
    or, if `smooth`, as sigmoid(step/`steps` - 4), which the authors gave in public (0.2, 0.99 and 50,000; Gritzman's
    code holds it beyond step/steps = 14, where 0.00005 are left).
    """

    start: float = 0.2
    end: float = 0.9
    steps: int = 10_000
    smooth: bool = False

    def __post_init__(self) -> None:
        """Check every setting."""
        super().__post_init__()
        check_numbers(self, "start", "end", most=1e3)
        check_whole(self, "steps", least=0, most=10**9)
        check_flags(self, "smooth")
        if self.smooth and not self.steps:
            raise SpecError("SpreadLoss: a smooth margin takes time to grow: steps must be at least 1, not 0")

    @property
    def ranks(self) -> bool:
        """It does: an image that shows no class, or all, has no loss."""
        return True

    def margin(self, ops: Ops[A], step: int, like: Any) -> Any:
        """Return m at a step, of the shape of `like` or a number. A compiled step has no value yet: no branch."""
        if self.smooth:
            grown = ops.sigmoid(like * 0.0 + (step / self.steps - 4.0))
            return grown * (self.end - self.start) + self.start
        ahead = 1.0 - step / self.steps if self.steps else 0.0
        ahead = (ahead + abs(ahead)) / 2  # at least 0
        return self.start + (self.end - self.start) * (1.0 - ahead)

    def each(self, ops: Ops[A], scores: Any, targets: Any, step: int) -> Any:
        """Return the loss of each image."""
        j = scores.shape[1]
        shown, other = ops.reshape(targets, (-1, j, 1)), ops.reshape(targets * -1.0 + 1.0, (-1, 1, j))
        gap = ops.reshape(scores, (-1, 1, j)) - ops.reshape(scores, (-1, j, 1))
        gap = gap + self.margin(ops, step, gap)
        short = ops.relu(gap)  # [B, t, i]
        return ops.reshape(ops.sum(short * short * shown * other, (1, 2)), (-1, 1))


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """-Σ_k T_k log p_k, with p the softmax of scale · scores.

    Not `exclusive`, every class has a probability of its own, p_k = sigmoid(scale · (score_k - 1/2)), for images that
    show several or none: -Σ_k T_k log p_k + (1 - T_k) log (1 - p_k). It is even at the score above which a class counts
    as shown, and lengths, which are never below 0, can say no. They lie in [0, 1]: they need a `scale` above 1.
    """

    scale: float = 1.0
    exclusive: bool = True

    def __post_init__(self) -> None:
        """Check every setting."""
        super().__post_init__()
        check_numbers(self, "scale", least=1e-6)
        check_flags(self, "exclusive")

    @property
    def ranks(self) -> bool:
        """A softmax does: its probabilities sum to 1, whatever the image shows."""
        return self.exclusive

    def chances(self, ops: Ops[A], scores: Any) -> Any:
        """Return p."""
        x = self._logits(scores)
        return ops.softmax(x, 1) if self.exclusive else ops.sigmoid(x)

    def each(self, ops: Ops[A], scores: Any, targets: Any, step: int) -> Any:
        """Return the loss of each image."""
        x = self._logits(scores)
        if self.exclusive:
            x = x - ops.max(x, 1, keepdims=True)
            log_p = x - ops.log(ops.sum(ops.exp(x), 1, keepdims=True))
            return ops.sum(targets * log_p, 1, keepdims=True) * -1.0
        log_p = targets * log_sigmoid(ops, x) + (targets * -1.0 + 1.0) * log_sigmoid(ops, x * -1.0)
        return ops.sum(log_p, 1, keepdims=True) * -1.0

    def _logits(self, scores: Any) -> Any:
        return scores * self.scale if self.exclusive else (scores - SHOWN) * self.scale


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
