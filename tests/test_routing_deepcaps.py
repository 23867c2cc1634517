"""DeepCaps: capsules as maps, added, concatenated and routed by a 3-D convolution. See `routing_proof`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
import oracle
import pytest
from conftest import FLOAT64, NUMPY, backend, close
from routing_proof import Proof, numbers

from capscore import (
    PRESETS,
    AsCaps,
    AsMap,
    BatchNorm,
    CapsNetSpec,
    ChainDecoder,
    Concat,
    Conv,
    ConvCaps3D,
    ConvTranspose,
    Decoder,
    DenseCaps,
    DynamicRouting,
    Linear,
    PrimaryCaps,
    Residual,
)
from capscore.data import load
from capscore.layer import Capsules, Grid, Map, Row, Run
from capscore.model import one_hot
from capscore.presets.deepcaps import deepcaps

# -------------------------------------------------------------------------------------------------------- the loops


def made_of(how: Mapping[str, Any], p: Mapping[str, Any], x: Any) -> Any:
    """What any layer of DeepCaps makes of a map [C, H, W] or capsules of one image."""
    match how["type"]:
        case "AsCaps":
            return oracle.capsules_of(how, p, x)
        case "AsMap":
            poses, activation = x
            channels = [poses[kind, :, :, d] for kind in range(len(poses)) for d in range(poses.shape[3])]
            return np.array([*channels, *(() if activation is None else activation)])
        case "ConvCaps3D":
            return routed_3d(how, p, x)
        case "Residual" | "Concat":
            block, past = (chain(how[name], name, p, x) for name in ("layers", "shortcut"))
            return (added if how["type"] == "Residual" else concatenated)(block, past)
    return oracle.layer(how, p, x[None])[0]


def chain(layers: Any, name: str, p: Mapping[str, Any], x: Any) -> Any:
    for i, how in enumerate(layers):
        x = made_of(how, oracle.part(p, f"{name}.{i}."), x)
    return x


def added(block: oracle.Caps, past: oracle.Caps) -> oracle.Caps:
    return oracle.Caps(block.pose + past.pose)


def concatenated(block: oracle.Caps, past: oracle.Caps) -> oracle.Caps:
    """One after another: types, if both are on one grid, else a list of capsules at one position."""
    if block.pose.shape[1:3] == past.pose.shape[1:3]:
        both = [np.array([*block.pose, *past.pose]), block.activation, past.activation]
    else:
        listed = [
            kind[i, j] for pose in (block.pose, past.pose) for kind in pose for i, j in np.ndindex(kind.shape[:2])
        ]
        both = [np.array(listed).reshape(len(listed), 1, 1, -1), block.activation, past.activation]
    if both[1] is None:
        return oracle.Caps(both[0])
    return oracle.Caps(both[0], np.concatenate([a.ravel() for a in both[1:]]).reshape(both[0].shape[:3]))


def routed_3d(how: Mapping[str, Any], p: Mapping[str, Any], x: oracle.Caps) -> oracle.Caps:
    """Equations 3 to 5: a softmax over all (j, y, x) for each child type i, a squash over all (d, y, x) of each j."""
    t, h, w, k = x.pose.shape
    maps = np.zeros((t, k, h, w))
    for i, y, column, number in np.ndindex(t, h, w, k):
        at = i, number, y, column
        if how["scrambled"]:  # the numbers in the order (y, x, type, number), counted off as (type, number, y, x)
            at = np.unravel_index(((y * w + column) * t + i) * k + number, maps.shape)
        maps[at] = x.pose[i, y, column, number]
    types, dim = how["types"], how["dim"]
    padding, none = oracle.margins(how["padding"], how["kernel"]), np.zeros(types * dim)
    votes = np.array([oracle.conv(each, p["weight"], none, how["stride"], padding) for each in maps])
    votes = votes.reshape(t, types, dim, *votes.shape[2:])  # û [T, J, D, H', W']
    bias = p.get("bias", np.zeros((types, dim)))
    logits = np.zeros((t, types, *votes.shape[3:]))
    over_inputs = how["routing"]["over"] == "inputs"
    for _ in range(how["routing"]["iterations"]):
        rows = logits.reshape(t, -1).T if over_inputs else logits.reshape(t, -1)
        c = np.array([oracle.softmax(each, how["routing"]["leaky"]) for each in rows])
        c = (c.T if over_inputs else c).reshape(logits.shape)
        s = np.array([sum(c[i, j] * votes[i, j] for i in range(t)) + bias[j][:, None, None] for j in range(types)])
        v = np.array([oracle.SQUASHES[how["routing"]["squash"]](each.ravel()).reshape(each.shape) for each in s])
        for i, j, y, column in np.ndindex(logits.shape):
            logits[i, j, y, column] += votes[i, j, :, y, column] @ v[j, :, y, column]
    return oracle.Caps(v.transpose(0, 2, 3, 1))


def caps_of(types: int, dim: int, stride: int = 1) -> tuple[Conv, AsCaps]:
    return Conv(types * dim, 3, stride, padding="same", activation="none", bias=False), AsCaps(types, dim)


class TestDeepCaps(Proof):
    ROUTINGS = dict.fromkeys(("AsMap", "ConvCaps3D", "Residual", "Concat"), made_of)
    SPECS = {
        "3-D": CapsNetSpec(
            (1, 9, 11),
            (Conv(4, 3), PrimaryCaps(3, 4, 3), ConvCaps3D(2, 5, (3, 2), 2, padding=(1, 0)), DenseCaps(4, 5)),
            Decoder((6,), class_independent=True),
        ),
        "3-D, scrambled": CapsNetSpec(
            (1, 8, 7),
            (
                PrimaryCaps(2, 3, 3),
                ConvCaps3D(3, 2, 3, padding="same", routing=DynamicRouting(2, True, "exponential"), scrambled=True),
                ConvCaps3D(2, 3, 1, routing=DynamicRouting(1), bias=False),
                ConvCaps3D(2, 3, 1, routing=DynamicRouting(3, over="inputs")),
                DenseCaps(3, 4),
            ),
            None,
        ),
        "cells": CapsNetSpec(
            (1, 12, 12),
            (
                Conv(4, 3, padding="same"),
                BatchNorm(),
                *caps_of(2, 3, 2),
                Residual((AsMap(), *caps_of(2, 3), AsMap(), *caps_of(2, 3)), (AsMap(), *caps_of(2, 3)), "none"),
                Concat(
                    (AsMap(), *caps_of(3, 3, 2), Residual((AsMap(), *caps_of(3, 3)), (ConvCaps3D(3, 3, 1),), "none"))
                ),
                DenseCaps(4, 5),
            ),
            ChainDecoder(
                (Linear((2, 6, 6)), BatchNorm(), ConvTranspose(2, 3, 2, "none"), ConvTranspose(1, 3)),
                class_independent=True,
            ),
        ),
        "activations": CapsNetSpec(
            (1, 8, 8),
            (
                Conv(8, 3, activation="none"),
                AsCaps(2, 3, active=True),
                AsMap(),
                Concat((AsCaps(2, 3, active=True),), (Conv(4, 1), AsCaps(1, 3, active=True))),
                Concat((AsMap(), Conv(4, 3), AsCaps(1, 3, active=True))),
                AsMap(),
                PrimaryCaps(2, 4, 1),
                DenseCaps(3, 4),
            ),
            None,
        ),
    }


# -------------------------------------------------------------------------------------------------- the authors' code


@pytest.mark.parametrize("scrambled", [False, True])
def test_the_3d_convolution_of_the_authors(torch_caps: ModuleType, scrambled: bool) -> None:
    """Their lines, in their layout [B, H, W, T, K], over PyTorch's conv3d of depth and depth stride K."""
    import torch

    (b, t, h, w, k), (j, d) = (2, 4, 5, 6, 3), (3, 2)
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=(k, 3, 3, 1, j * d)) / 4, rng.normal(size=(j, d))
    x = rng.normal(size=(b, h, w, t, k))
    planes = x.reshape(b, 1, t * k, h, w) if scrambled else x.transpose(0, 3, 4, 1, 2).reshape(b, 1, t * k, h, w)
    conv = torch.conv3d(torch.tensor(planes), torch.tensor(kernel.transpose(4, 3, 0, 1, 2)), None, (k, 1, 1), (0, 1, 1))
    votes = conv.numpy().transpose(0, 2, 1, 3, 4).reshape(b, t, j, d, h, w)
    logits = np.zeros((b, t, j, h, w))
    for _ in range(3):
        route = np.exp(logits.reshape(b, t, -1))
        route = (route / route.sum(-1, keepdims=True)).reshape(logits.shape)
        s = (route[:, :, :, None] * votes).sum(1) + bias[:, :, None, None]
        n2 = (s**2).sum((-1, -2, -3), keepdims=True)
        activation = n2 / (1 + n2) / np.sqrt(n2) * s
        logits = logits + (votes * activation[:, None]).sum(3)
    wanted = activation.transpose(0, 1, 3, 4, 2).reshape(b, -1, d)

    layer, grid = ConvCaps3D(j, d, 3, padding="same", scrambled=scrambled), Grid(t, h, w, k)
    row = Row("layer", layer, grid, layer.plan(grid))
    weight = kernel.transpose(4, 3, 0, 1, 2)[:, 0]  # [J·D, K, 3, 3]
    own = {"layer.weight": torch_caps.asarray(weight), "layer.bias": torch_caps.asarray(bias)}
    pose = torch_caps.asarray(x.transpose(0, 3, 1, 2, 4).reshape(b, -1, k))
    close(row.run(torch_caps, own, Capsules(pose), Run()).pose.numpy(), wanted, FLOAT64)


