"""Pictures: planes [c, h, w] from and to .png, .tif and .jpg, values as stored.

Pillow reads what has 8 bits a channel and 16-bit grey; tifffile reads the .tif files that Pillow cannot hold (16-bit
colour, float). A 16-bit colour .png is refused, because Pillow would silently halve its depth.
"""

import io
import logging
import math
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from diffuseg import scratch
from diffuseg.blocks import blocks
from diffuseg.data import tiff_tiles
from diffuseg.data.claimed_size import DEFLATE, SMALLER, UNBOUNDED, Claim, check_claim
from diffuseg.errors import UserError
from diffuseg.text import pluralize

LOSSLESS = (".png", ".tiff", ".tif")
CONTENTS = ("PNG", "JPEG", "MPO")  # of what is named so; some telephones write the last as .jpg
LOSSY = (".jpeg", ".jpg")
SLIDES = (".svs", ".ndpi", ".scn")  # of scanners of whole slides, see slides.py
RATIOS = {"PNG": 8 * DEFLATE, "JPEG": 2048}  # 1 bit becomes 8; a bit or more for every block of 64, in three colours
PLAIN = ("NONE", "DEFLATE", "ADOBE_DEFLATE", "PACKBITS")  # compressions that tifffile reads by itself
PILLOW = ("bool", "uint8", "uint16", "int16", "int32", "float32")  # what it decodes as stored
GREY = ("1", "L", "I;16", "I;16B", "I", "F")

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what matters comes as an exception


def class_suffixes(labels: dict[str, int]) -> list[str]:
    """What tells files of the foreground classes apart, where each has a file of its own: names, or values if names collide."""
    names = [re.sub(r"[^\w.-]+", "_", name) for name in sorted(labels, key=labels.__getitem__)[1:]]
    return names if len(set(names)) == len(names) else [str(value) for value in sorted(labels.values())[1:]]


def read(file: Path, mask: bool) -> np.ndarray:
    """Planes [c, h, w] of a picture as stored; a palette gives its indices in a mask, its colours in an image.

    Tags for display are not applied, whatever the compression: orientation, and WhiteIsZero. An opaque alpha channel is
    dropped.

    Raises:
        UserError: It is partly transparent, has several pages or frames, or is a lossy mask, whatever the ending.
    """
    if file.name.lower().endswith((".tif", ".tiff")) or _is_tiff(file):
        return _read_tiff(file, mask)
    with warnings.catch_warnings(action="ignore"), open_picture(file) as picture:
        _check_content(picture, file, mask)
        frames = getattr(picture, "n_frames", 1)
        if picture.format == "PNG" and frames > 1:
            raise UserError(f"{frames} frames in one file", file=file, do="Store each as a picture")
        return _decode(picture, file, mask)


def _is_tiff(file: Path) -> bool:
    with file.open("rb") as head:
        return head.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _check_content(picture: Any, file: Path, mask: bool) -> None:
    """Refuse what is another kind of picture than its ending says, where values may then be others than those meant."""
    if picture.format not in CONTENTS:
        what = f"it holds {picture.format}, which its ending does not say"
        raise UserError(what, file=file, do="Convert it to .png; `diffuseg convert` does")
    if mask and picture.format != "PNG":
        what = f"it holds {picture.format}: a mask in a lossy format has no exact values"
        raise UserError(what, file=file, do="Store masks as .png or .tif")


def open_picture(file: Path) -> Any:
    """A picture of which only the header is read.

    Raises:
        UserError: It has more pixels than Pillow takes, or than the file can hold.
    """
    try:
        picture = PIL.Image.open(file)
    except PIL.Image.DecompressionBombError as error:
        what = " ".join(str(error).split()).split(", could")[0]
        raise UserError(what[0].lower() + what[1:], file=file, do="Cut it into smaller pictures, or shrink it") from None
    claim = Claim((len(picture.getbands()), picture.height, picture.width), 1)
    try:
        check_claim(file, claim, file.stat().st_size, RATIOS.get(picture.format or "", UNBOUNDED))
    except UserError:
        picture.close()
        raise
    return picture


