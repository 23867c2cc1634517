"""What a capsule network is, apart from any array library: an input shape, a tuple of layers, a decoder and a loss."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import SpecError, check_whole, short
from .layer import INFERENCE, Capsules, Grid, Iteration, Layer, Map, Param, Row, Run, Shape, Vector, named_couplings
from .layers import Conv, Decoder, DenseCaps, Drawing, PrimaryCaps
from .layers.chain import check_layers, check_size, check_sizes, place, plan_chain, through
from .losses import Loss, MarginLoss
from .ops import A, Ops, scope
from .squash import lengths, presence
from .values import check_kind, check_names, read, sizes, write

Shapes = dict[str, tuple[int, ...]]  # of parameters, by name


def numbered(count: int) -> tuple[str, ...]:
    """Return the names of classes that nobody named."""
    return tuple(map(str, range(count)))


@dataclass(frozen=True, init=False)
class CapsNetSpec:
    """A capsule network. Building one checks it; a spec that exists can be built.

    Parameters
    ----------
    input : (channels, height, width) of an image
    layers : from the image on; the last makes the class capsules, or a vector of scores
    decoder : draws the image from the class capsules; None for none
    loss : of the class scores
    stem, primary, capsules : the three parts of `layers`, each in the place of what `layers` has of its kind
    """

    input: tuple[int, int, int]
    layers: tuple[Layer, ...]
    decoder: Drawing | None
    loss: Loss

    def __init__(
        self,
        input: Iterable[int],
        layers: Iterable[Layer] = (),
        decoder: Drawing | None = Decoder(),  # noqa: B008 - frozen
        loss: Loss = MarginLoss(),  # noqa: B008
        *,
        stem: Iterable[Layer] | None = None,
        primary: Layer | None = None,
        capsules: Iterable[Layer] | None = None,
    ) -> None:
        """Check every layer, and infer all shapes once."""
        size = sizes(input, "input")
        if len(size) != 3:
            raise SpecError(f"input must be (channels, height, width), three sizes, not {short(input)}")
        for name, value in (("input", size), ("layers", layers), ("decoder", decoder), ("loss", loss)):
            object.__setattr__(self, name, value)
        check_layers(self, "layers")
        if stem is not None or primary is not None or capsules is not None:
            self._replace_parts(stem, primary, capsules)
        check_kind(self, "decoder", Drawing, "Decoder()", optional=True)
        check_kind(self, "loss", Loss, "MarginLoss()")
        self._check_rows()

    def _replace_parts(self, stem: Any, primary: Any, capsules: Any) -> None:
        at = next((i for i, layer in enumerate(self.layers) if isinstance(layer, PrimaryCaps)), len(self.layers))
        parts: dict[str, Any] = {
            "stem": self.layers[:at] if stem is None else stem,
            "primary": self.layers[at : at + 1] if primary is None else (primary,),
            "capsules": self.layers[at + 1 :] if capsules is None else capsules,
        }
        for name, value in parts.items():
            if not isinstance(value, list | tuple) or not all(isinstance(layer, Layer) for layer in value):
                raise SpecError(f"{name} must be layers, not {short(value[0] if name == 'primary' else value)}")
        object.__setattr__(self, "layers", (*parts["stem"], *parts["primary"], *parts["capsules"]))

    def _check_rows(self) -> None:
        check_size("input", self.input)
        if not self.layers:
            raise SpecError("layers is empty: a network needs at least one, which makes its classes")
        if isinstance(self.output, Map) or (isinstance(self.output, Grid) and self.output.dims[0] != self.output.types):
            raise SpecError(
                f"the last layer makes {self.output}, not one capsule for each class: end with DenseCaps(classes)"
            )
        if self.decoder is not None and not isinstance(self.output, Grid):
            raise SpecError("a decoder draws from class capsules, and this network ends in none: decoder=None")
        _ = self.parameters  # inferred now: PyTorch's compiler cannot follow what would be inferred later
        if self.loss.class_weights is not None and len(self.loss.class_weights) != self.classes:
            raise SpecError(
                f"loss: {len(self.loss.class_weights)} class weights for {self.classes} classes; give one for each"
            )

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """Every layer in its place.

        Names tell what a layer makes of what: `stem.{i}` features of features, `primary` capsules of features,
        `capsules.{i}` capsules of capsules, `head.{i}` a vector of anything.
        """
        rows: list[Row] = []
        shape: Shape = Map(*self.input)
        counts: dict[str, int] = {}
        for i, layer in enumerate(self.layers):
            kind = _kind(shape, place(layer, shape, f"layers.{i}").output)
            at = counts[kind] = counts.get(kind, -1) + 1
            rows.append(place(layer, shape, kind if kind == "primary" and not at else f"{kind}.{at}"))
            check_sizes(rows[-1])
            shape = rows[-1].output
        return tuple(rows)

    @property
    def own_scores(self) -> bool:
        """Whether the scores are numbers of their own, activations or a vector, and not the lengths of the capsules."""
        return not isinstance(self.output, Grid) or self.output.active

    @cached_property
    def routed(self) -> dict[str, tuple[int, int]]:
        """Every layer that routes, also within other layers, in order: its name, and the N and J of its couplings."""
        found = {row.name: row.layer.pairs(row.input) for top in self.rows for row in top.within}
        return {name: pairs for name, pairs in found.items() if pairs is not None}

    @cached_property
    def decoder_rows(self) -> tuple[Row, ...]:
        """Every layer of the decoder in its place; none without a decoder."""
        if self.decoder is None:
            return ()
        count, dim = self.output.dims
        given = Vector(dim if self.decoder.class_independent else count * dim)
        rows = plan_chain(self.decoder.layers(self.image), given, "decoder")
        drawn: Shape = rows[-1].output if rows else given
        if drawn != self.image:
            raise SpecError(
                f"decoder: its last layer makes {drawn}, not the image {self.image}; end with a layer that makes it, "
                "or give the decoder image=(channels, height, width)"
            )
        if any(size % part for size, part in zip(self.input, self.image, strict=True)):
            raise SpecError(f"decoder: its image {tuple(self.image)} must divide the input {self.input} in every size")
        return rows

    @property
    def image(self) -> Map:
        """Size of what the decoder draws."""
        own = None if self.decoder is None else self.decoder.image
        return Map(*(own or self.input))

    @cached_property
    def params(self) -> dict[str, Param]:
        """Every parameter by name, in the order of the layers."""
        return {name: p for row in (*self.rows, *self.decoder_rows) for name, p in row.parameters.items()}

    @cached_property
    def parameters(self) -> Shapes:
        """Shape of every parameter by name, in the order of the layers."""
        return {name: param.shape for name, param in self.params.items()}

    @property
    def parameter_count(self) -> int:
        """How many numbers the network learns."""
        return sum(row.parameter_count for row in (*self.rows, *self.decoder_rows))

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of one image, reconstruction included."""
        return sum(row.plan.multiply_adds for row in (*self.rows, *self.decoder_rows))

    @property
    def output(self) -> Shape:
        """Shape of what the last layer makes."""
        return self.rows[-1].output

    @property
    def classes(self) -> int:
        """How many classes the network tells apart: the capsules of its last layer, or its scores."""
        return self.output.dims[0]

    @property
    def stem(self) -> tuple[Layer, ...]:
        """The layers that make features of features."""
        return self._part("stem")

    @property
    def primary(self) -> Any:
        """The layer that makes capsules of features; None if none does."""
        return next(iter(self._part("primary")), None)

    @property
    def capsules(self) -> tuple[Any, ...]:
        """The layers that make capsules of capsules."""
        return self._part("capsules")

    def _part(self, kind: str) -> tuple[Any, ...]:
        return tuple(row.layer for row in self.rows if row.name.split(".")[0] == kind)

    def _fields(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def replace(self, **changes: Any) -> CapsNetSpec:
        """Return the same network with other parts; the names are those of the constructor."""
        return CapsNetSpec(**{**self._fields(), **changes})

    def to_json(self) -> str:
        """Return the spec as JSON; `from_json` reads it back."""
        return json.dumps({name: write(value) for name, value in self._fields().items()})

    @classmethod
    def from_json(cls, text: str | bytes) -> CapsNetSpec:
        """Read a spec from untrusted JSON, also of version 0.1. SpecError says what is wrong and where."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise SpecError(f"the spec is not JSON: {error}") from None
        if not isinstance(data, dict):
            raise SpecError(f"spec must be a JSON object, not {short(data)}")
        try:
            if "primary" in data:
                return cls(**_of_version_0_1(data))
            check_names({"input": True, "layers": True, "decoder": False, "loss": False}, data, "spec")
            return cls(**{name: read(value, name) for name, value in data.items()})
        except RecursionError:
            raise SpecError("the spec holds lists within lists beyond all need") from None


def _kind(x: Shape, y: Shape) -> str:
    if isinstance(y, Vector):
        return "head"
    if isinstance(y, Map):
        return "stem"
    return "capsules" if isinstance(x, Grid) else "primary"


def _of_version_0_1(data: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that the JSON of version 0.1 means: its parts name no class."""
    kinds: dict[str, Any] = {"stem": Conv, "primary": PrimaryCaps, "capsules": DenseCaps, "decoder": Decoder}
    known = {"input": True, "primary": True, "capsules": True, "stem": False, "decoder": False}
    check_names(known, data, "spec")
    for name in {"stem", "capsules"} & set(data):
        if not isinstance(data[name], list):
            raise SpecError(f"{name} must be a JSON list, not {short(data[name])}")
    return {name: read(value, name, kinds.get(name)) for name, value in data.items()}


def init_params(spec: CapsNetSpec, seed: int = 0) -> dict[str, NDArray[np.float64]]:
    """Return the first numbers of every parameter by name, float64: the same bits for every backend."""
    check_whole("seed", seed, 0)
    rng = np.random.default_rng(seed)
    return {name: param.init.draw(rng, param.shape) for name, param in spec.params.items()}


def forward(ops: Ops[A], spec: CapsNetSpec, params: Mapping[str, A], x: Any, run: Run = INFERENCE) -> Capsules[A] | A:
    """Run the network from images [B, C, H, W] in [0, 1] to what its last layer makes (figure 1).

    That is class capsules [B, J, D], or scores [B, J] of a network that ends in a vector.
    """
    return through(ops, spec.rows, params, x, run)  # type: ignore[no-any-return]


def followed(
    ops: Ops[A], spec: CapsNetSpec, params: Mapping[str, A], x: Any
) -> tuple[Capsules[A] | A, dict[str, tuple[A, tuple[int, ...]]]]:
    """Run the network as `forward` does, and follow its routings.

    Returns the output, and arrays [B, ...] with their shapes without the batch, by the names that exports give them.
    Of every layer `capsules.{i}` that routes: `inputs.{i}` [B, N], how present each capsule is that comes in;
    `couplings.{i}.{r}` [B, N, J] of iteration r, where they are not all equal; `lengths.{i}.{r}` [B, J], how long the
    capsules are after it, unless their activations say how present they are. A layer that routes in windows, or within
    another, tells its couplings alone: see `capscore.layer.named_couplings`.
    """
    told: dict[str, tuple[A, tuple[int, ...]]] = {}
    for row in spec.rows:
        trace: list[Iteration[A]] = []
        given = x
        x = through(ops, (row,), params, x, Run(trace=trace))
        sizes = row.input.dims[:1], row.output.dims[:1]
        for name, (layer, c, v, pairs) in named_couplings(trace):
            if not isinstance(c, float):
                told[name] = ops.transpose(c, (1, 2, 0)), pairs
            if layer != row.name or pairs != sizes[0] + sizes[1]:
                continue
            at, _, iteration = name.removeprefix("couplings.").rpartition(".")
            with scope(ops, f"{row.name}/steps"):
                if iteration == "0":
                    told[f"inputs.{at}"] = presence(ops, given), sizes[0]
                if isinstance(row.output, Grid) and not row.output.active:
                    told[f"lengths.{at}.{iteration}"] = lengths(ops, ops.transpose(v, (1, 0, 2))), sizes[1]
    return x, told


def primary_capsules(ops: Ops[A], spec: CapsNetSpec, params: Mapping[str, A], x: A) -> A:
    """Turn images [B, C, H, W] into the capsules u [B, N, K] that the first capsule layer sees."""
    first = next(i for i, row in enumerate(spec.rows) if isinstance(row.output, Grid))
    return through(ops, spec.rows[: first + 1], params, x, INFERENCE).pose  # type: ignore[no-any-return]


def scores(ops: Ops[A], output: Capsules[A] | A) -> A:
    """Return the class scores [B, J] of what `forward` returned: activations, else lengths, else the vector itself."""
    return presence(ops, output) if isinstance(output, Capsules) else output


def reconstruct(
    ops: Ops[A], spec: CapsNetSpec, params: Mapping[str, A], capsules: A, mask: A, run: Run = INFERENCE
) -> A:
    """Draw images [B, C, H, W] from capsules [B, J, D] of which `mask` [B, J] keeps some (figure 2)."""
    drawn: A = through(ops, spec.decoder_rows, params, masked(ops, spec, capsules, mask), run)
    return drawn


def masked(ops: Ops[A], spec: CapsNetSpec, capsules: A, mask: A) -> A:
    """Return what the decoder draws from, [B, J·D]: capsules [B, J, D] of which `mask` [B, J] keeps some.

    A class-independent decoder draws from their sum, [B, D].
    """
    count, dim = spec.output.dims
    with scope(ops, "decoder"):
        x = capsules * ops.reshape(mask, (-1, count, 1))
        if spec.decoder is not None and spec.decoder.class_independent:
            return ops.sum(x, 1)
        return ops.reshape(x, (-1, count * dim))


def to_be_drawn(ops: Ops[A], spec: CapsNetSpec, images: A) -> A:
    """Return what the decoder is to draw of images [B, C, H, W]: the images, averaged to the size of its own."""
    if tuple(spec.image) == spec.input:
        return images
    c, h, w = spec.image
    (fc, fh, fw) = (size // part for size, part in zip(spec.input, spec.image, strict=True))
    x = ops.reshape(images, (-1, c, fc, h, fh, w, fw))
    return ops.sum(x, (2, 4, 6)) / (fc * fh * fw)
