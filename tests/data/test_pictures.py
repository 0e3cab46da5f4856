"""Pixels are what is stored, whatever the compression, depth, photometric tag and orientation tag."""

import itertools
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
import tifffile

from diffuseg.data.io import read_image, read_mask
from diffuseg.errors import UserError

PILLOW = {"lzw": "tiff_lzw", "packbits": "packbits", "zlib": "tiff_adobe_deflate"}


def png(path, array, bits, kind=0, *chunks):
    """A PNG of grey or, with kind 3, of a palette, written by hand."""
    rows = b""
    for row in array:
        text = "".join(format(int(v), f"0{bits}b") for v in row)
        text += "0" * (-len(text) % 8)
        rows += b"\0" + bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", array.shape[1], array.shape[0], bits, kind, 0, 0, 0))
    more = b"".join(chunk(*each) for each in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + more + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def lzw_codes(data: bytes) -> bytes:
    """TIFF's LZW of few bytes: a clear code before each 200 of them, so that codes stay 9 bits wide."""
    bits = ""
    for start in range(0, len(data), 200):
        bits += format(256, "09b") + "".join(format(byte, "09b") for byte in data[start : start + 200])
    bits += format(257, "09b")
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))


def packbits(data: bytes) -> bytes:
    """TIFF's PackBits of few bytes: literal runs."""
    return b"".join(bytes([len(data[i : i + 100]) - 1]) + data[i : i + 100] for i in range(0, len(data), 100))


def tiff(path, array, bits, photometric=1, orientation=1, compression=1, tags=None):
    """A grey TIFF of one strip, written by hand from the specification: no library decides what is stored.

    `tags` come on top, and take the place of those of the same number.
    """
    h, w = array.shape
    text = ["".join(format(int(v), f"0{bits}b") for v in row) for row in array]
    rows = [row + "0" * (-len(row) % 8) for row in text]
    data = b"".join(int(row, 2).to_bytes(len(row) // 8, "big") for row in rows)
    data = {1: lambda x: x, 5: lzw_codes, 8: zlib.compress, 32773: packbits}[compression](data)
    short = {256: w, 257: h, 258: bits, 259: compression, 262: photometric, 274: orientation, 277: 1, 278: h} | (tags or {})
    entries = [(code, struct.pack(">HHIHH", code, 3, 1, value, 0)) for code, value in short.items()]
    long = {273: 8, 279: len(data)}
    entries += [(code, struct.pack(">HHII", code, 4, 1, value)) for code, value in long.items() if code not in short]
    table = b"".join(entry for _, entry in sorted(entries))
    body = data + b"\0" * (len(data) % 2)
    path.write_bytes(b"MM\0*" + struct.pack(">I", 8 + len(body)) + body + struct.pack(">H", len(entries)) + table + b"\0" * 4)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_grey_png_of_few_bits_has_the_stored_values(tmp_path, bits):
    stored = np.random.default_rng(bits).integers(0, 2**bits, (7, 9))
    png(tmp_path / "x.png", stored, bits)
    np.testing.assert_array_equal(read_mask(tmp_path / "x.png").data[0], stored)
    np.testing.assert_array_equal(read_image(tmp_path / "x.png").data[0], stored)


@pytest.mark.parametrize(("compression", "bits"), itertools.product([1, 5, 8], [1, 2, 4, 8, 16]))
def test_tags_for_display_change_no_pixel_of_a_tiff(tmp_path, compression, bits):
    stored = np.random.default_rng(bits).integers(0, 2**bits, (6, 8))
    for photometric, orientation in itertools.product((0, 1), (1, 3, 6, 8)):
        path = tmp_path / f"{photometric}{orientation}.tif"
        tiff(path, stored, bits, photometric, orientation, compression)
        np.testing.assert_array_equal(read_mask(path).data[0], stored)
        np.testing.assert_array_equal(read_image(path).data[0], stored)


@pytest.mark.parametrize("compression", [None, *PILLOW])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32, np.float32, "colour"])
def test_what_others_write_is_read_as_tifffile_or_pillow_stored_it(tmp_path, compression, dtype):
    random, path = np.random.default_rng(0), tmp_path / "x.tif"
    colour = dtype == "colour"
    array = random.integers(0, 200, (6, 8, 3) if colour else (6, 8)).astype(np.uint8 if colour else dtype)
    if compression in ("lzw", "packbits") and dtype == np.int16:
        pytest.skip("Pillow cannot write it")
    if compression in (None, "zlib"):
        tifffile.imwrite(path, array, photometric="rgb" if colour else "minisblack", compression=compression)
    else:
        PIL.Image.fromarray(array).save(path, compression=PILLOW[compression], tiffinfo={274: 3})
    expected = np.moveaxis(array, -1, 0) if colour else array[None]
    np.testing.assert_array_equal(read_image(path).data, expected.astype(np.float32))


