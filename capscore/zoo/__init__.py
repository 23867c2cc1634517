"""Networks by name: new ones of every preset, and trained ones that ship with capscore.

    net = capscore.create("efficient-mnist", pretrained=True)

A trained network is a model file of this folder, in float16, with its card in its metadata: see `card`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from capscore.errors import SpecError
from capscore.presets import PRESETS

FOLDER = Path(__file__).parent
END = ".safetensors"


def list_models(pretrained: bool = False) -> list[str]:
    """Return the names that `create` takes; with `pretrained` those of trained networks alone."""
    trained = sorted(path.stem for path in FOLDER.glob("*" + END))
    return trained if pretrained else sorted({*trained, *PRESETS})


def path(name: str) -> Path:
    """Return the file of a trained network. SpecError: there is none of that name."""
    if name not in list_models(pretrained=True):
        raise SpecError(f"there is no trained network {name!r}; there are {', '.join(list_models(pretrained=True))}")
    return FOLDER / (name + END)


def chosen(backend: str | None) -> Any:
    """Return what has `CapsNet`: the backend of a name, else the one chosen at import time."""
    import capscore

    return capscore if backend is None else capscore.backend(backend)


def create(name: str, pretrained: bool = False, seed: int = 0, backend: str | None = None, **options: Any) -> Any:
    """Return a network by its name: `list_models()` has them all.

    With `pretrained` it has the weights that ship with capscore, else first numbers drawn by `seed`; of one name the
    preset is the network of its paper, and the trained one may have another stem, see `card`. `backend` is a name such
    as "torch"; else the chosen one. `options` are those of `CapsNet`, such as dtype="float64". Raises SpecError if
    there is no such network, or no trained one.
    """
    caps = chosen(backend)
    if name in PRESETS and not pretrained:
        return caps.CapsNet(PRESETS[name], seed=seed, **options)
    from capscore import modelfile

    model = modelfile.read(path(name))
    about: dict[str, Any] = {"seed": seed, "classes": model.classes}
    if pretrained:
        about |= {"params": model.params, "provenance": modelfile.public(model.provenance)}
    return caps.CapsNet(model.spec, **about | options)


def card(name: str) -> str:
    """Return the card of a trained network, as Markdown: what it is, how it was made, what it reaches, its licence."""
    from capscore import modelfile
    from capscore.zoo.cards import card_of

    return card_of(name, modelfile.read(path(name)))
