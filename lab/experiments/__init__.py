"""The paper's experiments and its claims, as commands that go on where they were stopped.

One module each: `run(lab)` does the trials that are not done yet, `BUDGETS` says how much of it at which budget.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from capscore import backend
from capscore.errors import TrainingError

NAMES = ("mnist", "table1", "multimnist", "affnist", "cifar10", "smallnorb", "routing", "claims")


def experiment(name: str) -> ModuleType:
    """Return the module of an experiment."""
    if name not in NAMES:
        raise TrainingError(f"there is no experiment {name!r}; choose one of {', '.join(NAMES)}")
    backend("torch")  # in it the CNNs are written; it tells how to get it
    return import_module(f"{__name__}.{name}")
