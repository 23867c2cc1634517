"""Recipes as files, the networks that they make, and the zoo of those that ship."""

# ruff: noqa: E402 - without torch there is nothing to import
from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import need

need("torch", "torch")
need("scipy", "dev")

from rich.console import Console

from capscore import PRESETS, create, modelfile
from capscore.backends import torch as caps
from capscore.data import Pairs, load, targets_of
from capscore.errors import TrainingError
from capscore.metrics import Measures
from capscore.train import Recipe, accuracy, measure
from capscore.zoo import cards
from lab import files, gallery, published, zoo
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
    monkeypatch.setitem(published.SETS, "digits", ("digits", published._single, {"test": "digits"}))
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
    path = published.FOLDER / "tiny.json"
    told = json.loads(path.read_text())
    before, numbers = Published.read("tiny").mark, replace(RECIPE, rate=1e-4).as_json()
    path.write_text(json.dumps(told | {"seeds": 9, "why": "Other words."}))
    assert Published.read("tiny").mark == before
    path.write_text(json.dumps(told | {"recipe": numbers}))
    assert Published.read("tiny").mark != before
    for edited in ({"recipe": replace(RECIPE, epochs=2).as_json()}, {"amp": True}):
        path.write_text(json.dumps(told | edited))
        assert Published.read("tiny").mark != before
        published.run(lab, "tiny", [0])
        *others, made = read(lab.file)
        assert [trial for trial in others if "ensemble" in trial["settings"]] == trials[2:], "none of two recipes"
        final = modelfile.read(published.folder(lab, "tiny", 0) / FINAL)
        assert final.provenance["epoch"] == Published.read("tiny").recipe.epochs
        assert made["values"]["minutes"] not in [trial["values"].get("minutes") for trial in others], "it was trained"


def test_a_recipe_that_is_not_there() -> None:
    with pytest.raises(TrainingError, match=r"no recipe 'none'; choose one of .*efficient-mnist"):
        Published.read("none")


def test_what_is_watched_is_not_learned_from_and_tests_are_others() -> None:
    data = load("digits")[0]
    recipe = Published.read("efficient-multimnist")
    learn, watched = published._pairs(recipe, data, replace(data, images=data.images[:50], labels=data.labels[:50]))
    assert isinstance(learn, Pairs)
    assert isinstance(watched, Pairs)
    seeds: set[Any] = {learn.seed, watched.seed}
    assert len(seeds) == 2
    assert list(published.SETS[recipe.data][2]) == ["test"]
    assert len(learn) == recipe.pairs * len(data)
    assert recipe.recipe.epochs == 1, "so that no pair is shown twice"


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
    shown = zoo.page(lab)
    assert "## tiny" in shown
    assert "1 seed as trained" in shown
    assert "![" not in shown, "nothing is drawn yet"
    assert zoo.check(lab, "tiny") == []
    model = modelfile.read(path)
    model.provenance["measured"]["numpy"]["test"] += 1
    modelfile.save(path, model, "float16")
    (wrong,) = zoo.check(lab, "tiny")
    assert wrong.startswith(f"tiny, test images: {measured['numpy']['test']:.2f}% wrong on NumPy, where its card says ")


