"""What a folder of images holds, by the headers of its files: sizes, colours, and what is passed over."""

import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

Size = tuple[int, int, int]  # (C, H, W)

LARGEST = 64  # pixels of the longer side: larger photographs are made smaller where nothing else is asked for
TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange height and width
ORIENTATION = 0x0112


def own_sizes(files: Sequence[Path], formats: tuple[str, ...]) -> Counter[Size]:
    """Count the (C, H, W) that image files have themselves, C 1 for grey and 3 for colour, damaged ones left out."""
    from PIL import Image

    found: Counter[Size] = Counter()
    for path in files:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                image = Image.open(path, formats=formats)
            with image:
                width, height = image.size
                # Of a PNG, asking for the orientation would decode the pixels.
                turned = image.format != "PNG" and image.getexif().get(ORIENTATION) in TURNED
                grey = image.mode in ("1", "L", "LA") or image.mode.startswith("I")
        except Exception:  # PIL raises nearly anything; whoever reads the pixels says what is wrong
            continue
        found[(1 if grey else 3, *((width, height) if turned else (height, width)))] += 1
    return found


def fitting_size(sizes: Counter[Size]) -> Size | None:
    """Return the size that most of the images have, made smaller to LARGEST, in colour if any of them is."""
    if not sizes:
        return None
    places: Counter[tuple[int, int]] = Counter()
    for (_, height, width), count in sizes.items():
        places[height, width] += count
    height, width = max(places, key=lambda place: (places[place], place))
    scale = min(1.0, LARGEST / max(height, width))
    return max(channels for channels, _, _ in sizes), max(1, round(height * scale)), max(1, round(width * scale))


def what_reading_loses(sizes: Counter[Size], size: Size) -> str:
    """Say in one line what reading images of such sizes as `size` loses; empty if it loses nothing."""
    coloured = sum(count for (channels, _, _), count in sizes.items() if channels > size[0])
    smaller = sum(count for (_, h, w), count in sizes.items() if h > size[1] or w > size[2])
    parts = []
    if coloured:
        parts.append(f"{coloured:,} in colour became grey")
    if smaller:
        _, height, width = max(sizes, key=lambda own: own[1] * own[2])
        parts.append(f"{smaller:,} were made smaller, from up to {height}×{width}")
    read = f"{sum(sizes.values()):,} images were read as {'×'.join(map(str, size))}"
    return f"{read}: {', '.join(parts)}" if parts else ""


def skipped(paths: Sequence[Path], root: Path, suffixes: Sequence[str]) -> str:
    """Say in one line how many files and folders were passed over, by their kinds; empty if there were none."""
    kinds = Counter("folders" if p.is_dir() else p.suffix.lower() or "without an extension" for p in paths)
    if not kinds:
        return ""
    told = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common(8))
    more = "" if len(kinds) <= 8 else f", and {len(kinds) - 8} other kinds"
    return f"{len(paths):,} entries of {root.name} were skipped ({told}{more}): images are {', '.join(suffixes)} files"
