"""`capscore eval`: how accurate a model is."""

from __future__ import annotations

from typing import Annotated

import typer

from capscore.cli.app import app, say
from capscore.cli.datasets import counted, datasets, parted
from capscore.cli.shared import (
    Backend,
    Data,
    DataDir,
    ModelPath,
    Provider,
    TakesFloats,
    Threads,
    open_model,
    takes_bytes,
)
from capscore.errors import CapscoreError
from capscore.train import accuracy

SPLITS = ("held-out", "train", "all")


@app.command("eval")
def eval_command(
    model: ModelPath,
    data: Data = "digits",
    data_dir: DataDir = None,
    split: Annotated[str, typer.Option(help="Which images: held-out, train or all.")] = "held-out",
    backend_name: Backend = None,
    provider: Provider = None,
    threads: Threads = None,
) -> None:
    """Measure a model's accuracy on images of a dataset: on its test set, or those held out when it was trained."""
    if split not in SPLITS:
        raise CapscoreError(f"there is no split {split!r}; choose one of {', '.join(SPLITS)}")
    net = open_model(model, backend_name, provider, threads)
    train_set, test = datasets(net, data, data_dir, split)
    sets = {"held-out": [test], "train": [train_set], "all": [test] if parted(test) else [train_set, test]}[split]
    reader = TakesFloats(net) if takes_bytes(net) else net
    count = sum(map(len, sets))
    wrong = count - sum(round(accuracy(reader, each) * len(each)) for each in sets)
    say(f"accuracy {1 - wrong / count:.2%}: {wrong:,} of {counted(sets, split, data)} are wrong")
