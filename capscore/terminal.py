"""The one way to the terminal: whatever is printed is printable, wherever its text comes from.

Class names, provenance, file names and other libraries' messages may hold control characters, which would clear a
screen or write the clipboard, and characters that an encoding lacks. `printable` shows them instead of sending them;
`guard` puts it between the command and both streams, and a `Terminal` applies it to all that rich draws.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import re
import sys
from collections.abc import Iterable
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

# Control characters, marks and overrides of the writing direction, separators of lines, surrogates, invisible tags.
HIDDEN = r"\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\U000e0000-\U000e007f"
LINES, LINE = re.compile(f"[{HIDDEN}]"), re.compile(f"[{HIDDEN}\t\n]")
PLAIN = {"×": "x", "…": "...", "→": "->", "–": "-", "−": "-", "±": "+-", "≤": "<=", "─": "-", "│": "|",
         **dict.fromkeys("╭╮╰╯", "+")}  # fmt: skip

CLOSED_PIPE = 128 + 13  # the exit status of what SIGPIPE ends, as `yes | head -1` has it


def printable(text: str, unsafe: re.Pattern[str] = LINE) -> str:
    r"""Return a line of text with all that is not to be printed as escapes: ESC is \x1b, a newline \n.

    With `LINES`, newlines and tabs stay. A byte of a file name that is not UTF-8 is shown as such, \xff.
    """
    return unsafe.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # how Python keeps such a byte
        return f"\\x{code - 0xDC00:02x}"
    return found[0].encode("unicode_escape").decode()


def json_line(value: Any) -> str:
    """Return JSON in one line of printable ASCII."""
    return json.dumps(value).replace("\x7f", r"\u007f")


def _degrade(error: UnicodeError) -> tuple[str, int]:
    """Write what a stream's encoding lacks in other characters: the handler of encoding errors."""
    assert isinstance(error, UnicodeEncodeError)
    lacking = error.object[error.start : error.end]
    return "".join(PLAIN.get(x) or x.encode("ascii", "backslashreplace").decode() for x in lacking), error.end


codecs.register_error("capscore.plain", _degrade)


class Terminal(Console):
    """rich's console with no text but printable text: neither markup nor control characters have an effect."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    @property
    def file(self) -> IO[str]:
        """The stream itself: while a bar runs, rich's own guard stands before this module's."""
        stream: Any = super().file
        while (behind := getattr(stream, "rich_proxied_file", None)) is not None:
            stream = behind
        return stream  # type: ignore[no-any-return]

    @file.setter
    def file(self, stream: IO[str]) -> None:
        self._file = stream

    @property
    def encoding(self) -> str:
        """The encoding of the stream that is written to now, by which rich chooses its lines and bars."""
        return str(getattr(self.file, "encoding", None) or "utf-8").lower()

    def on_broken_pipe(self) -> None:
        """End quietly when nobody reads the pipe any more: rich asks, and has an exit status of its own."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())  # for what Python has still to write there
        raise SystemExit(CLOSED_PIPE)

    def say(self, line: str) -> None:
        """Print one line, however long."""
        self.print(line, soft_wrap=True)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a string, which is one line, as rich's text."""
        return super().render_str(printable(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments of anything that rich draws; its own control codes are not among their texts."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text, LINES))


class _Guarded:
    """A text stream that makes printable what is written to it."""

    def __init__(self, stream: Any) -> None:
        self.rich_proxied_file = stream  # where rich writes: its colours may pass

    def write(self, text: str) -> int:
        self.rich_proxied_file.write(printable(text, LINES))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


def guard() -> None:
    """Make printable all that this process writes to its standard streams: warnings and tracebacks, too."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="capscore.plain")
        if stream is not None and not isinstance(stream, _Guarded):
            setattr(sys, name, _Guarded(stream))
