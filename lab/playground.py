"""The networks of docs/playground: the zoo's, and others to compare with them."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from capscore import PRESETS, CapsNetSpec, Decoder, DenseCaps, DynamicRouting, Linear, modelfile, zoo
from capscore.data import Augmentation, Dataset, Pairs, load
from capscore.data.augment import Rotation, Scale
from lab import baselines, files
from lab.experiments.trials import Budget, Lab

DIGITS = "digits.png"
SHOWN = "small-mnist", "efficient-mnist", "dynamic-mnist"  # of the zoo; the first is played with: it has a decoder
TWO = "efficient-multimnist"  # of the zoo, for two digits
DRAWN = 128, 128  # hidden numbers of a decoder for it: a small page
LARGEST = 300_000  # parameters of a decoder of its own, for the same reason
AUGMENT: tuple[Augmentation, ...] = (Rotation(15), Scale(0.1))  # people draw less upright than MNIST
BUDGETS = {
    "smoke": Budget(epochs=1, trials=1, images=64, test=32, batch=32),
    "quick": Budget(epochs=2, trials=1, batch=64),
    "hour": Budget(epochs=10, trials=1, batch=64),
}


def networks() -> dict[str, CapsNetSpec]:
    """Return the specs of those that are trained here: `small` without routing, and a CNN as large."""
    bare = replace(PRESETS["small"], decoder=None)
    cnn = baselines.like(bare)
    return {
        "no-routing": bare.replace(capsules=(DenseCaps(10, routing=DynamicRouting(iterations=1)),)),
        "CNN": replace(cnn, layers=(*cnn.layers[:-1], Linear(10, "sigmoid")), loss=bare.loss),
    }


def made(lab: Lab) -> list[Path]:
    """Return the files of all networks of the page; those that the zoo does not have are trained."""
    return [*map(zoo.path, SHOWN), *train(lab), zoo.path(TWO)]


def for_two(path: Path) -> bool:
    """Return whether a model has learned from pairs of digits."""
    if path.suffix != zoo.END:
        return False
    return modelfile.read(path).provenance.get("shows") == 2


def drawing(lab: Lab, path: Path) -> Path:
    """Return a model for two digits with a small decoder: its own, or one that learns here what its capsules say."""
    model = modelfile.read(path)
    bare = model.spec.replace(decoder=None)
    if 0 < model.spec.parameter_count - bare.parameter_count <= LARGEST:
        return path
    _, learn, test = lab.digits()
    spec, keeps = bare.replace(decoder=Decoder(hidden=DRAWN)), {name: model.params[name] for name in bare.parameters}
    recipe = lab.budget.recipe(len(learn), 0, shift=0, reconstruction=1.0)
    net = lab.fit(spec, Pairs(learn, 0, 1), Pairs(test, 1, 1), recipe, f"{path.stem}-decoder", keeps=keeps)
    net.provenance |= model.provenance
    net.save(target := lab.runs / lab.name / lab.size / path.name)
    return target


def train(lab: Lab) -> list[Path]:
    """Train `networks` by one recipe, and return their files."""
    data, learn, test = lab.digits()
    folder, trained = lab.runs / lab.name / lab.size, []
    for name, spec in networks().items():
        lab.say(f"{name}: {spec.parameter_count:,} parameters, {data}")
        recipe = lab.budget.recipe(len(learn), 0, reconstruction=0.002, augment=AUGMENT)
        net = lab.fit(spec, learn, test, recipe, name)
        trained.append(folder / f"{name}.safetensors")
        net.save(trained[-1])
    return trained


def write_digits(path: Path, each: int = 6) -> None:
    """Write test digits of every class as one PNG, a row of `each` for every class."""
    data = load("digits")[1]
    assert isinstance(data, Dataset)
    images = np.asarray(data.images)
    rows = [np.hstack(tuple(images[np.flatnonzero(data.labels == label)[:each], 0])) for label in range(10)]
    about, content = PngInfo(), io.BytesIO()
    about.add_text("Software", files.MARK)
    Image.fromarray(np.vstack(rows)).save(content, "PNG", pnginfo=about, optimize=True)
    files.write(path, content.getvalue())
