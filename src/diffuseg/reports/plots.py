"""Plots of numbers, for pages and folders of results: dots of cases, quality against cost, calibration, rejection.

Drawn without a screen, in the Okabe-Ito palette with another marker or line for each colour: legible without it.
"""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from diffuseg.evaluation.calibration_metrics import Reliability
from diffuseg.evaluation.selective import risk_coverage
from diffuseg.reports.figures import OKABE_ITO, figure_of, plain_text, png_of

DARK = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # for lines: the strongest first
ROOM = 30  # characters of the names under a panel, which would run into each other beyond
LINES, MARKERS = ("solid", "dashed", "dashdot", "dotted"), "osD^vPX"


def dot_plot(
    panels: dict[str, dict[str, tuple[list[float], tuple[float, float, float]]]], colours: Sequence[str] = OKABE_ITO
) -> str:
    """Every case as a dot, as inline SVG: panel title -> class -> its values, and their mean, low and high."""
    figure, axes = figure_of(1, len(panels), (3.2 * len(panels), 3.2))
    for axis, (title, classes) in zip(axes[0], panels.items(), strict=True):
        for number, (values, (mean, low, high)) in enumerate(classes.values()):
            finite = np.array([value for value in values if np.isfinite(value)])
            # spread sideways by rank, not at random: neighbours in value are apart, and the picture is always the same
            shift = 0.28 * (np.argsort(np.argsort(finite)) * 0.618 % 1 - 0.5)
            colour, marker = colours[number % len(colours)], MARKERS[number % len(MARKERS)]
            axis.scatter(number + shift, finite, s=14, color=colour, marker=marker, edgecolor="black", linewidth=0.3)
            if (finite < 0).any():
                axis.axhline(0, color="black", linewidth=0.6)
            if np.isfinite(mean):
                axis.plot([number + 0.27, number + 0.43], [mean, mean], color="black", linewidth=2)
                axis.plot([number + 0.35] * 2, [low, high], color="black", linewidth=1)
        turned = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if sum(map(len, classes)) > ROOM else {}
        axis.set_xticks(range(len(classes)), list(classes), fontsize=8, **turned)
        axis.set_xlim(-0.5, len(classes) - 0.4)
        axis.set_title(title, fontsize=10)
        axis.grid(axis="y", linewidth=0.4)
        axis.spines[["top", "right"]].set_visible(False)
    return svg_of(figure)


def curve_figure(rows: Sequence[dict[str, Any]], recommended: dict[str, Any]) -> bytes:
    """Quality against cost as PNG: Dice, NLL and Brier score over the seconds of one case, a line per number of steps.

    Each row has steps, draws, seconds, dice, nll, brier; the numbers at the dots are draws, the recommended row is ringed.
    Intervals over cases are left out: all settings saw the same cases, so their differences are much surer than those
    intervals.

    Raises:
        ValueError: There is no row.
    """
    from matplotlib.ticker import NullFormatter

    if not rows:
        raise ValueError("curve_figure: there is nothing to draw")
    figure, axes = figure_of(1, 3, (12.0, 4.4))
    panels = {"dice": "Dice, more is better", "nll": "NLL (nats), less is better", "brier": "Brier score, less is better"}
    for axis, (key, name) in zip(axes[0], panels.items(), strict=True):
        for number, steps in enumerate(sorted({row["steps"] for row in rows})):
            line = sorted((row for row in rows if row["steps"] == steps), key=lambda row: row["draws"])
            look = {"color": OKABE_ITO[number % len(OKABE_ITO)], "marker": "os^Dvph"[number % 7]}
            axis.plot([row["seconds"] for row in line], [row[key] for row in line], label=f"steps {steps}", **look)
            for row in line:
                axis.annotate(str(row["draws"]), (row["seconds"], row[key]), (9, 5), textcoords="offset points", fontsize=7)
        axis.plot(recommended["seconds"], recommended[key], "o", ms=14, mfc="none", mec="black", label="recommended")
        seconds = sorted({row["seconds"] for row in rows})
        axis.set_xscale("log")
        axis.margins(0.12)  # room for the numbers
        ticks = np.geomspace(seconds[0], seconds[-1], 5) if len(seconds) > 1 else seconds
        axis.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks])
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel("seconds for one case (log); numbers: draws", fontsize=9)
        axis.set_title(name, fontsize=9)
        axis.tick_params(labelsize=8)
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=8, fontsize=8, frameon=False)
    return png_of(figure)


