"""What the networks of the zoo get wrong, how they learned and what they draw: noted when they ship, and drawn of that.

`results/zoo/NAME.json` has the epochs of the training, and for each set of test images which classes were found, which
were taken for which, and the images that were hardest. Pictures are drawn of these numbers, the test images and the
network; they need no training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capscore import zoo
from capscore.backends import torch as caps
from capscore.data import Pairs, Samples, targets_of
from capscore.errors import BackendError, DataError, ModelFileError
from capscore.metrics import Measures
from capscore.train import LOG, measure
from capscore.train.score import right_for
from capscore.zoo.cards import TESTS
from lab import files
from lab.experiments.trials import Lab
from lab.published import FINAL, Published, folder

HARDEST = 20  # images of each set
SEEN, MOVED = 10, 3  # images that are drawn again, and whose capsules are moved
FINE = 100  # dots per inch of them: there are many
KEPT = ("epoch", "loss", "accuracy", "held_out_accuracy")  # of a row of the log


def file(results: Path, name: str) -> Path:
    """Return the file of what is noted about a network."""
    return results / "zoo" / f"{name}.json"


def note(lab: Lab, name: str, tests: Mapping[str, Samples], path: Path) -> None:
    """Write down how a network learned, by its log, and what the file at `path` makes of its test images."""
    log = (folder(lab, name, 0) / LOG).read_text().splitlines()
    rows = [{key: round(row[key], 6) for key in KEPT} for row in map(json.loads, log)]
    net = caps.load(path)
    found = {test: _noted(measure(net, data)) for test, data in tests.items()}
    file(lab.results, name).parent.mkdir(parents=True, exist_ok=True)
    files.write_json(file(lab.results, name), {"network": name, "classes": net.classes, "log": rows, "tests": found})


def read(results: Path) -> dict[str, dict[str, Any]]:
    """Return what is noted about every network that ships, by name."""
    told = {}
    for name in zoo.list_models(pretrained=True):
        if (noted := file(results, name)).exists():
            try:
                told[name] = json.loads(noted.read_bytes())
            except ValueError:
                raise ModelFileError(f"{noted} is damaged: python -m lab zoo {name} writes it anew") from None
    return told


def said(test: str) -> str:
    """Return what people call a set of test images."""
    return TESTS[test].split(" (")[0]


def mistaken(found: Measures) -> NDArray[np.int64]:
    """Return [J, J]: on the diagonal how often a class was found; elsewhere how often it was missed for another.

    Of images that show several classes those count there of which one is missed: it is clear which was taken for it.
    """
    shown = found.targets > 0
    missed, wrong = shown & ~found.answers, found.answers & ~shown
    counts = np.diag((shown & found.answers).sum(0))
    one = (missed.sum(1) == 1) & (wrong.sum(1) == 1)
    np.add.at(counts, (missed[one].argmax(1), wrong[one].argmax(1)), 1)
    return counts


def _noted(found: Measures) -> dict[str, Any]:
    """Return what a file keeps of scores."""
    worst = found.hardest(HARDEST)
    return {
        "images": found.images,
        "wrong": int((~found.right).sum()),
        "found": mistaken(found).tolist(),
        "hardest": [
            {
                "image": int(at),
                "shows": np.flatnonzero(found.targets[at]).tolist(),
                "says": [int(j) for j in np.argsort(-found.scores[at], kind="stable") if found.answers[at, j]],
                "score": round(float(found.scores[at].max()), 4),
            }
            for at in worst
        ],
    }


def draw(lab: Lab) -> None:
    """Draw the pictures of all networks that are noted; one that cannot be drawn stays as it is, and that is said."""
    if not (told := read(lab.results)):
        return
    try:
        from lab import sheets
    except BackendError as error:
        lab.say(f"no pictures: {error}")
        return
    for name in sorted({*zoo.list_models(pretrained=True)} - {*told}):
        lab.say(f"{name}: no pictures: python -m lab zoo {name} notes what they need")
    lab.sheet("zoo", [sheets.learning({name: noted["log"] for name, noted in told.items()})])
    for name, noted in told.items():
        try:
            _, _, tests = Published.read(name).sets(lab)
        except DataError as error:
            lab.say(f"{name}: no pictures without its test images: {error}")
            continue
        for test, found in noted["tests"].items():
            images, _ = tests[test].batch(np.array([each["image"] for each in found["hardest"]]))
            lab.sheet(picture(name, test), [sheets.mistakes_of(name, test, noted["classes"], found, images)])
        if (net := _drawing(lab, name)) is not None:
            lab.sheet(f"zoo-{name}-drawn", _drawn(net, next(iter(tests.values()))), FINE)


def picture(name: str, test: str) -> str:
    """Return the name of the picture of what a network gets wrong on a set of test images."""
    return f"zoo-{name}" + (f"-{test}" if test != "test" else "")


def _drawing(lab: Lab, name: str) -> Any | None:
    """Return a network with its decoder: what ships, or else what was trained; None where neither has one of use."""
    trained, published = folder(lab, name, 0) / FINAL, Published.read(name)
    if not published.drawn:
        return None
    for path in (zoo.path(name), trained):
        if path.exists() and (net := caps.load(path)).spec.decoder is not None:
            return net
    if not trained.exists() and published.recipe.reconstruction:
        lab.say(f"{name}: ships without its decoder; what it draws is seen after python -m lab recipe {name} --seeds 0")
    return None


def _drawn(net: Any, test: Samples) -> list[Any]:
    """Return figures of what a network draws of test images, and of what the numbers of its capsules mean."""
    from capscore import figures

    index = figures.examples(test, SEEN)
    if isinstance(test, Pairs):
        again = figures.overlapping(net, test, index)
    else:
        again = figures.reconstructions(net, *test.batch(index))
    images, labels = test.batch(index)
    scores = net.predict(images)
    right = right_for(test)(scores, targets_of(labels, net.spec.classes))
    clearest = np.argsort(np.where(right, -scores.max(1), 0), kind="stable")[:MOVED]
    return [again, figures.perturbations(net, images[np.sort(clearest)])]


def words(name: str, noted: Mapping[str, Any], images: Path) -> str:
    """Return the Markdown that shows the pictures of a network, as far as they are in the folder `images`."""
    wrong = f"Which classes {name} takes for which, and the images that it finds hardest"
    shown = [(picture(name, test), f"{wrong}, of its {said(test)}") for test in noted["tests"]]
    shown.append((f"zoo-{name}-drawn", f"What {name} draws of test images, and what each number of a capsule means"))
    there = [(alt, f"results-{each}.png") for each, alt in shown]
    return "\n".join(f"![{alt}](images/{file})\n" for alt, file in there if (images / file).exists())
