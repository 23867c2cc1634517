"""The experiments: what they measure, that they go on where they were stopped, and the page that tells of them."""

# ruff: noqa: E402 - without torch and matplotlib there is nothing to import
from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
from conftest import need

from capscore import PRESETS
from capscore.data import Dataset, Pairs, load
from capscore.errors import CapscoreError, ModelFileError, TrainingError

need("torch", "torch")
need("scipy", "dev")
need("matplotlib", "plot")
from matplotlib.figure import Figure
from rich.console import Console

from capscore import figures
from capscore.backends import torch as caps
from lab import ROOT, baselines
from lab.experiments import (
    NAMES,
    attack,
    efficiency,
    equivariance,
    experiment,
    heads,
    linear,
    page,
    pooling,
    quadrants,
    routing,
    trials,
)
from lab.experiments import ensemble as ensembles


def the_lab(name: str, folder, size: str = "smoke", **changes) -> trials.Lab:
    budget = replace(experiment(name).BUDGETS[size], **changes)
    where = {"results": folder / "results", "runs": folder / "runs", "images": folder / "images"}
    return trials.Lab(name, size, budget, **where, device="cpu", console=Console(quiet=True))


def tiny_capsnet(**changes):
    return caps.CapsNet(PRESETS["small"].replace(**changes))


def small_cnn():
    return caps.CapsNet(baselines.like(PRESETS["small"]))


def test_a_training_on_other_data_is_another(tmp_path, digits):
    from capscore.train import Recipe

    here, recipe = the_lab("mnist", tmp_path), Recipe(epochs=1, batch=32)
    for data in (digits, trials.subset(digits, 119), digits):
        here.fit(PRESETS["small"], data, digits, recipe, "net")
        assert len(here.rows) == 1
    assert len(list((tmp_path / "runs" / "mnist" / "smoke").iterdir())) == 2


@pytest.fixture(scope="module")
def digits():
    _, test = load("digits")
    return trials.subset(test, 120)


@pytest.fixture(autouse=True)
def _embedded_digits(monkeypatch):
    monkeypatch.delenv("CAPSCORE_DATA", raising=False)


@pytest.mark.parametrize("name", ["mnist", "table1", "multimnist", "affnist", "routing", "claims"])
def test_an_experiment_runs_and_what_is_done_is_not_done_again(name, tmp_path, monkeypatch):
    module, here = experiment(name), the_lab(name, tmp_path)
    module.run(here)
    written = here.file.read_bytes()
    content = json.loads(written)
    assert content["experiment"] == name
    for trial in content["trials"]:
        assert trial["settings"]["budget"] == "smoke"
        assert trial["settings"]["data"] == "digits"
        assert trial["hardware"]["device"] == "cpu"
        assert "torch" in trial["versions"]
        assert trial["spends"]["epochs"] == 1
        assert all(np.isfinite(list(trial["values"].values())))
    pictures = {"mnist": 1, "multimnist": 1, "routing": 1, "claims": 6}
    assert len(list(here.images.glob("results-*.png"))) == pictures.get(name, 0)
    monkeypatch.setattr(trials.Lab, "draw", lambda *_: None)
    module.run(here)
    assert here.file.read_bytes() == written


def test_a_killed_experiment_goes_on(tmp_path):
    """kill -9 after the first trial: it is kept as it is, and the others have the numbers of an undisturbed run."""
    program = [sys.executable, "-m", "lab", "experiment", "table1", "--budget", "smoke", "--device", "cpu"]
    for option in ("results", "runs", "images"):
        program += [f"--{option}", str(tmp_path / "cut" / option)]
    file = tmp_path / "cut" / "results" / "table1.json"
    process = subprocess.Popen(program, stdout=subprocess.DEVNULL, cwd=ROOT)
    while not file.exists():
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    process.wait()
    before = trials.read(file)
    assert len(before) >= 1
    experiment("table1").run(replace(the_lab("table1", tmp_path), results=file.parent, runs=tmp_path / "cut" / "runs"))
    after = trials.read(file)
    assert after[: len(before)] == before
    experiment("table1").run(the_lab("table1", tmp_path))
    whole = trials.read(tmp_path / "results" / "table1.json")
    assert [(t["settings"], t["values"]) for t in after] == [(t["settings"], t["values"]) for t in whole]
    assert not list(file.parent.glob("*.part"))


