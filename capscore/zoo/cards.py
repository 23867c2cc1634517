"""Model cards: Markdown of what a model file says of itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from capscore.modelfile import Model

SETS = {  # name in a recipe → what people call it, its licence
    "mnist": ("MNIST", "CC BY-SA 3.0"),
    "mnist-40": ("MNIST, moved on 40×40", "CC BY-SA 3.0"),
    "multimnist": ("MultiMNIST, drawn of MNIST", "CC BY-SA 3.0"),
    "fashion-mnist": ("Fashion-MNIST", "MIT"),
}
ENGINES = {"torch": "PyTorch", "numpy": "NumPy", "fp32": "ONNX Runtime", "int8": "ONNX Runtime, int8"}
TESTS = {"test": "test images", "affine": "test images turned, sheared and scaled (generated affNIST)"}


def card_of(name: str, model: Model, paper: str = "paper") -> str:
    """Return the card of a model that was published under a name; `paper` is that word, or a link of it."""
    told = model.provenance
    made, recipe = told["published"], told["recipe"]
    data, licence = SETS[made["data"]]
    size, classes = "×".join(map(str, model.spec.input)), len(model.classes)
    lines = [
        f"## {name}",
        "",
        f"{made['why']}",
        "",
        f"- **Network**: images of {size}, {classes} classes, {model.spec.parameter_count:,} parameters, "
        f"{_routings(model)}.",
        f"- **Data**: {data}; {told['training_images']:,} images to learn from, a share of {made['validation']:g} of "
        "the training images, by a hash of their content, was watched and not learned from.",
        f"- **Recipe**: `lab/recipes/{made['name']}.json`; {recipe['epochs']} epochs of batches of {recipe['batch']}, "
        f"{_said(recipe['optimiser'])} at {recipe['rate']:g}, {_said(recipe['schedule'])}"
        + (f", weights averaged by {recipe['average']:g}" if recipe["average"] else "")
        + "".join(f", {_said(each)}" for each in recipe["augment"])
        + f". Seed {recipe['seed']}; the last epoch; the test images were read once, in the end.",
        *_numbers(told),
        f"- **Licence**: the weights as capscore, Apache-2.0; the images are under {licence}.",
        f"- **Cite**: capscore and its version, beside the {paper} of the routing.",
        "",
        f'`capscore.create("{name}", pretrained=True)`, '
        + "".join(f"`capscore eval {name} --data {data}`, " for data in _commands(told))
        + f"`capscore export {name} {name}.onnx`",
    ]
    return "\n".join(lines) + "\n"


def _numbers(told: Mapping[str, Any]) -> list[str]:
    """Return a line for each set of test images: the errors of the file on every engine, and those of all seeds."""
    lines = []
    for test, seeds in told["seeds"].items():
        engines = ", ".join(f"{said} {told['measured'][key][test]:.2f}%" for key, said in ENGINES.items())
        spread = f" ± {seeds['std']:.2f}" if seeds["std"] is not None else ""
        count = f"{seeds['n']} seed{'s' if seeds['n'] > 1 else ''}"
        lines.append(
            f"- **Error**, {TESTS[test]}: this file on {engines}; mean of {count} as trained "
            f"{seeds['mean']:.2f}{spread}%."
        )
    return lines


def _commands(told: Mapping[str, Any]) -> list[str]:
    """Return the names of the datasets that `capscore eval` measures each of the errors on."""
    names = {"test": told["published"]["data"], "affine": "affine-mnist"}
    return [names[test] for test in told["seeds"]]


def _routings(model: Model) -> str:
    layers = [row.layer for top in model.spec.rows for row in top.within]
    named = [type(layer.routing).__name__ for layer in layers if hasattr(layer, "routing")]
    return "routing by " + ", ".join(dict.fromkeys(named)) if named else "no routing"


def _said(value: Mapping[str, Any] | None) -> str:
    """Return a value's JSON as people write it: AdamW(decay=0.05)."""
    if value is None:
        return "the usual schedule"
    settings = ", ".join(f"{key}={json.dumps(setting)}" for key, setting in value.items() if key != "type")
    return f"{value['type']}({settings})"
