"""A made-up whole slide: glass, an L of stained tissue, and a dark red square in it. No turn of it looks like another."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

APERIO = "Aperio Image Library v12\r\n{w}x{h} [0,0 {w}x{h}] (64x64) JPEG/RGB Q=70|AppMag = 20|Filename = made|MPP = 0.5"
GLASS, STAIN, RED = (243, 241, 244), (190, 120, 185), (150, 20, 30)
HEIGHT, WIDTH = 384, 512
SQUARE = (slice(64, 96), slice(96, 128))  # of the red, in pixels of the finest level


def picture() -> np.ndarray:
    """[h, w, 3], every pixel a little different."""
    found = np.full((HEIGHT, WIDTH, 3), GLASS, np.int16)
    found[32:224, 64:128] = STAIN
    found[160:224, 64:256] = STAIN
    found[SQUARE] = RED
    return (found + np.random.default_rng(0).integers(-3, 4, found.shape)).clip(0, 255).astype(np.uint8)


def smaller(data: np.ndarray, n: int) -> np.ndarray:
    """Means of n x n pixels."""
    h, w, c = data.shape
    return np.rint(data.reshape(h // n, n, w // n, n, c).mean((1, 3))).astype(np.uint8)


def write_slide(
    path: Path,
    data: np.ndarray,
    steps: Sequence[int] = (1, 4),
    description: str = APERIO,
    overview: bool = True,
    **options: Any,
) -> list[np.ndarray]:
    """Write a pyramid with an overview beside it as Aperio does; returns its levels.

    Args:
        path: Where to.
        data: The finest level.
        steps: Its pixels along a pixel of each level.
        description: Of the first page.
        overview: Put one beside the finest level, where it is of Aperio.
        options: Of tifffile, for the levels.
    """
    text = description.format(h=len(data), w=data.shape[1])
    levels, aperio = [smaller(data, n) for n in steps], text.startswith("Aperio")
    known: dict[str, Any] = {"photometric": "rgb", "tile": (64, 64), "compression": "zlib", "metadata": None}
    with tifffile.TiffWriter(path) as file:
        for number, level in enumerate(levels):
            file.write(level, subfiletype=int(number > 0 and not aperio), description=text or None, **(known | options))
            if number == 0 and aperio and overview:
                file.write(smaller(data, 8), photometric="rgb", description="Aperio Image Library v12", metadata=None)
    return levels


def centre(red: np.ndarray) -> np.ndarray:
    """The middle of the red square of a picture [3, h, w], in pixels of a corner at 0."""
    return np.argwhere((red[0] > 100) & (red[1] < 70)).mean(0) + 0.5
