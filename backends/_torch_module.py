"""Layers as modules of PyTorch: one for each, which `CapsNet` and `Module` are made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import capscore.backends.torch as torch_ops  # which imports this module last
from capscore.backends._torch_fused import tracing
from capscore.errors import ShapeError, SpecError, short
from capscore.layer import Capsules, Grid, Layer, Map, Param, Plan, Row, Run, Shape, Vector
from capscore.layers.chain import place, plan_chain, plan_of, through
from capscore.values import sizes


class LayerModule(nn.Module):
    """A layer in its place: its parameters by name, and a forward pass that hooks hear of.

    Maps are tensors [B, C, H, W], vectors [B, size], capsules [B, N, D]. Capsules that have activations are `Capsules`
    of two tensors, [B, N, D] and [B, N].
    """

    def __init__(self, row: Row) -> None:
        super().__init__()
        self.row = row
        grow(self, row.layer.rows(row.input))

    @property
    def input(self) -> Shape:
        """Shape of what the layer takes."""
        return self.row.input

    @property
    def output(self) -> Shape:
        """Shape of what the layer makes."""
        return self.row.output

    def forward(self, x: Any, ops: Any = None, run: Run | None = None, parents: Tensor | None = None) -> Any:
        """Compute the layer's output of `x`. A network that runs its layers says how, by `ops` and `run`.

        Without them the module is on its own: `train()` and `eval()` decide, as for any other of PyTorch. `parents`
        are capsules that it made before, for its routing to go on from.
        """
        row = self.row
        if run is None:
            if not tracing():  # sizes would be tensors
                _check_input(self._get_name(), row.input, x, next(self.parameters(), None))
            here = Run(self.training, statistics={}, thin=_thin, call=self._call_alone, parents=parents)
            here = here.inside(row.name, row.input, row.output)
        else:
            here = run._replace(call=self._call)
        own = {name: leaf(self, name) for name in row.plan.params}
        y = row.layer(ops or torch_ops, own, _value(x, row.input), here)
        if run is None:
            self._renew(here.statistics or {})
        return _plain(y)

    def _call(self, name: str, ops: Any, x: Any, run: Run) -> Any:
        return call(self, name, ops, x, run)

    def _call_alone(self, name: str, ops: Any, x: Any, run: Run) -> Any:
        return _value(self.get_submodule(name)(_plain(x), parents=run.parents), run.output)

    def _renew(self, statistics: Mapping[str, Tensor]) -> None:
        for name, value in statistics.items():
            leaf(self, name.removeprefix(f"{self.row.name}.")).copy_(value.detach())

    def _get_name(self) -> str:
        return self.row.kind

    def extra_repr(self) -> str:
        """Return the settings that are not the usual ones; layers within this one are printed as modules."""
        shown = self.row.layer.chosen().items()
        return ", ".join(f"{name}={value!r}" for name, value in shown if not _are_layers(value))


class Module(LayerModule):
    """A layer, or layers one after another, as an `nn.Module`: capsules as a part of a network of your own.

    Parameters are named as PyTorch's are: `weight`, `bias` of one layer; `0.weight`, `0.bias`, `1.weight` of a tuple,
    whose modules are `module[0]`, `module[1]`. Batch normalisation uses the batch and updates its running statistics,
    and dropout draws from PyTorch's generator, in training alone.

    It takes a tensor [B, C, H, W] for a `Map`, [B, size] for a `Vector`, [B, N, D] for a `Grid`, and gives such a
    tensor. Only capsules with activations are `Capsules` of two tensors, [B, N, D] and [B, N], taken or given.

    Parameters
    ----------
    layers : a layer or a tuple of layers
    input : shape of what the first takes: `Map(channels, height, width)`, `Grid(types, height, width, dim)` or
        `Vector(size)`
    seed : of the first numbers, the same as on every backend; None: drawn from PyTorch's generator (`manual_seed`)
    dtype, device : of the parameters; None: PyTorch's defaults. EM and self-routing keep capsules of zeros finite by
        numbers that bfloat16 has and float16 has not

    Raises
    ------
    SpecError: the layers do not fit the input or one another.
    ShapeError, from the forward pass: a tensor of another shape or dtype.
    """

    def __init__(
        self,
        layers: Layer | Sequence[Layer],
        input: Shape,
        *,
        seed: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        layer: Any = layers if isinstance(layers, Layer) else _Chain(layers)
        super().__init__(place(layer, _checked_shape(input), "Module"))
        if seed is None:
            seed = int(torch.randint(2**62, (), device="cpu"))
        rng = np.random.default_rng(seed)
        dtype = dtype or torch.get_default_dtype()
        params = self.row.plan.params
        drawn = {name: param.init.draw(rng, param.shape) for name, param in params.items()}
        fill(self, params, {name: torch.tensor(array, dtype=dtype, device=device) for name, array in drawn.items()})

    def __getitem__(self, i: int) -> LayerModule:
        """Return the module of a tuple's layer."""
        return list(self.children())[i]  # type: ignore[return-value]

    def _get_name(self) -> str:
        return type(self).__name__ if isinstance(self.row.layer, _Chain) else super()._get_name()


