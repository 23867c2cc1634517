"""Pictures of what the experiments find, made of the same pieces as those of `capscore.figures`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from capscore.data import Dataset
from capscore.figures import (
    BLUE,
    BODY,
    DEEPER,
    GREEN,
    GREY,
    HEADER,
    INK,
    MARGIN,
    ORANGE,
    PURPLE,
    SMALL,
    WIDTH,
    _axes,
    _chart,
    _page,
    _text,
    _tile,
)  # fmt: skip
from lab.experiments.attack import STRENGTHS
from lab.experiments.equivariance import FACTORS, Reading
from lab.experiments.heads import ALIKE, ATTENTION, CNN, DYNAMIC, HEADS, NARROW, NONE, POOLED
from lab.experiments.linear import r_squared
from lab.experiments.pooling import drawn_back
from lab.experiments.quadrants import rearranged, told_apart
from lab.experiments.trials import Values, outputs
from lab.experiments.verdicts import Judged

COLORS = {
    NONE: GREEN,
    DYNAMIC: PURPLE,
    ALIKE: "#6a51a3",
    ATTENTION: BLUE,
    CNN: ORANGE,
    NARROW: GREY,
    POOLED: INK,
}


def equivariance(found: Mapping[str, Mapping[str, Reading]], points: int = 80) -> Figure:
    """Show what was read of every factor against its true value: a row for each network, a column for each factor."""
    side, pitch, left = 1.45, 2.13, MARGIN + 0.42
    fig = _page(
        HEADER + 0.35 + len(found) * (side + 0.45) + 0.25,
        "Is the pose written in the numbers?",
        "read linearly off 16 numbers, the winning capsule's or the CNN's last features, for unseen digits (seed 0)",
    )
    for i, (network, readings) in enumerate(found.items()):
        y = HEADER + 0.3 + i * (side + 0.45)
        name = f"{network}: read"
        _text(fig, MARGIN - 0.05, y + side / 2, name, COLORS[network], SMALL, rotation=90, va="center", weight="bold")
        for k, (factor, (low, high)) in enumerate(FACTORS.items()):
            reading, room = readings[factor], (high - low) * 0.25
            if i == 0:
                _text(fig, left + pitch * k, HEADER, factor, weight="bold")
            ax = _chart(_axes(fig, (left + pitch * k, y, 1.75, side)), "true" if i == len(found) - 1 else "")
            ax.set(xlim=(low, high), ylim=(low - room, high + room))
            ax.plot([low, high], [low, high], color=INK, lw=0.8)
            ax.plot(reading.true[:points], reading.read[:points], ".", ms=2.5, alpha=0.5, color=COLORS[network])
            ax.set_title(f"R² {reading.r_squared:.2f}", loc="left", size=BODY, color=INK, pad=4)
    return fig


def parts(nets: Mapping[str, Any], digits: Dataset, shown: int = 7) -> Figure:
    """Show digits, the same rearranged, and how sure each network is of both; below, of all of them."""
    images, _ = digits.batch(slice(None))
    moved = rearranged(images)
    sure = {name: [outputs(net, x)[0].max(1) for x in (images, moved)] for name, net in nets.items()}
    left = MARGIN + 1.05
    pitch = (WIDTH - MARGIN - left + 0.1) / shown
    side = pitch - 0.1
    band = side + 0.3 + 0.2 * len(nets)
    lower = HEADER + 2 * band + 0.35
    fig = _page(
        lower + 2.25,
        "The same parts, another whole",
        "how sure each network is of its answer, from 0 to 1, for digits and for their quadrants in other places; "
        "below, how often the digit is the surer one",
    )
    for r, (what, row) in enumerate((("digits", images), ("rearranged", moved))):
        y = HEADER + r * band
        _text(fig, MARGIN, y + side / 2, what, GREY, SMALL, va="center")
        for k, (name, values) in enumerate(sure.items()):
            _text(fig, MARGIN, y + side + 0.05 + 0.2 * k, name, COLORS[name], SMALL, weight="bold")
            for i in range(min(shown, len(row))):
                at = left + pitch * i + side / 2
                _text(fig, at, y + side + 0.05 + 0.2 * k, f"{values[r][i]:.2f}", COLORS[name], SMALL + 1, ha="center")
        for i in range(min(shown, len(row))):
            _tile(fig, (left + pitch * i, y, side, side), row[i])
    bins = np.linspace(0, 1, 41).tolist()
    for k, (name, (whole, cut)) in enumerate(sure.items()):
        wide = (WIDTH - 2 * MARGIN) / len(nets)
        ax = _chart(_axes(fig, (MARGIN + wide * k, lower, wide - 0.2, 1.55)), "how sure")
        ax.hist(whole, bins, color=COLORS[name], label="digits")
        ax.hist(cut, bins, histtype="step", color=INK, lw=1.2, label="rearranged")
        ax.set(xlim=(0, 1), yticks=())
        ax.set_xticks([0, 0.5, 1], ["0", "½", "1"])
        ax.set_title(f"{name}: {told_apart(whole, cut):.1%}", loc="left", size=BODY, color=INK, pad=4)
        if k == 0:
            ax.legend(frameon=False, fontsize=SMALL, loc="upper left")
    return fig


def pooling(nets: Mapping[str, Any], digits: Dataset, shown: int = 8) -> Figure:
    """Show digits, and what a linear reader draws back from the maps around every max-pooling."""
    rows: list[tuple[str, str, NDArray[Any]]] = []
    pixels = np.empty(0)
    for name, net in nets.items():
        pixels, found = drawn_back(net, digits, len(digits) // 5)
        for stage, guess in found.items():
            rows.append((f"{name}\n{stage}", f"R² {r_squared(pixels, guess):.2f}", guess))
    rows = [("image", "", pixels), *rows]
    left = MARGIN + 1.9
    pitch = (WIDTH - MARGIN - left - 0.6) / shown
    side = pitch - 0.05
    fig = _page(
        HEADER + len(rows) * (side + 0.06) + 0.1,
        "What max-pooling throws away",
        "images drawn back by the best linear reader of each map, for digits that the reader has not seen",
    )
    for r, (what, score, drawings) in enumerate(rows):
        y = HEADER + r * (side + 0.06)
        color = COLORS.get(what.split("\n")[0], GREY)
        _text(fig, MARGIN, y + side / 2, what, color, SMALL, va="center", linespacing=1.4)
        _text(fig, WIDTH - MARGIN - 0.55, y + side / 2, score, va="center")
        for i in range(min(shown, len(drawings))):
            _tile(fig, (left + pitch * i, y, side, side), drawings[i].reshape(digits.size))
    return fig


def efficiency(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Show the test error against the number of examples of a class, mean and spread over the seeds."""
    fig = _page(HEADER + 3.3, "Learning from few examples", "test error by examples of each class, at equal steps")
    ax = _chart(_axes(fig, (MARGIN + 0.5, HEADER + 0.1, 7.8, 2.6)), "training examples of each class")
    for name in HEADS:
        color, of_network = COLORS[name], [row for row in rows if row["settings"]["network"] == name]
        x = np.array([row["settings"]["examples"] for row in of_network])
        mean = np.array([row["mean"]["error"] for row in of_network])
        spread = np.array([row["std"]["error"] or 0 for row in of_network])
        ax.errorbar(x, mean, spread, color=color, marker="o", ms=4, capsize=3, label=name)
    ax.set(xscale="log")
    ax.xaxis.set_major_formatter("{x:g}")
    _error(ax)
    return fig


