"""Optimisers, schedules and losses by the names that options have for them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

from capscore.data import AUGMENTATIONS, Augmentation, Samples, balanced, several
from capscore.errors import CapscoreError, short
from capscore.layer import Grid
from capscore.losses import CrossEntropy, Loss, MarginLoss, SpreadLoss
from capscore.net import CapsNetSpec
from capscore.optim import SGD, Adam, AdamW, Cosine, Exponential, OneCycle, Optimiser, Schedule, Steps
from capscore.train.score import shows
from capscore.values import Value, read

V = TypeVar("V", bound=Value)

OPTIMISERS: dict[str, type[Optimiser]] = {"adam": Adam, "adamw": AdamW, "sgd": SGD}
SCHEDULES: dict[str, type[Schedule]] = {
    "exponential": Exponential, "cosine": Cosine, "one-cycle": OneCycle, "steps": Steps,
}  # fmt: skip
LOSSES: dict[str, type[Loss]] = {"margin": MarginLoss, "spread": SpreadLoss, "cross-entropy": CrossEntropy}

SCALE = 10.0  # of lengths of capsules, at most 1, in a softmax: with less, no image could be told with certainty
FIELDS = {"weight_decay": "decay", "decay_steps": "steps"}  # of options that are called otherwise


def choose(what: str, kinds: Mapping[str, type[V]], name: str, **options: Any) -> V:
    """Return the value of the kind that `name` names, made of the options that are not None.

    CapscoreError says which kinds there are, or which option the kind does not have; `what` says of what.
    """
    if name not in kinds:
        raise CapscoreError(f"there is no {what} {short(name)}; choose one of {', '.join(kinds)}")
    given = {option: value for option, value in options.items() if value is not None}
    for option in given:
        having = [kind for kind, made in kinds.items() if _has(made, option)]
        if name not in having:
            flag = "--" + option.replace("_", "-")
            raise CapscoreError(f"{flag} is for the {what} {' or '.join(having)}, not for {name}: leave it out")
    return kinds[name](**{FIELDS.get(option, option): value for option, value in given.items()})


def choose_augment(text: str | None) -> tuple[Augmentation, ...]:
    """Return the augmentations that a name or a JSON list describes; none for None."""
    if text is None:
        return ()
    if text in AUGMENTATIONS:
        return AUGMENTATIONS[text]
    if not text.lstrip().startswith("["):
        raise CapscoreError(
            f"there is no augmentation {short(text)}; choose {' or '.join(AUGMENTATIONS)}, "
            'or write a JSON list such as [{"type": "Rotation", "degrees": 10}]'
        )
    try:
        found = read(json.loads(text), "augment", among=Augmentation)
    except (ValueError, RecursionError) as error:
        raise CapscoreError(f"augment cannot be read: {error}") from None
    if strange := [each for each in found if not isinstance(each, Augmentation)]:
        raise CapscoreError(f"{short(strange[0])} is no augmentation: see capscore.data.augment")
    return tuple(found)


def choose_loss(spec: CapsNetSpec, data: Samples, name: str | None, class_weights: str | None) -> Loss:
    """Return the loss that the options name, or the network's own, for training images of such labels."""
    loss = spec.loss
    if name == "cross-entropy" and not isinstance(loss, CrossEntropy):  # its own has the scale that fits its scores
        loss = CrossEntropy(SCALE if isinstance(spec.output, Grid) else 1.0)
    elif name not in (None, "cross-entropy"):
        loss = choose("loss", LOSSES, name)
    if isinstance(loss, CrossEntropy):
        loss = replace(loss, exclusive=shows(data) == 1)
    elif name is None and loss.ranks and several(data):
        loss = MarginLoss()
    if class_weights is None:
        return loss
    weights = balanced(data) if class_weights == "balanced" else _numbers(class_weights)
    if len(weights) != len(data.classes):
        raise CapscoreError(
            f"--class-weights has {len(weights)} numbers for {len(data.classes)} classes: give one for each of "
            f"{', '.join(data.classes):.200}, in this order"
        )
    return replace(loss, class_weights=weights)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError:
        raise CapscoreError(f"--class-weights takes balanced or numbers such as 1,0.5,2, not {short(text)}") from None


def _has(kind: type[Value], option: str) -> bool:
    return FIELDS.get(option, option) in {field.name for field in fields(kind)}  # type: ignore[arg-type]
