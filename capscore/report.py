"""A training as one HTML file: curves, measures, confusions, the hardest pictures, reconstructions, settings."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import disk, mistakes
from .data import Samples
from .figures import examples, png, reconstructions, training_curves
from .metrics import Measures
from .model import CapsNet
from .train import check_dataset, measure

if TYPE_CHECKING:  # `figures` says what to do where there is no matplotlib
    from matplotlib.figure import Figure

HARDEST, DRAWN = 24, 10  # images

STYLE = """body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 60em; margin: 2em auto; padding: 0 1em }
img { max-width: 100%; display: block; margin: 1em 0 }
table { border-collapse: collapse }
td, th { padding: .15em .8em; text-align: right } th { border-bottom: 1px solid #ccc }
td:first-child, th:first-child { text-align: left } pre { background: #f6f6f6; padding: 1em; overflow-x: auto }"""


def write(
    path: str | os.PathLike[str], net: CapsNet[Any], data: Samples, rows: Sequence[Mapping[str, Any]] = ()
) -> Measures:
    """Write a page about a network: what it makes of the images `data`, and how it came to it, by its log's `rows`.

    The file has its pictures in it. Returns the measures.
    """
    data = check_dataset(net, data, "test")  # in the network's order of classes
    found = measure(net, data)
    index = found.hardest(HARDEST)
    parts = [_summary(net, found), _table(found)]
    if found.confusion is not None:
        parts.append(_picture(mistakes.confusion(found), "Which classes are taken for which"))
    parts.append(_picture(mistakes.hardest(data.batch(index)[0], found, index), "The images that are hardest"))
    if net.spec.decoder is not None:
        images, labels = data.batch(examples(data, DRAWN))
        drawn = reconstructions(net, images, None if labels.ndim > 1 else labels)
        parts.append(_picture(drawn, "Images, and what the decoder draws of their capsules"))
    if rows:
        parts.append(_picture(training_curves(rows), "Loss and accuracy after every epoch"))
    parts.append(_settings(net))
    title = f"capscore: {net.provenance.get('data', 'a network')}"
    head = f"<!doctype html><meta charset=utf-8><title>{escape(str(title))}</title><style>{STYLE}</style>"
    text = f"{head}\n<h1>{escape(str(title))}</h1>\n" + "\n".join(parts) + "\n"
    disk.write_atomically(Path(path), text.encode("utf-8", "backslashreplace"))
    return found


def _summary(net: CapsNet[Any], found: Measures) -> str:
    told = [f"accuracy {found.accuracy:.2%} of {found.images:,} images", f"balanced {found.balanced_accuracy:.2%}"]
    told += [f"macro F1 {found.macro_f1:.2%}", f"{net.spec.parameter_count:,} parameters"]
    return f"<p><b>{', '.join(told)}</b></p>"


def _table(found: Measures) -> str:
    lines = ["<table><tr><th>class<th>images<th>precision<th>recall<th>F1"]
    for j, name in enumerate(found.classes):
        shares = (found.precision[j], found.recall[j], found.f1[j])
        cells = (f"{found.shown[j]:,}", *("–" if np.isnan(x) else f"{x:.2%}" for x in shares))
        lines.append(f"<tr><td>{escape(name)}" + "".join(f"<td>{cell}" for cell in cells))
    return "\n".join(lines) + "</table>"


def _picture(figure: Figure, words: str) -> str:
    return f'<img alt="{escape(words)}" src="data:image/png;base64,{base64.b64encode(png(figure)).decode()}">'


def _settings(net: CapsNet[Any]) -> str:
    lines = "".join(
        f"<tr><td>{escape(row.name)}<td>{row.kind}<td>{'×'.join(map(str, row.output.dims))}<td>{row.parameter_count:,}"
        for row in (*net.spec.rows, *net.spec.decoder_rows)
    )
    layers = f"<h2>Network</h2><table><tr><th>layer<th>kind<th>output<th>parameters{lines}</table>"
    told = escape(json.dumps(net.provenance, indent=2))
    return f"{layers}\n<h2>Settings</h2><pre>{told}</pre>"