def adversarial(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Show the error against the strength of both attacks."""
    fig = _page(
        HEADER + 3.2,
        "Adversarial images",
        "error on test digits whose pixels were moved by up to ε, with all gradients; mean and spread over the seeds",
    )
    for k, kind in enumerate(("FGSM", "PGD")):
        ax = _chart(_axes(fig, (MARGIN + 0.5 + 4.35 * k, HEADER + 0.2, 3.5, 2.3)), "ε")
        for row in sorted(rows, key=lambda row: list(COLORS).index(row["settings"]["network"])):
            name, mean = row["settings"]["network"], row["mean"]
            error = [mean["clean"], *(mean[f"{kind} {e:g}"] for e in STRENGTHS)]
            spread = [row["std"][key] or 0 for key in ("clean", *(f"{kind} {e:g}" for e in STRENGTHS))]
            ax.errorbar((0, *STRENGTHS), error, spread, color=COLORS[name], marker="o", ms=4, capsize=3, label=name)
        ax.set(ylim=(0, 102), xlim=(-0.01, STRENGTHS[-1] + 0.01), xticks=(0, *STRENGTHS))
        ax.set_title(kind, loc="left", size=BODY, color=INK, weight="bold", pad=6)
        ax.set_ylabel("error, %" if k == 0 else "", size=SMALL, color=GREY)
        if k == 0:
            ax.legend(frameon=False, fontsize=SMALL, loc="upper left")
    return fig


def claims(found: Sequence[Judged]) -> Figure:
    """Show every claim's comparisons: how much better one network is than another, with the interval."""
    names = tuple(dict.fromkeys(each.claim for each in found))
    band, left = 0.88, MARGIN + 2.75
    fig = _page(
        HEADER + 0.3 + len(names) * band + 0.1,
        "What routing adds, and what capsules add",
        "mean difference over the seeds, with its interval, in each claim's own unit; better is to the right; a point "
        "alone is one seed or two",
    )
    labels = f"{ATTENTION} over {ALIKE}", f"over {NONE}", f"{DYNAMIC} over {NONE}", "best capsules over the CNN"
    colors = BLUE, GREY, PURPLE, ORANGE
    places = 0, 2.5, 3.95, 6.5
    for label, color, x in zip(labels, colors, places, strict=True):
        _text(fig, MARGIN + x, HEADER - 0.05, f"● {label}", color, SMALL, weight="bold")
    for r, claim in enumerate(names):
        y = HEADER + 0.3 + r * band
        _text(fig, MARGIN, y + 0.08, claim.name, weight="bold")
        _text(fig, MARGIN, y + 0.27, claim.number, GREY, SMALL)
        ax = _chart(_axes(fig, (left, y, WIDTH - MARGIN - left, band - 0.3)), grid="x")
        ax.axvline(0, color=INK, lw=1)
        sign = 1 if claim.more else -1
        of_claim = [each.found for each in found if each.claim is claim]
        for k, (each, color) in enumerate(zip(of_claim, colors, strict=True)):
            ends = sorted((sign * each.low, sign * each.high))
            ax.plot(ends, [-k, -k], color=color, lw=2.2, solid_capstyle="butt")
            ax.plot(sign * each.mean, -k, "o", color=color, ms=5)
        reach = 1.1 * np.nanmax(np.abs([[0, each.mean, each.low, each.high] for each in of_claim])) or 1.0
        ax.set(xlim=(-reach, reach), ylim=(-3.6, 0.6), yticks=())
        ax.xaxis.set_major_locator(MaxNLocator(5, symmetric=True))
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:+.3g}" if x else "0")
    return fig


