"""Draws every picture of the pages: `make figures`, or `python docs/figures.py [NAME …]`.

The layers of the code are read from it. Pictures of ideas are drawn from the numbers that the chapter's own code
computes. Pictures of a trained network need one: `small`, trained on the embedded digits with the recipe of the demo
(about a minute), and for the pages of routings the other `small-` presets (ten minutes). All are kept in runs/docs.
"""

from __future__ import annotations

import ast
import importlib.util
import io
import math
import sys
import tomllib
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, Polygon, Rectangle
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))
import snippets
from PIL import Image

from capscore import PRESETS, backend, disk, figures
from capscore.backends import numpy as caps
from capscore.data import load
from capscore.figures import BLUE, BODY, GREY, HEADER, INK, LINE, MARGIN, ORANGE, PALE, SMALL, WIDTH
from capscore.squash import lengths
from capscore.squash import squash as squash_vectors

ROOT = Path(__file__).parents[1]
IMAGES = Path(__file__).parent / "images"
RUN = ROOT / "runs" / "docs"
DRAWN: dict[str, Callable[[], Figure]] = {}

# What a picture is made of: the pieces of capscore.figures, so that all pictures look alike.
page, text, axes, tile, chart = figures._page, figures._text, figures._axes, figures._tile, figures._chart


def picture(draw: Callable[[], Figure]) -> Callable[[], Figure]:
    """Let `draw` make the picture of its name."""
    DRAWN[draw.__name__.replace("_", "-")] = draw
    return draw


@cache
def chapter(number: int) -> dict[str, Any]:
    """Return the namespace of a chapter after its code has run."""
    (path,) = Path(__file__).parent.glob(f"ideas/{number:02}-*.md")
    return snippets.run(path)


@cache
def trained(preset: str = "small", recipe: Any = None) -> Any:
    """Return a trained network, on NumPy: by the recipe of the demo unless told otherwise."""
    from capscore.cli.demo import DEMO
    from capscore.train import LAST, train

    name, run = "torch" if importlib.util.find_spec("torch") else "numpy", RUN / preset if recipe else RUN
    if not (run / LAST).exists():
        print(f"training {preset} on {name} for a minute or two …", flush=True)
        digits, held_out = load("digits")
        how = recipe or DEMO
        net = backend(name).CapsNet(PRESETS[preset], seed=how.seed, classes=digits.classes)
        train(net, backend(name).Learner(net, how.reconstruction), digits, held_out, how, run)
    return caps.load(run / LAST)


def digit(label: int, turn: int = 0) -> NDArray[Any]:
    """Return a test digit [1, 28, 28] that the network is right about, the `turn`-th of them."""
    images, labels = load("digits")[1].batch(slice(0, 300))
    found = trained().predict(images).argmax(1)
    chosen: NDArray[Any] = images[np.flatnonzero((labels == label) & (found == label))[turn]]
    return chosen


def plain(ax: Axes, limit: float) -> Axes:
    """Make a square plane around the origin without ticks."""
    ax.set(xlim=(-limit, limit), ylim=(-limit, limit), xticks=(), yticks=(), aspect="equal")
    return ax


def arrow(ax: Axes, to: Any, start: Any = (0, 0), color: str = BLUE, width: float = 2.2, **how: Any) -> None:
    """Draw an arrow in data units."""
    if np.hypot(*(np.subtract(to, start))) > 0.02:
        style = {"arrowstyle": "-|>,head_length=0.35,head_width=0.18", "mutation_scale": 6 + 3.2 * width}
        ax.add_patch(FancyArrowPatch(start, to, shrinkA=0, shrinkB=0, color=color, lw=width, **style | how))


def unit_circle(ax: Axes) -> None:
    """Draw where length 1 is."""
    ax.add_patch(Circle((0, 0), 1, fill=False, ec=PALE, lw=1, ls=(0, (3, 3))))


def heat(fig: Figure, box: Any, values: Any, most: float, cmap: Any = figures.DEEPER) -> Axes:
    """Draw a map, white where it is zero."""
    ax = axes(fig, box)
    ax.set(xticks=(), yticks=())
    ax.imshow(np.ma.masked_less_equal(values, 1e-6), cmap, vmin=0, vmax=most, aspect="auto", interpolation="nearest")
    ax.spines[:].set(visible=True, color=LINE, linewidth=0.8)
    return ax


@picture
def same_parts() -> Figure:
    """Chapter 1: a face, the same parts in disorder, and pooled features that cannot tell them apart."""
    names = chapter(1)
    images, maps, pooled, parts = names["images"], names["maps"], names["pooled"], list(names["parts"])
    side, pitch, left = 1.35, 1.75, MARGIN
    fig = page(
        HEADER + 0.25 + 2 * pitch, "The same parts", "three detectors over two images, and the largest answer of each"
    )
    x_maps, x_bars = left + 1.75, left + 1.75 + 3 * 1.5 + 0.65
    text(fig, left, HEADER + 0.05, "image", weight="bold")
    text(fig, x_bars, HEADER + 0.05, "after max-pooling", weight="bold")
    for k, name in enumerate(parts):
        text(fig, x_maps + 1.5 * k, HEADER + 0.05, f"where is a{'n' * (name == 'eye')} {name}?", weight="bold")
    for i in range(2):
        y = HEADER + 0.4 + pitch * i
        tile(fig, (left, y, side, side), images[i])
        for k in range(len(parts)):
            ax = heat(fig, (x_maps + 1.5 * k, y, side, side), maps[i, k], pooled.max())
            for peak in np.argwhere(maps[i, k] > pooled[i, k] - 1e-9):
                ax.add_patch(Circle(peak[::-1], 2, fill=False, ec=ORANGE, lw=1.8))
        ax = chart(axes(fig, (x_bars, y, WIDTH - MARGIN - x_bars, side - 0.1)), grid="x")
        ax.barh(range(len(parts)), pooled[i], height=0.6, color=BLUE)
        for k, value in enumerate(pooled[i]):
            ax.text(value + 0.4, k, f"{value:g}", va="center", color=INK, size=BODY)
        ax.set(xlim=(0, pooled.max() * 1.25), ylim=(len(parts) - 0.5, -0.5), xticks=())
        ax.set_yticks(range(len(parts)), parts)
        ax.tick_params(labelsize=BODY, length=0)
    return fig


