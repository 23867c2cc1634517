"""The networks of docs/playground: the zoo's, others to compare with them, and one for two digits."""

from __future__ import annotations

import io
from collections.abc import Sequence
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
TWO = "two-digits"  # the network that has learned from pairs, where the zoo has none
PAIRS = "multimnist"  # data of those that the zoo may have
DRAWN = 128, 128  # hidden numbers of a decoder for it: a small page
ROUNDS = 2  # of all digits in pairs, for each epoch of digits alone: two digits are harder
REACH = 3  # pixels that a digit of a pair is moved each way; MNIST leaves hardly less free around its digits
AUGMENT: tuple[Augmentation, ...] = (Rotation(15), Scale(0.1))  # people draw less upright than MNIST
BUDGETS = {
    "smoke": Budget(epochs=1, trials=1, images=64, test=32, batch=32),
    "quick": Budget(epochs=2, trials=1, batch=64),
    "hour": Budget(epochs=10, trials=1, batch=64),
}


def networks() -> dict[str, CapsNetSpec]:
    """Return the specs of those that are trained here: `small` without routing, a CNN as large, and one for two."""
    dynamic = PRESETS["small"]
    bare = replace(dynamic, decoder=None)
    cnn = baselines.like(bare)
    return {
        "no-routing": bare.replace(capsules=(DenseCaps(10, routing=DynamicRouting(iterations=1)),)),
        "CNN": replace(cnn, layers=(*cnn.layers[:-1], Linear(10, "sigmoid")), loss=bare.loss),
        TWO: dynamic,
    }


def made(lab: Lab) -> list[Path]:
    """Return the files of all networks of the page; those that the zoo does not have are trained."""
    two = [path for name in zoo.list_models(pretrained=True) if for_two(path := zoo.path(name))]
    return [*map(zoo.path, SHOWN), *train(lab, ("no-routing", "CNN")), *(two[:1] or train(lab, (TWO,)))]


def for_two(path: Path) -> bool:
    """Return whether a model has learned from pairs of digits."""
    if path.suffix != zoo.END:
        return False
    told = modelfile.read(path).provenance
    return path.stem == TWO or PAIRS in (told.get("data"), told.get("published", {}).get("data"))


def drawing(lab: Lab, path: Path) -> Path:
    """Return a model for two digits with a decoder: its own, or one that learns here what its capsules say."""
    model = modelfile.read(path)
    if model.spec.decoder is not None:
        return path
    _, learn, test = lab.digits()
    spec = model.spec.replace(decoder=Decoder(hidden=DRAWN))
    recipe = lab.budget.recipe(len(learn), 0, shift=0, reconstruction=1.0)
    net = lab.fit(spec, Pairs(learn, 0, 1), Pairs(test, 1, 1), recipe, f"{path.stem}-decoder", keeps=model.params)
    net.provenance |= model.provenance
    net.save(target := lab.runs / lab.name / lab.size / path.name)
    return target


def train(lab: Lab, names: Sequence[str]) -> list[Path]:
    """Train some of `networks` by one recipe, and return their files."""
    data, learn, test = lab.digits()
    epochs, folder, trained = lab.budget.epochs, lab.runs / lab.name / lab.size, []
    for name in names:
        spec = networks()[name]
        lab.say(f"{name}: {spec.parameter_count:,} parameters, {data}")
        if name == TWO:
            pairs, held_out = Pairs(close(learn), 0, ROUNDS * epochs, REACH), Pairs(close(test), 1, 1, REACH)
            recipe = lab.budget.recipe(len(pairs), 0, epochs=1, shift=0, reconstruction=0.002)
            net = lab.fit(spec, pairs, held_out, recipe, name)
        else:
            recipe = lab.budget.recipe(len(learn), 0, reconstruction=0.002, augment=AUGMENT)
            net = lab.fit(spec, learn, test, recipe, name)
        trained.append(folder / f"{name}.safetensors")
        net.save(trained[-1])
    return trained


def close(data: Dataset) -> Dataset:
    """Return digits without the outermost pixels, so that moved by as many they fit into what they had before."""
    inner = slice(REACH, -REACH)
    return Dataset(np.ascontiguousarray(data.images[..., inner, inner]), data.labels, data.classes)


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
