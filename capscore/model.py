"""The network and the learner that NumPy and CuPy use as they are and PyTorch and JAX adapt."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Generic, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from . import modelfile
from .data import Samples
from .errors import ShapeError, check_whole, short
from .fast.conv import check_tiles, with_tiles
from .grad import Tape, Var, value_and_gradients
from .layer import INFERENCE, Capsules, Iteration, Run
from .losses import reconstruction_loss
from .net import CapsNetSpec, forward, init_params, reconstruct, scores, to_be_drawn
from .ops import A, Ops, is_float, to_host
from .squash import lengths


class Output(NamedTuple, Generic[A]):
    """What a network says of a batch of images."""

    lengths: Any  # [B, J]: how present each class is, 0 to 1; None of a network that ends in no capsules
    capsules: Any  # [B, J, D]: the class capsules; None from an ONNX model that was exported without them
    reconstruction: A | None = None  # [B, C, H, W]: from an ONNX model with a decoder
    couplings: tuple[tuple[A, ...], ...] | None = None  # per capsule layer and iteration [B, N, J], on request
    scores: A | None = None  # [B, J]: what the loss, the mask and `predict` go by; mostly the lengths


class CapsNet(Generic[A]):
    """A capsule network: a spec and its parameters on one backend.

    Parameters
    ----------
    spec : what to build; see `capscore.spec`
    params : name → array of any backend, as `spec.parameters` lists them; initialised from `seed` when None
    seed : of the initial parameters, the same numbers on every backend
    dtype : "float32" or "float64"
    fast_conv : "3x3" or "6x6" for convolutions by fewer multiplications; they round more, see `capscore.fast.cook_toom`
    classes : names of the classes, "0", "1", … when None
    provenance : JSON values to be kept with the model: where it comes from
    """

    ops: ClassVar[Any]

    def __init__(
        self,
        spec: CapsNetSpec,
        params: Mapping[str, Any] | None = None,
        seed: int = 0,
        dtype: str = "float32",
        *,
        fast_conv: str | None = None,
        classes: Any = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        if dtype not in ("float32", "float64"):
            raise ShapeError(f'dtype must be "float32" or "float64", not {dtype!r}')
        if not hasattr(spec, "parameters"):
            raise ShapeError(f"the network's spec must be a CapsNetSpec, such as PRESETS['small'], not {short(spec)}")
        check_tiles(fast_conv)
        self.spec, self.fast_conv = spec, fast_conv
        self.classes = modelfile.check_classes(spec, classes)
        self.provenance = dict(provenance or {})
        arrays = init_params(spec, seed) if params is None else modelfile.check_params(spec, params)
        self._adopt({name: self.ops.asarray(array.astype(dtype)) for name, array in arrays.items()})

    def _adopt(self, params: dict[str, A]) -> None:
        self._params = params

    def assign(self, params: Mapping[str, Any]) -> None:
        """Take other values for the parameters, checked like those of a new network."""
        arrays = modelfile.check_params(self.spec, params)
        self._adopt({name: self.ops.asarray(arrays[name].copy(), like) for name, like in self.params.items()})

    @property
    def params(self) -> dict[str, A]:
        """Name → array, in the order of the spec."""
        return self._params

    def forward(self, images: Any, couplings: bool = False) -> Output[A]:
        """Run the network on images [B, C, H, W] in [0, 1], floats of any backend.

        An image's result depends on that image alone; one that holds NaN gives NaN and harms no other.
        With `couplings`, the output also holds the coupling coefficients of every routing iteration; routing then runs
        in its plain form, which keeps them, not in the backend's fused one.
        """
        found: Output[A] = self._compute(outputs, self._images(images), couplings=couplings)
        return found

    def _compute(self, function: Callable[..., Any], *arrays: Any, **settings: Any) -> Any:
        """Return function(ops, spec, params, *arrays, **settings). A backend that compiles functions does it here."""
        return function(with_tiles(self.ops, self.fast_conv), self.spec, self.params, *arrays, **settings)

    __call__ = forward

    def predict(self, images: Any, batch: int = 128) -> NDArray[Any]:
        """Return the class scores [N, J] for images [N, C, H, W] as a NumPy array, `batch` images at a time.

        The class of an image is its highest score, that of its longest capsule: `net.predict(images).argmax(1)`.
        """
        check_whole("batch", batch, 1)
        starts = range(0, max(1, len(images)), batch)
        return np.concatenate([to_host(self(images[i : i + batch]).scores) for i in starts])

    def reconstruct(self, capsules: Any, labels: Any = None) -> A:
        """Draw images [B, C, H, W] from class capsules [B, J, D].

        All but one capsule are masked: the longest stays, or the one of `labels` [B] (whole numbers), or those
        that `labels` [B, J] weighs.
        """
        if self.spec.decoder is None:
            raise ShapeError("this network has no decoder (decoder=None in its spec): it cannot reconstruct")
        count, dim = self.spec.output.dims
        v = self.ops.asarray(capsules, next(iter(self.params.values())))
        if tuple(v.shape[1:]) != (count, dim) or len(v.shape) != 3:
            raise ShapeError(f"capsules have shape {tuple(v.shape)}; wanted [batch, {count}, {dim}]")
        if labels is None:
            mask = self.ops.argmax_one_hot(lengths(self.ops, v))
        else:
            mask = self.ops.asarray(one_hot(labels, v.shape[0], count), v)
        drawn: A = self._compute(reconstruct, v, mask)
        return drawn

    def _images(self, images: Any) -> Any:
        x = self.ops.asarray(images)
        check_images(self.spec, x)
        return self.ops.asarray(x, next(iter(self.params.values())))

    def save(self, path: str | os.PathLike[str], dtype: str | None = None) -> None:
        """Write the model as one .safetensors file, in `dtype` ("float16" halves it) or as it is."""
        params = {name: self.ops.to_numpy(array) for name, array in self.params.items()}
        modelfile.save(path, modelfile.Model(self.spec, params, self.classes, self.provenance), dtype)

    @classmethod
    def load(cls, path: str | os.PathLike[str], dtype: str = "float32", *, fast_conv: str | None = None) -> Self:
        """Read a model file that any backend has written."""
        model = modelfile.read(path)
        about: dict[str, Any] = {"classes": model.classes, "provenance": model.provenance}
        return cls(model.spec, model.params, dtype=dtype, fast_conv=fast_conv, **about)


def outputs(ops: Ops[A], spec: CapsNetSpec, params: Mapping[str, A], images: A, couplings: bool = False) -> Output[A]:
    """Return what the network says of images [B, C, H, W], as `CapsNet.forward` does."""
    run = Run(trace={} if couplings else None)
    v = forward(ops, spec, params, images, run)
    found = scores(ops, v)
    if not isinstance(v, Capsules):
        return Output(None, None, scores=found)
    size = found if v.activation is None else lengths(ops, v.pose)
    told = None if run.trace is None else tuple(_couplings(ops, spec, images, *layer) for layer in run.trace.items())
    return Output(size, v.pose, None, told, found)


def _couplings(ops: Ops[A], spec: CapsNetSpec, images: Any, name: str, iterations: list[Iteration[A]]) -> tuple[A, ...]:
    """Return the couplings of a layer as [B, N, J], the uniform first one written out."""
    row = next(row for row in spec.rows if row.name == name)
    shape = images.shape[0], row.input.dims[0], row.output.dims[0]
    return tuple(
        ops.asarray(np.full(shape, c), images) if isinstance(c, float) else ops.transpose(c, (1, 2, 0))
        for c, _ in iterations
    )


def check_images(spec: CapsNetSpec, x: Any, dtype: str = "float", least: int = 0) -> None:
    """Raise ShapeError unless `x` is a batch of `least` images of the spec's size: floats, or of `dtype` uint8."""
    if dtype == "uint8" and "uint8" not in str(x.dtype):
        raise ShapeError(f"images have dtype {x.dtype}; this model takes uint8, 0 to 255, and scales them itself")
    if dtype != "uint8" and not is_float(x):
        raise ShapeError(
            f"images have dtype {x.dtype}; wanted floats in [0, 1]: for bytes, images.astype('float32') / 255"
        )
    shape, wanted = tuple(x.shape), spec.input
    if len(shape) == 4 and shape[1:] == wanted:
        if shape[0] < least:
            raise ShapeError(f"a batch of {shape[0]} images; wanted at least {least}")
        return
    cure = ""
    if shape == wanted:
        cure = "; images[None] makes a batch of one"
    elif len(shape) in (2, 3) and shape[-2:] == wanted[1:] and wanted[0] == 1:
        cure = f"; images.reshape(-1, {', '.join(map(str, wanted))}) names their one channel"
    elif len(shape) == 4 and shape[1:] == (*wanted[1:], wanted[0]):
        cure = "; images.transpose(0, 3, 1, 2) puts the channels first"
    raise ShapeError(f"images have shape {list(shape)}; wanted [batch, {', '.join(map(str, wanted))}]{cure}")


