"""The network and the learner that NumPy and CuPy use as they are and PyTorch adapts."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from . import modelfile
from .errors import ShapeError, TrainingError, check_whole, short
from .fast.conv import check_tiles, with_tiles
from .grad import Tape, Var, value_and_gradients
from .layer import INFERENCE, Capsules, Grid, Iteration, Run
from .losses import reconstruction_loss
from .memory import kept
from .net import CapsNetSpec, forward, init_params, reconstruct, scores, to_be_drawn
from .ops import A, Ops, array, check_range, is_float, to_host
from .optim import Adam, Optimiser
from .squash import lengths
from .turns import Turns

if TYPE_CHECKING:  # whoever only runs a network needs no readers of data
    from .data import Samples

BLOCK = 1 << 18  # numbers that an optimiser changes at once: they stay in a processor's cache


class Output(NamedTuple, Generic[A]):
    """What a network says of a batch of images."""

    lengths: Any  # [B, J]: how present each class is, 0 to 1 by most squashes; None of a network ending in no capsules
    capsules: Any  # [B, J, D]: the class capsules; None from an ONNX model that was exported without them
    reconstruction: A | None = None  # [B, C, H, W]: from an ONNX model with a decoder
    couplings: tuple[tuple[A, ...], ...] | None = None  # per capsule layer and iteration [B, N, J], on request
    scores: A | None = None  # [B, J]: what the loss, the mask and `predict` go by; mostly the lengths


class CapsNet(Generic[A]):
    """A capsule network: a spec and its parameters on one backend.

    Parameters
    ----------
    spec : what to build; see `capscore.net`
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
        with_tiles(self.ops, fast_conv)  # a backend without them says so
        self.spec, self.fast_conv, self._turns = spec, fast_conv, Turns()
        self.classes = modelfile.check_classes(spec, classes)
        if not isinstance(provenance, Mapping | None):
            raise ShapeError(f"provenance must be names with JSON values, not {short(provenance)}")
        self.provenance = dict(provenance or {})
        arrays = init_params(spec, seed) if params is None else modelfile.check_params(spec, params)
        self._adopt({name: self.ops.asarray(array.astype(dtype)) for name, array in arrays.items()})

    def __repr__(self) -> str:
        """Return the layers, each in a line with what it makes, and the number of parameters."""
        rows = (*self.spec.rows, *self.spec.decoder_rows)
        lines = [f"  ({row.name}): {row.layer} → {'×'.join(map(str, row.output.dims))}" for row in rows]
        size = "×".join(map(str, self.spec.input))
        about = f"{size} images, {self.spec.classes} classes, {self.spec.parameter_count:,} parameters"
        return "\n".join([f"{type(self).__name__}(  # {about}", *lines, ")"])

    def _adopt(self, params: dict[str, A]) -> None:
        self._params = params

    def assign(self, params: Mapping[str, Any]) -> None:
        """Take other values for the parameters, checked like those of a new network.

        Other threads see either all former values or all new ones: this waits until no thread is within `forward`,
        `predict`, `reconstruct` or `save`.
        """
        arrays = modelfile.check_params(self.spec, params)
        values = {name: self.ops.asarray(arrays[name].copy(), like) for name, like in self.params.items()}
        with self._turns.changing():
            self._replace(values)

    def _replace(self, values: dict[str, A]) -> None:
        self._adopt(values)

    def _reading(self) -> AbstractContextManager[None]:
        """Return what lets no other thread assign parameters meanwhile."""
        return self._turns.reading()

    @property
    def params(self) -> dict[str, A]:
        """Name → array, in the order of the spec."""
        return self._params

    def forward(self, images: Any, couplings: bool = False) -> Output[A]:
        """Run the network on images [B, C, H, W] in [0, 1], floats of any backend.

        An image's result depends on that image alone; one that holds NaN gives NaN and harms no other. Images in host
        memory that are clearly beyond [0, 1], as bytes and standardised ones are, bring a RuntimeWarning.
        With `couplings`, the output also holds the coupling coefficients of every routing iteration; routing then runs
        in its plain form, which keeps them, not in the backend's fused one.
        """
        with self._reading():
            found: Output[A] = self._compute(outputs, self._images(images), couplings=couplings)
        return found

    def _compute(self, function: Callable[..., Any], *arrays: Any, **settings: Any) -> Any:
        """Return function(ops, spec, params, *arrays, …). A backend that compiles functions does it here."""
        ops, run = with_tiles(self.ops, self.fast_conv), self._run()
        params = self.params if run.call is None else {}  # layers that are objects have their own
        return function(ops, self.spec, params, *arrays, run=run, **settings)

    __call__ = forward

    def _run(self, **about: Any) -> Run:
        """Return what a forward pass carries on this backend."""
        return Run(**about)

    def predict(self, images: Any, batch: int = 128) -> NDArray[Any]:
        """Return the class scores [N, J] for images [N, C, H, W] as a NumPy array, `batch` images at a time.

        The class of an image is its highest score, that of its longest capsule: `net.predict(images).argmax(1)`. All
        images meet the same parameters, also while another thread assigns others.
        """
        check_whole("batch", batch, 1)
        images = array(images)
        check_images(self.spec, images)
        starts = range(0, max(1, len(images)), batch)
        with self._reading(), kept():
            return np.concatenate([to_host(self(images[i : i + batch]).scores) for i in starts])

    def reconstruct(self, capsules: Any, labels: Any = None) -> A:
        """Draw images [B, C, H, W] from class capsules [B, J, D], or from an `Output`, which has them and their scores.

        All but one capsule are masked: that of the highest score stays, or the one of `labels` [B] (whole numbers), or
        those that `labels` [B, J] weighs. The scores of capsules alone are their lengths; where a network has
        activations, ShapeError asks for the `Output`.
        """
        if self.spec.decoder is None:
            raise ShapeError("this network has no decoder (decoder=None in its spec): it cannot reconstruct")
        shape = self.spec.output
        assert isinstance(shape, Grid)  # there is a decoder
        count, dim = shape.dims
        said = capsules if isinstance(capsules, Output) else Output(None, capsules)
        v = self.ops.asarray(said.capsules, self._like)
        if tuple(v.shape[1:]) != (count, dim) or len(v.shape) != 3:
            raise ShapeError(f"capsules have shape {tuple(v.shape)}; wanted [batch, {count}, {dim}]")
        if labels is not None:
            mask = self.ops.asarray(one_hot(labels, v.shape[0], count), v)
        elif said.scores is None and shape.active:
            raise ShapeError(
                "these capsules lack the activations that tell which of them is drawn: give all that the network said, "
                "net.reconstruct(net(images)), or labels"
            )
        else:
            found = lengths(self.ops, v) if said.scores is None else self.ops.asarray(said.scores, v)
            mask = self.ops.argmax_one_hot(found)
        with self._reading():
            drawn: A = self._compute(reconstruct, v, mask)
        return drawn

    def _images(self, images: Any) -> Any:
        x = self.ops.asarray(images)
        check_images(self.spec, x)
        check_range(images if isinstance(images, np.ndarray) else x)
        return self.ops.asarray(x, self._like)

    @property
    def _like(self) -> A:
        """A parameter: of the dtype and on the device in which the network computes."""
        return next(iter(self.params.values()))

    def save(self, path: str | os.PathLike[str], dtype: str | None = None) -> None:
        """Write the model as one .safetensors file, in `dtype` ("float16" halves it) or as it is."""
        with self._reading():
            params = {name: self.ops.to_numpy(array) for name, array in self.params.items()}
            modelfile.save(path, modelfile.Model(self.spec, params, self.classes, self.provenance), dtype)

    @classmethod
    def load(cls, path: str | os.PathLike[str], dtype: str = "float32", *, fast_conv: str | None = None) -> Self:
        """Read a model file that any backend has written; of a checkpoint, the model alone."""
        model = modelfile.read(path)
        about: dict[str, Any] = {"classes": model.classes, "provenance": modelfile.public(model.provenance)}
        return cls(model.spec, model.params, dtype=dtype, fast_conv=fast_conv, **about)


