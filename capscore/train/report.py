"""Who is told how training goes: a live bar or plain lines, and TensorBoard."""

from __future__ import annotations

import errno
import os
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from capscore.errors import TrainingError


class Screen:
    """A live bar for each epoch on a terminal, and in a notebook that has ipywidgets; else a plain line now and then.

    One line stays of every epoch.
    """

    def __init__(self, console: Console, every_seconds: float = 10.0, measured: str = "held-out") -> None:
        self.measured = measured  # what the images are called that every epoch is measured on
        widgets = console.is_jupyter and find_spec("ipywidgets") is not None
        self.live = console.is_terminal or widgets
        self.console, self.every = console, every_seconds
        self.bar: Progress | None = None
        self.task: TaskID | None = None

    def begin(self, epoch: int, epochs: int, steps: int, step: int) -> None:
        """Start the bar of an epoch."""
        self.name, self.steps, self.done = f"epoch {epoch}/{epochs}", steps, step
        self.started = self.told = time.monotonic()
        self.images = 0
        if self.live:
            columns = (
                "loss {task.fields[loss]:.4f}",
                "accuracy {task.fields[accuracy]:.2%}",
                "{task.fields[speed]:.0f} img/s",
            )
            self.bar = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *map(TextColumn, columns),
                TimeRemainingColumn(), console=self.console, transient=True,
            )  # fmt: skip
            self.task = self.bar.add_task(self.name, total=steps, completed=step, loss=0.0, accuracy=0.0, speed=0.0)
            self.bar.start()

    def step(self, images: int, loss: float, accuracy: float) -> None:
        """Move the bar, or print a line if the last one is a while ago."""
        self.images += images
        self.done += 1
        now = time.monotonic()
        speed = self.images / max(now - self.started, 1e-9)
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=self.done, loss=loss, accuracy=accuracy, speed=speed)
        elif now - self.told > self.every:
            self.told = now
            left = (self.steps - self.done) * (now - self.started) / max(1, self.images) * images
            self._print(f"{self.name} {self.done}/{self.steps} loss {loss:.4f} accuracy {accuracy:.2%} "
                        f"{speed:.0f} img/s {left:.0f} s left")  # fmt: skip

    def end(self, row: dict[str, Any]) -> None:
        """Replace the bar by the epoch's line."""
        self.close()
        self._print(
            f"{self.name} loss {row['loss']:.4f} accuracy {row['accuracy']:.2%} "
            f"{self.measured} {row['held_out_accuracy']:.2%} {row['images_per_second']:.0f} img/s "
            f"{row['seconds']:.1f} s"
        )

    def note(self, text: str) -> None:
        """Print what training suffers from."""
        self._print(f"note: {text}")

    def close(self) -> None:
        """Take the bar away, also when an epoch broke off."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _print(self, line: str) -> None:
        try:
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)
        except SystemExit:  # rich ends the program where nobody reads the pipe; a training has to be saved first
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from None


class TensorBoard:
    """TensorBoard events of every epoch, written by TensorBoard itself."""

    def __init__(self, folder: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.event, self.summary, self.open = Event, Summary, EventFileWriter
        self.folder = folder
        self.writer: Any = None

    def begin(self, epoch: int, epochs: int, steps: int, step: int) -> None:
        """Open the file, now that training has found the folder fit for it."""
        try:
            self.writer = self.writer or self.open(str(self.folder))
        except UnicodeEncodeError:  # other than Python's own, its functions take no other names
            raise TrainingError(
                f"TensorBoard cannot write into {self.folder}: its name is not UTF-8; choose another folder"
            ) from None

    def step(self, images: int, loss: float, accuracy: float) -> None:
        """Nothing is written within an epoch."""

    def end(self, row: dict[str, Any]) -> None:
        """Write every number of the row as a scalar."""
        values = [self.summary.Value(tag=name, simple_value=value) for name, value in row.items() if name != "epoch"]
        summary = self.summary(value=values)
        self.writer.add_event(self.event(wall_time=time.time(), step=row["epoch"], summary=summary))
        self.writer.flush()
