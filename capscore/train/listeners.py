"""Who is told how training goes."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import Any, Protocol

from capscore.train.interrupts import Interrupts

# Errors of an output that takes no more: a pipe or a terminal that nobody reads, a log on a full disk.
CLOSED = (errno.EPIPE, errno.EIO, errno.ENOSPC, errno.EDQUOT)


class Reporter(Protocol):
    """Who is told how training goes: the command line's progress bar, TensorBoard, a test."""

    def begin(self, epoch: int, epochs: int, steps: int, step: int) -> None:
        """Hear that an epoch of `steps` begins, or goes on at `step`."""

    def step(self, images: int, loss: float, accuracy: float) -> None:
        """Hear of a step, with the epoch's mean loss and accuracy so far."""

    def end(self, row: dict[str, Any]) -> None:
        """Hear of the end of an epoch: the row that the log gets.

        A reporter that has a method `note` hears there, as a line of text, what training suffers from.
        """


class Listeners:
    """All reporters of a training. One whose output is closed hears no more, and training is asked to stop."""

    def __init__(self, reporters: Iterable[Reporter], interrupts: Interrupts) -> None:
        self.reporters, self.interrupts = list(reporters), interrupts

    def tell(self, what: str, *about: Any) -> None:
        """Call the method `what` of every reporter."""
        for reporter in tuple(self.reporters):
            try:
                if what != "note" or hasattr(reporter, "note"):
                    getattr(reporter, what)(*about)
            except OSError as error:
                if error.errno not in CLOSED:
                    raise
                self.reporters.remove(reporter)
                self.interrupts.asked = True