def outputs(
    ops: Ops[A],
    spec: CapsNetSpec,
    params: Mapping[str, A],
    images: A,
    couplings: bool = False,
    run: Run = INFERENCE,
) -> Output[A]:
    """Return what the network says of images [B, C, H, W], as `CapsNet.forward` does."""
    trace: list[Iteration[A]] | None = [] if couplings else None
    v = forward(ops, spec, params, images, run._replace(trace=trace))
    found = scores(ops, v)
    if not isinstance(v, Capsules):
        return Output(None, None, scores=found)
    size = found if v.activation is None else lengths(ops, v.pose)
    told = None if trace is None else _couplings(ops, spec, images, trace)
    return Output(size, v.pose, None, told, found)


def _couplings(ops: Ops[A], spec: CapsNetSpec, images: Any, trace: Sequence[Iteration[A]]) -> tuple[tuple[A, ...], ...]:
    """Return the couplings of every layer and iteration as [B, N, J], uniform ones written out."""

    def of(each: Iteration[A]) -> A:
        if isinstance(each.couplings, float):
            return ops.asarray(np.full((images.shape[0], *each.pairs), each.couplings), images)
        return ops.transpose(each.couplings, (1, 2, 0))

    layers = dict.fromkeys(each.layer for each in trace)
    return tuple(tuple(of(each) for each in trace if each.layer == name) for name in layers)