def test_transposed_convolution_is_that_of_torch(torch_caps: ModuleType) -> None:
    import torch

    x, kernel = np.random.default_rng(0).normal(size=(2, 3, 4, 5)), np.random.default_rng(1).normal(size=(3, 2, 3, 3))
    layer, shape = ConvTranspose(2, 3, 2, "none"), Map(3, 4, 5)
    row = Row("layer", layer, shape, layer.plan(shape))
    weight = np.ascontiguousarray(kernel.transpose(1, 0, 2, 3)[:, :, ::-1, ::-1])  # theirs is [in, out], mirrored
    own = {"layer.weight": torch_caps.asarray(weight), "layer.bias": torch_caps.asarray(np.zeros(2))}
    whole = torch.conv_transpose2d(torch.tensor(x), torch.tensor(kernel), None, 2)  # one row and column more
    close(row.run(torch_caps, own, torch_caps.asarray(x), Run()).numpy(), whole[:, :, :8, :10].numpy(), FLOAT64)


@pytest.mark.parametrize(
    ("name", "own", "decoder"), [("deepcaps", 8_442_176, 58_449), ("deepcaps-64", 13_359_680, 67_603)]
)
def test_the_networks_have_the_size_of_the_authors(name: str, own: int, decoder: int) -> None:
    sizes = {key: math.prod(shape) for key, shape in PRESETS[name].parameters.items()}  # running statistics, too
    assert sum(size for key, size in sizes.items() if not key.startswith("decoder.")) == own
    assert sum(size for key, size in sizes.items() if key.startswith("decoder.")) == decoder
    assert PRESETS[name].rows[-2].output.dims == ((640, 8) if name == "deepcaps" else (2560, 8))
    assert PRESETS[name].parameters["decoder.0.weight"][1] == 32


