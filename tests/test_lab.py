"""`python -m lab`: what it writes, that it overwrites nothing that it has not written itself, and how it judges."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import need
from typer.testing import CliRunner

need("torch", "torch")
need("scipy", "dev")
from capscore import PRESETS, BatchNorm, CapsNetSpec, DenseCaps, MaxPool  # noqa: E402
from capscore.agree import TOLERANCE  # noqa: E402
from capscore.data import Pairs, load  # noqa: E402
from capscore.errors import CapscoreError  # noqa: E402
from capscore.net import init_params  # noqa: E402
from lab import ROOT, files  # noqa: E402
from lab.__main__ import app, main  # noqa: E402
from lab.experiments import claims_page, heads, verdicts  # noqa: E402


def lab(*args: object, code: int = 0) -> str:
    """Run the command from the root of the checkout and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "lab", *map(str, args)],
        capture_output=True, text=True, timeout=300, env=os.environ | {"COLUMNS": "200"}, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


def test_an_experiment_and_the_page_of_results(tmp_path: Path) -> None:
    where = ["--results", tmp_path / "results"]
    said = lab("experiment", "affnist", "--budget", "smoke", "--runs", tmp_path / "runs", *where)
    assert "done at budget smoke" in said
    assert len(json.loads((tmp_path / "results" / "affnist.json").read_text())["trials"]) == 2
    page = tmp_path / "results.md"
    for _ in range(2):  # its own page it writes anew
        assert lab("results", *where, "--out", page).strip() == str(page)
    assert "not run" in page.read_text()


def playground(*args: object, runs: Path, out: Path) -> dict[str, Any]:
    """Make the models of the playground at the smoke budget, and return their list."""
    lab("playground", *args, "--budget", "smoke", "--runs", runs, "--out", out)
    told: dict[str, Any] = json.loads((out / "models" / "models.json").read_text())
    return told


def test_the_networks_of_the_playground(tmp_path: Path) -> None:
    """The zoo's, and others that are trained; the page's digits are there even of few images."""
    Image, out = need("PIL.Image", "plot"), tmp_path / "page"
    told = playground(runs=tmp_path / "runs", out=out)
    assert told["note"] == files.MARK
    entries = {entry["name"]: entry for entry in told["models"]}
    assert list(entries)[:5] == ["small-mnist", "efficient-mnist", "dynamic-mnist", "no-routing", "CNN"]
    assert [told["two"]] == list(entries)[5:]
    assert {name for name, entry in entries.items() if "decoder" in entry} == {"small-mnist", told["two"]}
    assert "routing" not in entries["CNN"]
    with Image.open(out / "digits.png") as sheet:
        assert sheet.size == (6 * 28, 10 * 28)
    for entry in told["models"]:
        assert (out / "models" / entry["file"]).stat().st_size < 300_000


def test_a_network_for_two_digits_from_the_zoo_has_its_place_in_the_playground(tmp_path: Path) -> None:
    """It is told by its data, and learns a small decoder, as it ships with none; what it says stays the same."""
    from capscore.backends import torch as caps
    from capscore.export.runtime import DecoderSession, Session

    spec = PRESETS["efficient-multimnist"].replace(decoder=None)
    net, pairs = caps.CapsNet(spec), tmp_path / "pairs.safetensors"
    net.provenance |= {"shows": 2, "source": [28, 28]}
    net.save(pairs)
    told = playground("small-mnist", pairs, runs=tmp_path / "runs", out=tmp_path / "page")
    assert [entry["name"] for entry in told["models"]] == ["small-mnist", "pairs"]
    assert told["two"] == "pairs"
    models = tmp_path / "page" / "models"
    digits, _ = load("digits")
    images, _ = Pairs(digits, 0, 1).batch(slice(0, 4))
    found, wanted = Session(models / "pairs.onnx", "cpu", 1)(images), net(images)
    assert np.abs(found.lengths - wanted.lengths.detach().numpy()).max() < TOLERANCE["int8-weights"]
    drawn = DecoderSession(models / told["models"][1]["decoder"], "cpu", 1)(found.capsules)
    assert drawn.shape == (4, 1, 36, 36)


def test_a_page_of_somebody_else_stays_as_it_is(tmp_path: Path) -> None:
    page = tmp_path / "docs" / "results.md"
    page.parent.mkdir()
    page.write_text("# Results\n\nof a user, who has read of python -m lab\n")
    before = page.read_text()
    said = lab("results", "--results", tmp_path, "--out", page, code=1)
    assert said == f"lab: error: {page} is there and was not {files.MARK}: move it away, or name another place\n"
    assert page.read_text() == before


@pytest.mark.parametrize("name", ["small-cpu.json", "small-cpu-batch.png", "small-cpu-scaling.png"])
def test_a_benchmark_asks_before_it_begins_whether_it_may_write(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"of a user")
    result = CliRunner().invoke(app, ["bench", "--preset", "small", "--out", str(tmp_path)])
    assert isinstance(result.exception, CapscoreError)
    assert name in str(result.exception)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"of a user"]


