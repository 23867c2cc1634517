"""What version 0.1 wrote, kept so that every later version proves it can read it. Run by version 0.1 alone."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path

import numpy as np

from capscore import PRESETS, CapsNetSpec, Conv, Decoder, DenseCaps, DynamicRouting, PrimaryCaps
from capscore.backends import numpy as caps
from capscore.data import Dataset, load
from capscore.export import onnx
from capscore.init import init_params
from capscore.train import Recipe, Stopped, train

HERE = Path(__file__).parent
TINY = CapsNetSpec(
    input=(1, 28, 28),
    stem=(Conv(6, kernel=5, stride=2, padding=1), Conv(8, kernel=3, activation="none")),
    primary=PrimaryCaps(types=3, dim=4, kernel=3, stride=2),
    capsules=(DenseCaps(5, dim=4, bias=False), DenseCaps(10, dim=6, routing=DynamicRouting(2, leaky=True))),
    decoder=Decoder((12,)),
)


def digits(count: int) -> Dataset:
    """Return the first of the embedded digits."""
    train_set, _ = load("digits")
    return Dataset(train_set.images[:count], train_set.labels[:count], train_set.classes)


def sha(array: np.ndarray) -> str:
    """Return the digest of an array's bits."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


class Stop:
    """Interrupts a training after some steps, as Ctrl-C does."""

    def __init__(self, after: int) -> None:
        self.left = after

    def begin(self, *_: object) -> None:
        """Nothing."""

    def step(self, *_: object) -> None:
        """Count."""
        self.left -= 1
        if not self.left:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGINT)

    def end(self, *_: object) -> None:
        """Nothing."""


def main() -> None:
    facts: dict = {"presets": {}}
    for name, spec in {**PRESETS, "tiny": TINY}.items():
        params = init_params(spec, 7)
        image = np.random.default_rng(1).random((2, *spec.input))
        net = caps.CapsNet(spec, params, dtype="float64")
        out = net(image)
        drawn = net.reconstruct(out.capsules) if spec.decoder else None
        graph = HERE / "graph.onnx"
        onnx.export(caps.CapsNet(spec, params), graph, verify=False)
        import onnx as library

        facts["presets"][name] = {
            "spec": json.loads(spec.to_json()),
            "parameters": {key: sha(array) for key, array in params.items()},
            "lengths": out.lengths.tolist(),
            "capsules": out.capsules.tolist(),
            "reconstruction_sums": None if drawn is None else drawn.sum((1, 2, 3)).tolist(),
            "multiply_adds": spec.multiply_adds,
            "nodes": len(library.load(graph).graph.node),
        }
        graph.unlink()
    params = init_params(TINY, 3)
    net = caps.CapsNet(TINY, params, dtype="float64", classes=[f"digit {i}" for i in range(10)])
    net.save(HERE / "model.safetensors")
    onnx.export(net, HERE / "model.onnx", byte_images=True)
    recipe = Recipe(epochs=2, batch=16, decay_steps=10, seed=5)

    def run(stop: int | None, out: Path, resume: bool = False) -> caps.CapsNet:
        net = caps.CapsNet(TINY, dtype="float64", seed=5)
        learner = caps.Learner(net, recipe.reconstruction)
        reporters = () if stop is None else (Stop(stop),)
        with suppress(Stopped):
            train(net, learner, digits(96), digits(40), recipe, out, resume, reporters)
        return net

    import shutil
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        whole = run(None, Path(folder) / "whole")
        run(4, Path(folder) / "stopped")
        shutil.copy(Path(folder) / "stopped" / "last.safetensors", HERE / "checkpoint.safetensors")
        resumed = run(None, Path(folder) / "stopped", resume=True)
        for name in whole.params:
            assert np.array_equal(whole.params[name], resumed.params[name])
    whole.save(HERE / "trained.safetensors")
    (HERE / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
