"""Pictures of what a network does: reconstructions, capsule dimensions, routing, lengths and training curves.

They need matplotlib but nothing of its global state: every function returns a `Figure` of its own, so they
work without a display and in threads. Pages are laid out in inches from the left and the top.
"""

from __future__ import annotations

import io
import itertools
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import disk
from .data import Augmentation, Pairs, Samples, augmented, targets_of
from .errors import BackendError, ShapeError
from .layer import Row, Run
from .model import CapsNet, Output, one_hot
from .net import CapsNetSpec, forward
from .squash import lengths as lengths_of
from .train import check_dataset, found_all, right_for

try:
    from matplotlib.axes import Axes
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.font_manager import fontManager
    from matplotlib.patches import Rectangle
    from matplotlib.text import Text
    from matplotlib.ticker import MaxNLocator
except ModuleNotFoundError as error:
    raise BackendError("figures need matplotlib: pip install 'capscore[plot]'") from error

Box = tuple[float, float, float, float]  # x, y of the upper left corner, width, height

DPI = 150
WIDTH, MARGIN, HEADER = 9.0, 0.3, 0.85  # of every page: 1,350 pixels, legible at two thirds of that
HEADING, BODY, SMALL = 13, 9, 8  # points
EASTERN = (  # fonts that have these letters: of Linux, Windows and macOS
    "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Microsoft YaHei", "SimHei",
    "Malgun Gothic", "PingFang SC", "Hiragino Sans GB", "Arial Unicode MS",
)  # fmt: skip
LATIN = "\u2e80"  # letters behind it are Eastern
NOTE = 120  # characters of a note beneath a heading
INK, GREY, PALE, LINE = "#222222", "#6b6b6b", "#a9a9a9", "#d0d0d0"
BLUE, ORANGE, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"  # told apart with every colour blindness
BALANCE = LinearSegmentedColormap.from_list("balance", [ORANGE, "#f4f4f4", BLUE])
DEEPER = LinearSegmentedColormap.from_list("deeper", ["#b8d6ea", BLUE])
STEPS = np.arange(-5, 6) * 0.05  # the paper's perturbations, the middle one exactly zero


def perturb(net: CapsNet[Any], image: Any, label: int | None = None, steps: Any = STEPS) -> NDArray[Any]:
    """Draw an image again with each dimension of one class capsule moved (section 5.1).

    Parameters
    ----------
    image : [C, H, W], as the network takes it
    label : the class whose capsule is moved and drawn; the longest when None
    steps : [S], what is added to the dimension

    Returns
    -------
    drawings [D, S, C, H, W]: in row d it is dimension d that moves
    """
    seen = _run_for_picture(net, net.ops.asarray(image)[None])
    capsules = net.ops.to_numpy(seen.output.capsules)  # [1, J, D]
    label = int(seen.found[0]) if label is None else label
    dim = capsules.shape[2]
    shifts = np.eye(dim)[:, None] * np.reshape(steps, (-1, 1))  # [D, S, D]
    moved = capsules + shifts.reshape(-1, 1, dim).astype(capsules.dtype)  # [D·S, J, D], all but `label` masked
    drawn = net.ops.to_numpy(net.reconstruct(moved, np.full(len(moved), label)))
    sheet: NDArray[Any] = drawn.reshape(dim, -1, *drawn.shape[1:])
    return sheet


class Agreement(NamedTuple):
    """How the last capsule layer routed B images, iteration by iteration."""

    couplings: NDArray[Any]  # [R, B, N, J]
    lengths: NDArray[Any]  # [R, B, J]: of the class capsules that an iteration's couplings make
    entropy: NDArray[Any]  # [R, B]: of an input capsule's couplings in bits, the mean over the N