def test_what_the_checkout_shows_may_be_written_anew() -> None:
    shown = [ROOT / "docs" / "results.md", *(ROOT / "docs" / "images").glob("results-*.png")]
    shown += (ROOT / "lab" / "bench" / "results").glob("*.json")
    assert len(shown) > 10
    for path in shown:
        files.check(path)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["experiment", "table2"], "choose one of mnist, table1"),
        (["experiment", "table1", "--budget", "huge"], "choose one of smoke, quick, hour, full"),
        (["experiment", "table1", "--budget", "smoke", "--device", "nonsense"], "cannot use the device 'nonsense'"),
        (["results", "--out", "nowhere/results.md"], "is its folder there and writable?"),
        (["bench", "--what", "running"], "there is no comparison 'running'"),
    ],
)
def test_an_error_of_users_is_one_line(args: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["lab", *args])
    with pytest.raises(SystemExit) as exit:
        main()
    said = str(exit.value.code)  # a text goes to stderr, and the exit code is 1
    assert said.startswith("lab: error: ")
    assert message in said
    assert "\n" not in said


@pytest.mark.parametrize("size", [28, 36])
def test_the_heads_alone_differ(size: int) -> None:
    specs = heads.networks(size)
    counts = [specs[name].parameter_count for name in heads.HEADS]
    assert max(counts) < 1.01 * min(counts)
    first = {name: init_params(spec, 3) for name, spec in specs.items()}
    for name in specs:
        assert specs[name].loss == specs[heads.NONE].loss
        if name != heads.POOLED:
            assert specs[name].rows[:8] == specs[heads.NONE].rows[:8]
            for i in range(8):  # of the stem
                for p in (p for p in first[name] if p.startswith(f"stem.{i}.")):
                    assert (first[name][p] == first[heads.NONE][p]).all(), (name, p)
    for name in heads.ROUTINGS:
        assert specs[name].rows[8].layer == specs[heads.NONE].rows[8].layer  # the primary capsules
        assert isinstance(specs[name].rows[9].layer, DenseCaps)


def test_max_pooling_takes_the_place_of_every_stride() -> None:
    specs = heads.networks(28)

    def normed(spec: CapsNetSpec) -> list[Any]:
        return [row.output for row in spec.rows if isinstance(row.layer, BatchNorm)]

    strided, pooled = specs[heads.NARROW], specs[heads.POOLED]
    assert normed(strided) == normed(pooled)
    assert strided.parameter_count == pooled.parameter_count
    assert [layer.kernel for layer in pooled.layers if isinstance(layer, MaxPool)] == [2, 2]
    assert {layer.stride for layer in pooled.layers if hasattr(layer, "channels")} == {1}


def test_paired_intervals_are_students() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for n, confidence in ((3, 0.95), (5, 0.95), (5, 1 - 0.05 / 3), (10, 0.999)):
        a, b = rng.normal(1, 1, n), rng.normal(0, 1, n)
        theirs = stats.ttest_rel(a, b).confidence_interval(confidence)
        found = verdicts.difference(dict(enumerate(a)), dict(enumerate(b)), confidence)
        assert (found.low, found.high) == pytest.approx(tuple(theirs), rel=1e-9)
        assert (found.mean, found.n) == (pytest.approx((a - b).mean()), n)
    # Seeds that one of them has alone are left out.
    assert verdicts.difference({0: 3.0, 1: 4.0, 2: 9.0}, {1: 1.0, 0: 1.0, 7: 5.0}).mean == 2.5
    assert math.isnan(verdicts.difference({0: 3.0, 1: 4.0}, {0: 1.0, 1: 1.0}).high)  # two seeds judge nothing
    assert math.isnan(verdicts.difference({0: 1.0}, {0: 2.0}).low)


@pytest.mark.parametrize(
    ("low", "high", "more", "less"),
    [
        (0.1, 0.3, "holds", "does not hold"),
        (-0.3, -0.1, "does not hold", "holds"),
        (-0.1, 0.3, "undecided", "undecided"),
        (math.nan, math.nan, "undecided", "undecided"),
    ],
)
def test_verdicts_follow_from_the_interval(low: float, high: float, more: str, less: str) -> None:
    found = verdicts.Difference((low + high) / 2, low, high, 5)
    assert (found.verdict(True), found.verdict(False)) == (more, less)


def made(claim: str, network: str, seed: int, values: dict[str, float], **settings: int) -> dict[str, Any]:
    told = {"budget": "hour", "data": "mnist", "claim": claim, "network": network, "seed": seed, "parameters": 125_000}
    return {
        "settings": told | {"images": 60_000, "test": 10_000} | settings,
        "values": values,
        "seconds": 1.0,
        "spends": {"epochs": 3, "batch": 128},
        "hardware": {"cpu": "a processor", "threads": 1},
        "versions": {"torch": "2", "capscore": "0"},
    }


