"""`capscore eval`: how good a model is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.table import Table

from capscore import disk
from capscore.cli.app import app, console, say
from capscore.cli.datasets import counted, datasets, parted, usual
from capscore.cli.shared import (
    Backend,
    DataDir,
    DataOf,
    Import,
    ModelPath,
    Provider,
    TakesFloats,
    Threads,
    open_model,
    takes_bytes,
)
from capscore.data import Samples
from capscore.errors import CapscoreError
from capscore.metrics import TOPS, Measures, joined
from capscore.train import measure

SPLITS = ("held-out", "train", "all")
LISTED = 50  # classes that the table has room for: a report has all
HARDEST = 32  # images


@app.command("eval")
def eval_command(
    model: ModelPath,
    data: DataOf = None,
    data_dir: DataDir = None,
    split: Annotated[str, typer.Option(help="Which images: held-out, train or all.")] = "held-out",
    report: Annotated[
        Path | None, typer.Option(help="Write report.json, confusion.png and hardest.png into this folder.")
    ] = None,
    backend_name: Backend = None,
    provider: Provider = None,
    threads: Threads = None,
    imports: Import = None,
) -> None:
    """Measure a model on images of a dataset: on its test set, or those held out when it was trained."""
    if split not in SPLITS:
        raise CapscoreError(f"there is no split {split!r}; choose one of {', '.join(SPLITS)}")
    if report is not None:
        import capscore.mistakes  # noqa: F401 - what is lacking is told before anything is measured

        disk.make_folder(report)
    net = open_model(model, backend_name, provider, threads)
    data = data or usual(net)
    train_set, test = datasets(net, data, data_dir, split)
    sets = {"held-out": [test], "train": [train_set], "all": [test] if parted(test) else [train_set, test]}[split]
    reader = TakesFloats(net, net.classes) if takes_bytes(net) else net
    found = joined([measure(reader, each) for each in sets])
    _say(found)
    wrong = found.images - int(found.right.sum())
    say(f"accuracy {found.accuracy:.2%}: {wrong:,} of {counted(sets, split, data)} are wrong")
    if report is not None:
        _write(found, sets, report)


def _say(found: Measures) -> None:
    """Print what each class reaches, and the means."""
    if len(found.classes) <= LISTED:
        table = Table("class", "images", "precision", "recall", "F1", box=None)
        for column in table.columns[1:]:
            column.justify = "right"
        for j, name in enumerate(found.classes):
            shares = (found.precision[j], found.recall[j], found.f1[j])
            table.add_row(name, f"{found.shown[j]:,}", *("-" if np.isnan(x) else f"{x:.2%}" for x in shares))
        console.print(table)
    tops = [] if found.count != 1 else [f"top {k} {found.top(k):.2%}" for k in TOPS[1:] if k < len(found.classes)]
    means = f"balanced accuracy {found.balanced_accuracy:.2%}", f"macro F1 {found.macro_f1:.2%}"
    say(", ".join((*means, *tops)))


def _write(found: Measures, sets: list[Samples], folder: Path) -> None:
    """Write the report's files, and say which."""
    from capscore import mistakes
    from capscore.figures import save

    disk.write_atomically(folder / "report.json", (json.dumps(found.as_json(), indent=2) + "\n").encode())
    say(f"{folder / 'report.json'}")
    index = found.hardest(HARDEST)
    figures = {"hardest": mistakes.hardest(_images(sets, index), found, index)}
    if found.confusion is not None:
        figures["confusion"] = mistakes.confusion(found)
    for name, figure in figures.items():
        save(figure, folder / f"{name}.png")
        say(f"{folder / f'{name}.png'}")


def _images(sets: list[Samples], index: np.typing.NDArray[np.int64]) -> np.typing.NDArray[np.float32]:
    """Return images [K, C, H, W] at positions of the sets, one after the other."""
    images = []
    for at in index:
        for data in sets:
            if at < len(data):
                images.append(data.batch(np.array([at]))[0])
                break
            at -= len(data)
    return np.concatenate(images)
