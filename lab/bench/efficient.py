"""`efficient-mnist` beside the same network written straight down in PyTorch: images a second, training and inference.

    python -m lab.bench.efficient --json lab/bench/results/efficient.json

The plain one is what one writes by hand with care: ReLU, then PyTorch's batch normalisation, channels-last, a depthwise
convolution as a sum. All contenders live in one process, which keeps the memory that a step frees, and take turns.
Training is a step of Adam with the decoder.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capscore import PRESETS
from capscore.backends import torch as caps
from capscore.export.machine import about
from capscore.export.onnx import export
from capscore.export.runtime import Session
from capscore.memory import kept
from lab import files

SPEC = PRESETS["efficient-mnist"]
SAMPLE = 0.5  # seconds that a contender runs at a time, at least


def squash(s: Tensor) -> Tensor:
    n = s.norm(dim=-1, keepdim=True)
    v: Tensor = (1 - torch.exp(-n)) * s / (n + 1e-9)
    return v


class Plain(nn.Module):
    """The network and its decoder."""

    def __init__(self) -> None:
        super().__init__()
        windows = ((1, 32, 5, 1), (32, 64, 3, 1), (64, 64, 3, 1), (64, 128, 3, 2))
        blocks = [(nn.Conv2d(i, o, k, s), nn.ReLU(), nn.BatchNorm2d(o, 1e-3, 0.01)) for i, o, k, s in windows]
        self.stem = nn.Sequential(*(layer for block in blocks for layer in block))
        self.kernels, self.bias = nn.Parameter(torch.randn(128, 9, 9) / 9), nn.Parameter(torch.zeros(128))
        self.weight, self.prior = nn.Parameter(torch.randn(10, 16, 8, 16) / 4), nn.Parameter(torch.zeros(10, 16, 1))
        sizes = (160, 512, 1024, 784)
        parts = [part for i, o in itertools.pairwise(sizes) for part in (nn.Linear(i, o), nn.ReLU())]
        self.decoder = nn.Sequential(*parts[:-1], nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        u = squash(((x * self.kernels).sum((2, 3)) + self.bias).view(-1, 16, 8))
        votes = torch.einsum("bik,jikd->bjid", u, self.weight)
        c = (torch.einsum("bjid,bjkd->bjik", votes, votes).sum(-1, keepdim=True) / 4).softmax(1) + self.prior
        v: Tensor = squash((votes * c).sum(2))
        return v


def plain_step(net: Plain, amp: bool) -> Callable[[Tensor, Tensor], Any]:
    adam = torch.optim.Adam(net.train().parameters(), fused=True)

    def step(x: Tensor, t: Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            v = net(x.contiguous(memory_format=torch.channels_last))
            drawn = net.decoder((v * t[..., None]).flatten(1)).float()
        lengths = v.float().norm(dim=-1)
        margin = t * F.relu(0.9 - lengths) ** 2 + 0.5 * (1 - t) * F.relu(lengths - 0.1) ** 2
        loss = margin.sum(1).mean() + 0.0005 * ((drawn - x.flatten(1)) ** 2).sum(1).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()

    return step


def contenders(folder: Path, batch: int) -> dict[str, dict[str, Callable[[], Any]]]:
    """Return by what is measured, and by name, what runs one batch."""
    rng = np.random.default_rng(0)
    images = rng.random((batch, 1, 28, 28), np.float32)
    targets = np.eye(10, dtype=np.float32)[rng.integers(0, 10, batch)]
    x, t = torch.from_numpy(images), torch.from_numpy(targets)
    plain, net = Plain(), caps.CapsNet(SPEC)
    nn.Module.to(plain, memory_format=torch.channels_last)  # type: ignore[call-overload]
    for precision in ("fp32", "int8"):
        export(net, folder / f"{precision}.onnx", precision=precision, outputs=["lengths"],
               calibration=images if precision == "int8" else None)  # fmt: skip
    threads = torch.get_num_threads()
    sessions = {name: Session(folder / f"{name}.onnx", "cpu", threads) for name in ("fp32", "int8")}

    def answer() -> Any:
        with torch.inference_mode():
            return inferring(x.contiguous(memory_format=torch.channels_last)).norm(dim=-1)

    inferring = copy.deepcopy(plain).eval()
    learners = {amp: caps.Learner(caps.CapsNet(SPEC), amp=amp) for amp in (False, True)}
    steps = {amp: plain_step(copy.deepcopy(plain), amp) for amp in (False, True)}
    return {
        "training": {
            "plain PyTorch, float32": lambda: steps[False](x, t),
            "capscore torch, float32": lambda: learners[False].step(images, targets, 1e-3),
            "plain PyTorch, bfloat16": lambda: steps[True](x, t),
            "capscore torch, bfloat16": lambda: learners[True].step(images, targets, 1e-3),
        },
        "inference": {
            "plain PyTorch": answer,
            "capscore torch": lambda: net.predict(images),
            "ONNX Runtime": lambda: sessions["fp32"].predict(images),
            "ONNX Runtime, int8": lambda: sessions["int8"].predict(images),
        },
    }


def measured(runs: dict[str, Callable[[], Any]], batch: int, rounds: int) -> dict[str, list[float]]:
    """Return by name the quartiles of images a second; contenders take turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            count, began = 0, time.perf_counter()
            while (spent := time.perf_counter() - began) < SAMPLE:
                run()
                count += 1
            if turn:  # the first warms up
                times[name].append(count * batch / spent)
    return {name: np.percentile(found, [25, 50, 75]).tolist() for name, found in times.items()}


def main() -> None:
    """Print the tables; write the same as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.json:
        files.check(args.json)
    torch.set_num_threads(args.threads)
    results: dict[str, Any] = {"machine": about("torch", "onnxruntime"), "load": os.getloadavg()[0]}
    results |= {"batch": args.batch, "rounds": args.rounds, "threads": args.threads, "images_per_second": {}}
    with tempfile.TemporaryDirectory() as folder, kept():
        for what, runs in contenders(Path(folder), args.batch).items():
            rows = results["images_per_second"][what] = measured(runs, args.batch, args.rounds)
            print(f"{what}: batch {args.batch}, n = {args.rounds}, load {os.getloadavg()[0]:.1f}")
            for name, (low, middle, high) in rows.items():
                print(f"  {name:26} {middle:6,.0f} images/s ({low:,.0f} to {high:,.0f})", flush=True)
    if args.json:
        files.write_json(args.json, results)


if __name__ == "__main__":
    main()
