"""Pictures of what a network does: reconstructions, capsule dimensions, routing, lengths and training curves.

They need matplotlib but nothing of its global state: every function returns a `Figure` of its own, so they
work without a display and in threads. Pages are laid out in inches; at 150 dots per inch a full page is
1,350 pixels wide and its smallest letters are still legible at two thirds of that.
"""

from __future__ import annotations

import copy
import io
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import layers, modelfile
from .data import Dataset
from .errors import BackendError, ShapeError
from .model import CapsNet, Output, one_hot
from .train import check_dataset

try:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import MaxNLocator
except ModuleNotFoundError as error:
    raise BackendError("figures need matplotlib: pip install 'capscore[plot]'") from error

DPI = 150
WIDTH = 9.0  # of a full page, in inches; margins and header likewise
MARGIN, HEADER = 0.3, 0.85
HEADING, BODY, SMALL = 13, 9, 8  # sizes of letters, in points
INK, GREY, LINE = "#222222", "#6b6b6b", "#d0d0d0"
BLUE, ORANGE = "#0072b2", "#d55e00"  # told apart with every kind of colour blindness
MORE_OR_LESS = LinearSegmentedColormap.from_list("more or less", [ORANGE, "#f4f4f4", BLUE])
STEPS = np.arange(-5, 6) * 0.05  # the paper's perturbations, the middle one exactly zero


def perturb(net: CapsNet[Any], image: Any, label: int | None = None, steps: Any = STEPS) -> NDArray[Any]:
    """Draw an image with one dimension of one capsule moved at a time (section 5.1).

    Parameters
    ----------
    image : [C, H, W], as the network takes it
    label : the class whose capsule is moved and drawn; the longest when None
    steps : [S], what is added to the dimension

    Returns
    -------
    drawings [D, S, C, H, W]: row d has dimension d moved
    """
    output = net(net.ops.reshape(net.ops.asarray(image), (1, *np.shape(image))))
    capsules = net.ops.to_numpy(output.capsules)[0]  # [J, D]
    label = int(net.ops.to_numpy(output.lengths)[0].argmax()) if label is None else label
    keep, (count, dim) = one_hot(np.array([label]), 1, len(capsules))[0], capsules.shape
    shifts = np.eye(dim)[:, None] * np.asarray(steps)[:, None]  # [D, S, D]
    moved = (capsules + shifts[:, :, None] * keep[:, None]).reshape(-1, count, dim)
    drawn = net.ops.to_numpy(net.reconstruct(moved, np.full(len(moved), label)))
    return drawn.reshape(dim, -1, *drawn.shape[1:])


class Agreement(NamedTuple):
    """How the last capsule layer's routing of B images went, iteration by iteration."""

    couplings: NDArray[Any]  # [R, B, N, J]
    lengths: NDArray[Any]  # [R, B, J]: of the class capsules that an iteration's couplings make
    entropy: NDArray[Any]  # [R, B]: of an input capsule's couplings, in bits, the mean over the N


def agreement(net: CapsNet[Any], images: Any) -> Agreement:
    """Follow the routing of images [B, C, H, W] through its iterations.

    The share that leaky routing gives to no capsule counts in the entropy as one more.
    """
    ops, last = net.ops, len(net.spec.capsules) - 1
    trace = (net(images, couplings=True).couplings or ())[last]
    below = copy.copy(net.spec)  # no valid network: it ends with the capsules that the last layer sees
    object.__setattr__(below, "capsules", net.spec.capsules[:last])
    u = layers.forward(ops, below, net.params, ops.asarray(images, trace[0]))
    weight, bias = net.params[f"capsules.{last}.weight"], net.params.get(f"capsules.{last}.bias")
    votes = layers.LinearVotes(ops, u, weight, bias, net.spec.votes_shape(last))
    made = [layers.lengths(ops, layers.squash(ops, votes.combine(ops.transpose(c, (2, 0, 1))))) for c in trace]
    c = np.stack([ops.to_numpy(c) for c in trace]).astype(np.float64)
    shares = np.concatenate([c, np.clip(1 - c.sum(-1, keepdims=True), 0, 1)], -1)
    entropy = -(shares * np.log2(np.maximum(shares, 1e-300))).sum(-1).mean(-1)
    return Agreement(c, np.stack([ops.to_numpy(v).T for v in made]), entropy)


