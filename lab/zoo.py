"""The zoo: of the networks that were trained by recipes, the one of seed 0, measured as the file that ships."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from capscore import backend, modelfile, zoo
from capscore.data import Samples
from capscore.errors import TrainingError
from capscore.export.onnx import export
from capscore.export.runtime import Session
from capscore.train.score import made_of
from capscore.zoo.cards import ENGINES, TESTS, card_of
from lab import files, gallery
from lab.experiments.trials import Lab, Values, read, summary
from lab.published import FINAL, Published, errors_of, folder, names

DRAWN = 1.5e6  # bytes above which a file ships without its decoder
SAME = 0.02  # points: two of 10,000 images, which another processor may round to another answer
CALIBRATION = 2048  # images that int8 is calibrated on
HEAD = f"""<!-- {files.MARK}: python -m lab zoo -->
# The zoo

Trained networks that ship with capscore. Each was trained by a recipe in `lab/recipes`, from seed 0: no seed and no
epoch was chosen by its test images. The errors of a file are those of `capscore eval NAME --data …` with what ships:
float16 numbers, without a decoder that is large or draws a blur; `python -m lab zoo --check` measures them
again on every engine. int8 is calibrated on the first {CALIBRATION:,} images to learn from. The pictures are drawn by
`python -m lab results`.

"""


def ship(lab: Lab, name: str) -> Path:
    """Write a trained network into `capscore.zoo`, with its card: what the file that ships reaches on every engine."""
    trained = folder(lab, name, 0) / FINAL
    if not trained.exists():
        raise TrainingError(f"{trained} is not there: python -m lab recipe {name} --seeds 0")
    model, published = modelfile.read(trained), Published.read(name)
    if model.spec.decoder is not None and not (published.drawn and 2 * model.spec.parameter_count <= DRAWN):
        spec = model.spec.replace(decoder=None)
        model = replace(model, spec=spec, params={name: model.params[name] for name in spec.parameters})
    path = zoo.FOLDER / (name + zoo.END)
    learn, _, tests = published.sets(lab)  # first: a file without its numbers is none
    told = modelfile.public(model.provenance) | made_of(learn) | {"seeds": _seeds(lab, published)}
    told["published"] |= published.told
    model = replace(model, provenance=told)
    with tempfile.TemporaryDirectory() as made:  # a network that some engine refuses leaves nothing behind
        draft = Path(made) / path.name
        modelfile.save(draft, model, "float16")
        told["measured"] = _measured(learn, tests, draft)
    modelfile.save(path, model, "float16")
    gallery.note(lab, name, tests, path)
    return path


def refresh(lab: Lab, name: str) -> None:
    """Let a file that ships say what is known today of its recipe's seeds; its numbers stay as they are.

    Results of fewer seeds than it knows of, as of another folder, change nothing.
    """
    path = zoo.path(name)
    model, published = modelfile.read(path), Published.read(name)
    seeds = _seeds(lab, published)
    if any(seeds.get(test, {"n": 0})["n"] < known["n"] for test, known in model.provenance["seeds"].items()):
        return
    provenance = model.provenance | {"seeds": seeds, "published": model.provenance["published"] | published.told}
    if provenance != model.provenance:
        modelfile.save(path, replace(model, provenance=provenance), "float16")


def page(lab: Lab) -> str:
    """Return the page of all cards, each with the pictures of its network that there are."""
    told = gallery.read(lab.results)
    parts = []
    for name in zoo.list_models(pretrained=True):
        shown = gallery.words(name, told[name], lab.images) if name in told else ""
        card = card_of(name, modelfile.read(zoo.path(name)), "[paper](references.md)")
        parts.append(card + (f"\n{shown}" if shown else ""))
    return HEAD + "\n".join(parts)


def check(lab: Lab, name: str) -> list[str]:
    """Measure a file that ships on every engine again; return where that is not what its card says, a line for each."""
    path = zoo.path(name)
    learn, _, tests = Published.read(name).sets(lab)
    card, found = modelfile.read(path).provenance["measured"], _measured(learn, tests, path)
    return [
        f"{name}, {TESTS[test]}: {value:.2f}% wrong on {ENGINES[engine]}, where its card says {card[engine][test]:.2f}%"
        for engine, values in found.items()
        for test, value in values.items()
        if abs(value - card[engine][test]) > SAME
    ]


def shipped(lab: Lab) -> list[str]:
    """Return the recipes whose network of seed 0 is trained."""
    return [name for name in names() if (folder(lab, name, 0) / FINAL).exists()]


def _seeds(lab: Lab, published: Published) -> dict[str, Any]:
    """Return n, mean and standard deviation of the errors of all seeds, for each set of test images."""
    alike = {"recipe": published.name, "mark": published.mark}
    return {
        test: {"n": row["n"], "mean": row["mean"][test], "std": row["std"][test]}
        for row in summary(read(lab.file))
        if alike.items() <= row["settings"].items() and "ensemble" not in row["settings"]
        for test in row["mean"]
        if test in ("test", "affine")
    }


def _measured(learn: Samples, tests: Mapping[str, Samples], path: Path) -> dict[str, Values]:
    """Return the errors in percent of a file on every engine."""
    nets = {name: backend(name).load(path) for name in ("torch", "numpy")}
    engines: dict[str, Any] = dict(nets)
    with tempfile.TemporaryDirectory() as made:
        for precision in ("fp32", "int8"):
            onnx = Path(made) / f"{precision}.onnx"
            shown = learn.batch(slice(0, CALIBRATION))[0] if precision == "int8" else None
            export(nets["numpy"], onnx, precision=precision, calibration=shown)
            engines[precision] = Session(onnx)
        return {engine: errors_of(net, tests) for engine, net in engines.items()}