def test_what_a_network_gets_wrong_is_noted_and_drawn(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    need("matplotlib", "plot")
    monkeypatch.setattr("capscore.zoo.FOLDER", lab.runs.parent)
    published.run(lab, "tiny", [0])
    trained, ships = published.folder(lab, "tiny", 0), lab.runs.parent / "tiny.safetensors"
    net = caps.load(trained / FINAL)
    net.save(ships)
    _, test = load("digits")
    gallery.note(lab, "tiny", {"test": test}, ships)
    noted, found = gallery.read(lab.results)["tiny"], measure(net, test)
    assert [row["epoch"] for row in noted["log"]] == [1]
    told = noted["tests"]["test"]
    assert (told["images"], told["wrong"]) == (1000, int((~found.right).sum()))
    np.testing.assert_array_equal(told["found"], found.confusion)
    worst = told["hardest"][0]
    assert worst["image"] == found.hardest(1)[0]
    assert worst["shows"] == [test.labels[worst["image"]]]
    assert worst["says"] == [found.scores[worst["image"]].argmax()]

    def drawn() -> dict[str, bytes]:
        gallery.draw(lab)
        return {path.name: path.read_bytes() for path in lab.images.glob("results-zoo*.png")}

    first = drawn()
    assert set(first) == {"results-zoo.png", "results-zoo-tiny.png", "results-zoo-tiny-drawn.png"}
    assert all(files.MARK.encode() in content[: files.HEAD] for content in first.values())
    assert max(map(len, first.values())) < 150_000
    written = gallery.file(lab.results, "tiny")
    written.write_text(written.read_text().replace(f'"wrong": {told["wrong"]}', '"wrong": 7'))
    second = drawn()  # of the numbers: where these are the same, so are the bytes
    assert {name for name in first if first[name] != second[name]} == {"results-zoo-tiny.png"}
    assert gallery.words("tiny", noted, lab.images).count("](images/results-zoo-tiny") == 2
    # Without a decoder there is nothing to draw, and the picture stays.
    spec = net.spec.replace(decoder=None)
    model = modelfile.read(ships)
    modelfile.save(ships, replace(model, spec=spec, params={each: model.params[each] for each in spec.parameters}))
    shutil.rmtree(trained)
    lines: list[str] = []
    monkeypatch.setattr(Lab, "say", lambda _, line: lines.append(line))
    assert drawn() == second
    assert any("python -m lab recipe tiny --seeds 0" in line for line in lines)


def test_of_pairs_it_is_counted_which_digit_was_taken_for_which() -> None:
    targets = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [0, 1, 1, 0], [1, 1, 0, 0]])
    scores = np.array([[0.9, 0.8, 0, 0], [0.9, 0, 0.1, 0.8], [0.1, 0.9, 0.5, 0.2], [0.1, 0, 0.8, 0.9]])
    found = Measures(scores, targets, ("a", "b", "c", "d"), 2)
    # Both are found; c is taken for d; both are found; both are missed, and nobody knows for which.
    wanted = [[2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]]
    np.testing.assert_array_equal(gallery.mistaken(found), wanted)


def test_pairs_and_several_sets_have_their_pictures() -> None:
    need("matplotlib", "plot")
    from lab import sheets

    pairs = Pairs(load("digits")[1], 1, 1)
    net = caps.CapsNet(PRESETS["small"].replace(input=(1, 36, 36)), classes=pairs.classes)
    again, moved = gallery._drawn(net, pairs)
    assert again.texts[0].get_text() == "Overlapping objects"
    assert moved.texts[0].get_text() == "What the dimensions of a capsule mean"
    images, labels = pairs.batch(slice(0, 40))
    told = gallery._noted(Measures(net.predict(images), targets_of(labels, 10), pairs.classes, 2))
    figure = sheets.mistakes_of("two", "affine", pairs.classes, told, images[: gallery.HARDEST])
    assert figure.texts[0].get_text() == f"two: {told['wrong']} of 40 test images turned, sheared and scaled are wrong"
    assert gallery.picture("two", "affine") == "zoo-two-affine"


def test_networks_together_answer_by_their_mean_with_classes_by_name() -> None:
    @dataclass(frozen=True)
    class Says:
        classes: tuple[str, ...]
        scores: tuple[float, ...]

        def predict(self, images: Any) -> Any:
            return np.tile(np.array(self.scores), (len(images), 1))

    mean = published.Mean((Says(("a", "b"), (0.6, 0.2)), Says(("b", "a"), (0.9, 0.1))))
    np.testing.assert_allclose(mean.predict(np.zeros((3, 1, 2, 2))), [[0.35, 0.55]] * 3)
    assert mean.classes == ("a", "b")


