"""Published networks: each follows a recipe, a file in lab/recipes that says everything which decides its numbers.

The protocol: a share of the training images, by their content, is kept apart to watch the training by. The network is
that of the last epoch, with its averaged weights if the recipe averages. The test images are read once, in the end.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any

from capscore import PRESETS, CapsNetSpec
from capscore.backends import torch as caps
from capscore.cli.shared import read_object
from capscore.data import Dataset, Framed, Pairs, Placed, Samples, load, with_validation
from capscore.errors import CapscoreError, TrainingError, short
from capscore.train import LAST, Recipe, accuracy, train
from capscore.train.report import Screen
from capscore.values import check_flags, check_names, check_whole
from lab.experiments.ensemble import Mean
from lab.experiments.trials import Lab, Values

FOLDER = Path(__file__).parent / "recipes"
FINAL = "final.safetensors"

Sets = tuple[Samples, Samples, dict[str, Samples]]  # to learn from, to watch by, to test with by their names


@dataclass(frozen=True)
class Published:
    """A network, its data and its training, as a file of lab/recipes says them."""

    name: str
    network: str  # a preset
    data: str  # see SETS
    validation: float  # share of the training images that are watched and not learned from
    seeds: int  # how many networks are trained, from seed 0 on
    amp: bool  # products in bfloat16
    recipe: Recipe
    why: str
    pairs: int = 0  # for each digit, of overlapping digits; the paper has 1,000
    drawn: bool = True  # whether what ships keeps its decoder; one that draws the same blur of all images is of no use

    @classmethod
    def read(cls, name: str) -> Published:
        """Return what the file `name`.json says."""
        if name not in names():
            raise TrainingError(f"there is no recipe {name!r}; choose one of {', '.join(names())}")
        path = FOLDER / f"{name}.json"
        try:
            told = read_object(path)
            known = {field.name: field.default is MISSING for field in fields(cls) if field.name != "name"}
            check_names(known, told, path.name)
            return cls(**told | {"name": name, "recipe": Recipe.from_json(told["recipe"], f"{path.name}: recipe")})
        except (CapscoreError, AttributeError, TypeError) as error:
            raise TrainingError(f"{path}: {error}") from None

    def __post_init__(self) -> None:
        """Check what would be found out late, or never."""
        for what, given, known in (("network", self.network, PRESETS), ("data", self.data, SETS)):
            if given not in known:
                raise TrainingError(f"there is no {what} {short(given)}; choose one of {', '.join(known)}")
        if type(self.validation) is not float or not 0 < self.validation < 1:
            raise TrainingError(f"validation must be a share between 0 and 1, not {short(self.validation)}")
        check_whole(self, "seeds")
        check_whole(self, "pairs", least=0)
        check_flags(self, "amp", "drawn")

    @property
    def mark(self) -> str:
        """What tells the numbers of this recipe from those of an edited one: a digest of all that decides them."""
        told = read_object(FOLDER / f"{self.name}.json")
        decides = {name: value for name, value in told.items() if name not in ("seeds", "why", "drawn")}
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def told(self) -> dict[str, Any]:
        """What a model file says of this recipe, beside that of the training."""
        return {part: getattr(self, part) for part in ("name", "network", "data", "pairs", "validation", "amp", "why")}

    @property
    def spec(self) -> CapsNetSpec:
        """The network."""
        return PRESETS[self.network]

    def sets(self, lab: Lab) -> Sets:
        """Return the images."""
        source, arranged, tests = SETS[self.data]
        loaded = {name: load(name, data_dir=lab.data_dir) for name in {source, *tests.values()}}
        learn, watched = with_validation(loaded[source][0], self.validation)
        assert isinstance(learn, Dataset)
        assert isinstance(watched, Dataset)
        return *arranged(self, learn, watched), {name: loaded[data][1] for name, data in tests.items()}


def _single(_: Published, learn: Dataset, watched: Dataset) -> tuple[Samples, Samples]:
    return learn, watched


def _pairs(published: Published, learn: Dataset, watched: Dataset) -> tuple[Samples, Samples]:
    # All pairs differ, so that the recipes have one epoch.
    return Pairs(learn, 0, published.pairs), Pairs(watched, 1, 10)


def _moved(_: Published, learn: Dataset, watched: Dataset) -> tuple[Samples, Samples]:
    return Framed(learn, 40, 40), Placed(watched, 40, 1)


Arranged = Callable[[Published, Dataset, Dataset], tuple[Samples, Samples]]

# What `load` reads, how its training images are shown and watched, and the test sets of `load` by their names here.
SETS: dict[str, tuple[str, Arranged, dict[str, str]]] = {
    "mnist": ("mnist", _single, {"test": "mnist"}),
    "fashion-mnist": ("fashion-mnist", _single, {"test": "fashion-mnist"}),
    "multimnist": ("mnist", _pairs, {"test": "multimnist"}),
    "mnist-40": ("mnist", _moved, {"test": "mnist-40", "affine": "affine-mnist"}),
}


def names() -> list[str]:
    """Return the names of all recipes."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def run(lab: Lab, name: str, seeds: Sequence[int] | None = None) -> None:
    """Train the network of a recipe for each seed, and the answers of all seeds together; what is done is kept.

    Every network is left in `lab.runs`/NAME-SEED-MARK as final.safetensors.
    """
    published = Published.read(name)
    learn, watched, tests = published.sets(lab)
    about = {
        "recipe": name,
        "mark": published.mark,
        "network": published.network,
        "data": published.data,
        "images": len(learn),
        "parameters": published.spec.replace(decoder=None).parameter_count,
        "epochs": published.recipe.epochs,
    }
    chosen = range(published.seeds) if seeds is None else seeds
    for seed in chosen:
        lab.trial(lambda: _values(lab, published, seed, learn, watched, tests), **about, seed=seed)
    nets = [caps.load(path) for seed in range(published.seeds) if (path := folder(lab, name, seed) / FINAL).exists()]
    if len(nets) > 1:
        lab.trial(lambda: _together(nets, tests), **about, ensemble=len(nets))


