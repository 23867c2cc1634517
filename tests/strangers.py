"""Networks as the authors' code lays them out, in loops and einsum of NumPy, and the files that their code writes.

Nothing here is imported from capscore: this is the independent check of its importers. Every network is a dict from
the author's names to arrays, and a function that computes class capsules [B, J, D] of images [B, C, H, W].
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray
Arrays = dict[str, Array]

KERAS_EPSILON = 1e-7


def correlate(x: Array, kernel: Array, bias: Array, stride: int = 1) -> Array:
    """TensorFlow's convolution without padding: [B, H, W, in] by [kh, kw, in, out] gives [B, H', W', out]."""
    kh, kw, _, out = kernel.shape
    rows, columns = (x.shape[1] - kh) // stride + 1, (x.shape[2] - kw) // stride + 1
    y = np.zeros((len(x), rows, columns, out))
    for i in range(rows):
        for j in range(columns):
            seen = x[:, i * stride : i * stride + kh, j * stride : j * stride + kw]
            y[:, i, j] = np.tensordot(seen, kernel, 3) + bias
    return y


def correlate_nchw(x: Array, weight: Array, bias: Array, stride: int = 1) -> Array:
    """PyTorch's: [B, in, H, W] by [out, in, kh, kw] gives [B, out, H', W']."""
    y = correlate(x.transpose(0, 2, 3, 1), weight.transpose(2, 3, 1, 0), bias, stride)
    return np.ascontiguousarray(y.transpose(0, 3, 1, 2))


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def sigmoid(x: Array, small: bool = False) -> Array:
    return 1 / (1 + np.exp(-x))


def squash(s: Array, epsilon: float = 0.0) -> Array:
    n2 = (s**2).sum(-1, keepdims=True)
    return n2 / (1 + n2) * s / np.sqrt(n2 + epsilon)


