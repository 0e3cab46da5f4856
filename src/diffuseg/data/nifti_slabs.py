"""NIfTI files that are too large for memory: read and written a slab at a time. Their first axis is the fastest one."""

import gzip
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Num
from nibabel.fileholders import FileHolder

from diffuseg import scratch
from diffuseg.blocks import SLAB, VOXELS, blocks
from diffuseg.data.claimed_size import HEAD, Claim, open_unpacked, read_to_end


def read(file: Path, claimed: Claim, kind_of: Callable[[bytes], Any]) -> tuple[Any, np.ndarray]:
    """The nibabel image of a file and its voxels as nibabel gives them; a packed file is unpacked once, to its end.

    Args:
        file: May be packed by gzip.
        claimed: What its header claims.
        kind_of: The class of nibabel for the first bytes of the file.
    """
    with open_unpacked(file) as stream:
        kind = kind_of(stream.read(HEAD))
        stream.seek(0)
        image = kind.from_file_map({"image": FileHolder(fileobj=stream)}, mmap=False)
        shape, found = image.shape, None
        for slab in slabs(shape):
            values = np.asanyarray(image.dataobj[slab])
            found = scratch.zeros(shape[::-1], values.dtype).T if found is None else found
            found[slab] = values
            scratch.release()
        read_to_end(stream, file, claimed)
    return image, found if found is not None else np.zeros(shape)


def write(aside: Path, image: Any, planes: Num[np.ndarray, "c *s"], slope: float) -> None:
    """Write planes [c, *s] with the header of a nibabel image.

    Args:
        aside: The file; .gz: packed.
        image: Its header is that of the planes: of their shape and type.
        planes: The voxels.
        slope: By which a reader multiplies them.
    """
    header = image.header
    image.update_header()
    header.set_slope_inter(slope, 0)
    with aside.open("wb") as file, _packed(file, aside) as stream:
        header.write_to(stream)
        stream.write(bytes(header.get_data_offset() - header.sizeof_hdr - 4))
        for plane in planes:
            for slab in slabs(plane.shape):
                stream.write(_turned(plane[slab], header.get_data_dtype()))


def _packed(file: Any, aside: Path) -> Any:
    return gzip.GzipFile("", "wb", 1, file, 0) if aside.name.lower().endswith(".gz") else file


def _turned(slab: Num[np.ndarray, "*s"], dtype: np.dtype) -> memoryview:
    """The bytes of a slab, its first axis the fastest."""
    found = np.empty(slab.shape[::-1], dtype)
    for part in blocks(slab.shape, SLAB // 4):
        found.T[part] = slab[part]
    return found.data


def slabs(shape: tuple[int, ...]) -> Iterator[tuple[Any, ...]]:
    """Indices of parts that follow one another in a file: some slices along the third axis, or rows of a picture."""
    axis = min(2, len(shape) - 1)
    count = max(1, SLAB * VOXELS // max(1, math.prod(shape[:axis])))
    for last in np.ndindex(*shape[:axis:-1]):
        for start in range(0, shape[axis], count):
            yield (*[slice(None)] * axis, slice(start, min(start + count, shape[axis])), *last[::-1])