def folder(lab: Lab, name: str, seed: int) -> Path:
    """Return where a network is trained: an edited recipe begins in a folder of its own."""
    return lab.runs / f"{name}-{seed}-{Published.read(name).mark}"


def _values(
    lab: Lab, published: Published, seed: int, learn: Samples, watched: Samples, tests: Mapping[str, Samples]
) -> Values:
    """Train a network, keep it, and return its errors in percent and the minutes that it took."""
    recipe = replace(published.recipe, seed=seed)
    net = caps.CapsNet(published.spec, seed=seed, classes=learn.classes)
    learner = caps.Learner(net, recipe.reconstruction, recipe.optimiser, recipe.average, lab.device, published.amp)
    place = folder(lab, published.name, seed)
    screen = Screen(lab.console)
    try:
        rows = train(net, learner, learn, watched, recipe, place, (place / LAST).exists(), (screen,))
    finally:
        screen.close()
    lab.spent = sum(row["seconds"] for row in rows)
    with learner.averaged():
        errors = errors_of(net, tests)
        net.provenance |= {"published": published.told | {"errors": errors}}
        net.save(place / FINAL)
    return errors | {"watched": 100 * (1 - rows[-1]["held_out_accuracy"]), "minutes": lab.spent / 60}


def _together(nets: Sequence[Any], tests: Mapping[str, Samples]) -> Values:
    """Return the errors of the mean scores of several networks."""
    return errors_of(Mean(tuple(nets)), tests)


def errors_of(net: Any, tests: Mapping[str, Samples]) -> Values:
    """Return the errors of a network in percent, to more places than there are test images."""
    return {name: round(100 * (1 - accuracy(net, data)), 5) for name, data in tests.items()}
