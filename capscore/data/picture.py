"""One image file of any of the usual formats, as 8-bit pixels."""

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from capscore.data.memory import Budget
from capscore.errors import DataError, DataWarning

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from PIL.ImageFile import ImageFile

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")  # as PIL calls them
NAMES = "PNG, JPEG, BMP, GIF, TIFF or WebP"
PER_PIXEL = {"WEBP": 28}  # bytes: the most that a decoder and the steps from there to an array hold at once
PER_PIXEL_ELSE = 20
DEFLATE = 8 * 1032  # pixels of a bit that a byte of a PNG can hold at most
FAINT = 16  # of 255: an image whose values lie closer together has nothing to see
BLANK = "blank or nearly so: scale the values if they use fewer bits than the file says, else replace the image"
BLOCK = 1 << 18  # pixels that are scaled to 8 bits at once
BITS, PHOTOMETRIC, TILE, MAX_VALUES, FORMAT = 258, 262, (322, 323), (281, 341), 339  # tags of TIFF

Paper = Literal["black", "white"]


def read_image(
    path: str | Path,
    size: tuple[int, int, int] | None = None,
    paper: Paper | None = None,
    memory: int | str | None = None,
) -> NDArray[np.uint8]:
    """Read a PNG, JPEG, BMP, GIF, TIFF or WebP file as uint8 [C, H, W], in the colour and size asked for or its own.

    Parameters
    ----------
    path
        The file. What it holds decides about the format, not its name. Of several frames the first one is read,
        and the orientation that a camera noted is applied.
    size
        (C, H, W), C 1 for grey or 3 for RGB; resizing is bilinear.
    paper
        What transparency is laid on. Without it white under dark ink and black under light ink.
    memory
        What reading may hold; see `load`.

    Values of more than 8 bits are scaled to 0..255 from the range that the file names: the sBIT chunk of a PNG or
    MaxSampleValue of a TIFF, if no value lies above it, else all its bits, of 32 the lower 16 if they suffice; floats
    from [0, 1], or from [0, 255] if they exceed 1.

    Warns
    -----
    DataWarning
        Transparency was laid on a paper, there are several frames, or the image is blank or nearly so.

    Raises
    ------
    DataError
        The file is missing, damaged or too large for the memory, or its values are negative, not finite or of
        unknown range; or C is neither 1 nor 3.
    """
    image, notes = read_noting(path, size, paper, Budget(memory))
    for note in notes:
        warnings.warn(f"{path}: {note}", DataWarning, stacklevel=2)
    return image


def read_noting(
    path: str | Path, size: tuple[int, int, int] | None, paper: Paper | None, memory: Budget
) -> tuple[NDArray[np.uint8], list[str]]:
    """Read as `read_image` does, but return what it would warn of. The budget is left as it was."""
    if size and size[0] not in (1, 3):
        raise DataError(f"size {size} asks for {size[0]} channels: images are read with 1 (grey) or 3 (RGB)")
    with _opened(path, memory, size) as file:
        several = bool(getattr(file, "is_animated", False))
        image = _decoded(file, path)
        grey = size[0] == 1 if size else image.mode in ("1", "L", "LA")
        image, laid = _without_alpha(image, paper)
        image = _as(image, "L" if grey else "RGB")
        if size:
            from PIL.Image import Resampling

            image = image.resize((size[2], size[1]), Resampling.BILINEAR)
        pixels = np.array(np.atleast_3d(np.asarray(image)).transpose(2, 0, 1), order="C")
    notes = []
    if laid:
        notes.append(f"transparency is laid on {laid}")
    if several:
        notes.append("there are several frames, the first one is used")
    if np.all(np.ptp(pixels, (1, 2)) <= FAINT):
        notes.append(BLANK)
    return pixels, notes


def ink(path: str | Path, memory: Budget) -> tuple[float, float] | None:
    """How bright an image is on black, and how opaque: means, 0 to 255. None if nothing in it is transparent."""
    with _opened(path, memory) as file:
        clear = _clear(_decoded(file, path)) if _has_alpha(file) else None
        return None if clear is None else _ink(*clear)


