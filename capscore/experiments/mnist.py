"""MNIST as far as a budget brings it: the `small` network and the paper's, and their error after every epoch."""

from __future__ import annotations

from functools import partial

from capscore.data import Dataset
from capscore.experiments.lab import Budget, Lab, Values
from capscore.spec import PRESETS
from capscore.train import Recipe

BUDGETS = {
    "smoke": Budget(epochs=1, trials=1, images=64, test=32, batch=32),
    "quick": Budget(epochs=2, trials=1),
    "hour": Budget(epochs=10, trials=1),
    "full": Budget(epochs=100, trials=3, paper=True),
}


def run(lab: Lab) -> None:
    """Train both networks for each seed: the paper's only if there is an hour for it."""
    from capscore.experiments import pictures

    data, learn, test = lab.digits()
    presets = ("small", "mnist") if lab.size in ("hour", "full") else ("small",)
    for seed in lab.seeds:
        for preset in presets:
            recipe = _recipe(preset, lab.budget, len(learn), seed)
            sizes = {"images": len(learn), "test": len(test), "parameters": PRESETS[preset].parameter_count}
            measure = partial(_errors, lab, preset, learn, test, recipe)
            lab.trial(measure, data=data, **sizes, network=preset, epochs=recipe.epochs, seed=seed)
    lab.draw("mnist", lambda: pictures.curves(lab.summary()))


def _recipe(preset: str, budget: Budget, images: int, seed: int) -> Recipe:
    """Return a recipe whose rate falls to a 150th; the small network is so cheap that it sees thrice the epochs."""
    epochs, batch, rate = (3 * budget.epochs, budget.batch // 2, 3e-3)
    if preset == "mnist":
        epochs, batch, rate = budget.epochs, budget.batch, 1e-3
    steps = epochs * -(-images // batch)
    return Recipe(epochs, batch, rate, decay=0.8, decay_steps=max(1, int(steps / 22.5)), seed=seed)


def _errors(lab: Lab, preset: str, learn: Dataset, test: Dataset, recipe: Recipe) -> Values:
    """Return the test error after every epoch and after the last, and how long an epoch of training took."""
    fast_conv = "6x6" if preset == "mnist" and lab.device == "cpu" else None
    lab.fit(PRESETS[preset], learn, test, recipe, f"{preset}-{recipe.seed}", fast_conv)
    errors = {f"epoch {row['epoch']}": 100 * (1 - row["held_out_accuracy"]) for row in lab.rows}
    minutes = sum(row["seconds"] for row in lab.rows) / 60
    return {"error": errors[f"epoch {recipe.epochs}"], "minutes": minutes, **errors}
