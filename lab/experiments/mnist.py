"""MNIST as far as a budget brings it: the `small` network and the paper's, after every epoch and as ONNX exports."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from capscore import PRESETS
from capscore.data import Dataset
from capscore.train import Recipe, accuracy
from lab.experiments.trials import Budget, Lab, Values, subset

BUDGETS = {
    "smoke": Budget(epochs=1, trials=1, images=64, test=32, batch=32),
    "quick": Budget(epochs=2, trials=1),
    "hour": Budget(epochs=10, trials=1),
    "full": Budget(epochs=100, trials=3, paper=True),
}
EXPORTS = ("fp32", "fp16", "int8")


def run(lab: Lab) -> None:
    """Train both networks for each seed: the paper's only if there is an hour for it."""
    from lab.experiments import pictures

    data, learn, test = lab.digits()
    presets = ("small", "mnist") if lab.size in ("hour", "full") else ("small",)
    for seed in lab.seeds:
        for preset in presets:
            recipe = _recipe(preset, lab.budget, len(learn), seed)
            sizes = {"images": len(learn), "test": len(test), "parameters": PRESETS[preset].parameter_count}
            settings = {"data": data, **sizes, "network": preset, "epochs": recipe.epochs, "seed": seed}
            fast_conv = "6x6" if preset == "mnist" and lab.device == "cpu" else None

            def fit() -> Any:
                return lab.fit(PRESETS[preset], learn, test, recipe, f"{preset}-{seed}", fast_conv)

            lab.trial(lambda: _errors(lab, fit), **settings)
            if all(map(importlib.util.find_spec, ("onnx", "onnxruntime"))):
                lab.trial(lambda: _exported(lab, fit, learn, test), **settings, export="ONNX")
    lab.draw("mnist", lambda: pictures.curves([row for row in lab.summary() if "export" not in row["settings"]]))


def _recipe(preset: str, budget: Budget, images: int, seed: int) -> Recipe:
    """Return a recipe whose rate falls to a 150th; the small network is so cheap that it sees thrice the epochs."""
    epochs, batch, rate = (3 * budget.epochs, budget.batch // 2, 3e-3)
    if preset == "mnist":
        epochs, batch, rate = budget.epochs, budget.batch, 1e-3
    steps = epochs * -(-images // batch)
    return Recipe(epochs, batch, rate, decay=0.8, decay_steps=max(1, int(steps / 22.5)), seed=seed)


def _errors(lab: Lab, fit: Callable[[], Any]) -> Values:
    """Return the test error after every epoch and after the last, and how long training took."""
    fit()
    errors = {f"epoch {row['epoch']}": 100 * (1 - row["held_out_accuracy"]) for row in lab.rows}
    minutes = sum(row["seconds"] for row in lab.rows) / 60
    return {"error": errors[f"epoch {len(lab.rows)}"], "minutes": minutes, **errors}


def _exported(lab: Lab, fit: Callable[[], Any], learn: Dataset, test: Dataset) -> Values:
    """Return the test error of exports in ONNX Runtime, and their megabytes."""
    from capscore.export.onnx import export
    from capscore.export.runtime import Session

    net = fit()
    lab.spent = 0.0  # the training was a trial of its own
    shown = subset(learn, 512).batch(slice(None))[0]
    values = {}
    with tempfile.TemporaryDirectory() as folder:
        for precision in EXPORTS:
            path = Path(folder) / f"{precision}.onnx"
            report = export(net, path, precision=precision, calibration=shown if precision == "int8" else None)
            values[precision] = 100 * (1 - accuracy(Session(path), test))
            values[f"{precision} MB"] = report.bytes / 1e6
    return values
