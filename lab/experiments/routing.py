"""Convergence of the routing: by how much the logits and the couplings still change, pass after pass."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from capscore import PRESETS, DynamicRouting
from capscore.layer import Run
from capscore.net import forward, primary_capsules
from capscore.routing import LinearVotes
from lab.experiments.trials import Budget, Lab, Values

BUDGETS = {
    "smoke": Budget(epochs=1, trials=1, images=64, test=32, batch=32),
    "quick": Budget(epochs=1, trials=2),
    "hour": Budget(epochs=8, trials=2, batch=64),
    "full": Budget(epochs=300, trials=3, paper=True),
}
TRAINED = (1, 3, 5)  # iterations while learning
PASSES = 10  # iterations while looking


def run(lab: Lab) -> None:
    """Train with 1, 3 and 5 iterations, then follow ten of them on test images."""
    data, learn, test = lab.digits()
    base = PRESETS["mnist" if lab.budget.paper else "small"]
    found: dict[int, list[Values]] = {count: [] for count in TRAINED}
    for seed in lab.seeds:
        for count in TRAINED:
            spec = base.replace(capsules=(replace(base.capsules[-1], routing=DynamicRouting(count)),))

            def measure() -> Values:
                recipe = lab.budget.recipe(len(learn), seed)
                net = lab.fit(spec, learn, test, recipe, f"CapsNet-{count}-{seed}")
                return changes(net, test.batch(slice(0, 500))[0])

            sizes = {"images": len(learn), "test": min(500, len(test)), "parameters": spec.parameter_count}
            found[count].append(lab.trial(measure, data=data, **sizes, routing=count, seed=seed))
    from lab.experiments import pictures

    lab.draw("routing", lambda: pictures.convergence(found))


@torch.inference_mode()
def changes(net: Any, images: NDArray[Any]) -> Values:
    """Return the mean |change| of the logits b_ij and of the couplings c_ij at every pass over images [B, C, H, W].

    The change of a logit is the agreement û_ij · v_j that is added to it.
    """
    ops, spec = net.ops, net.spec
    longer = spec.replace(capsules=(replace(spec.capsules[-1], routing=DynamicRouting(PASSES)),))
    x = ops.asarray(images, next(net.parameters()))
    run = Run(trace=[])
    forward(ops, longer, net.params, x, run)
    weight, bias = net.params["capsules.0.weight"], net.params.get("capsules.0.bias")
    votes = LinearVotes(ops, primary_capsules(ops, spec, net.params, x), weight, bias, tuple(weight.shape))
    values: Values = {}
    for r, ((_, before, v, _), (_, after, *_)) in enumerate(pairwise(run.trace or ()), start=1):
        values[f"logits {r}"] = float(votes.agree(v).abs().mean())
        values[f"couplings {r}"] = float(abs(after - before).mean())
    return {name: value for name, value in values.items() if np.isfinite(value)}
