"""Batch normalisation, folded into the convolution before or behind it: an export then has no node of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capscore.layer import Layer
from capscore.layers import Activation, BatchNorm, Conv, PrimaryCaps, Residual
from capscore.layers.conv import margins
from capscore.net import CapsNetSpec

Params = dict[str, NDArray[Any]]


def fold(spec: CapsNetSpec, params: Mapping[str, NDArray[Any]], behind: bool = True) -> tuple[CapsNetSpec, Params]:
    """Return a spec and parameters that compute the same in inference; names of layers stay.

    Without `behind`, no normalisation goes into the convolution behind it: weights that one scale for each output
    stands for would differ by what each input is multiplied by.
    """
    found: Params = {name: array for name, array in params.items() if name.startswith("decoder.")}
    layers: list[Layer] = []
    own = [{key: params[f"{row.name}.{key}"] for key in row.plan.params} for row in spec.rows]
    for row, layer, arrays in zip(spec.rows, *_folded(spec.layers, own, behind), strict=True):
        layers.append(layer)
        found |= {f"{row.name}.{key}": array for key, array in arrays.items()}
    return replace(spec, layers=tuple(layers)), found


def _folded(layers: tuple[Layer, ...], own: list[Params], behind: bool) -> tuple[list[Layer], list[Params]]:
    """Return the layers and their parameters with every pair of convolution and normalisation made one."""
    new, arrays = list(layers), list(own)
    for i, layer in enumerate(layers):
        if isinstance(layer, Residual):
            new[i], arrays[i] = _inside(layer, own[i], behind)
        if not isinstance(layer, BatchNorm):
            continue
        before, after = new[i - 1] if i else None, layers[i + 1] if behind and i + 1 < len(layers) else None
        if isinstance(before, Conv) and before.activation == "none":
            new[i - 1], new[i] = replace(before, bias=True), Activation(layer.activation)
            arrays[i - 1], arrays[i] = _before(arrays[i - 1], *_affine(own[i], layer)), {}
        elif isinstance(after, Conv | PrimaryCaps) and margins(after) == (0, 0) and layer.activation == "none":
            # With a margin the zeros of it, which no norm has shifted, would need a bias of their own.
            new[i], new[i + 1] = Activation("none"), replace(after, bias=True) if isinstance(after, Conv) else after
            arrays[i], arrays[i + 1] = {}, _behind(own[i + 1], *_affine(own[i], layer), after.groups)
    return new, arrays


def _inside(block: Residual, own: Params, behind: bool) -> tuple[Residual, Params]:
    changed: dict[str, Any] = {}
    found: Params = {}
    for name in ("layers", "shortcut"):
        layers: tuple[Layer, ...] = getattr(block, name)
        starts = [f"{name}.{i}." for i in range(len(layers))]
        each = [{key.removeprefix(at): a for key, a in own.items() if key.startswith(at)} for at in starts]
        new, arrays = _folded(layers, each, behind)
        changed[name] = tuple(new)
        found |= {at + key: array for at, one in zip(starts, arrays, strict=True) for key, array in one.items()}
    return replace(block, **changed), found


def _affine(norm: Params, layer: BatchNorm) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return by what a normalisation multiplies every channel, and what it adds then."""
    exact = {name: array.astype(np.float64) for name, array in norm.items()}
    scale = exact.get("weight", 1.0) / np.sqrt(exact["variance"] + layer.epsilon)
    return scale, exact.get("bias", 0.0) - exact["mean"] * scale


def _before(conv: Params, scale: NDArray[Any], shift: NDArray[Any]) -> Params:
    """Return a convolution whose results are scaled and shifted."""
    return {"weight": conv["weight"] * scale[:, None, None, None], "bias": conv.get("bias", 0.0) * scale + shift}


def _behind(conv: Params, scale: NDArray[Any], shift: NDArray[Any], groups: int) -> Params:
    """Return a convolution that scales and shifts what it sees."""
    weight = conv["weight"].astype(np.float64)
    by, plus = (np.repeat(a.reshape(groups, -1), len(weight) // groups, 0)[:, :, None, None] for a in (scale, shift))
    return {"weight": weight * by, "bias": conv.get("bias", 0.0) + (weight * plus).sum((1, 2, 3))}
