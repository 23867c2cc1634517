"""The `capscore` command: one file for each of its commands."""

from capscore.cli import train, eval, predict, export, inspect, verify, explore  # noqa: I001 - help's order
from capscore.cli import import_, augment, demo
from capscore.cli.app import app, main

__all__ = [
    "app", "augment", "demo", "eval", "explore", "export", "import_", "inspect", "main", "predict", "train", "verify",
]  # fmt: skip
