"""Pictures of the networks of the zoo, made of the same pieces as those of `capscore.figures`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from capscore.figures import BLUE, GREEN, GREY, HEADER, INK, MARGIN, ORANGE, PURPLE, SMALL, WIDTH, _axes, _chart, _page
from capscore.mistakes import CAPTION, NAMES, exhibit, matrix
from lab.experiments.pictures import _error
from lab.gallery import said

COLOURS = (BLUE, ORANGE, GREEN, PURPLE, "#56b4e9", "#e69f00", INK, GREY)
STYLES = ("-", "--", ":")  # once the colours are used up
SIDE, COLUMNS = 0.4, 5  # inches of a cell; images beside the matrix


def learning(logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Show the error on the images that are watched after every epoch, a line for each network."""
    fig = _page(
        HEADER + 3.5,
        "How the networks of the zoo learned",
        "error after every epoch, by the averaged weights, on training images that were kept apart to watch by",
    )
    ax = _chart(_axes(fig, (MARGIN + 0.5, HEADER + 0.1, 5.9, 2.8)), "epoch")
    order = sorted(logs, key=lambda name: -_errors(logs[name])[-1])
    for i, name in enumerate(order):
        errors, epochs = _errors(logs[name]), [row["epoch"] for row in logs[name]]
        style = STYLES[i // len(COLOURS) % len(STYLES)]
        label = f"{name}: {errors[-1]:.2f}%"
        ax.plot(epochs, errors, style, color=COLOURS[i % len(COLOURS)], marker="o", ms=3, lw=1.5, label=label)
    _error(ax, "error, %")
    ax.xaxis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=1))
    ax.legend(frameon=False, fontsize=SMALL, loc="center left", bbox_to_anchor=(1.02, 0.5))
    return fig


def _errors(rows: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
    return np.array([100 * (1 - row["held_out_accuracy"]) for row in rows])


def mistakes_of(name: str, test: str, classes: Sequence[str], found: Mapping[str, Any], images: NDArray[Any]) -> Figure:
    """Show which classes were taken for which, and beside it the hardest images [K, C, H, W] with the answers."""
    counts, shown = np.array(found["found"]), len(found["hardest"])
    names = min(NAMES, 0.25 + 0.075 * max(map(len, classes)))
    left = MARGIN + names + SIDE * len(classes) + 0.3
    wide = (WIDTH - MARGIN - left) / COLUMNS - 0.1
    rows = -(-shown // COLUMNS)
    fig = _page(
        HEADER + max(names + SIDE * len(classes), rows * (wide + CAPTION - 0.1)) + 0.2,
        f"{name}: {found['wrong']:,} of {found['images']:,} {said(test)} are wrong",
        "left: how often a class (row) was found, and how often another (column) was said instead; right: the images "
        "that are hardest",
    )
    matrix(fig, MARGIN, HEADER, counts, classes, SIDE, names)
    for i, (image, told) in enumerate(zip(images, found["hardest"], strict=True)):
        x, y = left + (wide + 0.1) * (i % COLUMNS), HEADER + (wide + CAPTION - 0.1) * (i // COLUMNS)
        wanted, answered = ([classes[j] for j in told[key]] for key in ("shows", "says"))
        exhibit(fig, x, y, wide, image, wanted, answered, told["score"])
    return fig
