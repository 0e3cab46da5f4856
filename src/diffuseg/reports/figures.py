"""Pictures of cases, for the report and for the progress of a training: drawn without a screen, legible without colour.

Classes are outlined in the Okabe-Ito palette, which stays apart for all common colour vision; the truth is dashed, a
prediction solid. Of a volume, the slice with most of the truth is shown.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Num

from diffuseg.drawing import OKABE_ITO, View, colours_of, figure_of, plain_text, png_of

__all__ = ["DIFFERENCES", "OKABE_ITO", "cases_figure", "figure_of", "plain_text", "png_of", "validation_figure"]

DIFFERENCES = {"missed": "#0072B2", "in excess": "#D55E00", "other class": "#CC79A7"}
DRAWS = 6  # shown at most in one row


def validation_figure(rows: Sequence[dict[str, Any]]) -> bytes:
    """Cases under each other as PNG: image, truth, several draws, entropy of their mean.

    Each row has image [*s] (or [c, *s]), truth [*s], draws (label maps [n, *s] or a list of them), entropy [*s] in nats, a
    title, and may have the spacing in mm.

    Raises:
        ValueError: There is no row.
    """
    if not rows:
        raise ValueError("validation_figure: there is no case to draw")
    columns = min(DRAWS, max(len(row["draws"]) for row in rows))
    views = [View(row["truth"], np.asarray(row["draws"][0]), row.get("spacing")) for row in rows]
    figure, axes = _panels(len(rows), columns + 3, float(np.mean([view.ratio for view in views])), width=1.9)
    for line, row, view in zip(axes, rows, views, strict=True):
        colours = colours_of(np.unique([*np.unique(row["truth"]), *np.unique(row["draws"])]).tolist())
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
    affine: np.ndarray | None = None,
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
        affine: [4, 4], voxels to mm (RAS+); puts the letters of the patient's sides on the image.

    Raises:
        ValueError: There is no row at all.
    """
    if not rows:
        raise ValueError("cases_figure: there is nothing to draw")
    drawn = np.max([row["mask"] != 0 for row in rows], axis=0)
    view = View(truth, drawn, spacing)
    colours = colours_of(sorted({*np.unique(truth).tolist(), *(labels or {}).values()}))
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
        _differences(view, line[5], truth, row["mask"])
        view.frame(line[0])
        if affine is not None:
            view.letters(line[0], affine)
        for axis in line[1:]:
            view.zoom(axis)
        line[0].set_ylabel(row["title"], fontsize=9)
    names = ("image", "truth", "prediction", "probability of foreground", "entropy (nats)", "where they differ")
    for axis, name in zip(axes[0], names, strict=True):
        axis.set_title(name, fontsize=8)
    handles = _legend({name: colours[value] for name, value in (labels or {}).items() if value})
    kinds = {name: colour for name, colour in DIFFERENCES.items() if name != "other class" or len(colours) > 1}
    figure.legend(handles=handles + _legend(kinds), loc="outside lower center", ncols=8, fontsize=8, frameon=False)
    if title:
        figure.suptitle(title, fontsize=10)
    return png_of(figure)


def _differences(view: View, axis: Any, truth: np.ndarray, mask: np.ndarray) -> None:
    """Voxels of the foreground that were missed, that are in excess, or that have another class."""
    from matplotlib.colors import to_rgba

    a, b = view.plane(truth), view.plane(mask)
    paint = np.zeros((*a.shape, 4))
    where = ((a != 0) & (b == 0), (a == 0) & (b != 0), (a != 0) & (b != 0) & (a != b))
    for chosen, colour in zip(where, DIFFERENCES.values(), strict=True):
        paint[chosen] = to_rgba(colour, 1.0)
    axis.imshow(paint, aspect=view.aspect, origin=view.origin)


def _legend(names: dict[str, str]) -> list[Any]:
    from matplotlib.patches import Patch

    return [Patch(color=colour, label=name) for name, colour in names.items()]


def _panels(rows: int, columns: int, ratio: float, width: float = 3.0) -> tuple[Any, Any]:
    height = width * float(np.clip(ratio, 0.5, 1.6)) + 0.3
    figure, axes = figure_of(rows, columns, (width * columns, height * rows + 0.6))
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    return figure, axes
