"""Pictures of where a network is wrong: which classes it mixes up, and the images that it finds hardest."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from . import figures
from .figures import BLUE, GREY, HEADER, INK, MARGIN, ORANGE, SMALL, WIDTH
from .metrics import Measures

page, text, axes, tile, short = figures._page, figures._text, figures._axes, figures._tile, figures._short

SHOWN = 30  # classes whose names and numbers there is room for
NAMES = 1.3  # inches for the names of the classes


def confusion(measures: Measures) -> Figure:
    """Draw the confusion matrix: a row for each true class, a column for each answer, and in a cell how many images.

    Colour tells the share of the row: blue for right answers, orange for wrong ones.
    """
    counts = measures.confusion
    assert counts is not None, "a confusion matrix is for one class an image"
    classes = len(counts)
    side = min(0.45, (WIDTH - 2 * MARGIN - NAMES) / classes)
    fig = page(
        HEADER + NAMES + side * classes + 0.3,
        "Confusion",
        f"{measures.images:,} images: a row for each class, a column for each answer; colour is the share of the row",
    )
    ax = axes(fig, (MARGIN + NAMES, HEADER + NAMES, side * classes, side * classes))
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    ax.imshow(share * np.where(np.eye(classes), 1, -1), figures.BALANCE, vmin=-1, vmax=1, aspect="auto")
    ax.set(xticks=(), yticks=())
    if classes > SHOWN:
        return fig
    for j, name in enumerate(measures.classes):
        at, called = HEADER + NAMES + side * (j + 0.5), short(name, NAMES - 0.1)
        text(fig, MARGIN + NAMES - 0.08, at, called, va="center", ha="right")
        text(
            fig, MARGIN + NAMES + side * (j + 0.5), HEADER + NAMES - 0.08, called, va="bottom", ha="center", rotation=90
        )
        for k in np.flatnonzero(counts[j]):
            ink = "white" if share[j, k] > 0.6 else INK
            ax.text(float(k), j, f"{counts[j, k]:,}", ha="center", va="center", color=ink, size=min(SMALL, 18 * side))
    return fig


def hardest(images: NDArray[Any], measures: Measures, index: NDArray[np.int64]) -> Figure:
    """Draw the images [K, C, H, W] at the positions `index` [K], with their classes, the answers and their scores."""
    columns, wide = 8, (WIDTH - 2 * MARGIN) / 8 - 0.12
    band = wide + 0.6
    fig = page(
        HEADER + band * max(1, -(-len(index) // columns)),
        "The hardest images",
        "the most wrong first: what each shows, and what the network says, with its score",
    )
    for i, (image, at) in enumerate(zip(images, index, strict=True)):
        x, y = MARGIN + (wide + 0.12) * (i % columns), HEADER + band * (i // columns)
        _, h, w = image.shape
        tile(fig, (x, y, wide * w / max(h, w), wide * h / max(h, w)), image)
        wanted = ", ".join(measures.classes[j] for j in np.flatnonzero(measures.targets[at])) or "none"
        best = np.argsort(-measures.scores[at], kind="stable")
        found = [j for j in best if measures.answers[at, j]]
        said = ", ".join(measures.classes[j] for j in found) or "none"
        sign, colour = ("✓", BLUE) if measures.right[at] else ("✗", ORANGE)
        text(fig, x, y + wide + 0.05, short(wanted, wide), GREY, SMALL)
        text(fig, x, y + wide + 0.2, f"→ {short(said, wide - 0.3)} {sign}", colour, SMALL)
        text(fig, x, y + wide + 0.35, f"{measures.scores[at, best[0]]:.2f}", GREY, SMALL)
    return fig
