"""MultiMNIST: two overlapping digits, both to be found, and each to be drawn on its own (section 6)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from capscore import PRESETS, CapsNetSpec
from capscore.data import Pairs
from capscore.train import accuracy
from lab import baselines
from lab.experiments.trials import Budget, Lab, Values

BUDGETS = {
    "smoke": Budget(epochs=1, trials=1, images=64, test=32, batch=32),
    "quick": Budget(epochs=4, trials=1, batch=64),
    "hour": Budget(epochs=24, trials=1, batch=64),
    "full": Budget(epochs=1, trials=3, paper=True),
}
PAIRS = 300  # for each digit, at full budget; the paper has 1,000
SHOWN = 18


def run(lab: Lab) -> None:
    """Train the capsule network and the CNN, each seed in turn; draw some test pairs in two colours."""
    from capscore import figures

    data, learn, test = lab.digits()
    # All pairs differ: what another epoch would show are other pairs.
    pairs = Pairs(learn, 0, PAIRS if lab.budget.paper else lab.budget.epochs)
    held_out = Pairs(test, 1, 10 if lab.budget.paper else 1)
    capsnet = PRESETS["multimnist"] if lab.budget.paper else replace(PRESETS["small"], input=pairs.size)
    cnn = baselines.MULTIMNIST if lab.budget.paper else baselines.like(capsnet, exclusive=False)
    specs: dict[str, CapsNetSpec] = {"CapsNet": capsnet, "CNN": cnn}

    def fit(network: str, seed: int) -> Any:
        weight = 0.0005 if lab.budget.paper else 0.002  # so that few epochs draw well
        recipe = lab.budget.recipe(len(pairs), seed, epochs=1, shift=0, reconstruction=weight)
        return lab.fit(specs[network], pairs, held_out, recipe, f"{network}-{seed}")

    for seed in lab.seeds:
        for network, spec in specs.items():

            def error() -> Values:
                return {"error": 100 * (1 - accuracy(fit(network, seed), held_out))}

            sizes = {"images": len(pairs), "test": len(held_out), "parameters": spec.parameter_count}
            lab.trial(error, data=data, **sizes, epochs=1, network=network, seed=seed)
    index = np.arange(min(SHOWN, len(held_out)))
    lab.draw("multimnist", lambda: figures.overlapping(fit("CapsNet", 0), held_out, index))
