"""A few digits that tell whether data are the same, as a checkpoint and a model keep them."""

import hashlib
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capscore.data.dataset import Dataset, Samples
from capscore.data.items import Items
from capscore.data.pairs import Pairs
from capscore.data.place import Redrawn
from capscore.data.split import hashes
from capscore.errors import short

BLOCK = 1024  # images of other kinds that are asked for at once


def fingerprint(data: Samples) -> dict[str, Any]:
    """Return {"images": N, "content": hex, "order": hex} of images, labels and class names.

    `content` is the same for the same images in another order. Of what is drawn from other images, those and the
    settings count, not every drawing; of `Items`, which may be augmented anew whenever they are asked for, the labels.
    """
    if isinstance(data, Redrawn | Pairs):
        settings = [(f.name, getattr(data, f.name)) for f in fields(data) if f.name != "source"]
        told = fingerprint(data.source)
        kind = repr((type(data).__name__, settings))
        return {"images": len(data)} | {key: _digest(f"{kind} {told[key]}".encode()) for key in ("content", "order")}
    rows = data.labels.reshape(len(data), -1).astype(np.uint64)
    if not isinstance(data, Items):
        found = hashes(data.images) if isinstance(data, Dataset) else _hashes_of_batches(data)
        rows = np.column_stack([found, rows])
    about = repr((data.size, tuple(data.classes))).encode()
    inorder, anyhow = (_digest(about + each.tobytes()) for each in (rows, rows[np.lexsort(rows.T)]))
    return {"images": len(data), "content": anyhow, "order": inorder}


def changes(before: Any, now: dict[str, Any]) -> str:
    """Say in a few words how data differ from the fingerprint `before`, which a file tells; empty if they do not."""
    told = before if isinstance(before, dict) else {}
    if told == now:
        return ""
    if told.get("images") != now["images"]:
        return f"{now['images']:,} images where there were {short(told.get('images'))}"
    if told.get("content") == now["content"]:
        return "the same images in another order (were files renamed?)"
    return f"{now['images']:,} images as before, but not the same ones"


def _hashes_of_batches(data: Samples) -> NDArray[np.uint64]:
    starts = range(0, len(data), BLOCK)
    return np.concatenate([hashes(data.batch(slice(start, start + BLOCK))[0]) for start in starts])


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
