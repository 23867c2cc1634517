"""The networks of docs/playground: four of equal size that differ in their routing alone, and one for two digits."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from capscore import PRESETS, CapsNetSpec, DenseCaps, DynamicRouting, Linear
from capscore.data import Augmentation, Dataset, Pairs
from capscore.data.augment import Rotation, Scale
from lab import baselines, files
from lab.experiments.trials import Budget, Lab

DIGITS = "digits.png"
TWO = "two-digits"  # the network that has learned from pairs
ROUNDS = 2  # of all digits in pairs, for each epoch of digits alone: two digits are harder
REACH = 3  # pixels that a digit of a pair is moved each way; MNIST leaves hardly less free around its digits
AUGMENT: tuple[Augmentation, ...] = (Rotation(15), Scale(0.1))  # people draw less upright than MNIST
BUDGETS = {
    "smoke": Budget(epochs=1, trials=1, images=64, test=32, batch=32),
    "quick": Budget(epochs=2, trials=1, batch=64),
    "hour": Budget(epochs=10, trials=1, batch=64),
}


def networks() -> dict[str, CapsNetSpec]:
    """Return the specs by the names of their files: `small` with three routings, a CNN of their size, one for two."""
    dynamic = PRESETS["small"]
    bare = replace(dynamic, decoder=None)
    cnn = baselines.like(bare)
    return {
        "dynamic-routing": dynamic,
        "self-attention": replace(PRESETS["small-attention"], decoder=None),
        "no-routing": bare.replace(capsules=(DenseCaps(10, routing=DynamicRouting(iterations=1)),)),
        "CNN": replace(cnn, layers=(*cnn.layers[:-1], Linear(10, "sigmoid")), loss=bare.loss),
        TWO: dynamic,
    }


def train(lab: Lab, names: Sequence[str] = ()) -> list[Path]:
    """Train the networks, or those of `names`, by one recipe, and return their files."""
    data, learn, test = lab.digits()
    epochs, folder, made = lab.budget.epochs, lab.runs / lab.name / lab.size, []
    for name, spec in networks().items():
        if names and name not in names:
            continue
        lab.say(f"{name}: {spec.parameter_count:,} parameters, {data}")
        if name == TWO:
            pairs, held_out = Pairs(close(learn), 0, ROUNDS * epochs, REACH), Pairs(close(test), 1, 1, REACH)
            recipe = lab.budget.recipe(len(pairs), 0, epochs=1, shift=0, reconstruction=0.002)
            net = lab.fit(spec, pairs, held_out, recipe, name)
        else:
            recipe = lab.budget.recipe(len(learn), 0, reconstruction=0.002, augment=AUGMENT)
            net = lab.fit(spec, learn, test, recipe, name)
        made.append(folder / f"{name}.safetensors")
        net.save(made[-1])
    return made


def close(data: Dataset) -> Dataset:
    """Return digits without the outermost pixels, so that moved by as many they fit into what they had before."""
    inner = slice(REACH, -REACH)
    return Dataset(np.ascontiguousarray(data.images[..., inner, inner]), data.labels, data.classes)


def write_digits(path: Path, data: Dataset, each: int = 6) -> None:
    """Write the first digits of every class as one PNG, a row of `each` for every class."""
    images = np.asarray(data.images)
    rows = [np.hstack(tuple(images[np.flatnonzero(data.labels == label)[:each], 0])) for label in range(10)]
    about, content = PngInfo(), io.BytesIO()
    about.add_text("Software", files.MARK)
    Image.fromarray(np.vstack(rows)).save(content, "PNG", pnginfo=about, optimize=True)
    files.write(path, content.getvalue())
