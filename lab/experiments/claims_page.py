"""The page's part on the claims about capsules: where routing adds nothing it says so first."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from lab.experiments.equivariance import FACTORS
from lab.experiments.heads import ALIKE, ATTENTION, DRAWING, DYNAMIC, HEADS, NARROW, NONE, NUMBERS, POOLED, ROUTINGS
from lab.experiments.trials import summary
from lab.experiments.verdicts import CLAIMS, FAILS, HOLDS, LEAST, OPEN, Claim, Judged, judged, others, values
from lab.tables import table

Row = dict[str, Any]


def number(row: Row, name: str, digits: int | None = None) -> str:
    """Return mean ± standard deviation."""
    mean, std = row["mean"][name], row["std"][name]
    digits = (2 if abs(mean) >= 0.1 else 3) if digits is None else digits
    return f"{mean:.{digits}f}" + (f" ± {std:.{digits}f}" if std is not None else "")


def image(name: str, text: str) -> str:
    """Return a picture of the page."""
    return f"![{text}](images/results-{name}.png)"


def claims(trials: Sequence[Row]) -> list[str]:
    """Return the parts of the page that the trials of one budget make."""
    found, beside = judged(trials), others(trials)
    rows = list(summary(list(trials)))
    return [
        "## The claims about capsules",
        _first(found),
        _setup(trials),
        _values(trials),
        _differences(found),
        _many(trials, [*found, *beside]),
        image("claims", "Differences of the networks with their intervals, a row for each claim"),
        *_equivariance(rows, found, beside),
        *_part_whole(rows, found),
        *_overlap(rows, found),
        *_pooling(rows, beside),
        *_adversarial(rows, found),
        *_efficiency(rows, found),
    ]


def _first(found: list[Judged]) -> str:
    """Say what each routing adds, what it does not add first."""
    said = []
    for routing, twin in ((ATTENTION, ALIKE), (DYNAMIC, NONE)):
        told = _grouped(
            _pair(found, routing, twin), ("adds nothing that could be measured to", "takes from", "adds to")
        )
        untold = f"What {routing} adds cannot be told: of *{twin}*, its twin, fewer than {LEAST} seeds were run."
        said.append(f"{routing[0].upper()}{routing[1:]} {told}." if told else untold)
    words = "undecided at", "worse at", "better at"
    if told := _grouped(_pair(found, ATTENTION, NONE), words):
        said.append(f"Beside *no routing*, which has another squash and other first weights, self-attention is {told}.")
    if told := _grouped([each for each in found if each.other not in ROUTINGS], words):
        said.append(f"Beside a CNN, the best capsules are {told}.")
    return f"**What routing itself adds.** {' '.join(said)}"


def _pair(found: list[Judged], better: str, other: str) -> list[Judged]:
    return [each for each in found if (each.better, each.other) == (better, other)]


def _grouped(found: list[Judged], words: tuple[str, str, str]) -> str:
    """Return which claims are undecided, do not hold, and hold, after these words."""
    known = [each for each in found if each.found.n >= LEAST]
    groups = ([each.claim.name for each in known if each.verdict == verdict] for verdict in (OPEN, FAILS, HOLDS))
    said = zip(words, groups, strict=True)
    return "; ".join(f"{word} {_listed(names)}" for word, names in said if names)


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _setup(trials: Sequence[Row]) -> str:
    """Say what was trained, and how."""
    sizes = {trial["settings"]["network"]: trial["settings"]["parameters"] for trial in reversed(trials)}
    spends, told = trials[0]["spends"], trials[0]["settings"]
    counts = {name: len(values(trials, CLAIMS[0], name)) for name in HEADS}
    most = max(counts.values())
    fewer = "".join(f"; of *{name}* {count} so far" for name, count in counts.items() if count < most)
    return (
        f"One stem, six heads, {min(sizes.values()):,} to {max(sizes.values()):,} parameters. Convolutions with batch "
        "normalisation are the same for all; then come 16 primary capsules and a class capsule of 16 numbers for each "
        "digit. *Dynamic routing* stands beside its twin *no routing*, in which every coupling is alike, and "
        "*self-attention* beside its own, *no attention*: the two twins have another squash and other first weights, "
        "as the two papers have it, so that only a routing and its twin tell what the routing adds. Or a hidden layer "
        f"and a score for each digit follow: the CNN, without and with a layer of {NUMBERS} features before "
        "the scores: as many as a capsule has numbers, to be read beside it, but a narrow layer holds a CNN back. All "
        "learn by the same recipe, from the same images in the same order: Adam with one cycle of the rate, batches of "
        f"{spends['batch']}, {spends['epochs']} epoch{'s' * (spends['epochs'] > 1)}, products in bfloat16, averaged "
        "weights, digits moved by up to 2 pixels, the margin loss, no decoder. (The CNN's scores are sigmoids; "
        "cross-entropy made hardly a difference on held-out training digits.) Nothing was chosen by the test images. "
        f"Budget {told['budget']}, {most} seed{'s' * (most > 1)}{fewer}. These are small networks "
        "after a short training; what routing adds to larger ones they do not tell."
    )


def _cell(each: Judged) -> str:
    digits, found = each.claim.digits, each.found
    if math.isnan(found.mean):
        return "not run"
    ends = "" if math.isnan(found.low) else f" ({found.low:+.{digits}f} to {found.high:+.{digits}f})"
    return f"{found.mean:+.{digits}f}{ends}".replace("-", "−")


def _values(trials: Sequence[Row]) -> str:
    lines = []
    for claim in CLAIMS:
        cells = [_spread(claim, list(values(trials, claim, network).values())) for network in HEADS]
        lines.append([f"{claim.name}: {claim.number}", *cells])
    return table(["", *HEADS], lines)


def _spread(claim: Claim, found: list[float]) -> str:
    """Return mean ± standard deviation of a claim's number."""
    if not found:
        return "not run"
    std = statistics.stdev(found) if len(found) > 1 else None
    return number({"mean": {"": sum(found) / len(found)}, "std": {"": std}}, "", claim.digits)