def test_a_picture_is_drawn_anew_but_not_over_that_of_somebody_else(tmp_path):
    here, figure = the_lab("mnist", tmp_path), Figure()
    for _ in range(2):
        here.draw("mnist", lambda: figure)
    other = here.images / "results-routing.png"
    figure.savefig(other)
    before = other.read_bytes()
    with pytest.raises(CapscoreError, match=r"results-routing\.png is there and was not written by python -m lab"):
        here.draw("routing", lambda: figure)
    assert other.read_bytes() == before
    assert {path.name for path in here.images.iterdir()} == {"results-mnist.png", "results-routing.png"}


def test_ensembles_are_trained_on_standardised_patches(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 3, 32, 32)).astype(np.uint8)
    colour = Dataset(images, rng.integers(0, 10, 40), tuple("abcdefghij"))
    from capscore.data import Framed

    monkeypatch.setattr(ensembles, "load", lambda *_, **__: (Framed(colour, 24, 24), Framed(colour, 24, 24)))
    here = the_lab("cifar10", tmp_path, images=32, test=20, batch=16)
    experiment("cifar10").run(here)
    done = trials.read(here.file)
    assert [trial["settings"]["models"] for trial in done] == [1, 1, 2]
    assert done[0]["settings"]["images"] == 32


def test_unknown_names_damaged_files_and_missing_data(tmp_path, monkeypatch):
    with pytest.raises(TrainingError, match="choose one of mnist, table1, "):
        experiment("table2")
    for other in ("[]", '{"trials": []}', '{"experiment": "table1", "trials": [{"seed": 1}]}'):
        (tmp_path / "table1.json").write_text(other)
        with pytest.raises(ModelFileError, match="does not hold results of the experiment table1: move it away"):
            trials.read(tmp_path / "table1.json")
    monkeypatch.setenv("CAPSCORE_DATA", str(tmp_path))
    with pytest.raises(CapscoreError, match="cifar10"):
        experiment("cifar10").run(the_lab("cifar10", tmp_path))


def test_the_summary_tells_n_mean_and_deviation_of_seeds():
    done = [
        {
            "settings": {"seed": seed, "network": net} if seed else {"network": net, "seed": seed},
            "values": {"error": error},
            "seconds": 2.0,
        }
        for net, seed, error in (("a", 0, 1.0), ("b", 0, 5.0), ("a", 1, 2.0))
    ]
    a, b = trials.summary(done)
    assert a == {
        "settings": {"network": "a"}, "seeds": [0, 1], "n": 2, "mean": {"error": 1.5}, "std": {"error": 0.5**0.5},
        "seconds": 4.0,
    }  # fmt: skip
    assert b["std"]["error"] is None


def test_a_linear_reader_reads_what_is_linear_and_nothing_else():
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(300, 6)), rng.normal(size=(300, 2))
    values = x @ rng.normal(size=(6, 2)) + 3
    assert linear.r_squared(values[200:], linear.read(x[:200], values[:200], x[200:], 1e-10)) > 0.999999
    assert linear.r_squared(noise[200:], linear.read(x[:200], noise[:200], x[200:])) < 0.1
    assert linear.r_squared(values, np.broadcast_to(values.mean(0), values.shape)) == 0