def check_images(spec: CapsNetSpec, x: Any, dtype: str = "float", least: int = 0) -> None:
    """Raise ShapeError unless `x` is a batch of `least` images of the spec's size: floats, or of `dtype` uint8."""
    if dtype == "uint8" and "uint8" not in str(x.dtype):
        raise ShapeError(
            f"images have dtype {x.dtype}; this model takes uint8, 0 to 255, and scales them itself: floats in [0, 1] "
            "times 255, rounded, as uint8"
        )
    if dtype != "uint8" and not is_float(x):
        largest = "65535" if "uint16" in str(x.dtype) else "255"
        raise ShapeError(
            f"images have dtype {x.dtype}; wanted floats in [0, 1]: images / {largest} of whole numbers up to "
            f"{largest}, images * 1.0 of zeros and ones"
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
        turn = "permute" if hasattr(x, "permute") else "transpose"  # PyTorch's name for it
        cure = f"; images.{turn}(0, 3, 1, 2) puts the channels first"
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
    """Makes a network's training loss smaller, through the tape of `capscore.grad`.

    Parameters
    ----------
    net : whose parameters learn
    reconstruction : weight of the reconstruction loss
    optimiser : see `capscore.optim`
    average : decay of an exponential moving average of the weights, such as 0.998, and less in the first steps; 0 for
        none. See `averaged` and `newest`
    """

    writes = True  # whether this process writes checkpoints and reports: of several that train together, one does
    seed = 0  # of what layers draw in training, together with the step: `train` sets the recipe's
    _frozen: tuple[str, ...] = ()

    def __init__(
        self,
        net: CapsNet[Any],
        reconstruction: float = 0.0005,
        optimiser: Optimiser = Adam(),  # noqa: B008 - frozen
        average: float = 0.0,
        **options: Any,
    ) -> None:
        if options:
            raise ShapeError(f"this backend has no option {', '.join(options)}; the torch backend does")
        self.net, self.reconstruction, self.steps = net, reconstruction, 0
        self.counts = dict.fromkeys(self.learning, 0)  # steps of each parameter: frozen ones make none
        self.optimiser, self.average = optimiser, check_average(average)
        self.kept: dict[str, dict[str, Any]] = {
            slot: {name: np.zeros_like(p) for name, p in self.learning.items()} for slot in optimiser.slots
        }
        if average:
            self.kept["average"] = {name: p * 1.0 for name, p in net.params.items()}

    @property
    def learning(self) -> dict[str, A]:
        """Every parameter that is no running statistic, by name."""
        return {name: p for name, p in self.net.params.items() if self.net.spec.params[name].learns}

    @property
    def used(self) -> dict[str, A]:
        """Those that the loss is computed with, by name: all, or all but the decoder's."""
        return {n: p for n, p in self.learning.items() if self.reconstruction or not n.startswith("decoder.")}

    def changing(self) -> dict[str, A]:
        """Return the parameters that a step changes, by name; TrainingError if there are none."""
        frozen = self.frozen
        if not (found := {name: p for name, p in self.used.items() if name not in frozen}):
            raise nothing_learns()
        return found

    @property
    def slots(self) -> dict[str, tuple[str, ...]]:
        """What `state` holds: the optimiser's slots and "average", each with the names of its parameters."""
        own = {slot: tuple(self.learning) for slot in self.optimiser.slots}
        return own | ({"average": tuple(self.net.params)} if self.average else {})

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the network have the averaged weights meanwhile, if there are any: to measure and to save them."""
        if not self.average or not self.steps:
            yield
            return
        own = {name: p * 1.0 for name, p in self.net.params.items()}
        self.net.assign(self.kept["average"])
        try:
            yield
        finally:
            self.net.assign(own)

    @property
    def frozen(self) -> tuple[str, ...]:
        """Names of the parameters that stay as they are; assign others to change it. ShapeError: there is no such."""
        return self._frozen

    @frozen.setter
    def frozen(self, names: Sequence[str]) -> None:
        self._frozen = check_names(self.net.spec, names)

    @property
    def workers(self) -> dict[str, int]:
        """How many threads or processes share the sums, by what they are: others round these sums otherwise."""
        return {}

    def to_device(self, data: Samples, margin: int) -> Samples:
        """Return images to learn from, with a margin, where this backend computes: on a CPU, as they are."""
        return data

    def step(
        self, images: Any, targets: NDArray[Any], rate: float, parts: Sequence[tuple[Any, Any]] = ()
    ) -> tuple[A, A]:
        """Learn from one batch; return its loss and class scores [B, J] before the step. `parts`: see `objective`.

        They are arrays of the backend: a GPU may still be working on them, and to read them is to wait for it.
        """
        net, ops = self.net, self.net.ops
        learning = self.changing()
        found: list[A] = []
        check_range(images)
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

        run = Run(training=True, step=self.steps, seed=self.seed, statistics={})
        value, gradients = value_and_gradients(ops, loss, learning)
        gradients = self.optimiser.clipped(ops, gradients)
        self._count(learning)
        with net._turns.changing():
            self._update(learning, gradients, rate)
            for name, statistic in (run.statistics or {}).items():
                net.params[name][...] = statistic.value
        share = newest(self.average, self.steps)
        for name, mean in self.kept.get("average", {}).items():
            mean += (net.params[name] - mean) * share
        return value, found[0]

    def _count(self, names: Iterable[str]) -> None:
        """Count a step, and for each of the parameters that make it."""
        self.steps += 1
        for name in names:
            self.counts[name] += 1

    def _update(self, learning: Mapping[str, Any], gradients: dict[str, Any], rate: float) -> None:
        for name, p in learning.items():
            g = gradients.pop(name)
            for rows in _blocks(p):  # numbers change one by one: no more of them need be in memory twice
                slots = {slot: self.kept[slot][name][rows] for slot in self.optimiser.slots}
                now = self.counts[name]
                p[rows], slots = self.optimiser.update(self.net.ops, p[rows], g[rows], slots, rate, now)
                for slot, values in slots.items():
                    self.kept[slot][name][rows] = values

    def state(self) -> dict[str, NDArray[Any]]:
        """Return what a checkpoint must keep beside the parameters, as NumPy arrays by name.

        The steps of a parameter are kept where they are fewer than all.
        """
        to_numpy = self.net.ops.to_numpy
        found = {f"{slot}.{name}": to_numpy(a) for slot, arrays in self.kept.items() for name, a in arrays.items()}
        fewer = {name: steps for name, steps in self.counts.items() if steps != self.steps}
        return found | {f"steps.{name}": np.array([steps], np.float64) for name, steps in fewer.items()}

    def restore(self, state: Mapping[str, NDArray[Any]], steps: int) -> None:
        """Go on from the `state` of a learner that had made `steps`."""
        self.steps, asarray = steps, self.net.ops.asarray
        self.counts = {name: int(state.get(f"steps.{name}", [steps])[0]) for name in self.counts}
        for slot, arrays in self.kept.items():
            for name, like in arrays.items():
                arrays[name] = asarray(state[f"{slot}.{name}"].copy(), like)


def _blocks(p: Any) -> Iterator[Any]:
    """Yield the indices of an array's parts along its first axis, of BLOCK numbers or a row."""
    if not p.shape:
        yield ...
        return
    rows = max(1, BLOCK * p.shape[0] // max(1, math.prod(p.shape)))
    yield from (slice(start, start + rows) for start in range(0, p.shape[0], rows))


def check_average(average: Any) -> float:
    """Return the decay of an average of weights, or say why it is none."""
    if not isinstance(average, int | float) or not 0 <= average < 1:
        raise ShapeError(f"average must be a number from 0 (none) to below 1, such as 0.998, not {short(average)}")
    return average


def newest(average: float, step: int) -> float:
    """Return the share that the weights after step 1, 2, … have in the average of that decay.

    It falls to 1 - `average`: with that from the start, hundreds of steps would go by until the average forgot the
    weights that training began with.
    """
    return max(1 - average, 9 / (10 + step))


def check_names(spec: CapsNetSpec, names: Sequence[str]) -> tuple[str, ...]:
    """Return names of parameters as a tuple, or say which is none."""
    chosen = (names,) if isinstance(names, str) else tuple(names)
    known = list(spec.parameters)  # no dictionary: what a file names may not be hashable
    if unknown := [name for name in chosen if name not in known]:
        raise ShapeError(f"there is no parameter {short(unknown[0])} to freeze; there are {', '.join(spec.parameters)}")
    return chosen


def nothing_learns() -> TrainingError:
    """Return what to tell when no parameter may change."""
    return TrainingError(
        "every parameter that the loss depends on is frozen, so nothing can be learned: learner.frozen = () lets all "
        "of them learn"
    )
