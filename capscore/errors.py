"""Every error capscore raises on purpose. Each message names the thing, the value and the cure."""

from numbers import Integral
from typing import Any


def short(value: Any) -> str:
    """Return the repr of a value from anywhere, cut to what a message can hold."""
    try:
        text = repr(value)
    except Exception:  # an integer of thousands of digits, lists within lists, characters beyond Unicode
        text = f"<{type(value).__name__} that cannot be printed>"
    return text if len(text) <= 60 else text[:57] + "..."


class CapscoreError(Exception):
    """Base of all errors that capscore raises on purpose; the command line prints it without a traceback."""


class SpecError(CapscoreError, ValueError):
    """A network that cannot be built, or a spec that cannot be read."""


class ShapeError(CapscoreError, ValueError):
    """An array whose shape, dtype or name does not fit the network."""


class DataError(CapscoreError, ValueError):
    """A dataset that is missing, damaged or does not fit the network."""


class DataWarning(UserWarning):
    """What happened to data that could be read but not just as it is; the command line prints it as a note."""


class ModelFileError(CapscoreError, ValueError):
    """A model file that is damaged, foreign or does not fit its own spec."""


class TrainingError(CapscoreError, RuntimeError):
    """Training that cannot start, continue or go on (a non-finite loss, a checkpoint of other settings)."""


class TrainingWarning(UserWarning):
    """What a training that goes on cannot promise any more; the command line prints it as a note."""


class BackendError(CapscoreError, ImportError):
    """A backend that is unknown or whose library is not installed."""


def check_whole(name: str, value: Any, least: int) -> None:
    """Raise ShapeError unless `value`, of Python or NumPy, is a whole number of at least `least`."""
    if not isinstance(value, Integral) or value < least:
        raise ShapeError(f"{name} must be a whole number of at least {least}, not {short(value)}")
