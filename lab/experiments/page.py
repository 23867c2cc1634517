"""The page of results: what the paper says, the best public re-implementation, and what was measured here.

Every number and every verdict is worked out from the JSON files; what is not in them was not run, and says so.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab import files
from lab.experiments import NAMES, claims_page
from lab.experiments.claims_page import image, number
from lab.experiments.mnist import EXPORTS
from lab.experiments.trials import read, summary
from lab.experiments.verdicts import FAILS, HOLDS, OPEN, interval

Row = dict[str, Any]
NOT_RUN = "not run"
SHOWN = ("full", "hour", "quick")  # budgets, the largest first

NOT_SAID = "not said"

# Name, the paper, best public re-implementation, how their epochs were chosen; experiment, settings, value (an error in
# percent).
PUBLISHED: list[tuple[str, str, str, str, str, dict[str, Any], str]] = [
    ("MNIST, CNN", "0.39", "", NOT_SAID, "table1", {"network": "CNN"}, "error"),
    *(
        (
            f"MNIST, CapsNet, routing {routing}, {'with' if drawn else 'no'} reconstruction",
            paper,
            best,
            NOT_SAID,
            "table1",
            {"network": "CapsNet", "routing": routing, "reconstruction": drawn},
            "error",
        )
        for routing, drawn, paper, best in (
            (1, False, "0.34 ± 0.032", ""),
            (1, True, "0.29 ± 0.011", ""),
            (3, False, "0.35 ± 0.036", ""),
            (3, True, "**0.25 ± 0.005**", "0.28; on average 0.30 and 0.34"),
        )
    ),
    ("MNIST, the paper's network, our recipe", "–", "", "–", "mnist", {"network": "mnist"}, "error"),
    ("MNIST, `small`, our recipe", "–", "", "–", "mnist", {"network": "small"}, "error"),
    ("MultiMNIST, CNN", "8.1", "", NOT_SAID, "multimnist", {"network": "CNN"}, "error"),
    ("MultiMNIST, CapsNet", "**5.2**; routing 1: 7.5", "", NOT_SAID, "multimnist", {"network": "CapsNet"}, "error"),
    ("digits moved on 40×40, CNN", "0.78", "", NOT_SAID, "affnist", {"network": "CNN"}, "moved"),
    ("… the same on affNIST", "34", "", NOT_SAID, "affnist", {"network": "CNN"}, "affine"),
    ("digits moved on 40×40, CapsNet", "0.77", "", NOT_SAID, "affnist", {"network": "CapsNet"}, "moved"),
    ("… the same on affNIST", "**21**", "6.8, without routing", NOT_SAID, "affnist", {"network": "CapsNet"}, "affine"),
    ("CIFAR-10, CapsNets, 7 in the paper", "10.6", "", NOT_SAID, "cifar10", {}, "error"),
    ("smallNORB, CapsNet", "2.7", "", NOT_SAID, "smallnorb", {}, "error"),
]  # fmt: skip

# Recipe → the error that was published, and how its epoch was chosen.
OF_RECIPES: dict[str, tuple[str, str]] = {
    "efficient-mnist": ("0.26 (161,824 parameters)", "the best on the test images"),
    "dynamic-mnist": ("0.25 (8.2 million)", NOT_SAID),
    "residual-mnist": ("0.26 (161,824 parameters)", "the best on the test images"),
    "residual-dynamic-mnist": ("0.25 (8.2 million)", NOT_SAID),
    "small-mnist": ("0.25 (8.2 million)", NOT_SAID),
    **dict.fromkeys(
        ("unrouted-mnist", "residual-unrouted-mnist"),
        (
            "0.17 (1.5 million, [no routing](references.md#byerly-2020))",
            f"{NOT_SAID}; the best of several trainings",
        ),
    ),
    "em-mnist": ("0.44 ([matrix capsules](references.md#hinton-2018))", NOT_SAID),
    "inverted-mnist": ("none on MNIST", "–"),
    "efficient-fashion": (
        "6.4 (8.2 million, CapsNet); 4.9 (7.2 million, DeepCaps)",
        f"{NOT_SAID}; the best on the test images",
    ),
    "efficient-multimnist": ("5.2 (11.4 million)", NOT_SAID),
    "efficient-affnist": ("21 (paper); 6.8 (without routing)", NOT_SAID),
}

# Stem → the recipe of each head on it.
HEADS = {
    "residual": ("residual-unrouted-mnist", "residual-dynamic-mnist", "residual-mnist"),
    "Efficient-CapsNet": ("unrouted-mnist", "dynamic-mnist", "efficient-mnist"),
}


def markdown(folder: Path, beside: Path) -> str:
    """Return the page that the results in `folder` make; it shows the pictures that are in `beside`/images."""
    records = {name: read(folder / f"{name}.json") for name in NAMES}
    found = {name: list(summary(trials)) for name, trials in records.items()}
    parts = [
        f"<!-- {files.MARK} -->",
        "# Results",
        "This page is written by `make results` from the files of `results/`, which `python -m lab experiment NAME` "
        "adds to; nobody edits it. Errors are in percent, of the network after the last epoch, with the standard "
        "deviation over seeds where there are several. [The paper](references.md#sabour-2017) trained its networks for "
        "hundreds of epochs on GPUs; "
        "the column *full* is that here. The columns *hour* and *quick* are small networks, whose parameters stand "
        "below, after about an hour and after minutes on a CPU: they show that the experiments run and what they tend "
        "to. They are no reproduction.",
        "## The paper's numbers",
        "*Their epoch* is how the epoch of a published network was chosen. An error of the epoch that was the best on "
        "the test images is too low: its authors have peeked. *Not said*: the source of the figure does not tell.",
        _table(found),
        *_budgets(records),
    ]
    recipes = list(summary(read(folder / "recipes.json")))
    parts += [*_recipes(recipes), *_heads(recipes)]
    if recipes:
        parts += [
            "### How they learned, and what they get wrong",
            "[The zoo](zoo.md) shows for every network that ships which classes it takes for which, the images that it "
            "finds hardest, what it draws, and what the numbers of its capsules mean. `python -m lab results` draws "
            "all of these pictures from `results/zoo`, the test images and the networks.",
            image("zoo", "Error on the images that are watched after every epoch, a line for each network of the zoo"),
        ]
    if rows := _largest(found["mnist"]):
        parts += [
            "## MNIST, epoch by epoch",
            *_curves(rows),
            image("mnist", "Test error of both networks after every epoch, against minutes of training"),
        ]
    if rows := _largest(found["multimnist"]):
        parts += [
            "## Overlapping digits",
            _overlap(rows),
            image("multimnist", "Pairs of overlapping digits, each drawn on its own in a colour"),
        ]
    parts += _claims(records["claims"])
    if rows := _largest(found["routing"]):
        parts += [
            "## Does the routing settle?",
            *_routing(rows),
            image("routing", "Change of logits and couplings at every pass"),
        ]
    drawn = [part for part in parts if part[:1] != "!" or (beside / part[part.index("](") + 2 : -1]).exists()]
    return "\n\n".join(_wrapped(part) for part in drawn if part) + "\n"


def _wrapped(part: str) -> str:
    """Break the lines of a paragraph; tables, headings and pictures have their own."""
    return part if part[0] in "|#!" else textwrap.fill(part, 118, break_long_words=False, break_on_hyphens=False)


def _table(found: Mapping[str, list[Row]]) -> str:
    lines = [
        "| test error, % | paper | best public | their epoch | capscore, full | hour | quick |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, paper, best, epoch, experiment, settings, value in PUBLISHED:
        cells = [_cell(found[experiment], {"budget": budget, **settings}, value) for budget in SHOWN]
        lines.append(f"| {name} | {paper} | {best or '–'} | {epoch} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(rows: list[Row], settings: Mapping[str, Any], value: str) -> str:
    fitting = [row for row in rows if settings.items() <= row["settings"].items() and value in row["mean"]]
    # Of an ensemble and its members the ensemble, and of several datasets the largest.
    best = max(fitting, key=lambda row: (row["settings"].get("models", 1), row["settings"]["images"]), default=None)
    if best is None:
        return NOT_RUN
    drawn = ", its transforms drawn here" if value == "affine" and best["settings"]["affnist"] != "official" else ""
    return f"{number(best, value)} (n = {best['n']}{drawn})"


def _largest(rows: list[Row]) -> list[Row]:
    """Return the rows of the largest budget there is, and of the largest dataset within it."""
    for budget in SHOWN:
        if alike := [row for row in rows if row["settings"]["budget"] == budget]:
            most = max(row["settings"].get("images", 0) for row in alike)
            return [row for row in alike if row["settings"].get("images", most) == most]
    return []


def _budgets(records: Mapping[str, list[Row]]) -> list[str]:
    lines = [
        "| experiment | budget | training images | parameters | epochs | seconds | on |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, trials in records.items():
        for budget in dict.fromkeys(trial["settings"]["budget"] for trial in trials):
            alike = [trial for trial in trials if trial["settings"]["budget"] == budget]
            told = [trial["settings"] for trial in alike if "images" in trial["settings"]]
            sizes = [f"{size:,}" for size in sorted({settings["parameters"] for settings in told})]
            data = sorted({f"{settings['images']:,} of {settings['data']}" for settings in told})
            epochs = sorted({trial["settings"].get("epochs", trial["spends"]["epochs"]) for trial in alike})
            lines.append(
                f"| {name} | {budget} | {'; '.join(data)} | {'; '.join(sizes)} | "
                f"{'; '.join(map(str, epochs))} | {sum(t['seconds'] for t in alike):,.0f} | "
                f"{'; '.join(dict.fromkeys(map(_where, alike)))} |"
            )
    return ["What was run, and on what:", "\n".join(lines)] if len(lines) > 2 else []


def _where(trial: Row) -> str:
    hardware, versions = trial["hardware"], trial["versions"]
    on = f"{hardware.get('gpu') or hardware['cpu']}, {hardware['threads']} thread{'s' * (hardware['threads'] > 1)}"
    return f"{on}, torch {versions['torch']}, capscore {versions['capscore']}"


def _recipes(rows: list[Row]) -> list[str]:
    """Return the table of the networks that recipes made."""
    if not rows:
        return []
    lines = [
        "| recipe | data | parameters | epochs | test error, % | of all seeds together | published | its epoch |",
        "|---|---|---|---|---|---|---|---|",
    ]
    ensembles = {row["settings"]["recipe"]: row for row in rows if "ensemble" in row["settings"]}
    for row in (row for row in rows if "ensemble" not in row["settings"]):
        told, together = row["settings"], "–"
        if ensemble := ensembles.get(told["recipe"]):
            count = ensemble["settings"]["ensemble"]
            together = _errors(ensemble) + f" (of {count})" * (count != row["n"])
        published = OF_RECIPES.get(told["recipe"], ("–", "–"))
        lines.append(
            f"| `{told['recipe']}` (n = {row['n']}) | {told['data']} | {told['parameters']:,} | {told['epochs']} | "
            f"{_errors(row)} | {together} | {' | '.join(published)} |"
        )
    return [
        "## Small networks, our recipes",
        "Every row follows a file of `lab/recipes`, by `python -m lab recipe NAME`. A share of the training images is "
        "watched and not learned from. The error is that of the last epoch, with averaged weights; the test images are "
        "read once, in the end, and choose nothing. Published errors whose epoch was the best on the test images are "
        "lower by that: for a network of this size, the best of 30 epochs was 0.08 points below the last. Parameters "
        "are without those of the decoder.",
        "\n".join(lines),
    ]


def _errors(row: Row) -> str:
    """Return a network's errors on its test sets."""
    return "; ".join(
        number(row, name) + after
        for name, after in (("test", ""), ("affine", " on affNIST, drawn here"))
        if name in row["mean"]
    )