def paper_for(ink: tuple[float, float]) -> Paper:
    """The paper that differs the more from ink of this brightness and opacity."""
    brightness, opacity = ink
    return "white" if brightness < opacity / 2 else "black"


@contextmanager
def _opened(path: str | Path, memory: Budget, size: tuple[int, int, int] | None = None) -> Iterator["ImageFile"]:
    """Open a file that there is memory to decode; what goes wrong with it, here or inside, ends in DataError."""
    from PIL import Image

    if not Path(path).is_file():
        raise DataError(f"{path} is {'a folder' if Path(path).is_dir() else 'not there'}: name files, {NAMES}")
    try:
        with warnings.catch_warnings(), memory.passing():
            warnings.simplefilter("ignore")  # what PIL finds odd but reads
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as file:
                held = Path(path).stat().st_size
                if file.format == "PNG" and file.width * file.height > DEFLATE * held:
                    raise DataError(f"{path} claims {file.width}×{file.height} pixels in {held:,} bytes: replace it")
                memory.take(_cost(file, size) + 2 * held, path)
                yield file
    except DataError:
        raise
    except Exception as error:  # PIL's decoders raise nearly anything on a damaged file
        raise DataError(f"{path} cannot be read as {NAMES} ({error!s:.200}): replace or remove it") from error


def _cost(file: "ImageFile", size: tuple[int, int, int] | None) -> int:
    """How many bytes decoding, conversion and resizing hold at most."""
    width, height = file.size
    tile = [_tag(file, tag, 0) for tag in TILE]  # decoded whole, however much of it is outside
    _, rows, columns = size or (0, 0, 0)
    each = PER_PIXEL.get(file.format or "", PER_PIXEL_ELSE)
    return each * (max(width, tile[0]) * max(height, tile[1]) + rows * columns) + 4 * max(width, height) * columns


def _tag(file: "ImageFile", tag: int, default: int) -> int:
    """Return a tag of a TIFF file, of its first channel if there is one for each."""
    value: Any = getattr(file, "tag_v2", {}).get(tag, default) if file.format == "TIFF" else default
    return int(value[0] if isinstance(value, tuple) else value)


def _decoded(file: "ImageFile", path: str | Path) -> "Picture":
    """Return the image, turned as its camera noted, in 8 bits; the value that stands for transparency still does."""
    from PIL import Image, ImageOps

    file.load()
    ImageOps.exif_transpose(file, in_place=True)
    clear = file.info.get("transparency")
    if file.format == "PNG":
        bits, declared = _png_bits(path)
        if bits == 16 and file.mode in ("RGB", "RGBA"):
            return _colours(file, path, declared)
    else:
        bits, declared = _tag(file, BITS, 8), max(_tag(file, tag, 0) for tag in MAX_VALUES).bit_length()
    if file.mode not in ("I", "F") and not file.mode.startswith("I;16"):
        return file
    signed = _tag(file, FORMAT, 1) == 2
    low, high = _range(file, signed)
    if not 0 <= low <= high < np.inf:
        raise DataError(f"{path} has values from {low:g} to {high:g}: store whole numbers from 0, or floats in [0, 1]")
    if file.mode == "F":
        if high > 255:
            raise DataError(f"{path} has floats from {low:g} to {high:g}: divide them by their maximum")
        top = 1 if high <= 1 else 255
    else:
        top = (1 << (declared if high < 1 << declared else bits - signed)) - 1
        top = 65535 if top > 65535 >= high else top  # 32 bits are what arrays of 16 bits are often stored in
    grey, alpha = np.empty(file.size[::-1], np.uint8), None
    if isinstance(clear, int):
        alpha = np.empty_like(grey)
    for rows, block in _blocks(file, signed):
        values = top - block if _tag(file, PHOTOMETRIC, 1) == 0 else block  # PIL inverts no more than 8 bits
        grey[rows] = np.rint(np.clip(values / top, 0, 1) * 255)
        if alpha is not None:
            alpha[rows] = np.where(block == clear, 0, 255)
    image = Image.fromarray(grey)
    return image if alpha is None else Image.merge("LA", (image, Image.fromarray(alpha)))


