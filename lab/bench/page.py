"""Tables of documentation pages that a benchmark writes: what stands between two marks, from a file of `results`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from capscore.disk import write_atomically
from capscore.errors import CapscoreError
from lab.tables import table

Results = Mapping[str, Any]
SOFTWARE = (
    "WebGPU ran on a software adapter, SwiftShader on one core or two: that all of it runs there is what its rows say, "
    "not how fast a GPU is. Batches are left out that would take more than 20 s, and they were measured by themselves."
)
PROTOCOLS = {"http": "HTTP", "grpc": "gRPC"}


def _marks(name: str) -> tuple[str, str]:
    return f"<!-- written by python -m lab.bench.{name} -->\n", f"<!-- end of {name} -->"


def between(page: Path, name: str) -> str:
    """Return what stands on a page between the marks of a benchmark."""
    _, text, _ = _split(page, name)
    return text


def write(page: Path, name: str, text: str) -> None:
    """Put a benchmark's text between its marks; the rest of the page stays."""
    before, _, after = _split(page, name)
    write_atomically(page, (before + text + after).encode())


def _split(page: Path, name: str) -> tuple[str, str, str]:
    begin, end = _marks(name)
    text = page.read_text("utf-8")
    if text.count(begin) != 1 or text.count(end) != 1:
        raise CapscoreError(f"{page} has no single pair of the marks {begin.strip()} and {end}: add them")
    before, rest = text.split(begin)
    inside, after = rest.split(end)
    return before + begin, inside, end + after


def _machine(results: Results) -> str:
    machine = dict(results["machine"])
    cpu, cores, python = (machine.pop(name) for name in ("cpu", "cores", "python"))
    versions = ", ".join(f"{name} {version}" for name, version in machine.items())
    return f"{cpu}, {cores} cores, load {results['load_before']:.1f} when it began. Python {python}, {versions}."


def engines(results: Results) -> str:
    """Return tables of engines on models, from what `lab.bench.engines` measured."""
    threads = "as many threads as they like" if not results["threads"] else f"{results['threads']} threads"
    text = [
        f"\n{_machine(results)} All engines have {threads}; n = {results['rounds']} rounds in turn, each at least "
        "0.2 s of runs; milliseconds are medians, p99 in brackets.\n"
    ]
    for model in results["models"]:
        here = [row for row in model["rows"] if row["absent"] is None]
        batches = sorted({batch for row in here for batch in row["batches"]}, key=int)
        heads = ["engine", "format", *(head for n in batches for head in (f"ms at {n}", "images/s")),
                 "differs", "file MB", "load s", "start s", "peak MB", "nodes on the CPU"]  # fmt: skip
        text += [f"\n`{model['preset']}`:\n\n", table(heads, [_engine(row, batches) for row in here]), "\n"]
        if ratio := _bfloat16(here):
            text.append(f"\n{ratio}\n")
    rows = [row for model in results["models"] for row in model["rows"]]
    there = {row["engine"] for row in rows if row["absent"] is None}
    names = [
        f"{row['engine']} in {row['format']}" if row["engine"] in there else row["engine"]
        for row in rows
        if row["absent"]
    ]
    if names:
        text.append(f"\nNot here: {', '.join(dict.fromkeys(names))}.\n")
    if any(row.get("software") for row in rows):
        text.append(f"\n{SOFTWARE}\n")
    return "".join(text)


def _engine(row: Results, batches: Sequence[str]) -> list[str]:
    found = [row["batches"].get(batch) for batch in batches]
    times = [
        cell
        for each in found
        for cell in ([f"{each['ms']:.2f} ({each['p99_ms']:.2f})", f"{each['images_s']:.0f}"] if each else ["", ""])
    ]
    nodes = row["nodes"] or {}
    left = nodes.get("CPUExecutionProvider", 0) if row["engine"] != "ORT cpu" and nodes else None
    engine = f"{row['engine']}, software" if row.get("software") else row["engine"]
    return [
        engine, row["format"], *times, f"{row['difference']:.0e}", f"{row['bytes'] / 1e6:.2f}",
        f"{row['load_s']:.2f}", f"{row['start_s']:.1f}", "" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}",
        "" if left is None else f"{left} of {sum(nodes.values())}",
    ]  # fmt: skip


def _bfloat16(rows: Sequence[Results]) -> str:
    """Say how many images more OpenVINO computes in bfloat16, where both were measured."""
    by_engine = {(row["engine"], row["format"]): row["batches"] for row in rows}
    wide, narrow = (by_engine.get((name, "fp32"), {}) for name in ("OpenVINO", "OpenVINO bf16"))
    factors = [
        f"{wide[n]['ms'] / narrow[n]['ms']:.1f} at a batch of {n}" for n in sorted(wide.keys() & narrow, key=int)
    ]
    return f"OpenVINO in bfloat16, times as fast as in float32: {', '.join(factors)}." if factors else ""


def serving(results: Results) -> str:
    """Return tables of MLServer under load, and beside a bare session, from what `lab.bench.serving` measured."""
    load = results["load"]
    beside = [f"{count} × {name}" for name, count in load["beside"].items()]
    rows = [
        [PROTOCOLS[name], str(found["requests"]), f"{found['ms']:.0f}", f"{found['p99_ms']:.0f}"]
        for name, found in load["latency"].items()
    ]
    text = (
        f"\n{_machine(results)} A session of {results['threads']} thread(s), {results['clients']} clients, "
        f"`small`, 1 or 3 images a request, {load['seconds']:.0f} s, **{len(load['failed'])} failed**. Beside them: "
        f"{'; '.join(beside)}.\n\n{table(['', 'requests', 'median ms', 'p99 ms'], rows)}\n"
    )
    if not results["throughput"]:
        return text
    heads = ["network", "over", "images a request", "session, images/s", "at a batch of", "server, images/s",
             "of the session's (quartiles)", "in processor time", "p99 ms"]  # fmt: skip
    rows = [
        [
            f"`{row['preset']}`", PROTOCOLS[row["protocol"]], str(row["images"]),
            f"{row['session_images_s']:.0f}", str(row["batch"]),
            f"{row['server_images_s']:.0f}",
            f"{row['ratio']:.0%} ({row['quartiles'][0]:.0%}–{row['quartiles'][1]:.0%})",
            f"{row['processor_ratio']:.0%} ({row['processor_quartiles'][0]:.0%}–{row['processor_quartiles'][1]:.0%})",
            f"{row['p99_ms']:.0f}",
        ]
        for row in results["throughput"]
    ]  # fmt: skip
    return f"{text}\nThroughput, of lengths alone, n = {results['rounds']} rounds in turn:\n\n{table(heads, rows)}\n"
