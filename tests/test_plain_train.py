"""The plain command on a folder of pictures: what it chooses, what it writes, how well it learns."""

import csv
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import need
from pictures import folder
from PIL import Image
from typer.testing import CliRunner

from capscore import PRESETS, cli, modelfile
from capscore.data import load
from capscore.errors import CapscoreError
from capscore.fit import fitted, pace
from capscore.train import BEST, LAST, Recipe


def run(*args: Any, code: int = 0) -> str:
    """Run the command in this process; return what it said, or its error."""
    result = CliRunner().invoke(cli.app, list(map(str, args)))
    if code:
        assert isinstance(result.exception, CapscoreError), result.output
        return str(result.exception)
    if result.exception:
        raise result.exception
    return result.output


GUIDE = Path(__file__).parents[1] / "docs" / "guides" / "your-data.md"


def test_160_pictures_are_learned_by_one_plain_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    need("onnxruntime", "onnx")
    need("matplotlib", "matplotlib")
    folder(Path("shapes"), 40, seed=2)  # of five draws, one that the networks tried here found hard
    learn, test = load("shapes")
    x, rest = (each.batch(slice(None))[0].reshape(len(each), -1) for each in (learn, test))
    gram = x @ x.T + np.eye(len(x))  # ridge regression: a linear model guesses
    scores = rest @ x.T @ np.linalg.solve(gram, np.eye(4)[learn.labels])
    assert (scores.argmax(1) == test.labels).mean() < 0.6
    told, shown = guide("From a folder to answers")
    said = "".join(run(*command.split()[1:]) for command in told)
    *_, last = map(json.loads, Path("runs/shapes/log.jsonl").read_text().splitlines())
    assert last["held_out_accuracy"] >= 0.85  # not the best epoch's, which the held-out images themselves choose
    lines = [masked(line) for line in said.splitlines()]
    for line in shown:
        assert masked(line) in lines
    answers = list(csv.DictReader(Path("answers.csv").read_text().splitlines()))
    assert len(answers) == 40
    assert np.mean([answer["class"] == "disc" for answer in answers]) >= 0.85


def test_what_augment_draws_is_as_large_as_what_train_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("matplotlib", "matplotlib")
    drawn: dict[str, Any] = {}
    monkeypatch.setattr("capscore.figures.augmentations", lambda data, changes, **how: drawn.update(how, data=data))
    monkeypatch.setattr("capscore.figures.save", lambda figure, out: None)
    for name in "ab":
        (tmp_path / "big" / name).mkdir(parents=True)
        for i in range(6):
            noise = np.random.default_rng(i).integers(0, 256, (300, 400), np.uint8)
            Image.fromarray(noise).save(tmp_path / "big" / name / f"{i}.png")
    run("augment", "pictures", "--data", tmp_path / "big")
    run("train", "--data", tmp_path / "big", "--out", tmp_path / "run", "--epochs", 1, "--backend", "numpy")
    told = modelfile.read(tmp_path / "run" / LAST)
    assert drawn["data"].size == told.spec.input
    assert drawn["shift"] == Recipe.of(told.provenance).shift > 2


