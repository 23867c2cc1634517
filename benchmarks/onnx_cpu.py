"""The exported `mnist` preset on ONNX Runtime's CPU provider, beside torch and the primary convolution's GEMM alone.

    python benchmarks/onnx_cpu.py [--batches 1 32 128] [--rounds 9] [--threads 2] [--json FILE]

The GEMM is M = batch·36, K = 20736, N = 256, by NumPy: what the primary convolution multiplies. Weights are the
initial ones (speed does not depend on them); int8 is calibrated on uniform noise. All contenders run in turn.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from machine import about, interleaved

from capscore import PRESETS
from capscore.backends import torch as caps
from capscore.export import onnx
from capscore.export.runtime import Session


def main() -> None:
    """Print a table for each batch size; write the same as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32, 128])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rng = np.random.default_rng(0)
    net = caps.CapsNet(PRESETS["mnist"])
    results = {"machine": about("torch", "onnx", "onnxruntime"), "rounds": args.rounds, "threads": args.threads}
    with tempfile.TemporaryDirectory() as folder:
        sessions = {}
        for precision in ("fp32", "int8"):
            path = Path(folder) / f"{precision}.onnx"
            calibration = rng.random((64, 1, 28, 28))
            report = onnx.export(net, path, precision=precision, outputs=["lengths"], calibration=calibration)
            sessions[precision] = Session(path, "cpu", args.threads)
            results[f"bytes {precision}"] = report.bytes
        for batch in args.batches:
            x = rng.random((batch, 1, 28, 28), np.float32)
            a, b = rng.random((batch * 36, 20736), np.float32), rng.random((20736, 256), np.float32)
            contenders = {f"ONNX Runtime {name}": lambda s=session: s(x) for name, session in sessions.items()}
            contenders |= {"torch": lambda: net.predict(x, batch), "GEMM alone": lambda: a @ b}
            ms = interleaved(contenders, args.rounds)
            gemm = ms["GEMM alone"][1]
            print(f"batch {batch}: ms, median (quartiles) of {args.rounds}; images/s; GEMM's share of the time")
            for name, (low, middle, high) in ms.items():
                speed = batch / middle * 1e3
                print(f"  {name:18s} {middle:8.2f} ({low:.2f}-{high:.2f}) {speed:7.0f} {gemm / middle:6.0%}")
            results[f"ms at batch {batch}"] = ms
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
