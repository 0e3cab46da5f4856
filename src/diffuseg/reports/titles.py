"""Titles of measures and evaluations, and the notes under their numbers."""

import string
from typing import Any

from diffuseg.evaluation.metrics import METRICS
from diffuseg.evaluation.statistics import Interval
from diffuseg.reports.evaluation import Evaluation
from diffuseg.text import few, pluralize

COVERAGE = "volume in 90 % interval"
PIXELS = 1000.0  # of a picture without a scale, whose pixels are taken for 1 mm wide and thick, in 1 ml
EMPTY = ("both", "truth", "prediction")
PLOTTED = ("dice", "hd95", "nsd", "volume_error")
RECORDED = {
    "model_name": "Model",
    "method": "Method",
    "model": "Checkpoint",
    "draws": "Draws",
    "steps": "Steps",
    "sampler": "Sampler",
    "fuse": "Fusion",
    "seed": "Seed",
    "device": "Device",
}


def metric_title(key: str, unsigned: bool = False, pictures: bool = False) -> str:
    """A metric's name with its unit; `unsigned` names an error that is taken without its sign "absolute".

    Args:
        key: Of METRICS.
        unsigned: The sign is left out.
        pictures: Of pictures without a scale, whose lengths and sizes are pixels.
    """
    metric = METRICS[key]
    absolute = "absolute " if unsigned and metric.best == "zero" else ""
    unit = "pixels" if pictures and metric.unit else metric.unit
    return f"{absolute}{of_size(metric.title, pictures)}{f' ({unit})' if unit else ''}"


def of_size(title: str, pictures: bool) -> str:
    """A title about volumes, of pictures about areas."""
    return title.replace("volume", "area") if pictures else title


def scale_and_digits(key: str, pictures: bool) -> tuple[float, int]:
    """By what a value of a metric is multiplied to be in the unit of its title, and how many of its digits are shown."""
    metric = METRICS[key]
    if pictures and metric.unit == "ml":
        return PIXELS, 0 if key == "volume_error" else metric.digits
    return 1.0, metric.digits


def tolerance_text(tolerance: float, pictures: bool) -> str:
    """The tolerance of NSD with its unit."""
    return f"{tolerance:g} {'pixel' if tolerance == 1 else 'pixels'}" if pictures else f"{tolerance:g} mm"


def evaluation_letter(number: int) -> str:
    """What stands for an evaluation beside others, whose names may be long: A, B, and so on."""
    return string.ascii_uppercase[number] if number < 26 else f"#{number + 1}"


def summary_titles(pictures: bool = False) -> list[str]:
    """What the `summary_cells` of a class are; `pictures` as in `metric_title`."""
    titles = [metric_title(key, pictures=pictures) for key in METRICS]
    return [*titles, "n", f"empty: {' / '.join(EMPTY)}", of_size(COVERAGE, pictures)]


def scaled_text(key: str, interval: Interval, pictures: bool) -> str:
    """A mean with its interval, in the unit of the metric's title."""
    scale, digits = scale_and_digits(key, pictures)
    return Interval(*(scale * value for value in interval)).text(digits)


def summary_cells(entry: dict[str, Any], pictures: bool = False) -> list[str]:
    """The means of a class, or of the classes, as text: one cell for each of `summary_titles`.

    Args:
        entry: One of "classes", or "overall", of a summary.json.
        pictures: As in `metric_title`.
    """
    cells = [scaled_text(key, Interval.of(entry[key]), pictures) for key in METRICS]
    empty, inside = entry.get("empty"), entry.get("interval_coverage")
    return [
        *cells,
        str(entry["dice"]["n"]),
        " / ".join(str(empty[key]) for key in EMPTY) if empty else "-",
        f"{inside['fraction']:.0%} of {inside['n']}" if inside else "-",
    ]


def notes(evaluation: Evaluation) -> list[str]:
    """What has to stand under every table of an evaluation: its rules, and the cases that are in no mean or no test."""
    summary = evaluation.summary
    lines = [
        f"{summary['rule']['means']}.",
        f"Tolerance of NSD {tolerance_text(summary['nsd_tolerance_mm'], evaluation.pictures)}.",
        f"95 % intervals {summary.get('interval', {}).get('over', 'over cases')}.",
    ]
    if evaluation.pictures:
        lines.append("Pictures have no scale: in cases.csv and summary.json 1 mm is a pixel, 1 ml are 1000 pixels.")
    if summary.get("truth", "the mask") != "the mask":
        lines.append(f"The truth is {summary['truth']}.")
    labelled = f"of {pluralize(summary['labelled'], 'labelled case')} " if "labelled" in summary else ""
    for key, one, several in (
        ("missing", f"{labelled}has no prediction and is in no mean", f"{labelled}have no prediction and are in no mean"),
        ("unlabelled", "prediction has no mask to compare with", "predictions have no mask to compare with"),
        ("faults", "file is faulty: what it holds is in no mean", "files are faulty: what they hold is in no mean"),
    ):
        if summary.get(key):
            lines.append(f"{pluralize(len(summary[key]), one, several)}: {few(summary[key])}.")
    if summary.get("unheld_intervals"):
        lines.append(summary["unheld_intervals"])
    for side in ("training", "validation"):
        seen = evaluation.seen(side)
        if seen:
            met = pluralize(len(seen), "case was", "cases were")
            lines.append(f"{met} in the {side} of the model, so no test of it: {few(seen)}.")
    if evaluation.unknown:
        cases = pluralize(evaluation.unknown, "case")
        lines.append(f"{cases} may have been in the training of the model; it is unknown.")
    return lines