def one_hot(labels: Any, batch: int, classes: int) -> NDArray[np.float64]:
    """Return labels [B] as rows of zeros with a one, [B, J]; labels that are [B, J] already pass as they are."""
    rows = to_host(labels)
    if rows.shape == (batch, classes):
        return rows.astype(np.float64)
    if rows.shape != (batch,) or rows.dtype.kind not in "iu":
        raise ShapeError(f"labels have shape {rows.shape} and dtype {rows.dtype}; wanted {batch} whole numbers")
    if batch and not 0 <= rows.min() <= rows.max() < classes:
        raise ShapeError(f"labels go from {rows.min()} to {rows.max()}; wanted 0 to {classes - 1}")
    found: NDArray[np.float64] = np.eye(classes)[rows]
    return found


def objective(
    ops: Ops[A],
    spec: CapsNetSpec,
    params: Mapping[str, A],
    images: A,
    targets: A,
    weight: float = 0.0005,
    parts: Sequence[tuple[A, A]] = (),
    run: Run = INFERENCE,
) -> tuple[A, A]:
    """Return the training loss and the class scores [B, J]: the spec's loss plus weighted reconstruction loss.

    Targets are [B, J]; the true capsules are the ones that are reconstructed (section 4.1). Of images that show
    several objects, each of the `parts` is reconstructed on its own (section 6): targets [B, J] and images
    [B, C, H, W] of one object.
    """
    v = forward(ops, spec, params, images, run)
    found = scores(ops, v)
    loss = spec.loss(ops, found, targets, run.step)
    if isinstance(v, Capsules) and spec.decoder is not None and weight:
        for shown, image in parts or ((targets, images),):
            drawn = reconstruct(ops, spec, params, v.pose, shown, run)
            loss = loss + reconstruction_loss(ops, to_be_drawn(ops, spec, image), drawn, weight)
    return loss, found


