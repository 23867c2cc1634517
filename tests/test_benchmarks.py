"""The benchmarks measure what they say: the textbook computes the same, and every contender runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FLOAT32, NUMPY, close, need
from typer.testing import CliRunner

from capscore.layers import LinearVotes
from capscore.routing import dynamic_routing

torch = pytest.importorskip("torch")
contenders: Any = need("capscore.benchmarks.contenders", "torch")
suite: Any = need("capscore.benchmarks.suite", "torch")

TINY = contenders.Settings(batch=2, preset="small", threads=1, inputs=12, iterations=2)


def test_the_textbook_routes_as_the_paper_does() -> None:
    from capscore.benchmarks.textbook import Routing

    layer = Routing(12, iterations=3)
    u = np.random.default_rng(0).standard_normal((3, 12, 8)).astype(np.float32)
    weight = layer.weight.detach().numpy().transpose(1, 0, 2, 3).astype(np.float64)
    expected = dynamic_routing(NUMPY, LinearVotes(NUMPY, u.astype(np.float64), weight, None, (12, 10, 16, 8)), 3)
    close(layer(torch.from_numpy(u)).detach().numpy(), expected, FLOAT32)


def test_the_textbook_has_the_parameters_of_the_paper() -> None:
    from capscore.benchmarks.textbook import CapsNet

    assert sum(p.numel() for p in CapsNet().parameters()) == 8_215_728 - 160  # public code has no capsule biases


@pytest.mark.parametrize("what", [what for what in contenders.CONTENDERS if what not in ("machine", "convolution")])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore:.*:torch.jit.TracerWarning")
def test_every_contender_runs(what: str) -> None:
    for name, make in contenders.CONTENDERS[what].items():
        if "ONNX" in name:
            need("onnxruntime", "onnx")
        if "int8" not in name and "convolution" not in what:  # these two take their time
            make(TINY)()


def test_a_comparison_times_every_contender_in_its_own_process() -> None:
    rows = suite.compare("routing", TINY, rounds=2, only=("einsum, NumPy", "numpy"))
    assert list(rows) == ["einsum, NumPy", "numpy"]
    for row in rows.values():
        assert 0 < row["best"] <= row["low"] <= row["ms"] <= row["high"]
        assert row["peak_mb"] > 10
    assert "numpy" in suite.table("routing", 2, rows)


def test_results_are_saved_and_drawn(tmp_path: Path) -> None:
    need("matplotlib", "matplotlib")
    row = {"ms": 2.0, "low": 1.0, "high": 3.0, "best": 1.0, "peak_mb": 100}
    tables = [
        {"what": what, "preset": "mnist", "batch": batch, "rows": {"textbook, PyTorch": row, "torch": row}}
        for what in ("inference", "training")
        for batch in (1, 32)
    ]
    grown = {what: [{"value": 1, **row}, {"value": 2, **row}] for what in ("batch", "inputs", "iterations")}
    results = {"tables": tables, "scaling": grown}
    suite.save(tmp_path / "new" / "x.json", results)
    assert json.loads((tmp_path / "new" / "x.json").read_text()) == results
    suite.plots(results, tmp_path, "x")
    assert {p.name for p in tmp_path.glob("*.png")} == {"x-batch.png", "x-scaling.png"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--what", "running"], "there is no comparison 'running'; choose from inference, "),
        (["--preset", "svhn"], "not 'svhn'"),
        (["--batches", "1,0"], "at least 1, such as 1,32,128, not '1,0'"),
        (["--batches", "many"], "not 'many'"),
        (["--device", "mps"], "not on 'mps'"),
    ],
)
def test_what_cannot_be_timed_is_named(options: list[str], message: str) -> None:
    from capscore.cli import app

    result = CliRunner().invoke(app, ["bench", *options])
    assert result.exit_code != 0
    assert message in str(result.exception)
