"""The command as a whole: its options, its way to the screen, and how it ends."""

from __future__ import annotations

import sys
import warnings
from typing import Annotated, Any

import typer

from capscore import __version__
from capscore.errors import CapscoreError, DataWarning, TrainingWarning
from capscore.memory import kept
from capscore.terminal import Terminal, guard

app = typer.Typer(
    help="Capsule networks on NumPy, CuPy and PyTorch: train, look inside, export to ONNX.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
console, errors = Terminal(), Terminal(stderr=True)
UsageError: Any = typer.BadParameter.__base__  # of click, or of typer's own copy of it


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Take the options of the command as a whole."""
    if show:
        say(__version__)
        raise typer.Exit


def say(line: str) -> None:
    """Print a line."""
    console.say(line)


def main() -> None:
    """Run the command; an error of the user's ends with one line and exit code 1, or 2 for a wrong option."""
    warnings.simplefilter("always", DataWarning)
    warnings.showwarning = _warn
    guard()
    code = 1
    try:
        with kept():
            sys.exit(app(standalone_mode=False))
    except UsageError as error:  # not left to typer, which would print it as it is
        code, message = 2, error.format_message()
        if message and error.ctx:
            message = f"{message} (see {error.ctx.command_path} --help)"
    except CapscoreError as error:
        message = str(error)
    except MemoryError as error:
        message = f"not enough memory: {error or 'use a smaller batch or network'}"
    except OSError as error:
        message = f"{error.filename or ''}: {error.strerror or error}".lstrip(": ")
    except RuntimeError as error:  # PyTorch's, without a class of its own on the CPU
        if "allocate memory" not in str(error) and "out of memory" not in str(error):
            raise
        message = f"not enough memory: use a smaller batch or network ({str(error).splitlines()[0]:.120})"
    if message:  # none where the help was printed instead
        errors.say(f"capscore: error: {message}")
    sys.exit(code)


def _warn(message: Warning | str, category: type[Warning], *about: Any, **more: Any) -> None:
    """Print capscore's own warnings as a note, others as Python does."""
    if issubclass(category, TrainingWarning | DataWarning):
        errors.say(f"note: {message}")
    else:
        _show_warning(message, category, *about, **more)


_show_warning = warnings.showwarning