def convergence(found: Mapping[int, Sequence[Values]]) -> Figure:
    """Show the mean change of logits and couplings at every pass, for networks trained with so many iterations."""
    fig = _page(
        HEADER + 3.2,
        "Does the routing settle?",
        "mean change at every pass, on test digits; a line for each number of iterations while learning, dots up to it",
    )
    for k, what in enumerate(("logits", "couplings")):
        ax = _chart(_axes(fig, (MARGIN + 0.55 + 4.35 * k, HEADER + 0.25, 3.5, 2.25)), "pass")
        low, high = np.inf, 0.0
        for i, (trained, trials) in enumerate(found.items()):
            passes = [int(name.split()[1]) for name in trials[0] if name.startswith(what)]
            mean = np.mean([[trial[f"{what} {r}"] for r in passes] for trial in trials], 0)
            color = DEEPER(i / (len(found) - 1))
            ax.plot(passes, mean, color=color, lw=1.8, label=f"{trained} iteration{'s' if trained > 1 else ''}")
            ax.plot(passes[: trained - 1], mean[: trained - 1], "o", ms=4, color=color)
            low, high = min(low, mean.min()), max(high, mean.max())
        ax.set(yscale="log", ylim=(10 ** np.floor(np.log10(low)), 10 ** np.ceil(np.log10(high))))
        ax.minorticks_off()
        ax.set_title(f"change of the {what}", loc="left", size=BODY, color=INK, weight="bold", pad=6)
        ax.legend(frameon=False, fontsize=SMALL)
    return fig


def curves(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Show the test error after every epoch, a line for each network."""
    fig = _page(HEADER + 3.2, "MNIST, epoch by epoch", "error on the test digits, against the minutes of training")
    ax = _chart(_axes(fig, (MARGIN + 0.55, HEADER + 0.2, WIDTH - 2 * MARGIN - 0.75, 2.3)), "minutes of training")
    for row, color in zip(rows, (BLUE, ORANGE), strict=False):
        told, mean = row["settings"], row["mean"]
        epochs = np.arange(1, told["epochs"] + 1)
        error = [mean[f"epoch {epoch}"] for epoch in epochs]
        label = f"{told['network']}, {told['parameters'] / 1e6:.1f} M parameters: {error[-1]:.2f}%"
        ax.plot(epochs / told["epochs"] * mean["minutes"], error, "o-", color=color, ms=4, lw=1.8, label=label)
    ax.set(xlim=(0, None))
    _error(ax)
    return fig


def _error(ax: Axes, what: str = "test error, %") -> None:
    """Make the upright axis, logarithmic, that of an error, with a tick beyond the values at either end."""
    values = np.concatenate([np.asarray(line.get_ydata(), float) for line in ax.lines])
    ticks = np.array([digit * 10.0**power for power in range(-3, 3) for digit in (1, 2, 5)])
    low, high = np.searchsorted(ticks, [values.min(), values.max()])
    ticks = ticks[max(low - 1, 0) : high + 1]
    ax.set(yscale="log", ylim=(ticks[0], ticks[-1]))
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    ax.set_ylabel(what, size=SMALL, color=GREY)
    ax.legend(frameon=False, fontsize=BODY)
