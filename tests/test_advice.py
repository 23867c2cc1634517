"""What is said of a training that learns nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_plain_train import run

from capscore.data import load
from capscore.train import Recipe
from capscore.train.advice import Watch

CLASSES = ("cat", "cow", "dog", "pig")


def watched(said: Any, shown: Any, losses: list[float], accuracy: float, rate: float = 1e-3) -> str:
    watch = Watch(CLASSES)
    rng = np.random.default_rng(0)
    scores, targets = np.eye(4)[rng.choice(4, 1000, p=said)], np.eye(4)[rng.choice(4, 1000, p=shown)]
    watch.see(scores, targets)
    rows = [{"steps": 40 * (i + 1), "loss": loss, "accuracy": accuracy} for i, loss in enumerate(losses)]
    told = watch.advice(rows, Recipe(rate=rate))
    assert not told or watch.advice(rows, Recipe(rate=rate)) == ""  # once
    return told


EVEN, ONE = [0.25] * 4, [0, 0, 1, 0]


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (
            watched(ONE, EVEN, [0.9], 0.25, 0.1),
            "100% of the answers are 'dog', and 25% are right; the rate 0.1 is likely",
        ),
        (watched(EVEN, EVEN, [0.9, 0.9, 0.9], 0.25, 1e-6), "the loss has stayed at 0.9 for 3 epochs"),
        (watched(EVEN, EVEN, [0.9, 0.9, 0.9], 0.25, 1e-6), "the rate 1e-06 is likely too low: try 0.001"),
        (watched(EVEN, EVEN, [0.9, 0.9, 0.9], 0.25), "try a rate of 0.0001 or 0.01, and look at the images"),
        (watched(ONE, [0.05, 0.1, 0.8, 0.05], [0.9], 0.8), "(--class-weights balanced) or draw them alike"),
    ],
)
def test_what_is_wrong_and_what_may_help(told: str, expected: str) -> None:
    assert told.startswith("nothing is learned: ")
    assert expected in told


def test_a_training_that_learns_hears_nothing() -> None:
    assert watched(EVEN, EVEN, [0.9, 0.8, 0.7], 0.9) == ""
    assert watched(EVEN, EVEN, [0.9, 0.8, 0.7], 0.3) == ""
    assert watched(ONE, [0, 0, 1, 0], [0.1], 1.0) == ""


def test_a_rate_that_is_too_high_is_said_by_the_command(tmp_path: Path) -> None:
    train, test = load("digits")
    part = {"train_images": train.images[::4], "train_labels": train.labels[::4]}  # type: ignore[attr-defined]
    np.savez(tmp_path / "x.npz", **part, test_images=test.images[:50], test_labels=test.labels[:50])  # type: ignore[attr-defined]
    told = ["train", "--data", tmp_path / "x.npz", "--preset", "small", "--epochs", 2, "--batch", 32]
    said = run(*told, "--rate", 0.1, "--out", tmp_path / "high")
    assert "note: nothing is learned: " in said
    assert "the rate 0.1 is likely too high: try 0.001" in said
    assert "nothing is learned" not in run(*told, "--rate", 0.001, "--out", tmp_path / "right")
