"""The `capscore` command: one file for each of train, eval, predict, export, inspect, verify, explore, demo."""

from capscore.cli import train, eval, predict, export, inspect, verify, explore, demo  # noqa: I001 - as help lists them
from capscore.cli.app import app, main

__all__ = ["app", "demo", "eval", "explore", "export", "inspect", "main", "predict", "train", "verify"]
