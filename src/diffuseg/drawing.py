"""Drawing a slice of a case: image, outlines, maps; without a screen, and legible without colour.

Classes are outlined in the Okabe-Ito palette, which stays apart for all common colour vision.
"""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from diffuseg.text import showable

OKABE_ITO = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#D55E00", "#CC79A7", "#0072B2")


class View:
    """The slice of a case that is shown, the part of it that is enlarged, and how arrays are turned on the paper."""

    def __init__(self, truth: np.ndarray, mask: np.ndarray, spacing: Sequence[float] | None) -> None:
        self.volume = truth.ndim == 3
        scale = list(spacing) if spacing is not None else [1.0] * truth.ndim
        self.ratio = scale[1] / scale[0] if self.volume else scale[0] / scale[1]
        shown = (truth if truth.any() else mask) != 0
        counts = shown.sum((0, 1)) if self.volume else np.zeros(1)
        self.at = int(counts.argmax()) if counts.any() else truth.shape[-1] // 2
        self.origin = "lower" if self.volume else "upper"
        marked = np.argwhere((self.plane(truth) != 0) | (self.plane(mask) != 0))
        height, self.width = self.plane(truth).shape
        width = self.width
        self.aspect, self.window = self.ratio, (0.0, float(width), 0.0, float(height))
        self.ratio *= height / width
        if len(marked):
            # A window in the proportions of the image, twice what is marked; none where it would hold most of the image.
            low, high = marked.min(0), marked.max(0) + 1
            part = max(2 * ((high - low) / (height, width)).max(), 24 / max(height, width))
            if part < 0.6:
                size = part * np.array([height, width])
                top, left = np.clip((low + high - size) / 2, 0, (height, width) - size)
                self.window = (left, left + size[1], top, top + size[0])

    def plane(self, array: np.ndarray) -> np.ndarray:
        """The slice [..., h, w] that is shown: of a volume, i goes to the right and j upwards."""
        return np.swapaxes(array[..., self.at], -1, -2) if self.volume else array

    def background(self, axis: Any, image: np.ndarray | None, pale: bool = False) -> None:
        """The image in grey, its darkest and brightest hundredth cut off, or in colour; pale: grey, to be drawn upon."""
        axis.set_aspect(self.aspect)
        if image is None:
            axis.text(0.5, 0.5, "not there", ha="center", va="center", transform=axis.transAxes, fontsize=8)
            return
        planes = self.plane(image if image.ndim > 2 + self.volume else image[None]).astype(np.float32)
        if len(planes) == 3 and not self.volume:
            colour = np.moveaxis(planes, 0, -1)
            if not pale:
                axis.imshow(np.clip(colour / max(float(colour.max()), 1e-9), 0, 1), aspect=self.aspect)
                return
            planes = colour.mean(-1)[None]
        low, high = np.percentile(planes[0], [1, 99])
        span = {"vmin": low, "vmax": max(high, low + 1e-6), "alpha": 0.5 if pale else 1.0}
        axis.imshow(planes[0], cmap="gray", **span, aspect=self.aspect, origin=self.origin)

    def map(self, axis: Any, array: np.ndarray | None, colours: str, top: float) -> None:
        """A map from 0 to top with its colour bar.

        Args:
            axis: Of matplotlib.
            array: [*s]; None: the panel says that it is not there.
            colours: Name of the colour map.
            top: Value of its last colour.
        """
        if array is None:
            axis.text(0.5, 0.5, "not there", ha="center", va="center", transform=axis.transAxes, fontsize=8)
            return
        drawn = axis.imshow(self.plane(array), cmap=colours, vmin=0, vmax=top, aspect=self.aspect, origin=self.origin)
        axis.figure.colorbar(drawn, ax=axis, fraction=0.04, pad=0.02).ax.tick_params(labelsize=6)

    def outline(self, axis: Any, labels: np.ndarray, colours: dict[int, str], style: str) -> None:
        """The borders of each class.

        Args:
            axis: Of matplotlib.
            labels: [*s] label values.
            colours: Label value -> colour.
            style: Of the line, such as "--".
        """
        plane = np.pad(self.plane(labels), 1)  # so that what touches the edge is closed
        x, y = np.arange(plane.shape[1]) - 1, np.arange(plane.shape[0]) - 1
        for value, colour in colours.items():
            if (plane == value).any():
                axis.contour(x, y, plane == value, levels=[0.5], colors=[colour], linestyles=style, linewidths=1.3)

    def letters(self, axis: Any, affine: np.ndarray) -> None:
        """The letters of the patient's sides at the borders of the slice of a volume: R, L, A, P, S, I.

        Args:
            axis: Of matplotlib.
            affine: [4, 4], from voxels to mm that grow to the patient's right, to the front and to the head.
        """
        if not self.volume:
            return
        from matplotlib.patheffects import withStroke
        from nibabel.orientations import aff2axcodes

        right, up = aff2axcodes(affine)[:2]
        other = dict(zip("RLAPSI", "LRPAIS", strict=True))
        rim = {
            "color": "#ffd933",
            "fontsize": 8,
            "weight": "bold",
            "path_effects": [withStroke(linewidth=2, foreground="black")],
        }
        places = ((0.05, 0.5, other.get(right)), (0.95, 0.5, right), (0.5, 0.95, up), (0.5, 0.05, other.get(up)))
        for x, y, letter in places:
            axis.text(x, y, letter or "", transform=axis.transAxes, ha="center", va="center", **rim)

    def frame(self, axis: Any) -> None:
        """Where the other panels look, if they do not show all of it."""
        left, right, bottom, top = self.window
        if right - left >= self.width:
            return
        x, y = [left, right, right, left, left], [bottom, bottom, top, top, bottom]
        for colour, thick in (("black", 2.4), ("white", 1.0)):
            axis.plot(np.array(x) - 0.5, np.array(y) - 0.5, color=colour, linewidth=thick)

    def zoom(self, axis: Any) -> None:
        """Show the window only."""
        left, right, bottom, top = (v - 0.5 for v in self.window)
        axis.set_xlim(left, right)
        axis.set_ylim((bottom, top) if self.volume else (top, bottom))


def colours_of(values: Sequence[int]) -> dict[int, str]:
    """Label value -> colour, the background without one."""
    return {int(v): OKABE_ITO[(int(v) - 1) % len(OKABE_ITO)] for v in values if v != 0}


def figure_of(rows: int, columns: int, inches: tuple[float, float], heights: Sequence[float] | None = None) -> tuple[Any, Any]:
    """A figure that needs no screen and leaves the caller's pyplot alone; imported here because it takes a second.

    Args:
        rows: Of panels.
        columns: Of panels.
        inches: Width and height.
        heights: Of the rows, in proportion; None: equal.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=inches, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, height_ratios=heights)


def plain_text(figure: Any) -> None:
    """Text is shown as it is written: `$` begins no formula, and a sign that no encoding has becomes "?"."""
    from matplotlib.text import Text

    for axes in figure.axes:
        for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):  # asking for them makes them
            label.set_parse_math(False)
    for text in figure.findobj(Text):
        text.set_parse_math(False)
        text.set_text("\n".join(showable(line, 200) for line in text.get_text().split("\n")))


def png_of(figure: Any) -> bytes:
    """A matplotlib figure as PNG."""
    plain_text(figure)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    return content.getvalue()
