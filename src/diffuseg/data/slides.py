"""Whole slides: pyramids of colour pictures in TIFF files, read at the size of a pixel that is asked for.

    .svs .ndpi .scn     tifffile
    .tif .tiff          tifffile, where a magnification or a size of pixels is asked for

The level that is read is the coarsest one that is fine enough; between levels its pixels are averaged. JPEG and JPEG 2000 are
decoded by imagecodecs, the extra `diffuseg[wsi]`. The whole level is read into a file that memory need not hold, glass too.
"""

import importlib.util
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from jaxtyping import Bool, UInt8

from diffuseg import scratch
from diffuseg.data import pictures, tiff_tiles
from diffuseg.data.tissue import SIDE, find_tissue
from diffuseg.errors import UserError
from diffuseg.text import by
from diffuseg.types import Image

CLOSE = 0.05  # a level whose pixels are no more than so much larger or smaller is taken as it is
PLAUSIBLE = (0.01, 20.0)  # micrometres per pixel of the finest level; else its file says nothing, but 72 pixels per inch
STRIP = 2**23  # pixels that are averaged at a time
LEAST = 8  # pixels of the longer side of what is read
GLASS = 255  # tiles that a scanner did not store
MAGNIFICATION = re.compile(r'AppMag\s*=\s*([\d.]+)|<objective>\s*([\d.]+)|NominalMagnification="([\d.]+)"')
MPP = re.compile(r"\bMPP\s*=\s*([\d.]+)")
EXPORT = "Export it with the size of its pixels, such as by QuPath as OME-TIFF"


@dataclass(frozen=True)
class Scale:
    """At what size of a pixel a slide is read: as is asked for, else as the plan has it.

    magnification  of the microscope, such as 20, in relation to that of the file
    mpp            micrometres per pixel
    plan           spacing of the plan in mm; None: it has none
    """

    magnification: int | float | None = None
    mpp: int | float | None = None
    plan: tuple[float, ...] | None = None

    @property
    def asked(self) -> bool:
        """Whether a person has asked for it: then a file is meant to be a slide."""
        return self.magnification is not None or self.mpp is not None


@dataclass(frozen=True)
class Slide:
    """How a slide was read: the header of its image.

    level          that was read, from 0, the finest
    levels         how many there are
    averaged       pixels of the level along each axis that were made one; 1: as stored
    magnification  of the image; None: its file does not say
    mpp            micrometres per pixel of the image, down and to the right; None: its file does not say
    tissue         [h, w] where there is tissue, on a thumbnail
    """

    level: int
    levels: int
    averaged: float
    magnification: float | None
    mpp: tuple[float, float] | None
    tissue: Bool[np.ndarray, "h w"] = field(repr=False)

    def record(self, shape: Sequence[int]) -> dict[str, Any]:
        """What <case>.json says of it, for an image [h, w] of this shape."""
        area = None if self.mpp is None else round(float(self.tissue.mean()) * math.prod(shape) * math.prod(self.mpp) / 1e6, 6)
        mpp = None if self.mpp is None else [round(size, 6) for size in self.mpp]
        own = {"level": self.level, "levels": self.levels, "averaged": round(self.averaged, 6)}
        magnification = None if self.magnification is None else round(self.magnification, 4)
        return own | {"magnification": magnification, "um_per_pixel": mpp, "tissue_mm2": area}


@dataclass(frozen=True)
class Said:
    """What a file says of its finest level, as `Slide` has it."""

    magnification: float | None
    mpp: tuple[float, float] | None

    def __str__(self) -> str:
        size = None if self.mpp is None else f"pixels of {by([round(each, 4) for each in self.mpp])} micrometres"
        power = None if self.magnification is None else f"a magnification of {self.magnification:g}"
        return " and ".join(each for each in (power, size) if each) or "neither magnification nor size of pixels"


def is_slide(file: Path, scale: Scale) -> bool:
    """Whether a file is read as a slide; a pyramid in a .tif is one where a size of pixels is asked for, or planned."""
    if file.name.lower().endswith(pictures.SLIDES):
        return True
    if not file.name.lower().endswith((".tif", ".tiff")) or not file.is_file():
        return False
    return scale.asked or (scale.plan is not None and _is_pyramid(file))


def _is_pyramid(file: Path) -> bool:
    import tifffile

    try:
        with tifffile.TiffFile(file) as slide:
            return any(len(series.levels) > 1 for series in slide.series)
    except Exception:  # whoever reads it says what is wrong
        return False