def agreement(net: CapsNet[Any], images: Any) -> Agreement:
    """Follow the routing of images [B, C, H, W] through its iterations.

    What leaky routing gives to no capsule counts in the entropy as one more share; self-attention adds a prior, after
    which couplings may be negative, that is none, and their sum another than 1. ShapeError: the network has no layer
    that routes into the classes.
    """
    ops, run, last = net.ops, Run(trace=[]), routed_classes(net.spec)
    if last is None:
        raise ShapeError("this network has no layer that routes into its classes")
    x = ops.asarray(images, next(iter(net.params.values())))
    batch = x.shape[0]
    forward(ops, net.spec, net.params, x, run)
    iterations = [each for each in run.trace or () if each.layer == last.name]
    length = np.stack([ops.to_numpy(lengths_of(ops, v)).T for _, _, v, _ in iterations])
    shape = last.output.dims[0], batch, last.input.dims[0]
    found = [np.full(shape, c) if isinstance(c, float) else ops.to_numpy(c) for _, c, *_ in iterations]  # [J, B, N]
    c = np.stack([each.transpose(1, 2, 0) for each in found]).astype(np.float64)
    shares = np.concatenate([np.maximum(c, 0), np.clip(1 - c.sum(-1, keepdims=True), 0, 1)], -1)
    shares /= shares.sum(-1, keepdims=True)
    entropy = -(shares * np.log2(np.maximum(shares, 1e-300))).sum(-1).mean(-1)
    return Agreement(c, length, entropy)


def routed_classes(spec: CapsNetSpec) -> Row | None:
    """Return the layer, maybe within another, that routes into the class capsules; None if there is none."""
    routing = [row for top in spec.rows for row in top.within if row.name in spec.routed]
    return routing[-1] if routing and routing[-1].output.dims[0] == spec.classes else None


