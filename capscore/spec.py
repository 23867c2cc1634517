"""What a capsule network is, apart from any array library: sizes in, shapes, parameters and costs out."""

from __future__ import annotations

import json
import math
from dataclasses import MISSING, dataclass, fields
from functools import cached_property
from typing import Any, TypeVar

from .errors import SpecError, short
from .routing import DynamicRouting, Routing

__all__ = ["PRESETS", "CapsNetSpec", "Conv", "Decoder", "DenseCaps", "DynamicRouting", "Layer", "PrimaryCaps"]

Shapes = dict[str, tuple[int, ...]]  # of parameters, by name

# A spec may come from a stranger's file: no layer may ask for more than this, whatever its sizes say.
MAX_SIZE = 1_000_000
MAX_LAYERS = 1000
MAX_VALUES = 2**30  # numbers in one layer's output for one image, or in one parameter


def _check_sizes(layer: Any, *names: str, least: int = 1) -> None:
    for name in names:
        size = getattr(layer, name)
        if type(size) is not int or not least <= size <= MAX_SIZE:
            what = f"{type(layer).__name__}: {name}"
            raise SpecError(f"{what} must be a whole number from {least} to {MAX_SIZE:,}, not {short(size)}")


def _sizes(value: Any, what: str) -> tuple[Any, ...]:
    if isinstance(value, list | tuple) and len(value) > MAX_LAYERS:
        raise SpecError(f"{what} has {len(value):,} sizes; at most {MAX_LAYERS} are allowed")
    if not isinstance(value, list | tuple) or not all(type(v) is int and 1 <= v <= MAX_SIZE for v in value):
        raise SpecError(f"{what} must be whole numbers from 1 to {MAX_SIZE:,}, not {short(value)}")
    return tuple(value)


@dataclass(frozen=True)
class Conv:
    """A square convolution with bias, followed by ReLU unless `activation` is "none"."""

    channels: int
    kernel: int
    stride: int = 1
    padding: int = 0
    activation: str = "relu"

    def __post_init__(self) -> None:
        """Check every setting."""
        _check_sizes(self, "channels", "kernel", "stride")
        _check_sizes(self, "padding", least=0)
        if self.activation not in ("relu", "none"):
            raise SpecError(f'Conv: activation must be "relu" or "none", not {short(self.activation)}')


@dataclass(frozen=True)
class PrimaryCaps:
    """A convolution whose types·dim channels form capsules of `dim` numbers at every position, squashed."""

    types: int
    dim: int
    kernel: int
    stride: int = 1
    padding: int = 0

    def __post_init__(self) -> None:
        """Check every setting."""
        _check_sizes(self, "types", "dim", "kernel", "stride")
        _check_sizes(self, "padding", least=0)


@dataclass(frozen=True)
class DenseCaps:
    """`count` capsules of `dim` numbers, each seeing every capsule below through a matrix and the routing."""

    count: int
    dim: int = 16
    routing: Routing = DynamicRouting()  # noqa: RUF009 - frozen, one for all is fine
    bias: bool = True

    def __post_init__(self) -> None:
        """Check every setting."""
        _check_sizes(self, "count", "dim")
        if not isinstance(self.routing, Routing):
            raise SpecError(f"DenseCaps: routing must be a Routing such as DynamicRouting(), not {short(self.routing)}")
        if type(self.bias) is not bool:
            raise SpecError(f"DenseCaps: bias must be true or false, not {short(self.bias)}")


@dataclass(frozen=True)
class Decoder:
    """Fully connected layers, ReLU each, that draw the image from the class capsules; sigmoid on the pixels."""

    hidden: tuple[int, ...] = (512, 1024)

    def __post_init__(self) -> None:
        """Check every size; any sequence is taken as a tuple."""
        object.__setattr__(self, "hidden", _sizes(self.hidden, "Decoder: hidden"))


@dataclass(frozen=True)
class Layer:
    """One row of a network's table: what it puts out for one image and what it costs."""

    name: str
    kind: str
    output: tuple[int, ...]
    parameters: Shapes
    multiply_adds: int

    @property
    def parameter_count(self) -> int:
        """How many numbers the layer learns."""
        return sum(math.prod(shape) for shape in self.parameters.values())


