"""The ops in JAX, and a learner whose whole step is compiled: gradients by `jax.grad`, the optimiser's update too.

JAX makes float64 arrays only where `jax_enable_x64` says so: importing this module switches it on, for the whole
process. float32 arrays stay float32; but what JAX makes of Python's numbers alone, say `jnp.zeros(3)`, is float64 then.

Networks and steps are compiled once for each shape of a batch. Where they run is JAX's choice (`JAX_PLATFORMS`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from capscore import model
from capscore.errors import BackendError
from capscore.layer import Run
from capscore.net import CapsNetSpec
from capscore.ops import Axes, Index, check_range, to_host
from capscore.optim import Optimiser

try:
    import jax
except ModuleNotFoundError as error:
    raise BackendError("the jax backend needs JAX: pip install 'capscore[jax]'") from error

from jax import lax
from jax import numpy as jnp

jax.config.update("jax_enable_x64", True)

Array = jax.Array
EXACT = lax.Precision.HIGHEST  # float32 means float32, on GPUs and TPUs too
FUSED: Mapping[type, Any] = {}  # XLA fuses what is compiled


def asarray(x: Any, like: Array | None = None) -> Array:
    """Return `x`, an array of any backend, as JAX's, which shares no memory with it."""
    if not isinstance(x, Array):  # those that are being traced are
        x = jnp.array(to_host(x))
    y: Array = x if like is None else x.astype(like.dtype)
    return y


def to_numpy(x: Array) -> NDArray[Any]:
    """Return `x` as a NumPy array in host memory, which cannot be written; bfloat16, which NumPy lacks, as float32."""
    return to_host(x)


def reshape(x: Array, shape: tuple[int, ...]) -> Array:
    """Return the same elements in row-major order under another shape."""
    return x.reshape(shape)


def transpose(x: Array, axes: tuple[int, ...]) -> Array:
    """Return `x` with its axes in the given order."""
    return x.transpose(axes)


def take(x: Array, index: Index, axis: int) -> Array:
    """Return what lies at the positions of `index` along `axis`; zeros at -1."""
    positions = index.positions if index.there is None else np.where(index.there, index.positions, x.shape[axis])
    return jnp.take(x, positions, axis, mode="fill", fill_value=0)


def concat(xs: Sequence[Array], axis: int) -> Array:
    """Return the arrays one after another along `axis`."""
    return jnp.concatenate(xs, axis)


def matmul(a: Array, b: Array) -> Array:
    """Return the matrix product over the last two axes, the leading axes broadcast."""
    return jnp.matmul(a, b, precision=EXACT)


def conv2d(
    x: Array, weight: Array, bias: Array | None, stride: tuple[int, int], padding: tuple[int, int], groups: int = 1
) -> Array:
    """Correlate x [B, C, H, W] with weight [O, C/groups, kh, kw], plus bias [O]."""
    around = [(margin, margin) for margin in padding]
    y: Array = lax.conv_general_dilated(x, weight, stride, around, feature_group_count=groups, precision=EXACT)
    return y if bias is None else y + bias.reshape(-1, 1, 1)


def max_pool(x: Array, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]) -> Array:
    """Return the largest number of every window of x [B, C, H, W]; its gradient goes to the first of them."""
    around = [(0, 0), (0, 0), *((margin, margin) for margin in padding)]
    y: Array = lax.reduce_window(x, -np.inf, lax.max, (1, 1, *kernel), (1, 1, *stride), around)
    return y


def sum(x: Array, axis: Axes, keepdims: bool = False) -> Array:
    """Return the sum over `axis`."""
    return x.sum(axis, keepdims=keepdims)


def norm(x: Array, axis: int, keepdims: bool = False) -> Array:
    """Return the Euclidean norm over `axis`, the largest entry divided out so that no square overflows."""
    largest = lax.stop_gradient(jnp.abs(x).max(axis, keepdims=True))  # constant: the norm is homogeneous
    zero = (largest == 0).astype(x.dtype)
    # XLA multiplies by the reciprocal, and subnormal numbers are zero to it: that of the largest floats is one.
    scale = jnp.minimum(largest, jnp.finfo(x.dtype).max / 16) + zero
    x = x / scale
    n = jnp.sqrt((x * x).sum(axis, keepdims=True) + zero) * scale * (1 - zero)  # the slope of √ at 0 is infinite
    return n if keepdims else n.squeeze(axis)


@partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def max(x: Array, axis: int, keepdims: bool = False) -> Array:
    """Return the largest over `axis`; equal ones share the gradient."""
    return x.max(axis, keepdims=keepdims)


