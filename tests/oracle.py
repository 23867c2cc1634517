"""The paper in loops: float64, one image and one capsule at a time, nothing imported from capscore.

Written from "Dynamic Routing Between Capsules" (arXiv 1710.09829) to be compared with it line by line, so it is
slow on purpose. A network is the plain dict that its JSON holds; parameters are arrays by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray


class Answer(NamedTuple):
    lengths: Array  # [B, J]
    capsules: Array  # [B, J, D]
    couplings: list[list[Array]]  # per capsule layer and iteration [B, N, J]


def conv(image: Array, weight: Array, bias: Array, stride: int, padding: int) -> Array:
    """Correlate one image [C, H, W] with weight [O, C, k, k]: a map [O, H', W']."""
    _, height, width = image.shape
    channels, _, k, _ = weight.shape
    framed = np.zeros((image.shape[0], height + 2 * padding, width + 2 * padding))
    framed[:, padding : padding + height, padding : padding + width] = image
    rows, columns = (height + 2 * padding - k) // stride + 1, (width + 2 * padding - k) // stride + 1
    out = np.zeros((channels, rows, columns))
    for o in range(channels):
        for y in range(rows):
            for x in range(columns):
                seen = framed[:, y * stride : y * stride + k, x * stride : x * stride + k]
                out[o, y, x] = (seen * weight[o]).sum() + bias[o]
    return out


def primary_capsules(features: Array, types: int, dim: int) -> Array:
    """Squash the `dim` channels of each type at each position: [N, dim], type by type, row by row."""
    _, height, width = features.shape
    capsules = []
    for t in range(types):
        for y in range(height):
            for x in range(width):
                capsules.append(squash(features[t * dim : (t + 1) * dim, y, x]))
    return np.array(capsules)


def length(s: Array) -> float:
    """‖s‖, safe at every magnitude."""
    return math.hypot(*s)


def squash(s: Array) -> Array:
    """Equation 1: v = ‖s‖²/(1 + ‖s‖²) · s/‖s‖, and nothing for nothing."""
    n = length(s)
    return np.zeros_like(s) if n == 0 else n**2 / (1 + n**2) * s / n


def votes(u: Array, weight: Array) -> Array:
    """Equation 2: û_j|i = W_ij u_i, [N, J, D] for capsules u [N, K] and weight [N, J, D, K]."""
    n, j, d, _ = weight.shape
    u_hat = np.zeros((n, j, d))
    for i in range(n):
        for k in range(j):
            u_hat[i, k] = weight[i, k] @ u[i]
    return u_hat


def softmax(b: Array, leaky: bool) -> Array:
    """Equation 3; a leaky one has one more logit, zero, whose share is dropped."""
    logits = [*b, 0.0] if leaky else [*b]
    e = [math.exp(logit - max(logits)) for logit in logits]
    return np.array(e[: len(b)]) / sum(e)


def routing(u_hat: Array, bias: Array, iterations: int, leaky: bool) -> tuple[Array, list[Array]]:
    """Procedure 1 on the votes [N, J, D] of one image: capsules [J, D] and each iteration's couplings [N, J]."""
    n, j, _ = u_hat.shape
    b = np.zeros((n, j))
    couplings = []
    for _ in range(iterations):
        c = np.zeros((n, j))
        for i in range(n):
            c[i] = softmax(b[i], leaky)
        s = np.array(bias, dtype=np.float64)
        for i in range(n):
            for k in range(j):
                s[k] += c[i, k] * u_hat[i, k]
        v = np.array([squash(s[k]) for k in range(j)])
        for i in range(n):
            for k in range(j):
                b[i, k] += u_hat[i, k] @ v[k]
        couplings.append(c)
    return v, couplings


def network(spec: Mapping[str, Any], params: Mapping[str, Array], images: Array) -> Answer:
    """Figure 1, image by image."""
    p = {name: np.asarray(array, dtype=np.float64) for name, array in params.items()}
    capsules, couplings = [], []
    for image in np.asarray(images, dtype=np.float64):
        x = image
        for i, layer in enumerate(spec["stem"]):
            x = conv(x, p[f"stem.{i}.weight"], p[f"stem.{i}.bias"], layer["stride"], layer["padding"])
            x = np.maximum(x, 0) if layer["activation"] == "relu" else x
        layer = spec["primary"]
        x = conv(x, p["primary.weight"], p["primary.bias"], layer["stride"], layer["padding"])
        u = primary_capsules(x, layer["types"], layer["dim"])
        found = []
        for i, layer in enumerate(spec["capsules"]):
            bias = p.get(f"capsules.{i}.bias", np.zeros((layer["count"], layer["dim"])))
            how = layer["routing"]
            u, c = routing(votes(u, p[f"capsules.{i}.weight"]), bias, how["iterations"], how["leaky"])
            found.append(c)
        capsules.append(u)
        couplings.append(found)
    stacked = [[np.array(each) for each in zip(*layer, strict=True)] for layer in zip(*couplings, strict=True)]
    return Answer(np.array([[length(v) for v in each] for each in capsules]), np.array(capsules), stacked)


def reconstruct(spec: Mapping[str, Any], params: Mapping[str, Array], capsules: Array, labels: Array) -> Array:
    """Figure 2: all capsules but the labelled one masked, fully connected layers, a sigmoid for the pixels."""
    p = {name: np.asarray(array, dtype=np.float64) for name, array in params.items()}
    drawn = []
    for v, label in zip(np.asarray(capsules, dtype=np.float64), labels, strict=True):
        x = np.concatenate([v[k] if k == label else np.zeros_like(v[k]) for k in range(len(v))])
        hidden = len(spec["decoder"]["hidden"])
        for i in range(hidden):
            x = np.maximum(p[f"decoder.{i}.weight"] @ x + p[f"decoder.{i}.bias"], 0)
        x = p[f"decoder.{hidden}.weight"] @ x + p[f"decoder.{hidden}.bias"]
        drawn.append(np.array([1 / (1 + math.exp(-pixel)) for pixel in x]).reshape(spec["input"]))
    return np.array(drawn)


def margin_loss(lengths: Array, targets: Array) -> float:
    """Equation 4, its sum over the classes averaged over the images."""
    total = 0.0
    for row, present in zip(lengths, targets, strict=True):
        for n, t in zip(row, present, strict=True):
            total += t * max(0, 0.9 - n) ** 2 + 0.5 * (1 - t) * max(0, n - 0.1) ** 2
    return total / len(lengths)


def reconstruction_loss(images: Array, drawn: Array) -> float:
    """Section 4.1: the sum of squared differences, scaled down by 0.0005, averaged over the images."""
    return sum(0.0005 * ((a - b) ** 2).sum() for a, b in zip(images, drawn, strict=True)) / len(images)
