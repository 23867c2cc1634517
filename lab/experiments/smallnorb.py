"""smallNORB: toys from new viewpoints, as two pictures of a stereo camera (section 7)."""

from __future__ import annotations

from lab.experiments.ensemble import ensemble
from lab.experiments.trials import Budget, Lab

BUDGETS = {
    "smoke": Budget(epochs=1, trials=1, images=64, test=32, batch=32),
    "quick": Budget(epochs=2, trials=1),
    "hour": Budget(epochs=20, trials=2, batch=64),
    "full": Budget(epochs=150, trials=3, paper=True),
}


def run(lab: Lab) -> None:
    """Train a network for each seed."""
    ensemble(lab, "smallnorb", leaky=False)
