"""Heads of github.com/glassroom/heinsen_routing_2022_paper: hidden states of a transformer, at all depths, to classes.

Their input is [positions, depths, d]. Here it is a map of depths·d channels, depth by depth, one row of positions: the
capsules of a depth are a type. All inputs of the first routing share its weights, so that their order does not matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count

from capscore.errors import ModelFileError
from capscore.layer import Layer
from capscore.layers import AsCaps, AsMap, CapsNorm, Conv, DenseCaps, GlobalPool
from capscore.losses import CrossEntropy
from capscore.net import CapsNetSpec
from capscore.routing import VectorRouting

from .family import Family, Found, Hints
from .layouts import Array

POSITIONS = 197  # of the authors' transformer for images: 14×14 patches and one token

NOTE = f"the weights fit any number of positions; {POSITIONS} are those of BEiT, and --input says others"
NAMES = {  # theirs to ours, and the order of axes where that differs
    "W_A": ("routing.present.weight", None),
    "B_A": ("routing.present.bias", None),
    "W_F1": ("scale", None),
    "W_G1": ("routing.predict.weight", (1, 0)),
    "W_G2": ("routing.predict.scale", None),
    "B_G2": ("routing.predict.bias", None),
    "W_S": ("routing.score.scale", None),
    "B_S": ("routing.score.bias", None),
}
PRICES = {"beta_use": "use", "beta_ign": "ignore"}
FIRST = {f"compute_{name}.{what}" for name in PRICES for what in ("weight", "bias")}


def recognise(tensors: Mapping[str, Array], hints: Hints) -> Found | None:
    """Return the head: a norm with a scale and shift for each depth, and routings to classes of one number."""
    common = {*NAMES, "W_F2", "B_F2", "CONST_ones_over_n_out"}
    needed, routings = {"W", "B"}, next(i for i in count() if f"route.{i}.W_A" not in tensors)
    for i in range(routings):
        needed |= {f"route.{i}.{name}" for name in common | (set(PRICES) if i else FIRST)}
    if not routings or needed != tensors.keys() or tensors[f"route.{routings - 1}.W_F2"].shape[1] != 1:
        return None
    depths, d = tensors["W"].shape
    size = hints.input or (depths * d, 1, POSITIONS)
    if size[0] != depths * d:
        raise ModelFileError(f"images of {size} have {size[0]:,} channels; the weights are for {depths}·{d} of them")
    iterations = 2 if hints.iterations is None else hints.iterations
    affine = Conv(depths * d, 1, activation="none", groups=depths * d)  # of every number by itself
    grid = AsCaps(depths, d, squash="none")
    front: list[Layer] = [grid, CapsNorm(affine=False), AsMap(), affine, grid]
    routed: list[Layer] = []
    for i in range(routings):
        outputs, (_, dim) = len(tensors[f"route.{i}.W_F1"]), tensors[f"route.{i}.W_F2"].shape
        routing = VectorRouting(iterations, shared=i == 0)
        routed.append(DenseCaps(outputs, dim, routing, bias=False, shared="factors", vote_bias=True))
    layers = (*front, *routed, AsMap(), GlobalPool())
    spec = CapsNetSpec(size, layers, None, CrossEntropy())
    names = {id(row.layer): row.name for row in spec.rows}
    params: dict[str, Array] = {
        f"{names[id(affine)]}.weight": tensors["W"].reshape(-1, 1, 1, 1),
        f"{names[id(affine)]}.bias": tensors["B"].reshape(-1),
    }
    for i, layer in enumerate(routed):
        for name, array in _routing(tensors, f"route.{i}.", first=not i).items():
            params[f"{names[id(layer)]}.{name}"] = array
    if iterations == 1:  # which predicts nothing
        params = {name: params[name] for name in spec.parameters}
    return Found(spec, params, () if hints.input else (NOTE,))


def _routing(tensors: Mapping[str, Array], prefix: str, first: bool) -> dict[str, Array]:
    found = {"weight": tensors[f"{prefix}W_F2"].T[None, None], "vote_bias": tensors[f"{prefix}B_F2"][None]}
    for theirs, (ours, axes) in NAMES.items():
        found[ours] = tensors[prefix + theirs].transpose(axes) if axes else tensors[prefix + theirs]
    for theirs, ours in PRICES.items():
        if first:
            for what in ("weight", "bias"):
                found[f"routing.{ours}.{what}"] = tensors[f"{prefix}compute_{theirs}.{what}"]
        else:
            found[f"routing.{ours}"] = tensors[prefix + theirs]
    return found


FAMILY = Family("a head of Heinsen's for hidden states of a transformer", recognise)
