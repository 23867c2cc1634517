"""`capscore demo`: a small network followed everywhere."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from capscore import PRESETS, backend, disk, modelfile
from capscore.cli.app import app, say
from capscore.cli.shared import Backend, default_backend, show_agreement
from capscore.cli.training import Setup, run_training
from capscore.data import load
from capscore.train import BEST, LAST, Recipe, accuracy, locked

DEMO = Recipe(epochs=20, batch=32, rate=3e-3, decay_steps=50, reconstruction=0.002)


@app.command("demo")
def demo_command(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("demo"),
    epochs: Annotated[int, typer.Option(help="Passes over the 5,000 digits.")] = DEMO.epochs,
    backend_name: Backend = None,
) -> None:
    """Train a small network on 5,000 real digits and follow it everywhere: evaluate, save, export, compare, draw."""
    from capscore.export.onnx import export
    from capscore.export.runtime import Session
    from capscore.figures import explore

    train_set, test_set = load("digits")
    recipe, setup = replace(DEMO, epochs=epochs), Setup(backend=backend_name or default_backend())
    caps = backend(setup.backend)
    about = modelfile.public(asdict(setup))
    net = caps.CapsNet(PRESETS["small"], seed=recipe.seed, classes=train_set.classes, provenance=about)
    say(f"1. Train {net.spec.parameter_count:,} parameters on {setup.backend} with {len(train_set):,} digits")
    run = disk.make_folder(out / "run")
    with locked(run):
        for old in (LAST, BEST):  # a demo starts anew
            (run / old).unlink(missing_ok=True)
    rows = run_training(net, setup.learner(net, recipe), (train_set, test_set, None), recipe, run, False, setup)
    model = out / "digits.safetensors"
    net.save(model)
    say(f"2. Saved {model} ({model.stat().st_size / 1e6:.1f} MB)")
    say(f"3. {accuracy(net, test_set):.2%} of the {len(test_set):,} test digits are right on {setup.backend}")
    onnx = out / "digits.onnx"
    export(net, onnx)
    session = Session(onnx)
    say(f"4. Exported {onnx}: {accuracy(session, test_set):.2%} are right in ONNX Runtime")
    say("5. The same network everywhere, largest differences from NumPy in float64:")
    agree = show_agreement(modelfile.read(model), test_set.batch(slice(0, 32))[0])
    say("6. What it learned, in pictures:")
    for path in explore(caps.load(model), test_set, out, rows):
        say(f"   {path}")
    if not agree:
        raise typer.Exit(1)
