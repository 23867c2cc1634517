"""Recipes as files, the networks that they make, and the zoo of those that ship."""

# ruff: noqa: E402 - without torch there is nothing to import
from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import need

need("torch", "torch")
need("scipy", "dev")

from rich.console import Console

from capscore import PRESETS
from capscore.backends import torch as caps
from capscore.data import Pairs, load
from capscore.errors import TrainingError
from capscore.train import Recipe, accuracy
from capscore.zoo import cards
from lab import published, zoo
from lab.experiments import page, verdicts
from lab.experiments.trials import Budget, Lab, read
from lab.published import FINAL, Published

RECIPE = Recipe(1, 128, 2e-3, average=0.9)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """A lab with one recipe: `tiny`, a small network on the embedded digits."""
    told = {"network": "small", "data": "digits", "validation": 0.1, "seeds": 2, "amp": False, "why": "Small."}
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "tiny.json").write_text(json.dumps(told | {"recipe": RECIPE.as_json()}))
    monkeypatch.setattr(published, "FOLDER", tmp_path / "recipes")
    monkeypatch.setitem(
        published.SETS, "digits", ("digits", lambda learn, watched, test: (learn, watched, {"test": test}))
    )
    console = Console(quiet=True)
    return Lab("recipes", "recipe", Budget(0, 1), tmp_path / "results", tmp_path / "runs", tmp_path, console=console)


@pytest.mark.parametrize("name", published.names())
def test_every_recipe_can_be_followed(name: str) -> None:
    told = Published.read(name)
    assert told.network in PRESETS
    assert told.data in published.SETS
    assert told.why.endswith(".")
    assert told.seeds >= 3, "a mean needs several"
    assert 0 < told.validation < 0.5, "some images are watched"


def test_networks_are_made_once_and_are_those_of_the_last_epoch(lab: Lab) -> None:
    published.run(lab, "tiny")
    trials = read(lab.file)
    assert [trial["settings"].get("seed", "all") for trial in trials] == [0, 1, "all"]
    nets = [caps.load(published.folder(lab, "tiny", seed) / FINAL) for seed in (0, 1)]
    _, test = load("digits")
    for net, trial in zip(nets, trials, strict=False):
        assert 100 * (1 - accuracy(net, test)) == pytest.approx(trial["values"]["test"])
        made = net.provenance["published"]
        assert (made["name"], made["data"], made["validation"]) == ("tiny", "digits", 0.1)
        assert Recipe.of(net.provenance) == replace(RECIPE, seed=trial["settings"]["seed"])
    images = test.batch(slice(0, 40))[0]
    both = published.Mean(tuple(nets)).predict(images)
    np.testing.assert_allclose(both, (nets[0].predict(images) + nets[1].predict(images)) / 2, atol=1e-7)
    published.run(lab, "tiny")
    assert read(lab.file) == trials, "what was done is kept"


def test_a_recipe_that_is_not_there() -> None:
    with pytest.raises(TrainingError, match=r"no recipe 'none'; choose one of .*efficient-mnist"):
        Published.read("none")


def test_what_is_watched_is_not_learned_from_and_tests_are_others() -> None:
    data = load("digits")[0]
    learn, watched, tests = published._pairs(
        data, replace(data, images=data.images[:50], labels=data.labels[:50]), data
    )
    assert isinstance(learn, Pairs)
    assert isinstance(watched, Pairs)
    seeds: set[Any] = {learn.seed, watched.seed}
    assert len(seeds) == 2
    assert list(tests) == ["test"]
    assert len(learn) == published.PAIRS * len(data), "so that an epoch never shows a pair twice"


def test_a_network_ships_as_a_file_that_reaches_what_its_card_says(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    need("onnxruntime", "onnx")
    monkeypatch.setattr("capscore.zoo.FOLDER", lab.runs.parent)
    monkeypatch.setitem(cards.SETS, "digits", ("digits", "CC BY-SA 3.0"))
    with pytest.raises(TrainingError, match="python -m lab recipe tiny --seeds 0"):
        zoo.ship(lab, "tiny")
    published.run(lab, "tiny", [0])
    path = zoo.ship(lab, "tiny")
    net = caps.load(path)
    measured = net.provenance["measured"]
    assert set(measured) == {"torch", "numpy", "fp32", "int8"}
    assert 100 * (1 - accuracy(net, load("digits")[1])) == pytest.approx(measured["torch"]["test"])
    assert "## tiny" in zoo.page()
    assert "1 seed as trained" in zoo.page()


def row(name: str, errors: list[float]) -> dict[str, Any]:
    spread = float(np.std(errors, ddof=1)) if len(errors) > 1 else None
    settings = {"recipe": name, "data": "mnist", "parameters": 1, "epochs": 1}
    return {"settings": settings, "n": len(errors), "mean": {"test": float(np.mean(errors))}, "std": {"test": spread}}


def test_what_routing_adds_is_judged_by_an_interval() -> None:
    plain = row("unrouted-mnist", [0.50, 0.52, 0.48])
    better, same = row("dynamic-mnist", [0.30, 0.31, 0.32]), row("efficient-mnist", [0.45, 0.55, 0.5])
    from scipy import stats

    low, high = verdicts.interval(plain, better, "test")
    theirs = stats.ttest_ind([0.50, 0.52, 0.48], [0.30, 0.31, 0.32], equal_var=False).confidence_interval()
    assert (low, high) == pytest.approx(theirs, rel=1e-9)
    said = "\n".join(page._heads([plain, better, same]))
    assert "dynamic routing adds to it; self-attention adds nothing that could be measured" in said
    alone = page._heads([row(name, [0.5]) for name in page.HEADS])
    assert "cannot be judged by one seed" in alone[1]
    assert page._heads([plain, better]) == []