class Learner(Generic[A]):
    """Adam on a network's training loss (β 0.9 and 0.999, ε 1e-8), through the tape of `capscore.grad`."""

    writes = True  # whether this process writes checkpoints and reports: of several that train together, one does

    def __init__(self, net: CapsNet[Any], reconstruction: float = 0.0005, **options: Any) -> None:
        if options:
            raise ShapeError(f"this backend has no option {', '.join(options)}; the torch backend does")
        self.net, self.reconstruction, self.steps = net, reconstruction, 0
        self.first = {name: np.zeros_like(net.params[name]) for name, p in net.spec.params.items() if p.learns}
        self.second = {name: np.zeros_like(m) for name, m in self.first.items()}

    @property
    def learning(self) -> dict[str, A]:
        """Name → array of each parameter that learns, as the network has it now."""
        return {name: self.net.params[name] for name in self.first}

    def hold(self, data: Samples, margin: int) -> Samples:
        """Return images to learn from, with a margin, where this backend computes: on a CPU, as they are."""
        return data

    def step(
        self, images: Any, targets: NDArray[Any], rate: float, parts: Sequence[tuple[Any, Any]] = ()
    ) -> tuple[A, A]:
        """Learn from one batch; return its loss and class scores [B, J] before the step. `parts`: see `objective`.

        They are arrays of the backend: a GPU may still be working on them, and to read them is to wait for it.
        """
        net, ops = self.net, self.net.ops
        found: list[A] = []
        images = ops.asarray(images)
        check_images(net.spec, images, least=1)
        like = next(iter(net.params.values()))

        def loss(tape: Tape, params: dict[str, Var]) -> Var:
            def taped(array: Any) -> Var:
                return tape.asarray(ops.asarray(array, like))

            pairs = ((images, targets), *parts)
            (x, t), *apart = ((taped(a), taped(b)) for a, b in pairs)
            fixed = {name: tape.asarray(p) for name, p in net.params.items() if name not in params}
            taped_ops = with_tiles(tape, net.fast_conv)
            value: Var
            value, said = objective(taped_ops, net.spec, fixed | params, x, t, self.reconstruction, apart, run)
            found.append(said.value)
            return value

        run = Run(training=True, step=self.steps, statistics={})
        learning = self.learning
        value, gradients = value_and_gradients(ops, loss, learning)
        self.steps += 1
        slow, fast = 1 - 0.999**self.steps, 1 - 0.9**self.steps
        for name, p in learning.items():
            g, m, v = gradients[name], self.first[name], self.second[name]
            m += (g - m) * (1 - 0.9)
            v += (g * g - v) * (1 - 0.999)
            p -= m / (np.sqrt(v) / slow**0.5 + 1e-8) * (rate / fast)
        for name, statistic in (run.statistics or {}).items():
            net.params[name][...] = statistic.value
        return value, found[0]

    def state(self) -> dict[str, NDArray[Any]]:
        """Return what a checkpoint must keep beside the parameters, as NumPy arrays by name."""
        moments = {f"first.{k}": v for k, v in self.first.items()} | {f"second.{k}": v for k, v in self.second.items()}
        return {name: self.net.ops.to_numpy(array) for name, array in moments.items()}

    def restore(self, state: Mapping[str, NDArray[Any]], steps: int) -> None:
        """Go on from the `state` of a learner that had made `steps`."""
        self.steps = steps
        for name, like in self.learning.items():
            self.first[name] = self.net.ops.asarray(state[f"first.{name}"].copy(), like)
            self.second[name] = self.net.ops.asarray(state[f"second.{name}"].copy(), like)
