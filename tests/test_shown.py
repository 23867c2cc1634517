"""How things show themselves: datasets, networks, progress and a training's report."""

import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import need
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from test_plain_train import run

from capscore import PRESETS
from capscore.backends import numpy as caps
from capscore.data import Dataset, Framed, Pairs, load
from capscore.train import Recipe, train
from capscore.train.report import Screen
from capscore.train.score import made_of

ROOT = Path(__file__).parents[1]


def test_datasets_print_as_a_line_and_are_a_picture() -> None:
    digits, _ = load("digits")
    assert repr(digits) == "Dataset(5,000 images of 1×28×28, 10 classes: 0, 1, 2, 3, 4, 5, … 4 more)"
    assert repr(Pairs(digits)).startswith("Pairs(5,000,000 images of 1×36×36")
    assert repr(Framed(digits, 8, 9)).startswith("Framed(5,000 images of 1×8×9")
    assert digits.picture().size == (8 * (56 + 4), 4 * (56 + 4))  # type: ignore[attr-defined]
    assert Image.open(io.BytesIO(digits._repr_png_())).size == (480, 240)  # type: ignore[attr-defined]
    colour = Dataset(np.full((3, 3, 70, 50), 128, np.uint8), np.arange(3), ("a", "b", "c"))
    shown = np.asarray(colour.picture())
    assert shown.shape == (74, 8 * 54, 3)
    assert (shown[:70, :50] == 128).all()
    assert (shown[:, 3 * 54 :] == 0).mean() + (shown[:, 3 * 54 :] == 255).mean() == 1


def test_a_network_prints_as_its_layers() -> None:
    lines = repr(caps.CapsNet(PRESETS["small"])).splitlines()
    assert lines[0] == "CapsNet(  # 1×28×28 images, 10 classes, 471,216 parameters"
    assert lines[3].startswith("  (capsules.0): DenseCaps(count=10)")
    assert lines[3].endswith("→ 10×16")
    torch = need("capscore.backends.torch", "torch")
    assert "(primary): " in repr(torch.CapsNet(PRESETS["small"]))


def test_training_in_python_tells_of_progress_unless_told_not_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digits, test = load("digits")
    learn = Dataset(*digits.batch(slice(0, 64)), digits.classes)
    rest = Dataset(*test.batch(slice(0, 32)), digits.classes)
    for name, options in {"told": {}, "quiet": {"reporters": ()}}.items():
        net = caps.CapsNet(PRESETS["small"], classes=digits.classes)
        train(net, caps.Learner(net), learn, rest, Recipe(epochs=1, batch=32), tmp_path / name, **options)
        said = capsys.readouterr()
        assert said.out == ""
        assert ("epoch 1/1 loss" in said.err) == (name == "told")


def test_a_notebook_has_a_bar_where_there_are_widgets(monkeypatch: pytest.MonkeyPatch) -> None:
    for there in (True, False):
        monkeypatch.setattr("capscore.train.report.find_spec", lambda name, there=there: object() if there else None)
        assert Screen(Console(force_jupyter=True, file=io.StringIO(), force_terminal=False)).live == there


def test_a_training_has_a_report_in_one_file(tmp_path: Path) -> None:
    need("matplotlib", "plot")
    digits, test = load("digits")
    part = {"train_images": digits.images[:96], "train_labels": digits.labels[:96]}  # type: ignore[attr-defined]
    names = ["<script>", *"123456789"]
    np.savez(tmp_path / "x.npz", **part, test_images=test.images[:60], test_labels=test.labels[:60], classes=names)  # type: ignore[attr-defined]
    said = run("train", "--data", tmp_path / "x.npz", "--preset", "small", "--out", tmp_path / "run", "--epochs", 2,
               "--backend", "numpy", "--report")  # fmt: skip
    page = (tmp_path / "run" / "report.html").read_text()
    assert f"a report with pictures: {tmp_path / 'run' / 'report.html'}" in said
    assert len(re.findall(r'<img alt="[^"]+" src="data:image/png;base64,', page)) == 4
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "capsules.0" in page
    assert "accuracy" in page


def test_a_report_of_pairs_and_of_classes_in_another_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from capscore import report

    test = load("digits")[1]
    some = Dataset(test.images[:40], test.labels[:40], test.classes)  # type: ignore[attr-defined]
    pairs = caps.CapsNet(PRESETS["small"].replace(input=(1, 36, 36)))
    report.write(tmp_path / "pairs.html", pairs, Pairs(some, per_digit=1))
    assert (tmp_path / "pairs.html").read_text().count("<img") == 2  # hardest, reconstructions
    seen: list[tuple[int, str]] = []

    def drawn(net: caps.CapsNet, images: np.ndarray, labels: np.ndarray) -> Figure:
        for image, k in zip(images, labels, strict=True):
            found = (np.abs(some.batch(slice(None))[0] - image).sum((1, 2, 3)) == 0).nonzero()[0]
            seen.append((int(some.labels[found[0]]), net.classes[k]))
        return Figure()

    monkeypatch.setattr(report, "reconstructions", drawn)
    report.write(tmp_path / "backward.html", caps.CapsNet(PRESETS["small"], classes=test.classes[::-1]), some)
    assert len(seen) == 10
    assert all(str(label) == name for label, name in seen)


def test_what_a_network_is_made_of() -> None:
    digits, _ = load("digits")
    assert made_of(digits) == {"several": False, "shows": 1, "source": [28, 28]}
    assert made_of(Framed(digits, 40, 36)) == {"several": False, "shows": 1, "source": [28, 28]}
    assert made_of(Pairs(digits)) == {"several": False, "shows": 2, "source": [28, 28]}
    flags = Dataset(digits.images[:2], np.eye(2, dtype=bool), ("a", "b"))  # type: ignore[attr-defined]
    assert made_of(flags) == {"several": True, "shows": None, "source": [28, 28]}


TYPED = """
from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

import capscore
from capscore import PRESETS
from capscore.backends import numpy as caps
from capscore.data import load
from capscore.model import Output

train, test = load("digits")
images, labels = test.batch(slice(0, 10))
net = caps.CapsNet(PRESETS["small"])
out = net(images)
assert_type(out, Output[NDArray[Any]])
drawn = net.reconstruct(out.capsules)
assert_type(drawn, NDArray[Any])
assert_type(net.predict(images), NDArray[Any])
assert_type(len(test), int)
also = capscore.CapsNet(PRESETS["small"])
assert_type(also(images), Output[NDArray[Any]])
"""


def test_a_script_of_a_user_is_typed(tmp_path: Path) -> None:
    need("mypy", "mypy")
    (tmp_path / "script.py").write_text(TYPED)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--config-file=", "--cache-dir",
         str(tmp_path / "cache"), str(tmp_path / "script.py")],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
