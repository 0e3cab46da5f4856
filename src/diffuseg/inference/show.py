"""How a prediction shows itself: one line, axes of a figure, and HTML for a notebook."""

import base64
import html
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from diffuseg.drawing import View, colours_of, figure_of, png_of
from diffuseg.errors import UserError
from diffuseg.inference.calibration import is_raw
from diffuseg.inference.wording import (
    has_digits,
    has_interval,
    interval_note,
    needs_review,
    review_reason,
    size_unit,
    unlike_text,
)
from diffuseg.text import pluralize
from diffuseg.types import Image

PANELS = ("image and mask", "probability of foreground", "entropy (nats)")


@runtime_checkable
class Shown(Protocol):
    """What of a `Prediction` is shown."""

    mask: np.ndarray
    probability: np.ndarray
    uncertainty: dict[str, np.ndarray]
    image: Image
    provenance: dict[str, Any]


def volume_rows(prediction: Shown) -> list[tuple[str, str, str]]:
    """Class, volume and 90 % interval as text: ml of volumes, of pictures pixels, or mm² where they have a spacing.

    Intervals are called raw where they are not calibrated; of a single draw there is none, unless it is.
    """
    record = prediction.provenance
    factor, unit = size_unit(record)
    digits, unit = (3 if has_digits(record) else 0), unit.replace("mm2", "mm²")
    rows = []
    for name, volume in record.get("volume_ml", {}).items():
        low, high = (f"{end * factor:.{digits}f}" for end in record["volume_ml_90"][name])
        spread = f"{low} to {high}{' raw' if is_raw(record, name) else ''}"
        rows.append((name, f"{volume * factor:.{digits}f} {unit}", spread if has_interval(record, name) else "-"))
    return rows


def one_line(prediction: Shown) -> str:
    """What it is of, volumes with intervals, draws, and how uncertain."""
    record, source = prediction.provenance, prediction.image.source
    parts = ["x".join(map(str, prediction.mask.shape)) if source is None else source.name]
    spread = lambda interval: "" if interval == "-" else f" [{interval}]"
    parts += [f"{name} {volume}{spread(interval)}" for name, volume, interval in volume_rows(prediction)]
    if "draws" in record:
        parts.append(pluralize(record["draws"], "draw"))
    if "uncertainty_score" in record:
        parts.append(f"uncertainty score {record['uncertainty_score']:.3f}")
    if needs_review(record):
        parts.append("needs review")
    return f"Prediction({', '.join(parts)})"


def plot(prediction: Shown, axes: Any = None) -> np.ndarray:
    """Draw image and mask, probability of the foreground, and entropy, in the slice with most of the mask.

    Args:
        prediction: What is drawn.
        axes: One to three axes of matplotlib for these panels, in this order; by default a new figure of pyplot.

    Returns:
        The axes that were drawn into.

    Raises:
        UserError: More axes than there are panels, or none.
    """
    if axes is None:
        from matplotlib import pyplot

        axes = pyplot.subplots(1, len(PANELS), figsize=(9.6, 3.4), layout="constrained")[1]
    chosen = np.asarray(axes, dtype=object).reshape(-1)
    if not 1 <= len(chosen) <= len(PANELS):
        raise UserError(f"{len(chosen)} axes", do=f"Give one to {len(PANELS)}: {', '.join(PANELS)}")
    _draw(prediction, chosen)
    return chosen


def picture(prediction: Shown) -> bytes:
    """The three panels as PNG, without a screen and without pyplot."""
    figure, axes = figure_of(1, len(PANELS), (9.6, 3.4))
    _draw(prediction, axes[0])
    return png_of(figure)


def _draw(prediction: Shown, axes: Sequence[Any] | np.ndarray) -> None:
    from matplotlib.patches import Patch

    mask = prediction.mask
    view = View(mask, mask, prediction.image.spacing)
    labels = prediction.provenance.get("labels") or {str(value): int(value) for value in np.unique(mask)}
    colours = colours_of(sorted(labels.values()))
    top = float(np.log(max(2, len(prediction.probability))))
    for number, (axis, name) in enumerate(zip(axes, PANELS, strict=False)):
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_title(name, fontsize=9)
        if number == 0:
            view.background(axis, prediction.image.data)
            view.outline(axis, mask, colours, "solid")
            handles = [Patch(color=colours[value], label=label) for label, value in labels.items() if value]
            axis.legend(handles=handles, fontsize=7, loc="lower left", framealpha=0.6)
        elif number == 1:
            view.map(axis, prediction.probability[1:].sum(0), "viridis", 1.0)
        else:
            view.map(axis, prediction.uncertainty["entropy"], "cividis", top)


def as_html(prediction: Shown) -> str:
    """The picture, volumes with intervals, what is doubtful, and what it was made by; every word of it escaped."""
    text = [f"<p>{line}</p>" for line in map(html.escape, _lines(prediction.provenance))]
    rows = [f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in volume_rows(prediction)]
    head = "<tr><th>class</th><th>size</th><th>90 % interval</th></tr>"
    table = [f"<table>{head}{''.join(rows)}</table>"] if rows else []
    try:
        png = base64.b64encode(picture(prediction)).decode()
        shown = [f'<img alt="{", ".join(PANELS)}" style="max-width:100%" src="data:image/png;base64,{png}">']
    except ImportError:  # without matplotlib there are still the numbers
        shown = []
    return f'<div class="diffuseg">{"".join(shown + table + text)}</div>'


def _lines(record: dict[str, Any]) -> list[str]:
    lines = []
    if record.get("outside_training"):
        lines.append(f"Unlike the images of the training: {unlike_text(record['outside_training'], 'its provenance')}.")
    if needs_review(record):
        lines.append(f"Needs review by a person: {review_reason(record)}.")
    elif "uncertainty_score" in record:
        below = ": below the threshold for review" if needs_review(record) is False else ""
        lines.append(f"Uncertainty score {record['uncertainty_score']:.3f}{below}.")
    if "volume_note" in record:
        lines.append(f"Interval: {interval_note(record)}.")
    if "model_name" in record:
        made = f"{record['model_name']} ({record['model']}), {pluralize(record['draws'], 'draw')}"
        lines.append(f"Made by {made}, {pluralize(record['steps'], 'step')}, seed {record['seed']}. {record['notice']}")
    return lines