def _differences(found: list[Judged]) -> str:
    heads = ["self-attention − no attention", "self-attention − no routing", "dynamic routing − no routing"]
    lines = []
    for claim in CLAIMS:
        of_claim = [each for each in found if each.claim is claim]
        cells = [f"{_cell(each)}: {each.verdict}" if each.found.n else "not run" for each in of_claim]
        cells[-1] = f"{of_claim[-1].better}: {cells[-1]}"
        lines.append([f"{claim.name}, {'more' if claim.more else 'less'} is better", *cells])
    return table(["better at", *heads, "best capsules − CNN"], lines)


def _many(trials: Sequence[Row], found: list[Judged]) -> str:
    """Say how many comparisons were made, and which remain when all are made at once."""
    count = len(found)
    wide = [*judged(trials, count), *others(trials, count)]
    left = [f"{each.better} over {each.other} ({each.claim.name})" for each in wide if each.verdict == HOLDS]
    lost = [f"{each.better} under {each.other} ({each.claim.name})" for each in wide if each.verdict == FAILS]
    kept = "; ".join(left + lost) or "none"
    return (
        "Differences are paired by seed; in parentheses stands the 95% interval of Student's t. *Holds* is an interval "
        "wholly on the better side of 0, *does not hold* one wholly on the other. The best capsules are chosen of "
        "four by the same numbers, so that their intervals are at 1 − 0.05/4. "
        f"{count} comparisons were made, those of max-pooling and of a decoder below included: if nothing differed, "
        f"about {count * 0.05:.1f} of them would be decided by chance. With intervals wide enough for all of them at "
        f"once (Bonferroni) these remain: {kept}."
    )


def _verdicts(found: list[Judged], *names: str) -> str:
    """Return a sentence for each comparison of the claims of these names."""
    said = []
    for each in (each for each in found if each.claim.name in names):
        what = f", {each.claim.name}" if len(names) > 1 else ""
        cell = f"**{each.verdict}**, {_cell(each)}" if each.found.n else "not run"
        said.append(f"{each.better} better than {each.other}{what}: {cell}")
    return "; ".join(said) + "." if said else ""


def _table(rows: list[Row], names: Sequence[str], networks: Sequence[str], head: str, digits: int | None = None) -> str:
    """Return the values of these names, a row for each, a column for each network."""
    found = {row["settings"]["network"]: row for row in rows}
    shown = [network for network in networks if network in found]
    lines = []
    for name in names:
        cells = [number(found[network], name, digits) if name in found[network]["mean"] else "–" for network in shown]
        lines.append([name, *cells])
    return table([head, *(f"{network} (n = {found[network]['n']})" for network in shown)], lines)


def _of(rows: list[Row], claim: str) -> list[Row]:
    return [row for row in rows if row["settings"]["claim"] == claim]


