"""The benchmarks measure what they say: the textbook computes the same, and every contender runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FLOAT32, GRADIENT, NUMPY, close, need
from typer.testing import CliRunner

from capscore import PRESETS
from capscore.errors import CapscoreError
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


def test_a_contender_that_ends_is_named() -> None:
    from lab.bench.workers import Worker

    worker = Worker("the third", ["-c", "print('ready'); raise SystemExit(3)"])
    try:
        with pytest.raises(CapscoreError, match="the third ended with status 3"):
            worker()
    finally:
        worker.close()


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


WRITTEN = [("docs/performance.md", "engines"), ("docs/deploy.md", "serving")]


@pytest.mark.parametrize(("where", "name"), WRITTEN)
def test_what_a_benchmark_wrote_into_a_page_is_what_it_measured(where: str, name: str) -> None:
    from lab.bench import page

    results = json.loads((HERE / "lab" / "bench" / "results" / f"{name}.json").read_text())
    assert page.between(HERE / where, name) == getattr(page, name)(results)


def test_a_benchmark_writes_between_its_marks_alone(tmp_path: Path) -> None:
    from lab.bench import page

    here, marks = tmp_path / "p.md", "<!-- written by python -m lab.bench.x -->\nold\n<!-- end of x -->"
    here.write_text(f"before\n{marks}\nafter\n")
    page.write(here, "x", "new\n")
    assert here.read_text() == f"before\n{marks.replace('old', 'new')}\nafter\n"
    with pytest.raises(CapscoreError, match="has no single pair of the marks <!-- written by"):
        page.write(here, "y", "new")


def test_engines_are_measured_and_told() -> None:
    from lab.bench import engines, page

    results = engines.measure(["small"], rounds=1, threads=1, batches=[1], engines=["ORT cpu", "nothing"])
    (model,) = json.loads(json.dumps(results))["models"]
    assert {row["format"] for row in model["rows"]} == {"fp32", "int8", "int8-weights", "bytes"}
    for row in model["rows"]:
        assert row["absent"] is None
        assert 0 < row["batches"]["1"]["quartile_ms"] <= row["batches"]["1"]["ms"] <= row["batches"]["1"]["p99_ms"]
    told = page.engines(results)
    assert results["machine"]["cpu"] in told
    assert "n = 1 rounds" in told
    wide, *_ = (row for row in told.splitlines() if row.startswith("| ORT cpu | fp32 |"))
    assert f"{model['rows'][0]['batches']['1']['ms']:.2f} (" in wide
    openvino = [
        {"engine": name, "format": "fp32", "batches": {"128": {"ms": ms}}}
        for name, ms in (("OpenVINO", 30.0), ("OpenVINO bf16", 10.0))
    ]
    assert page._bfloat16(openvino) == "OpenVINO in bfloat16, times as fast as in float32: 3.0 at a batch of 128."


def test_engines_that_are_measured_by_themselves_leave_the_others() -> None:
    from lab.bench import engines, page

    def row(engine: str, format: str, ms: float, **more: Any) -> dict[str, Any]:
        measured = {"1": {"ms": ms, "p99_ms": ms, "images_s": 1e3 / ms}} if ms else {}
        costs = dict.fromkeys(("load_s", "start_s", "peak_mb"), 1.0)
        about = {"engine": engine, "format": format, "difference": 1e-7, "bytes": 10, "nodes": None}
        return about | costs | {"batches": measured, "absent": None if ms else "no f16"} | more

    def results(load: float, rows: list[dict[str, Any]]) -> dict[str, Any]:
        machine = {"cpu": "c", "cores": 2, "python": "3"}
        return {"machine": machine, "load_before": load, "rounds": 1, "threads": 1,
                "models": [{"preset": "small", "rows": rows}]}  # fmt: skip

    before = results(1.0, [row("torch", "", 7.0), row("ORT webgpu", "fp32", 0)])
    new = [row("ORT webgpu", "fp32", 9.0, software=True), row("ORT webgpu", "fp16", 0, software=True)]
    found = engines.joined(before, results(0.5, new))
    assert found["load_before"] == 1.0
    assert [(each["engine"], each["format"], bool(each["batches"])) for each in found["models"][0]["rows"]] == [
        ("torch", "", True), ("ORT webgpu", "fp32", True), ("ORT webgpu", "fp16", False),
    ]  # fmt: skip
    told = page.engines(found)
    assert "| torch |  | 7.00 (7.00) |" in told
    assert "| ORT webgpu, software | fp32 | 9.00 (9.00) |" in told
    assert "Not here: ORT webgpu in fp16." in told
    assert page.SOFTWARE in told
    assert page.SOFTWARE not in page.engines(before)


def test_a_process_has_a_peak_of_its_own() -> None:
    """Linux counts what the parent held into getrusage, and a parent may hold a truth in float64."""
    from capscore.export.machine import peak_mb

    held = np.ones(2**26)  # 512 MB
    ask = "from capscore.export.machine import peak_mb; print(peak_mb())"
    said = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True).stdout
    assert 10 < float(said) < held.nbytes / 2**20 < peak_mb()