def check_page(file: Path, page: Any, otherwise: str = SMALLER) -> None:
    """The same for a page of a TIFF; `otherwise` is what to do about one that is too large."""
    bits, kind = page.bitspersample, page.compression.name
    bits = max(bits) if isinstance(bits, tuple) else int(bits)
    ratio = 1 if kind == "NONE" else DEFLATE if kind in PLAIN else UNBOUNDED
    claim, held = Claim(tuple(int(n) for n in page.shape), max(bits // 8, 1)), file.stat().st_size
    check_claim(file, claim, held, ratio * max(8 // bits, 1), otherwise)


def _read_tiff(file: Path, mask: bool) -> np.ndarray:
    import tifffile

    with tifffile.TiffFile(file) as pages:
        if len(pages.pages) == 0:
            raise ValueError("no picture in it")
        page: Any = pages.pages[0]
        check_page(file, page)
        series = pages.series[0].shape if pages.series else page.shape
        if len(pages.pages) > 1 or math.prod(series) != math.prod(page.shape):
            number = max(len(pages.pages), math.prod(series) // math.prod(page.shape))
            do = "Store volumes as .nii.gz; of a whole slide, `diffuseg predict` reads a level: --magnification or --mpp"
            raise UserError(f"{number} pages in one file", file=file, do=do)
        if mask and "JPEG" in page.compression.name:
            raise UserError("a mask in a lossy format has no exact values", file=file, do="Store it without JPEG")
        _check_stored(page, file)
        known = page.photometric.name in ("MINISBLACK", "MINISWHITE", "RGB")
        # The predictor is one of deflate and LZW; tifffile would apply it to others too.
        plain = page.compression.name in PLAIN and (page.predictor == 1 or "DEFLATE" in page.compression.name)
        if plain and known and page.bitspersample not in (2, 4):
            return _planes(page, file)
        if page.dtype is None or page.dtype.name not in PILLOW:
            raise UserError(f"pixels of type {page.dtype} are read uncompressed or deflated only", file=file, do="Store it so")
        samples, bits, raw = page.samplesperpixel, page.bitspersample, _without_display(file.read_bytes(), page)
        alpha = sum(int(kind) in (1, 2) for kind in page.extrasamples)
    with warnings.catch_warnings(action="ignore"), PIL.Image.open(io.BytesIO(raw)) as picture:
        planes = _decode(picture, file, mask, bits)
        if picture.mode != "P" and len(planes) != samples - alpha:
            raise UserError(f"{len(planes)} of {samples} channels can be read", file=file, do="Store it deflated")
        return planes


def _check_stored(page: Any, file: Path) -> None:
    """Refuse a page whose pixels two decoders would make two things of."""
    if page.fillorder != 1:
        raise UserError("its bits are stored in reverse (FillOrder 2)", file=file, do="Store it without")
    if page.photometric.name == "YCBCR" and "JPEG" not in page.compression.name:
        raise UserError("pictures of kind YCbCr are not supported", file=file, do="Convert it to grey or RGB")
    empty = sum(not count for count in page.databytecounts)
    if empty:
        what = f"{empty} of its {pluralize(len(page.databytecounts), 'strip is', 'strips are')} empty"
        raise UserError(f"broken or truncated: {what}", file=file, do="Copy or export it again")


def _without_display(raw: bytes, page: Any) -> bytes:
    """A TIFF whose tags for display say nothing, so that the decoder gives what is stored: no turn, black is zero."""
    changed, order = bytearray(raw), "little" if page.parent.byteorder == "<" else "big"
    for code, plain, unless in ((274, 1, ()), (262, 1, (1, 2, 3, 4, 5, 6, 8))):
        tag = page.tags.get(code)
        if tag is not None and tag.value not in unless:
            changed[tag.valueoffset : tag.valueoffset + 2] = plain.to_bytes(2, order)
    return bytes(changed)


def _planes(page: Any, file: Path) -> np.ndarray:
    array = tiff_tiles.read(page, file) if scratch.is_large(page.shape, page.dtype or np.uint8) else page.asarray()
    if page.axes == "YXS":
        array = np.moveaxis(array, -1, 0)
    elif page.axes == "YX":
        array = array[None]
    elif page.axes != "SYX":
        raise UserError(f"axes {page.axes} are not those of a picture", file=file)
    alpha = [int(kind) in (1, 2) for kind in page.extrasamples]  # associated, unassociated
    if alpha and alpha[-1]:
        _refuse_transparency(array[-1], file)
        array = array[:-1]
    if array.dtype.kind not in "iufb":
        raise UserError(f"pixels of type {array.dtype} are not supported", file=file)
    return array.astype(np.uint8) if array.dtype.kind == "b" else array


def _few_bits(stored: list[str], bits: int) -> int:
    """How much the decoder multiplies grey of 2 or 4 bits by, to fill 8; 1 where it does not."""
    few = next((n for n in (2, 4) if any(pixels.startswith(f"L;{n}") for pixels in stored)), bits)
    return 255 // (2**few - 1) if few in (2, 4) else 1


def _decode(picture: Any, file: Path, mask: bool, bits: int = 8) -> np.ndarray:
    # Pillow keeps 8 bits of 16-bit colour; only the decoder's own name for the pixels ("RGB;16B") tells.
    stored = [str(tile[3][0] if isinstance(tile[3], tuple) else tile[3]) for tile in picture.tile]
    if picture.mode not in GREY and any(";16" in pixels for pixels in stored):
        raise UserError("16-bit colour is read from uncompressed or deflated .tif only", file=file, do="Store it as such")
    if picture.mode == "P" and mask:
        return np.asarray(picture)[None]
    if picture.mode == "P":
        _check_palette(picture, file)
        picture = picture.convert("RGBA" if "transparency" in picture.info else "RGB")
    array = np.asarray(picture, np.uint8 if picture.mode == "1" else None)
    if picture.mode == "L":
        array = array // _few_bits(stored, bits)
    clear = picture.info.get("transparency")
    if clear is not None and not mask and picture.mode in (*GREY, "RGB"):  # one level or colour that a PNG does not show
        shown = (array != np.array(bool(clear) if picture.mode == "1" else clear)).reshape(*array.shape[:2], -1).any(-1)
        _refuse_transparency(shown.astype(np.uint8) * 255, file)
    if picture.mode in GREY:
        return array[None]
    array = np.moveaxis(array, -1, 0)
    if picture.mode in ("LA", "RGBA"):
        _refuse_transparency(array[-1], file)
        return array[:-1]
    if picture.mode == "RGB":
        return array
    raise UserError(f"pictures of kind {picture.mode} are not supported", file=file, do="Convert it to grey or RGB")


def _check_palette(picture: Any, file: Path) -> None:
    colours, most = len(picture.palette.palette) // len(picture.palette.mode), int(np.asarray(picture).max(initial=0))
    if most >= colours:
        raise UserError(f"colour {most} of its palette is used, which has {colours}", file=file, do="Copy or export it again")


def _refuse_transparency(alpha: np.ndarray, file: Path) -> None:
    opaque = np.iinfo(alpha.dtype).max if alpha.dtype.kind in "iu" else 1
    if any(bool((alpha[part] != opaque).any()) for part in blocks(alpha.shape)):
        raise UserError("it is partly transparent, so its colours are not defined", file=file, do="Remove the alpha channel")


def write(aside: Path, planes: np.ndarray, path: Path) -> None:
    """Write planes [c, h, w] of uint8, int16, int32 or float32.

    Args:
        aside: Where to.
        planes: Three of uint8 are colour.
        path: What the file is called, for its format and in messages.

    Raises:
        UserError: They are of a volume, several for a .png, or outside of what a .png holds.
    """
    if planes.ndim != 3:
        raise UserError("a picture cannot hold a volume", file=path, do="Choose .nii.gz")
    colour = len(planes) == 3 and planes.dtype == np.uint8
    if path.name.lower().endswith((".tif", ".tiff")):
        import tifffile

        if scratch.is_large(planes.shape, planes.dtype):
            tiff_tiles.write(aside, planes, colour)
        elif colour:
            tifffile.imwrite(aside, np.moveaxis(planes, 0, -1), photometric="rgb", compression="zlib")
        elif len(planes) == 1:
            tifffile.imwrite(aside, planes[0], photometric="minisblack", compression="zlib")
        else:
            separate: dict[str, Any] = {"photometric": "minisblack", "planarconfig": "separate"}
            tifffile.imwrite(aside, planes, compression="zlib", **separate)
        return
    if colour:
        PIL.Image.fromarray(np.moveaxis(planes, 0, -1)).save(aside)
        return
    if len(planes) > 1:
        raise UserError(f"a .png cannot hold {len(planes)} planes", file=path, do="Choose .tif")
    PIL.Image.fromarray(_png(planes[0], path)).save(aside)


def _png(plane: np.ndarray, path: Path) -> np.ndarray:
    low, high = plane.min(), plane.max()
    if plane.dtype == np.float32:
        if not (low >= 0 and high <= 1):
            raise UserError(f"a .png holds fractions of 1, not {low:g} to {high:g}", file=path, do="Choose .tif")
        found = np.empty(plane.shape, np.uint16)
        for part in blocks(plane.shape):
            found[part] = np.rint(plane[part].astype(np.float64) * 65535)
        return found
    if low < 0 or high > 65535:
        raise UserError(f"a .png holds 0 to 65535, not {low} to {high}", file=path, do="Choose .tif")
    return plane if plane.dtype == np.uint8 else plane.astype(np.uint16)
