"""Where an experiment works: finished trials are kept in a JSON file, unfinished trainings in a folder of their own."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

import capscore
from capscore import CapsNetSpec, disk
from capscore.backends import torch as caps
from capscore.data import Dataset, Samples, load
from capscore.errors import BackendError, DataError, ModelFileError
from capscore.export.machine import processor
from capscore.layer import Grid
from capscore.net import init_params
from capscore.train import LAST, Recipe, train
from capscore.train.report import Screen
from lab import baselines, files

Values = dict[str, float]


@dataclass(frozen=True)
class Budget:
    """How much an experiment spends.

    Each has its own `smoke` (does it run?), `quick` (minutes on two cores), `hour` (an hour or so) and `full` (a GPU).
    """

    epochs: int
    trials: int
    paper: bool = False  # the networks and the recipe of the paper, not the small ones
    images: int | None = None  # how many to learn from, all when None
    test: int | None = None  # how many to test with, all when None
    batch: int = 128
    steps: int = 0  # of trainings that are measured in steps

    def recipe(self, images: int, seed: int, epochs: int | None = None, **settings: Any) -> Recipe:
        """Return the authors' recipe, or one whose rate falls to a twelfth within the few epochs there are."""
        epochs = epochs or self.epochs
        if not self.paper:
            steps = epochs * -(-images // self.batch)
            settings = {"rate": 2e-3, "decay_steps": max(1, steps // 60), **settings}
        return Recipe(epochs, self.batch, seed=seed, **settings)


@dataclass
class Lab:
    """One experiment at one budget: its trials, its trainings, and what it shows of their progress.

    A trial is known by its settings and by what its budget spends: one that is in `results`/NAME.json already is not
    done again, and takes the place of one of the same settings that had spent something else.
    """

    name: str
    size: str  # the budget's name
    budget: Budget
    results: Path  # folder of the JSON files
    runs: Path  # folder of the trainings
    images: Path  # folder of the pictures
    data_dir: Path | None = None
    device: str | None = None
    console: Console = field(default_factory=Console)
    spent: float = 0.0  # seconds of all trainings within the trial
    rows: list[dict[str, Any]] = field(default_factory=list)  # the log of the last training

    def __post_init__(self) -> None:
        """Choose the device."""
        self.device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        with caps.device_errors(self.device):
            torch.empty(0, device=self.device)

    @property
    def seeds(self) -> range:
        """One for each trial."""
        return range(self.budget.trials)

    @property
    def file(self) -> Path:
        """The JSON file of the trials."""
        return self.results / f"{self.name}.json"

    def trial(self, measure: Callable[[], Values], **settings: Any) -> Values:
        """Return what `measure` finds, or what it found when it was asked for the same settings before."""
        settings = {"budget": self.size, **settings}
        said = ", ".join(f"{key} {value}" for key, value in settings.items())
        spends = asdict(replace(self.budget, trials=0))
        for record in read(self.file):
            if record["settings"] == settings and record["spends"] | {"trials": 0} == spends:
                self.say(f"{self.name}: {said}: done before")
                found: Values = record["values"]
                return found
        self.say(f"{self.name}: {said}")
        began, self.spent = time.monotonic(), 0.0
        values = {name: float(value) for name, value in measure().items()}
        # A training that went on after a break has taken longer than this process knows of.
        seconds = max(time.monotonic() - began, self.spent)
        record = {"settings": settings, "values": values, "seconds": round(seconds, 1), **self.about()}
        others = [other for other in read(self.file) if other["settings"] != settings]
        write(self.file, [*others, record])
        self.say("  " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()))
        return values

    def fit(
        self,
        spec: CapsNetSpec,
        data: Samples,
        held_out: Samples,
        recipe: Recipe,
        name: str,
        fast_conv: str | None = None,
        keeps: Mapping[str, Any] | None = None,
        amp: bool = False,
    ) -> Any:
        """Return a network trained by the recipe, in a folder `name`-…; one that was, on as much data, is only read.

        `keeps` are parameters that stay as they are. With `amp` its products are in bfloat16 while it learns. Its
        weights are the averaged ones if the recipe averages.
        """
        params = None if keeps is None else init_params(spec, recipe.seed) | dict(keeps)
        net = caps.CapsNet(spec, params, recipe.seed, classes=data.classes, fast_conv=fast_conv)
        learner = caps.Learner(net, recipe.reconstruction, recipe.optimiser, recipe.average, self.device, amp)
        learner.frozen = tuple(keeps or ())
        of = repr((spec, recipe, type(data).__name__, len(data), data.size))
        of += "".join(hashlib.sha256(np.asarray(a).tobytes()).hexdigest() for a in (keeps or {}).values())
        folder = self.runs / self.name / self.size / f"{name}-{hashlib.sha256(of.encode()).hexdigest()[:8]}"
        resume = (folder / LAST).exists()
        screen = Screen(self.console)
        try:
            self.rows = train(net, learner, data, held_out, recipe, folder, resume, (screen,))
        finally:
            screen.close()
        self.spent += sum(row["seconds"] for row in self.rows)
        with learner.averaged():
            params = {name: net.ops.to_numpy(p) for name, p in net.params.items()}
        net.assign(params | dict(keeps or {}))  # running statistics have followed the images
        return net

    def draw(self, name: str, figure: Callable[[], Any]) -> None:
        """Write the picture results-`name`.png of what was found, if matplotlib is there."""
        try:
            from capscore import figures
        except BackendError as error:
            self.say(f"no picture: {error}")
            return
        self.images.mkdir(parents=True, exist_ok=True)
        path = self.images / f"results-{name}.png"
        files.write_figure(path, figure(), figures.DPI)
        self.say(str(path))

    def sheet(self, name: str, drawn: Sequence[Any], dpi: int = 150) -> None:
        """Write the figures `drawn`, one below the other, as the picture results-`name`.png."""
        self.images.mkdir(parents=True, exist_ok=True)
        path = self.images / f"results-{name}.png"
        files.write_sheet(path, drawn, dpi)
        self.say(str(path))

    @property
    def records(self) -> list[dict[str, Any]]:
        """The trials of this budget that are done."""
        return [trial for trial in read(self.file) if trial["settings"]["budget"] == self.size]

    def summary(self, **settings: Any) -> list[dict[str, Any]]:
        """Return the summaries of this budget's trials that have these settings."""
        wanted = settings.items()
        return [row for row in summary(self.records) if wanted <= row["settings"].items()]

    def digits(self) -> tuple[str, Dataset, Dataset]:
        """Return (name, train, test) of MNIST; of the embedded digits where it is not at hand and little is asked."""
        root = self.data_dir or os.environ.get("CAPSCORE_DATA")
        at_hand = root is not None and (Path(root) / "mnist").is_dir()
        name = "mnist" if at_hand or self.size == "full" else "digits"
        train_set, test = load(name, data_dir=self.data_dir)
        assert isinstance(train_set, Dataset)
        assert isinstance(test, Dataset)
        return name, subset(train_set, self.budget.images), subset(test, self.budget.test)

    def say(self, line: str) -> None:
        """Tell of what goes on."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def about(self) -> dict[str, Any]:
        """Return what a record tells beside its numbers: budget, hardware, versions."""
        packages = {module.__name__: module.__version__ for module in (capscore, np, torch)}
        hardware = {"cpu": processor(), "threads": torch.get_num_threads(), "device": self.device}
        if str(self.device).startswith("cuda"):
            hardware["gpu"] = torch.cuda.get_device_name(self.device)
        versions = {"python": platform.python_version(), **packages}
        return {"spends": asdict(self.budget), "hardware": hardware, "versions": versions}


def subset(data: Dataset, count: int | None, seed: int = 0) -> Dataset:
    """Return `count` images drawn at random, or all of them."""
    if count is None or count >= len(data):
        return data
    chosen = np.random.default_rng(seed).permutation(len(data))[:count]
    return Dataset(data.images[chosen], data.labels[chosen], data.classes)


def outputs(net: Any, images: NDArray[Any], batch: int = 250) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return lengths [N, J] and capsules [N, J, D] of images [N, C, H, W]; of a CNN what `baselines.answers` does."""
    said = net if isinstance(net.spec.output, Grid) else partial(baselines.answers, net)
    with torch.inference_mode():
        found = [said(images[i : i + batch]) for i in range(0, len(images), batch)]
    lengths, capsules = (np.concatenate([net.ops.to_numpy(o[k]) for o in found]) for k in (0, 1))
    return lengths, capsules


def read(file: Path) -> list[dict[str, Any]]:
    """Return the trials in a results file, none if there is no file."""
    if not file.exists():
        return []
    try:
        content = json.loads(file.read_bytes())
        trials: list[dict[str, Any]] = content["trials"]
        if content["experiment"] != file.stem or not all({"settings", "spends", "values"} <= set(t) for t in trials):
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise ModelFileError(f"{file} does not hold results of the experiment {file.stem}: move it away") from None
    return trials


def write(file: Path, trials: list[dict[str, Any]]) -> None:
    """Write trials and their summary, whole or not at all."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot make the folder {file.parent}: {error.strerror}") from None
    content = {"experiment": file.stem, "summary": list(summary(trials)), "trials": trials}
    disk.write_atomically(file, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def summary(trials: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield, for trials that differ by their seed alone, n, the mean and the standard deviation of every value."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for trial in trials:
        groups.setdefault(json.dumps(_seedless(trial["settings"]), sort_keys=True), []).append(trial)
    for group in groups.values():
        values = {name: np.array([trial["values"][name] for trial in group]) for name in group[0]["values"]}
        yield {
            "settings": _seedless(group[0]["settings"]),
            "seeds": [trial["settings"].get("seed") for trial in group],
            "n": len(group),
            "mean": {name: float(found.mean()) for name, found in values.items()},
            "std": {name: float(found.std(ddof=1)) if len(found) > 1 else None for name, found in values.items()},
            "seconds": sum(trial["seconds"] for trial in group),
        }


def _seedless(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name != "seed"}
