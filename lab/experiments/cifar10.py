"""CIFAR-10: an ensemble of networks on patches, with a none-of-the-above category (section 7)."""

from __future__ import annotations

from lab.experiments.ensemble import ensemble
from lab.experiments.trials import Budget, Lab

BUDGETS = {
    "smoke": Budget(epochs=1, trials=2, images=64, test=32, batch=32),
    "quick": Budget(epochs=2, trials=2),
    "hour": Budget(epochs=20, trials=3, batch=64),
    "full": Budget(epochs=150, trials=7, paper=True),
}


def run(lab: Lab) -> None:
    """Train every network and average the lengths that they find; leaky routing is the category."""
    ensemble(lab, "cifar10", leaky=True)