def test_a_stride_on_an_even_map_is_that_of_tensorflow_turned() -> None:
    """Theirs pads behind, ours before: with image, windows and result turned by 180° both compute the same."""
    x, weight = np.random.default_rng(0).normal(size=(1, 2, 6, 8)), np.random.default_rng(1).normal(size=(3, 2, 3, 3))
    padded = np.pad(x, [(0, 0), (0, 0), (0, 1), (0, 1)])  # what "SAME" is for a window of 3 and a stride of 2
    theirs = NUMPY.conv2d(padded, weight, None, (2, 2), (0, 0))
    ours = NUMPY.conv2d(x[:, :, ::-1, ::-1], weight[:, :, ::-1, ::-1], None, (2, 2), (1, 1))
    close(ours[:, :, ::-1, ::-1], theirs, FLOAT64)


def test_a_class_independent_decoder_does_not_know_the_class() -> None:
    spec = TestDeepCaps.SPECS["cells"]
    net = NUMPY.CapsNet(spec, numbers(spec), dtype="float64")
    v = np.random.default_rng(0).normal(size=(1, 1, 5)).repeat(4, 1)  # four classes of the same numbers
    drawn = [net.reconstruct(v, [k]) for k in range(4)]
    for each in drawn[1:]:
        close(each, drawn[0], FLOAT64)
    with_two = net.reconstruct(v, np.array([[1.0, 1.0, 0, 0]]))
    assert np.abs(with_two - drawn[0]).max() > 1e-3


# ---------------------------------------------------------------------------------------------------------- training


def test_a_small_deepcaps_learns_the_digits() -> None:
    """Six epochs of the 5,000 embedded digits on PyTorch: 75 seconds of one core."""
    caps, (learn, test) = backend("torch"), load("digits")
    spec = deepcaps((1, 28, 28), channels=16, types=8, dims=(4, 4), dim=16, maps=(16, 8, 8))
    net = caps.CapsNet(spec, seed=0)
    learner, rng, steps = caps.Learner(net), np.random.default_rng(0), 0
    for _ in range(6):
        for at in rng.permutation(len(learn))[: len(learn) // 64 * 64].reshape(-1, 64):
            x, labels = learn.batch(at)
            rate = 3e-3 * min(1, (steps + 1) / 50) * (1 + math.cos(math.pi * steps / (6 * len(learn) // 64))) / 2
            learner.step(x, one_hot(labels, len(x), 10), rate)
            steps += 1
    x, labels = test.batch(np.arange(len(test)))
    assert (net.predict(x).argmax(1) == labels).mean() >= 0.97