def reliability_plot(diagrams: dict[str, Reliability], pictures: bool = False) -> Any:
    """Confidence against the share that was right, a line per name, and below how many voxels have which confidence.

    Args:
        diagrams: By name.
        pictures: They are of pictures, whose voxels are called pixels.
    """
    voxels = "pixels" if pictures else "voxels"
    figure, axes = figure_of(2, 1, (4.6, 5.4), heights=(3.0, 1.0))
    top, below = axes[:, 0]
    top.plot([0, 1], [0, 1], color="black", linewidth=0.8, label="as it should be")
    for number, (name, diagram) in enumerate(diagrams.items()):
        label = f"{name}: ECE {diagram.ece:.3f} of all these {voxels}"
        top.plot(diagram.confidence, diagram.frequency, ms=4, label=label, **_line(number))
        below.plot(diagram.confidence, diagram.count / max(diagram.count.sum(), 1), ms=3, **_line(number))
    start = min([0.5, *(float(diagram.confidence.min()) for diagram in diagrams.values() if len(diagram.count))])
    for axis in (top, below):
        axis.set_xlim(max(0.0, start - 0.02), 1.01)
    top.set_ylim(0, 1.02)
    top.legend(fontsize=8, frameon=False, loc="upper left")
    _name_axes(top, "", "share that is right")
    _name_axes(below, "probability of the class that is chosen", f"of the {voxels}")
    return figure


def risk_coverage_plot(curves: dict[str, tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]], fraction: float) -> Any:
    """Mean risk of the cases that are kept, name -> (risk, uncertainty); beside it the best possible order of each.

    `fraction` is marked: where so many of the cases are sent away.
    """
    figure, axes = figure_of(1, 1, (4.6, 4.0))
    axis = axes[0, 0]
    for number, (name, (risk, uncertainty)) in enumerate(curves.items()):
        curve, best = risk_coverage(risk, uncertainty), risk_coverage(risk, risk)
        axis.plot(curve.coverage, curve.risk, ms=3, label=name, **_line(number))
        last = number + 1 == len(curves)
        axis.plot(best.coverage, best.risk, color="0.55", linewidth=0.8, label="best possible order" if last else None)
        axis.plot([0, 1], [curve.risk[-1]] * 2, color="black", linewidth=0.6, label="no order" if last else None)
    axis.axvline(1 - fraction, color="black", linewidth=0.6, linestyle="dotted")
    place = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "ha": "right", "fontsize": 8}
    axis.annotate(f"{fraction:.0%} sent away", (1 - fraction, 0.02), (-4, 0), **place)
    axis.set_xlim(0, 1.01)
    axis.set_ylim(bottom=0)
    _name_axes(axis, "share of cases that are kept, the least uncertain first", "their mean error (1 - Dice)")
    axis.legend(fontsize=8, frameon=False)
    return figure


def cost_plot(points: dict[str, tuple[float, tuple[float, float, float]]]) -> Any:
    """Quality against cost: name -> seconds of a case, and mean, low and high of the Dice."""
    figure, axes = figure_of(1, 1, (4.6, 3.6))
    axis = axes[0, 0]
    for number, (name, (seconds, (mean, low, high))) in enumerate(points.items()):
        look = {"color": DARK[number % len(DARK)], "marker": MARKERS[number % len(MARKERS)]}
        axis.plot([seconds], [mean], ms=7, **look)
        axis.plot([seconds] * 2, [low, high], color=look["color"], linewidth=1)
        axis.annotate(name, (seconds, mean), (7, 3), textcoords="offset points", fontsize=9)
    seconds = [seconds for seconds, _ in points.values()]
    if min(seconds) > 0 and max(seconds) > 5 * min(seconds):
        axis.set_xscale("log")
    else:
        axis.set_xlim(0, max(seconds) * 1.15 or 1)
    _name_axes(axis, "seconds for a case (median)", "Dice, mean [95 %]")
    return figure


def _line(number: int) -> dict[str, str]:
    """What tells a line from others: colour, marker, stroke."""
    each = {"color": DARK, "linestyle": LINES, "marker": MARKERS}
    return {name: choices[number % len(choices)] for name, choices in each.items()}


def _name_axes(axis: Any, x: str, y: str) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
    axis.set_xlabel(x, fontsize=9)
    axis.set_ylabel(y, fontsize=9)


def svg_of(figure: Any) -> str:
    """A figure as inline SVG; equal figures give equal text."""
    plain_text(figure)
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "diffuseg"}):
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return text.getvalue()[text.getvalue().index("<svg") :]
