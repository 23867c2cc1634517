"""Signals that ask a training to stop."""

from __future__ import annotations

import signal
import sys
import threading


class Stopped(KeyboardInterrupt):
    """Training was interrupted, and all that it did is saved."""


class Interrupts:
    """Lets Ctrl-C, SIGTERM and SIGHUP wait for the end of a step: half a step could not be resumed exactly.

    A second one does not wait. Outside the main thread, where signals cannot be caught, nothing changes.
    """

    asked = False

    def __enter__(self) -> Interrupts:
        """Catch the signals."""
        self.main = threading.current_thread() is threading.main_thread()
        if self.main:
            caught = [signal.SIGINT, signal.SIGTERM]
            if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup has it
                caught.append(signal.SIGHUP)
            self.before = {which: signal.signal(which, self._ask) for which in caught}
        return self

    def __exit__(self, *_: object) -> None:
        """Handle them as before."""
        if self.main:
            for which, handler in self.before.items():
                signal.signal(which, handler)

    def _ask(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
