"""TIFF files that are too large for memory: read strip by strip or tile by tile, written in tiles."""

import hashlib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Num

from diffuseg import scratch
from diffuseg.blocks import blocks

SIDE = 512  # of a tile
CLASSIC = 2**32 - 2**25  # bytes that offsets of 32 bits surely reach
SMALLER = 4  # times, is each level of a pyramid than the one before


def read(page: Any, file: Path, nothing: int | None = None) -> Num[np.ndarray, "..."]:
    """What `page.asarray()` gives.

    Args:
        page: Of tifffile.
        file: Where it is.
        nothing: The value of pixels whose tile is not stored; None: as the file says.
    """
    kind = np.dtype(page.parent.byteorder + page.dtype.char)
    if page.is_contiguous and page.predictor == 1 and page.fillorder == 1:
        found = scratch.zeros(page.shape, kind)
        values = found.reshape(-1)
        with file.open("rb") as stream:
            stream.seek(page.dataoffsets[0])
            for part in blocks(values.shape, 8):
                if stream.readinto(values[part].view(np.uint8).data) != values[part].nbytes:
                    raise ValueError("the file ends before its last pixel")
        return found
    found = scratch.zeros(page.shaped, page.dtype)  # separate planes, depth, rows, columns, channels

    def keep(decoded: Any) -> None:
        segment, (s, d, h, w, _), (depth, rows, columns, _) = decoded
        place = found[s, d : d + depth, h : h + rows, w : w + columns]
        absent = page.nodata if nothing is None else nothing
        place[...] = absent if segment is None else segment[: place.shape[0], : place.shape[1], : place.shape[2]]
        scratch.release()

    for _ in page.segments(func=keep, sort=True, maxworkers=1, _fullsize=False):
        pass
    return found.reshape(page.shape)


def write(aside: Path, planes: Num[np.ndarray, "c h w"], colour: bool) -> None:
    """Write planes: three of them as colours, several as planes of their own.

    Args:
        aside: Where to.
        planes: Of the picture.
        colour: They are red, green and blue.
    """
    import tifffile

    one = len(planes) == 1 and not colour
    shape = (*planes.shape[1:], 3) if colour else planes.shape[1:] if one else planes.shape
    kind: dict[str, Any] = {"photometric": "rgb" if colour else "minisblack"}
    kind |= {} if colour or one else {"planarconfig": "separate"}
    tiles = _tiles(planes[None] if colour else planes[:, None])
    big, tile = planes.nbytes > CLASSIC, (SIDE, SIDE)
    tifffile.imwrite(aside, tiles, shape=shape, dtype=planes.dtype, tile=tile, compression="zlib", bigtiff=big, **kind)


def write_pyramid(aside: Path, planes: Num[np.ndarray, "c h w"], mpp: tuple[float, float] | None) -> None:
    """Write planes as an OME-TIFF with smaller copies below it, for viewers of slides; a copy has every fourth pixel.

    Args:
        aside: Where to.
        planes: Of the picture.
        mpp: Micrometres per pixel, down and to the right; None: not known.
    """
    import tifffile

    levels = 1
    while max(planes.shape[1:]) > SIDE * SMALLER**levels:
        levels += 1
    content = hashlib.sha256(repr((planes.shape, mpp)).encode())
    for plane in planes:
        for part in blocks(plane.shape):
            content.update(np.ascontiguousarray(plane[part]).data)
    known: dict[str, Any] = {"UUID": str(uuid.UUID(bytes=content.digest()[:16]))}  # a random one would make files differ
    if mpp is not None:
        known |= {"PhysicalSizeY": mpp[0], "PhysicalSizeX": mpp[1], "PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm"}
    kind: dict[str, Any] = {"photometric": "minisblack", "tile": (SIDE, SIDE), "compression": "zlib", "dtype": planes.dtype}
    kind |= {"planarconfig": "separate"} if len(planes) > 1 else {}
    with tifffile.TiffWriter(aside, bigtiff=planes.nbytes > CLASSIC, ome=True) as file:
        for level in range(levels):
            part = planes[:, :: SMALLER**level, :: SMALLER**level]
            shape = part.shape if len(part) > 1 else part.shape[1:]
            own: dict[str, Any] = {"subfiletype": 1} if level else {"subifds": levels - 1, "metadata": known}
            per_cm = None if mpp is None else tuple(1e4 / (size * SMALLER**level) for size in mpp[::-1])
            own |= {} if per_cm is None else {"resolution": per_cm, "resolutionunit": "CENTIMETER"}
            file.write(_tiles(part[:, None]), shape=shape, **kind, **own)


def _tiles(images: Num[np.ndarray, "n c h w"]) -> Iterator[Num[np.ndarray, "SIDE SIDE *c"]]:
    """Tiles of one image after the other, row by row; zeros beyond the border."""
    for image in images:
        for top in range(0, image.shape[1], SIDE):
            for left in range(0, image.shape[2], SIDE):
                found = np.zeros((SIDE, SIDE, len(image)), image.dtype)
                part = np.moveaxis(image[:, top : top + SIDE, left : left + SIDE], 0, -1)
                found[: part.shape[0], : part.shape[1]] = part
                yield found if len(image) > 1 else found[..., 0]
            scratch.release()