@max.defjvp
def _max_gradient(axis: int, keepdims: bool, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """Do as JAX does, but for one thing: it divides by how many equal the largest, and that may be none.

    A compiled step can compute x twice, for its maximum and to find that again, and round it differently. The first
    largest is therefore always one of them.
    """
    (x,), (t,) = primals, tangents
    y = x.max(axis, keepdims=keepdims)
    first = jax.nn.one_hot(x.argmax(axis), x.shape[axis], axis=axis, dtype=bool)
    equal = ((x == x.max(axis, keepdims=True)) | first).astype(x.dtype)
    return y, (t * equal).sum(axis, keepdims=keepdims) / equal.sum(axis, keepdims=keepdims)


def sqrt(x: Array) -> Array:
    """Return the square root of every element."""
    return jnp.sqrt(x)


def exp(x: Array) -> Array:
    """Return e to the power of every element."""
    return jnp.exp(x)


def log(x: Array) -> Array:
    """Return the natural logarithm of every element."""
    return jnp.log(x)


def relu(x: Array) -> Array:
    """Return max(x, 0) of every element; the gradient at 0 is 0."""
    return jax.nn.relu(x)


def sigmoid(x: Array, small: bool = False) -> Array:
    """Return 1 / (1 + e^-x) of every element."""
    return jax.nn.sigmoid(x)


def softmax(x: Array, axis: int, leaky: bool = False) -> Array:
    """Return the softmax over `axis`, with an extra zero logit in the sum when `leaky`."""
    largest = lax.stop_gradient(x.max(axis, keepdims=True))
    if leaky:
        largest = jnp.maximum(largest, 0)
    e = jnp.exp(x - largest)
    total = e.sum(axis, keepdims=True)
    return e / (total + jnp.exp(-largest) if leaky else total)


def argmax_one_hot(x: Array) -> Array:
    """Return 1 at the first largest entry of the last axis and 0 elsewhere."""
    return jax.nn.one_hot(x.argmax(-1), x.shape[-1], dtype=x.dtype)


@partial(jax.jit, static_argnames=("function", "spec", "settings"))
def _compiled(
    function: Callable[..., Any],
    spec: CapsNetSpec,
    settings: tuple[tuple[str, Any], ...],
    params: dict[str, Array],
    *arrays: Array,
) -> Any:
    return function(sys.modules[__name__], spec, params, *arrays, **dict(settings))


class CapsNet(model.CapsNet[Array]):
    """A capsule network on JAX; see `capscore.model.CapsNet`.

    `params` is a dictionary of immutable arrays, a pytree: training and `assign` put another one in its place.
    """

    ops = sys.modules[__name__]

    def _compute(self, function: Callable[..., Any], *arrays: Array, **settings: Any) -> Any:
        return _compiled(function, self.spec, tuple(settings.items()), self.params, *arrays)


class How(NamedTuple):
    """What a compiled step depends on, beside the shapes of its arrays."""

    spec: CapsNetSpec
    reconstruction: float
    optimiser: Optimiser
    seed: int
    changing: tuple[str, ...]  # names of the parameters that a step changes


Kept = dict[str, dict[str, Array]]  # what a learner keeps: slot → parameter → array


@partial(jax.jit, static_argnums=0)
def _step(
    how: How,
    params: dict[str, Array],
    kept: Kept,
    pairs: tuple[tuple[Array, Array], ...],
    rate: float,
    newest: float,
    step: int,
    counts: dict[str, int],
) -> tuple[Array, Array, dict[str, Array], Kept]:
    """Return loss and scores before the step `step` = 0, 1, …, and parameters and what is kept after it.

    `pairs` are images and targets of the batch, then targets and images of its parts; `newest` is `model.newest`,
    `counts` the steps of every parameter, this one included.
    """
    ops: Any = sys.modules[__name__]
    (images, targets), *parts = pairs

    def later(make: Callable[[int], NDArray[Any]], shape: tuple[int, ...], like: Array) -> Array:
        there = jax.ShapeDtypeStruct(shape, like.dtype)
        return jax.pure_callback(lambda now: make(int(now)).astype(like.dtype), there, step)  # type: ignore[no-any-return]

    def loss(learning: dict[str, Array]) -> tuple[Array, tuple[Array, dict[str, Array]]]:
        run = Run(training=True, step=step, seed=how.seed, statistics={}, later=later)
        found = model.objective(ops, how.spec, params | learning, images, targets, how.reconstruction, parts, run)
        return found[0], (found[1], run.statistics or {})

    learning = {name: params[name] for name in how.changing}
    (value, (scores, statistics)), gradients = jax.value_and_grad(loss, has_aux=True)(learning)
    gradients = how.optimiser.clipped(ops, gradients)
    params, kept = dict(params), {slot: dict(arrays) for slot, arrays in kept.items()}
    for name in how.changing:
        slots = {slot: kept[slot][name] for slot in how.optimiser.slots}
        params[name], slots = how.optimiser.update(ops, params[name], gradients[name], slots, rate, counts[name])
        for slot, array in slots.items():
            kept[slot][name] = array
    params |= statistics
    for name, mean in kept.get("average", {}).items():
        kept["average"][name] = mean + (params[name] - mean) * newest
    return value, scores, params, kept


class Learner(model.Learner[Array]):
    """Trains a network on JAX; see `capscore.model.Learner`."""

    def step(
        self, images: Any, targets: NDArray[Any], rate: float, parts: Sequence[tuple[Any, Any]] = ()
    ) -> tuple[Array, Array]:
        """Learn from one batch; return loss and scores [B, J] before the step, unread. `parts`: see `objective`."""
        net = self.net
        changing = tuple(self.changing())
        check_range(images)
        images = asarray(images)
        model.check_images(net.spec, images, least=1)
        like = next(iter(net.params.values()))
        pairs = tuple((asarray(a, like), asarray(b, like)) for a, b in ((images, targets), *parts))
        about = net.spec, self.reconstruction, self.optimiser, self.seed, changing
        rates = float(rate), model.newest(self.average, self.steps + 1)
        counts = {name: self.counts[name] + 1 for name in changing}
        loss, scores, params, self.kept = _step(How(*about), net.params, self.kept, pairs, *rates, self.steps, counts)
        self._count(changing)
        with net._turns.changing():
            net._adopt({name: params[name] for name in net.params})  # JAX returns dictionaries sorted by name
        return loss, scores


load = CapsNet.load
