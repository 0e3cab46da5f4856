"""Pictures of cases, for the report and for the progress of a training: drawn without a screen, legible without colour.

Classes are outlined in the Okabe-Ito palette, which stays apart for all common colour vision; the truth is dashed, a
prediction solid. Of a volume, the slice with most of the truth is shown.
"""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Num

from diffuseg.text import showable

OKABE_ITO = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#D55E00", "#CC79A7", "#0072B2")
DIFFERENCES = {"missed": "#0072B2", "in excess": "#D55E00", "other class": "#CC79A7"}
DRAWS = 6  # shown at most in one row


def validation_figure(rows: Sequence[dict[str, Any]]) -> bytes:
    """Cases under each other as PNG: image, truth, several draws, entropy of their mean.

    Each row has image [*s] (or [c, *s]), truth [*s], draws (label maps [n, *s] or a list of them), entropy [*s] in nats,
    a title, and may have the spacing in mm. Refuses no row at all.
    """
    if not rows:
        raise ValueError("validation_figure: there is no case to draw")
    columns = min(DRAWS, max(len(row["draws"]) for row in rows))
    views = [_View(row["truth"], np.asarray(row["draws"][0]), row.get("spacing")) for row in rows]
    figure, axes = _panels(len(rows), columns + 3, float(np.mean([view.ratio for view in views])), width=1.9)
    for line, row, view in zip(axes, rows, views, strict=True):
        colours = _colours(np.unique([*np.unique(row["truth"]), *np.unique(row["draws"])]).tolist())
        for axis in line[:-1]:
            view.background(axis, row["image"])
        view.frame(line[0])
        view.outline(line[1], row["truth"], colours, "dashed")
        for number, axis in enumerate(line[2:-1]):
            if number < len(row["draws"]):
                view.outline(axis, np.asarray(row["draws"][number]), colours, "solid")
            else:
                axis.set_visible(False)
        classes = max(2, len(colours) + 1)
        view.map(line[-1], row["entropy"], "cividis", float(np.log(classes)))
        for axis in line[1:]:
            view.zoom(axis)
        line[0].set_title(row["title"], fontsize=8, loc="left")
    names = ("truth", *(f"draw {number + 1}" for number in range(columns)), "entropy (nats)")
    for axis, name in zip(axes[0, 1:], names, strict=True):
        axis.set_title(name, fontsize=8)
    return png_of(figure)


def cases_figure(
    image: Num[np.ndarray, "..."] | None,
    truth: Num[np.ndarray, "*s"],
    rows: Sequence[dict[str, Any]],
    spacing: Sequence[float] | None = None,
    labels: dict[str, int] | None = None,
    title: str = "",
) -> bytes:
    """One case as one or several predictions have it, as PNG: a line each, beside the truth, in one window of one slice.

    The first panel shows the whole image and where the others look. The panels of what is None stay empty and say so.

    Args:
        image: [*s] or [c, *s]; three channels of a picture are colours, otherwise the first one is shown.
        truth: Label map [*s] in two or three dimensions.
        rows: Each has a title, its mask [*s], and probability of the foreground and entropy (nats), [*s] or None.
        spacing: In mm per axis; gives the proportions.
        labels: Class -> value, for the legend.
        title: Stands above all of it.

    Raises:
        ValueError: There is no row at all.
    """
    if not rows:
        raise ValueError("cases_figure: there is nothing to draw")
    drawn = np.max([row["mask"] != 0 for row in rows], axis=0)
    view = _View(truth, drawn, spacing)
    colours = _colours(sorted({*np.unique(truth).tolist(), *(labels or {}).values()}))
    figure, axes = _panels(len(rows), 6, 0.82 * view.ratio, width=2.0)  # colour bars make the panels narrower
    top = float(np.log(max(2, len(colours) + 1)))
    for line, row in zip(axes, rows, strict=True):
        for axis in line[:3]:
            view.background(axis, image)
        view.outline(line[1], truth, colours, "dashed")
        view.outline(line[2], row["mask"], colours, "solid")
        view.map(line[3], row["probability"], "viridis", 1.0)
        view.map(line[4], row["entropy"], "cividis", top)
        view.background(line[5], image, pale=True)
        view.differences(line[5], truth, row["mask"])
        view.frame(line[0])
        for axis in line[1:]:
            view.zoom(axis)
        line[0].set_ylabel(row["title"], fontsize=9)
    names = ("image", "truth", "prediction", "probability of foreground", "entropy (nats)", "where they differ")
    for axis, name in zip(axes[0], names, strict=True):
        axis.set_title(name, fontsize=8)
    handles = _legend({name: colours[value] for name, value in (labels or {}).items() if value})
    figure.legend(handles=handles + _legend(DIFFERENCES), loc="outside lower center", ncols=8, fontsize=8, frameon=False)
    if title:
        figure.suptitle(title, fontsize=10)
    return png_of(figure)


class _View:
    """The slice of a case that is shown, the part of it that is enlarged, and how arrays come to lie on the paper."""

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
        """A map from 0 to top with its colour bar."""
        if array is None:
            axis.text(0.5, 0.5, "not there", ha="center", va="center", transform=axis.transAxes, fontsize=8)
            return
        drawn = axis.imshow(self.plane(array), cmap=colours, vmin=0, vmax=top, aspect=self.aspect, origin=self.origin)
        axis.figure.colorbar(drawn, ax=axis, fraction=0.04, pad=0.02).ax.tick_params(labelsize=6)

    def outline(self, axis: Any, labels: np.ndarray, colours: dict[int, str], style: str) -> None:
        """The borders of each class."""
        plane = np.pad(self.plane(labels), 1)  # so that what touches the edge is closed
        x, y = np.arange(plane.shape[1]) - 1, np.arange(plane.shape[0]) - 1
        for value, colour in colours.items():
            if (plane == value).any():
                axis.contour(x, y, plane == value, levels=[0.5], colors=[colour], linestyles=style, linewidths=1.3)

    def differences(self, axis: Any, truth: np.ndarray, mask: np.ndarray) -> None:
        """Voxels of the foreground that were missed, that are in excess, or that have another class."""
        from matplotlib.colors import to_rgba

        a, b = self.plane(truth), self.plane(mask)
        paint = np.zeros((*a.shape, 4))
        where = ((a != 0) & (b == 0), (a == 0) & (b != 0), (a != 0) & (b != 0) & (a != b))
        for chosen, colour in zip(where, DIFFERENCES.values(), strict=True):
            paint[chosen] = to_rgba(colour, 1.0)
        axis.imshow(paint, aspect=self.aspect, origin=self.origin)

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


def _colours(values: Sequence[int]) -> dict[int, str]:
    return {int(v): OKABE_ITO[(int(v) - 1) % len(OKABE_ITO)] for v in values if v != 0}


def _legend(names: dict[str, str]) -> list[Any]:
    from matplotlib.patches import Patch

    return [Patch(color=colour, label=name) for name, colour in names.items()]


def figure_of(rows: int, columns: int, inches: tuple[float, float], heights: Sequence[float] | None = None) -> tuple[Any, Any]:
    """A figure that needs no screen and leaves the caller's pyplot alone; imported here because it takes a second."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=inches, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, height_ratios=heights)


def _panels(rows: int, columns: int, ratio: float, width: float = 3.0) -> tuple[Any, Any]:
    height = width * float(np.clip(ratio, 0.5, 1.6)) + 0.3
    figure, axes = figure_of(rows, columns, (width * columns, height * rows + 0.6))
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    return figure, axes


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
