"""How should a graph spell routing? Formulations of votes, weighted sum and agreement on ONNX Runtime's CPU provider.

    python -m lab.bench.onnx_routing [--batches 1 32 128] [--rounds 21] [--json FILE]

The paper's routing layer: 1152 input capsules of 8 to 10 output capsules of 16, three iterations. Every formulation
is checked against float64 and timed interleaved with the others; the table gives medians and quartiles.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

from capscore.backends import numpy as reference
from capscore.export.machine import about
from capscore.export.onnx import Recorder, Value
from capscore.routing import ArrayVotes, LinearVotes, Votes, dynamic_routing
from capscore.squash import squash
from lab import files

N, J, D, K, ITERATIONS = 1152, 10, 16, 8, 3


class Materialised(Votes[Any]):
    """Votes in memory, [J·B, N, D] or [J·B, D, N]; the first combine is one matrix product if `gemm`."""

    def __init__(self, ops: Any, u: Any, w: np.ndarray, last: str, gemm: bool) -> None:
        self.ops, self.u, self.w, self.last, self.gemm, self.n_out = ops, u, w, last, gemm, J
        by_input = ops.asarray(w.transpose(0, 3, 1, 2).reshape(N, K, J * D))
        votes = ops.matmul(ops.transpose(u, (1, 0, 2)), by_input)  # [N, B, J·D]
        perm = (2, 1, 0, 3) if last == "d" else (2, 1, 3, 0)
        self.votes = ops.transpose(ops.reshape(votes, (N, -1, J, D)), perm)

    def combine(self, c: Any) -> Any:
        ops = self.ops
        if isinstance(c, float) and self.gemm:
            flat = ops.asarray(self.w.transpose(0, 3, 1, 2).reshape(N * K, J * D))
            s = ops.matmul(ops.reshape(self.u, (-1, N * K)), flat) * c
            return ops.transpose(ops.reshape(s, (-1, J, D)), (1, 0, 2))
        if isinstance(c, float):
            return ops.sum(self.votes, 2 if self.last == "d" else 3) * c
        if self.last == "d":
            return ops.reshape(ops.matmul(ops.reshape(c, (J, -1, 1, N)), self.votes), (J, -1, D))
        return ops.reshape(ops.matmul(self.votes, ops.reshape(c, (J, -1, N, 1))), (J, -1, D))

    def agree(self, v: Any) -> Any:
        ops = self.ops
        if self.last == "d":
            return ops.reshape(ops.matmul(self.votes, ops.reshape(v, (J, -1, D, 1))), (J, -1, N))
        return ops.reshape(ops.matmul(ops.reshape(v, (J, -1, 1, D)), self.votes), (J, -1, N))

    def array(self) -> Any:
        raise NotImplementedError


def factored(ops: Any, u: Any, w: np.ndarray) -> Any:
    return dynamic_routing(ops, LinearVotes(ops, u, ops.asarray(w), None, (N, J, D, K)), ITERATIONS)


def materialised(last: str, gemm: bool) -> Callable[..., Any]:
    return lambda ops, u, w: dynamic_routing(ops, Materialised(ops, u, w, last, gemm), ITERATIONS)


FORMULATIONS: dict[str, Callable[..., Any]] = {
    "factored, no votes": factored,
    "votes [J, B, N, D]": materialised("d", gemm=False),
    "votes [J, B, N, D], first by GEMM": materialised("d", gemm=True),
    "votes [J, B, D, N]": materialised("n", gemm=False),
    "votes [J, B, D, N], first by GEMM": materialised("n", gemm=True),
}


def session(formulation: Callable[..., Any], w: np.ndarray, threads: int) -> onnxruntime.InferenceSession:
    """Record one formulation as a graph u [batch, N, K] → v [batch, J, D]."""
    recorder = Recorder()
    v = formulation(recorder, Value(recorder, recorder._unique("u")), w.astype(np.float32))
    v = recorder.node("Identity", v)
    graph = helper.make_graph(
        recorder.nodes,
        "routing",
        [helper.make_tensor_value_info("u", TensorProto.FLOAT, ["batch", N, K])],
        [helper.make_tensor_value_info(v.name, TensorProto.FLOAT, ["batch", J, D])],
        list(recorder.initializers.values()),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def interleaved(contenders: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Time every contender once per round, after one round to warm up; return [quartile, median, quartile] in ms."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for i in range(rounds + 1):
        for name, run in contenders.items():
            time.sleep(0.1)  # the threads of the one before still spin, waiting for work
            start = time.perf_counter()
            run()
            if i:
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: np.percentile(ms, [25, 50, 75]).tolist() for name, ms in times.items()}


def main() -> None:
    """Print the table; write the same as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32, 128])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    w = rng.standard_normal((N, J, D, K)) * 0.1
    sessions = {name: session(make, w, args.threads) for name, make in FORMULATIONS.items()}
    results: dict[str, Any] = {"machine": about("onnxruntime"), "rounds": args.rounds, "threads": args.threads}
    for batch in args.batches:
        u = squash(reference, rng.standard_normal((batch, N, K)))
        truth = dynamic_routing(reference, ArrayVotes(reference, np.einsum("bnk,njdk->bnjd", u, w)), ITERATIONS)
        feed = {"u": u.astype(np.float32)}
        for name, run in sessions.items():
            assert np.abs(run.run(None, feed)[0] - truth).max() < 2e-6, name
        ms = interleaved({name: partial(run.run, None, feed) for name, run in sessions.items()}, args.rounds)
        print(f"batch {batch}: ms, median (quartiles) of {args.rounds}")
        for name, (low, middle, high) in ms.items():
            print(f"  {name:36s} {middle:8.2f} ({low:.2f}-{high:.2f})")
        results[f"ms at batch {batch}"] = ms
    if args.json:
        files.write_json(args.json, results)


if __name__ == "__main__":
    main()
