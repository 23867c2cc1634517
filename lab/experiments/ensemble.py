"""Networks that differ by their seed, each on its own and all of them together, on standardised patches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capscore import PRESETS, DynamicRouting
from capscore.data import Dataset, Framed, Samples, load, standardised
from capscore.errors import DataError
from capscore.train import accuracy
from lab.experiments.trials import Lab, Values, subset


def ensemble(lab: Lab, data: str, leaky: bool) -> None:
    """Train one network for each seed on the patches of a dataset, and record the error of each, then of their mean."""
    learn, test = (
        _standardised(patches, count)
        for patches, count in zip(load(data, data_dir=lab.data_dir), (lab.budget.images, lab.budget.test), strict=True)
    )
    small = PRESETS["small"]
    last = replace(small.capsules[-1], count=len(learn.classes), routing=DynamicRouting(3, leaky))
    spec = PRESETS[data] if lab.budget.paper else small.replace(input=learn.size, capsules=(last,))
    settings = {"data": data, "images": len(learn), "test": len(test), "parameters": spec.parameter_count}

    def fit(seed: int) -> Any:
        recipe = lab.budget.recipe(len(learn), seed, shift=learn.shift)
        return lab.fit(spec, learn, test, recipe, f"CapsNet-{seed}")

    for seed in lab.seeds:

        def single() -> Values:
            return {"error": 100 * (1 - accuracy(fit(seed), test))}

        lab.trial(single, **settings, network="CapsNet", models=1, seed=seed)

    def mean_of_all() -> Values:
        return {"error": 100 * (1 - accuracy(Mean(tuple(fit(seed) for seed in lab.seeds)), test))}

    if len(lab.seeds) > 1:
        lab.trial(mean_of_all, **settings, network="CapsNet", models=len(lab.seeds))


@dataclass(frozen=True)
class Mean:
    """Several networks as one, whose scores are the mean of theirs; classes are matched by name."""

    nets: tuple[Any, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the first network."""
        names: tuple[str, ...] = self.nets[0].classes
        return names

    def predict(self, images: Any) -> NDArray[Any]:
        """Return the mean scores [N, J] for images [N, C, H, W]."""
        each = [net.predict(images)[:, [net.classes.index(name) for name in self.classes]] for net in self.nets]
        scores: NDArray[Any] = np.mean(each, axis=0)
        return scores


def _standardised(patches: Samples, count: int | None) -> Framed:
    """Return the patches of `count` images, standardised as in the authors' code."""
    if not isinstance(patches, Framed) or not isinstance(patches.source, Dataset):
        raise DataError("an ensemble is trained on patches of images")
    return Framed(standardised(subset(patches.source, count)), patches.height, patches.width)
