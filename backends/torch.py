"""The ops in PyTorch, `CapsNet` as an `nn.Module`, and a learner with torch's own engine and optimiser."""

from __future__ import annotations

import os
import sys
import warnings
from collections import namedtuple
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from capscore import model
from capscore.data import Device, Samples, resident
from capscore.errors import BackendError, TrainingError
from capscore.fast.cook_toom import Tiling
from capscore.fast.streaming import RULES
from capscore.layer import Run
from capscore.layers import BatchNorm
from capscore.ops import Axes, Index, check_plain, check_range, to_host
from capscore.optim import Adam, Optimiser

# A fresh large array costs page faults, in small pages more than the arithmetic in it: measured, docs/performance.md.
# PyTorch reads this once, before its first large array; a value that is set already is respected.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
# Its threads wait for each other after every small piece of work. GNU's OpenMP would have them spin for long, which on
# a busy machine takes the processor from those that work; to sleep at once costs a quiet machine a fifth (measured,
# docs/performance.md). It reads this when it is loaded; whoever has chosen a way is respected.
if "torch" not in sys.modules and not any(
    name.startswith(("OMP_WAIT_POLICY", "GOMP_", "KMP_BLOCKTIME", "KMP_LIBRARY")) for name in os.environ
):
    os.environ["GOMP_SPINCOUNT"] = "3000"

try:
    import torch
except ModuleNotFoundError as error:
    raise BackendError("the torch backend needs PyTorch: pip install 'capscore[torch]'") from error

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

Array = Tensor
torch.backends.cudnn.allow_tf32 = False  # float32 means float32; matrix products already are without it


def asarray(x: Any, like: Tensor | None = None) -> Tensor:
    """Return `x`, an array of any backend, as a tensor, on the device and with the dtype of `like`."""
    if not isinstance(x, Tensor | np.ndarray) and hasattr(x, "__cuda_array_interface__"):
        x = torch.utils.dlpack.from_dlpack(x)  # CuPy's: shared on the GPU, and torch's stream waits for CuPy's
    elif not isinstance(x, Tensor):  # all others come through the host
        x = _from_host(x)
    elif x.layout != torch.strided or x.is_quantized or x.is_nested or (like is not None and x.is_meta > like.is_meta):
        check_plain(x)  # which says why not
    y: Tensor = x if like is None else x.to(like.device, like.dtype)
    return y


def _from_host(x: Any) -> Tensor:
    if torch.compiler.is_compiling():  # which cannot follow what NumPy does to arrays of any kind
        return torch.as_tensor(x)
    array = to_host(x).copy()  # which may be turned around
    if not tracing():
        return torch.from_numpy(array)
    with warnings.catch_warnings():  # it is a constant of the trace, as it should be
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        return torch.from_numpy(array)


def to_numpy(x: Tensor) -> NDArray[Any]:
    """Return `x` as a NumPy array in host memory; bfloat16, which NumPy lacks, as float32."""
    return to_host(x)