ERRORS = {  # of five seeds: self-attention is worse than its twin, dynamic routing better than its own, the CNN best
    heads.NONE: (1.0, 1.1, 0.9, 1.0, 1.05),
    heads.DYNAMIC: (0.8, 0.9, 0.7, 0.81, 0.84),
    heads.ALIKE: (1.0, 1.1, 0.9, 1.0, 1.05),
    heads.ATTENTION: (1.2, 1.3, 1.1, 1.21, 1.24),
    heads.CNN: (0.5, 0.6, 0.4, 0.51, 0.54),
}


def test_the_page_says_first_what_routing_adds() -> None:
    trials = [
        made("error", name, seed, {"error": error})
        for name, of_it in ERRORS.items()
        for seed, error in enumerate(of_it)
    ]
    # With and without self-attention: as good as each other.
    apart = {heads.ALIKE: (0.9, 0.91, 0.92, 0.9, 0.93), heads.ATTENTION: (0.91, 0.9, 0.93, 0.91, 0.91)}
    trials += [
        made("part-whole", name, seed, {"told apart": share, "sure of digits": 1.0})
        for name, of_it in apart.items()
        for seed, share in enumerate(of_it)
    ]
    first, said = claims_page.claims(trials)[1], "\n".join(claims_page.claims(trials))
    assert first == (
        "**What routing itself adds.** Self-attention adds nothing that could be measured to parts rearranged; takes "
        "from digits. Dynamic routing adds to digits. Beside *no routing*, which has another squash and other first "
        "weights, self-attention is worse at digits. Beside a CNN, the best capsules are worse at digits."
    )
    row = next(line for line in said.split("\n") if line.startswith("| digits, less is better"))
    cells = [cell.strip() for cell in row.split("|")[2:6]]
    assert cells[0] == "+0.20 (+0.19 to +0.21): does not hold"
    assert cells[1] == cells[0]
    assert cells[2] == "−0.20 (−0.21 to −0.19): holds"
    assert cells[3].startswith("dynamic routing: +0.30 (")
    assert cells[3].endswith("): does not hold")
    assert "| digits: test error, % | 1.01 ± 0.07 |" in said
    # What is left when 34 intervals are to hold at once.
    assert "34 comparisons were made" in said
    assert f"remain: {heads.DYNAMIC} over {heads.NONE} (digits); {heads.ATTENTION} under {heads.ALIKE} (digits)" in said
    assert "not run" in said


def test_the_best_of_four_is_judged_more_strictly_and_so_are_all_at_once() -> None:
    trials = [
        made("error", name, seed, {"error": error})
        for name, of_it in ERRORS.items()
        for seed, error in enumerate(of_it)
    ]
    with_cnn = next(each for each in verdicts.judged(trials) if each.other == heads.CNN)
    assert with_cnn.better == heads.DYNAMIC
    a, b = (dict(enumerate(ERRORS[name])) for name in (heads.DYNAMIC, heads.CNN))
    assert with_cnn.found == verdicts.difference(a, b, 1 - 0.05 / 4)
    at_once = next(each for each in verdicts.judged(trials, 34) if each.other == heads.CNN)
    assert at_once.found == verdicts.difference(a, b, 1 - 0.05 / 136)


def test_a_seed_counts_that_has_all_its_sizes() -> None:
    few = verdicts.CLAIMS[-1]
    trials = [
        made("efficiency", heads.CNN, seed, {"error": error}, examples=examples)
        for seed, examples, error in ((0, 10, 9.0), (0, 100, 4.0), (1, 10, 8.0))
    ]
    assert verdicts.values(trials, few, heads.CNN) == {0: pytest.approx(6.0)}  # the geometric mean of 9 and 4


def test_one_seed_tells_nothing() -> None:
    trials = [made("error", name, 0, {"error": errors[0]}) for name, errors in ERRORS.items()]
    said = claims_page.claims(trials)
    assert "What self-attention adds cannot be told: of *no attention*, its twin, fewer than 3 seeds were" in said[1]
    assert {each.verdict for each in verdicts.judged(trials)} == {"undecided"}


def test_the_best_capsules_are_of_those_with_the_most_seeds() -> None:
    trials = [
        made("error", name, seed, {"error": error})
        for name, of_it in ERRORS.items()
        for seed, error in enumerate(of_it)
    ]
    lucky = [each for each in trials if each["settings"]["network"] != heads.ALIKE]
    lucky.append(made("error", heads.ALIKE, 0, {"error": 0.1}))
    assert verdicts.best_routing(lucky, verdicts.CLAIMS[0]) == heads.DYNAMIC
    assert verdicts.best_routing([], verdicts.CLAIMS[0]) == heads.NONE
