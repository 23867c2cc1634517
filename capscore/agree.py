"""The proof that a model computes the same everywhere: backends, engines and exports against NumPy in float64.

`verify` compares a model on every backend at hand and in ONNX Runtime; `capscore.export.check` compares what an export
is about to write. Both ask a `Truth` what the outputs should be and how far they may differ. Where one differs, the
first layer (or node of a graph) whose value differs is named.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import backend, backend_names
from .errors import BackendError
from .fast.conv import with_tiles
from .layer import INFERENCE, Capsules, Run
from .model import Output, one_hot
from .modelfile import Model
from .net import followed, masked, scores
from .ops import to_host
from .squash import lengths

# How far an output may be from float64, given the same weights and images: the largest absolute difference of scores,
# lengths, capsules, couplings and pixels; as a share of the largest entry where that is above 1, as of logits. Files
# take any input: those of reduced precision allow for saturated noise, which is harder than real images.
TOLERANCE = {
    "float64": 1e-10,  # a backend
    "float32": 2e-6,
    "fp32": 2e-6,  # an exported file
    "fp16": 5e-3,
    "int8-weights": 0.03,
    "int8": 0.2,
    "int8 as calibrated": 0.1,  # on images of the kind that showed it its ranges
    "6x6": 2e-5,  # fp32 with 6×6 tiles, whose transforms round more: see `capscore.fast.cook_toom`
}
# How far a value inside a network may be off, as a share of its largest entry.
SHARE = {
    "gradient": 1e-5,  # in float32
    "tf32": 5e-3,  # a routing of few capsules whose products are so rounded
    "bf16": 4e-2,
    "3x3": 1e-5,  # a convolution by these tiles
    "6x6": 2.5e-4,
    "fp32": 1e-4,  # the value of a graph's node
    "fp16": 3e-2,
    "int8-weights": 0.1,
    "int8": 0.3,
}
ROUNDING = 4  # times what float32 costs NumPy itself is allowed where that is more: large weights, many iterations


class Difference(NamedTuple):
    """How far an output is from float64, and how far it may be."""

    output: str
    size: float
    allowed: float

    @property
    def fits(self) -> bool:
        """Whether the difference is allowed; NaN is not."""
        return self.size <= self.allowed


@dataclass(frozen=True)
class Comparison:
    """The differences of one engine from float64, and the first layer or node that differs, if they do not fit."""

    engine: str
    dtype: str
    differences: tuple[Difference, ...]
    first: str | None = None

    @property
    def agrees(self) -> bool:
        """Whether all differences are allowed."""
        return _fit(self.differences)

    @property
    def allowed(self) -> float:
        """The largest difference that is allowed of the first output that does not fit."""
        return next((d.allowed for d in self.differences if not d.fits), 0.0)


class Expected:
    """What a network says of a batch of images: `exact` in float64, `rounded` in float32; arrays by output."""

    def __init__(self, truth: Truth, images: NDArray[Any]) -> None:
        self.truth, self.images = truth, images
        self.exact, self.rounded = outputs(truth.exact, images), outputs(truth.single, images)

    def differences(
        self, found: Mapping[str, NDArray[Any]], precision: str, given: str = "images"
    ) -> tuple[Difference, ...]:
        """Compare the outputs of an engine in a `precision` of the table that was given images, or exact capsules.

        Pixels may differ by as much more as the difference of the engine's capsules, which has its own limit, changes
        them: trained decoders amplify it twentyfold. In int8, a pose counts as much as its capsule is there.
        """
        told = []
        for name, array in found.items():
            room = 0.0
            if name == "reconstruction":
                # Rounding may choose another of two equally long capsules to draw.
                # A decoder alone draws the longest: see `capsules`.
                by = "scores" if given == "images" and self.truth.exact.spec.own_scores else "lengths"
                chosen = found.get(by, self.exact[by]).argmax(1)
                wanted = self.truth.exact.reconstruct(self.exact["capsules"], chosen)
                near = self.truth.single.reconstruct(self.rounded["capsules"], chosen)
                if given == "images":
                    moved = self.truth.exact.reconstruct(self._capsules(found, precision), chosen)
                    room = largest(moved, wanted)
            else:
                wanted, near = self.exact[name], self.rounded[name]
                if precision.startswith("int8") and name in ("lengths", "capsules"):
                    there = self.presence if name == "lengths" else self.presence[..., None]
                    array = wanted + there * (array - wanted)
            told.append(Difference(name, largest(array, wanted), allowed(precision, near, wanted) + room))
        return tuple(told)

    @cached_property
    def capsules(self) -> NDArray[Any]:
        """Exact capsules for a decoder alone, which draws the longest: all others are half as long.

        Activations may choose among poses that are all of one length; which one is drawn would be rounding's choice.
        """
        longest = one_hot(self.exact["lengths"].argmax(1), *self.exact["lengths"].shape)
        return self.exact["capsules"] * (0.5 + 0.5 * longest[..., None])

    @cached_property
    def presence(self) -> NDArray[Any]:
        """The probability of every class capsule [B, J] whose pose does not tell it, else 1.

        The pose of a capsule that is hardly there is the mean of hardly any votes: int8 turns it anywhere.
        """
        found = self.exact["scores"]
        tells = self.truth.exact.spec.own_scores and found.min() >= 0 and found.max() <= 1
        return found if tells else np.ones_like(found)

    def _capsules(self, found: Mapping[str, NDArray[Any]], precision: str) -> NDArray[Any]:
        """Return the engine's capsules; of one that keeps them to itself, such as differ by what fp32 allows."""
        if "capsules" in found:
            return found["capsules"]
        exact, by = self.exact["capsules"], min(TOLERANCE[precision], TOLERANCE["6x6"])
        moved: NDArray[Any] = exact + by * np.random.default_rng(0).choice((-1, 1), exact.shape)
        return moved

    def first_layer(self, net: Any, precision: str) -> str:
        """Return the name of the first layer whose output on `net` differs, and by how much."""
        chosen = self.exact["scores"].argmax(1)
        nets = (net, INFERENCE), (self.truth.exact, Run(trace=[])), (self.truth.single, Run(trace=[]))
        runs = (layers(each, self.images, chosen, run) for each, run in nets)
        for (name, found), (_, wanted), (_, near) in zip(*runs, strict=True):
            for a, b, c in zip(*map(arrays, (found, wanted, near)), strict=True):
                if not (size := largest(a, b)) <= allowed(precision, c, b):
                    return f"{name}: {size:.0e} from float64"
        return "no layer by itself: what runs them makes the difference"


