"""`capscore predict`: which class image files show."""

from __future__ import annotations

import csv
import glob
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from numpy.typing import NDArray
from rich.table import Table

from capscore import disk
from capscore.cli.app import app, console, say
from capscore.cli.shared import Backend, Import, ModelPath, Provider, Threads, open_model, takes_bytes
from capscore.data import read_image
from capscore.data.images import SUFFIXES
from capscore.data.picture import FORMATS
from capscore.data.place import framed
from capscore.data.progress import track
from capscore.data.survey import own_sizes
from capscore.errors import CapscoreError, DataError
from capscore.losses import SHOWN
from capscore.terminal import json_line

BLOCK = 128  # images read at once
KINDS = (".csv", ".json", ".jsonl")


class Answer(NamedTuple):
    """What a network says of a file."""

    file: str  # JSON and CSV have no words for bytes that are not UTF-8: they are escaped
    classes: tuple[str, ...]  # of the highest scores, as many as an image shows, or all above 0.5 if that varies
    scores: dict[str, float]
    measure: str  # what a score is: the length of a capsule, or a score of the network's own

    def as_json(self, several: bool) -> str:
        """Return a line of JSON."""
        said = {"classes": self.classes} if several else {"class": self.classes[0]}
        return json_line({"file": self.file, **said, f"{self.measure}s": self.scores})


@app.command("predict")
def predict_command(
    model: ModelPath,
    images: Annotated[
        list[str],
        typer.Argument(help="PNG, JPEG, BMP, GIF, TIFF or WebP files, folders or patterns.", show_default=False),
    ],
    invert: Annotated[
        bool, typer.Option("--invert", help="The images are dark on light (transparency: white); the model's are not.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines: file, class, lengths or scores.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the answers into this .csv, .json or .jsonl file.")] = None,
    backend_name: Backend = None,
    provider: Provider = None,
    threads: Threads = None,
    imports: Import = None,
) -> None:
    """Say which class image files show, and how long its capsule is, or how high its score."""
    if out is not None and out.suffix.lower() not in KINDS:
        raise CapscoreError(f"cannot write answers as {out.name}: name a file that ends in {', '.join(KINDS)}")
    net = open_model(model, backend_name, provider, threads)
    shown = _shown(net)
    several = shown != 1
    answers = list(_answers(net, _files(images), invert, shown))
    if out is not None:
        disk.write_atomically(out, _written(answers, net.classes, out.suffix.lower(), several).encode())
        say(f"{out}: {len(answers):,} answers")
    elif as_json:
        for answer in answers:
            print(answer.as_json(several))
    else:
        console.print(_table(answers, several))


def _files(names: Sequence[str]) -> list[Path]:
    """Return the files that arguments mean: themselves, all images below a folder, or what fits a pattern."""
    files: list[Path] = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
        elif not path.exists() and glob.has_magic(name):
            found = sorted(map(Path, glob.glob(name, recursive=True)))
        else:
            found = [path]
        if not found:
            raise DataError(f"{name} has no images: they are {', '.join(SUFFIXES)} files")
        files += found
    return files


def _shown(net: Any) -> int | None:
    """Return how many classes an image shows, as training noted; None where some show several or none."""
    count = net.provenance.get("shows")
    if net.provenance.get("several") is True:
        return None
    return count if type(count) is int and 1 <= count <= len(net.classes) else 1


def _read(net: Any, path: Path, invert: bool) -> NDArray[np.uint8]:
    """Return an image file as the network takes it: of the size that it learned from, with as much around it.

    A file of the network's own size is such a picture already, as of two digits.
    """
    channels, height, width = size = net.spec.input
    match net.provenance.get("source"):
        case [int(tall), int(wide)] if 0 < tall <= 4 * height and 0 < wide <= 4 * width:
            framing = (tall, wide) != (height, width)  # of most networks not: then nobody asks how large a file is
            if framing and not any(own[1:] == (height, width) for own in own_sizes([path], FORMATS)):
                size = channels, tall, wide
    pixels = read_image(path, size, "white" if invert else None)
    (shown,) = framed((255 - pixels if invert else pixels)[None], height, width)
    return np.asarray(shown)


def _answers(net: Any, files: list[Path], invert: bool, shown: int | None) -> Iterator[Answer]:
    starts, measure = range(0, len(files), BLOCK), "score" if net.spec.own_scores else "length"
    for start in track(starts, "images") if len(starts) > 1 else starts:
        some = files[start : start + BLOCK]
        pixels = np.stack([_read(net, path, invert) for path in some])
        scores: NDArray[Any] = net.predict(pixels if takes_bytes(net) else pixels.astype(np.float32) / 255)
        for path, row in zip(some, scores, strict=True):
            order = np.argsort(-row, kind="stable")
            found = [i for i in order if row[i] > SHOWN] if shown is None else order[:shown]
            told = {net.classes[i]: round(float(n), 6) for i, n in enumerate(row)}
            file = os.fsencode(path).decode("utf-8", "backslashreplace")
            yield Answer(file, tuple(net.classes[i] for i in found), told, measure)


def _table(answers: Sequence[Answer], several: bool) -> Table:
    """Return the answers with the two highest scores of each, or the score of each class that was found."""
    measure = answers[0].measure
    table = Table(*(("file", "classes") if several else ("file", "class", measure, "next", measure)), box=None)
    for answer in answers:
        if several:
            told = ", ".join(f"{name} {answer.scores[name]:.3f}" for name in answer.classes)
            table.add_row(answer.file, told or "none")
        else:
            best = sorted(answer.scores.items(), key=lambda item: -item[1])[:2]
            table.add_row(answer.file, *(cell for name, score in best for cell in (name, f"{score:.3f}")))
    return table


def _written(answers: Sequence[Answer], classes: Sequence[str], kind: str, several: bool) -> str:
    lines = [answer.as_json(several) for answer in answers]
    if kind == ".jsonl":
        return "".join(f"{line}\n" for line in lines)
    if kind == ".json":
        return "[\n" + ",\n".join(lines) + "\n]\n"
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["file", "classes" if several else "class", *classes])
    for answer in answers:
        table.writerow([answer.file, ";".join(answer.classes), *answer.scores.values()])
    return text.getvalue()