def _heads(rows: list[Row]) -> list[str]:
    """Say what routing adds to networks without it, of the same stem and by the same recipe."""
    found = {row["settings"]["recipe"]: row for row in rows if "ensemble" not in row["settings"]}
    lines = ["| stem | head | test error, % | less than without routing, 95% interval |", "|---|---|---|---|"]
    verdicts = []
    for stem, recipes in HEADS.items():
        if not set(recipes) <= set(found):
            continue
        plain, *routed = (found[recipe] for recipe in recipes)
        lines.append(f"| {stem} | no routing (n = {plain['n']}) | {number(plain, 'test')} | – |")
        said = []
        for name, row in zip(("dynamic routing", "self-attention"), routed, strict=True):
            low, high = interval(plain, row, "test")
            alone = math.isnan(low)
            told = "one seed tells none" if alone else f"{low:.2f} to {high:.2f}"
            lines.append(f"| {stem} | {name} (n = {row['n']}) | {number(row, 'test')} | {told} |")
            adds = "errs less" if low > 0 else "errs more" if high < 0 else "adds nothing that could be measured"
            said.append(f"{name} {'cannot be judged by one seed' if alone else adds}")
        verdicts.append(f"On the {stem} stem {' and '.join(said)}.")
    if not verdicts:
        return []
    return [
        "### What routing adds",
        f"The same stem, by the same recipe, with three heads. {' '.join(verdicts)} Without routing, every coupling "
        "is alike: the class capsules are a linear layer with a squash. The intervals are over trainings; all read the "
        "same test images.",
        "\n".join(lines),
    ]