def guide(section: str) -> tuple[list[str], list[str]]:
    """The commands of a section of the guide, and the lines that it shows of what they say."""
    text = GUIDE.read_text().partition(f"## {section}\n")[2].partition("\n## ")[0]
    commands = re.findall(r"^    (capscore .*)$", text, re.MULTILINE)
    (shown,) = re.findall(r"^```text\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert [command.split()[1] for command in commands] == ["train", "eval", "export", "predict"]
    return commands, [line for line in shown.splitlines() if line not in ("", "…")]


def masked(line: str) -> str:
    """A line without its numbers, widths and paths, which are those of a machine and of pictures."""
    return re.sub(r"\s+", " ", re.sub(r"\d[\d.,]*(e-\d+)?", "#", re.sub(r"\S*/shapes(?= )", "shapes", line))).strip()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A training of one epoch without another option, and what it said."""
    root = tmp_path_factory.mktemp("plain")
    folder(root / "shapes", 8, 32)
    said = run("train", "--data", root / "shapes", "--out", root / "run", "--epochs", 1, "--backend", "numpy")
    return root, said


def test_what_was_chosen_is_a_command_and_a_file(plain: tuple[Path, str], tmp_path: Path) -> None:
    root, said = plain
    (line,) = [line for line in said.splitlines() if line.startswith("settings: capscore ")]
    again = line.removeprefix("settings: capscore ").split()
    assert again[again.index("--schedule") + 1] == "cosine"
    first = modelfile.read(root / "run" / BEST)
    run(*again, "--backend", "numpy", "--out", tmp_path / "command")
    run("train", "--config", root / "run" / "config.json", "--out", tmp_path / "config")
    for name in ("command", "config"):
        same = modelfile.read(tmp_path / name / BEST)
        assert same.spec == first.spec
        assert Recipe.of(same.provenance) == Recipe.of(first.provenance)
        for parameter, array in first.params.items():
            np.testing.assert_array_equal(same.params[parameter], array)
    assert (tmp_path / "config" / "config.json").read_text() == (root / "run" / "config.json").read_text()


def test_a_file_is_edited_and_the_command_line_has_the_last_word(plain: tuple[Path, str], tmp_path: Path) -> None:
    settings = json.loads((plain[0] / "run" / "config.json").read_text())
    settings |= {
        "rate": 1,
        "shift": 1,
        "optimiser": "sgd",
        "clip": 1,
        "network": json.loads(PRESETS["small"].to_json()),
    }
    settings["network"] |= {"input": [3, 32, 32], "decoder": None}
    settings["network"]["layers"][-1]["count"] = 4
    (tmp_path / "mine.json").write_text(json.dumps(settings))
    run("train", "--config", tmp_path / "mine.json", "--rate", 0.003, "--out", tmp_path / "run")
    model = modelfile.read(tmp_path / "run" / LAST)
    recipe = Recipe.of(model.provenance)
    assert (recipe.rate, recipe.shift, type(recipe.optimiser).__name__) == (0.003, 1, "SGD")
    assert model.spec.decoder is None
    assert "beside --resume" in run("train", "--resume", tmp_path / "run", "--config", tmp_path / "mine.json", code=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "a JSON object is needed"),
        ('{"epoch": 3}', "there is no setting 'epoch'; there are data, "),
        ('{"epochs": "three"}', "epochs is 'three': give a int"),
        ('{"amp": 1}', "amp is 1: give a bool"),
        ('{"out": "x"}', "there is no setting 'out'"),
        ('{"network": {"input": [1, 2]}}', "spec lacks layers"),
    ],
)
def test_a_file_that_is_wrong_is_told(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(text)
    assert message in run("train", "--config", tmp_path / "mine.json", "--out", tmp_path / "run", code=1)
    assert not (tmp_path / "run").exists()


def test_the_pace_follows_from_the_number_of_images() -> None:
    assert pace((3, 64, 64), 128)[:2] == (16, 63)
    assert pace((1, 28, 28), 60_000) == (128, 10, 2, 1e-3, "exponential", 5e-4)
    assert fitted((1, 28, 28), 10, 5000) == PRESETS["small"]
    assert fitted((1, 28, 28), 10, 100) != PRESETS["small"]


def test_help_has_the_advanced_options_apart_and_completion_is_on() -> None:
    said = run("train", "--help")
    options, _, advanced = said.partition("Advanced")
    assert "--epochs" in options
    assert "--epochs" not in advanced
    assert "--weight-decay" not in options
    assert "--weight-decay" in advanced
    assert "--install-completion" in run("--help")


def test_a_command_of_many_options_is_said_whole(plain: tuple[Path, str], tmp_path: Path) -> None:
    """And the settings of a fine-tuning can be given back, as a command and as a file."""
    options = ["--optimiser", "sgd", "--momentum", 0.5, "--average", 0.9, "--seed", 7, "--validation", 0.1,
               "--shift", 1, "--augment", '[{"type": "Flip"}]', "--class-weights", "balanced", "--freeze", "stem",
               "--fast-conv", "3x3"]  # fmt: skip
    data, begin = ["--data", plain[0] / "shapes", "--backend", "numpy"], ["--finetune", plain[0] / "run" / BEST]
    said = run("train", *data, *begin, "--out", tmp_path / "first", "--epochs", 1, *options)
    (line,) = [line for line in said.splitlines() if line.startswith("settings: capscore ")]
    run(*shlex.split(line.removeprefix("settings: capscore ")), "--out", tmp_path / "command")
    run("train", "--config", tmp_path / "first" / "config.json", "--out", tmp_path / "config")
    first = modelfile.read(tmp_path / "first" / BEST)
    for name in ("command", "config"):
        same = modelfile.read(tmp_path / name / BEST)
        assert Recipe.of(same.provenance) == Recipe.of(first.provenance)
        for parameter, array in first.params.items():
            np.testing.assert_array_equal(same.params[parameter], array)


def test_settings_are_told_once_they_are_written(plain: tuple[Path, str], tmp_path: Path) -> None:
    """A folder that holds a training has the settings of that one."""
    before = (plain[0] / "run" / "config.json").read_text()
    result = CliRunner().invoke(cli.app, ["train", "--data", str(plain[0] / "shapes"), "--backend", "numpy", "--rate",
                                          "0.7", "--out", str(plain[0] / "run")])  # fmt: skip
    assert "already holds a training" in str(result.exception)
    assert "settings:" not in result.output
    assert (plain[0] / "run" / "config.json").read_text() == before


def test_settings_hold_augmentation_as_json(plain: tuple[Path, str], tmp_path: Path) -> None:
    train = "train", "--data", plain[0] / "shapes", "--backend", "numpy", "--epochs", 1
    run(*train, "--out", tmp_path / "a", "--augment", '[{"type": "Flip"}]')
    told = json.loads((tmp_path / "a" / "config.json").read_text())
    assert told["augment"] == [{"type": "Flip"}]
    run("train", "--config", tmp_path / "a" / "config.json", "--out", tmp_path / "b")
    first, second = (modelfile.read(tmp_path / name / BEST) for name in "ab")
    assert Recipe.of(second.provenance) == Recipe.of(first.provenance)
    assert "nearest known are Rotation" in run(*train, "--augment", '[{"type": "Rotaton"}]', code=1)
    assert "Activation" not in run(*train, "--augment", '[{"type": "Rotaton"}]', code=1)


@pytest.mark.parametrize("module", ["train", "eval"])
def test_a_report_without_matplotlib_is_told_first(
    module: str, plain: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [*sys.modules]:
        if name.startswith(("matplotlib", "capscore.figures", "capscore.report", "capscore.mistakes")):
            monkeypatch.delitem(sys.modules, name)
    for name in ("matplotlib", "matplotlib.axes", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    data = "--data", plain[0] / "shapes", "--backend", "numpy"
    how = {
        "train": ("train", *data, "--out", tmp_path / "run", "--report"),
        "eval": ("eval", plain[0] / "run" / BEST, *data, "--report", tmp_path / "run"),
    }
    assert run(*how[module], code=1) == "figures need matplotlib: pip install 'capscore[plot]'"
    assert not (tmp_path / "run").exists()


def test_images_of_one_pixel_are_not_moved() -> None:
    assert [pace((1, side, side), 100).shift for side in (1, 2, 3, 12)] == [0, 1, 2, 2]
