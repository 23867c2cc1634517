"""Made pictures: shapes of any colour, place, size and turn, under noise."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("cross", "disc", "square", "triangle")
FINE = 4  # pixels drawn for one


def picture(shape: str, rng: np.random.Generator, side: int = 64) -> np.ndarray:
    """A light shape of some colour on a dark ground of another, [side, side, 3] uint8."""
    size, turn = rng.uniform(0.16, 0.31) * side * FINE, rng.uniform(0, 2 * np.pi)
    centre = rng.uniform(size + FINE, side * FINE - size - FINE, 2)
    ground, ink = rng.integers(0, 110, 3), rng.integers(0, 110, 3) + 145

    def corners(count: int, reach: float = 1.0) -> list[tuple[float, ...]]:
        angles = turn + 2 * np.pi * np.arange(count) / count
        return [tuple(centre + reach * size * np.array([np.cos(a), np.sin(a)])) for a in angles]

    image = Image.new("RGB", (side * FINE,) * 2, tuple(ground.tolist()))
    draw, fill = ImageDraw.Draw(image), tuple(ink.tolist())
    match shape:
        case "disc":
            draw.ellipse((*(centre - 0.85 * size), *(centre + 0.85 * size)), fill=fill)
        case "square":
            draw.polygon(corners(4), fill=fill)
        case "triangle":
            draw.polygon(corners(3), fill=fill)
        case "cross":
            tips = corners(4)
            for a, b in (tips[::2], tips[1::2]):
                draw.line((*a, *b), fill=fill, width=round(0.6 * size))
    smooth = np.asarray(image.resize((side, side), Image.Resampling.LANCZOS))
    return np.clip(smooth + rng.normal(0, 25, smooth.shape), 0, 255).astype(np.uint8)


def folder(root: Path, count: int, side: int = 64, shapes: tuple[str, ...] = SHAPES, seed: int = 0) -> Path:
    """Write `count` pictures of each shape into a folder of its own."""
    rng = np.random.default_rng(seed)
    for shape in shapes:
        (root / shape).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.fromarray(picture(shape, rng, side)).save(root / shape / f"{i:04}.png")
    return root
