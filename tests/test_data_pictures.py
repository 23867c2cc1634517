"""Image files of every format and mode: what they show is what is read, and what is lost is said."""

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from capscore.data import load, read_image
from capscore.errors import DataError, DataWarning

RAMP = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
INK = np.where(np.eye(8, dtype=bool), 255, 0).astype(np.uint8)  # opaque on a diagonal, clear elsewhere


def said(path: Path, *options: Any, **named: Any) -> tuple[np.ndarray, list[str]]:
    """What is read, and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        image = read_image(path, *options, **named)
    return image, [str(warning.message).partition(": ")[2] for warning in caught]


def drawing(colour: int, mode: str = "RGBA") -> Image.Image:
    """A diagonal line of this colour on transparency, as a canvas saves it."""
    grey = Image.fromarray(np.where(INK > 0, colour, 0).astype(np.uint8))
    picture = Image.merge("LA", (grey, Image.fromarray(INK)))
    return picture if mode == "LA" else picture.convert(mode)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png16(values: np.ndarray, significant: int | None = None, clear: int | tuple[int, ...] | None = None) -> bytes:
    """A PNG of 16 bits of values [H, W] or [H, W, channels], with an sBIT chunk and a transparent value."""
    height, width, channels = np.atleast_3d(values).shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, (0, 4, 2, 6)[channels - 1], 0, 0, 0))]
    if significant is not None:
        parts.append(chunk(b"sBIT", bytes([significant] * channels)))
    if clear is not None:
        parts.append(chunk(b"tRNS", np.array(clear, ">u2").tobytes()))
    return b"\x89PNG\r\n\x1a\n" + b"".join([*parts, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")])


# --------------------------------------------------------------------------------------------------- formats


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF", "WEBP"])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_formats_are_told_by_content(tmp_path: Path, kind: str, suffix: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    Image.fromarray(RAMP).save(tmp_path / f"x{suffix}", kind, **options)
    np.testing.assert_array_equal(read_image(tmp_path / f"x{suffix}", (1, 8, 8))[0], RAMP)


@pytest.mark.parametrize("kind", ["PPM", "ICO", "TGA", "PCX", "EPS", "PDF"])
def test_other_formats_are_refused_whatever_the_name(tmp_path: Path, kind: str) -> None:
    Image.fromarray(RAMP).save(tmp_path / "x.png", kind)
    with pytest.raises(DataError, match="cannot be read as PNG, JPEG, BMP, GIF, TIFF or WebP"):
        read_image(tmp_path / "x.png")


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_of_several_frames_the_first_is_read_and_it_is_said(tmp_path: Path, kind: str) -> None:
    first, second = Image.fromarray(RAMP).convert("RGB"), Image.fromarray(255 - RAMP).convert("RGB")
    options = {"lossless": True} if kind == "WEBP" else {}
    first.save(tmp_path / "x", kind, save_all=True, append_images=[second], **options)
    image, notes = said(tmp_path / "x", (1, 8, 8))
    np.testing.assert_allclose(image[0], RAMP, atol=2)  # the palette of GIF
    assert notes == ["there are several frames, the first one is used"]


def test_folder_takes_every_format(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        for suffix in ("png", "jpg", "jpeg", "bmp", "gif", "tif", "tiff", "webp", "TIF"):
            Image.fromarray(RAMP).save(tmp_path / name / f"{suffix}.{suffix}")
    train, test = load(str(tmp_path))
    assert len(train) + len(test) == 18


# ------------------------------------------------------------------------------------------------------ modes

MODES = [  # every mode that the formats bring; what Pillow makes of a ramp of grey
    *[("PNG", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")],
    *[("TIFF", mode) for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I;16B", "I", "F")],
    *[("TIFF", mode) for mode in ("LA", "PA", "RGBX")],
    *[("BMP", mode) for mode in ("1", "L", "P", "RGB", "RGBA")],
    *[("GIF", mode) for mode in ("1", "L", "P", "RGB")],
    *[("WEBP", mode) for mode in ("RGB", "RGBA")],
    *[("JPEG", mode) for mode in ("L", "RGB", "CMYK")],
]


def in_mode(mode: str) -> Image.Image:
    grey = Image.fromarray(RAMP)
    match mode:
        case "I;16" | "I;16B":
            deep = RAMP.astype(">u2" if mode == "I;16B" else "<u2") * 257
            return Image.frombytes(mode, grey.size, deep.tobytes())
        case "P":
            return grey.convert("P")
        case "I":
            return Image.fromarray(RAMP.astype(np.int32) * 8421504)  # of 31 bits
        case "F":
            return Image.fromarray(RAMP.astype(np.float32) / 255)
        case "LAB":
            return Image.merge("LAB", (grey, *[Image.new("L", grey.size, 128)] * 2))
        case "PA":
            return Image.merge("LA", (grey, Image.new("L", grey.size, 255))).convert("PA")
        case _:
            return grey.convert("RGB").convert(mode)


@pytest.mark.parametrize(("kind", "mode"), MODES)
def test_every_mode_is_read_right(tmp_path: Path, kind: str, mode: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "JPEG" else {}
    in_mode(mode).save(tmp_path / "x", kind, **options)
    image, notes = said(tmp_path / "x", (1, 8, 8))
    if mode == "1":
        np.testing.assert_array_equal(image[0], np.asarray(in_mode("1").convert("L")))
    elif mode == "LAB":  # lightness, not linear in grey: black, white and the order of what is between
        assert (image.min(), image.max()) == (0, 255)
        assert np.all(np.diff(image.ravel().astype(int)) >= 0)
    else:
        np.testing.assert_allclose(image[0].astype(int), RAMP, atol=4 if kind == "JPEG" else 3)
    assert notes == []


# ------------------------------------------------------------------------------------------------- bit depth


@pytest.mark.parametrize("values", [RAMP.astype(int) * 4095 // 255])
def test_12_bits_in_16_of_a_png(tmp_path: Path, values: np.ndarray) -> None:
    (tmp_path / "x.png").write_bytes(png16(values, significant=12))
    image, notes = said(tmp_path / "x.png")
    np.testing.assert_allclose(image[0], RAMP, atol=1)
    assert notes == []
    (tmp_path / "x.png").write_bytes(png16(values << 4 | values >> 8, significant=12))  # as the standard has it
    np.testing.assert_allclose(read_image(tmp_path / "x.png")[0], RAMP, atol=1)
    (tmp_path / "x.png").write_bytes(png16(values))  # nothing says so: 0 to 16, and that is told
    image, notes = said(tmp_path / "x.png")
    assert image.max() == 16
    assert "fewer bits than the file says" in notes[0]


@pytest.mark.parametrize("channels", [2, 3, 4])
@pytest.mark.parametrize("bits", [8, 9, 12, 15])
def test_fewer_than_16_bits_of_a_colour(tmp_path: Path, channels: int, bits: int) -> None:
    """PIL alone gives the upper 8 of all 16, which is next to black."""
    top = (1 << bits) - 1
    shown = np.stack([RAMP, RAMP[::-1], RAMP.T], -1) if channels > 2 else RAMP[..., None]
    opaque = [] if channels == 3 else [np.full((*RAMP.shape, 1), top)]
    values = np.concatenate([shown.astype(int) * top // 255, *opaque], -1)
    wanted = np.broadcast_to(shown.transpose(2, 0, 1), (3, 8, 8))
    (tmp_path / "x.png").write_bytes(png16(values, significant=bits))
    image, notes = said(tmp_path / "x.png", (3, 8, 8))
    np.testing.assert_allclose(image, wanted, atol=1)
    assert notes == []
    (tmp_path / "x.png").write_bytes(png16(values << 16 - bits, significant=bits))  # as the standard has it
    np.testing.assert_allclose(read_image(tmp_path / "x.png", (3, 8, 8)), wanted, atol=1)


def test_12_bits_of_a_colour_that_nothing_declares(tmp_path: Path) -> None:
    values = np.dstack([RAMP.astype(int) * 4095 // 255] * 3)
    (tmp_path / "x.png").write_bytes(png16(values))
    image, notes = said(tmp_path / "x.png")
    assert image.max() == 15
    assert "fewer bits than the file says" in notes[0]


@pytest.mark.parametrize(("tag", "most"), [(281, 4095), (281, 3500), (341, 4095)])
def test_12_bits_in_16_of_a_tiff(tmp_path: Path, tag: int, most: int) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[tag] = most
    tags.tagtype[tag] = 3
    values = (RAMP.astype(int) * 4095 // 255).clip(max=most).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "x.tif", tiffinfo=tags)
    np.testing.assert_allclose(read_image(tmp_path / "x.tif")[0], RAMP.clip(max=most * 255 // 4095), atol=1)


def tiff(values: bytes, shape: tuple[int, int], bits: int, **tags: int) -> bytes:
    """A TIFF of one strip and one channel, written by hand."""
    entries = {256: shape[1], 257: shape[0], 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: shape[0], 279: len(values)}
    entries |= {int(name[1:]): value for name, value in tags.items()}
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(entries.items()))
    head = b"II*\0" + struct.pack("<I", 8 + len(values) + len(values) % 2)
    return head + values + bytes(len(values) % 2) + struct.pack("<H", len(entries)) + directory + bytes(4)


def test_tiff_of_12_bits_of_32_and_with_white_as_0(tmp_path: Path) -> None:
    packed = b"".join(struct.pack(">I", (a << 12 | b) << 8)[:3] for a, b in ((0, 4095), (2048, 1024)))
    (tmp_path / "x.tif").write_bytes(tiff(packed, (2, 2), 12))
    assert read_image(tmp_path / "x.tif").tolist() == [[[0, 255], [128, 64]]]
    deep = np.array([[0, 2**32 - 1]], "<u4").tobytes()
    (tmp_path / "x.tif").write_bytes(tiff(deep, (1, 2), 32))
    assert read_image(tmp_path / "x.tif").tolist() == [[[0, 255]]]
    deep = np.array([[0, 65535]], "<u4").tobytes()
    (tmp_path / "x.tif").write_bytes(tiff(deep, (1, 2), 32))
    assert read_image(tmp_path / "x.tif").tolist() == [[[0, 255]]]
    half = np.array([[0, 65535]], "<u2").tobytes()
    (tmp_path / "x.tif").write_bytes(tiff(half, (1, 2), 16, t262=0))
    assert read_image(tmp_path / "x.tif").tolist() == [[[255, 0]]]


@pytest.mark.parametrize(
    ("values", "read"),
    [([0, 0.5, 1], [0, 128, 255]), ([0, 100, 255], [0, 100, 255]), ([0, 0, 1e6], None), ([0, -1, 1], None)],
)
@pytest.mark.parametrize("last", [None, np.nan, np.inf])
def test_tiff_of_floats(tmp_path: Path, values: list[float], read: list[int] | None, last: float | None) -> None:
    row = np.array([[*values, 1 if last is None else last]], np.float32)
    Image.fromarray(row).save(tmp_path / "x.tif")
    if read is None or last is not None:
        with pytest.raises(DataError, match=r"values from .* store|floats from .* divide"):
            read_image(tmp_path / "x.tif")
    else:
        assert read_image(tmp_path / "x.tif")[0, 0, :3].tolist() == read


# ---------------------------------------------------------------------------------------------- transparency


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "RGBA"), ("PNG", "LA"), ("WEBP", "RGBA"), ("TIFF", "LA")])
def test_ink_on_transparency_stays_to_be_seen(tmp_path: Path, kind: str, mode: str) -> None:
    for colour, paper in ((0, "white"), (255, "black")):
        options = {"lossless": True} if kind == "WEBP" else {}
        drawing(colour, mode).save(tmp_path / "x", kind, **options)
        image, notes = said(tmp_path / "x", (1, 8, 8))
        np.testing.assert_array_equal(image[0], INK if colour else 255 - INK)
        assert notes == [f"transparency is laid on {paper}"]


def test_paper_that_is_asked_for(tmp_path: Path) -> None:
    drawing(0).save(tmp_path / "x.png")
    assert said(tmp_path / "x.png", (1, 8, 8), "white")[1] == ["transparency is laid on white"]
    image, notes = said(tmp_path / "x.png", (1, 8, 8), "black")
    assert not image.any()
    assert notes[0] == "transparency is laid on black"
    assert notes[1].startswith("blank")


def test_transparency_that_a_palette_a_value_or_a_bit_stands_for(tmp_path: Path) -> None:
    black = 255 - INK  # 0 on the diagonal, clear where it is 255
    Image.fromarray(black).save(tmp_path / "l.png", transparency=255)
    Image.fromarray(black).convert("P").save(tmp_path / "p.png", transparency=255)
    Image.fromarray(black).convert("P").save(tmp_path / "p.gif", transparency=255)
    Image.fromarray(black).convert("1").save(tmp_path / "1.png", transparency=255)
    (tmp_path / "16.png").write_bytes(png16(np.where(INK, 0, 777), clear=777))
    colours = np.dstack([np.where(INK, 0, 777)] * 3)
    (tmp_path / "rgb 16.png").write_bytes(png16(colours, clear=(777, 777, 777)))
    (tmp_path / "rgb 12.png").write_bytes(png16(colours, significant=12, clear=(777, 777, 777)))
    Image.fromarray(black).convert("RGB").save(tmp_path / "rgb.png", transparency=(255, 255, 255))
    for path in tmp_path.iterdir():
        image, notes = said(path, (1, 8, 8))
        np.testing.assert_array_equal(image[0], black, err_msg=path.name)
        assert notes == ["transparency is laid on white"], path.name


def test_opaque_alpha_and_half_of_it(tmp_path: Path) -> None:
    Image.merge("LA", (Image.fromarray(RAMP), Image.new("L", (8, 8), 255))).save(tmp_path / "x.png")
    image, notes = said(tmp_path / "x.png")
    np.testing.assert_array_equal(image[0], RAMP)
    assert notes == []
    Image.fromarray(np.array([[(255, 255, 255, 51), (255, 255, 255, 255)]], np.uint8)).save(tmp_path / "y.png")
    assert said(tmp_path / "y.png", (1, 1, 2))[0].tolist() == [[[51, 255]]]


def test_folder_has_one_paper_that_most_ink_differs_from(tmp_path: Path) -> None:
    for name, colours in (("a", (0, 0, 0, 20, 255)), ("b", (0, 10, 0, 0, 0))):
        (tmp_path / name).mkdir()
        for i, colour in enumerate(colours):
            drawing(colour).save(tmp_path / name / f"{i}.png")
    with pytest.warns(DataWarning) as caught:
        train, test = load(str(tmp_path), size=(1, 8, 8))
    images = np.concatenate([train.images, test.images])
    assert np.all(images[:, 0, 0, 1] == 255)
    first, second = (str(warning.message) for warning in caught)
    assert first.startswith("10 of 10 images, first ")
    assert first.endswith("0.png: transparency is laid on white")
    assert second.startswith("1 of 10 images, first ")
    assert "4.png: blank" in second


def test_test_images_lie_on_the_paper_of_the_training_images(tmp_path: Path) -> None:
    for part, colour in (("train", 0), ("test", 200)):
        for name in "ab":
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(2):
                drawing(colour).save(tmp_path / part / name / f"{i}.png")
    with pytest.warns(DataWarning, match="laid on white"):
        _, test = load(str(tmp_path), size=(1, 8, 8))
    assert test.images[0, 0, 0].tolist() == [200, *[255] * 7]


# ----------------------------------------------------------------------------------------------------- blank


@pytest.mark.parametrize(("values", "blank"), [([0, 0], True), ([90, 106], True), ([90, 107], False)])
def test_blank_images_are_told(tmp_path: Path, values: list[int], blank: bool) -> None:
    Image.fromarray(np.array([values], np.uint8)).save(tmp_path / "x.png")
    assert [note.startswith("blank") for note in said(tmp_path / "x.png")[1]] == [True] * blank


def test_blank_colour(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), (255, 0, 0)).save(tmp_path / "x.png")
    with pytest.warns(DataWarning, match=r"x\.png: blank"):
        read_image(tmp_path / "x.png")


def test_what_pillow_warns_of_is_no_matter(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(RAMP).save(buffer, "PNG")
    content = buffer.getvalue()
    (tmp_path / "x.png").write_bytes(content[:33] + chunk(b"acTL", bytes(8)) + content[33:])  # no animation
    np.testing.assert_array_equal(read_image(tmp_path / "x.png")[0], RAMP)
