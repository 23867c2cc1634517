"""affNIST: trained on digits that were only moved, tested on digits that were rotated, sheared and scaled."""

from __future__ import annotations

from dataclasses import replace

from capscore import PRESETS, CapsNetSpec
from capscore.data import Affine, Framed, Placed, Samples, load
from capscore.errors import DataError
from capscore.train import accuracy
from lab import baselines
from lab.experiments.trials import Budget, Lab, Values

BUDGETS = {
    "smoke": Budget(epochs=1, trials=1, images=64, test=32, batch=32),
    "quick": Budget(epochs=1, trials=1),
    "hour": Budget(epochs=15, trials=1, batch=64),
    "full": Budget(epochs=100, trials=3, paper=True),
}


def run(lab: Lab) -> None:
    """Train both networks for each seed, and test them on moved and on transformed digits."""
    data, learn, test = lab.digits()
    moved, held_out = Framed(learn, 40, 40), Placed(test, 40, 1)
    transformed: Samples = Affine(test, 40, 1)
    kind = "generated"
    try:
        if data == "mnist":
            transformed, kind = load("mnist-affnist", data_dir=lab.data_dir)[1], "official"
    except DataError as error:
        lab.say(f"the official affNIST is not at hand, so its transformations are drawn here: {error}")
    base = PRESETS["mnist" if lab.budget.paper else "small"]
    capsnet = replace(base, input=moved.size)
    specs: dict[str, CapsNetSpec] = {"CapsNet": capsnet, "CNN": baselines.like(capsnet)}
    for seed in lab.seeds:
        for network, spec in specs.items():
            sizes = {"images": len(moved), "test": len(transformed), "parameters": spec.parameter_count}

            def errors() -> Values:
                recipe = lab.budget.recipe(len(moved), seed, shift=moved.shift)
                net = lab.fit(spec, moved, held_out, recipe, f"{network}-{seed}")
                return {"moved": 100 * (1 - accuracy(net, held_out)), "affine": 100 * (1 - accuracy(net, transformed))}

            lab.trial(errors, data=data, affnist=kind, **sizes, network=network, seed=seed)
