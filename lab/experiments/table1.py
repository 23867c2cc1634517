"""Table 1 of the paper: MNIST with one or three routing iterations, with and without reconstruction; and the CNN."""

from __future__ import annotations

from dataclasses import replace

from capscore import PRESETS, CapsNetSpec, DynamicRouting
from capscore.train import accuracy
from lab import baselines
from lab.experiments.trials import Budget, Lab, Values

BUDGETS = {
    "smoke": Budget(epochs=1, trials=1, images=64, test=32, batch=32),
    "quick": Budget(epochs=1, trials=2, batch=32),
    "hour": Budget(epochs=8, trials=2, batch=64),
    "full": Budget(epochs=300, trials=3, paper=True),
}


def run(lab: Lab) -> None:
    """Train every row once for each seed: the rows take turns, so that a stopped run has as many of each."""
    data, learn, test = lab.digits()
    base = PRESETS["mnist" if lab.budget.paper else "small"]
    rows: list[tuple[str, CapsNetSpec, int, bool]] = [
        ("CNN", baselines.MNIST if lab.budget.paper else baselines.like(base), 0, False)
    ]
    for routing in (1, 3):
        last = replace(base.capsules[-1], routing=DynamicRouting(routing))
        for decoder in (None, base.decoder):
            capsnet = base.replace(capsules=(*base.capsules[:-1], last), decoder=decoder)
            rows.append(("CapsNet", capsnet, routing, decoder is not None))
    for seed in lab.seeds:
        for network, spec, routing, drawn in rows:
            sizes = {"images": len(learn), "test": len(test), "parameters": spec.parameter_count}
            name = f"{network}-{routing}-{'drawn' if drawn else 'plain'}-{seed}"

            def error() -> Values:
                net = lab.fit(spec, learn, test, lab.budget.recipe(len(learn), seed), name)
                return {"error": 100 * (1 - accuracy(net, test))}  # of the last epoch, not the best

            lab.trial(error, data=data, **sizes, network=network, routing=routing, reconstruction=drawn, seed=seed)