def test_what_is_not_one_picture_is_refused(tmp_path):
    stack = np.zeros((3, 6, 8), np.uint8)
    tifffile.imwrite(tmp_path / "pages.tif", stack, photometric="minisblack")
    tifffile.imwrite(tmp_path / "imagej.tif", stack, imagej=True)
    with tifffile.TiffWriter(tmp_path / "truncated.tif") as file:
        file.write(stack, photometric="minisblack", truncate=True)
    frames = [PIL.Image.fromarray(plane + n) for n, plane in enumerate(stack.astype(np.uint8))]
    frames[0].save(tmp_path / "frames.png", save_all=True, append_images=frames[1:])
    for name in ("pages.tif", "imagej.tif", "truncated.tif", "frames.png"):
        with pytest.raises(UserError, match=r"3 (pages|frames) in one file"):
            read_image(tmp_path / name)


@pytest.mark.parametrize("kind", ["JPEG", "GIF", "WEBP"])
def test_a_mask_is_what_its_ending_says_and_not_lossy_inside(tmp_path, kind):
    PIL.Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "x.png", format=kind)
    with pytest.raises(UserError, match=f"it holds {kind}"):
        read_mask(tmp_path / "x.png")
    if kind != "JPEG":
        with pytest.raises(UserError, match=f"it holds {kind}"):
            read_image(tmp_path / "x.png")


def test_a_tiff_named_png_is_read_as_a_tiff(tmp_path):
    stored = np.arange(64, dtype=np.uint16).reshape(8, 8)
    tiff(tmp_path / "x.png", stored, 16, photometric=0)
    np.testing.assert_array_equal(read_mask(tmp_path / "x.png").data[0], stored)


@pytest.mark.parametrize("compression", [1, 32773])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_predictor_is_one_of_deflate_and_lzw_alone(tmp_path, compression, bits):
    """The specification has it of these; some programs write the tag all the same, and undo nothing."""
    stored = np.random.default_rng(0).integers(0, 2**bits, (6, 8))
    tiff(tmp_path / "x.tif", stored, bits, compression=compression, tags={317: 2})
    np.testing.assert_array_equal(read_mask(tmp_path / "x.tif").data[0], stored)


@pytest.mark.parametrize(
    ("tags", "words"),
    [({266: 2}, "reverse"), ({262: 6}, "YCbCr"), ({279: 0}, "1 of its 1 strip is empty")],
    ids=["fill order", "YCbCr", "no bytes"],
)
@pytest.mark.parametrize("compression", [1, 5, 8])
def test_what_two_decoders_make_two_things_of_is_refused(tmp_path, compression, tags, words):
    tiff(tmp_path / "x.tif", np.ones((6, 8), int), 8, compression=compression, tags=tags)
    for read in (read_image, read_mask):
        with pytest.raises(UserError, match=words):
            read(tmp_path / "x.tif")


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_level_that_is_not_shown_is_refused_in_an_image_and_a_label_in_a_mask(tmp_path, bits):
    stored = np.random.default_rng(bits).integers(0, 2, (7, 9))
    for clear in (0, 1):
        png(tmp_path / "x.png", stored, bits, 0, (b"tRNS", struct.pack(">H", clear)))
        np.testing.assert_array_equal(read_mask(tmp_path / "x.png").data[0], stored)
        with pytest.raises(UserError, match="transparent"):
            read_image(tmp_path / "x.png")
    png(tmp_path / "x.png", 0 * stored, bits, 0, (b"tRNS", struct.pack(">H", 1)))
    np.testing.assert_array_equal(read_image(tmp_path / "x.png").data[0], 0 * stored)


def test_a_colour_that_a_palette_does_not_have_is_refused(tmp_path):
    stored = np.arange(63).reshape(7, 9) % 3
    png(tmp_path / "x.png", stored, 8, 3, (b"PLTE", bytes(6)))
    np.testing.assert_array_equal(read_mask(tmp_path / "x.png").data[0], stored)
    with pytest.raises(UserError, match="colour 2 of its palette"):
        read_image(tmp_path / "x.png")