@picture
def equivariance() -> Figure:
    """Chapter 2: a feature map follows a shift and does not follow a turn."""
    names = chapter(2)
    image, mapped, shifted, turned = (names[k] for k in ("image", "feature_map", "shifted", "turned"))
    cases: list[tuple[str, Callable[[Any], Any]]] = [
        ("as it is", lambda x: x),
        ("shifted", lambda x: shifted(x, 2, 3)),
        ("turned", turned),
    ]
    side, pitch, left = 1.35, 1.5, MARGIN + 0.85
    step = 1.6
    fig = page(
        HEADER + 0.45 + pitch * 3, "What follows when the image changes", "f is a vertical edge detector, T the change"
    )
    heads = ("T x", "f(T x)", "T f(x)", "difference", "max f(T x)")
    for k, head in enumerate(heads):
        text(fig, left + step * k, HEADER + 0.05, head, weight="bold")
    most = float(mapped(image).max())
    for i, (name, change) in enumerate(cases):
        y = HEADER + 0.4 + pitch * i
        text(fig, MARGIN, y + side / 2, name, va="center", size=BODY + 1)
        got, hoped = mapped(change(image))[0, 0], change(mapped(image))[0, 0]
        tile(fig, (left, y, side, side), change(image)[0])
        heat(fig, (left + step, y, side, side), got, most)
        heat(fig, (left + 2 * step, y, side, side), hoped, most)
        warm = figures.LinearSegmentedColormap.from_list("warm", ["#fbe3d3", ORANGE])
        ax = heat(
            fig, (left + 3 * step, y, side, side), np.where(abs(got - hoped) > 1e-4, abs(got - hoped), 0), most, warm
        )
        if np.allclose(got, hoped, atol=1e-4):
            ax.text(0.5, 0.5, "none", transform=ax.transAxes, ha="center", va="center", color=GREY, size=BODY)
        text(fig, left + 4 * step + 0.1, y + side / 2, f"{got.max():.2f}", va="center", size=HEADING)
    return fig


HEADING = figures.HEADING


@picture
def capsule() -> Figure:
    """Chapter 3: a capsule made by hand, over bars that turn and bars that fade."""
    names = chapter(3)
    bars = [(a, 1.0) for a in (0, 30, 60, 90, 130)] + [(30, c) for c in (1.0, 0.5, 0.25)]
    side, step = 0.95, 1.02
    fig = page(
        HEADER + 2.85,
        "A capsule for bars",
        "length: how sure it is that there is a bar; direction: how the bar is tilted",
    )
    for k, (degrees, contrast) in enumerate(bars):
        x, y = MARGIN + step * k + (0.3 if k > 4 else 0), HEADER + 0.3
        image, v = names["bar"](degrees, contrast), names["capsule"](names["bar"](degrees, contrast))
        tile(fig, (x, y, side, side), image[None])
        ax = plain(axes(fig, (x, y + side + 0.1, side, side)), 1.08)
        unit_circle(ax)
        arrow(ax, v[0, 0])
        ax.plot(0, 0, "o", color=BLUE, ms=3)
        text(fig, x + side / 2, y + 2 * side + 0.17, f"{names['presence'](v):.2f}", ha="center", size=BODY + 1)
        text(fig, x + side / 2, y + 2 * side + 0.36, f"{names['tilt'](v) % 180:.0f}°", GREY, ha="center")
    text(fig, MARGIN, HEADER, "turning", weight="bold")
    text(fig, MARGIN + 5 * step + 0.3, HEADER, "fading", weight="bold")
    return fig


