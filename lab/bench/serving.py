"""MLServer under load: is anything lost, how long do answers take, and what does the server cost beside a bare session?

    python -m lab.bench.serving [--seconds 60] [--threads 1] [--rounds 3] [--json FILE --page docs/deploy.md]

needs `pip install '.[mlserver]' 'tritonclient[grpc]'`. The load is that of `CLIENTS` clients, half over HTTP and half
over gRPC, each sending its next request when it has the answer to the last. Beside them, corrupt requests come, clients
hang after half a request, others give up at once, another model is unloaded and loaded, and the model itself is
exchanged. Every answer is compared with that of a session on one of the two models.
"""

from __future__ import annotations

import argparse
import itertools
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as grpc
import tritonclient.http as http
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from capscore import PRESETS
from capscore.backends import numpy as caps
from capscore.export import mlserver, onnx
from capscore.export.machine import about
from capscore.export.runtime import Session
from lab import files
from lab.bench import page

CLIENTS, HUNG, NAME = 16, 4, "digits"
TOLERANCE = 1e-5  # of lengths: ONNX Runtime adds in another order in another batch
PACKAGES = "onnxruntime", "mlserver", "tritonclient", "grpcio"
CORRUPT: dict[str, Callable[[NDArray[Any]], tuple[NDArray[Any], str, str]]] = {  # name: images, datatype, input
    "NaN": lambda x: (x * np.float32(np.nan), "FP32", "images"),
    "not in [0, 1]": lambda x: (x * 255 + 2, "FP32", "images"),
    "another size": lambda x: (x[:, :, :-1], "FP32", "images"),
    "another dtype": lambda x: (x.astype(np.float64), "FP64", "images"),
    "another input": lambda x: (x, "FP32", "pictures"),
    "too many": lambda x: (np.repeat(x[:1], 129, 0), "FP32", "images"),
}


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


class Server:
    """A running `mlserver start`, and clients of it."""

    def __init__(self, folder: Path, log: Path) -> None:
        self.http, self.grpc, metrics = free_ports(3)
        ports = {"HTTP_PORT": self.http, "GRPC_PORT": self.grpc, "METRICS_PORT": metrics, "HOST": "127.0.0.1"}
        settings = {f"MLSERVER_{name}": str(value) for name, value in ports.items()}
        command = [sys.executable, "-c", "from mlserver.cli import main; main()", "start", str(folder)]
        with log.open("w") as out:
            self._process = subprocess.Popen(command, env=os.environ | settings, stdout=out, stderr=out)
        self._log = log

    def wait(self, seconds: float = 120) -> None:
        """Wait until all models are ready."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self._process.poll() is None:
            try:
                if self.client("http").is_server_ready():
                    return
            except OSError:
                pass
            time.sleep(0.2)
        raise SystemExit(f"MLServer did not start: {self._log.read_text()}")

    def client(self, protocol: str) -> Any:
        module, port = (http, self.http) if protocol == "http" else (grpc, self.grpc)
        return module.InferenceServerClient(f"127.0.0.1:{port}")

    def spent(self) -> float:
        """Return the seconds of processor time that the server has had; of Linux."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()


@contextmanager
def served(folder: Path) -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as scratch:
        server = Server(folder, Path(scratch) / "log")
        try:
            server.wait()
            yield server
        finally:
            server.close()


def infer(
    client: Any, protocol: str, images: NDArray[Any], kind: str = "FP32", name: str = "images", **options: Any
) -> NDArray[Any]:
    """Return the lengths that a server tells of images."""
    module, how = (http, {"binary_data": False}) if protocol == "http" else (grpc, {})
    x = module.InferInput(name, list(images.shape), kind)
    x.set_data_from_numpy(images, **how)
    found: NDArray[Any] = client.infer(
        NAME, [x], outputs=[module.InferRequestedOutput("lengths", **how)], **options
    ).as_numpy("lengths")
    return found