def read(file: Path, scale: Scale) -> Image:
    """A slide as uint8 [3, h, w], with the size of its pixels and the map of its tissue.

    Args:
        file: One that `is_slide` takes.
        scale: How large a pixel is to be.

    Raises:
        UserError: Its file does not say what is needed, it is not as fine as is asked for, is too large, has no colours, or its
            pixels cannot be decoded.
    """
    import tifffile

    with tifffile.TiffFile(file) as slide:
        pages = _levels(slide, file)
        sizes = [tuple(int(n) for n in (p.imagelength, p.imagewidth)) for p in pages]
        said = _said(slide, pages[0])
        level, shape = _chosen(sizes, _factor(said, scale, file), said, file)
        pictures.check_page(file, pages[level], "ask for a lower magnification")
        _check_codec(pages[level], file)
        stored = tiff_tiles.read(pages[level], file, GLASS)
        stored = stored if pages[level].axes == "SYX" else np.moveaxis(stored, -1, 0)
    data, affine = averaged(stored[:3], shape), np.eye(4)
    factors = [full / n for full, n in zip(sizes[0], shape, strict=True)]
    mpp = None if said.mpp is None else (said.mpp[0] * factors[0], said.mpp[1] * factors[1])
    if mpp is not None:
        affine[0, 0], affine[1, 1] = mpp[0] / 1000, mpp[1] / 1000
    power = None if said.magnification is None else said.magnification / math.sqrt(math.prod(factors))
    share = min(1.0, SIDE / max(shape))
    tissue = find_tissue(averaged(data, [max(1, round(n * share)) for n in shape]))
    ratio = math.sqrt(math.prod(sizes[level]) / math.prod(shape))
    return Image(data, affine, file, Slide(level, len(pages), ratio, power, mpp, tissue))


def _levels(slide: Any, file: Path) -> list[Any]:
    """The pages of the levels of the largest picture of a file: others are its label, an overview."""
    if not slide.series:
        raise ValueError("no picture in it")
    series = max(slide.series, key=lambda one: math.prod(one.levels[0].shape))
    large = [one for one in slide.series if len(one.levels) > 1 and 2 * math.prod(one.shape) > math.prod(series.shape)]
    if len(large) > 1:
        what = f"{len(large)} slides in one file"
        raise UserError(what, file=file, do="Store each by itself")
    pages = [level.keyframe for level in series.levels]
    for level, page in zip(series.levels, pages, strict=True):
        colours = page.axes in ("YXS", "SYX") and page.samplesperpixel in (3, 4) and page.dtype == np.uint8
        if len(level.pages) != 1 or not colours:
            what = f"no slide in colours of 8 bits: axes {level.axes}, shape {by(level.shape)}, {page.dtype}"
            raise UserError(what, file=file, do="Only red, green and blue of light microscopy are read: export it so")
    return _with_missed_pages(slide, pages) if slide.is_svs else pages


def _with_missed_pages(slide: Any, pages: list[Any]) -> list[Any]:
    """The levels of a file of Aperio; tifffile takes the second page for an overview, and ends at the next page without tiles.

    A level is tiled, has the sides of the finest one in proportion, up to a pixel, and is described as all of Aperio's are.
    """
    height, width = pages[0].imagelength, pages[0].imagewidth

    def is_level(page: Any) -> bool:
        h, w = page.imagelength, page.imagewidth
        alike = abs(h * width / height - w) <= 1 or abs(w * height / width - h) <= 1
        same = (page.axes, page.samplesperpixel, page.dtype) == (pages[0].axes, pages[0].samplesperpixel, pages[0].dtype)
        return page.is_tiled and page.description.startswith("Aperio") and same and alike and h < height

    size = lambda page: page.imagelength * page.imagewidth
    found = {size(page): page for page in reversed(slide.pages[1:]) if is_level(page)} | {size(page): page for page in pages}
    return [found[pixels] for pixels in sorted(found, reverse=True)]


def _said(slide: Any, page: Any) -> Said:
    """What a file says: Aperio and OME in its description, Leica in an XML, Hamamatsu and others in tags."""
    text = slide.pages[0].description or ""
    mpp, found = _number(MPP.search(text)), _number(MAGNIFICATION.search(text))
    if found is None and slide.is_ndpi:
        found = _positive((page.ndpi_tags or {}).get("Magnification"))
    sizes = (mpp, mpp)
    if mpp is None and {282, 283} <= set(page.tags.keys()):
        per_um = page.get_resolution("MICROMETER")[::-1]
        sizes = tuple(1 / each if each > 0 else math.inf for each in per_um)
    low, high = PLAUSIBLE
    known = [each for each in sizes if each is not None and low <= each <= high]
    return Said(found, (known[0], known[1]) if len(known) == 2 else None)