@picture
def votes() -> Figure:
    """Chapter 4: votes that agree add up, votes that do not cancel."""
    names = chapter(4)
    u_hat, s, v = names["votes"][0], names["s"][0], names["v"][0]
    fig = page(HEADER + 3.55, "Votes add up, or cancel", "six votes of length 1, each counted half")
    for j, head in enumerate(("votes that agree", "votes that do not")):
        x = MARGIN + j * 4.3
        text(fig, x, HEADER, head, weight="bold")
        ax = plain(axes(fig, (x, HEADER + 0.25, 3.0, 3.0)), 1.15)
        unit_circle(ax)
        for vote in u_hat[:, j]:
            arrow(ax, vote, color=PALE, width=1.5)
        arrow(ax, v[j], color=BLUE, width=3.2, zorder=5)
        ax.plot(0, 0, "o", color=BLUE if np.hypot(*v[j]) > 0.1 else PALE, ms=4, zorder=6)
        ax = plain(axes(fig, (x + 3.05, HEADER + 0.25, 1.0, 3.0)), 1)
        ax.set(xlim=(0, 1), ylim=(-0.1, 3.4), aspect="auto")
        for at, length, color in ((0.25, np.hypot(*s[j]), ORANGE), (0.75, np.hypot(*v[j]), BLUE)):
            ax.bar(at, length, 0.3, color=color)
            behind = {"facecolor": "white", "edgecolor": "none", "pad": 1}
            ax.text(at, length + 0.07, f"{length:.2f}", ha="center", size=BODY, color=color, bbox=behind)
        ax.axhline(1, color=PALE, lw=1, ls=(0, (3, 3)), zorder=0)
        text(fig, x + 3.05 + 0.25, HEADER + 3.2, "‖s‖", ORANGE, ha="center", size=BODY + 1)
        text(fig, x + 3.05 + 0.75, HEADER + 3.2, "‖v‖", BLUE, ha="center", size=BODY + 1)
    return fig


@picture
def iterations() -> Figure:
    """Chapter 5: the same votes counted anew in each iteration."""
    names = chapter(5)
    u_hat = names["votes"][0]  # [part, whole, number]
    fig = page(
        HEADER + 5.75,
        "Routing by agreement",
        "parts 1 to 3 agree about A, parts 4 to 6 about B; nobody has said so",
    )
    couplings = [np.full((2, 6), 0.5)] + [c[:, 0] for _, c, *_ in names["run"].trace[1:]]
    colors = [BLUE] * 3 + [ORANGE] * 3
    left, step, side = MARGIN + 1.0, 2.65, 1.75
    for r, c in enumerate(couplings):
        x = left + step * r
        text(fig, x + side / 2, HEADER, f"iteration {r + 1}", ha="center", weight="bold", size=BODY + 1)
        v = squash_vectors(caps, np.einsum("ji,ijd->jd", c, u_hat))
        for j, whole in enumerate("AB"):
            y = HEADER + 0.3 + 1.85 * j
            ax = plain(axes(fig, (x, y, side, side)), 1.5)
            unit_circle(ax)
            for i in np.argsort(c[j]):
                arrow(ax, c[j, i] * u_hat[i, j], color=colors[i], width=1.6)
            arrow(ax, v[j], color=INK, width=2.6, zorder=6)
            ax.text(0.98, 0.06, f"‖v‖ {np.hypot(*v[j]):.2f}", transform=ax.transAxes, ha="right", size=BODY, color=INK)
            if r == 0:
                text(fig, MARGIN, y + side / 2, f"whole {whole}", va="center", size=BODY + 1, weight="bold")
        y = HEADER + 0.3 + 1.85 * 2 + 0.1
        ax = chart(axes(fig, (x + 0.15, y, side + 0.1, 1.15)), "part")
        ax.bar(range(6), c[0], 0.72, color=colors)
        ax.bar(range(6), c[1], 0.72, bottom=c[0], color="white", ec=colors, hatch="////", lw=0.8)
        ax.set(ylim=(0, 1), yticks=(0, 0.5, 1))
        ax.set_xticks(range(6), [str(i + 1) for i in range(6)])
        if r == 0:
            text(fig, MARGIN, y + 0.57, "couplings", va="center", size=BODY + 1, weight="bold")
            text(fig, MARGIN, y + 0.72, "full: to A\nhatched: to B", GREY, SMALL)
    return fig


