"""Pictures of where a network is wrong: which classes it mixes up, and the images that it finds hardest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import figures
from .figures import BLUE, GREY, HEADER, INK, MARGIN, ORANGE, SMALL, WIDTH
from .metrics import Measures

if TYPE_CHECKING:  # `figures` says what to do where there is no matplotlib
    from matplotlib.figure import Figure

page, text, axes, tile, short = figures._page, figures._text, figures._axes, figures._tile, figures._short

SHOWN = 30  # classes whose names and numbers there is room for
NAMES = 1.3  # inches for the names of the classes
CAPTION = 0.6  # inches for what stands below an image, and the space to the next


def confusion(measures: Measures) -> Figure:
    """Draw the confusion matrix: a row for each true class, a column for each answer, and in a cell how many images.

    Colour tells the share of the row: blue for right answers, orange for wrong ones.
    """
    counts = measures.confusion
    assert counts is not None, "a confusion matrix is for one class an image"
    side = min(0.45, (WIDTH - 2 * MARGIN - NAMES) / len(counts))
    fig = page(
        HEADER + NAMES + side * len(counts) + 0.3,
        "Confusion",
        f"{measures.images:,} images: a row for each class, a column for each answer; colour is the share of the row",
    )
    matrix(fig, MARGIN, HEADER, counts, measures.classes, side)
    return fig


def matrix(
    fig: Figure,
    x: float,
    y: float,
    counts: NDArray[np.int64],
    classes: Sequence[str],
    side: float,
    names: float = NAMES,
) -> None:
    """Draw counts [J, J], in cells of `side` inches, behind and below `names` inches for the names of the classes."""
    left, top = x + names, y + names
    ax = axes(fig, (left, top, side * len(counts), side * len(counts)))
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    ax.imshow(share * np.where(np.eye(len(counts)), 1, -1), figures.BALANCE, vmin=-1, vmax=1, aspect="auto")
    ax.set(xticks=(), yticks=())
    if len(counts) > SHOWN:
        return
    for j, name in enumerate(classes):
        called, middle = short(name, names - 0.1), side * (j + 0.5)
        text(fig, left - 0.08, top + middle, called, va="center", ha="right")
        text(fig, left + middle, top - 0.08, called, va="bottom", ha="center", rotation=90)
        for k in np.flatnonzero(counts[j]):
            ink = "white" if share[j, k] > 0.6 else INK
            ax.text(float(k), j, f"{counts[j, k]:,}", ha="center", va="center", color=ink, size=min(SMALL, 18 * side))


def hardest(images: NDArray[Any], measures: Measures, index: NDArray[np.int64]) -> Figure:
    """Draw the images [K, C, H, W] at the positions `index` [K], with their classes, the answers and their scores."""
    columns, wide = 8, (WIDTH - 2 * MARGIN) / 8 - 0.12
    fig = page(
        HEADER + (wide + CAPTION) * max(1, -(-len(index) // columns)),
        "The hardest images",
        "the most wrong first: what each shows, and what the network says, with its score",
    )
    for i, (image, at) in enumerate(zip(images, index, strict=True)):
        x, y = MARGIN + (wide + 0.12) * (i % columns), HEADER + (wide + CAPTION) * (i // columns)
        best = np.argsort(-measures.scores[at], kind="stable")
        wanted = [measures.classes[j] for j in np.flatnonzero(measures.targets[at])]
        said = [measures.classes[j] for j in best if measures.answers[at, j]]
        exhibit(fig, x, y, wide, image, wanted, said, float(measures.scores[at, best[0]]))
    return fig


def exhibit(
    fig: Figure, x: float, y: float, wide: float, image: NDArray[Any], wanted: list[str], said: list[str], score: float
) -> None:
    """Draw an image [C, H, W] over what it shows and what a network said of it, on CAPTION inches more."""
    _, h, w = image.shape
    tile(fig, (x, y, wide * w / max(h, w), wide * h / max(h, w)), image)
    sign, colour = ("✓", BLUE) if set(wanted) == set(said) else ("✗", ORANGE)
    text(fig, x, y + wide + 0.05, short(", ".join(wanted) or "none", wide), GREY, SMALL)
    text(fig, x, y + wide + 0.2, f"→ {short(', '.join(said) or 'none', wide - 0.3)} {sign}", colour, SMALL)
    text(fig, x, y + wide + 0.35, f"{score:.2f}", GREY, SMALL)
