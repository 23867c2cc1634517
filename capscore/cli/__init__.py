"""The `capscore` command: one file for each of its own commands, train, eval and so on."""

# isort: off - as help lists them
from capscore.cli import bench, demo, eval, explore, export, inspect, predict, train, verify
from capscore.cli.app import app, main

# isort: on

__all__ = ["app", "bench", "demo", "eval", "explore", "export", "inspect", "main", "predict", "train", "verify"]