def reconstructions(net: CapsNet[Any], images: Any, labels: Any = None) -> Figure:
    """Show images [B, C, H, W] above what the decoder draws from the capsules of their highest scores.

    Below stand the class found and its length, or how sure a network with scores of its own is of it; with `labels` [B]
    a right one is blue, a wrong one orange.
    """
    seen = _run_for_picture(net, images, labels)
    drawn = net.ops.to_numpy(net.reconstruct(seen.output))
    columns = _columns(len(drawn), 10)
    left = MARGIN + 0.5
    pitch = (WIDTH - MARGIN - left + 0.1) / max(columns, 6)
    w, h = _fit(net, pitch - 0.1)
    band = 2 * h + 0.85
    fig = _page(
        HEADER + band * -(-len(drawn) // columns),
        "Reconstructions",
        "above: image and label; below: what the decoder draws from the capsule of the class found, and "
        + ("how sure the network is of it" if net.spec.own_scores else "its length"),
    )
    for i, drawing in enumerate(drawn):
        x, y = left + pitch * (i % columns) + (pitch - 0.1 - w) / 2, HEADER + band * (i // columns)
        for word, middle in (("image", 0.2 + h / 2), ("drawn", 0.25 + 1.5 * h)) if i % columns == 0 else ():
            _text(fig, MARGIN, y + middle, word, GREY, SMALL, va="center")
        asked, answer, color = seen.says(net, i, pitch)
        _text(fig, x + w / 2, y, asked, ha="center")
        _tile(fig, (x, y + 0.2, w, h), seen.images[i])
        _tile(fig, (x, y + 0.25 + h, w, h), drawing, ORANGE if color == ORANGE else LINE)
        _text(fig, x + w / 2, y + 0.3 + 2 * h, answer, color, ha="center")
        _text(fig, x + w / 2, y + 0.47 + 2 * h, f"{seen.sure[i, seen.found[i]]:.2f}", GREY, SMALL, ha="center")
    return fig


def perturbations(net: CapsNet[Any], image: Any, label: Any = None) -> Figure:
    """Show what each dimension of a class capsule means (figure 4): a row per dimension, a column per step.

    Parameters
    ----------
    image : [C, H, W], or a few [B, C, H, W] that stand side by side
    label : the class, or classes [B], of the capsules that are moved; the longest when None
    """
    images = net.ops.asarray(image)
    seen = _run_for_picture(net, images[None] if len(images.shape) == 3 else images)
    chosen = seen.found if label is None else one_hot(np.atleast_1d(label), *seen.sure.shape).argmax(1)
    # The paper's capsules are no longer than 1; steps grow with longer ones, in which they would not be seen.
    length = net.ops.to_numpy(seen.output.lengths)
    reach = [max(1.0, float(length[i, j])) for i, j in enumerate(chosen)]
    moved = zip(seen.images, chosen, reach, strict=True)
    sheets = [_sheet(perturb(net, x, int(j), STEPS * most)) for x, j, most in moved]
    dim, middle, end = net.spec.output.dims[1], len(STEPS) // 2, len(STEPS) - 1
    left, top = MARGIN + 0.45, HEADER + 0.65
    pitch = (WIDTH - MARGIN - left + 0.2) / max(len(sheets), 2)
    w = pitch - 0.25
    h = w * sheets[0].shape[0] / sheets[0].shape[1]
    fig = _page(
        top + h + 0.4,
        "What the dimensions of a capsule mean",
        "in each row one dimension of the class capsule is moved and the image drawn again; framed: unmoved",
    )
    _text(fig, MARGIN, top + h / 2, "dimension", GREY, SMALL, ha="left", va="center", rotation=90)
    tile_w, tile_h = _fit(net, 0.5)
    for i, (sheet, j) in enumerate(zip(sheets, chosen, strict=True)):
        x = left + pitch * i
        _tile(fig, (x, HEADER, tile_w, tile_h), seen.images[i])
        _text(fig, x + tile_w + 0.1, HEADER + 0.06, _short(net.classes[j], w - 0.7), size=BODY + 2, weight="bold")
        _text(fig, x + tile_w + 0.1, HEADER + 0.29, f"length {length[i, j]:.2f}", GREY, SMALL)
        ax = _axes(fig, (x, top, w, h))
        ax.imshow(sheet, extent=(-0.5, end + 0.5, dim - 0.5, -0.5), aspect="auto")
        ax.add_patch(Rectangle((middle - 0.5, -0.5), 1, dim, fill=False, ec=BLUE, lw=1.8, clip_on=False))
        far = STEPS[end] * reach[i]
        ax.set_xticks([0, middle, end], [f"−{far:.2g}", "0", f"+{far:.2g}"])
        ax.set_yticks(range(dim), [str(d + 1) if i == 0 else "" for d in range(dim)])
        ax.tick_params(length=0, labelsize=SMALL, labelcolor=GREY)
    return fig


def training_curves(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Show loss and errors against the epoch, from the log rows of `capscore.train.train`."""
    if not rows:
        raise ShapeError("there are no log rows to draw: train for an epoch")
    epochs, training, held_out = (
        np.array([row[key] for row in rows]) for key in ("epoch", "accuracy", "held_out_accuracy")
    )
    curves = {"training": (100 * (1 - training), GREY), "held-out": (100 * (1 - held_out), BLUE)}
    best = int(held_out.argmax())
    fig = _page(
        HEADER + 3.2,
        "Training",
        f"best held-out error {100 * (1 - held_out[best]):.2f} % at epoch {epochs[best]}; "
        "the training error is that of the shifted images, while learning",
    )
    left, right = (_chart(_axes(fig, (x, HEADER + 0.3, 3.2, 2.3))) for x in (MARGIN + 0.35, 4.75))
    for ax, what in ((left, "loss"), (right, "error, %")):
        ax.set_title(what, loc="left", size=BODY, color=INK, weight="bold", pad=10)
        ax.set_xlabel("epoch", size=SMALL, color=GREY)
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        ax.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
    left.plot(epochs, [row["loss"] for row in rows], color=INK, marker="o", ms=3)
    left.set_ylim(bottom=0)
    upper = max(curves, key=lambda name: float(curves[name][0][-1]))
    for name, (errors, color) in curves.items():
        right.plot(epochs, errors, color=color, marker="o", ms=3)
        va: Literal["bottom", "top"] = "bottom" if name == upper else "top"  # the two never cover each other
        label, at = f"{name} {errors[-1]:.2f}", (float(epochs[-1]), float(errors[-1]))
        right.annotate(label, at, (8, 0), textcoords="offset points", color=color, size=BODY, va=va)
    right.plot(epochs[best], curves["held-out"][0][best], "o", ms=8, mfc="none", mec=BLUE)
    values = np.concatenate([errors for errors, _ in curves.values()])
    if values.min() > 0:  # zero has no logarithm
        ticks = np.array([digit * 10.0**power for power in range(-15, 3) for digit in (1, 2, 5)])
        low, high = np.searchsorted(ticks, [values.min() / 1.1, values.max() * 1.1])  # the ticks that enclose all
        right.set_yscale("log")
        right.set_ylim(ticks[low - 1], ticks[high])
        right.set_yticks(ticks[low - 1 : high + 1], [f"{tick:g}" for tick in ticks[low - 1 : high + 1]])
        right.minorticks_off()
    return fig


def couplings(net: CapsNet[Any], images: Any) -> Figure:
    """Show routing by agreement for a few images [B, C, H, W], a row each, up to three of its iterations.

    From left to right: the image; on the primary map, where the couplings to the class found lie above (blue)
    and below (orange) an even share, the mean over the types, in one scale for all images (not with several capsule
    layers); all of them in order of size, with the mean entropy; the length of every class capsule, where that is what
    the network says. ShapeError: the network has no layer that routes into its classes.
    """
    seen, found = _run_for_picture(net, images), agreement(net, images)
    total, count = found.entropy.shape
    shown = np.unique(np.linspace(0, total - 1, min(total, 3)).round().astype(int))
    winner = np.stack([found.couplings[shown, b, :, j] for b, j in enumerate(seen.found)])  # [B, shown, N]
    last: Any = routed_classes(net.spec)
    types, tall, wide = last.input[:3]
    mapped = tall * wide > 1
    maps = (winner - found.couplings[0].max()).reshape(count, len(shown), types, tall, wide).mean(2) if mapped else []
    limit = max(0.01, float(np.abs(maps).max())) if mapped else 0
    side, pitch, top = 0.85, 1.2, HEADER + 0.5
    x_maps, step = MARGIN + 1.1, 0.95
    x_rank = x_maps + 0.4 + (step * max(2, len(shown)) if mapped else 0)
    w = (WIDTH - MARGIN - 1.1 - x_rank) / 2
    x_length = x_rank + w + 0.5
    fig = _page(
        top + pitch * count + 0.25,
        "Routing by agreement",
        "input capsules turn to the class capsule that their votes agree with, from one iteration to the next",
    )
    heads = [
        (
            x_rank,
            "by rank, with entropy" if mapped else "couplings to the winner, by rank",
            "light to dark: the iterations",
        ),
    ]
    if told := not net.spec.own_scores:
        heads.append((x_length, "class-capsule lengths", ""))
    if mapped:
        heads.append((x_maps, "couplings to the winner", f"blue above even, full colour: ±{limit:.2g}"))
    for x, head, note in heads:
        _text(fig, x, HEADER, head, weight="bold")
        _text(fig, x, HEADER + 0.2, note, GREY, SMALL)
    for b, j in enumerate(seen.found):
        y, lowest = top + pitch * b, b == count - 1
        _tile(fig, (MARGIN, y, *_fit(net, side)), seen.images[b])
        for k, r in enumerate(shown if mapped else ()):
            scale = side / max(tall, wide)
            ax = _axes(fig, (x_maps + step * k, y, wide * scale, tall * scale))
            ax.set(xticks=(), yticks=())
            ax.set_xlabel(f"iteration {r + 1}" if lowest else "", size=SMALL, color=GREY)
            ax.imshow(maps[b][k], BALANCE, vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
        _ranked(_chart(_axes(fig, (x_rank, y, w, side)), "rank" if lowest else ""), winner[b])
        bits = " → ".join(f"{e:.2f}" for e in found.entropy[shown, b])
        _text(fig, x_rank + w, y + 0.06, f"{bits} bit", GREY, SMALL, ha="right")
        height = y + side * (1 - found.lengths[-1, b, j] if told else 0.5)
        _text(fig, x_length + w * told + 0.05, height, _short(net.classes[j], 0.6), BLUE, va="center", weight="bold")
        if told:
            ax = _chart(_axes(fig, (x_length, y, w, side)), "iteration" if lowest else "")
            _followed(ax, found.lengths[:, b], j)
    return fig


def _ranked(ax: Axes, couplings: NDArray[Any]) -> None:
    """Draw couplings [R, N] in order of size, a line for each iteration, from light to dark."""
    for k, c in enumerate(couplings):
        depth = k / (len(couplings) - 1) if len(couplings) > 1 else 1.0
        ax.plot(range(1, len(c) + 1), -np.sort(-c), color=DEEPER(depth))
    ax.set(xscale="log", xlim=(1, None), ylim=(0, 1), yticks=(0, 0.5, 1))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.minorticks_off()


def _followed(ax: Axes, lengths: NDArray[Any], winner: int) -> None:
    """Draw lengths [R, J] against the iterations, that of the winner above the others."""
    total, classes = lengths.shape
    for j in (*np.flatnonzero(np.arange(classes) != winner), winner):
        ax.plot(range(1, total + 1), lengths[:, j], color=BLUE if j == winner else PALE, marker="o", ms=3)
    ax.set(xlim=(0.7, total + 0.3), ylim=(0, 1), yticks=(0, 0.5, 1))
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))


def lengths(net: CapsNet[Any], images: Any, labels: Any = None) -> Figure:
    """Show images [B, C, H, W] beside the lengths of their class capsules, the ten longest if there are more.

    A network with scores of its own shows how sure it is of each class by these, see `Loss.chances`.

    With `labels` [B] the true class is blue and a wrong answer orange.
    """
    seen = _run_for_picture(net, images, labels)
    count, classes = seen.sure.shape
    room, most = (0.75, 5) if max(map(len, net.classes)) < 5 else (1.05, 3)  # long names take their place
    columns, bars = _columns(count, most), min(classes, 10)
    pitch = (WIDTH - 2 * MARGIN + 0.2) / max(columns, 3)
    w, h = _fit(net, 0.75)
    tall = max(h + 0.55, 0.14 * bars)
    band = tall + 0.45
    fig = _page(
        HEADER + band * -(-count // columns),
        "Scores of the classes" if net.spec.own_scores else "Lengths of the class capsules",
        "how sure the network is that each class is present, from 0 to 1",
    )
    for i, found in enumerate(seen.sure):
        x, y = MARGIN + pitch * (i % columns), HEADER + band * (i // columns)
        asked, answer, color = seen.says(net, i, room + 0.1)
        _tile(fig, (x, y, w, h), seen.images[i])
        _text(fig, x, y + h + 0.06, f"{asked}\n{answer}".strip(), color, linespacing=1.3)
        shown = np.arange(classes) if classes <= 10 else np.argsort(-found, kind="stable")[:bars]
        names = [_short(net.classes[j], 0.85) for j in shown]
        indent = room + 0.12 + 0.07 * max(map(len, names))
        ax = _chart(_axes(fig, (x + indent, y, pitch - indent - 0.3, min(tall, 0.3 * bars))), grid="x")
        true = None if seen.labels is None else seen.labels[i]
        colors = [BLUE if j == true else color if j == seen.found[i] else PALE for j in shown]
        ax.barh(range(bars), found[shown], height=0.72, color=colors)
        ax.set(xlim=(0, 1), ylim=(bars - 0.4, -0.6), xticks=(0, 0.5, 1))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.set_yticks(range(bars), names, parse_math=False)
        ax.tick_params(labelsize=SMALL - 1, length=0)
    return fig


def overlapping(net: CapsNet[Any], pairs: Pairs, index: NDArray[np.int64]) -> Figure:
    """Show images of two overlapping objects, and each object drawn on its own (figure 5).

    In the two lower rows one object is magenta and the other green, and white is where both are: as they were before
    they were laid on top of each other, and as the decoder draws the two longest capsules, one at a time. Below
    stand the two classes that were found, in their colours; a frame tells of a wrong answer.
    """
    parts, labels = pairs.parts(index)
    images, _ = pairs.batch(index)
    seen = _run_for_picture(net, images)
    correct = found_all(seen.sure, targets_of(labels, net.spec.classes))
    longest = np.argsort(-seen.sure, axis=1, kind="stable")[:, :2]
    # The first colour is the first object's, if it was found at all.
    swapped = (longest[:, 0] == labels[:, 1]) | (longest[:, 1] == labels[:, 0])
    longest[swapped] = longest[swapped, ::-1]
    drawn = [net.ops.to_numpy(net.reconstruct(seen.output.capsules, longest[:, i])) for i in (0, 1)]
    columns = _columns(len(images), 9)
    left = MARGIN + 0.75
    pitch = (WIDTH - MARGIN - left + 0.1) / max(columns, 5)
    w, h = _fit(net, pitch - 0.1)
    band = 3 * (h + 0.06) + 0.5
    fig = _page(
        HEADER + band * -(-len(images) // columns),
        "Overlapping objects",
        "one object magenta, the other green, white where both are: as they were, and as each of the two longest "
        "capsules is drawn alone",
    )
    rows = (seen.images, _two_colours(parts[:, 0], parts[:, 1]), _two_colours(*drawn))
    for i in range(len(images)):
        x, y = left + pitch * (i % columns), HEADER + band * (i // columns)
        for r, (name, row) in enumerate(zip(("image", "objects", "drawn"), rows, strict=True)):
            if i % columns == 0:
                _text(fig, MARGIN, y + (h + 0.06) * r + h / 2, name, GREY, SMALL, va="center")
            _tile(fig, (x, y + (h + 0.06) * r, w, h), row[i], LINE if correct[i] or r < 2 else ORANGE)
        for k, (j, color) in enumerate(zip(longest[i], ("#a000a0", "#008000"), strict=True)):
            at, ha = (x + w / 2 - 0.03, "right") if k == 0 else (x + w / 2 + 0.03, "left")
            sign = "" if j in labels[i] else " ✗"
            _text(fig, at, y + 3 * (h + 0.06), _short(net.classes[j], w / 2) + sign, color, ha=ha, weight="bold")
    return fig


def augmentations(
    data: Samples, changes: Sequence[Augmentation], rows: int = 8, columns: int = 8, shift: int = 0
) -> Figure:
    """Show images as they are, and beside each what training would see of it in as many epochs.

    Training moves images by up to `shift` whole pixels each way first.
    """
    index = examples(data, rows)
    rows = len(index)

    def seen(epoch: int) -> NDArray[Any]:
        rng = np.random.default_rng(epoch)
        moved = data.moved(index, shift, *rng.integers(0, 2 * shift + 1, (2, rows)))
        return np.asarray(augmented(moved, changes, rng).images)

    rounds = [seen(epoch) for epoch in range(columns)]
    side, step = 0.85, 0.9
    names = textwrap.wrap(", ".join(repr(change) for change in changes) or "no change", NOTE)
    top = HEADER + 0.15 * (len(names) - 1)
    fig = _page(top + rows * step + MARGIN, "What training sees", "\n".join(names))
    for row, image in enumerate(data.batch(index)[0]):
        y = top + row * step
        _tile(fig, (MARGIN, y, side, side), image)
        for column, images in enumerate(rounds):
            _tile(fig, (MARGIN + (column + 1) * step + 0.15, y, side, side), images[row])
    return fig


def _two_colours(first: NDArray[Any], second: NDArray[Any]) -> NDArray[Any]:
    """Return two grey pictures [B, C, H, W] as the magenta and the green of one, [B, 3, H, W]."""
    magenta, green = first.mean(1), second.mean(1)
    return np.stack([magenta, green, magenta], 1)


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as PNG, whole or not at all; the same figure gives the same bytes."""
    disk.write_atomically(path, png(figure))


def png(figure: Figure) -> bytes:
    """Return a figure as PNG, its words in fonts of this machine that have letters of Chinese, Japanese and Korean."""
    there = {font.name for font in fontManager.ttflist}
    fonts = ["sans-serif", *(font for font in EASTERN if font in there)]
    for text in figure.findobj(Text):
        if isinstance(text, Text) and max(text.get_text(), default="") > LATIN:
            text.set_fontfamily(fonts)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DPI, metadata={"Software": None})
    return content.getvalue()


def explore(
    net: CapsNet[Any],
    data: Samples,
    folder: str | os.PathLike[str],
    rows: Sequence[Mapping[str, Any]] | None = None,
    count: int = 10,
) -> list[Path]:
    """Write every picture that applies to the network and return the files.

    The `count` examples are always the same, one of each class in turn. A network without a decoder has no
    reconstructions and perturbations, one that routes into no class no couplings; without log `rows` there are no
    curves. Of `Pairs` both objects are drawn.
    """
    data = check_dataset(net, data, "example")
    index = examples(data, count)
    images, classes = data.batch(index)
    labels = None if classes.ndim > 1 else classes
    figures: dict[str, Figure] = {}
    if net.spec.decoder is not None:
        figures["reconstructions"] = reconstructions(net, images, labels)
        if isinstance(data, Pairs):
            figures["overlapping"] = overlapping(net, data, index)
        found = net.predict(images)
        correct = right_for(data)(found, targets_of(classes, net.spec.classes))
        clearest = np.argsort(np.where(correct, -found.max(1), 0), kind="stable")[:3]
        figures["perturbations"] = perturbations(net, images[np.sort(clearest)])
    if routed_classes(net.spec) is not None:
        figures["couplings"] = couplings(net, images[:4])
    figures["lengths"] = lengths(net, images, labels)
    if rows:
        figures["curves"] = training_curves(rows)
    files = {disk.make_folder(folder) / f"{name}.png": figure for name, figure in figures.items()}
    for file, figure in files.items():
        save(figure, file)
    return list(files)


def examples(data: Samples, count: int) -> NDArray[np.int64]:
    """Return the indices of up to `count` images: one of each class in turn, and one of none; of pairs the first."""
    if isinstance(data, Pairs):  # drawn at random, and millions
        return np.arange(min(count, len(data)))
    order = np.random.default_rng(0).permutation(len(data))
    shown = data.labels[order] if data.labels.ndim > 1 else data.labels[order, None] == np.arange(len(data.classes))
    classes = [order[one] for one in (*shown.T, ~shown.any(1))]
    turns = (i for turn in itertools.zip_longest(*classes) for i in turn if i is not None)
    # each once, however many classes it shows
    return np.fromiter(itertools.islice(dict.fromkeys(turns), count), np.int64)


class _Seen(NamedTuple):
    images: NDArray[Any]  # [B, C, H, W]
    output: Output[Any]
    sure: NDArray[Any]  # [B, J]: lengths, or the chances of each class where the network has scores of its own
    found: NDArray[Any]  # [B]: the classes of the highest scores
    labels: NDArray[Any] | None  # [B]

    def says(self, net: CapsNet[Any], i: int, inches: float) -> tuple[str, str, str]:
        """Return image i's label, the class found, and the colour; a sign too, as colour does not reach everyone."""
        answer = "→ " + _short(net.classes[self.found[i]], inches - 0.3)
        if self.labels is None:
            return "", answer, INK
        asked = _short(net.classes[self.labels[i]], inches)
        return (asked, f"{answer} ✓", BLUE) if self.labels[i] == self.found[i] else (asked, f"{answer} ✗", ORANGE)


def _run_for_picture(net: CapsNet[Any], images: Any, labels: Any = None) -> _Seen:
    output = net(images)
    scores = net.ops.to_numpy(output.scores)
    sure = net.ops.to_numpy(net.spec.loss.chances(net.ops, output.scores)) if net.spec.own_scores else scores
    if not len(sure):
        raise ShapeError("there are no images to show")
    wanted = None if labels is None else one_hot(labels, *sure.shape).argmax(1)
    return _Seen(net.ops.to_numpy(net.ops.asarray(images)), output, sure, scores.argmax(1), wanted)


def _picture(image: NDArray[Any]) -> NDArray[Any]:
    """Turn [..., C, H, W] into what can be shown, [..., H, W, 3]: the first channel in grey unless there are three."""
    channels = image if image.shape[-3] == 3 else image[..., [0, 0, 0], :, :]
    shown: NDArray[Any] = np.clip(np.moveaxis(channels, -3, -1), 0, 1)
    return shown


def _sheet(drawings: NDArray[Any]) -> NDArray[Any]:
    """Join drawings [D, S, C, H, W] to one picture with white lines between them."""
    gap = -(-drawings.shape[-1] // 28)
    tiles = np.pad(_picture(drawings), ((0, 0), (0, 0), (gap, gap), (gap, gap), (0, 0)), constant_values=1)
    joined: NDArray[Any] = np.concatenate(np.concatenate(tiles, 1), 1)  # [S, D·H, W, 3], then [D·H, S·W, 3]
    return joined


def _columns(count: int, most: int) -> int:
    """Return how many columns, of at most `most`, make rows as even as can be."""
    return -(-count // -(-count // most))


def _fit(net: CapsNet[Any], side: float) -> tuple[float, float]:
    """Return width and height of the network's images, the longer one being `side`."""
    _, h, w = net.spec.input
    return w * side / max(h, w), h * side / max(h, w)


def _short(name: str, inches: float) -> str:
    """Return a class name on one line that fits."""
    room, line = max(3, int(inches / 0.075)), " ".join(name.split())
    return line if len(line) <= room else line[: room - 1] + "…"


def _page(height: float, title: str, note: str) -> Figure:
    fig = Figure(figsize=(WIDTH, height), facecolor="white")
    _text(fig, MARGIN, 0.2, title, size=HEADING, weight="bold")
    _text(fig, MARGIN, 0.48, note, GREY, SMALL)
    return fig


def _text(fig: Figure, x: float, y: float, text: str, color: str = INK, size: float = BODY, **how: Any) -> None:
    w, h = fig.get_size_inches()
    how = {"va": "top", "parse_math": False, **how}  # a dollar in a class name begins no formula
    fig.text(x / w, 1 - y / h, text, size=size, color=color, **how)


def _axes(fig: Figure, box: Box) -> Axes:
    (w, h), (x, y, width, height) = fig.get_size_inches(), box
    ax = fig.add_axes((x / w, 1 - (y + height) / h, width / w, height / h), facecolor="white")
    ax.spines[:].set_visible(False)
    return ax


def _tile(fig: Figure, box: Box, image: NDArray[Any], edge: str = LINE) -> None:
    ax = _axes(fig, box)
    ax.set(xticks=(), yticks=())
    ax.imshow(_picture(image), aspect="auto")
    ax.spines[:].set(visible=True, color=edge, linewidth=0.8 if edge == LINE else 2)


def _chart(ax: Axes, label: str = "", grid: Literal["x", "y"] = "y") -> Axes:
    ax.spines[["left", "bottom"]].set(visible=True, color=LINE)
    ax.grid(axis=grid, color=LINE, lw=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=SMALL, labelcolor=GREY, color=LINE, length=3)
    ax.set_xlabel(label, size=SMALL, color=GREY)
    return ax