def _number(match: re.Match[str] | None) -> float | None:
    return None if match is None else _positive(next((group for group in match.groups() if group), None))


def _positive(value: Any) -> float | None:
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if 0 < found < math.inf else None


def _factor(said: Said, scale: Scale, file: Path) -> float:
    """How many pixels of the finest level one pixel of the image is to be, along each axis."""
    if scale.magnification is not None:
        if said.magnification is None:
            do = "Give --mpp, micrometres per pixel: 0.5 is about 20 times" if said.mpp else EXPORT
            raise UserError(f"--magnification {scale.magnification:g}: its file says {said}", file=file, do=do)
        return said.magnification / scale.magnification
    if scale.mpp is None and scale.plan is None:
        what = f"at which magnification? The model's plan has no spacing. The file says {said}"
        raise UserError(what, file=file, do="Give --magnification or --mpp, that of the images of the training")
    asked = scale.mpp if scale.mpp is not None else 1000 * math.sqrt(math.prod(scale.plan or ()))
    if said.mpp is None:
        what = f"the model's plan has pixels of {asked:g} micrometres" if scale.mpp is None else f"--mpp {asked:g}"
        do = f"Give --magnification, at most {said.magnification:g}" if said.magnification else EXPORT
        raise UserError(f"{what}: its file says {said}", file=file, do=do)
    return asked / math.sqrt(math.prod(said.mpp))


def _chosen(sizes: Sequence[tuple[int, ...]], factor: float, said: Said, file: Path) -> tuple[int, tuple[int, ...]]:
    """The level to read, and the size of what is made of it."""
    factors = [math.sqrt(math.prod(sizes[0]) / math.prod(size)) for size in sizes]
    if factor < 1 / (1 + CLOSE):
        what = f"pixels {1 / factor:.3g} times as fine as those of its finest level are asked for, and that has {said}"
        raise UserError(what, file=file, do="Give a lower --magnification or a larger --mpp: detail is not made up")
    level = max((n for n, each in enumerate(factors) if each <= factor * (1 + CLOSE)), key=factors.__getitem__)
    ratio = factor / factors[level]
    if ratio <= 1 + CLOSE:
        return level, sizes[level]
    shape = tuple(max(1, round(n / ratio)) for n in sizes[level])
    if max(shape) < LEAST:
        what = f"{by(sizes[0])} pixels would become {by(shape)}: next to nothing is left; it has {said}"
        raise UserError(what, file=file, do="Give --magnification or --mpp, that of the images of the training")
    return level, shape


def _check_codec(page: Any, file: Path) -> None:
    """Refuse what cannot be decoded here, or not to red, green and blue, before memory is taken."""
    kind, colours = page.compression.name, page.photometric.name
    if kind.endswith("YCBC") or not (colours == "RGB" or (colours == "YCBCR" and kind in ("JPEG", "ALT_JPEG"))):
        what = f"its colours are stored as {colours} and packed as {kind}, of which red, green and blue are not made here"
        raise UserError(what, file=file, do="Export it with JPEG")
    if kind not in pictures.PLAIN and importlib.util.find_spec("imagecodecs") is None:
        raise UserError(f"its pixels are packed as {kind}", file=file, do="pip install 'diffuseg[wsi]'")


def averaged(planes: UInt8[np.ndarray, "c h w"], shape: Sequence[int]) -> UInt8[np.ndarray, "c h2 w2"]:
    """A smaller picture of the same extent, some rows at a time; itself where it has the size already.

    Args:
        planes: Of the picture; may be large.
        shape: Rows and columns of the smaller one.
    """
    found = scratch.zeros((len(planes), *shape), np.uint8)
    height, width = planes.shape[1:]
    step = height / shape[0]
    rows = max(1, int(STRIP / (step * width)))
    for start in range(0, shape[0], rows):
        stop = min(start + rows, shape[0])
        first, last = max(math.floor((start - 1) * step), 0), min(math.ceil((stop + 1) * step), height)
        box = (0, start * step - first, width, min(stop * step, height) - first)
        for plane, small in zip(planes, found, strict=True):
            strip = np.ascontiguousarray(plane[first:last])
            if strip.shape == (last - first, shape[1]) and step == 1:
                small[start:stop] = strip[start - first : stop - first]
                continue
            whole = PIL.Image.fromarray(strip)
            small[start:stop] = np.asarray(whole.resize((shape[1], stop - start), PIL.Image.Resampling.HAMMING, box))
        scratch.release()
    return found