class Load:
    """Clients that send requests until the time is over, and what became of them."""

    def __init__(self, server: Server, images: NDArray[Any], expected: list[NDArray[Any]], sizes: tuple[int, ...]):
        self.server, self.images, self.expected, self.sizes = server, images, expected, sizes
        self.times: dict[str, list[float]] = {"http": [], "grpc": []}
        self.failed: list[str] = []
        self.answered = 0  # images
        self.over = threading.Event()

    def run(self, seconds: float, protocols: tuple[str, ...], others: tuple[Callable[[], None], ...] = ()) -> float:
        """Send for so long, beside others that do so; return the seconds that it took."""
        jobs = [lambda k=k: self._client(protocols[k % len(protocols)], k) for k in range(CLIENTS)]
        threads = [threading.Thread(target=self._kept, args=(job,)) for job in (*jobs, *others)]
        begun = time.perf_counter()
        for thread in threads:
            thread.start()
        self.over.wait(seconds)
        self.over.set()
        for thread in threads:
            thread.join()
        return time.perf_counter() - begun

    def _kept(self, job: Callable[[], None]) -> None:
        try:
            job()
        except Exception as error:  # a thread's errors would go to nobody
            self.failed.append(repr(error))

    def _client(self, protocol: str, seed: int) -> None:
        client, rng = self.server.client(protocol), np.random.default_rng(seed)
        while not self.over.is_set():
            chosen = rng.integers(len(self.images), size=self.sizes[rng.integers(len(self.sizes))])
            begun = time.perf_counter()
            try:
                found = infer(client, protocol, self.images[chosen])
            except (InferenceServerException, OSError) as error:
                self.failed.append(f"{protocol}: {error}")
                continue
            self.times[protocol].append(time.perf_counter() - begun)
            self.answered += len(chosen)
            if not any(np.allclose(found, wanted[chosen], atol=TOLERANCE) for wanted in self.expected):
                self.failed.append(f"{protocol}: neither model says so")

    def latency(self) -> dict[str, dict[str, float]]:
        """Return requests, median and p99 in ms by protocol."""
        found = {}
        for name, times in self.times.items():
            if times:
                middle, high = (np.percentile(times, [50, 99]) * 1e3).tolist()
                found[name] = {"requests": len(times), "ms": middle, "p99_ms": high}
        return found


class Trouble:
    """What comes beside a load: each of these goes on until the load is over, and says how often what happened."""

    def __init__(self, load: Load, repository: Path, models: list[Path], threads: int, pause: float) -> None:
        self.load, self.repository, self.models = load, repository, models
        self.threads, self.pause = threads, pause
        self.said: Counter[str] = Counter()

    def corrupt(self) -> None:
        """Send requests that are wrong; whoever answers them has failed."""
        clients = {name: self.load.server.client(name) for name in ("http", "grpc")}
        while not self.load.over.wait(0.2):
            for what, spoil in CORRUPT.items():
                for protocol, client in clients.items():
                    bad, kind, name = spoil(self.load.images[:2])
                    try:
                        infer(client, protocol, bad, kind, name)
                        self.load.failed.append(f"{protocol}: {what} was answered")
                    except (InferenceServerException, ValueError) as error:  # JSON has no NaN
                        status = getattr(error, "status", lambda: "not sent")()
                        self.said[f"corrupt, {protocol}: {status}"] += 1

    def gone(self) -> None:
        """Ask, and give up at once."""
        client = self.load.server.client("grpc")
        while not self.load.over.wait(0.05):
            try:
                infer(client, "grpc", self.load.images[:3], client_timeout=0.002)
            except InferenceServerException as error:
                self.said[f"gave up: {error.status()}"] += 1

    def exchanged(self) -> None:
        """Exchange the model, and unload and load another one."""
        client, images = self.load.server.client("http"), self.load.images
        for turn in itertools.count(1):
            if self.load.over.wait(self.pause):
                return
            mlserver.write(self.models[turn % 2], self.repository, NAME, threads=self.threads)
            client.load_model(NAME)
            if not np.allclose(infer(client, "http", images), self.load.expected[turn % 2], atol=TOLERANCE):
                self.load.failed.append("the exchange changed nothing")
            client.unload_model("other")
            client.load_model("other")
            self.said["exchanged"] += 1


def hang(server: Server) -> socket.socket:
    """Return the connection of a client that has sent half a request."""
    connection = socket.create_connection(("127.0.0.1", server.http))
    head = f"POST /v2/models/{NAME}/infer HTTP/1.1\r\nHost: here\r\nContent-Length: 10000\r\n\r\n"
    connection.sendall(head.encode() + b'{"inputs": [')
    return connection


