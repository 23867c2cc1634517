"""The claims about capsules, measured: one stem under several heads, trained alike. What does routing itself add?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from capscore import CapsNetSpec
from capscore.data import Dataset, Pairs, Samples
from capscore.data.augment import Translation
from capscore.optim import OneCycle
from capscore.train import accuracy
from lab.experiments import attack, efficiency, equivariance, pooling, quadrants
from lab.experiments.heads import (
    CNN,
    DRAWING,
    DYNAMIC,
    HEADS,
    NARROW,
    NONE,
    POOLED,
    ROUTINGS,
    networks,
)
from lab.experiments.trials import Budget, Lab, Values, subset

BUDGETS = {
    "smoke": Budget(epochs=1, trials=1, images=150, test=40, batch=32, steps=2),
    "quick": Budget(epochs=1, trials=2, steps=100),
    "hour": Budget(epochs=3, trials=5, steps=200),
    "full": Budget(epochs=50, trials=10, steps=5000),
}
PAIRS = {"smoke": 1, "quick": 1, "hour": 1, "full": 60}  # of overlapping digits, for each image
ATTACKED, POSED, READ = 400, 5000, 2500  # digits: attacks take time, and readers of whole maps take memory

# One recipe for all: Adam, one cycle of the rate, averaged weights, products in bfloat16, no reconstruction.
RECIPE = {"rate": 3e-3, "schedule": OneCycle(rise=0.2), "average": 0.99, "shift": 0, "reconstruction": 0.0}
AUGMENT = (Translation(2),)  # of digits; pairs are moved as they are drawn
DRAWN = 0.0005  # weight of the reconstruction, for the one network with a decoder


def run(lab: Lab) -> None:
    """Measure every claim, seed by seed: one that is stopped has whole comparisons. Then draw what was found."""
    study = Study(lab, *lab.digits())
    for seed in lab.seeds:
        for network in HEADS:
            study.digits(network, seed)
        for network in HEADS:
            study.pairs(network, seed)
        for count in efficiency.COUNTS:
            shown = efficiency.few_examples(study.learn, count, lab.budget.steps * lab.budget.batch, seed)
            for network in HEADS:
                if shown is not None:
                    study.few(network, seed, count, shown)
    for seed in lab.seeds:
        for network in (POOLED, DRAWING):
            study.digits(network, seed)
    study.draw()


@dataclass(frozen=True, eq=False)
class Study:
    """The trials of every network."""

    lab: Lab
    data: str
    learn: Dataset
    test: Dataset
    nets: dict[tuple[str, int], Any] = field(default_factory=dict)  # by network and seed

    @cached_property
    def single(self) -> dict[str, CapsNetSpec]:
        """The networks for digits."""
        return networks(28)

    @cached_property
    def double(self) -> dict[str, CapsNetSpec]:
        """The networks for pairs of digits."""
        return networks(36)

    def digits(self, network: str, seed: int) -> None:
        """Train a network on single digits, and measure all that is measured with these."""
        spec, images = self.single[network], len(self.learn)
        for claim, (measure, digits) in self._measures(network).items():
            sizes = {"images": images, "test": len(digits)}
            self._trial(lambda: measure(self.net(network, seed), digits), spec, claim, network, seed, **sizes)

    def _measures(self, network: str) -> dict[str, tuple[Callable[[Any, Dataset], Values], Dataset]]:
        found: dict[str, tuple[Callable[[Any, Dataset], Values], Dataset]] = {
            "error": (error, self.test),
            "equivariance": (equivariance.measure, subset(self.test, POSED)),
        }
        if network in HEADS:
            found["part-whole"] = quadrants.measure, subset(self.test, POSED)
            found["adversarial"] = attack.measure, subset(self.test, ATTACKED)
        if network in (NARROW, POOLED):
            found["pooling"] = pooling.measure, subset(self.test, READ)
        return found

    def net(self, network: str, seed: int) -> Any:
        """Return a network that has learned from all digits; one that was trained before is only read."""
        if (network, seed) not in self.nets:
            how = {"augment": AUGMENT, "reconstruction": DRAWN if network == DRAWING else 0.0}
            self.nets[network, seed] = self._fit(self.single[network], self.learn, network, seed, **how)
        return self.nets[network, seed]

    def pairs(self, network: str, seed: int) -> None:
        """Train a network on overlapping digits, and measure it."""
        spec = self.double[network]
        shown, others = Pairs(self.learn, seed, PAIRS[self.lab.size]), Pairs(self.test, 1, 1)

        def found() -> Values:
            return error(self._fit(spec, shown, f"{network}-pairs", seed, epochs=1), others)

        self._trial(found, spec, "overlap", network, seed, images=len(shown), test=len(others))

    def few(self, network: str, seed: int, count: int, shown: Dataset) -> None:
        """Train a network on `shown`, in which few examples of every class recur, and measure it."""
        spec = self.single[network]

        def found() -> Values:
            return error(self._fit(spec, shown, f"{network}-{count}", seed, epochs=1, augment=AUGMENT), self.test)

        self._trial(found, spec, "efficiency", network, seed, examples=count, test=len(self.test))

    def _fit(self, spec: CapsNetSpec, shown: Samples, name: str, seed: int, **how: Any) -> Any:
        recipe = self.lab.budget.recipe(len(shown), seed, **{**RECIPE, **how})
        watched: Samples = subset(self.learn, 100)  # a training wants images to watch by; nothing is chosen by these
        if isinstance(shown, Pairs):
            watched = Pairs(watched, 1, 1)
        return self.lab.fit(spec, shown, watched, recipe, f"{name}-{seed}".replace(" ", "-"), amp=True)

    def _trial(
        self, found: Callable[[], Values], spec: CapsNetSpec, claim: str, network: str, seed: int, **sizes: int
    ) -> None:
        sizes["parameters"] = spec.replace(decoder=None).parameter_count
        self.lab.trial(found, claim=claim, data=self.data, network=network, seed=seed, **sizes)

    def draw(self) -> None:
        """Draw what was found; the networks are those of the first seed."""
        from lab.experiments import pictures
        from lab.experiments.verdicts import judged

        lab, posed = self.lab, subset(self.test, POSED)
        nets = {network: self.net(network, 0) for network in (*HEADS, POOLED)}
        readings = {name: equivariance.readings(nets[name], posed) for name in (NONE, DYNAMIC, NARROW)}
        heads = {name: nets[name] for name in (*ROUTINGS, CNN)}
        cnns = {network: nets[network] for network in (NARROW, POOLED)}
        lab.draw("equivariance", lambda: pictures.equivariance(readings))
        lab.draw("parts", lambda: pictures.parts(heads, posed))
        lab.draw("pooling", lambda: pictures.pooling(cnns, subset(self.test, READ)))
        lab.draw("efficiency", lambda: pictures.efficiency(lab.summary(claim="efficiency")))
        lab.draw("adversarial", lambda: pictures.adversarial(lab.summary(claim="adversarial")))
        lab.draw("claims", lambda: pictures.claims(judged(lab.records)))


def error(net: Any, data: Samples) -> Values:
    """Return the error in percent; of a pair, both digits have to be found, and no other."""
    return {"error": 100 * (1 - accuracy(net, data))}