def test_poses_are_what_they_say():
    image = np.zeros((1, 1, 28, 28), np.float32)
    image[0, 0, 10, 20] = 1
    right = equivariance.posed(image, "shift right, px", np.array([2.0]))
    down = equivariance.posed(image, "shift down, px", np.array([-3.0]))
    assert np.unravel_index(right.argmax(), right.shape)[2:] == (10, 22)
    assert np.unravel_index(down.argmax(), down.shape)[2:] == (7, 20)
    turned = equivariance.posed(image, "rotation, °", np.array([90.0]))  # about 13.5, 13.5
    assert np.unravel_index(turned.argmax(), turned.shape)[2:] in [(7, 10), (20, 17)]
    big = equivariance.posed(np.pad(np.ones((1, 1, 8, 8), np.float32), ((0, 0), (0, 0), (10, 10), (10, 10))),
                             "scale", np.array([1.25]))  # fmt: skip
    assert big.sum() == pytest.approx(100, rel=0.01)


def test_a_capsule_that_holds_the_pose_is_read(digits):
    class Holds:
        """A network whose winning capsule says where the ink is."""

        ops, spec = caps, PRESETS["small"]

        def __call__(self, images):
            place = np.arange(28) - 13.5
            ink = images.sum((1, 2, 3))
            x, y = images.sum((1, 2)) @ place / ink, images.sum((1, 3)) @ place / ink
            capsules = caps.asarray(np.stack([x, y], 1)[:, None].astype(np.float32))
            return caps.asarray(np.ones((len(images), 1), np.float32)), capsules

    found = equivariance.readings(Holds(), digits)
    assert found["shift right, px"].r_squared > 0.8
    assert found["shift down, px"].r_squared > 0.8
    assert found["scale"].r_squared < 0.5


def test_quadrants_change_places_and_keep_their_pixels():
    images = np.random.default_rng(0).random((20, 2, 8, 6)).astype(np.float32)
    moved = quadrants.rearranged(images)
    assert len(quadrants.MOVED) == 9
    for old, new in zip(images, moved, strict=True):
        parts = [[x[:, r : r + 4, c : c + 3] for r in (0, 4) for c in (0, 3)] for x in (old, new)]
        assert not any(np.array_equal(a, b) for a, b in zip(*parts, strict=True))
        assert sorted(float(part.sum()) for part in parts[0]) == sorted(float(part.sum()) for part in parts[1])
    assert quadrants.told_apart(np.array([0.9, 0.8]), np.array([0.1, 0.2])) == 1
    assert quadrants.told_apart(np.array([0.3, 0.6]), np.array([0.4, 0.5])) == 0.5


@pytest.mark.parametrize("kind", ["capsnet", "cnn"])
def test_attacks_stay_in_the_box_and_raise_the_error(kind, digits):
    net = tiny_capsnet() if kind == "capsnet" else small_cnn()
    learner = caps.Learner(net)
    images, labels = digits.batch(slice(0, 40))
    for _ in range(40):
        learner.step(images, np.eye(10)[labels], 3e-3)
    right = (net.predict(images).argmax(1) == labels).mean()
    assert right > 0.9
    for steps in (1, 5):
        moved = attack.attacked(net, images, labels, 0.2, steps)
        assert np.abs(moved - images).max() <= 0.2 + 1e-6
        assert moved.min() >= 0
        assert moved.max() <= 1
        assert (net.predict(moved).argmax(1) == labels).mean() < right - 0.3


def test_few_examples_recur(digits):
    few = efficiency.few_examples(digits, 3, 100, seed=0)
    assert few is not None
    assert len(few) == 100
    assert len({image.tobytes() for image in few.images}) == 30
    assert set(np.bincount(few.labels)) <= {9, 10, 11, 12}
    assert efficiency.few_examples(digits, 1000, 100, seed=0) is None


def test_pooling_stages_are_those_of_the_network(digits):
    images, _ = digits.batch(slice(0, 3))
    made = {name: caps.CapsNet(spec) for name, spec in heads.networks(28).items()}
    maps = {"map 1": 32 * 12 * 12, "map 2": 128 * 3 * 3}
    before = {"map 1, before pooling": 32 * 24 * 24, "map 2, before pooling": 128 * 6 * 6}
    for name, wanted in ((heads.CNN, maps), (heads.ATTENTION, maps), (heads.POOLED, maps | before)):
        found = pooling.stages(made[name], images)
        assert {stage: x.shape for stage, x in found.items()} == {stage: (3, size) for stage, size in wanted.items()}
    pools = found["map 2, before pooling"].reshape(3, 128, 3, 2, 3, 2).max((3, 5))
    np.testing.assert_array_equal(pools.reshape(3, -1), found["map 2"])