def _colours(file: "ImageFile", path: str | Path, declared: int) -> "Picture":
    """Return a PNG's colours of 16 bits, of which PIL keeps the upper 8, in 8: the upper ones of those it declares."""
    from PIL import Image, ImageOps

    image: Picture = file
    colours, unused = np.array(file), 16 - declared
    if not 0 < unused <= 8 or colours.max() >> (8 - unused):  # nothing is declared, or a value has more bits
        unused = 0
    else:
        with Image.open(path, formats=("PNG",)) as again:  # for the lower 8 bits, which PIL reads if the tile says so
            tiles: list[Any] = again.tile
            grey = tiles[0][3] == "LA;16B"  # two bytes of grey and two of opacity, read as if they were colours
            tiles[0] = (*tiles[0][:3], "RGBA" if grey else f"{file.mode};16L")
            again.load()
            ImageOps.exif_transpose(again, in_place=True)
            low = np.array(again)[..., [1, 1, 1, 3] if grey else slice(None)]
        colours <<= unused  # in place: a picture may be large
        low >>= 8 - unused
        colours |= low
        image = Image.fromarray(colours)
    if isinstance(clear := file.info.get("transparency"), tuple):
        image.info["transparency"] = tuple(value << unused >> 8 for value in clear)
    return image


def _blocks(image: "Picture", signed: bool) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Go through the rows of an image, some at a time, with their values."""
    width, height = image.size
    step = max(1, BLOCK // width)
    for start in range(0, height, step):
        block = np.asarray(image.crop((0, start, width, min(start + step, height))))
        block = block.view(np.uint32) if block.dtype == np.int32 and not signed else block
        yield slice(start, start + step), block.astype(np.float64)


def _range(image: "Picture", signed: bool) -> tuple[float, float]:
    ends = np.array([(block.min(), block.max()) for _, block in _blocks(image, signed)])
    return float(ends[:, 0].min()), float(ends[:, 1].max())


def _png_bits(path: str | Path) -> tuple[int, int]:
    """The bits of a sample in a PNG file, and how many of them its sBIT chunk calls significant, 0 without one.

    The standard has such samples scaled to all their bits; but cameras and scanners often write them as they are.
    """
    with open(path, "rb") as file:
        file.seek(24)
        bits = file.read(1)[0]
        file.seek(33)  # behind the header
        while len(head := file.read(8)) == 8 and head[4:] != b"IDAT":
            length = struct.unpack(">I", head[:4])[0]
            if head[4:] == b"sBIT":
                return bits, min(bits, max(file.read(min(length, 4)), default=0))
            file.seek(length + 4, 1)
    return bits, 0


def _without_alpha(image: "Picture", paper: Paper | None) -> tuple["Picture", Paper | None]:
    """Lay an image on the paper, and say on which; an image with nothing transparent stays what it is."""
    clear = _clear(image)
    if clear is None:
        return image, None
    paper = paper or paper_for(_ink(*clear))
    return _on(paper, *clear), paper


def _has_alpha(image: "Picture") -> bool:
    return image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info


def _clear(image: "Picture") -> tuple["Picture", "Picture"] | None:
    """The colours and the opacity of an image, None if it is opaque everywhere."""
    if not _has_alpha(image):
        return None
    image = _as(image, "RGBA")
    alpha = image.getchannel("A")
    return None if alpha.getextrema() == (255, 255) else (image, alpha)


def _on(paper: Paper, image: "Picture", alpha: "Picture") -> "Picture":
    from PIL import Image

    sheet = Image.new("RGB", image.size, paper)
    sheet.paste(image, mask=alpha)
    return sheet


def _ink(image: "Picture", alpha: "Picture") -> tuple[float, float]:
    from PIL.ImageStat import Stat

    return Stat(_on("black", image, alpha).convert("L")).mean[0], Stat(alpha).mean[0]


def _as(image: "Picture", mode: str) -> "Picture":
    if image.mode == "LAB":  # which PIL's own convert does not know
        from PIL import ImageCms

        lab, rgb = (ImageCms.createProfile(name) for name in ("LAB", "sRGB"))
        image = ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB") or image
    return image if image.mode == mode else image.convert(mode)
