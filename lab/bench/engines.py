"""Every engine at hand, side by side on networks of the library: `capscore bench`, kept, and told in the documentation.

    python -m lab.bench.engines [--rounds 7] [--threads 0] [--json FILE --page docs/performance.md]

The networks are new ones, int8 is calibrated on digits; every engine has a process of its own and they are asked in
turn. About two minutes for each network on two quiet cores. With `--engines` or `--networks`, what the file has of
others stays. With `--software`, WebGPU takes Chromium's driver, which needs no GPU and is slow.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from capscore import PRESETS
from capscore.backends import numpy as caps
from capscore.data import load
from capscore.export.bench import PACKAGES, bench
from capscore.export.machine import about
from lab import ROOT, files
from lab.bench import adapter, page

NETWORKS = "mnist", "small", "efficient-mnist"
CALIBRATION = 64  # images


def measure(networks: list[str], rounds: int, threads: int, batches: list[int], engines: list[str]) -> dict[str, Any]:
    """Return machine, versions and rows of every network."""
    results: dict[str, Any] = {
        "machine": about(*PACKAGES), "load_before": os.getloadavg()[0], "rounds": rounds, "threads": threads,
        "models": [],
    }  # fmt: skip
    digits, _ = load("digits")
    shown = digits.batch(np.arange(CALIBRATION))[0]
    with tempfile.TemporaryDirectory() as folder:
        for name in networks:
            model = Path(folder) / f"{name}.safetensors"
            caps.CapsNet(PRESETS[name]).save(model)
            found = bench(
                model, engines=engines, batches=batches, rounds=rounds, threads=threads, calibration=shown, longest=20
            )
            for row in found["rows"]:
                row["batches"] = {
                    str(batch): measured for batch, measured in row["batches"].items()
                }  # as JSON has them
            results["models"].append({"preset": name, "rows": found["rows"]})
    return results


def joined(before: dict[str, Any], results: dict[str, Any]) -> dict[str, Any]:
    """Return results with the rows of a former measurement that they do not have; the load is the larger one."""
    rows: dict[str, dict[tuple[str, str], Any]] = {}
    for model in (*before["models"], *results["models"]):
        found = {(row["engine"], row["format"]): row for row in model["rows"]}
        rows[model["preset"]] = rows.get(model["preset"], {}) | found
    models = [{"preset": preset, "rows": [*each.values()]} for preset, each in rows.items()]
    return results | {"load_before": max(before["load_before"], results["load_before"]), "models": models}


def main() -> None:
    """Print the tables; write them into a page, and all of it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(PRESETS))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32, 128])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--engines", nargs="*", default=[], help="parts of names; all if none is given")
    parser.add_argument("--software", action="store_true", help="WebGPU on Chromium's driver, without a GPU")
    parser.add_argument("--json", type=Path, help=f"such as {ROOT / 'lab/bench/results/engines.json'}")
    parser.add_argument("--page", type=Path, help=f"such as {ROOT / 'docs/performance.md'}")
    args = parser.parse_args()
    if args.json:
        files.check(args.json)  # before, not after minutes
    if args.page:
        page.between(args.page, "engines")
    if args.software and not adapter.software():
        raise SystemExit(f"there is no {adapter.DRIVER}: apt-get install chromium brings it")
    results = measure(args.networks, args.rounds, args.threads, args.batches, args.engines)
    for row in (row for model in results["models"] for row in model["rows"] if row["engine"] == "ORT webgpu"):
        row["software"] = args.software
    if args.json and args.json.exists():
        results = joined(json.loads(args.json.read_text()), results)
    print(page.engines(results))
    if args.json:
        files.write_json(args.json, results)
    if args.page:
        page.write(args.page, "engines", page.engines(results))


if __name__ == "__main__":
    main()
