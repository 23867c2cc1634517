"""`capscore augment`: pictures of what augmentation makes of images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from capscore.cli.app import app, say
from capscore.cli.choices import choose_augment
from capscore.cli.datasets import own_size, usual_shift
from capscore.cli.shared import Data, DataDir
from capscore.data import AUGMENTATIONS, load
from capscore.train import Recipe


@app.command("augment")
def augment_command(
    name: Annotated[str, typer.Argument(help=f"{', '.join(AUGMENTATIONS)}, or JSON of capscore.data.augment.")],
    data: Data = "digits",
    data_dir: DataDir = None,
    shift: Annotated[int | None, typer.Option(help="As of train: pixels each way; else the plain train's.")] = None,
    out: Annotated[Path, typer.Option(help="Picture to write.")] = Path("augmented.png"),
) -> None:
    """Draw images, and beside each what training with `train --augment` sees of it in eight epochs."""
    from capscore.figures import augmentations, save

    changes = choose_augment(name)
    train_set, _ = load(data, data_dir=data_dir, size=own_size(data))
    recipe = Recipe(shift=usual_shift(train_set) if shift is None else shift, augment=changes)
    recipe.check_size(*train_set.size[1:])
    save(augmentations(train_set, changes, shift=recipe.shift), out)
    say(str(out))
