"""The `capscore` command: one file for each of its commands."""

# As help lists them.
from capscore.cli import (  # noqa: I001
    train, eval, predict, export, inspect, verify, bench, explore, play, import_, augment, models, demo,
)  # fmt: skip
from capscore.cli.app import app, main

__all__ = [
    "app", "augment", "bench", "demo", "eval", "explore", "export", "import_", "inspect", "main", "models", "play",
    "predict", "train", "verify",
]  # fmt: skip
