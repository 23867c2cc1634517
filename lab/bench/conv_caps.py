"""Convolutional capsule layers beside the same written straight down in PyTorch: time, and memory of each process.

    python -m lab.bench.conv_caps --json conv_caps.json

A stack of them on 64×64 images: votes of every window in memory, and einsum over them, is what public code does.
Contenders are processes of their own and take turns; their answers and gradients are compared first. Time is that of
the processor, of all threads, and on the clock: on a busy machine the first alone says something. Memory is how far the
process grows beyond what it had held after the same for one image.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from capscore import CapsNetSpec, Conv, ConvCaps, DenseCaps, DynamicRouting, PrimaryCaps, SelfAttention
from capscore.export.machine import about
from capscore.net import init_params
from lab import files
from lab.bench.workers import Worker, peak, take_turns, threads

SAMPLE = 300  # ms that a contender runs at a time, at least


def spec(routing: str) -> CapsNetSpec:
    """8 types of 8 on 16×16 positions, 8 of 8 again, 16 of 16 on 7×7, 10 classes: 2.2 million numbers of votes."""
    how: Any = {"dynamic": DynamicRouting(3), "self-attention": SelfAttention()}[routing]
    about: dict[str, Any] = {"routing": how, "bias": routing == "dynamic"}
    return CapsNetSpec(
        (3, 64, 64),
        (
            Conv(32, 5, stride=2, padding=2),
            PrimaryCaps(8, 8, 3, stride=2, padding=1, squash=how.squash),
            ConvCaps(8, 8, 3, padding="same", **about),
            ConvCaps(16, 16, 3, stride=2, **about),
            DenseCaps(10, 16, **about),
        ),
        decoder=None,
    )


def data(batch: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    return rng.random((batch, 3, 64, 64), np.float32), rng.standard_normal((batch, 10, 16)).astype(np.float32)


# ----------------------------------------------------------------------------------------------------- the contenders

Run = Callable[[], float]  # returns the sum of the capsules' numbers, weighed; with the gradient, the norm of that


def plain(routing: str, batch: int, backward: bool) -> Run:
    """PyTorch as one writes it: patches by unfold, votes by einsum, routing by einsum over the votes."""
    import torch
    import torch.nn.functional as F

    numbers = init_params(spec(routing))
    p = {name: torch.tensor(array, dtype=torch.float32, requires_grad=True) for name, array in numbers.items()}

    def squash(s: Any) -> Any:
        n = s.norm(dim=-1, keepdim=True)
        if routing == "dynamic":
            return n / (1 + n * n) * s
        return (1 - torch.exp(-n)) * s / (n + 1e-20)

    def route(u: Any, name: str) -> Any:
        """u [B, P, N, K] → [B, P, J, D]."""
        votes = torch.einsum("bpnk,njdk->bpnjd", u, p[f"{name}.weight"])
        if routing == "self-attention":
            logits = torch.einsum("bpnjd,bpjd->bpnj", votes, votes.sum(2)) / math.sqrt(votes.shape[-1])
            c = logits.softmax(-1) + p[f"{name}.routing.prior"].T
            return squash(torch.einsum("bpnj,bpnjd->bpjd", c, votes))
        b = torch.zeros(votes.shape[:-1])
        for i in range(3):
            v = squash(torch.einsum("bpnj,bpnjd->bpjd", b.softmax(-1), votes) + p[f"{name}.bias"])
            if i < 2:
                b = b + torch.einsum("bpnjd,bpjd->bpnj", votes, v)
        return v

    def patches(x: Any, stride: int, padding: int) -> Any:
        """Capsules [B, T, K, H, W] → [B, P, 9·T, K], the window row by row, its types last."""
        b, t, k = x.shape[:3]
        cut = F.unfold(x.flatten(1, 2), 3, padding=padding, stride=stride)  # [B, T·K·9, P]
        return cut.view(b, t, k, 9, -1).permute(0, 4, 3, 1, 2).reshape(b, -1, 9 * t, k)

    def on_grid(v: Any, side: int) -> Any:
        """[B, P, J, D] → [B, J, D, H, W]."""
        return v.permute(0, 2, 3, 1).reshape(*v.shape[:1], *v.shape[2:], side, side)

    x, g = map(torch.from_numpy, data(batch))

    def forward() -> Any:
        y = F.conv2d(x, p["stem.0.weight"], p["stem.0.bias"], 2, 2).relu()
        y = F.conv2d(y, p["primary.weight"], p["primary.bias"], 2, 1).view(batch, 8, 8, 16, 16)
        y = squash(y.transpose(2, -1)).transpose(2, -1)
        y = on_grid(route(patches(y, 1, 1), "capsules.0"), 16)
        y = on_grid(route(patches(y, 2, 0), "capsules.1"), 7)
        return route(y.permute(0, 1, 3, 4, 2).reshape(batch, 1, -1, 16), "capsules.2")[:, 0]

    return _torch_run(torch, forward, list(p.values()), g, backward)


def capscore_torch(routing: str, batch: int, backward: bool) -> Run:
    from capscore.backends import torch as caps

    torch: Any = sys.modules["torch"]
    net = caps.CapsNet(spec(routing))
    x, g = map(torch.from_numpy, data(batch))
    return _torch_run(torch, lambda: net(x).capsules, list(net.params.values()), g, backward)


def _torch_run(torch: Any, forward: Callable[[], Any], parameters: list[Any], g: Any, backward: bool) -> Run:
    def run() -> float:
        if not backward:
            with torch.inference_mode():
                return float((forward() * g).sum())
        for p in parameters:
            p.grad = None
        forward().backward(g)
        return math.sqrt(sum(float((p.grad**2).sum()) for p in parameters))

    return run


def capscore_numpy(routing: str, batch: int, backward: bool) -> Run:
    from capscore.backends import numpy as caps
    from capscore.grad import value_and_gradients
    from capscore.net import forward

    net, (x, g) = caps.CapsNet(spec(routing)), data(batch)

    def weighed(tape: Any, p: Any) -> Any:
        return tape.sum(forward(tape, net.spec, p, tape.asarray(x)).pose * tape.asarray(g), (0, 1, 2))

    def run() -> float:
        if not backward:
            return float((net(x).capsules * g).sum())
        _, gradients = value_and_gradients(caps, weighed, net.params)
        return math.sqrt(sum(float((each**2).sum()) for each in gradients.values()))

    return run


CONTENDERS: dict[str, Callable[[str, int, bool], Run]] = {
    "plain PyTorch": plain,
    "torch": capscore_torch,
    "numpy": capscore_numpy,
}

# ------------------------------------------------------------------------------------------------ processes in turn


def serve(name: str, routing: str, batch: int, backward: bool) -> None:
    """Be a worker: in every turn, tell ms on the clock and of the processor, MB more than before, and the answer."""
    CONTENDERS[name](routing, 1, backward)()  # libraries are loaded now
    run, before, times = CONTENDERS[name](routing, batch, backward), peak(), 1

    def measure() -> dict[str, float]:
        nonlocal times
        start, spent = time.perf_counter(), time.process_time()
        for _ in range(times):
            answer = run()
        ms, cpu = (
            1e3 * (now - then) / times for now, then in ((time.perf_counter(), start), (time.process_time(), spent))
        )
        times = max(times, math.ceil(SAMPLE / ms))
        return {"ms": ms, "cpu_ms": cpu, "grown_mb": peak() - before, "answer": answer}

    take_turns(measure)


def compared(routing: str, backward: bool, args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return by contender the quartiles of its milliseconds, on the clock and of the processor, and its growth."""
    how = [routing, str(args.batch), str(int(backward))]
    command = ["-m", "lab.bench.conv_caps", "--serve"]
    workers = {name: Worker(name, [*command, name, *how], threads(args.threads)) for name in args.only}
    told: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
    try:
        answers = [worker()["answer"] for worker in workers.values()]
        assert np.ptp(answers) < 1e-4 * abs(answers[0]), answers
        for _ in range(args.rounds):
            for name, worker in workers.items():
                time.sleep(0.1)  # the threads of the one before still spin
                told[name].append(worker())
    finally:
        for worker in workers.values():
            worker.close()
    rows: dict[str, dict[str, Any]] = {}
    for name, turns in told.items():
        columns = {key: [turn[key] for turn in turns] for key in ("ms", "cpu_ms")}
        rows[name] = {key: np.percentile(column, [25, 50, 75]).tolist() for key, column in columns.items()}
        rows[name]["grown_mb"] = max(turn["grown_mb"] for turn in turns)
    return rows


def main() -> None:
    """Print the tables; write the same as JSON."""
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5] == "1")
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.json:
        files.check(args.json)
    results: dict[str, Any] = {"machine": about("torch"), "load": os.getloadavg()[0]}
    results |= {"batch": args.batch, "rounds": args.rounds, "threads": args.threads, "tables": {}}
    for routing in ("dynamic", "self-attention"):
        for backward in (False, True):
            what = f"{routing}, {'forward and backward' if backward else 'forward'}"
            rows = results["tables"][what] = compared(routing, backward, args)
            print(f"{what}: batch {args.batch}, n = {args.rounds}, load {os.getloadavg()[0]:.1f}")
            first = next(iter(rows.values()))
            for name, row in rows.items():
                low, middle, high = row["cpu_ms"]
                told = f"{middle:6.0f} ms of the processor ({low:.0f}-{high:.0f}), {row['ms'][1]:6.0f} on the clock"
                print(f"  {name:14} {told}, {row['grown_mb']:5.0f} MB, {first['cpu_ms'][1] / middle:.2f}×", flush=True)
    if args.json:
        files.write_json(args.json, results)


if __name__ == "__main__":
    main()