class _Chain:
    """A tuple of layers, asked for what a layer is asked for."""

    def __init__(self, layers: Any) -> None:
        if not (isinstance(layers, list | tuple) and layers and _are_layers(layers)):
            raise SpecError(
                f"Module: layers must be a layer such as DenseCaps(10), or a tuple of some, not {short(layers)}"
            )
        self.layers = tuple(layers)

    def rows(self, x: Shape) -> tuple[Row, ...]:
        rows = plan_chain(self.layers, x, "layers")
        return tuple(row._replace(name=str(i)) for i, row in enumerate(rows))

    def plan(self, x: Shape) -> Plan:
        rows = self.rows(x)
        return plan_of(rows, rows[-1].output)

    def __call__(self, ops: Any, p: Mapping[str, Tensor], x: Any, run: Run) -> Any:
        return through(ops, self.rows(run.input), p, x, run)

    def chosen(self) -> dict[str, Any]:
        return {}


class _Parameters(nn.Module):
    """Parameters whose names have a part in common, such as those of a routing."""

    def extra_repr(self) -> str:
        arrays = self.state_dict()
        return ", ".join(f"{name}={list(array.shape)}" for name, array in arrays.items())

    def _get_name(self) -> str:
        return "Parameters"


def grow(holder: nn.Module, rows: Iterable[Row]) -> None:
    """Put a module for every row below `holder`, under its name."""
    for row in rows:
        *path, last = row.name.split(".")
        _at(holder, path, nn.Sequential).add_module(last, LayerModule(row))


def fill(holder: nn.Module, params: Mapping[str, Param], arrays: Mapping[str, Tensor]) -> None:
    """Put every array below `holder`, under its name: a parameter if it learns, else a buffer."""
    for name, array in arrays.items():
        *path, last = name.split(".")
        owner = _at(holder, path, _Parameters)
        if params[name].learns:
            owner.register_parameter(last, nn.Parameter(array))
        else:
            owner.register_buffer(last, array)


def _at(holder: nn.Module, path: Iterable[str], kind: type[nn.Module]) -> nn.Module:
    for part in path:
        if part not in holder._modules:
            holder.add_module(part, kind())
        holder = holder.get_submodule(part)
    return holder


def leaf(holder: nn.Module, name: str) -> Tensor:
    """Return the tensor that stands under a name: pruning and parametrisation put others in the place of parameters."""
    found: Any = holder
    for part in name.split("."):
        found = getattr(found, part)
    return found  # type: ignore[no-any-return]


def call(holder: nn.Module, name: str, ops: Any, x: Any, run: Run) -> Any:
    """Run the layer whose module stands under a name, as a part of a network: `Run.call`."""
    return _value(holder.get_submodule(name)(_plain(x), ops=ops, run=run), run.output)