@dataclass(frozen=True)
class CapsNetSpec:
    """A capsule network: convolutions, primary capsules, capsule layers and an optional decoder.

    Building one checks it; a spec that exists can be built. Images are (channels, height, width).
    """

    input: tuple[int, int, int]
    primary: PrimaryCaps
    capsules: tuple[DenseCaps, ...]
    stem: tuple[Conv, ...] = ()
    decoder: Decoder | None = Decoder()

    def __post_init__(self) -> None:
        """Take sequences as tuples, check every layer, and infer all shapes once."""
        size = _sizes(self.input, "input")
        if len(size) != 3:
            raise SpecError(f"input must be (channels, height, width), three sizes, not {short(self.input)}")
        object.__setattr__(self, "input", size)
        for name, kind in (("stem", Conv), ("capsules", DenseCaps)):
            layers = getattr(self, name)
            if not isinstance(layers, list | tuple) or not all(isinstance(layer, kind) for layer in layers):
                raise SpecError(f"{name} must be a tuple of {kind.__name__} layers, not {short(layers)}")
            object.__setattr__(self, name, tuple(layers))
        if not isinstance(self.primary, PrimaryCaps):
            raise SpecError(f"primary must be a PrimaryCaps layer, not {short(self.primary)}")
        if not self.capsules:
            raise SpecError("capsules is empty: a network needs at least one DenseCaps layer, its classes")
        if not isinstance(self.decoder, Decoder | None):
            raise SpecError(f"decoder must be a Decoder or None, not {short(self.decoder)}")
        sizes: list[tuple[str, tuple[int, ...]]] = [("input", self.input)]
        for layer in self.layers:
            sizes += [(f"{layer.name}: output", layer.output), *layer.parameters.items()]
        for what, shape in sizes:
            if math.prod(shape) > MAX_VALUES:
                raise SpecError(
                    f"{what} of shape {shape} holds {math.prod(shape):,} numbers, more than the {MAX_VALUES:,} "
                    f"allowed; a smaller input, fewer channels or capsules, or a larger stride would fit"
                )

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """Every layer with its output shape for one image, its parameters and its multiply-adds."""
        rows: list[Layer] = []
        shape = self.input
        for i, conv in enumerate(self.stem):
            rows.append(_convolution(f"stem.{i}", "Conv", conv, conv.channels, shape))
            shape = rows[-1].output[0], rows[-1].output[1], rows[-1].output[2]
        p = self.primary
        row = _convolution("primary", "PrimaryCaps", p, p.types * p.dim, shape)
        n, k = p.types * row.output[1] * row.output[2], p.dim
        rows.append(Layer(row.name, row.kind, (n, k), row.parameters, row.multiply_adds))
        for i, caps in enumerate(self.capsules):
            weights: Shapes = {f"capsules.{i}.weight": (n, caps.count, caps.dim, k)}
            if caps.bias:
                weights[f"capsules.{i}.bias"] = (caps.count, caps.dim)
            cost = caps.routing.multiply_adds(n, k, caps.count, caps.dim)
            rows.append(Layer(f"capsules.{i}", "DenseCaps", (caps.count, caps.dim), weights, cost))
            n, k = caps.count, caps.dim
        fan_in = n * k
        sizes = self.decoder_sizes
        for i, size in enumerate(sizes):
            output = (size,) if i + 1 < len(sizes) else self.input
            weights = {f"decoder.{i}.weight": (size, fan_in), f"decoder.{i}.bias": (size,)}
            rows.append(Layer(f"decoder.{i}", "Linear", output, weights, size * fan_in))
            fan_in = size
        return tuple(rows)

    @cached_property
    def parameters(self) -> Shapes:
        """Name and shape of every parameter, in the order of the layers."""
        return {name: shape for layer in self.layers for name, shape in layer.parameters.items()}

    @property
    def parameter_count(self) -> int:
        """How many numbers the network learns."""
        return sum(layer.parameter_count for layer in self.layers)

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of one image, reconstruction included."""
        return sum(layer.multiply_adds for layer in self.layers)

    @property
    def classes(self) -> int:
        """How many classes the network tells apart: the capsules of its last layer."""
        return self.capsules[-1].count

    @property
    def decoder_sizes(self) -> tuple[int, ...]:
        """Output size of every decoder layer, the pixels last; empty without a decoder."""
        return () if self.decoder is None else (*self.decoder.hidden, math.prod(self.input))

    @property
    def stem_maps(self) -> tuple[tuple[int, int, int], ...]:
        """Channels, height and width of the map that each convolution of the stem makes."""
        outputs = [layer.output for layer in self.layers[: len(self.stem)]]
        return tuple((channels, height, width) for channels, height, width in outputs)

    @property
    def primary_map(self) -> tuple[int, int]:
        """Height and width of the primary capsules' map."""
        shape = self.stem_maps[-1] if self.stem else self.input
        p = self.primary
        return _out(shape[1], p.kernel, p.stride, p.padding), _out(shape[2], p.kernel, p.stride, p.padding)

    def votes_shape(self, i: int) -> tuple[int, int, int, int]:
        """Shape of capsule layer i's weight: input capsules, output capsules, output dim, input dim."""
        n_in, n_out, d_out, d_in = self.parameters[f"capsules.{i}.weight"]
        return n_in, n_out, d_out, d_in

    def to_json(self) -> str:
        """Return the spec as JSON; `from_json` reads it back."""
        return json.dumps(_encode(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> CapsNetSpec:
        """Read a spec from untrusted JSON. SpecError says what is wrong and where."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise SpecError(f"the spec is not JSON: {error}") from None
        values = _object(cls, data, "spec")
        if "stem" in values:
            values["stem"] = [_build(Conv, v, f"stem.{i}") for i, v in enumerate(_list(values["stem"], "stem"))]
        values["primary"] = _build(PrimaryCaps, values["primary"], "primary")
        layers = _list(values["capsules"], "capsules")
        values["capsules"] = [_build(DenseCaps, v, f"capsules.{i}") for i, v in enumerate(layers)]
        if values.get("decoder") is not None:
            values["decoder"] = _build(Decoder, values["decoder"], "decoder")
        return cls(**values)


T = TypeVar("T")


def _encode(value: Any) -> Any:
    """Turn dataclasses into JSON objects; a routing also tells its class."""
    if isinstance(value, tuple):
        return [_encode(item) for item in value]
    if hasattr(value, "__dataclass_fields__"):
        kind = {"type": type(value).__name__} if isinstance(value, Routing) else {}
        return kind | {field.name: _encode(getattr(value, field.name)) for field in fields(value)}
    return value


def _build(cls: type[T], value: Any, where: str) -> T:
    """Make a layer of the JSON object `value`, its routing included."""
    values = _object(cls, value, where)
    if "routing" in values:
        settings = dict(_object(None, values["routing"], f"{where}.routing"))
        kind = settings.pop("type", None)
        if not isinstance(kind, str) or kind not in Routing.known:
            raise SpecError(f"{where}.routing: type {short(kind)} is unknown; there are {', '.join(Routing.known)}")
        values["routing"] = _build(Routing.known[kind], settings, f"{where}.routing")
    try:
        return cls(**values)
    except SpecError as error:
        raise SpecError(f"{where}: {error}") from None


def _object(cls: type | None, value: Any, where: str) -> dict[str, Any]:
    """Check that `value` is a JSON object which has the fields of `cls` and no others."""
    if not isinstance(value, dict):
        raise SpecError(f"{where} must be a JSON object, not {short(value)}")
    if cls is not None:
        known = {f.name: f.default is MISSING and f.default_factory is MISSING for f in fields(cls)}
        if unknown := [short(name) for name in value if name not in known]:
            raise SpecError(f"{where} has no field {', '.join(unknown[:3])}; its fields are {', '.join(known)}")
        if missing := [name for name, needed in known.items() if needed and name not in value]:
            raise SpecError(f"{where} lacks {', '.join(missing)}")
    return dict(value)


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise SpecError(f"{where} must be a JSON list, not {short(value)}")
    if len(value) > MAX_LAYERS:
        raise SpecError(f"{where} has {len(value):,} layers; at most {MAX_LAYERS} are allowed")
    return value


def _out(size: int, kernel: int, stride: int, padding: int) -> int:
    return (size + 2 * padding - kernel) // stride + 1


def _convolution(name: str, kind: str, conv: Conv | PrimaryCaps, channels: int, shape: tuple[int, ...]) -> Layer:
    """Return the row of a convolution over a map of `shape`, or say why none fits."""
    c, h, w = shape
    k, pad = conv.kernel, conv.padding
    if k > min(h, w) + 2 * pad:
        fit = min(h, w) + 2 * pad
        more = -(-(k - min(h, w)) // 2)
        raise SpecError(
            f"{name}: kernel {k} is larger than its {h}×{w} input map with padding {pad}; "
            f"a kernel of at most {fit} or a padding of at least {more} would fit"
        )
    height, width = _out(h, k, conv.stride, pad), _out(w, k, conv.stride, pad)
    weights: Shapes = {f"{name}.weight": (channels, c, k, k), f"{name}.bias": (channels,)}
    return Layer(name, kind, (channels, height, width), weights, channels * c * k * k * height * width)


def _paper(size: tuple[int, int, int], classes: int = 10, types: int = 32, leaky: bool = False) -> CapsNetSpec:
    """Return the network of figures 1 and 2 for images of another size or number of classes."""
    return CapsNetSpec(
        input=size,
        stem=(Conv(256, kernel=9),),
        primary=PrimaryCaps(types, dim=8, kernel=9, stride=2),
        capsules=(DenseCaps(classes, dim=16, routing=DynamicRouting(3, leaky)),),
        decoder=Decoder((512, 1024)),
    )


PRESETS: dict[str, CapsNetSpec] = {
    "mnist": _paper((1, 28, 28)),  # section 4: 8,215,728 parameters
    "multimnist": _paper((1, 36, 36)),  # section 6: two digits on 36×36, 11.36 million parameters
    "cifar10": _paper((3, 24, 24), types=64, leaky=True),  # section 7: patches, "none of the above" category
    "smallnorb": _paper((2, 32, 32), classes=5),  # section 7: stereo pairs
    "svhn": CapsNetSpec(  # section 7
        input=(3, 32, 32),
        stem=(Conv(64, kernel=9),),
        primary=PrimaryCaps(types=16, dim=6, kernel=9, stride=2),
        capsules=(DenseCaps(10, dim=8),),
    ),
    "small": CapsNetSpec(  # ours: trains in a minute on two cores
        input=(1, 28, 28),
        stem=(Conv(32, kernel=5, stride=2),),
        primary=PrimaryCaps(types=8, dim=8, kernel=5, stride=2),
        capsules=(DenseCaps(10, dim=16),),
        decoder=Decoder((128, 256)),
    ),
}