def reshape(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the same elements in row-major order under another shape."""
    return x.reshape(shape)


def transpose(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Return a view with the axes in the given order."""
    return x.permute(axes)


def take(x: Tensor, index: Index, axis: int) -> Tensor:
    """Return what lies at the positions of `index` along `axis`; zeros at -1."""
    if index.there is not None:  # -1 is the last of one more, all zeros: cheaper than to write over what was taken
        x = torch.cat((x, torch.zeros_like(x.narrow(axis, 0, 1))), axis)
    positions = np.where(index.positions < 0, x.shape[axis] - 1, index.positions)
    return x.index_select(axis, torch.as_tensor(positions, device=x.device))


def concat(xs: Sequence[Tensor], axis: int) -> Tensor:
    """Return the arrays one after another along `axis`."""
    return torch.cat(list(xs), axis)


def matmul(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """Return the matrix product over the last two axes."""
    return torch.matmul(a, b) if out is None else torch.matmul(a, b, out=out)


def empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Return a tensor of any content, with the dtype and device of `like`."""
    with torch.inference_mode(False):  # one made in inference could not be written into in training
        return torch.empty(shape, dtype=like.dtype, device=like.device)


def multiply(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """Write a · b, entry by entry, into `out` and return it."""
    return torch.mul(a, b, out=out)


def contiguous(x: Tensor) -> bool:
    """Whether the elements lie in memory in row-major order."""
    return x.is_contiguous()


def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], padding: tuple[int, int], groups: int = 1
) -> Tensor:
    """Correlate x [B, C, H, W] with weight [O, C/groups, kh, kw], plus bias [O]."""
    if x.device.type == "cpu" and not _torch_fused.plainly():
        if groups == 1:
            return _torch_fused.direct_conv2d(x, weight, bias, stride, padding)
        if padding == (0, 0) and len(weight) == groups and weight.shape[1:] == (1, *x.shape[2:]):
            return _torch_fused.depthwise_whole(x, weight, bias)
    return nn.functional.conv2d(x, weight, bias, stride, padding, 1, groups)


def fast_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, tiling: Tiling) -> Tensor:
    """Do the convolution of a tiling by its transforms where these pay; a GPU has convolutions of its own."""
    stride, padding = (tiling.stride,) * 2, (tiling.padding,) * 2
    if x.device.type != "cpu" or _torch_fused.plainly():
        return conv2d(x, weight, bias, stride, padding)
    if tiling.axes is None:
        return _torch_fused.patches_conv2d(x, weight, bias, stride, padding)
    return _torch_fused.conv2d(x, weight, bias, tiling)


def max_pool(x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
    """Return the largest number of every window of x [B, C, H, W]."""
    return nn.functional.max_pool2d(x, kernel, stride, padding)


def sum(x: Tensor, axis: Axes, keepdims: bool = False) -> Tensor:
    """Return the sum over `axis`."""
    return x.sum(axis, keepdim=keepdims)


def norm(x: Tensor, axis: int, keepdims: bool = False) -> Tensor:
    """Return the Euclidean norm over `axis`, the largest entry divided out; in float32 under autocast."""
    if torch.is_autocast_enabled(x.device.type):  # what is computed from lengths then stays in float32
        x = x.float()
    largest = x.detach().abs().amax(axis, keepdim=True)  # constant to the gradient: the norm is homogeneous
    zero = (largest == 0).to(x.dtype)
    x = x / (largest + zero)
    # Not torch.linalg.vector_norm, which takes sixty times longer over an axis that is not the last.
    n = ((x * x).sum(axis, keepdim=True) + zero).sqrt() * largest
    return n if keepdims else n.squeeze(axis)


def max(x: Tensor, axis: int, keepdims: bool = False) -> Tensor:
    """Return the largest over `axis`; equal ones share the gradient."""
    return x.amax(axis, keepdim=keepdims)


def sqrt(x: Tensor) -> Tensor:
    """Return the square root of every element."""
    return x.sqrt()


def exp(x: Tensor) -> Tensor:
    """Return e to the power of every element."""
    return x.exp()


def log(x: Tensor) -> Tensor:
    """Return the natural logarithm of every element."""
    return x.log()


def relu(x: Tensor) -> Tensor:
    """Return max(x, 0) of every element."""
    return x.relu()


def sigmoid(x: Tensor, small: bool = False) -> Tensor:
    """Return 1 / (1 + e^-x) of every element."""
    return x.sigmoid()


def softmax(x: Tensor, axis: int, leaky: bool = False) -> Tensor:
    """Return the softmax over `axis`, with an extra zero logit in the sum when `leaky`."""
    if not leaky:
        return x.softmax(axis)
    largest = x.detach().amax(axis, keepdim=True).relu()
    e = (x - largest).exp()
    return e / (e.sum(axis, keepdim=True) + (-largest).exp())


def argmax_one_hot(x: Tensor) -> Tensor:
    """Return 1 at the first largest entry of the last axis and 0 elsewhere."""
    return nn.functional.one_hot(x.argmax(-1), x.shape[-1]).to(x.dtype)


class CapsNet(nn.Module, model.CapsNet[Tensor]):
    """A capsule network as an `nn.Module`, its state_dict named as the spec's parameters.

    See `capscore.model.CapsNet`. `.to()`, `torch.compile`, `torch.export` and `copy.deepcopy` work on it. Its layers
    are modules, such as `net.get_submodule("stem.0")`, whose forward hooks fire.
    """

    ops = sys.modules[__name__]

    def __init__(
        self, spec: Any, params: Mapping[str, Any] | None = None, seed: int = 0, dtype: str = "float32", **about: Any
    ) -> None:
        nn.Module.__init__(self)
        model.CapsNet.__init__(self, spec, params, seed, dtype, **about)

    def _adopt(self, params: dict[str, Tensor]) -> None:
        _torch_module.grow(self, (*self.spec.rows, *self.spec.decoder_rows))
        _torch_module.fill(self, self.spec.params, params)

    @property
    def params(self) -> dict[str, Tensor]:
        """Name → parameter, in the order of the spec."""
        return {name: _torch_module.leaf(self, name) for name in self.spec.parameters}

    def forward(self, images: Any, couplings: bool = False) -> model.Output[Tensor]:
        """Run the network: see `capscore.model.CapsNet.forward`. `train()` and `eval()` make no difference.

        While `torch.jit.trace` runs it, which refuses None, fields of the output that would be None are absent.
        """
        out = model.CapsNet.forward(self, images, couplings)
        if not tracing():
            return out
        there = {name: part for name, part in out._asdict().items() if part is not None}
        if out.scores is out.lengths:
            del there["scores"]  # one tensor need not be told of twice
        return namedtuple("Output", there)(**there)  # type: ignore[return-value]

    def _images(self, images: Any) -> Tensor:
        x = asarray(images)
        if not tracing():  # sizes would be tensors
            model.check_images(self.spec, x)
            check_range(_in_host_memory(x))
        return asarray(x, self._like)

    @property
    def _like(self) -> Tensor:  # by itself: to gather all parameters takes longer than a small layer
        return _torch_module.leaf(self, next(iter(self.spec.parameters)))

    def _run(self, **about: Any) -> Run:
        return Run(call=self._call, **about)

    def _call(self, name: str, ops: Any, x: Any, run: Run) -> Any:
        return _torch_module.call(self, name, ops, x, run)

    def extra_repr(self) -> str:
        """Return what the layers do not say."""
        return f"input={self.spec.input}, loss={self.spec.loss}"

    def _replace(self, values: dict[str, Tensor]) -> None:
        with torch.no_grad():  # in place: an optimiser keeps hold of the parameters
            for name, p in self.params.items():
                p.copy_(values[name])

    def _reading(self) -> AbstractContextManager[None]:
        # A compiler traces no lock; who compiled the network calls it in turns by himself, or by `predict`.
        return nullcontext() if torch.compiler.is_compiling() else super()._reading()

    @torch.inference_mode()
    def predict(self, images: Any, batch: int = 128) -> NDArray[Any]:
        """Return the class scores [N, J] for images [N, C, H, W] as a NumPy array, without gradients."""
        return model.CapsNet.predict(self, images, batch)


def _in_host_memory(x: Tensor) -> NDArray[Any] | None:
    """Return a tensor in host memory as NumPy's array; None elsewhere, and where PyTorch writes down what is done."""
    if torch.compiler.is_compiling() or x.device.type != "cpu":
        return None
    try:
        return to_host(x)
    except RuntimeError:  # it has no numbers: fake, or one of many that `torch.func.vmap` maps over
        return None


@contextmanager
def device_errors(device: str | None) -> Iterator[None]:
    """Say which device it was that could not be used."""
    try:
        yield
    except (RuntimeError, AssertionError) as error:  # torch has no error of its own for an absent device
        raise BackendError(f"PyTorch cannot use the device {device!r}: {error}") from None


class Learner(model.Learner[Tensor]):
    """Learns by PyTorch's engine and optimisers; see `capscore.model.Learner`.

    Options: `device` moves the network there first, `amp` runs convolutions and matrix products in bfloat16,
    `compile` compiles the loss. Processes that torchrun started train together, each on its share of every batch.
    """

    net: CapsNet

    def __init__(
        self,
        net: CapsNet,
        reconstruction: float = 0.0005,
        optimiser: Optimiser = Adam(),  # noqa: B008 - frozen
        average: float = 0.0,
        device: str | None = None,
        amp: bool = False,
        compile: bool = False,
    ) -> None:
        self.team = _torch_parallel.Team(device)
        with device_errors(device):
            net.to(self.team.device)
        if next(net.parameters()).is_meta:
            raise BackendError("on the device 'meta' nothing is computed")
        self.net, self.reconstruction, self.amp, self.steps = net, reconstruction, amp, 0
        self.writes = self.team.rank == 0
        self.optimiser, self.average = optimiser, model.check_average(average)
        self.engine = _torch_optim.engine(optimiser, list(net.parameters()))
        self.kept = {"average": {name: p.detach().clone() for name, p in net.params.items()}} if average else {}
        objective = _torch_parallel.Objective(net, reconstruction, compile, self.team)
        self.objective = _torch_parallel.share_gradients(objective, self.team, partly=not reconstruction)

    @property
    def frozen(self) -> tuple[str, ...]:
        """Names of the parameters whose `requires_grad` is off; to assign names switches it off for these alone."""
        return tuple(name for name, p in self.learning.items() if not p.requires_grad)

    @frozen.setter
    def frozen(self, names: Sequence[str]) -> None:
        chosen = model.check_names(self.net.spec, names)
        for name, p in self.learning.items():
            p.requires_grad_(name not in chosen)

    @property
    def workers(self) -> dict[str, int]:
        """The processes that train together, and on a CPU the threads of each."""
        on_cpu = next(self.net.parameters()).device.type == "cpu"
        return {"processes": self.team.size} | ({"threads": torch.get_num_threads()} if on_cpu else {})

    def to_device(self, data: Samples, margin: int) -> Samples:
        """Return images to learn from, with `margin` around them, on the network's device."""
        like = next(self.net.parameters())
        if like.device.type == "cpu":
            return data
        return resident(data, margin, images_on(like))

    def step(
        self, images: Any, targets: NDArray[Any], rate: float, parts: Sequence[tuple[Any, Any]] = ()
    ) -> tuple[Tensor, Tensor]:
        """Learn from one batch; return loss and scores [B, J] before the step, unread. `parts`: see `objective`."""
        like = next(self.net.parameters())
        check_range(images)
        images = asarray(images)
        model.check_images(self.net.spec, images, least=1)
        share, factor = self.team.share(len(images))

        def there(a: Any) -> Tensor:
            return _send(a[share], like.device).to(like.dtype)

        (x, t), *apart = ((there(a), there(b)) for a, b in ((images, targets), *parts))
        self.engine.zero_grad()
        try:
            with torch.autocast(like.device.type, torch.bfloat16, enabled=self.amp):
                loss, scores, statistics = self.objective(x, t, apart, self.steps, self.seed)
            if not loss.requires_grad:
                raise model.nothing_learns()
            loss = loss * factor
            loss.backward()
            if idle := {name: p for name, p in self.net.named_parameters() if p.grad is None and p.requires_grad}:
                for name in self.used.keys() & idle:  # they have no part in the loss, and decay all the same
                    idle[name].grad = torch.zeros_like(idle[name])
            loss, scores = self.team.gather(loss.detach(), scores.detach(), len(images))
        except RuntimeError as error:
            if self.team.size == 1 or isinstance(error, TrainingError):
                raise
            raise _torch_parallel.lost_process(error) from error
        if self.optimiser.clip is not None:
            learning = self.learning
            found = {name: p.grad for name, p in learning.items() if p.grad is not None}
            for name, g in self.optimiser.clipped(self.net.ops, found).items():
                learning[name].grad = g
        for group in self.engine.param_groups:
            group["lr"] = rate
        with self.net._turns.changing(), torch.no_grad():
            self.engine.step()
            for name, value in statistics.items():
                _torch_module.leaf(self.net, name).copy_(value)
            newest = model.newest(self.average, self.steps + 1)
            for name, mean in self.kept.get("average", {}).items():
                mean.lerp_(_torch_module.leaf(self.net, name), newest)
        self.steps += 1
        return loss, scores

    @property
    def _counts(self) -> bool:
        """Whether PyTorch's optimiser counts the steps of every parameter: gradient descent needs no count."""
        return not isinstance(self.engine, torch.optim.SGD)

    def state(self) -> dict[str, NDArray[Any]]:
        """Return what a checkpoint must keep beside the parameters, as NumPy arrays by name.

        PyTorch counts the steps of every parameter, and keeps no moments of one that never had a gradient.
        """
        found: dict[str, NDArray[Any]] = {}
        for name, p in self.learning.items():
            kept = self.engine.state.get(p, {})
            for slot in self.optimiser.slots:
                array = kept.get(_torch_optim.SLOTS.get(slot, slot))
                found[f"{slot}.{name}"] = to_numpy(torch.zeros_like(p) if array is None else array)
            if self._counts and (steps := int(kept.get("step", 0))) != self.steps:
                found[f"steps.{name}"] = np.array([steps], np.float64)
        average = self.kept.get("average", {})
        return found | {f"average.{name}": to_numpy(mean) for name, mean in average.items()}

    def restore(self, state: Mapping[str, NDArray[Any]], steps: int) -> None:
        """Go on from the `state` of a learner, of any backend, that had made `steps`."""
        self.steps = steps
        for name, p in self.learning.items():
            (own,) = state.get(f"steps.{name}", [steps])
            self.engine.state[p] = {
                _torch_optim.SLOTS.get(slot, slot): asarray(state[f"{slot}.{name}"], p).clone()
                for slot in self.optimiser.slots
            }
            if self._counts:
                self.engine.state[p]["step"] = torch.tensor(float(own), device=p.device)
        for name, mean in self.kept.get("average", {}).items():
            mean.copy_(asarray(state[f"average.{name}"], mean))


def images_on(like: Tensor) -> Device:
    """Return the place of images that lie beside `like`."""
    return Device(lambda shape: empty(shape, like), lambda x: _send(x, like.device), _floored)


def _floored(x: Tensor) -> tuple[Tensor, Tensor]:
    below = x.floor()
    return below.long(), x - below


def _send(x: Any, device: torch.device) -> Tensor:
    """Return an array on a device; one of the host is sent there without waiting for work that goes on."""
    there = asarray(x)
    check_plain(there)
    if device.type == "cuda" and there.device.type == "cpu":
        there = there.pin_memory()
    return there.to(device, non_blocking=True)


from capscore.backends import _torch_fused, _torch_module, _torch_optim, _torch_parallel  # noqa: E402 - which need this
from capscore.backends._torch_fused import tracing  # noqa: E402
from capscore.backends._torch_module import Module as Module  # noqa: E402

FUSED: Mapping[type, Any] = dict.fromkeys(RULES, _torch_fused.route) | {BatchNorm: _torch_fused.batch_norm}
load = CapsNet.load