def _plain(x: Any) -> Any:
    return x.pose if isinstance(x, Capsules) and x.activation is None else x


def _value(x: Any, shape: Shape) -> Any:
    if not isinstance(shape, Grid):
        return x
    return Capsules(*x) if isinstance(x, tuple) else Capsules(x)  # PyTorch's traces make plain tuples of named ones


def _are_layers(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, Layer) for item in value)


def _thin(x: Tensor, rate: float, dims: tuple[int, ...]) -> Tensor:
    return x * nn.functional.dropout(x.new_ones((x.shape[0], *dims)), rate)


def _checked_shape(input: Any) -> Shape:
    if not isinstance(input, Map | Grid | Vector):
        raise SpecError(
            "Module: input must be Map(channels, height, width), Grid(types, height, width, dim) or Vector(size), "
            f"not {short(input)}"
        )
    numbers = input[:4] if isinstance(input, Grid) else input
    sizes(tuple(numbers), f"Module: the sizes of input {type(input).__name__}")
    return input


def _check_input(kind: str, shape: Shape, x: Any, parameter: Tensor | None) -> None:
    """Raise ShapeError unless `x` is what a layer of the kind takes, of the parameters' dtype."""
    active = isinstance(shape, Grid) and shape.active
    tensors: tuple[Any, ...] = x if isinstance(x, Capsules) else (x, None)
    if not isinstance(shape, Grid) and isinstance(x, Capsules):
        raise ShapeError(f"{kind} takes a tensor {_wanted(shape)}, not Capsules: x.pose is their tensor")
    if active != (tensors[1] is not None):
        cure = "Capsules(pose [B, N, D], activation [B, N])" if active else "x.pose alone"
        raise ShapeError(f"{kind} takes capsules {'with' if active else 'without'} activations: give {cure}")
    for tensor, dims in zip(tensors, (shape.dims, shape.dims[:1]), strict=True):
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor):
            raise ShapeError(f"{kind} takes a tensor, not {type(tensor).__name__}: torch.as_tensor(x) makes one")
        if tensor.dim() != len(dims) + 1 or tensor.shape[1:] != dims:
            raise ShapeError(
                f"{kind}: the input has shape {list(tensor.shape)}; wanted {_wanted(shape, dims)}"
                + _cure(shape, tuple(tensor.shape))
            )
        if not tensor.is_floating_point():
            raise ShapeError(f"{kind}: the input has dtype {tensor.dtype}; wanted floats: x.float() makes them")
        own = tensor.dtype if parameter is None else parameter.dtype
        if tensor.dtype != own and not torch.is_autocast_enabled(tensor.device.type):
            raise ShapeError(
                f"{kind}: the input has dtype {tensor.dtype}, the parameters {own}; x.to({own}) or "
                f"module.to({tensor.dtype}) makes both alike"
            )


def _wanted(shape: Shape, dims: tuple[int, ...] | None = None) -> str:
    return f"[batch, {', '.join(map(str, dims or shape.dims))}] for {shape}"


def _cure(wanted: Shape, found: tuple[int, ...]) -> str:
    dims = wanted.dims
    if found == dims:
        return "; x[None] makes a batch of one"
    if isinstance(wanted, Map) and found[1:] == (*dims[1:], dims[0]):
        return "; x.permute(0, 3, 1, 2) puts the channels first"
    if isinstance(wanted, Vector) and len(found) > 2 and int(np.prod(found[1:])) == dims[0]:
        return "; x.flatten(1) makes it a vector"
    if isinstance(wanted, Grid) and len(found) == 4:
        return f"; a map becomes capsules by PrimaryCaps: begin the layers with it, and input=Map{found[1:]}"
    if len(found) == len(dims) + 1 and len(found) > 1:
        fit = {Map: f"Map{found[1:]}", Vector: f"Vector({found[-1]})", Grid: f"Grid({found[1]}, 1, 1, {found[-1]})"}
        return f"; input={fit[type(wanted)]} takes this one"
    return ""