def softmax(b: Array, axis: int) -> Array:
    e = np.exp(b - b.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def route(votes: Array, axis: int, bias: Any = 0.0, epsilon: float = 0.0, iterations: int = 3) -> Array:
    """Route votes [B, N, J, D] with the softmax of the logits [B, N, J] over `axis`."""
    b = np.zeros(votes.shape[:3])
    for _ in range(iterations):
        v = squash(np.einsum("bnj,bnjd->bjd", softmax(b, axis), votes) + bias, epsilon)
        b = b + np.einsum("bnjd,bjd->bnj", votes, v)
    return v


def drawn(v: Array, matrices: list[tuple[Array, Array]]) -> Array:
    """What a decoder of (kernel [in, out], bias) draws of the longest of the capsules [B, J, D]: [B, numbers]."""
    longest = (v**2).sum(-1).argmax(-1)
    x = np.stack([each * (np.arange(len(each)) == k)[:, None] for each, k in zip(v, longest, strict=True)])
    x = x.reshape(len(v), -1)
    for kernel, bias in matrices[:-1]:
        x = relu(x @ kernel + bias)
    return sigmoid(x @ matrices[-1][0] + matrices[-1][1])


class Draw:
    """Random arrays of the sizes that speak up."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)

    def __call__(self, *shape: int, spread: float = 0.3) -> Array:
        return self.rng.normal(0, spread, shape).astype("f4")


Network = tuple[Arrays, Callable[[Array], Array], Callable[[Array], Array]]  # arrays, capsules of images, drawings


def guo_keras(size: tuple[int, int, int] = (2, 12, 12), classes: int = 3, seed: int = 0) -> Network:
    """github.com/XifengGuo/CapsNet-Keras with kernels of 3, 2 types of 4 numbers, and capsules of 5."""
    draw, (c, h, w) = Draw(seed), size
    count = 2 * ((h - 2 - 3) // 2 + 1) * ((w - 2 - 3) // 2 + 1)
    p = {
        "conv1/kernel:0": draw(3, 3, c, 6), "conv1/bias:0": draw(6),
        "primarycap_conv2d/kernel:0": draw(3, 3, 6, 8), "primarycap_conv2d/bias:0": draw(8),
        "digitcaps/W:0": draw(classes, count, 5, 4, spread=0.5),
        "decoder/dense_1/kernel:0": draw(classes * 5, 7), "decoder/dense_1/bias:0": draw(7),
        "decoder/dense_2/kernel:0": draw(7, 9), "decoder/dense_2/bias:0": draw(9),
        "decoder/dense_3/kernel:0": draw(9, c * h * w), "decoder/dense_3/bias:0": draw(c * h * w),
    }  # fmt: skip

    def capsules(images: Array) -> Array:
        x = relu(correlate(images.transpose(0, 2, 3, 1), p["conv1/kernel:0"], p["conv1/bias:0"]))
        x = correlate(x, p["primarycap_conv2d/kernel:0"], p["primarycap_conv2d/bias:0"], 2)
        u = squash(x.reshape(len(x), -1, 4), KERAS_EPSILON)
        return route(np.einsum("jndk,bnk->bnjd", p["digitcaps/W:0"], u), 2, epsilon=KERAS_EPSILON)

    def draws(v: Array) -> Array:
        layers = [(p[f"decoder/dense_{i}/kernel:0"], p[f"decoder/dense_{i}/bias:0"]) for i in (1, 2, 3)]
        return drawn(v, layers).reshape(-1, h, w, c).transpose(0, 3, 1, 2)

    return p, capsules, draws


def guo_pytorch(seed: int = 0) -> Network:
    """github.com/XifengGuo/CapsNet-Pytorch with kernels of 3 on 2×9×11 images: 6 channels of 3×4, capsules of 8."""
    draw = Draw(seed)
    p = {
        "conv1.weight": draw(5, 2, 3, 3), "conv1.bias": draw(5),
        "primarycaps.conv2d.weight": draw(6, 5, 3, 3), "primarycaps.conv2d.bias": draw(6),
        "digitcaps.weight": draw(3, 9, 5, 8, spread=0.5),
        "decoder.0.weight": draw(7, 15), "decoder.0.bias": draw(7),
        "decoder.2.weight": draw(198, 7), "decoder.2.bias": draw(198),
    }  # fmt: skip

    def capsules(images: Array) -> Array:
        x = relu(correlate_nchw(images, p["conv1.weight"], p["conv1.bias"]))
        x = correlate_nchw(x, p["primarycaps.conv2d.weight"], p["primarycaps.conv2d.bias"], 2)
        u = squash(x.reshape(len(x), -1, 8))
        return route(np.einsum("jndk,bnk->bnjd", p["digitcaps.weight"], u), 2)

    def draws(v: Array) -> Array:
        layers = [(p[f"decoder.{i}.weight"].T, p[f"decoder.{i}.bias"]) for i in (0, 2)]
        return drawn(v, layers).reshape(-1, 2, 9, 11)

    return p, capsules, draws


def gram_ai(seed: int = 0) -> Network:
    """github.com/gram-ai/capsule-networks with kernels of 3 on 1×12×12 images: 3 types of 4 numbers."""
    draw = Draw(seed)
    p = {"conv1.weight": draw(5, 1, 3, 3), "conv1.bias": draw(5)}
    for d in range(4):
        p[f"primary_capsules.capsules.{d}.weight"] = draw(3, 5, 3, 3)
        p[f"primary_capsules.capsules.{d}.bias"] = draw(3)
    p["digit_capsules.route_weights"] = draw(3, 48, 4, 5, spread=3)
    p |= {"decoder.0.weight": draw(7, 15), "decoder.0.bias": draw(7)}
    p |= {"decoder.2.weight": draw(144, 7), "decoder.2.bias": draw(144)}

    def capsules(images: Array) -> Array:
        x = relu(correlate_nchw(images, p["conv1.weight"], p["conv1.bias"]))
        parts = [f"primary_capsules.capsules.{d}" for d in range(4)]
        maps = [correlate_nchw(x, p[f"{part}.weight"], p[f"{part}.bias"], 2) for part in parts]
        u = squash(np.stack([each.reshape(len(x), -1) for each in maps], -1))
        return route(np.einsum("jnkd,bnk->bnjd", p["digit_capsules.route_weights"], u), 1)

    def draws(v: Array) -> Array:
        layers = [(p[f"decoder.{i}.weight"].T, p[f"decoder.{i}.bias"]) for i in (0, 2)]
        return drawn(v, layers).reshape(-1, 1, 12, 12)

    return p, capsules, draws


def escvm_original(seed: int = 0) -> Network:
    """The original CapsNet of github.com/EscVM/Efficient-CapsNet, on 1×12×12 images: 2 types of 4 numbers."""
    draw = Draw(seed)
    net, gen = "Original_CapsNet", "Generator"
    p = {
        f"{net}/conv2d/kernel:0": draw(3, 3, 1, 6), f"{net}/conv2d/bias:0": draw(6),
        f"{net}/primary_caps/kernel:0": draw(3, 3, 6, 8), f"{net}/primary_caps/biases:0": draw(2, 4),
        f"{net}/digit_caps/W:0": draw(32, 4, 15, spread=1.0), f"{net}/digit_caps/biases:0": draw(3, 5),
        f"{gen}/dense/kernel:0": draw(15, 7), f"{gen}/dense/bias:0": draw(7),
        f"{gen}/dense_1/kernel:0": draw(7, 144), f"{gen}/dense_1/bias:0": draw(144),
    }  # fmt: skip

    def capsules(images: Array) -> Array:
        x = relu(correlate(images.transpose(0, 2, 3, 1), p[f"{net}/conv2d/kernel:0"], p[f"{net}/conv2d/bias:0"]))
        x = correlate(x, p[f"{net}/primary_caps/kernel:0"], np.zeros(8), 2)
        x = x.reshape(*x.shape[:3], 2, 4) / 2 + p[f"{net}/primary_caps/biases:0"]
        u = squash(x).reshape(len(x), -1, 4)
        votes = np.einsum("bnk,nkm->bnm", u, p[f"{net}/digit_caps/W:0"]).reshape(len(x), 32, 3, 5)
        return route(votes, 2, p[f"{net}/digit_caps/biases:0"])

    def draws(v: Array) -> Array:
        layers = [(p[f"{gen}/{name}/kernel:0"], p[f"{gen}/{name}/bias:0"]) for name in ("dense", "dense_1")]
        return drawn(v, layers).reshape(-1, 1, 12, 12)

    return p, capsules, draws


def exponential(s: Array) -> Array:
    n = np.linalg.norm(s, axis=-1, keepdims=True)
    return (1 - np.exp(-n)) * s / n


def leaky(x: Array, slope: float) -> Array:
    return np.where(x > 0, x, x * slope)


def twice(x: Array) -> Array:
    """TensorFlow's bilinear upsampling of [B, H, W, C] by 2."""
    y = np.zeros((len(x), x.shape[1] * 2, x.shape[2] * 2, x.shape[3]))
    for i, j in np.ndindex(y.shape[1:3]):
        at = [min(max((k + 0.5) / 2 - 0.5, 0), n - 1) for k, n in ((i, x.shape[1]), (j, x.shape[2]))]
        (top, left), (down, right) = map(int, at), (at[0] % 1, at[1] % 1)
        bottom, end = min(top + 1, x.shape[1] - 1), min(left + 1, x.shape[2] - 1)
        above = x[:, top, left] * (1 - right) + x[:, top, end] * right
        below = x[:, bottom, left] * (1 - right) + x[:, bottom, end] * right
        y[:, i, j] = above * (1 - down) + below * down
    return y


def efficient(kind: str, seed: int = 0) -> Network:
    """Efficient-CapsNet of github.com/EscVM/Efficient-CapsNet on small images: 3 capsules of 4 numbers from a map."""
    side, channels, kernels, strides, last = {
        "mnist": (14, 1, (3, 3, 3, 3), (1, 1, 1, 2), 1),
        "multimnist": (20, 1, (3, 3, 3, 3), (1, 1, 2, 2), 2),
        "smallnorb": (16, 2, (3, 2, 2, 2), (2, 1, 1, 2), 1),
    }[kind]
    draw, net, gen, norb = Draw(seed), "Efficient_CapsNet", "Generator", kind == "smallnorb"
    sizes = [channels, 4, 5, 6, 12]
    p: Arrays = {}
    for i, k in enumerate(kernels):
        p[f"{net}/conv2d_{i + 7}/kernel:0"] = draw(k, k, sizes[i], sizes[i + 1], spread=0.4)
        p[f"{net}/conv2d_{i + 7}/bias:0"] = draw(sizes[i + 1])
        for name in ("gamma", "beta"):
            p[f"{net}/norm_{i}/{name}:0"] = draw(sizes[i + 1]) + (name == "gamma")
    k = 2 if norb else 3
    p[f"{net}/conv2d_11/kernel:0"], p[f"{net}/conv2d_11/bias:0"] = draw(k, k, 1, 12), draw(12)
    p[f"{net}/fc_caps/W:0"], p[f"{net}/fc_caps/b:0"] = draw(2, 3, 4, 5, spread=0.5), draw(2, 3, 1)
    for i in range(0 if norb else 4):  # Keras writes what does not learn after all that does
        p[f"{net}/norm_{i}/moving_mean:0"] = draw(sizes[i + 1])
        p[f"{net}/norm_{i}/moving_variance:0"] = np.abs(draw(sizes[i + 1])) + 0.5
    maps = [(1, 4), (4, 5), (5, 3), (3, 2)] if norb else []
    dense = [(10, 16)] if norb else [(10, 7), (7, side * side)]
    for i, pair in enumerate(dense):
        p[f"{gen}/dense_{i}/kernel:0"], p[f"{gen}/dense_{i}/bias:0"] = draw(*pair), draw(pair[1])
    for i, (inputs, outputs) in enumerate(maps):
        p[f"{gen}/conv2d_{i}/kernel:0"], p[f"{gen}/conv2d_{i}/bias:0"] = draw(3, 3, inputs, outputs), draw(outputs)

    def norm(x: Array, i: int) -> Array:
        mean, variance = (p.get(f"{net}/norm_{i}/moving_{name}:0") for name in ("mean", "variance"))
        if mean is None:
            mean, variance = x.mean((1, 2), keepdims=True), x.var((1, 2), keepdims=True)
        return (x - mean) / np.sqrt(variance + 1e-3) * p[f"{net}/norm_{i}/gamma:0"] + p[f"{net}/norm_{i}/beta:0"]

    def capsules(images: Array) -> Array:
        x = images.transpose(0, 2, 3, 1)
        for i, stride in enumerate(strides):
            x = correlate(x, p[f"{net}/conv2d_{i + 7}/kernel:0"], p[f"{net}/conv2d_{i + 7}/bias:0"], stride)
            x = norm(leaky(x, 0.3) if norb else relu(x), i)
        kernel, bias = p[f"{net}/conv2d_11/kernel:0"], p[f"{net}/conv2d_11/bias:0"]
        each = [correlate(x[..., c : c + 1], kernel[..., c : c + 1], bias[c], last) for c in range(12)]
        u = exponential(np.concatenate(each, -1).reshape(len(x), 3, 4))
        votes = np.einsum("bnk,jnkd->bjnd", u, p[f"{net}/fc_caps/W:0"])
        c = softmax((votes * votes.sum(2, keepdims=True)).sum(-1) / np.sqrt(5), 1)
        return exponential(np.einsum("bjn,bjnd->bjd", c + p[f"{net}/fc_caps/b:0"][..., 0], votes))

    def draws(v: Array) -> Array:
        layers = [(p[f"{gen}/dense_{i}/kernel:0"], p[f"{gen}/dense_{i}/bias:0"]) for i in range(len(dense))]
        if not norb:
            return drawn(v, layers).reshape(-1, 1, side, side)
        x = v * (np.arange(2) == (v**2).sum(-1).argmax(-1)[:, None])[..., None]
        x = (x.reshape(len(v), -1) @ layers[0][0] + layers[0][1]).reshape(-1, 4, 4, 1)
        for i in range(4):
            x = correlate(twice(x) if i < 3 else x, p[f"{gen}/conv2d_{i}/kernel:0"], p[f"{gen}/conv2d_{i}/bias:0"])
            x = leaky(x, 0.2) if i < 3 else sigmoid(x)
        return x.transpose(0, 3, 1, 2)

    return p, capsules, draws


def heinsen_vectors(seed: int = 0) -> Network:
    """github.com/glassroom/heinsen_routing_2022_paper: 3 depths of 4 numbers to 5 vectors, 2, and 3 classes."""
    draw = Draw(seed)
    p: Arrays = {"W": draw(3, 4) + 1, "B": draw(3, 4)}
    sizes = ((0, 5, 4, 6), (5, 2, 6, 6), (2, 3, 6, 1))  # n_inp, n_out, d_inp, d_out
    for k, (n, j, d, h) in enumerate(sizes):
        shapes = {
            "CONST_ones_over_n_out": (j,), "W_A": (n or 1, d), "B_A": (n or 1,), "W_F1": (j, d), "W_F2": (d, h),
            "B_F2": (j, h), "W_G1": (h, d), "W_G2": (j, d), "B_G2": (j, d), "W_S": (n or 1, j), "B_S": (n or 1, j),
        }  # fmt: skip
        for name in ("beta_use", "beta_ign"):
            linear = {f"compute_{name}.weight": (j, d), f"compute_{name}.bias": (j,)}
            shapes |= {name: (n, j)} if n else linear
        p |= {f"route.{k}.{name}": draw(*shape, spread=0.5) for name, shape in shapes.items()}
        p[f"route.{k}.CONST_ones_over_n_out"] = np.full(j, 1 / j, "f4")

    def normal(x: Array) -> Array:
        if x.shape[-1] == 1:
            return x
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)

    def routing(k: int, x: Array) -> Array:
        """Vectors [B, N, d] to [B, J, h]."""
        q = {name.removeprefix(f"route.{k}."): array for name, array in p.items() if name.startswith(f"route.{k}.")}
        use, ignore = (
            q[name] if name in q else x @ q[f"compute_{name}.weight"].T + q[f"compute_{name}.bias"]
            for name in ("beta_use", "beta_ign")
        )
        scaled = x / np.sqrt(x.shape[1])
        f = sigmoid((scaled * q["W_A"]).sum(-1) + q["B_A"])[..., None]
        votes = np.einsum("bid,jd,dh->bijh", scaled, q["W_F1"], q["W_F2"]) + q["B_F2"]
        r = np.full(votes.shape[:3], 1 / votes.shape[2])
        for _ in range(2):
            out = np.einsum("bij,bijh->bjh", use * f * r - ignore * (f - f * r), votes)
            predicted = np.einsum("bjh,hd,jd->bjd", normal(out), q["W_G1"], q["W_G2"]) + q["B_G2"]
            scores = np.einsum("bid,bjd->bij", x, predicted) * q["W_S"] + q["B_S"]
            r = softmax(np.log(sigmoid(scores)), 2)  # for the next iteration
        return normal(out)

    def scores(states: Array) -> Array:
        """Scores [B, 3] of hidden states [B, positions, 3, 4]."""
        x = (normal(states) * p["W"] + p["B"]).reshape(len(states), -1, 4)
        for k in range(len(sizes)):
            x = routing(k, x)
        return x[..., 0]

    return p, scores, None


