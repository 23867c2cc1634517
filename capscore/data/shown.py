"""How samples show themselves: in one line, and as a picture."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from capscore.data.dataset import Samples

NAMED = 6  # classes that the line has room for
COLUMNS, COUNT = 8, 32  # images of the picture
SIDE, GAP = 64, 4  # pixels: of an image's longer side at least, and around it


class Shown:
    """Base of samples that print as one line, and are a picture in a notebook."""

    def __repr__(self: Any) -> str:
        """Return kind, number, size and classes in one line."""
        size, names = "×".join(map(str, self.size)), self.classes
        more = f", … {len(names) - NAMED} more" if len(names) > NAMED else ""
        listed = ", ".join(names[:NAMED]) + more
        return f"{type(self).__name__}({len(self):,} images of {size}, {len(names)} classes: {listed})"

    def picture(self: Any, count: int = COUNT) -> Picture:
        """Return some of the images, drawn at random but always the same, as one picture."""
        return sheet(self, count)

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        self.picture().save(content, "PNG")
        return content.getvalue()


def sheet(data: Samples, count: int) -> Picture:
    """Return up to `count` images in rows, one beside the other."""
    from PIL import Image

    index = np.random.default_rng(0).permutation(len(data))[:count] if len(data) < 1 << 20 else np.arange(count)
    images, _ = data.batch(np.sort(index))
    _, channels, height, width = images.shape
    colours = images if channels == 3 else images[:, [0, 0, 0]]  # the first channel in grey unless there are three
    scale = max(1, SIDE // max(height, width))
    tiles = np.rint(np.kron(colours, np.ones((scale, scale), np.float32)) * 255).astype(np.uint8)
    tiles = np.pad(tiles, ((0, -len(tiles) % COLUMNS), (0, 0), (0, GAP), (0, GAP)), constant_values=255)
    rows, (down, across) = len(tiles) // COLUMNS, tiles.shape[2:]
    grid = tiles.reshape(rows, COLUMNS, 3, down, across).transpose(0, 3, 1, 4, 2)
    return Image.fromarray(grid.reshape(rows * down, COLUMNS * across, 3))
