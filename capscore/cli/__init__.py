"""The `capscore` command: one file for each of train, eval, predict, export, inspect, verify, import, explore, demo."""

from capscore.cli import train, eval, predict, export, inspect, verify, import_, explore, demo  # noqa: I001 - as help lists them
from capscore.cli.app import app, main

__all__ = ["app", "demo", "eval", "explore", "export", "import_", "inspect", "main", "predict", "train", "verify"]
