"""More than one number: measures against loops, the report of `eval`, its pictures."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import need
from hypothesis import given
from hypothesis import strategies as st

from capscore import PRESETS
from capscore.backends import numpy as caps
from capscore.data import load
from capscore.errors import ShapeError
from capscore.metrics import Measures, joined
from capscore.train import accuracy, measure


def made(seed: int, images: int, classes: int, count: int | None = 1) -> Measures:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 5, (images, classes)) / 4  # with ties
    if count is None:
        targets = rng.integers(0, 2, (images, classes))
    else:
        targets = np.zeros((images, classes), int)
        for row in targets:
            row[rng.permutation(classes)[:count]] = 1
    return Measures(scores, targets, tuple(f"c{j}" for j in range(classes)), count)


@given(st.integers(0, 999), st.integers(1, 30), st.integers(2, 7), st.sampled_from([1, 2, None]))
def test_measures_are_those_of_loops(seed: int, images: int, classes: int, count: int | None) -> None:
    found = made(seed, images, classes, count)
    answers, exact = [], 0
    for row, wanted in zip(found.scores.tolist(), found.targets.tolist(), strict=True):
        order = sorted(range(classes), key=lambda j: (-row[j], j))
        said = {j for j in range(classes) if row[j] > 0.5} if count is None else set(order[:count])
        answers.append(said)
        exact += said == {j for j in range(classes) if wanted[j]}
    assert found.accuracy == exact / images
    recalls, f1s = [], []
    for j in range(classes):
        hits = sum(j in said and bool(wanted[j]) for said, wanted in zip(answers, found.targets, strict=True))
        said, shown = sum(j in said for said in answers), int(found.targets[:, j].sum())
        for value, (part, whole) in (
            (found.precision[j], (hits, said)),
            (found.recall[j], (hits, shown)),
            (found.f1[j], (2 * hits, said + shown)),
        ):
            assert np.isnan(value) if whole == 0 else value == part / whole
        recalls += [hits / shown] if shown else []
        f1s += [2 * hits / (said + shown)] if said + shown else []
    if recalls:
        assert found.balanced_accuracy == pytest.approx(sum(recalls) / len(recalls))
    if f1s:
        assert found.macro_f1 == pytest.approx(sum(f1s) / len(f1s))
    assert (found.confusion is None) == (count != 1)
    if count == 1:
        confusion = np.zeros((classes, classes), int)
        for row, wanted in zip(found.scores, found.targets, strict=True):
            confusion[wanted.argmax(), row.argmax()] += 1
        np.testing.assert_array_equal(found.confusion, confusion)
        for k in range(1, classes + 1):
            best = np.argsort(-found.scores, axis=1, kind="stable")[:, :k]
            assert found.top(k) == (best == found.targets.argmax(1)[:, None]).any(1).mean()
    json.dumps(found.as_json(), allow_nan=False)


def test_no_score_is_no_answer() -> None:
    scores = np.array([[np.nan, np.nan, np.nan], [-np.inf, 0.1, 0.2], [0.9, -np.inf, 0.1]])
    found = Measures(scores, np.eye(3)[[0, 0, 0]], ("a", "b", "c"))
    assert [found.top(k) for k in (1, 2, 3)] == pytest.approx([1 / 3, 1 / 3, 2 / 3])


def test_the_hardest_come_first() -> None:
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.5]])
    found = Measures(scores, np.array([[1, 0], [1, 0], [0, 1]]), ("a", "b"))
    assert found.hardest(2).tolist() == [1, 2]
    assert found.hardest(9).tolist() == [1, 2, 0]
    assert joined([found, found]).hardest(2).tolist() == [1, 4]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ShapeError, match="both must be"):
        Measures(np.zeros((3, 2)), np.zeros((3, 3)), ("a", "b"))
    with pytest.raises(ShapeError, match="measure them with count=None"):
        Measures(np.zeros((3, 2)), np.ones((3, 2)), ("a", "b"))


def test_a_network_is_measured_as_its_accuracy_is() -> None:
    _, test = load("digits")
    net = caps.CapsNet(PRESETS["small"])
    found = measure(net, test)
    assert found.accuracy == accuracy(net, test)
    assert found.confusion is not None
    assert found.confusion.sum(1).tolist() == np.bincount(test.labels).tolist()


def test_eval_writes_a_report(tmp_path: Path) -> None:
    need("matplotlib", "plot")
    from test_plain_train import run

    caps.CapsNet(PRESETS["small"]).save(tmp_path / "m.safetensors")
    said = run("eval", tmp_path / "m.safetensors", "--backend", "numpy", "--report", tmp_path / "report")
    told = json.loads((tmp_path / "report" / "report.json").read_text())
    assert f"balanced accuracy {told['balanced_accuracy']:.2%}" in said
    assert f"accuracy {told['accuracy']:.2%}: " in said
    assert sum(map(sum, told["confusion"])) == told["images"] == 1000
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        "confusion.png",
        "hardest.png",
        "report.json",
    ]
    assert "of 1,000 test images of digits are wrong" in said.splitlines()[-4]


def test_pictures_are_drawn_for_any_number_of_classes() -> None:
    need("matplotlib", "plot")
    from capscore import mistakes

    for classes in (2, 12, 40):
        found = made(0, 50, classes)
        assert mistakes.confusion(found).get_size_inches()[1] < 12
        index = found.hardest(9)
        assert mistakes.hardest(np.zeros((9, 3, 8, 6)), found, index).axes[0].images
    several = made(0, 50, 4, None)
    mistakes.hardest(np.zeros((2, 1, 8, 6)), several, several.hardest(2))