def trial(folder: Path, seconds: float, threads: int) -> dict[str, Any]:
    """Load the server while all that may go wrong does, and return what became of it."""
    models, nets = [folder / "a.onnx", folder / "b.onnx"], [caps.CapsNet(PRESETS["small"], seed=k) for k in (0, 1)]
    images = np.random.default_rng(0).random((64, *PRESETS["small"].input), np.float32)
    expected = []
    for model, net in zip(models, nets, strict=True):
        onnx.export(net, model, verify=False)
        expected.append(Session(model, "cpu", threads).predict(images))
    repository = folder / "models"
    for name in (NAME, "other"):
        mlserver.write(models[0], repository, name, threads=threads)
    with served(repository) as server:
        load = Load(server, images, expected, sizes=(1, 3))
        beside = Trouble(load, repository, models, threads, max(1.0, seconds / 12))
        hung = [hang(server) for _ in range(HUNG)]
        took = load.run(seconds, ("http", "grpc"), (beside.corrupt, beside.gone, beside.exchanged))
        for each in hung:
            each.close()
        beside.said["hung"] = HUNG
    return {
        "seconds": took,
        "failed": load.failed,
        "latency": load.latency(),
        "beside": dict(sorted(beside.said.items())),
    }


def throughput(
    folder: Path, preset: str, protocol: str, images: int, rounds: int, threads: int, seconds: float = 3.0
) -> dict[str, Any]:
    """Return images per second of the server, and of a session at the batch of all clients together, in turn.

    The ratio of processor times, too: it holds on a busy machine, where clients take the server's time.
    """
    net = caps.CapsNet(PRESETS[preset])
    model, batch = folder / f"{preset}.onnx", CLIENTS * images
    onnx.export(net, model, verify=False)
    repository = folder / f"{preset} {protocol} {images}"
    mlserver.write(model, repository, NAME, threads=threads)
    session = Session(model, "cpu", threads)
    x = np.random.default_rng(0).random((batch, *net.spec.input), np.float32)
    expected, found = session.predict(x, batch), list[tuple[float, ...]]()
    with served(repository) as server:
        for turn in range(rounds + 1):  # the first warms up
            begun, spent, count = time.perf_counter(), time.process_time(), 0
            while time.perf_counter() - begun < seconds:
                session(x)
                count += batch
            bare, bare_cpu = count / (time.perf_counter() - begun), (time.process_time() - spent) / count
            load, spent = Load(server, x, [expected], (images,)), server.spent()
            took = load.run(seconds, (protocol,))
            if load.failed:
                raise SystemExit(f"{len(load.failed)} requests failed: {load.failed[0]}")
            if turn:
                through, cpu = load.answered / took, (server.spent() - spent) / load.answered
                found.append((bare, through, through / bare, bare_cpu / cpu))
    (bare, through, ratio, cpu), quartiles = np.median(found, 0), np.percentile(found, [25, 75], 0)
    return {
        "preset": preset, "protocol": protocol, "images": images, "batch": batch,
        "session_images_s": float(bare), "server_images_s": float(through),
        "ratio": float(ratio), "quartiles": quartiles[:, 2].tolist(),
        "processor_ratio": float(cpu), "processor_quartiles": quartiles[:, 3].tolist(),
        "p99_ms": load.latency()[protocol]["p99_ms"],
    }  # fmt: skip


def main() -> None:
    """Print what was found; write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3, help="of the comparison; 0 for none")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path)
    args = parser.parse_args()
    if args.json:
        files.check(args.json)  # before, not after minutes
    if args.page:
        page.between(args.page, "serving")
    results: dict[str, Any] = {
        "machine": about(*PACKAGES), "clients": CLIENTS, "threads": args.threads, "rounds": args.rounds,
        "load_before": os.getloadavg()[0],
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        results["load"] = found = trial(Path(folder), args.seconds, args.threads)
        print(f"{len(found['failed'])} failed {found['failed'][:3]}\n{found['latency']}\n{found['beside']}")
        results["throughput"] = []
        for case in itertools.product(("mnist", "small"), ("http", "grpc"), (1, 8)) if args.rounds else ():
            results["throughput"].append(throughput(Path(folder), *case, args.rounds, args.threads))
            print(results["throughput"][-1], flush=True)
    if args.json:
        files.write_json(args.json, results)
    if args.page:
        page.write(args.page, "serving", page.serving(results))


if __name__ == "__main__":
    main()