@pytest.mark.parametrize(("together", "cell"), [(None, "–"), (2, "0.30 (of 2)"), (3, "0.30")])
def test_the_table_has_no_figure_of_networks_together_that_were_not(together: int | None, cell: str) -> None:
    about = {"recipe": "small-mnist", "data": "mnist", "parameters": 10, "epochs": 1}
    rows = [{"settings": about, "n": 3, "mean": {"test": 0.4}, "std": {"test": 0.1}}]
    if together:
        rows += [{"settings": about | {"ensemble": together}, "n": 1, "mean": {"test": 0.3}, "std": {"test": None}}]
    (*_, line) = page._recipes(rows)[-1].splitlines()
    assert line.split(" | ")[4:6] == ["0.40 ± 0.10", cell]


def test_networks_of_the_zoo_together_are_right() -> None:
    _, test = load("digits")
    few = replace(test, images=test.images[:200], labels=test.labels[:200])
    nets = [create(name, pretrained=True, backend="torch") for name in ("efficient-mnist", "dynamic-mnist")]
    alone = [accuracy(net, few) for net in nets]
    together = accuracy(published.Mean(tuple(nets)), few)
    assert min(alone) <= together
    assert together > 0.98


def test_every_published_figure_says_how_its_epoch_was_chosen() -> None:
    assert set(published.names()) <= set(page.OF_RECIPES)
    for name, (figure, epoch) in page.OF_RECIPES.items():
        assert epoch not in ("", "–") or not any(character.isdigit() for character in figure), name
    for name, paper, best, epoch, *_ in page.PUBLISHED:
        assert epoch not in ("", "–") or (paper, best) == ("–", ""), name


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
    assert "dynamic routing errs less and self-attention adds nothing that could be measured" in said
    assert "residual" not in said
    alone = page._heads([row(name, [0.5]) for recipes in page.HEADS.values() for name in recipes])
    assert alone[1].count("cannot be judged by one seed") == 4
    assert page._heads([plain, better]) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 1}, "has no field 'lr'; its fields are network, data"),
        ({"network": None}, "lacks network"),
        ({"network": "resnet"}, "there is no network 'resnet'; choose one of"),
        ({"data": "imagenet"}, "there is no data 'imagenet'; choose one of"),
        ({"validation": 2}, "validation must be a share"),
        ({"seeds": 0}, "seeds must be a whole number"),
        ({"seeds": "3"}, "seeds must be a whole number"),
        ({"amp": "no"}, "amp must be true or false"),
        ({"recipe": {"epochs": 1, "lr": 1}}, "recipe has no field 'lr'; its fields are epochs"),
        ({"recipe": {"epochs": 1, "augment": [{"type": "Rotaton"}]}}, "type 'Rotaton' is unknown"),
        ({"recipe": []}, "'list' object has no attribute 'items'"),
    ],
)
def test_a_recipe_with_a_mistake_is_told(lab: Lab, change: dict[str, Any], message: str) -> None:
    path = published.FOLDER / "tiny.json"
    told = {name: value for name, value in (json.loads(path.read_text()) | change).items() if value is not None}
    path.write_text(json.dumps(told))
    with pytest.raises(TrainingError, match=re.escape(message)):
        Published.read("tiny")
    path.write_text('{"network": "small"')
    with pytest.raises(TrainingError, match="is not JSON"):
        Published.read("tiny")


def test_what_ships_says_what_is_known_today_of_its_seeds(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    need("onnxruntime", "onnx")
    monkeypatch.setattr("capscore.zoo.FOLDER", lab.runs.parent)
    monkeypatch.setitem(cards.SETS, "digits", ("digits", "CC BY-SA 3.0"))
    published.run(lab, "tiny", [0])
    path = zoo.ship(lab, "tiny")
    before = modelfile.read(path)
    zoo.refresh(lab, "tiny")
    assert modelfile.read(path).provenance == before.provenance
    published.run(lab, "tiny", [1])
    zoo.refresh(lab, "tiny")
    after = modelfile.read(path)
    assert after.provenance["seeds"]["test"]["n"] == 2
    assert after.provenance["published"]["network"] == "small"
    for name, array in before.params.items():
        np.testing.assert_array_equal(after.params[name], array)
