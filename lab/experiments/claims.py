"""The claims about capsules, measured: the small capsule network against a CNN of equal size, trained alike."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from capscore import PRESETS, CapsNetSpec
from capscore.data import Dataset
from capscore.train import accuracy
from lab import baselines
from lab.experiments import attack, efficiency, equivariance, pooling, quadrants
from lab.experiments.trials import Budget, Lab, Values, subset

BUDGETS = {
    "smoke": Budget(epochs=1, trials=1, images=150, test=40, batch=32, steps=2),
    "quick": Budget(epochs=2, trials=2, batch=64, steps=500),
    "hour": Budget(epochs=5, trials=2, batch=64, steps=800),
    "full": Budget(epochs=50, trials=5, steps=10_000),
}
ATTACKED, POOLED = 300, 2500  # digits: attacks take time, and readers of whole maps take memory


def run(lab: Lab) -> None:
    """Measure every claim for each seed, then draw what was found."""
    from lab.experiments import pictures

    data, learn, test = lab.digits()
    capsnet = PRESETS["small"]
    # As many last features as a capsule has numbers, to be compared with it; for its error alone the CNN needs none.
    narrow = baselines.like(capsnet, features=capsnet.capsules[-1].dim)
    specs: dict[str, CapsNetSpec] = {"CapsNet": capsnet, "CNN": narrow}
    plain: dict[str, CapsNetSpec] = {"CapsNet": capsnet, "CNN": baselines.like(capsnet)}

    @cache
    def net(network: str, seed: int) -> Any:
        recipe = lab.budget.recipe(len(learn), seed)
        return lab.fit(specs[network], learn, test, recipe, f"{network}-{seed}")

    measures: dict[str, tuple[Callable[[Any, Dataset], Values], Dataset]] = {
        "equivariance": (equivariance.measure, test),
        "part-whole": (quadrants.measure, test),
        "adversarial": (attack.measure, subset(test, ATTACKED)),
        "pooling": (pooling.measure, subset(test, POOLED)),
    }
    counts = [count for count in efficiency.COUNTS if efficiency.few_examples(learn, count, 1, 0) is not None]
    for seed in lab.seeds:
        for network, spec in specs.items():
            known = {"data": data, "network": network, "seed": seed}
            for claim, (measure, digits) in measures.items():
                sizes = {"images": len(learn), "test": len(digits), "parameters": spec.parameter_count}
                lab.trial(lambda: measure(net(network, seed), digits), claim=claim, **sizes, **known)
            for count in counts:

                def learned() -> Values:
                    shown = efficiency.few_examples(learn, count, lab.budget.steps * lab.budget.batch, seed)
                    assert shown is not None
                    recipe = lab.budget.recipe(len(shown), seed, epochs=1)
                    fitted = lab.fit(plain[network], shown, subset(test, 100), recipe, f"{network}-{count}-{seed}")
                    return {"error": 100 * (1 - accuracy(fitted, test))}

                sizes = {"examples": count, "test": len(test), "parameters": plain[network].parameter_count}
                lab.trial(learned, claim="efficiency", **sizes, **known)

    def nets() -> dict[str, Any]:
        return {network: net(network, 0) for network in specs}

    def readings() -> dict[str, dict[str, equivariance.Reading]]:
        return {network: equivariance.readings(found, test) for network, found in nets().items()}

    lab.draw("equivariance", lambda: pictures.equivariance(readings()))
    lab.draw("parts", lambda: pictures.parts(nets(), test))
    lab.draw("pooling", lambda: pictures.pooling(nets(), subset(test, POOLED)))
    lab.draw("efficiency", lambda: pictures.efficiency(lab.summary(claim="efficiency")))
    lab.draw("adversarial", lambda: pictures.adversarial(lab.summary(claim="adversarial")))