@picture
def pooling() -> Figure:
    """Chapter 6: three maps become one number."""
    pool = chapter(6)["pool"]
    y8, x8 = np.mgrid[:8, :8]
    maps = [np.exp(-((y8 - y) ** 2 + (x8 - x) ** 2) / 1.2) for y, x in ((1, 1), (2, 6), (5, 3))]
    maps = [np.where(m > 0.1, m, 0) for m in maps]
    side, pitch, step = 1.0, 1.15, 1.35
    fig = page(HEADER + 0.5 + 3 * pitch, "Where was it?", "one feature at three places, pooled 2×2 three times")
    for k, head in enumerate(("8×8 map", "pooled once", "twice", "three times")):
        text(fig, MARGIN + step * k + side / 2, HEADER, head, weight="bold", ha="center")
    for i, level in enumerate(maps):
        y = HEADER + 0.3 + pitch * i
        for k in range(4):
            ax = heat(fig, (MARGIN + step * k, y, side, side), level, 1)
            n = len(level)
            for edge in range(1, n):
                ax.axhline(edge - 0.5, color=LINE, lw=0.5)
                ax.axvline(edge - 0.5, color=LINE, lw=0.5)
            if n == 1:
                ax.text(
                    0, 0, f"{level[0, 0]:.2f}", ha="center", va="center", color="white", size=HEADING, weight="bold"
                )
            level = pool(level[None])[0] if n > 1 else level
    x = MARGIN + 4 * step + 0.55
    counts = [64 // n for n in (64, 16, 4, 1)]
    ax = chart(axes(fig, (x, HEADER + 0.3, WIDTH - MARGIN - x, 2.9)), "poolings")
    text(fig, x, HEADER, "positions per number", weight="bold")
    ax.bar(range(4), counts, 0.6, color=BLUE)
    for k, count in enumerate(counts):
        ax.text(k, count + 1.5, str(count), ha="center", size=BODY + 1, color=INK)
    ax.set(ylim=(0, 72), yticks=(), xticks=range(4))
    return fig


def _outline(whole: str, at: NDArray[Any]) -> list[NDArray[Any]]:
    """Return the polygons of a whole, each [points, 2]: its parts, drawn at the poses that they have in it."""
    inside = chapter(7)["inside"]
    return [_part(name, at @ place) for name, place in inside[whole].items()]


def _part(name: str, at: NDArray[Any]) -> NDArray[Any]:
    corners = {"rectangle": [(-1.4, -1), (1.4, -1), (1.4, 1), (-1.4, 1)], "triangle": [(-1.7, -1), (1.7, -1), (0, 1)]}
    moved: NDArray[Any] = (np.array([(x, y, 1) for x, y in corners[name]]) @ at.T)[:, :2]
    return moved


@picture
def agreement() -> Figure:
    """Chapter 7: the votes for what is there coincide, and coincidences are rare."""
    names = chapter(7)
    side, pitch = 1.75, 2.0
    fig = page(
        HEADER + 0.35 + 2 * pitch,
        "Agreement is evidence",
        "two drawings of the same two parts, and what each part takes the whole to be",
    )
    heads = ("drawing", "votes for a house", "votes for an arrow")
    for k, head in enumerate(heads):
        text(fig, MARGIN + 1.95 * k, HEADER, head, weight="bold")
    for i, (seen, parts) in enumerate(names["scenes"].items()):
        y = HEADER + 0.25 + pitch * i
        ax = plain(axes(fig, (MARGIN, y, side, side)), 3.3)
        for name, at in parts.items():
            ax.add_patch(Polygon(_part(name, at), fc="#dedede", ec=INK, lw=1.6))
        for k, whole in enumerate(names["inside"]):
            ax = plain(axes(fig, (MARGIN + 1.95 * (k + 1), y, side, side)), 3.3)
            for color, vote, style in zip(
                (BLUE, ORANGE), names["votes"](parts, whole), ("-", (0, (4, 2))), strict=True
            ):
                for polygon in _outline(whole, vote):
                    ax.add_patch(Polygon(polygon, fill=False, ec=color, lw=1.8, ls=style, clip_on=False))
            found = names["disagreement"](parts, whole)
            text(
                fig,
                MARGIN + 1.95 * (k + 1) + side / 2,
                y + side - 0.02,
                f"largest difference {found:.2f}",
                BLUE if seen == whole else GREY,
                ha="center",
                weight="bold" if seen == whole else "normal",
            )
    x = MARGIN + 1.95 * 3 + 0.2
    ax = chart(axes(fig, (x, HEADER + 0.55, WIDTH - MARGIN - x, 2.9)), "cosine between two random votes")
    text(fig, x, HEADER, "agreeing by chance", weight="bold")
    cosine = np.linspace(-0.999, 0.999, 400)
    for n, color in ((2, PALE), (4, "#7fb5d5"), (16, BLUE)):
        density = (1 - cosine**2) ** ((n - 3) / 2)
        density /= density.sum() * (cosine[1] - cosine[0])
        ax.plot(cosine, density, color=color, lw=2)
        ax.text(-0.9, {2: 1.74, 4: 1.63, 16: 1.52}[n], f"{n} numbers", color=GREY if n == 2 else color, size=BODY)
    ax.axvspan(0.8, 1, color=ORANGE, alpha=0.15, lw=0)
    ax.text(0.78, 1.75, "agree", color=ORANGE, size=BODY, ha="right")
    ax.set(xlim=(-1, 1), ylim=(0, 1.85), yticks=(), xticks=(-1, 0, 1))
    return fig


@picture
def architecture() -> Figure:
    """Chapter 8: the network of a spec with its shapes, parameters and multiply-adds."""
    spec = PRESETS["mnist"]
    rows = {row.name: row for row in (*spec.rows, *spec.decoder_rows)}
    _, height, width, *_ = rows["primary"].output
    fig = page(
        HEADER + 4.1,
        "The network of the paper",
        "shapes for one image; below each step its parameters and its multiply-adds",
    )
    ax = axes(fig, (0, HEADER, WIDTH, 4.1))
    ax.set(xlim=(0, WIDTH), ylim=(4.35, 0.25), xticks=(), yticks=())

    def stack(x: float, y: float, w: float, h: float, sheets: int, color: str, step: float = 0.05) -> None:
        for k in reversed(range(sheets)):
            ax.add_patch(Rectangle((x + step * k, y - step * k), w, h, fc=color, ec="white", lw=0.7))

    def name(x: float, head: str, *more: str, y: float = 2.1) -> None:
        ax.text(x, y, head, ha="center", va="top", weight="bold", size=BODY + 1, color=INK)
        ax.text(x, y + 0.2, "\n".join(more), ha="center", va="top", size=BODY, color=GREY, linespacing=1.35)

    def cost(layer: Any) -> str:
        return f"{layer.parameter_count / 1e6:.2g} M parameters\n{layer.plan.multiply_adds / 1e6:.3g} M multiply-adds"

    def step(a: float, b: float, y: float, label: str) -> None:
        arrow(ax, (b, y), (a, y), GREY, 1.4)
        ax.text((a + b) / 2, y - 0.08, label, ha="center", va="bottom", size=SMALL, color=GREY, linespacing=1.3)

    image = load("digits")[1].batch(slice(33, 34))[0][0]
    tile(fig, (0.35, HEADER + 0.5, 0.9, 0.9), image)
    name(0.8, "image", "×".join(map(str, spec.input)))
    stack(2.35, 0.8, 0.8, 0.8, 8, "#b8d6ea")
    name(2.9, "features", "×".join(map(str, rows["stem.0"].output)), cost(rows["stem.0"]))
    # One type of the primary capsules: its maps one behind the other, and a capsule through all of them.
    x, y, side, back = 4.5, 0.93, 0.66, 0.07
    cell = side / width
    for k in reversed(range(spec.primary.dim)):
        at = x + back * k, y - back * k
        ax.add_patch(Rectangle(at, side, side, fc="#5da3cd", ec="white", lw=0.7))
        ax.add_patch(Rectangle((at[0] + side - cell, at[1]), cell, cell, fc=ORANGE, ec="white", lw=0.5))
    for n in range(1, width):
        ax.plot([x + cell * n] * 2, [y, y + side], color="white", lw=0.4)
        ax.plot([x, x + side], [y + cell * n] * 2, color="white", lw=0.4)
    far, edge = x + side + back * (spec.primary.dim - 1), y - back * (spec.primary.dim - 1) + cell / 2
    arrow(ax, (far + 0.28, edge), (far + 0.05, edge), ORANGE, 1.2)
    for k in range(spec.primary.dim):
        ax.add_patch(Rectangle((far + 0.33 + 0.1 * k, edge - 0.05), 0.1, 0.1, fc=ORANGE, ec="white", lw=0.7))
    told = f"one capsule: {spec.primary.dim} channels at one position"
    ax.text(far + 0.33 + 0.1 * spec.primary.dim, edge - 0.1, told, ha="right", va="bottom", size=SMALL, color=ORANGE)
    name(
        5.2,
        "primary capsules",
        f"{spec.primary.types} types × {height} × {width} positions",
        f"= {rows['primary'].output.dims[0]:,} capsules of {spec.primary.dim}",
        cost(rows["primary"]),
    )
    for k in range(10):
        ax.add_patch(Rectangle((7.05, 0.4 + 0.145 * k), 0.9, 0.1, fc=ORANGE if k == 3 else BLUE, ec="none"))
        ax.text(8.02, 0.45 + 0.145 * k, str(k), va="center", size=SMALL - 1, color=ORANGE if k == 3 else GREY)
    name(7.5, "class capsules", "10 capsules of 16", cost(rows["capsules.0"]))
    step(1.35, 2.25, 1.2, "9×9\nReLU")
    step(3.6, 4.4, 1.2, "9×9,\nstride 2,\nsquash")
    step(5.8, 6.95, 1.2, "votes, routing,\nsquash")
    inputs, outputs, *matrix = spec.parameters["capsules.0.weight"]
    ax.text(
        6.37,
        1.28,
        f"W_ij: {'×'.join(map(str, matrix))}, one for\neach of {inputs:,} × {outputs}",
        ha="center",
        va="top",
        size=SMALL,
        color=GREY,
        linespacing=1.3,
    )
    ax.text(
        8.22, 1.1, "length:\nis it there?\n\ndirection:\nhow?", va="center", size=SMALL, color=GREY, linespacing=1.3
    )

    y = 3.65
    ax.add_patch(Rectangle((7.05, y - 0.05), 0.9, 0.1, fc=ORANGE, ec="none"))
    ax.text(7.5, y + 0.12, "one capsule, the others masked", ha="center", va="top", size=SMALL, color=GREY)
    sizes = [math.prod(row.output.dims) for row in spec.decoder_rows]
    x = 5.9
    for i, size in enumerate(sizes):
        tall = 0.25 + 0.65 * size / max(sizes)
        ax.add_patch(Rectangle((x, y - tall / 2), 0.16, tall, fc="#f0b48a", ec="none"))
        ax.text(x + 0.08, y + tall / 2 + 0.06, f"{size}", ha="center", va="top", size=SMALL, color=GREY)
        arrow(ax, (x + 0.24, y), (x + 1.04 if i else 6.95, y), GREY, 1.2)
        x -= 1.07
    arrow(ax, (x + 0.65, y), (x + 0.99, y), GREY, 1.2)
    drawn = _drawn(image)
    tile(fig, (x - 0.3, HEADER + y - 0.7, 0.9, 0.9), drawn)
    decoder = [rows[f"decoder.{i}"] for i in range(len(sizes))]
    total = sum(layer.parameter_count for layer in decoder), sum(layer.multiply_adds for layer in decoder)
    ax.text(
        0.35,
        y,
        f"decoder\n{total[0] / 1e6:.2g} M parameters\n{total[1] / 1e6:.2g} M multiply-adds",
        va="center",
        size=BODY,
        color=GREY,
        linespacing=1.35,
    )
    return fig


def _drawn(image: NDArray[Any]) -> NDArray[Any]:
    out: NDArray[Any] = trained().reconstruct(trained()(image[None]).capsules)[0]
    return out


@picture
def margin_loss() -> Figure:
    """Chapter 9: the loss of one class against the length of its capsule."""
    from capscore.losses import MarginLoss

    loss = MarginLoss()

    x = np.linspace(0, 1, 201)
    fig = page(HEADER + 3.2, "Margin loss", "what one class adds to the loss")
    ax = chart(axes(fig, (MARGIN + 0.45, HEADER + 0.2, 7.6, 2.4)), "length of the class capsule")
    for present, color, label, at in (
        (1.0, BLUE, "the class is present", (0.13, 0.62)),
        (0.0, ORANGE, "the class is absent, λ = 0.5", (0.87, 0.33)),
    ):
        y = [float(loss(caps, np.array([[n]]), np.array([[present]]))) for n in x]
        ax.plot(x, y, color=color, lw=2.4)
        ax.text(*at, label, color=color, size=BODY + 1, ha="left" if present else "right")
    for at, label in ((0.1, "m⁻ = 0.1"), (0.9, "m⁺ = 0.9")):
        ax.axvline(at, color=PALE, lw=1, ls=(0, (3, 3)))
        ax.text(at, 0.835, label, ha="center", color=GREY, size=BODY)
    ax.set(xlim=(0, 1), ylim=(0, 0.82), yticks=(0, 0.2, 0.4, 0.6, 0.8))
    ax.set_ylabel("loss", size=SMALL, color=GREY)
    return fig


@picture
def squash() -> Figure:
    """Chapter 10: the length after squashing, and what it does to vectors."""
    fig = page(HEADER + 3.2, "Squash", "the direction stays, the length becomes ‖s‖² / (1 + ‖s‖²)")
    n = np.linspace(0, 5, 301)
    ax = chart(axes(fig, (MARGIN + 0.4, HEADER + 0.1, 4.4, 2.5)), "length before, ‖s‖")
    ax.plot(n, lengths(caps, squash_vectors(caps, n[:, None, None]))[:, 0], color=BLUE, lw=2.4)
    ax.axhline(1, color=PALE, lw=1, ls=(0, (3, 3)))
    for at in (0.5, 1, 3):
        ax.plot(at, at**2 / (1 + at**2), "o", color=BLUE, ms=5)
        ax.text(
            at + 0.1, at**2 / (1 + at**2) - 0.03, f"{at:g} → {at**2 / (1 + at**2):g}", size=BODY, va="top", color=INK
        )
    ax.set(xlim=(0, 5), ylim=(0, 1.05), yticks=(0, 0.5, 1))
    ax.set_ylabel("length after, ‖v‖", size=SMALL, color=GREY)
    ax = plain(axes(fig, (5.75, HEADER + 0.0, 2.75, 2.75)), 3.1)
    unit_circle(ax)
    rng = np.random.default_rng(4)
    for degrees, length in zip(
        np.arange(0, 360, 40), rng.permutation([0.4, 0.7, 1, 1.3, 1.7, 2.1, 2.5, 2.8, 3.0]), strict=True
    ):
        s = length * np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])
        arrow(ax, s, color=PALE, width=1.3)
        arrow(ax, squash_vectors(caps, s[None])[0], color=BLUE, width=2.2, zorder=5)
    text(fig, 7.1, HEADER + 2.8, "grey: before; blue: after", GREY, SMALL, ha="center")
    return fig


