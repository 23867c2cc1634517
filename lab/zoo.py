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
from capscore.train import accuracy
from lab import files
from lab.experiments.trials import Lab, Values, read, summary
from lab.published import FINAL, Published, folder, names

DRAWN = 1.5e6  # bytes above which a file ships without its decoder
CALIBRATION = 512  # images that int8 is calibrated on
HEAD = f"""<!-- {files.MARK}: python -m lab zoo -->
# The zoo

Trained networks that ship with capscore. Each was trained by a recipe in `lab/recipes`, from seed 0: no seed and no
epoch was chosen by its test images. The errors of a file are those of `capscore eval NAME --data …` with what ships:
float16 numbers, without a decoder where it would be larger than the network.

"""


def ship(lab: Lab, name: str) -> Path:
    """Write a trained network into `capscore.zoo`, with its card: what the file that ships reaches on every engine."""
    trained = folder(lab, name, 0) / FINAL
    if not trained.exists():
        raise TrainingError(f"{trained} is not there: python -m lab recipe {name} --seeds 0")
    model = modelfile.read(trained)
    if model.spec.decoder is not None and 2 * model.spec.parameter_count > DRAWN:
        spec = model.spec.replace(decoder=None)
        model = replace(model, spec=spec, params={name: model.params[name] for name in spec.parameters})
    path, published = zoo.FOLDER / (name + zoo.END), Published.read(name)
    learn, _, tests = published.sets(lab)  # first: a file without its numbers is none
    told = modelfile.public(model.provenance) | {"seeds": _seeds(lab, name)}
    told["published"] |= {"why": published.why}
    model = replace(model, provenance=told)
    modelfile.save(path, model, "float16")
    model.provenance["measured"] = _measured(learn, tests, path)
    modelfile.save(path, model, "float16")
    return path


def page() -> str:
    """Return the page of all cards."""
    return HEAD + "\n".join(map(zoo.card, zoo.list_models(pretrained=True)))


def shipped(lab: Lab) -> list[str]:
    """Return the recipes whose network of seed 0 is trained."""
    return [name for name in names() if (folder(lab, name, 0) / FINAL).exists()]


def _seeds(lab: Lab, name: str) -> dict[str, Any]:
    """Return n, mean and standard deviation of the errors of all seeds, for each set of test images."""
    (row,) = (
        row
        for row in summary(read(lab.file))
        if row["settings"]["recipe"] == name and "ensemble" not in row["settings"]
    )
    tests = [test for test in row["mean"] if test in ("test", "affine")]
    return {test: {"n": row["n"], "mean": row["mean"][test], "std": row["std"][test]} for test in tests}


def _measured(learn: Samples, tests: Mapping[str, Samples], path: Path) -> dict[str, Values]:
    """Return the errors in percent of a file on every engine."""
    nets = {name: backend(name).load(path) for name in ("torch", "numpy")}
    engines: dict[str, Any] = dict(nets)
    with tempfile.TemporaryDirectory() as made:
        for precision in ("fp32", "int8"):
            onnx = Path(made) / f"{precision}.onnx"
            shown = learn.batch(slice(0, CALIBRATION))[0] if precision == "int8" else None
            export(nets["numpy"], onnx, precision=precision, outputs=["lengths"], calibration=shown)
            engines[precision] = Session(onnx)
        return {
            engine: {test: 100 * (1 - accuracy(net, data)) for test, data in tests.items()}
            for engine, net in engines.items()
        }