def reconstructions(net: CapsNet[Any], images: Any, labels: Any = None) -> Figure:
    """Show images [B, C, H, W] over what the decoder draws from their longest capsules.

    Beside the names stands the capsule's length; with `labels` [B] a right answer is blue, a wrong one orange.
    """
    seen = _look(net, images, labels)
    drawn = net.ops.to_numpy(net.reconstruct(seen.output.capsules))
    columns = _columns(len(drawn), 10)
    left, pitch = MARGIN + 0.25, (WIDTH - 2 * MARGIN - 0.25) / max(columns, 6)
    w, h = _fit(net, pitch - 0.1, pitch - 0.1)
    band = 2 * h + 0.85
    fig = _page(
        HEADER + band * -(-len(drawn) // columns),
        "Reconstructions",
        "above: the image and its label; below: what the decoder draws from the longest capsule, and its length",
    )
    for i, (image, drawing) in enumerate(zip(seen.images, drawn, strict=True)):
        x, y = left + pitch * (i % columns), HEADER + band * (i // columns)
        if i % columns == 0:
            for word, down in (("image", 0.2), ("drawn", 0.25 + h)):
                _text(fig, left - 0.1, y + down + h / 2, word, SMALL, GREY, ha="right", va="center", rotation=90)
        middle, color = x + w / 2, seen.color(i)
        if seen.labels is not None:
            _text(fig, middle, y, _short(net.classes[seen.labels[i]], pitch), BODY, INK, ha="center")
        _tile(fig, (x, y + 0.2, w, h), image)
        _tile(fig, (x, y + 0.25 + h, w, h), drawing, ORANGE if color == ORANGE else LINE)
        answer = f"→ {_short(net.classes[seen.found[i]], pitch - 0.3)}{seen.mark(i)}"
        _text(fig, middle, y + 0.3 + 2 * h, answer, BODY, color, ha="center")
        _text(fig, middle, y + 0.47 + 2 * h, f"{seen.lengths[i].max():.2f}", SMALL, GREY, ha="center")
    return fig


def perturbations(net: CapsNet[Any], image: Any, label: Any = None) -> Figure:
    """Show what each dimension of a class capsule means (figure 4): a row per dimension, a column per step.

    Parameters
    ----------
    image : [C, H, W], or up to a few [B, C, H, W], which stand side by side
    label : the class, or classes [B], of the capsules that are moved; the longest when None
    """
    single = len(np.shape(image)) == 3
    seen = _look(net, net.ops.reshape(net.ops.asarray(image), (1, *np.shape(image))) if single else image)
    chosen = seen.found if label is None else one_hot(np.atleast_1d(label), len(seen.found), net.spec.classes).argmax(1)
    sheets = [_sheet(perturb(net, image, int(j))) for image, j in zip(seen.images, chosen, strict=True)]
    dim, count = net.spec.capsules[-1].dim, len(sheets)
    left = MARGIN + 0.3
    pitch = (WIDTH - MARGIN - left + 0.25) / max(count, 2)
    w = pitch - 0.25
    tall, wide = sheets[0].shape[:2]
    h, top = w * tall / wide, HEADER + 0.65
    fig = _page(
        top + h + 0.55,
        "What the dimensions of a capsule mean",
        "each row: one dimension of the class capsule moved and drawn again; framed: as the network found it",
    )
    for i, sheet in enumerate(sheets):
        x = left + pitch * i
        iw, ih = _fit(net, 0.5, 0.5)
        _tile(fig, (x, HEADER + 0.02, iw, ih), seen.images[i])
        _text(fig, x + iw + 0.1, HEADER + 0.08, _short(net.classes[chosen[i]], w - 0.7), BODY + 2, INK, weight="bold")
        _text(fig, x + iw + 0.1, HEADER + 0.3, f"length {seen.lengths[i, chosen[i]]:.2f}", SMALL, GREY)
        ax = _bare(_axes(fig, (x, top, w, h)))
        ax.imshow(sheet, extent=(-0.5, len(STEPS) - 0.5, dim - 0.5, -0.5), aspect="auto")
        middle = len(STEPS) // 2
        ax.add_patch(Rectangle((middle - 0.5, -0.5), 1, dim, fill=False, ec=BLUE, lw=1.8, clip_on=False))
        ax.set_xticks([0, middle, len(STEPS) - 1], [f"−{-STEPS[0]:g}", "0", f"+{STEPS[-1]:g}"])
        if i == 0:
            ax.set_yticks(range(dim), [str(d + 1) for d in range(dim)])
            _text(fig, x - 0.12, top - 0.06, "dimension", SMALL, GREY, ha="left", va="bottom")
        ax.tick_params(length=0, labelsize=SMALL, labelcolor=GREY, pad=3)
    return fig


def training_curves(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Show loss and errors against the epoch, from the log rows of `capscore.train.train`."""
    if not rows:
        raise ShapeError("the log has no rows yet: train for an epoch")
    epochs = [row["epoch"] for row in rows]
    errors = {
        name: [100 - 100 * row[key] for row in rows]
        for name, key in (("training", "accuracy"), ("held-out", "held_out_accuracy"))
    }
    best = int(np.argmin(errors["held-out"]))
    height = 3.3
    fig = _page(
        HEADER + height,
        "Training",
        f"best held-out error {errors['held-out'][best]:.2f} % at epoch {epochs[best]}; "
        "the training error is that of the shifted images, while learning",
    )
    panels = []
    w, h = (WIDTH - 2 * MARGIN) / 2 - 0.95, height - 0.95
    for i, what in enumerate(("loss", "error, %")):
        ax = _chart(_axes(fig, (MARGIN + 0.35 + i * (w + 1.25), HEADER + 0.3, w, h)))
        _text(fig, MARGIN + i * (w + 1.25), HEADER, what, BODY, INK, weight="bold")
        ax.set_xlabel("epoch", size=SMALL, color=GREY)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        ax.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
        panels.append(ax)
    style = {"marker": "o", "markersize": 3, "linewidth": 1.6}
    panels[0].plot(epochs, [row["loss"] for row in rows], color=INK, **style)
    panels[0].set_ylim(bottom=0)
    low, high = sorted(errors, key=lambda name: errors[name][-1])
    for name, values in errors.items():
        color = BLUE if name == "held-out" else GREY
        panels[1].plot(epochs, values, color=color, **style)
        side = {"va": "bottom", "xytext": (5, 1)} if name == high else {"va": "top", "xytext": (5, -1)}
        label = f"{name}\n{values[-1]:.2f}"
        panels[1].annotate(
            label, (epochs[-1], values[-1]), textcoords="offset points", color=color, size=SMALL, **side
        )
    panels[1].plot(epochs[best], errors["held-out"][best], "o", ms=8, mfc="none", mec=BLUE)
    values = np.array([errors[low], errors[high]])
    if values.min() > 0:
        _decades(panels[1], float(values.min()), float(values.max()))
    else:  # no logarithm of zero
        panels[1].set_ylim(bottom=0)
    return fig


def couplings(net: CapsNet[Any], images: Any) -> Figure:
    """Show routing by agreement for a few images [B, C, H, W], a row each.

    From left to right: the image; where on the primary map the couplings to the winning capsule lie above
    and below an even share, the mean over the types (with one capsule layer only); all couplings to it in
    order of size; and the length of every class capsule. At most four iterations are shown.
    """
    seen, found = _look(net, images), agreement(net, images)
    total, count, _, classes = found.couplings.shape
    shown = np.unique(np.linspace(0, total - 1, min(total, 4)).round().astype(int))
    mapped = len(net.spec.capsules) == 1
    even = float(found.couplings[0].max())
    maps = [_winning(found.couplings[:, b, :, seen.found[b]], net) - even for b in range(count)] if mapped else []
    limit = max([0.01, *(float(np.abs(m[shown]).max()) for m in maps)])
    pitch = 1.25
    side, x_maps = 0.9, MARGIN + 1.15
    x_curve = x_maps + (len(shown) * 0.92 + 0.5 if mapped else 0.45)
    w = (WIDTH - MARGIN - 0.55 - x_curve - 0.6) / 2
    x_length = x_curve + w + 0.6
    top = HEADER + 0.35
    fig = _page(
        top + pitch * count + 0.55,
        "Routing by agreement",
        f"{total} iteration{'s' * (total > 1)}: input capsules turn to the class capsule with which their votes agree",
    )
    if mapped:
        _text(fig, x_maps, HEADER, "couplings to the winner, by place", BODY, INK, weight="bold")
    _text(fig, x_curve, HEADER, "all of them, by size", BODY, INK, weight="bold")
    _text(fig, x_length, HEADER, "length of class capsules", BODY, INK, weight="bold")
    shades = _shades(len(shown))
    for b in range(count):
        y, j = top + pitch * b, seen.found[b]
        iw, ih = _fit(net, side, side)
        _tile(fig, (MARGIN, y, iw, ih), seen.images[b])
        for k, r in enumerate(shown if mapped else ()):
            tall, wide = net.spec.primary_map
            scale = 0.8 / max(tall, wide)
            ax = _bare(_axes(fig, (x_maps + 0.92 * k, y, wide * scale, tall * scale)))
            ax.imshow(maps[b][r], cmap=MORE_OR_LESS, vmin=-limit, vmax=limit, interpolation="nearest")
            note = f"{r + 1}: {found.entropy[r, b]:.2f} bit"
            _text(fig, x_maps + 0.92 * k, y + 0.84, note, SMALL - 1, GREY)
        ax = _chart(_axes(fig, (x_curve, y, w, side)))
        for r, shade in zip(shown, shades, strict=True):
            ordered = np.sort(found.couplings[r, b, :, j])
            ax.plot(np.linspace(0, 100, len(ordered)), ordered, color=shade, lw=1.6)
        ax.set(xlim=(0, 100), ylim=(0, 1), xticks=(0, 50, 100), yticks=(0, 0.5, 1))
        ax2 = _chart(_axes(fig, (x_length, y, w, side)))
        turns = np.arange(1, total + 1)
        for other in np.argsort(found.lengths[-1, b]):
            color, width = (BLUE, 2.0) if other == j else (LINE, 1.0)
            ax2.plot(turns, found.lengths[:, b, other], color=color, lw=width, marker="o", ms=width + 1.5)
        ax2.set(xlim=(0.7, total + 0.3), ylim=(0, 1), yticks=(0, 0.5, 1))
        ax2.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        name = _short(net.classes[j], 0.5)
        _text(fig, x_length + w + 0.05, y + side * (1 - seen.lengths[b, j]), name, BODY, BLUE, va="center", weight="bold")
    return fig


def lengths(net: CapsNet[Any], images: Any, labels: Any = None) -> Figure:
    """Show images [B, C, H, W] beside the lengths of their class capsules, the ten longest if there are more."""
    seen = _look(net, images, labels)
    count, classes = seen.lengths.shape
    columns = _columns(count, 5)
    pitch, bars = (WIDTH - 2 * MARGIN + 0.15) / max(columns, 3), min(classes, 10)
    side = min(0.85, pitch * 0.4)
    tall = max(side, 0.13 * bars)
    band = tall + 0.65
    fig = _page(
        HEADER + band * -(-count // columns),
        "Lengths of the class capsules",
        "how present the network finds each class, from 0 to 1",
    )
    for i in range(count):
        x, y = MARGIN + pitch * (i % columns), HEADER + band * (i // columns)
        w, h = _fit(net, side, side)
        label = None if seen.labels is None else seen.labels[i]
        asked = "" if label is None else f"{_short(net.classes[label], pitch / 2 - 0.2)} "
        answer = f"{asked}→ {_short(net.classes[seen.found[i]], pitch / 2 - 0.2)}{seen.mark(i)}"
        _text(fig, x, y, answer, BODY, seen.color(i), weight="bold")
        _tile(fig, (x, y + 0.22, w, h), seen.images[i])
        order = np.arange(classes) if classes <= 10 else np.argsort(-seen.lengths[i], kind="stable")[:bars]
        names = [_short(net.classes[j], 0.6) for j in order]
        room = 0.12 + 0.07 * max(map(len, names))
        ax = _chart(_axes(fig, (x + w + room, y + 0.22, pitch - w - room - 0.3, tall)), grid="x")
        colors = [BLUE if j == label else seen.color(i) if j == seen.found[i] else "#a9a9a9" for j in order]
        ax.barh(range(bars), seen.lengths[i, order], height=0.72, color=colors)
        ax.set(xlim=(0, 1), ylim=(bars - 0.4, -0.6), xticks=(0, 0.5, 1))
        ax.set_xticklabels(["0", "0.5", "1"])
        ax.set_yticks(range(bars), names, parse_math=False)
        ax.tick_params(labelsize=SMALL - 1, length=0)
    return fig


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as PNG, whole or not at all; the same figure gives the same bytes."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DPI, metadata={"Software": None})
    modelfile.write_atomically(path, content.getvalue())


def explore(
    net: CapsNet[Any],
    data: Dataset,
    folder: str | os.PathLike[str],
    rows: Sequence[Mapping[str, Any]] | None = None,
    count: int = 10,
) -> list[Path]:
    """Write every picture that applies to the network and return the files.

    The `count` examples are drawn with a fixed seed, one of each class in turn. A network without a decoder
    has no reconstructions and perturbations; without log `rows` there are no curves.
    """
    check_dataset(net, data, "example")
    images, labels = data.batch(_examples(data, count))
    found = net.predict(images)
    clear = np.argsort(np.where(found.argmax(1) == labels, -found.max(1), 1), kind="stable")
    figures = {"lengths": lengths(net, images, labels), "couplings": couplings(net, images[:4])}
    if net.spec.decoder is not None:
        figures["reconstructions"] = reconstructions(net, images, labels)
        figures["perturbations"] = perturbations(net, images[np.sort(clear[:3])])
    if rows:
        figures["curves"] = training_curves(rows)
    paths = [Path(folder) / f"{name}.png" for name in figures]
    Path(folder).mkdir(parents=True, exist_ok=True)
    for path, figure in zip(paths, figures.values(), strict=True):
        save(figure, path)
    return paths


def _examples(data: Dataset, count: int) -> NDArray[np.int64]:
    """Return the indices of up to `count` images, one of each class in turn."""
    order = np.random.default_rng(0).permutation(len(data))
    classes = [order[data.labels[order] == j] for j in range(len(data.classes))]
    turns = (i for turn in itertools.zip_longest(*classes) for i in turn if i is not None)
    return np.array(list(itertools.islice(turns, count)))


class _Seen(NamedTuple):
    images: NDArray[Any]  # [B, H, W, 3]
    output: Output[Any]
    lengths: NDArray[Any]  # [B, J]
    found: NDArray[Any]  # [B]: the classes of the longest capsules
    labels: NDArray[Any] | None  # [B]

    def color(self, i: int) -> str:
        if self.labels is None:
            return INK
        return BLUE if self.labels[i] == self.found[i] else ORANGE

    def mark(self, i: int) -> str:
        return {INK: "", BLUE: " ✓", ORANGE: " ✗"}[self.color(i)]  # colour alone does not reach everyone


def _look(net: CapsNet[Any], images: Any, labels: Any = None) -> _Seen:
    if not len(images):
        raise ShapeError("there are no images to show")
    output = net(images)
    lengths = net.ops.to_numpy(output.lengths)
    wanted = None if labels is None else one_hot(labels, *lengths.shape).argmax(1)
    return _Seen(net.ops.to_numpy(net.ops.asarray(images)), output, lengths, lengths.argmax(1), wanted)


def _picture(image: NDArray[Any]) -> NDArray[Any]:
    """Turn [..., C, H, W] into what can be shown, [..., H, W, 3]: the first channel alone unless there are three."""
    channels = image if image.shape[-3] == 3 else image[..., [0, 0, 0], :, :]
    return np.clip(np.moveaxis(channels, -3, -1), 0, 1)


def _sheet(drawings: NDArray[Any]) -> NDArray[Any]:
    """Join drawings [D, S, C, H, W] to one picture with white lines between them."""
    tiles = _picture(drawings)
    gap = max(1, tiles.shape[3] // 14)
    tiles = np.pad(tiles, ((0, 0), (0, 0), (gap, gap), (gap, gap), (0, 0)), constant_values=1)
    dim, steps, height, width, _ = tiles.shape
    return tiles.transpose(0, 2, 1, 3, 4).reshape(dim * height, steps * width, 3)


def _winning(c: NDArray[Any], net: CapsNet[Any]) -> NDArray[Any]:
    """Return couplings [R, N] of one layer as maps [R, H, W], the mean over the types."""
    return c.reshape(len(c), net.spec.primary.types, *net.spec.primary_map).mean(1)


def _shades(count: int) -> list[tuple[float, ...]]:
    light, dark = np.array([0.72, 0.84, 0.92]), np.array([0.0, 0.447, 0.698])
    return [tuple(light + (dark - light) * t) for t in np.linspace(0 if count > 1 else 1, 1, count)]


def _columns(count: int, most: int) -> int:
    """Return how many columns make rows of at most `most` as even as can be."""
    return -(-count // -(-count // most))


def _fit(net: CapsNet[Any], width: float, height: float) -> tuple[float, float]:
    """Return width and height of the network's images, as large as the box allows."""
    _, h, w = net.spec.input
    scale = min(width / w, height / h)
    return w * scale, h * scale


def _short(name: str, inches: float) -> str:
    """Return a class name on one line that fits."""
    room, line = max(3, int(inches / 0.075)), " ".join(name.split())
    return line if len(line) <= room else line[: room - 1] + "…"


def _decades(ax: Axes, low: float, high: float) -> None:
    """Make the y axis logarithmic, with ticks at 1, 2 and 5 that enclose the values."""
    ticks = np.array([d * 10.0**p for p in range(-4, 3) for d in (1, 2, 5)])
    first, last = np.searchsorted(ticks, low, "right") - 1, np.searchsorted(ticks, high, "left")
    kept = ticks[max(first, 0) : last + 1]
    ax.set_yscale("log")
    ax.set_ylim(kept[0] * 0.95, kept[-1] * 1.05)
    ax.set_yticks(kept, [f"{tick:g}" for tick in kept])
    ax.minorticks_off()


def _page(height: float, title: str, note: str) -> Figure:
    fig = Figure(figsize=(WIDTH, height), facecolor="white")
    _text(fig, MARGIN, 0.2, title, HEADING, INK, weight="bold")
    _text(fig, MARGIN, 0.48, note, SMALL, GREY)
    return fig


def _text(fig: Figure, x: float, y: float, text: str, size: float, color: str, va: str = "top", **how: Any) -> None:
    """Write at inches from the left and the top; a class name is no formula."""
    w, h = fig.get_size_inches()
    fig.text(x / w, 1 - y / h, text, size=size, color=color, va=va, parse_math=False, **how)


def _axes(fig: Figure, box: tuple[float, float, float, float]) -> Axes:
    """Return axes at (x, y, width, height) in inches from the left and the top."""
    w, h = fig.get_size_inches()
    return fig.add_axes((box[0] / w, 1 - (box[1] + box[3]) / h, box[2] / w, box[3] / h), facecolor="white")


def _bare(ax: Axes) -> Axes:
    ax.set(xticks=(), yticks=())
    ax.spines[:].set_visible(False)
    return ax


def _tile(fig: Figure, box: tuple[float, float, float, float], image: NDArray[Any], edge: str = LINE) -> None:
    ax = _bare(_axes(fig, box))
    ax.imshow(_picture(image), aspect="auto")
    ax.spines[:].set(visible=True, color=edge, linewidth=0.8 if edge == LINE else 2)


def _chart(ax: Axes, grid: str = "y") -> Axes:
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set(color=LINE)
    ax.grid(axis=grid, color=LINE, lw=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=SMALL, labelcolor=GREY, color=LINE, length=3)
    return ax
