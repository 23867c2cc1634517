"""`python -m lab`: what it writes, and that it overwrites nothing that it has not written itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import need
from typer.testing import CliRunner

need("torch", "torch")
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