@picture
def masks() -> Figure:
    """Chapter 10: what each class capsule of one image draws when it alone is kept."""
    net, chosen = trained(), [digit(4), digit(8), digit(2)]
    seen = net(np.stack(chosen))
    side, step, pitch = 0.62, 0.71, 1.12
    left = MARGIN + 1.05
    fig = page(
        HEADER + 0.35 + pitch * len(chosen),
        "One capsule at a time",
        "each column keeps one class capsule, masks the nine others and draws; below: the length of that capsule",
    )
    text(fig, MARGIN, HEADER, "image", weight="bold")
    for j in range(10):
        text(fig, left + step * j + side / 2, HEADER, net.classes[j], weight="bold", ha="center")
    for i, image in enumerate(chosen):
        y = HEADER + 0.25 + pitch * i
        tile(fig, (MARGIN, y, side + 0.1, side + 0.1), image)
        drawn = net.reconstruct(np.repeat(seen.capsules[i : i + 1], 10, 0), np.arange(10))
        best = int(seen.lengths[i].argmax())
        for j in range(10):
            tile(fig, (left + step * j, y, side, side), drawn[j], BLUE if j == best else LINE)
            text(
                fig,
                left + step * j + side / 2,
                y + side + 0.05,
                f"{seen.lengths[i, j]:.2f}",
                BLUE if j == best else GREY,
                BODY,
                ha="center",
                weight="bold" if j == best else "normal",
            )
    return fig


