"""The benchmarks measure what they say: the textbook computes the same, and every contender runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FLOAT32, GRADIENT, NUMPY, close, need
from typer.testing import CliRunner

from capscore import PRESETS
from capscore.routing import LinearVotes, dynamic_routing

torch = pytest.importorskip("torch")
contenders: Any = need("lab.bench.contenders", "torch")
suite: Any = need("lab.bench.suite", "torch")

TINY = contenders.Settings(batch=2, preset="small", threads=1, inputs=12, iterations=2)


def test_the_textbook_routes_as_the_paper_does() -> None:
    from lab.bench.textbook import Routing

    layer = Routing(12, iterations=3)
    u = np.random.default_rng(0).standard_normal((3, 12, 8)).astype(np.float32)
    weight = layer.weight.detach().numpy().transpose(1, 0, 2, 3).astype(np.float64)
    expected = dynamic_routing(NUMPY, LinearVotes(NUMPY, u.astype(np.float64), weight, None, (12, 10, 16, 8)), 3)
    close(layer(torch.from_numpy(u)).detach().numpy(), expected, FLOAT32)


@pytest.mark.parametrize("preset", ["mnist", "small"])
def test_the_textbook_has_the_parameters_of_the_network(preset: str) -> None:
    net = contenders._textbook(contenders.Settings(preset=preset))
    count = sum(p.numel() for p in net.parameters())
    assert count == PRESETS[preset].parameter_count - 160  # public code has no capsule biases
    assert net(torch.zeros(2, 1, 28, 28))[1].shape == (2, 10, 16)


@pytest.mark.parametrize("what", [what for what in contenders.CONTENDERS if what not in ("machine", "convolution")])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore:.*:torch.jit.TracerWarning")
def test_every_contender_runs(what: str) -> None:
    for name, make in contenders.CONTENDERS[what].items():
        if "ONNX" in name:
            need("onnxruntime", "onnx")
        if "int8" not in name and "convolution" not in what:  # these two take their time
            make(TINY)()


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("routing", ["dynamic", "self-attention"])
def test_convolutional_capsules_are_the_same_for_all_contenders(routing: str, backward: bool) -> None:
    from lab.bench.conv_caps import CONTENDERS

    plain, *others = (make(routing, 2, backward)() for make in CONTENDERS.values())
    assert others == pytest.approx([plain] * len(others), rel=GRADIENT)


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
    assert results.items() <= json.loads((tmp_path / "new" / "x.json").read_text()).items()
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
    from lab.__main__ import app

    result = CliRunner().invoke(app, ["bench", *options])
    assert result.exit_code != 0
    assert message in str(result.exception)


# ------------------------------------------------------------------------------------- what the documentation tells

HERE = Path(__file__).parents[1]
IN_README = {  # row of the README: contender in inference, whether it trains
    "PyTorch, as public code writes it": ("textbook, PyTorch", True),
    "capscore on torch": ("torch", True),
    '… with `fast_conv="6x6"`': ("torch 6x6", True),
    'capscore on NumPy, `fast_conv="6x6"`': ("numpy 6x6", True),
    "that public code in ONNX Runtime": ("textbook, ONNX Runtime", False),
    "capscore's export in ONNX Runtime": ("ONNX Runtime", False),
    "… with `--fast-conv 6x6`": ("ONNX Runtime 6x6", False),
    "… in int8": ("ONNX Runtime int8", False),
}


def measured(file: str) -> dict[tuple[str, int], dict[str, dict[str, float]]]:
    """The rows of a committed results file by comparison and batch."""
    tables = json.loads((HERE / "lab" / "bench" / "results" / file).read_text())["tables"]
    return {(table["what"], table["batch"]): table["rows"] for table in tables}


def rows_below(page: str, header: str) -> dict[str, list[str]]:
    """The cells of the table that begins with `header`, by the first of each row."""
    lines = (HERE / page).read_text("utf-8").split(header + "\n", 1)[1].splitlines()[1:]
    table = lines[: lines.index("")]
    return {cells[0]: cells[1:] for cells in ([cell.strip() for cell in row.split("|")[1:-1]] for row in table)}


def test_the_tables_are_what_was_measured() -> None:
    inference, training, routing = map(measured, ("cpu-inference.json", "cpu-training.json", "cpu-routing.json"))
    steps = training["training", 128]

    def speed(rows: dict[str, dict[str, float]], batch: int, name: str) -> str:
        return f"{batch / rows[name]['ms'] * 1e3:.0f}"

    def factor(rows: dict[str, dict[str, float]], name: str) -> str:
        return f"{rows['textbook, PyTorch']['ms'] / rows[name]['ms']:.1f}×"

    told = rows_below("docs/performance.md", "| | batch 1 | 32 | 128 |")
    assert list(told) == list(inference["inference", 1])
    for name, cells in told.items():
        for batch, cell in zip((1, 32, 128), cells, strict=True):
            rows = inference["inference", batch]
            own = f" ({factor(rows, name)})" if name != "textbook, PyTorch" else ""
            assert cell == speed(rows, batch, name) + own, (name, batch)
    told = rows_below("docs/performance.md", "| | images/s | | MB |")
    assert list(told) == list(steps)
    for name, cells in told.items():
        assert cells == [speed(steps, 128, name), factor(steps, name), f"{steps[name]['peak_mb']:.0f}"], name
    told = rows_below("docs/performance.md", "| | forward: batch 1 | 32 | 128 | with gradient: 32 | 128 |")
    assert list(told) == list(routing["routing", 1])
    for name, cells in told.items():
        forward = [f"{routing['routing', batch][name]['ms']:.1f}" for batch in (1, 32, 128)]
        both = [routing["routing and gradient", batch].get(name) for batch in (32, 128)]
        assert cells == [*forward, *("" if row is None else f"{row['ms']:.0f}" for row in both)], name
    told = rows_below("README.md", "| | batch 1 | 32 | 128 | training at 128 |")
    assert list(told) == list(IN_README)
    for row, (name, trains) in IN_README.items():
        speeds = [speed(inference["inference", batch], batch, name) for batch in (1, 32, 128)]
        assert told[row] == [*speeds, speed(steps, 128, name) if trains else ""], row
