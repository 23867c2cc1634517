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


Size = int | tuple[int, int]  # of height and width


def two(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def margins(padding: Size | str, kernel: Size) -> tuple[int, int]:
    return (two(kernel)[0] // 2, two(kernel)[1] // 2) if isinstance(padding, str) else two(padding)


def windows(image: Array, kernel: Size, stride: Size, padding: Size, around: float = 0.0) -> Array:
    """What a window sees at every position of one image [C, H, W]: [H', W', C, kh, kw]."""
    (kh, kw), (down, right), (top, left), (c, height, width) = two(kernel), two(stride), two(padding), image.shape
    framed = np.full((c, height + 2 * top, width + 2 * left), around)
    framed[:, top : top + height, left : left + width] = image
    rows, columns = (height + 2 * top - kh) // down + 1, (width + 2 * left - kw) // right + 1
    seen = np.zeros((rows, columns, c, kh, kw))
    for y in range(rows):
        for x in range(columns):
            seen[y, x] = framed[:, y * down : y * down + kh, x * right : x * right + kw]
    return seen


def conv(image: Array, weight: Array, bias: Array, stride: Size, padding: Size, groups: int = 1) -> Array:
    """Correlate one image [C, H, W] with weight [O, C/groups, kh, kw]: a map [O, H', W']."""
    channels, inputs, *kernel = weight.shape
    seen = windows(image, (kernel[0], kernel[1]), stride, padding)
    out = np.zeros((channels, *seen.shape[:2]))
    for o in range(channels):
        first = o // (channels // groups) * inputs  # of the inputs that this output's group sees
        for y, x in np.ndindex(*seen.shape[:2]):
            out[o, y, x] = (seen[y, x, first : first + inputs] * weight[o]).sum() + bias[o]
    return out


def conv_transpose(image: Array, weight: Array, bias: Array, stride: int) -> Array:
    """Every position of one image [C, H, W] adds its numbers times the mirrored weight [O, C, k, k] to a window."""
    (_, height, width), (channels, _, k, _) = image.shape, weight.shape
    out = np.zeros((channels, height * stride, width * stride)) + bias[:, None, None]
    before = max(0, (k - stride) // 2)
    for y, x, down, right in np.ndindex(height, width, k, k):
        i, j = y * stride + down - before, x * stride + right - before
        if 0 <= i < height * stride and 0 <= j < width * stride:
            out[:, i, j] += weight[:, :, k - 1 - down, k - 1 - right] @ image[:, y, x]
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


def exponential_squash(s: Array) -> Array:
    """Equation 3 of Mazzia, Salvetti, Chiaberge 2021: v = (1 - e^-‖s‖) · s/‖s‖."""
    n = length(s)
    return np.zeros_like(s) if n == 0 else -math.expm1(-n) * s / n


SQUASHES = {"squash": squash, "exponential": exponential_squash, "none": lambda s: s}


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
        for i, how in enumerate(spec["stem"]):
            x = layer(how, part(p, f"stem.{i}."), x[None])[0]
        how = spec["primary"]
        padding = margins(how["padding"], how["kernel"])
        x = conv(x, p["primary.weight"], p["primary.bias"], how["stride"], padding, how["groups"])
        u = primary_capsules(x, how["types"], how["dim"])
        found = []
        for i, how in enumerate(spec["capsules"]):
            bias = p.get(f"capsules.{i}.bias", np.zeros((how["count"], how["dim"])))
            rule = how["routing"]
            u, c = routing(votes(u, p[f"capsules.{i}.weight"]), bias, rule["iterations"], rule["leaky"])
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
        if spec["decoder"]["type"] == "ConvDecoder":
            drawn.append(conv_decoder(spec["decoder"], part(p, "decoder."), x, spec["input"]))
            continue
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


# ------------------------------------------------------------------------------- layers that the paper does not have


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x))


ACTIVATIONS = {
    "none": lambda x: x,
    "relu": lambda x: max(x, 0.0),
    "elu": lambda x: x if x > 0 else math.expm1(x),
    "gelu": lambda x: x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "silu": lambda x: x * sigmoid(x),
    "sigmoid": sigmoid,
}


def activation(x: Array, name: str, slope: float = 0.01) -> Array:
    """Number by number; the slope is that of a leaky ReLU."""
    of_number = ACTIVATIONS | {"leaky_relu": lambda x: x if x > 0 else slope * x}
    return np.array([of_number[name](float(n)) for n in x.ravel()]).reshape(x.shape)


def standard(x: Array, epsilon: float) -> Array:
    """`x` at mean 0 and variance 1, of all its numbers."""
    mean = x.sum() / x.size
    variance = ((x - mean) ** 2).sum() / x.size
    return (x - mean) / math.sqrt(variance + epsilon)


def batch_norm(how: Mapping[str, Any], p: Mapping[str, Array], x: Array, training: bool) -> tuple[Array, Array, Array]:
    """Algorithms 1 and 2 of Ioffe and Szegedy: the maps [B, C, H, W], and what the running statistics become."""
    y, mean, variance = np.zeros(x.shape), np.array(p["mean"]), np.array(p["variance"])
    for c in range(x.shape[1]):
        if training:
            y[:, c] = standard(x[:, c], how["epsilon"])
            of_batch = x[:, c].sum() / x[:, c].size
            spread = ((x[:, c] - of_batch) ** 2).sum() / x[:, c].size
            mean[c] += how["momentum"] * (of_batch - mean[c])
            variance[c] += how["momentum"] * (spread - variance[c])
        else:
            y[:, c] = (x[:, c] - mean[c]) / math.sqrt(variance[c] + how["epsilon"])
        if how["scale"]:
            y[:, c] *= p["weight"][c]
        if how["shift"]:
            y[:, c] += p["bias"][c]
    return y, mean, variance


def group_norm(p: Mapping[str, Array], image: Array, groups: int, epsilon: float) -> Array:
    """Every group of channels of one image [C, H, W] by itself; the channels scaled and shifted."""
    y, size = np.zeros(image.shape), len(image) // groups
    for g in range(groups):
        y[g * size : (g + 1) * size] = standard(image[g * size : (g + 1) * size], epsilon)
    return np.array([y[c] * p["weight"][c] + p["bias"][c] for c in range(len(image))])


def linear(p: Mapping[str, Array], features: Array) -> Array:
    return np.array([(w * features.ravel()).sum() + b for w, b in zip(p["weight"], p["bias"], strict=True)])


def coordinates(height: int, width: int) -> Array:
    """y and x of every position, from -1 at the first to 1 at the last; -1 where there is but one."""
    found = np.zeros((2, height, width))
    for y, x in np.ndindex(height, width):
        found[:, y, x] = -1 + 2 * y / max(1, height - 1), -1 + 2 * x / max(1, width - 1)
    return found


def upsample(image: Array, factor: int) -> Array:
    c, h, w = image.shape
    y = np.zeros((c, h * factor, w * factor))
    for i, j in np.ndindex(*y.shape[1:]):
        y[:, i, j] = image[:, i // factor, j // factor]
    return y


def bilinear(image: Array, factor: int) -> Array:
    """Every new position lies among four old ones, of which some are one and the same at the border."""
    c, h, w = image.shape
    y = np.zeros((c, h * factor, w * factor))
    for i, j in np.ndindex(*y.shape[1:]):
        at, across = (i + 0.5) / factor - 0.5, (j + 0.5) / factor - 0.5
        top, left = math.floor(at), math.floor(across)
        for row, by_row in ((top, 1 - (at - top)), (top + 1, at - top)):
            for column, by_column in ((left, 1 - (across - left)), (left + 1, across - left)):
                y[:, i, j] += by_row * by_column * image[:, min(max(row, 0), h - 1), min(max(column, 0), w - 1)]
    return y


def chain(layers: Any, name: str, p: Mapping[str, Array], x: Array, training: bool) -> Array:
    for i, how in enumerate(layers):
        x = layer(how, part(p, f"{name}.{i}."), x, training)
    return x


def part(p: Mapping[str, Array], start: str) -> dict[str, Array]:
    return {name.removeprefix(start): array for name, array in p.items() if name.startswith(start)}


def layer(how: Mapping[str, Any], p: Mapping[str, Array], x: Array, training: bool = False) -> Array:
    """What a layer, said as its JSON, makes of a batch of maps [B, C, H, W] or vectors [B, size]."""
    match how["type"]:
        case "Residual":
            y = chain(how["layers"], "layers", p, x, training) + chain(how["shortcut"], "shortcut", p, x, training)
        case "Concat":
            both = [chain(how[name], name, p, x, training) for name in ("layers", "shortcut")]
            y = np.array([[*a, *b] for a, b in zip(*both, strict=True)])
        case "BatchNorm":
            y = batch_norm(how, p, x, training)[0]
        case _:
            y = np.array([of_image(how, p, image) for image in x])
    return activation(y, how.get("activation", "none"), how.get("slope", 0.01))


def of_image(how: Mapping[str, Any], p: Mapping[str, Array], image: Array) -> Array:
    match how["type"]:
        case "Activation" | "Dropout":  # which does nothing when told of no mask: see `dropout`
            return image
        case "PadChannels":
            none = np.zeros(image.shape[1:])
            return np.array([*[none] * how["before"], *image, *[none] * how["after"]])
        case "Coordinates":
            return np.array([*image, *coordinates(*image.shape[1:])])
        case "Conv":
            bias = p.get("bias", np.zeros(how["channels"]))
            padding = margins(how["padding"], how["kernel"])
            return conv(image, p["weight"], bias, how["stride"], padding, how["groups"])
        case "ConvTranspose":
            return conv_transpose(image, p["weight"], p["bias"], how["stride"])
        case "GroupNorm" | "InstanceNorm" | "LayerNorm":
            groups = {"InstanceNorm": len(image), "LayerNorm": 1}.get(how["type"]) or how["groups"]
            return group_norm(p, image, groups, how["epsilon"])
        case "MaxPool":
            padding = margins(how["padding"], how["kernel"])
            return windows(image, how["kernel"], how["stride"], padding, -math.inf).max((3, 4)).transpose(2, 0, 1)
        case "AveragePool":
            padding = margins(how["padding"], how["kernel"])
            return windows(image, how["kernel"], how["stride"], padding).mean((3, 4)).transpose(2, 0, 1)
        case "GlobalPool":
            return np.array([channel.sum() / channel.size for channel in image])
        case "Upsample":
            return {"nearest": upsample, "bilinear": bilinear}[how["mode"]](image, how["factor"])
        case "Linear":
            y = linear(p, image)
            return y if isinstance(how["output"], int) else y.reshape(how["output"])
    raise ValueError(how["type"])


def dropout(x: Array, kept: Array, rate: float) -> Array:
    """What is kept of `x` is larger by as much as is lost on average."""
    return np.where(kept, x / (1 - rate), 0.0)


def conv_decoder(how: Mapping[str, Any], p: Mapping[str, Array], x: Array, image: tuple[int, ...]) -> Array:
    """A small map of the numbers [J·D]; then twice as large, convolved, until it is the image."""
    (_, h, w), maps = image, len(how["channels"])
    y = np.maximum(linear(part(p, "0."), x), 0).reshape(how["channels"][0], h // 2**maps, w // 2**maps)
    for i in range(1, maps + 1):
        own = part(p, f"{2 * i}.")
        y = conv(upsample(y, 2), own["weight"], own["bias"], 1, how["kernel"] // 2)
        y = activation(y, "sigmoid" if i == maps else "relu")
    return y


# -------------------------------------------------------------------------------------------------------- more losses


def importance(weights: Any, shown: Array) -> float:
    """How much an image counts: the mean weight of the classes it shows."""
    own = [w for w, t in zip(weights or (), shown, strict=False) if t]
    return sum(own) / len(own) if own else 1.0


def loss(how: Mapping[str, Any], scores: Array, targets: Array, step: int) -> float:
    """A loss, said as its JSON, of scores [B, J]; the targets may show several classes."""
    of_image = {"MarginLoss": margin, "SpreadLoss": spread, "CrossEntropy": cross_entropy}[how["type"]]
    rows = zip(scores, targets, strict=True)
    return sum(importance(how["class_weights"], t) * of_image(how, s, t, step) for s, t in rows) / len(scores)


def margin(how: Mapping[str, Any], scores: Array, shown: Array, step: int) -> float:
    total = 0.0
    for n, t in zip(scores, shown, strict=True):
        total += max(0, how["m_plus"] - n) ** 2 if t else how["down_weight"] * max(0, n - how["m_minus"]) ** 2
    return total


def spread(how: Mapping[str, Any], scores: Array, shown: Array, step: int) -> float:
    done = 1.0 if step >= how["steps"] else step / how["steps"]
    if how["smooth"]:
        done = sigmoid(step / how["steps"] - 4)
    m = how["start"] + done * (how["end"] - how["start"])
    total = 0.0
    for t in range(len(scores)):
        for i in range(len(scores)):
            if shown[t] and not shown[i]:
                total += max(0, m - (scores[t] - scores[i])) ** 2
    return total


def cross_entropy(how: Mapping[str, Any], scores: Array, shown: Array, step: int) -> float:
    if how["exclusive"]:
        x = [how["scale"] * float(s) for s in scores]
        whole = max(x) + math.log(sum(math.exp(n - max(x)) for n in x))
        return sum(whole - n for n, t in zip(x, shown, strict=True) if t)
    x = [how["scale"] * (float(s) - 0.5) for s in scores]
    return sum(-math.log(sigmoid(n if t else -n)) for n, t in zip(x, shown, strict=True))


# ------------------------------------------------------------------------------------- capsules of any layer, 2018 on


class Caps(NamedTuple):
    """Capsules of one image on a grid: poses [T, H, W, K], activations [T, H, W] or None."""

    pose: Array
    activation: Array | None = None


class Seen(NamedTuple):
    """The votes of one image: S inputs at each of P output positions."""

    votes: Array  # û [P, S, J, D]
    child: Array  # [P, S]: which input capsule each is, as (type · H + y) · W + x; -1 for padding
    pose: Array  # [P, S, K]: the inputs; zeros for padding
    activation: Array | None  # [P, S]; 0 for padding


def vote(pose: Array, weight: Array, rows: int) -> Array:
    """A vote W u, or the matrix product of a pose of several rows and a weight [d, x]."""
    return np.concatenate([weight @ row for row in pose.reshape(rows, -1)])


def seen_by_all(how: Mapping[str, Any], p: Mapping[str, Array], x: Caps) -> Seen:
    """What class capsules see: every capsule below, at one position."""
    t, h, w, k = x.pose.shape
    found = np.zeros((1, t * h * w, how["count"], how["dim"]))
    for i, (kind, row, column) in enumerate(np.ndindex(t, h, w)):
        own = {False: i, True: kind, "all": 0, "factors": 0}[how["shared"]]
        for j in range(how["count"]):
            if how["shared"] == "factors":
                weight = p["weight"][0, 0] * p["scale"][j] / math.sqrt(t * h * w)
            else:
                weight = p["weight"][own, j]
            found[0, i, j] = vote(x.pose[kind, row, column], weight, how["pose_rows"])
            if how["vote_bias"]:
                found[0, i, j] += p["vote_bias"][own, j]
            if how["coordinates"]:
                width = how["dim"] // how["pose_rows"]
                found[0, i, j, width - 1] += (column + 0.5) / w
                found[0, i, j, 2 * width - 1] += (row + 0.5) / h
    activation = None if x.activation is None else x.activation.reshape(1, -1)
    return Seen(found, np.arange(t * h * w)[None], x.pose.reshape(1, -1, k), activation)


def seen_by_windows(how: Mapping[str, Any], p: Mapping[str, Array], x: Caps) -> tuple[Seen, int, int]:
    """What the capsules at every position see, and height and width of their grid."""
    t, h, w, k = x.pose.shape
    (kh, kw), (down, right) = two(how["kernel"]), two(how["stride"])
    top, left = margins(how["padding"], how["kernel"])
    rows, columns = (h + 2 * top - kh) // down + 1, (w + 2 * left - kw) // right + 1
    child = np.full((rows * columns, kh * kw * t), -1)
    pose = np.zeros((*child.shape, k))
    activation = np.zeros(child.shape)
    for at, (y, column) in enumerate(np.ndindex(rows, columns)):
        for slot, (ky, kx, kind) in enumerate(np.ndindex(kh, kw, t)):
            i, j = y * down + ky - top, column * right + kx - left
            if not (0 <= i < h and 0 <= j < w):
                continue
            child[at, slot] = (kind * h + i) * w + j
            pose[at, slot] = x.pose[kind, i, j]
            activation[at, slot] = 0 if x.activation is None else x.activation[kind, i, j]
    if how["scrambled"]:
        straight = pose.copy()
        for slot in range(pose.shape[1]):
            line = [straight[at, slot, number] for number in range(k) for at in range(rows * columns)]
            for i, number in enumerate(line):
                pose[i // k, slot, i % k] = number
    found = np.zeros((*child.shape, how["types"], how["dim"]))
    for at, slot, o in np.ndindex(*found.shape[:3]):
        found[at, slot, o] = vote(pose[at, slot], p["weight"][slot, o], how["pose_rows"])
    return Seen(found, child, pose, None if x.activation is None else activation), rows, columns


def dynamic(how: Mapping[str, Any], p: Mapping[str, Array], bias: Array, seen: Seen) -> Caps:
    """Procedure 1 at every position: poses [P, J, D]."""
    shrink = SQUASHES[how["squash"]]
    poses = []
    for u_hat in seen.votes:
        b = np.zeros(u_hat.shape[:2])
        for _ in range(how["iterations"]):
            if how["over"] == "outputs":
                c = np.array([softmax(row, how["leaky"]) for row in b])
            else:
                c = np.array([softmax(column, False) for column in b.T]).T
            v = np.array([shrink((c[:, j, None] * u_hat[:, j]).sum(0) + bias[j]) for j in range(u_hat.shape[1])])
            b = b + np.array([[u_hat[i, j] @ v[j] for j in range(len(v))] for i in range(len(b))])
        poses.append(v)
    return Caps(np.array(poses))


def caps_layer(how: Mapping[str, Any], p: Mapping[str, Array], x: Caps, routing: Any) -> Caps:
    """A layer of capsules, said as its JSON, on the capsules of one image.

    `routing(how, p, bias [J, D], seen)` returns poses [P, J, D] and activations [P, J] or None.
    """
    own = {name.removeprefix("routing."): array for name, array in p.items() if name.startswith("routing.")}
    rows = columns = 1
    if how["type"] == "DenseCaps":
        seen = seen_by_all(how, p, x)
    else:
        seen, rows, columns = seen_by_windows(how, p, x)
    bias = p.get("bias", np.zeros(seen.votes.shape[2:]))
    found = routing(how["routing"], own, bias, seen)
    pose = found.pose.transpose(1, 0, 2).reshape(-1, rows, columns, how["dim"])
    return Caps(pose, None if found.activation is None else found.activation.T.reshape(-1, rows, columns))


def capsules_of(how: Mapping[str, Any], p: Mapping[str, Array], x: Array) -> Caps:
    """The channels of one map as capsules of several types at every position."""
    _, h, w = x.shape
    t, d = how["types"], how["dim"]
    if how.get("norm"):  # in inference: each type has statistics of its own, one for poses and one for activations
        x = np.array(x)
        for c in range(len(x)):
            name, kind = ("pose.", c // d) if c < t * d else ("activation.", c - t * d)
            mean, variance, weight, bias = (p[name + key][kind] for key in ("mean", "variance", "weight", "bias"))
            x[c] = (x[c] - mean) / math.sqrt(variance + 1e-5) * weight + bias
    shrink = SQUASHES[how["squash"]]
    pose = np.zeros((t, h, w, d))
    for kind, i, j in np.ndindex(t, h, w):
        pose[kind, i, j] = shrink(x[kind * d : (kind + 1) * d, i, j])
    if not how.get("active"):
        return Caps(pose)
    return Caps(pose, np.array([[[sigmoid(a) for a in row] for row in x[t * d + kind]] for kind in range(t)]))
