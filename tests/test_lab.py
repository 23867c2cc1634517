"""`python -m lab`: what it writes, and that it overwrites nothing that it has not written itself."""

from __future__ import annotations

import json
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
from capscore import PRESETS  # noqa: E402
from capscore.agree import TOLERANCE  # noqa: E402
from capscore.data import Pairs, load  # noqa: E402
from capscore.errors import CapscoreError  # noqa: E402
from lab import ROOT, files  # noqa: E402
from lab.__main__ import app, main  # noqa: E402


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
    net.provenance["published"] = {"data": "multimnist"}
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
