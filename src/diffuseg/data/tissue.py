"""Where there is tissue on a whole slide: what is coloured or dark on a thumbnail of it. The rest is glass, and background.

It leans towards tissue: glass that is taken for tissue costs time, and tissue that is taken for glass is lost.
"""

import numpy as np
from jaxtyping import Bool, UInt8

SIDE = 2048  # pixels of the longer side of a thumbnail, at most
FAINT, STRONG = 10, 15  # of 255: less saturation alone is never tissue, and more always is
DARK = 0.7  # of the brightness of the glass, below which all is tissue
GROWN = 2  # pixels of the thumbnail, all round


def find_tissue(thumbnail: UInt8[np.ndarray, "3 h w"]) -> Bool[np.ndarray, "h w"]:
    """What is more saturated than Otsu's threshold, which stays between FAINT and STRONG, or darker than glass; and some more.

    Args:
        thumbnail: Red, green and blue.
    """
    from scipy import ndimage

    smooth = np.stack([ndimage.uniform_filter(plane.astype(np.float32), 3) for plane in thumbnail])
    bright, low = smooth.max(0), smooth.min(0)
    saturation = np.rint(255 * (bright - low) / np.maximum(bright, 1)).astype(np.uint8)
    least = min(max(otsu(saturation), FAINT), STRONG)
    found = (saturation > least) | (bright < DARK * np.percentile(bright, 95))
    return ndimage.binary_dilation(found, ndimage.generate_binary_structure(2, 2), GROWN)


def otsu(values: UInt8[np.ndarray, "*s"]) -> int:
    """The last value of the lower of two groups whose means, weighted by their sizes, are farthest apart (Otsu 1979)."""
    counts = np.bincount(values.ravel(), minlength=256).astype(np.float64)
    below, total = counts.cumsum(), (counts * np.arange(256)).cumsum()
    sizes = below * (below[-1] - below)
    between = np.square(total[-1] * below - total * below[-1]) / np.where(sizes > 0, sizes, np.inf)
    return int(between.argmax())