def _curves(rows: list[Row]) -> list[str]:
    lines = [
        "| network | parameters | epochs | minutes | test error, % | exported: fp32 | fp16 | int8 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    exported = {row["settings"]["network"]: row for row in rows if "export" in row["settings"]}
    for row in (row for row in rows if "export" not in row["settings"]):
        told = row["settings"]
        file = exported.get(told["network"])
        cells = [f"{number(file, p)} ({file['mean'][p + ' MB']:.2g} MB)" if file else NOT_RUN for p in EXPORTS]
        lines.append(
            f"| `{told['network']}` (n = {row['n']}) | {told['parameters']:,} | {told['epochs']} | "
            f"{row['mean']['minutes']:.0f} | {number(row, 'error')} | {' | '.join(cells)} |"
        )
    return [
        "The recipe of this library: the rate of Adam falls to a 150th, `small` sees batches of 64 and learns at first "
        'with 0.003, `mnist`, the network of the paper, batches of 128 and 0.001, on a CPU with `fast_conv="6x6"`. '
        "The error is that after the last epoch, the minutes are those of training; exports are run by ONNX Runtime, "
        "int8 calibrated on 512 training images.",
        "\n".join(lines),
    ]


def _overlap(rows: list[Row]) -> str:
    found = {row["settings"]["network"]: row for row in rows}
    if not {"CapsNet", "CNN"} <= set(found):
        return ""
    capsnet, cnn = found["CapsNet"], found["CNN"]
    low, high = interval(cnn, capsnet, "error")
    verdict = HOLDS if low > 0 else FAILS if high < 0 else OPEN
    told = "one seed tells none" if math.isnan(low) else f"{low:.2f} to {high:.2f}"
    return (
        f"Two digits on top of each other, {capsnet['settings']['test']:,} test pairs; both have to be found. The "
        f"CapsNet's error is {number(capsnet, 'error')} %, that of a CNN with as many parameters "
        f"{number(cnn, 'error')} % (n = {capsnet['n']}). That the CapsNet's is the smaller: **{verdict}** (95% "
        f"interval of how much: {told})."
    )


def _claims(trials: list[Row]) -> list[str]:
    for budget in SHOWN:
        if alike := [trial for trial in trials if trial["settings"]["budget"] == budget]:
            return claims_page.claims(alike)
    return ["## The claims about capsules", f"`python -m lab experiment claims`: {NOT_RUN}."]


def _routing(rows: list[Row]) -> list[str]:
    passes = (1, 2, 3, 5, 9)
    lines = [
        "| iterations while learning | " + " | ".join(f"pass {r}" for r in passes) + " |",
        "|---|" + "---|" * len(passes),
    ]
    for what in ("logits", "couplings"):
        for row in rows:
            cells = " | ".join(f"{row['mean'][f'{what} {r}']:.2g}" for r in passes)
            lines.append(f"| {row['settings']['routing']}, change of the {what} (n = {row['n']}) | {cells} |")
    three = next((row["mean"] for row in rows if row["settings"]["routing"] == 3), None)
    settles = "" if three is None else _settles(three)
    return [
        "The mean absolute change at every pass, on test digits; the change of a logit is the agreement that a "
        "pass adds to it. Ten passes are followed, however many there were while learning. The paper says that after "
        f"500 epochs the change of the logits settles at 0.007 on the second pass, and near 1e-5 with five iterations. "
        f"{settles}",
        "\n".join(lines),
    ]


def _settles(mean: Mapping[str, float]) -> str:
    """Say whether logits and couplings change less and less, for a network that learned with three iterations."""
    said = []
    for what in ("logits", "couplings"):
        first, last = mean[f"{what} 1"], mean[f"{what} 9"]
        said.append(f"the change of the {what} {'falls' if last < first else 'grows'} from {first:.2g} to {last:.2g}")
    return f"Here, with three iterations while learning, {' and '.join(said)} between the first pass and the ninth."
