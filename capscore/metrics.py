"""How good class scores are, in more than one number.

In NumPy, and without a library for it: a confusion matrix is one `bincount`, and all the rest are its sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ShapeError
from .losses import SHOWN

TOPS = (1, 3, 5)


@dataclass(frozen=True, eq=False)
class Measures:
    """Measures of scores [N, J] against targets [N, J], which are 1 for each class that an image shows.

    `count` is how many classes every image shows: the classes of so many highest scores are the answers. None is for
    images that show some classes or none: then every class whose score is above 0.5 is an answer.
    """

    scores: NDArray[Any]
    targets: NDArray[Any]
    classes: tuple[str, ...]
    count: int | None = 1

    def __post_init__(self) -> None:
        """Check that the three fit together."""
        if self.scores.shape != self.targets.shape or self.scores.shape[1:] != (len(self.classes),):
            raise ShapeError(
                f"scores {self.scores.shape} and targets {self.targets.shape} of {len(self.classes)} classes: both "
                "must be [N, J]"
            )
        if self.count is not None and np.any(self.targets.sum(1) != self.count):
            raise ShapeError(f"there are images that do not show {self.count} classes: measure them with count=None")

    @property
    def images(self) -> int:
        """The number of images, N."""
        return len(self.scores)

    @cached_property
    def answers(self) -> NDArray[np.bool_]:
        """[N, J]: which classes the network says that an image shows."""
        if self.count is None:
            return np.asarray(self.scores > SHOWN)
        best = np.argsort(-self.scores, axis=1, kind="stable")[:, : self.count]
        found = np.zeros(self.scores.shape, np.bool_)
        np.put_along_axis(found, best, True, 1)
        return found

    @cached_property
    def right(self) -> NDArray[np.bool_]:
        """[N]: whether all the answers for an image are right, and none is missing."""
        return np.asarray((self.answers == (self.targets > 0)).all(1))

    @property
    def accuracy(self) -> float:
        """The share of images that are right: of those that show several classes, of exact matches."""
        return float(self.right.mean())

    @cached_property
    def confusion(self) -> NDArray[np.int64] | None:
        """[J, J]: how many images of the class of a row got the answer of a column; None unless each shows one."""
        if self.count != 1:
            return None
        j = len(self.classes)
        pairs = self.targets.argmax(1) * j + self.scores.argmax(1)
        return np.bincount(pairs, minlength=j * j).reshape(j, j)

    @cached_property
    def shown(self) -> NDArray[np.int64]:
        """[J]: how many images show each class."""
        counts: NDArray[np.int64] = np.sum(self.targets > 0, axis=0, dtype=np.int64)
        return counts

    @cached_property
    def _hits(self) -> NDArray[np.int64]:
        counts: NDArray[np.int64] = np.sum(self.answers & (self.targets > 0), axis=0, dtype=np.int64)
        return counts

    @cached_property
    def recall(self) -> NDArray[np.float64]:
        """[J]: the share found of the images that show a class; NaN if none does."""
        return _share(self._hits, self.shown)

    @cached_property
    def precision(self) -> NDArray[np.float64]:
        """[J]: the share right of the answers of a class; NaN if there was none."""
        return _share(self._hits, self.answers.sum(0))

    @cached_property
    def f1(self) -> NDArray[np.float64]:
        """[J]: 2 hits / (shown + answered), the harmonic mean of both; NaN for a class neither shown nor answered."""
        return _share(2 * self._hits, self.shown + self.answers.sum(0))

    @property
    def balanced_accuracy(self) -> float:
        """The mean recall of the classes that are shown: 1 / J for guessing, however rare a class is."""
        return _mean(self.recall)

    @property
    def macro_f1(self) -> float:
        """The mean F1 of the classes."""
        return _mean(self.f1)

    def top(self, k: int) -> float:
        """Return the share of images whose class is among the k highest scores."""
        shown = self.targets.argmax(1)[:, None]
        own = np.take_along_axis(self.scores, shown, 1)
        before = np.arange(len(self.classes)) < shown  # of equal scores the first class comes first
        above = ~(self.scores <= own) | ((self.scores == own) & before)  # NaN is above all: it is no answer
        return float((above.sum(1) < k).mean())

    def hardest(self, count: int) -> NDArray[np.int64]:
        """Return the positions of `count` images, the most wrong first.

        That is by how far the score of a class that is not shown lies above that of one that is.
        """
        shown = self.targets > 0
        lowest = np.where(shown, self.scores, np.inf).min(1)
        highest = np.where(shown, -np.inf, self.scores).max(1)
        gap = np.where(np.isfinite(lowest), lowest, SHOWN) - np.where(np.isfinite(highest), highest, SHOWN)
        return np.argsort(gap, kind="stable")[:count]

    def as_json(self) -> dict[str, Any]:
        """Return all of it as JSON values; what is not defined is null."""
        told: dict[str, Any] = {"images": self.images, "accuracy": self.accuracy}
        told |= {"balanced_accuracy": _number(self.balanced_accuracy), "macro_f1": _number(self.macro_f1)}
        if self.count == 1:
            told["top"] = {str(k): self.top(k) for k in TOPS if k < len(self.classes)}
        told["classes"] = {
            name: {
                "images": int(self.shown[j]),
                "precision": _number(self.precision[j]),
                "recall": _number(self.recall[j]),
                "f1": _number(self.f1[j]),
            }
            for j, name in enumerate(self.classes)
        }
        if self.confusion is not None:
            told["confusion"] = self.confusion.tolist()
        return told


def joined(parts: Sequence[Measures]) -> Measures:
    """Return the measures of the images of several sets together."""
    scores, targets = (np.concatenate([getattr(part, name) for part in parts]) for name in ("scores", "targets"))
    return Measures(scores, targets, parts[0].classes, parts[0].count)


def _share(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def _mean(values: NDArray[np.float64]) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