def _equivariance(rows: list[Row], found: list[Judged], beside: list[Judged]) -> list[str]:
    if not (rows := _of(rows, "equivariance")):
        return []
    decoder = [each for each in beside if each.better == DRAWING]
    return [
        "### Equivariance",
        "R² of a linear reader of the pose, one for each class, on held-out digits, each in one random pose. It reads "
        f"{NUMBERS} numbers: those of the longest capsule, or the last features of the CNN that has as many; of the "
        "other CNN it reads the whole hidden layer, which is more. The networks have learned from "
        f"digits moved by up to 2 pixels and in no other way. {_verdicts(found, 'equivariance')} A decoder that has to "
        "draw the digit from its capsule, as the paper's does, is another matter than routing: "
        f"{_verdicts(decoder, 'equivariance')}",
        _table(rows, list(FACTORS), (*HEADS, POOLED, DRAWING), "R²"),
        image(
            "equivariance", "True and read pose, off capsules without and with dynamic routing and off a CNN's features"
        ),
    ]


def _part_whole(rows: list[Row], found: list[Judged]) -> list[str]:
    if not (rows := _of(rows, "part-whole")):
        return []
    return [
        "### Parts and wholes",
        "Digits cut into quadrants that change places: how sure is the network of its answer still? *Told apart* is "
        "how often a whole digit is the surer one of a whole and a rearranged one; ½ is chance. "
        f"{_verdicts(found, 'parts rearranged')}",
        _table(rows, list(rows[0]["mean"]), HEADS, "quadrants rearranged", 3),
        image("parts", "Digits, the same with rearranged quadrants, and how sure every network is of both"),
    ]


def _overlap(rows: list[Row], found: list[Judged]) -> list[str]:
    if not (rows := _of(rows, "overlap")):
        return []
    told = rows[0]["settings"]
    return [
        "### Pairs of digits",
        f"Two digits on top of each other, {told['images']:,} pairs to learn from, each seen once, {told['test']:,} to "
        "test with; both have to be found, and no other. The stem is the same but for the place of a stride. "
        f"{_verdicts(found, 'overlapping digits')}",
        _table(rows, ["error"], HEADS, "pairs, %"),
    ]


def _pooling(rows: list[Row], beside: list[Judged]) -> list[str]:
    rows = _of(rows, "pooling")
    found = {row["settings"]["network"]: row["mean"] for row in rows}
    if set(found) != {NARROW, POOLED}:
        return []
    names = dict.fromkeys(name for mean in found.values() for name in mean)
    lost = "; ".join(
        f"pooling {i} raises what is lost from {1 - found[POOLED][f'map {i}, before pooling']:.1%} to "
        f"{1 - found[POOLED][f'map {i}']:.1%} of the variance"
        for i in (1, 2)
    )
    of_strides = [each for each in beside if each.other == POOLED]
    return [
        "### What max-pooling throws away",
        f"The CNN with {NUMBERS} features beside itself with max-pooling in the place of every stride: the same "
        "parameters, maps of the same sizes. The best linear reader of a map draws the image again, as R² tells. "
        f"{lost[0].upper()}{lost[1:]}. What is not in a map linearly may still be there in another way. Strides "
        f"instead: {_verdicts(of_strides, *(each.claim.name for each in of_strides))}",
        _table(rows, list(names), (NARROW, POOLED), "R² of the pixels, drawn back from"),
        image("pooling", "Digits drawn back from the maps of the CNN with strides and with max-pooling"),
    ]


def _adversarial(rows: list[Row], found: list[Judged]) -> list[str]:
    if not (rows := _of(rows, "adversarial")):
        return []
    return [
        "### Adversarial images",
        "No network was trained for it. Both attacks have the gradients of the whole network, routing included, and "
        "raise the longest wrong length (or score) over the right one, which has a gradient everywhere; error in "
        f"percent of {rows[0]['settings']['test']:,} test digits. {_verdicts(found, 'FGSM attacks', 'PGD attacks')}",
        _table(rows, list(rows[0]["mean"]), HEADS, "attack and ε", 1),
        image("adversarial", "Error against the strength of both attacks, for every head"),
    ]


def _efficiency(rows: list[Row], found: list[Judged]) -> list[str]:
    if not (rows := _of(rows, "efficiency")):
        return []
    counts = sorted({row["settings"]["examples"] for row in rows})
    lines = []
    for count in counts:
        of_count = {row["settings"]["network"]: row for row in rows if row["settings"]["examples"] == count}
        cells = [number(of_count[name], "error") if name in of_count else "not run" for name in HEADS]
        lines.append([f"{count:,}", *cells])
    return [
        "### Data efficiency",
        f"Test error in percent, after equally many steps. {_verdicts(found, 'few examples')}",
        table(["examples of each class", *HEADS], lines),
        image("efficiency", "Test error against the number of training examples of each class, for every head"),
    ]