def rotate(image: NDArray[Any], degrees: float) -> NDArray[Any]:
    """Turn [1, H, W] about its middle, anticlockwise, by bilinear sampling."""
    turned = Image.fromarray(np.rint(image[0] * 255).astype(np.uint8)).rotate(degrees, Image.Resampling.BILINEAR)
    out: NDArray[Any] = (np.asarray(turned, np.float32) / 255)[None]
    return out


@picture
def pose() -> Figure:
    """Chapter 11: presence and pose of the winning capsule while the digit turns or moves."""
    net, image = trained(), digit(3, 1)
    degrees, pixels = np.arange(-45, 46, 3), np.arange(-6, 7)
    turned = np.stack([rotate(image, d) for d in degrees])
    moved = np.stack([np.roll(image, p, 2) for p in pixels])
    fig = page(
        HEADER + 5.55,
        "Presence stays, pose moves, within limits",
        "one digit 3, turned and shifted; shaded: another class capsule is longer",
    )
    wide, left = 3.7, MARGIN + 0.4
    for k, (change, batch, label) in enumerate(
        (
            (degrees, turned, "turned, degrees (positive: anticlockwise)"),
            (pixels, moved, "shifted, pixels (positive: right)"),
        )
    ):
        x = left + 4.35 * k
        text(fig, x, HEADER, label, weight="bold")
        picks = np.linspace(0, len(change) - 1, 7).round().astype(int)
        w = wide / 7 - 0.05
        for i, pick in enumerate(picks):
            tile(fig, (x + i * wide / 7, HEADER + 0.22, w, w), batch[pick])
        out = net(batch)
        lengths, capsule = out.lengths, out.capsules[:, 3]
        found = lengths.argmax(1) == 3
        text(fig, x, HEADER + 0.87, "lengths; blue: the capsule of the 3", GREY, SMALL)
        above = chart(axes(fig, (x, HEADER + 1.08, wide, 1.35)))
        above.plot(change, np.delete(lengths, 3, 1), color=PALE, lw=1)
        above.plot(change, lengths[:, 3], color=BLUE, lw=2.4)
        above.set(ylim=(0, 1), yticks=(0, 0.5, 1))
        text(fig, x, HEADER + 2.75, "direction of that capsule: its 16 numbers divided by its length", GREY, SMALL)
        below = chart(axes(fig, (x, HEADER + 2.96, wide, 2.0)), label)
        pose = np.where(found[:, None], capsule / lengths[:, 3:4], np.nan)
        most = np.argsort(-np.ptp(pose[found], axis=0))
        for rank, d in reversed([*enumerate(most)]):
            below.plot(
                change, pose[:, d], color=(BLUE, ORANGE, INK)[rank] if rank < 3 else PALE, lw=2 if rank < 3 else 1
            )
        below.set(ylim=(-0.45, 0.55), yticks=(-0.4, -0.2, 0, 0.2, 0.4))
        half = (change[1] - change[0]) / 2
        for ax in (above, below):
            ax.set(xlim=(change[0], change[-1]))
            ax.set_xticks(change[picks])
            for value in change[~found]:
                ax.axvspan(value - half, value + half, color=ORANGE, alpha=0.13, lw=0)
    return fig