def heinsen(seed: int = 0) -> Network:
    """github.com/glassroom/heinsen_routing_2019_paper on 2×9×8 images: two convolutions, 2 parts, 3 classes."""
    draw = Draw(seed)
    p: Arrays = {}

    def norm_and_convolution(norm: str, convolution: str, inputs: int, outputs: int, kernel: int) -> None:
        p[f"{norm}.weight"], p[f"{norm}.bias"] = draw(inputs) + 1, draw(inputs)
        p[f"{norm}.running_mean"], p[f"{norm}.running_var"] = draw(inputs), np.abs(draw(inputs)) + 0.5
        p[f"{norm}.num_batches_tracked"] = np.array(7)
        p[f"{convolution}.weight"], p[f"{convolution}.bias"] = draw(outputs, inputs, kernel, kernel), draw(outputs)

    norm_and_convolution("convolve.0", "convolve.1", 4, 5, 3)
    norm_and_convolution("convolve.3", "convolve.4", 5, 5, 3)
    norm_and_convolution("compute_a.0", "compute_a.1", 5, 2, 1)
    norm_and_convolution("compute_mu.0", "compute_mu.1", 5, 32, 1)
    for i, (n, j) in enumerate(((1, 2), (2, 3))):
        p[f"routings.{i}.W"], p[f"routings.{i}.B"] = draw(n, j, 4, 4, spread=0.5), draw(n, j, 4, 4)
        p[f"routings.{i}.beta_use"], p[f"routings.{i}.beta_ign"] = draw(n, j), draw(n, j)
        p[f"routings.{i}.CONST_one"] = np.array(1, "f4")

    def standard(x: Array, name: str) -> Array:
        scale, shift, mean, variance = (
            p[f"{name}.{what}"][:, None, None] for what in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / np.sqrt(variance + 1e-5) * scale + shift

    def routing(i: int, a: Array, mu: Array) -> tuple[Array, Array]:
        """Scores [B, N] and poses [B, N, 4, 4] to those of the next capsules."""
        use, ignore = p[f"routings.{i}.beta_use"], p[f"routings.{i}.beta_ign"]
        weight = np.broadcast_to(p[f"routings.{i}.W"], (mu.shape[1], *p[f"routings.{i}.W"].shape[1:]))
        votes = np.einsum("ijdh,bicd->bijch", weight, mu) + p[f"routings.{i}.B"]
        f = sigmoid(a)[:, :, None]
        r = np.full(votes.shape[:3], 1 / votes.shape[2])
        for _ in range(3):
            share = f * r / ((f * r).sum(1, keepdims=True) + 1e-5)
            out = (use * f * r - ignore * (f - f * r)).sum(1)
            mean = np.einsum("bij,bijch->bjch", share, votes)
            square = (votes - mean[:, None]) ** 2
            variance = np.einsum("bij,bijch->bjch", share, square) + 1e-5
            far = (square / (2 * variance[:, None])).sum((3, 4)) + np.log(np.sqrt(variance)).sum((2, 3))[:, None]
            r = softmax(np.log(sigmoid(out))[:, None] - far, 2)  # for the next iteration
        return out, mean

    def capsules(images: Array) -> Array:
        h, w = images.shape[2:]
        grid = np.stack(np.meshgrid(np.linspace(-1, 1, h), np.linspace(-1, 1, w), indexing="ij"))
        x = np.concatenate([images, np.broadcast_to(grid, (len(images), 2, h, w))], 1)
        for i, stride in ((0, 1), (3, 2)):
            x = standard(x, f"convolve.{i}")
            x = correlate_nchw(x, p[f"convolve.{i + 1}.weight"], p[f"convolve.{i + 1}.bias"], stride)
            x = x * sigmoid(x)
        a = correlate_nchw(standard(x, "compute_a.0"), p["compute_a.1.weight"], p["compute_a.1.bias"])
        mu = correlate_nchw(standard(x, "compute_mu.0"), p["compute_mu.1.weight"], p["compute_mu.1.bias"])
        mu = mu.reshape(len(x), 2, 4, 4, *x.shape[2:]).transpose(0, 1, 4, 5, 2, 3).reshape(len(x), -1, 4, 4)
        a, mu = routing(0, a.reshape(len(x), -1), mu)
        a, mu = routing(1, a, mu)
        return np.concatenate([mu.reshape(len(x), 3, 16), a[:, :, None]], 2)  # poses, and beside them the scores

    return p, capsules, capsules


# ------------------------------------------------------------------------------------------------------------- files


def keras_2(path: Path, arrays: Mapping[str, Array], inside: str = "") -> Path:
    """What `save_weights` of Keras 2 writes; `inside` "model_weights", what `save` does. Groups are top-level names."""
    import h5py

    with h5py.File(path, "w") as file:
        top = file.create_group(inside) if inside else file
        layers = list(dict.fromkeys(name.split("/")[0] for name in arrays))
        top.attrs["layer_names"] = np.array([layer.encode() for layer in ("input_1", *layers)])
        top.create_group("input_1").attrs["weight_names"] = np.zeros(0)
        for layer in layers:
            mine = {name: array for name, array in arrays.items() if name.split("/")[0] == layer}
            short = {name: name if name.count("/") == 1 else name.partition("/")[2] for name in mine}
            group = top.create_group(layer)
            group.attrs["weight_names"] = [short[name].encode() for name in mine]  # of any length, as of late
            for name, array in mine.items():
                group[short[name]] = array
    return path


def keras_3(path: Path, arrays: Mapping[str, Array]) -> Path:
    """What `save_weights` of Keras 3 writes, in no order, with an optimiser's state."""
    import h5py

    counts: dict[str, int] = {}
    with h5py.File(path, "w") as file:
        file["optimizer/vars/0"] = np.int64(3)
        for name, array in arrays.items():
            layer = name.rpartition("/")[0]
            file[f"layers/{layer}/vars/{counts.get(layer, 0)}"] = array
            counts[layer] = counts.get(layer, 0) + 1
    return path


def keras_archive(path: Path, arrays: Mapping[str, Array]) -> Path:
    """What `save` of Keras 3 writes."""
    inner = keras_3(path.with_suffix(".h5"), arrays).read_bytes()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", inner)
    path.write_bytes(buffer.getvalue())
    return path


def pytorch(path: Path, arrays: Mapping[str, Array], **how: Any) -> Path:
    """What `torch.save(model.state_dict(), path)` writes."""
    import torch

    torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, path, **how)
    return path
