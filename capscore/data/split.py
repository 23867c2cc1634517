"""Which images of a single set are held out to test with, and what a model file tells of that."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capscore.data.dataset import Dataset
from capscore.data.rows import Rows, part
from capscore.errors import DataError, short

Rule = Callable[[Dataset], tuple[Dataset, Dataset]]  # parts one set into (train, test)

SHARE = 0.2  # of the images are held out
LIMIT = np.uint64(SHARE * 2**64)
SALT = b"capscore split 1"
BLOCK = 1024  # images turned into bytes at once


@dataclass(frozen=True)
class ByContent:
    """Hold an image out if the hash of its pixels is small: no other image, no name and no seed has a say.

    The hash is BLAKE2b of 8 bytes, salted with SALT, over the image in uint8, as it was read: [C, H, W] in the
    network's colour and size. It is read as a big-endian number and held out below SHARE · 2⁶⁴. Images that were
    added, removed or renamed leave the others where they are, and equal images are on the same side.

    `moved` are the hashes of images that are on the other side than this says. Without them (None), a class that
    would have no image to learn from gives the one of its largest hash to training, and a class of several different
    images that would have none to test with holds out the one of its smallest. They are kept with a model, so that
    images added later do not change them either.
    """

    moved: tuple[str, ...] | None = None  # hexadecimal

    def __call__(self, data: Dataset) -> tuple[Dataset, Dataset]:
        """Return (train, test), in the order of `data`. Raises DataError if one of them would have no image."""
        found = _hashes_in_bytes(data)
        if self.moved is None:
            moved = _moved(found, data.labels)
        else:
            moved = np.array([int(number, 16) for number in self.moved], np.uint64)
        told = {"rule": "content", "held_out": SHARE, "moved": [f"{number:016x}" for number in moved.tolist()]}
        return _parted(data, _held_out(found, moved), told)


@dataclass(frozen=True)
class BySeed:
    """Draw a fifth of every class with a seed: how capscore split before a split was kept with the model."""

    seed: int

    def __call__(self, data: Dataset) -> tuple[Dataset, Dataset]:
        """Return (train, test), in the order of `data`. Raises DataError if one of them would have no image."""
        if data.labels.dtype == np.bool_:
            raise DataError("a model that knows one class an image is asked about images that show several")
        counts = np.bincount(data.labels)
        quota = np.where(counts > 1, np.maximum(1, np.rint(counts / 5)), 0)
        grouped = np.lexsort((np.random.default_rng(self.seed).random(len(data)), data.labels))
        rank = np.arange(len(data)) - np.repeat(np.cumsum(counts) - counts, counts)
        chosen = np.zeros(len(data), bool)
        chosen[grouped] = rank < quota[data.labels[grouped]]
        return _parted(data, chosen, {"rule": "seed", "seed": self.seed})


def whole(data: Dataset) -> tuple[Dataset, Dataset]:
    """Return all images twice: a rule for those who ask for all of them, whatever their split."""
    data = replace(data, split={"rule": "whole"})
    return data, data


def rule_of(provenance: Mapping[str, Any]) -> ByContent | BySeed | None:
    """Return how the training set of a model was split, by what its untrusted file tells; None if it tells nothing.

    Files written before splits were kept tell the seed of a training by the command line, which split by it. The
    rule for data that came with a test set of its own is that of a new training. Raises DataError for anything else.
    """
    told = provenance.get("split")
    if told is None:
        seed = seed_of(provenance)
        return BySeed(seed) if "data" in provenance and seed is not None else None
    match told:
        case {"rule": "own"}:
            return ByContent()
        case {"rule": "seed", "seed": int(seed)} if seed >= 0:
            return BySeed(seed)
        case {"rule": "content", "held_out": share, "moved": list(moved)} if share == SHARE:
            if all(isinstance(number, str) and _is_hash(number) for number in moved):
                return ByContent(tuple(moved))
    raise DataError(f"the model's split {short(told)} is none that this version knows: train it again")


def seed_of(provenance: Mapping[str, Any]) -> int | None:
    """Return the seed of a training, by what a model's untrusted file tells; None if it tells none."""
    recipe = provenance.get("recipe")
    seed = recipe.get("seed") if isinstance(recipe, dict) else None
    return seed if type(seed) is int and seed >= 0 else None


def hashes(images: NDArray[Any] | Rows, salt: bytes = b"") -> NDArray[np.uint64]:
    """Return a number [N] for each of images [N, …], of its bytes."""
    rows = (np.ascontiguousarray(image).data.cast("B") for image in images)
    numbers = b"".join(hashlib.blake2b(row, digest_size=8, salt=salt).digest() for row in rows)
    return np.frombuffer(numbers, ">u8").astype(np.uint64)


def _hashes_in_bytes(data: Dataset) -> NDArray[np.uint64]:
    """Return the hashes [N] of images in uint8, whether they are stored so or as floats in [0, 1]."""
    if data.images.dtype == np.uint8:
        return hashes(data.images, SALT)
    blocks = (data.images[start : start + BLOCK] for start in range(0, len(data), BLOCK))
    return np.concatenate([hashes(np.rint(block * np.float32(255)).astype(np.uint8), SALT) for block in blocks])


def _held_out(found: NDArray[np.uint64], moved: NDArray[np.uint64]) -> NDArray[np.bool_]:
    return (found < LIMIT) ^ np.isin(found, moved)


def _moved(found: NDArray[np.uint64], labels: NDArray[Any]) -> NDArray[np.uint64]:
    """Return the hashes that must change sides for every class to have images on both."""
    moved = np.empty(0, np.uint64)
    flags = labels.T if labels.dtype == np.bool_ else (labels == label for label in np.unique(labels))
    for shown in flags:
        mine = np.unique(found[shown])  # in ascending order
        out, free = _held_out(mine, moved), mine[~np.isin(mine, moved)]
        if len(mine) and out.all():
            moved = np.append(moved, free[-1:])
        elif len(mine) > 1 and not out.any():
            moved = np.append(moved, free[:1])
    return moved


def _parted(data: Dataset, chosen: NDArray[np.bool_], told: dict[str, Any]) -> tuple[Dataset, Dataset]:
    if not chosen.any() or chosen.all():
        side = "test with" if not chosen.any() else "learn from"
        raise DataError(
            f"{len(data)} images in {len(data.classes)} classes leave none to {side}: add images; "
            "to measure a model with all of them, capscore eval --split all"
        )
    sides = (~chosen, chosen)
    train, test = (replace(data, images=part(data.images, m), labels=data.labels[m], split=told) for m in sides)
    return train, test


def _is_hash(number: str) -> bool:
    return len(number) == 16 and set(number) <= set("0123456789abcdef")
