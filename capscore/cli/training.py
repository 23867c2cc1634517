"""What `train` and `demo` share: where a training runs, and a training on the screen."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import typer

from capscore import backend as backend_named
from capscore.cli.app import console, errors
from capscore.cli.shared import quoted
from capscore.data import Samples
from capscore.terminal import CLOSED_PIPE
from capscore.train import LAST, Recipe, Reporter, Stopped, train
from capscore.train.report import Screen, TensorBoard


@dataclass(frozen=True)
class Setup:
    """What `train --resume` must know beside network and recipe: where the data are, and what computes."""

    data: str = "digits"
    data_dir: str | None = None
    backend: str = "numpy"
    device: str | None = None
    amp: bool = False
    compile: bool = False
    fast_conv: str | None = None
    validation: float = 0.0

    @classmethod
    def of(cls, provenance: Mapping[str, Any]) -> Setup | None:
        """Return what a checkpoint tells, each of its kind; None of a file that does not tell all of it."""
        told = provenance.get("resume", provenance)  # checkpoints of 0.1 keep it beside the rest
        if "recipe" not in provenance or not isinstance(told, dict):
            return None
        for field in fields(cls):
            later = field.default if field.name == "validation" else ...  # which older checkpoints do not tell
            usual, found = field.default, told.get(field.name, later)
            if type(found) is not type(usual) and not (usual is None and isinstance(found, str)):
                return None
        return cls(**{field.name: told[field.name] for field in fields(cls) if field.name in told})

    def learner(self, net: Any, recipe: Recipe) -> Any:
        """Return the learner of a network: its backend's, with the options that were given."""
        options = {name: value for name in ("device", "amp", "compile") if (value := getattr(self, name))}
        return backend_named(self.backend).Learner(
            net, recipe.reconstruction, recipe.optimiser, recipe.average, **options
        )


def run_training(
    net: Any,
    learner: Any,
    sets: tuple[Samples, Samples, Samples | None],
    recipe: Recipe,
    out: Path,
    resume: bool,
    setup: Setup,
    others: tuple[Reporter, ...] = (),
) -> list[dict[str, Any]]:
    """Train with a bar, and TensorBoard where it is installed; Ctrl-C ends with the command that goes on.

    `sets` are those to learn from, held out, and to test by if what is held out chooses the best epoch.
    """
    screen = Screen(console, measured="validation" if setup.validation else "held-out")
    reporters: list[Reporter] = []
    if learner.writes:
        reporters = [screen, *([TensorBoard(out)] if importlib.util.find_spec("tensorboard") else []), *others]
    try:
        told: dict[str, Any] = {"reporters": tuple(reporters), "resuming": asdict(setup)}
        learn, held_out, test = sets
        return train(net, learner, learn, held_out, recipe, out, resume, **told, test=test)
    except KeyboardInterrupt as stop:
        screen.close()
        if learner.writes:
            saved = "everything is saved" if isinstance(stop, Stopped) else "at once, after the last checkpoint"
            go_on = f"{saved}. Go on with: capscore train --resume {quoted(str(out))}"
            errors.say(f"stopped; {go_on if (out / LAST).exists() else 'nothing was saved yet'}")
        raise typer.Exit(CLOSED_PIPE if console.quiet else 130) from None
    finally:
        screen.close()
