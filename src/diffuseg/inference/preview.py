"""A picture with its mask in colours: a mask of 0 and 1 looks black in every viewer of pictures."""

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Integer, Num

from diffuseg import scratch
from diffuseg.atomic_io import atomic_write
from diffuseg.drawing import OKABE_ITO

PIXELS = 2**22  # of a preview, at most
SHARE = 0.35  # of the colour of a class, inside its border


def preview(
    image: Num[np.ndarray, "c h w"], mask: Integer[np.ndarray, "h w"], values: Sequence[int]
) -> Integer[np.ndarray, "h w 3"]:
    """The image in 8 bits with each class tinted, and its border in full colour; the background stays as it is.

    Args:
        image: Three channels are colours, of others the first one is shown, between its 0.5th and 99.5th percentile.
        mask: Label values.
        values: Those of the foreground, rising: the first has the first colour of all pictures of this program.
    """
    planes = image if len(image) == 3 else np.repeat(image[:1], 3, axis=0)
    low, high = (0.0, 255.0) if planes.dtype == np.uint8 and len(image) == 3 else np.percentile(planes, (0.5, 99.5)).tolist()
    grey = np.clip((planes.astype(np.float32) - low) / max(high - low, 1e-6), 0, 1) * 255
    painted = np.moveaxis(grey, 0, -1)
    border = _border(mask, max(1, round(max(mask.shape) / 500)))
    for number, value in enumerate(values):
        colour = OKABE_ITO[number % len(OKABE_ITO)]
        rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], dtype=np.float32)
        inside = mask == value
        painted[inside] = (1 - SHARE) * painted[inside] + SHARE * rgb
        painted[inside & border] = rgb
    return np.rint(painted).astype(np.uint8)


def write_preview(image: Num[np.ndarray, "c h w"], mask: np.ndarray, labels: dict[str, int], file: Path) -> None:
    """Write the preview of a picture as PNG, a large one with every n-th pixel.

    Args:
        image: [c, h, w] as read.
        mask: [h, w] label values.
        labels: Name -> value, of the record.
        file: Where to.
    """
    from PIL import Image

    n = math.ceil(math.sqrt(mask.size / PIXELS))
    image, mask = (np.ascontiguousarray(each[..., ::n, ::n]) for each in (image, mask))
    scratch.release()  # every n-th pixel lies on most pages of both
    content = io.BytesIO()
    Image.fromarray(preview(image, mask, sorted(labels.values())[1:])).save(content, "png")
    atomic_write(file, content.getvalue())


def _border(mask: np.ndarray, wide: int) -> np.ndarray:
    """Pixels with another value, or the edge of the picture, at most `wide` pixels away up, down, left or right."""
    padded = np.pad(mask.astype(np.int64), wide, constant_values=-1)
    height, width = mask.shape
    found = np.zeros(mask.shape, bool)
    for by in range(1, wide + 1):
        for down, right in ((by, 0), (-by, 0), (0, by), (0, -by)):
            other = padded[wide + down : wide + down + height, wide + right : wide + right + width]
            found |= other != mask
    return found
