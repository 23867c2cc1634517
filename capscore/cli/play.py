"""`capscore play`: a page in the browser on which one draws, and sees what the capsules of a model do."""

from __future__ import annotations

import http.server
import signal
import sys
import tempfile
import webbrowser
from collections.abc import Mapping
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any

import typer

import capscore
from capscore.cli.app import app, say
from capscore.cli.shared import Import, found
from capscore.errors import CapscoreError

PAGE = Path(capscore.__file__).parent / "playground"  # docs/playground in a checkout
HOST, AT = "127.0.0.1", "/playground/"
RUNTIME = "ort.wasm.bundle.min.mjs"  # of onnxruntime-web


@app.command("play")
def play_command(
    models: Annotated[
        list[Path],
        typer.Argument(
            help="Models, exports or names of `capscore models`: the first to play with, all to compare.",
            callback=lambda paths: list(map(found, paths)),
        ),
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any that is free.")] = 8765,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
    runtime: Annotated[
        Path | None,
        typer.Option(help="Folder dist of npm's onnxruntime-web, to need no network; else the browser loads it."),
    ] = None,
    imports: Import = None,
) -> None:
    """Draw a digit, bend its capsule, and watch a model route: a page in the browser, served to this machine alone."""
    from capscore.export.playground import write

    if runtime is not None and not (runtime / RUNTIME).is_file():
        raise CapscoreError(
            f"there is no {RUNTIME} in {runtime}: npm install onnxruntime-web brings it, in "
            "node_modules/onnxruntime-web/dist"
        )
    with tempfile.TemporaryDirectory() as made:
        files = write(models, made, **({} if runtime is None else {"runtime": "runtime/"}))
        say(f"{len(files) - 1} files of {sum(path.stat().st_size for path in files) / 1e6:.1f} MB for the page")
        folders = {AT: PAGE, f"{AT}models/": Path(made)}
        if runtime is not None:
            folders[f"{AT}runtime/"] = runtime
        with serve(folders, port) as server:
            address = f"http://{HOST}:{server.server_address[1]}{AT}"
            say(f"{address} (Ctrl-C ends it)")
            if browser:
                webbrowser.open(address)
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # of who stops a server as Ctrl-C does
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                say("ended")


def serve(folders: Mapping[str, Path], port: int) -> http.server.ThreadingHTTPServer:
    """Return a server of the files in folders, by the beginnings of their addresses, for this machine alone."""
    try:
        return _Server((HOST, port), partial(_Files, folders))
    except OSError as error:
        raise CapscoreError(f"cannot serve on port {port}: {error.strerror}; --port 0 takes one that is free") from None


class _Server(http.server.ThreadingHTTPServer):
    """A server that takes it calmly when a browser has heard enough."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Tell of an error, but for a connection that the other side has closed."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Files(http.server.SimpleHTTPRequestHandler):
    """Files of several folders, none of which is listed."""

    protocol_version = "HTTP/1.1"  # a connection for many files: the page is there sooner

    # Some systems know other types for these, which browsers refuse.
    extensions_map = {  # noqa: RUF012 - of the base class
        **http.server.SimpleHTTPRequestHandler.extensions_map,
        ".js": "text/javascript",
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
        ".json": "application/json",
    }

    def __init__(self, folders: Mapping[str, Path], *args: Any) -> None:
        self.folders = folders
        super().__init__(*args)

    def translate_path(self, path: str) -> str:
        """Return the file of an address: in the folder of the longest beginning that fits."""
        start = max((start for start in self.folders if path.startswith(start)), key=len, default=None)
        if start is None:
            return ""
        self.directory = str(self.folders[start])
        return super().translate_path(path[len(start) - 1 :])

    def do_GET(self) -> None:
        """Answer; the root leads to the page."""
        if self.path == "/":
            self.send_response(HTTPStatus.FOUND)
            self.send_header("Location", AT)
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            super().do_GET()

    def list_directory(self, path: Any) -> None:
        """Refuse."""
        self.send_error(HTTPStatus.NOT_FOUND)

    def end_headers(self) -> None:
        """Have the browser ask each time: another model may be played with tomorrow."""
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, *args: Any) -> None:
        """Say nothing of every request."""