def examples() -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the test digits that `capscore explore` and `make demo` draw: one of each class, and their labels."""
    test = load("digits")[1]
    return test.batch(figures.examples(test, 10))


@picture
def perturbations() -> Figure:
    """Chapter 11: each dimension of a class capsule moved by itself, for the three digits that are surest."""
    images, labels = examples()
    lengths = trained().predict(images)
    clearest = np.argsort(np.where(lengths.argmax(1) == labels, -lengths.max(1), 0), kind="stable")[:3]
    return figures.perturbations(trained(), images[np.sort(clearest)])


@picture
def named_rows() -> Figure:
    """Chapter 11: five rows of the picture of perturbations, large, with what they change."""
    images, labels = examples()
    rows = (
        (3, 12, "thin to thick,\nthe gaps close"),
        (4, 13, "wide to narrow"),
        (4, 16, "upright and closed\nto slanted and open"),
        (7, 11, "faint to bold"),
        (7, 14, "slanted to upright"),
    )
    left, steps = MARGIN + 1.95, figures.STEPS
    pitch = (WIDTH - MARGIN - left) / len(steps)
    side = pitch - 0.05
    fig = page(
        HEADER + 0.25 + pitch * len(rows),
        "Five rows that have a name",
        "one of the sixteen numbers of the class capsule is moved and the image drawn again; framed: unmoved",
    )
    for k in (0, len(steps) // 2, len(steps) - 1):
        shift = "0" if abs(steps[k]) < 1e-9 else f"{steps[k]:+g}".replace("-", "−")
        text(fig, left + pitch * k + side / 2, HEADER, shift, GREY, SMALL, ha="center")
    for i, (label, dimension, what) in enumerate(rows):
        y = HEADER + 0.2 + pitch * i
        drawn = figures.perturb(trained(), images[list(labels).index(label)])[dimension - 1]
        text(fig, MARGIN, y + 0.02, f"{label}, row {dimension}", weight="bold")
        text(fig, MARGIN, y + 0.2, what, GREY, SMALL, linespacing=1.3)
        for k, image in enumerate(drawn):
            tile(fig, (left + pitch * k, y, side, side), image, BLUE if k == len(steps) // 2 else LINE)
    return fig


@picture
def couplings() -> Figure:
    """Chapter 11: how the routing of a trained network turns to the winner."""
    return figures.couplings(trained(), examples()[0][:4])


# Page of a routing → its network and what its picture says.
ROUTINGS = {
    "dynamic": "small",
    "self-attention": "small-attention",
    "em": "small-em",
    "inverted-attention": "small-inverted",
    "self-routing": "small-self-routing",
    "variational-bayes": "small-vb",
    "heinsen": "small-heinsen",
    "deepcaps": "small-deepcaps",
}


def of_a_routing(preset: str) -> Figure:
    """Pages of routings: one digit, and the couplings of the last layer that routes, iteration by iteration."""
    from capscore.layer import Run
    from capscore.net import forward
    from capscore.optim import Cosine
    from capscore.train import Recipe

    epochs = 3 if preset in ("small-vb", "small-deepcaps") else 8  # these two take a minute for each
    net = trained(preset, Recipe(epochs=epochs, batch=32, rate=2e-3, schedule=Cosine(warmup=100)))
    image = digit(4)
    run = Run(trace=[])
    forward(caps, net.spec, net.params, image[None], run)
    rounds = [each for each in run.trace or () if each.layer == run.trace[-1].layer]
    n, j = rounds[0].pairs
    shares = [np.full((j, n), c) if isinstance(c := each.couplings, float) else c[:, 0] for each in rounds]  # [J, N]
    shares = [c / np.maximum(c.sum(0), 1e-30) if c.min() >= 0 else c for c in shares]
    winner = shares[-1].sum(1).argmax()
    order = np.lexsort((shares[-1][winner], shares[-1].argmax(0)))  # inputs that belong to one capsule side by side
    tall, wide, left = 1.7, WIDTH - 2 * MARGIN - 1.95, MARGIN + 1.95
    pitch = tall + 0.55
    kind = "classes" if j == 10 else "types of capsules"
    note = f"rows: {j} {kind}; columns: {n:,} inputs, ordered by where they end; full colour: all of an input"
    fig = page(HEADER + pitch * len(shares) + 0.1, f"{preset}: where each input capsule belongs", note)
    tile(fig, (MARGIN, HEADER + 0.22, 1.45, 1.45), image)
    found = net(image[None]).scores[0].argmax()
    text(fig, MARGIN, HEADER + 1.78, f"a 4, found: {found}", GREY, SMALL)
    for r, c in enumerate(shares):
        y = HEADER + pitch * r
        spread = -(np.abs(c) * np.log2(np.maximum(np.abs(c), 1e-30))).sum(0).mean()
        text(fig, left, y, f"iteration {r + 1}: {spread:.2f} bits of doubt an input", weight="bold")
        ax = axes(fig, (left, y + 0.22, wide, tall))
        ax.imshow(np.abs(c[:, order]), aspect="auto", cmap=figures.DEEPER, vmin=0, vmax=1, interpolation="nearest")
        ax.set(xticks=(), yticks=range(j) if j == 10 else ())
        ax.tick_params(length=0, labelsize=SMALL)
    return fig


for _page, _preset in ROUTINGS.items():
    DRAWN[f"routing-{_page}"] = partial(of_a_routing, _preset)


@picture
def reconstructions() -> Figure:
    """Chapter 11: images above what is drawn from their longest capsules."""
    return figures.reconstructions(trained(), *examples())


@picture
def code_layers() -> Figure:
    """Architecture: who may import whom, each module with the first line of its docstring."""
    ranks = contract_layers()
    line, gap, left = 0.235, 0.13, MARGIN + 1.45
    height = sum(len(rank) * line + gap for rank in ranks)
    note = "a module imports from the boxes below its own, never from above; modules of one box do not know each other"
    fig = page(HEADER + height + 0.1, "The layers of capscore", note)
    canvas = axes(fig, (MARGIN, HEADER - 0.1, WIDTH - 2 * MARGIN, height))
    canvas.set(xlim=(0, WIDTH - 2 * MARGIN), ylim=(height, 0), xticks=(), yticks=())
    y = 0.0
    for rank in ranks:
        tall = len(rank) * line + gap - 0.05
        canvas.add_patch(Rectangle((0.01, y + 0.01), WIDTH - 2 * MARGIN - 0.02, tall, fc="#f4f7fa", ec=LINE, lw=0.8))
        for i, (name, what) in enumerate(rank):
            at = HEADER - 0.1 + y + 0.075 + line * i
            text(fig, MARGIN + 0.12, at, name, BLUE, weight="bold")
            text(fig, left, at + 0.01, what, GREY, SMALL)
        y += len(rank) * line + gap
    return fig


def contract_layers(longest: int = 108) -> list[list[tuple[str, str]]]:
    """Return the ranks of the first contract in pyproject.toml: every module and what it says of itself in a line."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    ranks = next(contract["layers"] for contract in contracts if contract.get("containers") == ["capscore"])

    def about(name: str) -> str:
        file = next(f for f in (ROOT / f"capscore/{name}.py", ROOT / f"capscore/{name}/__init__.py") if f.is_file())
        told = (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n")[0]
        return told if len(told) <= longest else told[: longest - 1].rsplit(" ", 1)[0].rstrip(",;:") + " …"

    return [[(name, about(name)) for name in map(str.strip, rank.split("|"))] for rank in ranks]


def save(figure: Figure, path: Path, dpi: int = figures.DPI, colors: int = 256) -> None:
    """Write a figure as a PNG of few colours: a third of the size, and the same to the eye."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dpi)
    small = io.BytesIO()
    Image.open(content).convert("RGB").quantize(colors, dither=Image.Dither.NONE).save(small, "png", optimize=True)
    disk.write_atomically(path, small.getvalue())


def main() -> None:
    """Draw the pictures named on the command line, or all."""
    IMAGES.mkdir(exist_ok=True)
    for name in sys.argv[1:] or DRAWN:
        path = IMAGES / f"{name}.png"
        detailed = {"perturbations": (110, 64), "named-rows": (150, 64)}.get(name, ())
        save(DRAWN[name](), path, *detailed)
        print(f"{path.relative_to(IMAGES.parents[1])}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