class Truth:
    """A network on NumPy: in float64, and in float32, which tells what rounding alone costs."""

    def __init__(self, spec: Any, params: Mapping[str, Any]) -> None:
        reference = backend("numpy")
        self.exact, self.single = (reference.CapsNet(spec, params, dtype=dtype) for dtype in ("float64", "float32"))

    def expect(self, images: NDArray[Any]) -> Expected:
        """Return what the network says of images [B, C, H, W] in [0, 1]."""
        return Expected(self, images)


def largest(a: Any, b: Any) -> float:
    """Return the largest absolute difference of two arrays; NaN if there is one."""
    return float(np.abs(np.asarray(a, np.float64) - b).max(initial=0.0))


def allowed(precision: str, near: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Return how far an output may be from `wanted`; `near` is what NumPy makes of it in float32."""
    tolerance = TOLERANCE[precision] * max(1.0, largest(wanted, 0))
    return tolerance if precision == "float64" else max(tolerance, ROUNDING * largest(near, wanted))


def hard_images(shape: tuple[int, ...], batch: int, seed: int = 0) -> Iterator[NDArray[np.float64]]:
    """Yield batches [batch, *shape] of bytes / 255: black, white, noise, and noise of black and white alone."""
    rng = np.random.default_rng(seed)
    size = (batch, *shape)
    yield np.zeros(size)
    yield np.ones(size)
    yield rng.integers(0, 256, size) / 255
    yield rng.integers(0, 2, size).astype(np.float64)


def layers(net: Any, images: Any, chosen: Any, run: Run = INFERENCE) -> Iterator[tuple[str, Any]]:
    """Yield the name of every layer in turn with its output; the decoder draws the `chosen` class of each image."""
    ops, spec, params = with_tiles(net.ops, net.fast_conv), net.spec, net.params
    like = next(iter(params.values()))
    x = ops.asarray(images, like)
    for row in spec.rows:
        x = row.run(ops, params, x, run)
        yield row.name, x
    if spec.decoder is not None:
        mask = ops.asarray(one_hot(chosen, len(chosen), spec.classes), like)
        x = masked(ops, spec, x.pose, mask)
    for row in spec.decoder_rows:
        x = row.run(ops, params, x, run)
        yield row.name, x


def outputs(net: Any, images: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Return what a NumPy network says, by the names of an export: its routings too, scores always, no pixels.

    Routing runs in its plain form, as the paper has it.
    """
    x = net.ops.asarray(images, next(iter(net.params.values())))
    v, told = followed(net.ops, net.spec, net.params, x)
    found = {"scores": scores(net.ops, v)}
    if isinstance(v, Capsules):
        found |= {"lengths": lengths(net.ops, v.pose), "capsules": v.pose}
    return found | {name: array for name, (array, _) in told.items()}


def arrays(x: Any) -> list[NDArray[Any]]:
    """Return the arrays of a layer's output in host memory: one, or poses and activations."""
    return [to_host(array) for array in parts(x)]


def parts(x: Any) -> list[Any]:
    """Return the arrays of a layer's output: one, or poses and activations."""
    return [array for array in (x if isinstance(x, Capsules) else (x,)) if array is not None]


def available_backends() -> Iterator[tuple[str, ModuleType]]:
    """Yield the backends whose libraries are installed and work here."""
    for name in backend_names():
        try:
            module = backend(name)
            module.to_numpy(module.asarray(np.zeros(1)))
        except (BackendError, ImportError, RuntimeError):  # CuPy without a GPU is a RuntimeError
            continue
        yield name, module


def verify(
    model: Model, images: NDArray[Any] | None = None, seed: int = 0, providers: Sequence[str] = ("cpu",)
) -> list[Comparison]:
    """Run a model on every backend at hand, in both precisions, and exported on ONNX Runtime; return what differs.

    `images` [B, C, H, W] in [0, 1] are added to black, white and noisy ones. `providers` are those of ONNX Runtime, by
    the names of `capscore.export.providers.PROVIDERS`; BackendError for one that is not here, where any is but the CPU.
    """
    given = [] if images is None else [images]
    expected = Truth(model.spec, model.params).expect(np.concatenate([*hard_images(model.spec.input, 2, seed), *given]))
    found = [
        _on_backend(expected, name, module.CapsNet(model.spec, model.params, dtype=dtype), dtype)
        for name, module in available_backends()
        for dtype in ("float64", "float32")
    ]
    try:
        from .export import onnx
    except BackendError:
        if tuple(providers) != ("cpu",):
            raise
        return found
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.export(expected.truth.single, path, verify=False)  # the table says it
        return [*found, *(_on_provider(expected, path, provider) for provider in providers)]


def _on_provider(expected: Expected, path: Path, provider: str) -> Comparison:
    from .export import check, runtime

    session = runtime.Session(path, provider)
    differences = expected.differences(_told(session.spec, session(expected.images)), "fp32")
    first = None if _fit(differences) else check.where_it_differs(path, expected.truth.single, expected.images)
    name = "ONNX Runtime" if provider == "cpu" else f"ONNX Runtime {provider}"
    return Comparison(name, "float32", differences, first)


def _on_backend(expected: Expected, name: str, net: Any, dtype: str) -> Comparison:
    spec, out = net.spec, net(expected.images)
    if spec.decoder is not None:
        out = out._replace(reconstruction=net.reconstruct(out))
    differences = expected.differences(_told(spec, out), dtype)
    first = None if _fit(differences) else expected.first_layer(net, dtype)
    return Comparison(name, dtype, differences, first)


def _told(spec: Any, out: Output[Any]) -> dict[str, NDArray[Any]]:
    """Return the arrays of an output by name; scores only where the lengths are none."""
    names = (*(["scores"] if spec.own_scores else []), "lengths", "capsules", "reconstruction")
    return {name: to_host(getattr(out, name)) for name in names if getattr(out, name) is not None}


def _fit(differences: Iterable[Difference]) -> bool:
    return all(difference.fits for difference in differences)