def test_changes_of_the_routing_are_those_of_its_couplings(digits):
    net = tiny_capsnet()
    images, _ = digits.batch(slice(0, 4))
    found = routing.changes(net, images)
    last = replace(net.spec.capsules[0], routing=type(net.spec.capsules[0].routing)(3))
    three = caps.CapsNet(net.spec.replace(capsules=(last,)), net.params)
    trace = [c.detach().numpy() for c in three(images, couplings=True).couplings[0]]
    for r in (1, 2):
        assert found[f"couplings {r}"] == pytest.approx(np.abs(trace[r] - trace[r - 1]).mean(), rel=1e-3)
    assert len(found) == 2 * (routing.PASSES - 1)


def test_the_two_of_a_pair_are_drawn_in_two_colours(digits):
    pairs = Pairs(digits, 0, 1)
    net = tiny_capsnet(input=pairs.size)
    figure = figures.overlapping(net, pairs, np.arange(5))
    shown = [ax.get_images()[0].get_array() for ax in figure.axes]
    assert len(shown) == 15
    parts, _ = pairs.parts(np.arange(5))
    np.testing.assert_allclose(shown[1][..., 0], parts[0, 0, 0], atol=1e-6)  # red: the first object
    np.testing.assert_allclose(shown[1][..., 1], parts[0, 1, 0], atol=1e-6)


def test_explore_draws_pairs(digits, tmp_path):
    pairs = Pairs(digits, 0, 1)
    files = figures.explore(tiny_capsnet(input=pairs.size), pairs, tmp_path, count=3)
    assert "overlapping.png" in [path.name for path in files]


def record(experiment: str, value: float, seed: int = 0, **settings) -> dict:
    return {
        "settings": {"budget": "quick", "data": "mnist", "images": 10, "test": 5, "parameters": 7, "seed": seed}
        | settings,
        "values": {"error": value},
        "seconds": 1.0,
        "spends": {"epochs": 2},
        "hardware": {"cpu": "a processor", "threads": 2, "device": "cpu"},
        "versions": {"torch": "2", "capscore": "0"},
    }  # fmt: skip


def test_the_page_says_what_was_run_and_what_was_not(tmp_path):
    nothing = page.markdown(tmp_path, tmp_path)
    assert nothing.count("not run | not run | not run") == len(page.PUBLISHED)
    assert "`python -m lab experiment claims`: not run" in nothing
    best = {"network": "CapsNet", "routing": 3, "reconstruction": True}
    rows = [record("table1", error, seed, **best) for seed, error in enumerate((0.2, 0.3))]
    trials.write(tmp_path / "table1.json", rows)
    trials.write(
        tmp_path / "multimnist.json", [record("multimnist", e, network=n) for n, e in (("CapsNet", 6.0), ("CNN", 8.0))]
    )
    text = " ".join(page.markdown(tmp_path, tmp_path).split())  # wherever its lines end
    published = "| **0.25 ± 0.005** | 0.28; on average 0.30 and 0.34 | not said |"
    assert f"{published} not run | not run | 0.25 ± 0.07 (n = 2) |" in text
    assert "a processor, 2 threads" in text
    assert "**undecided** (95% interval of how much: one seed tells none)" in text
    assert "![" not in text
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "results-multimnist.png").touch()
    assert "(images/results-multimnist.png)" in page.markdown(tmp_path, tmp_path)


def test_every_experiment_has_its_budgets():
    for name in NAMES:
        module = experiment(name)
        assert isinstance(module, ModuleType)
        assert set(module.BUDGETS) == {"smoke", "quick", "hour", "full"}
