"""`diffuseg report`: evaluations beside one another on one page that needs nothing but itself."""

import base64
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from diffuseg import __version__
from diffuseg.atomic_io import atomic_write, check_writable
from diffuseg.data.outputs import record_of
from diffuseg.data.raters import fuse_raters, read_raters
from diffuseg.errors import UserError
from diffuseg.evaluation.calibration_metrics import MEASURES, usual_radius
from diffuseg.evaluation.metrics import METRICS
from diffuseg.evaluation.selective import REJECTION
from diffuseg.evaluation.statistics import Interval, bootstrap_mean
from diffuseg.reports.comparison import Comparison, compare, letter, lettered, title
from diffuseg.reports.evaluate import masks_in, truths_in
from diffuseg.reports.figures import cases_figure
from diffuseg.reports.plots import DARK, cost_plot, dot_plot, reliability_plot, risk_coverage_plot, svg_of
from diffuseg.reports.probabilities import FRACTION, Judged, judge
from diffuseg.reports.report import fitting, image_of, made_by, page, with_maps
from diffuseg.reports.summary import ALL
from diffuseg.reports.written import Written, read_evaluations
from diffuseg.text import pluralize

T = TypeVar("T")
PLOTTED = ("dice", "hd95", "nsd", "volume_error")


@dataclass(frozen=True)
class Side:
    """One evaluation: its letter on the page, the files it was made from that are still there, and its probabilities.

    left_out  cases whose probabilities are not judged, and why
    """

    letter: str
    written: Written
    masks: dict[str, Path]
    truths: dict[str, tuple[Path, ...]]
    images: Path
    judged: Judged | None
    left_out: list[str]

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """What predict wrote of each case."""
        found = (record_of(self.masks[case].parent, case) for case in self.written.cases if case in self.masks)
        return [record for record in found if record]

    @property
    def seconds(self) -> float:
        """Median time of a case; NaN where nothing is recorded."""
        known = [record["seconds"] for record in self.records if isinstance(record.get("seconds"), int | float)]
        return float(np.median(known)) if known else math.nan

    def recorded(self, key: str) -> str:
        """A setting of the predictions, several where they differ; "-" where nothing is recorded."""
        values = dict.fromkeys(str(record[key]) for record in self.records if record.get(key) is not None)
        return ", ".join(values) or "-"


class Report(NamedTuple):
    """What became of a report.

    refused   why evaluations were not compared; "" if they were, or if there is one
    left_out  cases whose probabilities are not judged, after the letter of their evaluation, and why
    """

    page: Path
    refused: str
    left_out: list[str]


def write_report(
    folders: Sequence[Path],
    out: Path,
    allow_seen: bool = False,
    on_case: Callable[[int, int], None] = lambda done, cases: None,
) -> Report:
    """Write the page to the file `out`, and tell what is not on it.

    `on_case(done, cases)` is told of each case whose probabilities were looked for. Refuses what `read_evaluations` refuses,
    evaluations without means, and no evaluation at all.
    """
    check_writable(out, file=True)
    evaluations = read_evaluations([Path(folder) for folder in folders])
    if not evaluations:
        raise UserError("there is nothing to report", do="Give folders that `diffuseg evaluate` wrote")
    for evaluation in evaluations:
        if not all(isinstance(evaluation.summary.get(key), dict) for key in ("overall", "classes")):
            raise UserError("lacks the means", file=evaluation.folder / "summary.json", do="Evaluate again")
    total, done = sum(len(evaluation.cases) for evaluation in evaluations), 0

    def one_more() -> None:
        nonlocal done
        done += 1
        on_case(done, total)

    sides = [_side(letter(number), evaluation, one_more) for number, evaluation in enumerate(evaluations)]
    comparison, refused = _compared(folders, allow_seen) if len(sides) > 1 else (None, "")
    text = page(
        "side_by_side.html",
        sides=sides,
        classes=_classes(sides),
        differences=[] if comparison is None else lettered(comparison),
        comparison=comparison,
        refused=refused,
        dots=dot_plot({title(metric): {s.letter: _dots(s, metric) for s in sides} for metric in PLOTTED}, DARK),
        pictures=_pictures(sides),
        judged=_judged_rows(sides),
        plots=_plots(sides),
        band=f"{usual_radius([1.0]):g} mm",
        how=_how(sides),
        notes={side.letter: _notes(side) for side in sides},
        version=__version__,
    )
    atomic_write(out, text)
    left_out = [f"{side.letter}, {line}" for side in sides for line in side.left_out]
    return Report(Path(out), refused, left_out)


def _side(letter: str, written: Written, on_case: Callable[[], None]) -> Side:
    kept = written.summary.get("folders", {})
    masks, truths = _there(masks_in, kept.get("predictions")), _there(truths_in, kept.get("labels"))
    masks = {case: path for case, path in masks.items() if case in written.patients}
    images = Path(kept.get("images", "")) if kept.get("images") else Path("nowhere")
    return Side(letter, written, masks, truths, images, *judge(written, masks, truths, on_case))


def _there(find: Callable[[Path], dict[str, T]], folder: str | None) -> dict[str, T]:
    """Masks by case, none where the folder is not known, or gone."""
    try:
        return find(Path(folder)) if folder else {}
    except UserError:
        return {}


def _compared(folders: Sequence[Path], allow_seen: bool) -> tuple[Comparison | None, str]:
    try:
        return compare(folders, allow_seen=allow_seen), ""
    except UserError as fault:
        return None, str(fault)


def _classes(sides: Sequence[Side]) -> dict[str, list[list[str]]]:
    """Class -> heading and a line per metric, a column per evaluation; the mean of classes first, if there are several."""
    names = list(dict.fromkeys(name for side in sides for name in side.written.classes))
    first = [f"{metric.title}{f' ({metric.unit})' if metric.unit else ''}" for metric in METRICS.values()]
    first = ["", *first, "n", "volume in 90 % interval"]
    found = {}
    for name in [ALL, *names] if len(names) > 1 else names:
        columns = []
        for side in sides:
            summary = side.written.summary
            entry = summary["overall"] if name == ALL else summary["classes"].get(name)
            columns.append([side.letter, *(["-"] * (len(first) - 1) if entry is None else _column(entry))])
        found[name] = [list(line) for line in zip(first, *columns, strict=True)]
    return found


def _column(entry: dict[str, Any]) -> list[str]:
    inside = entry.get("interval_coverage")
    cells = [Interval.of(entry[key]).text(METRICS[key].digits) for key in METRICS]
    return [*cells, str(entry["dice"]["n"]), f"{inside['fraction']:.0%} of {inside['n']}" if inside else "-"]


def _dots(side: Side, metric: str) -> tuple[list[float], tuple[float, float, float]]:
    values = side.written.per_case(metric)
    mean, low, high = bootstrap_mean(values, [side.written.patients[case] for case in side.written.cases])
    return values.tolist(), (mean, low, high)


def _pictures(sides: Sequence[Side]) -> list[tuple[str, str]]:
    """Worst, median and best case by the mean Dice of all evaluations: (heading, PNG in base64)."""
    common = set.intersection(*(set(side.written.cases) & set(side.masks) & set(side.truths) for side in sides))
    scores: dict[str, list[float]] = {}
    for side in sides:
        for case, value in zip(side.written.cases, side.written.per_case("dice"), strict=True):
            if case in common and math.isfinite(value):
                scores.setdefault(case, []).append(value)
    ranked = sorted((float(np.mean(values)), case) for case, values in scores.items() if len(values) == len(sides))
    if not ranked:
        return []
    chosen = {ranked[0][1]: "Worst", ranked[len(ranked) // 2][1]: "Median", ranked[-1][1]: "Best"}
    found = [(f"{which} case: {case}", _picture(sides, case, scores[case])) for case, which in chosen.items()]
    return [(heading, png) for heading, png in found if png]


def _picture(sides: Sequence[Side], case: str, dice: Sequence[float]) -> str:
    """PNG in base64; "" where files are no longer those that were evaluated."""
    labels = {name: value for name, value in sides[0].written.summary.get("labels", {}).items() if value}
    try:
        truth, rows, image = read_raters(sides[0].truths[case]), [], None
        for side, value in zip(sides, dice, strict=True):
            mask, probability, entropy = with_maps(case, side.masks[case], len(labels) + 1)
            maps = {"mask": mask.data[0], "probability": probability, "entropy": entropy}
            rows.append({"title": f"{side.letter}: Dice {value:.3f}"} | maps)
            image = image or fitting(image_of(side.images, case), mask)
        scan = None if image is None else image.data
        png = cases_figure(scan, fuse_raters(truth.data), rows, truth.spacing, labels)
    except (UserError, ValueError):
        return ""
    return base64.b64encode(png).decode()


def _how(sides: Sequence[Side]) -> list[list[str]]:
    """What predict recorded, a line per setting and a column per evaluation, heading first."""
    columns = []
    for side in sides:
        found = made_by(next(iter(side.masks.values())).parent, side.written.cases) if side.masks else {}
        columns.append(found | {"Calibration": ", ".join(dict.fromkeys(map(_calibrated, side.records)))})
    keys = list(dict.fromkeys(key for column in columns for key in column))
    lines = [[key, *(column.get(key) or "-" for column in columns)] for key in keys]
    return [["", *(side.letter for side in sides)], *lines]


def _calibrated(record: dict[str, Any]) -> str:
    found = record.get("calibration")
    if not isinstance(found, dict):
        return "none"
    if not found.get("applied"):
        return "not applied"
    return f"temperature {found.get('temperature', math.nan):.3f}, from {pluralize(found.get('cases', 0), 'case')}"


def _judged_rows(sides: Sequence[Side]) -> dict[str, list[list[str]]]:
    """Tables of what the probabilities are worth, heading first: "calibration", "rejection"."""
    there = [(side.letter, side.judged) for side in sides if side.judged is not None]
    if not there:
        return {}
    scores = [["", *(letter for letter, _ in there)]]
    for region in ("band", "image"):
        for name, what in MEASURES.items():
            scores.append([f"{what}, {region}", *(judged.scores[region][name].text(4) for _, judged in there)])
    rest = [["", *(letter for letter, _ in there)]]
    for name, what in REJECTION.items():
        rest.append([what.format(FRACTION), *(judged.rejection[name].text(4) for _, judged in there)])
    return {"calibration": scores, "rejection": rest}


def _plots(sides: Sequence[Side]) -> dict[str, str]:
    judged = {side.letter: side.judged for side in sides if side.judged is not None}
    plots = {}
    if judged:
        plots["reliability"] = svg_of(reliability_plot({letter: one.diagram for letter, one in judged.items()}))
        curves = {letter: (one.risk, one.doubt) for letter, one in judged.items()}
        plots["rejection"] = svg_of(risk_coverage_plot(curves, FRACTION))
    names = {s.letter: f"{s.letter}: {s.recorded('draws')} x {s.recorded('steps')}" for s in sides}
    costs = {names[s.letter]: (s.seconds, _dots(s, "dice")[1]) for s in sides if math.isfinite(s.seconds)}
    if len(costs) > 1:
        plots["cost"] = svg_of(cost_plot(costs))
    return plots


def _notes(side: Side) -> list[str]:
    """What a reader of the numbers of one evaluation has to know."""
    summary, written = side.written.summary, side.written
    lines = [f"{summary['rule']['means']}. Tolerance of NSD {summary['nsd_tolerance_mm']:g} mm."]
    lines += [f"95 % intervals {summary.get('interval', {}).get('over', 'over cases')}."]
    if summary.get("missing"):
        lines.append(f"{pluralize(len(summary['missing']), 'labelled case has', 'labelled cases have')} no prediction.")
    lines += [f"Fault: {fault}." for fault in summary.get("faults", [])]
    lines += [summary["unheld_intervals"]] if summary.get("unheld_intervals") else []
    for part in ("training", "validation"):
        if written.seen(part):
            met = pluralize(len(written.seen(part)), "case was", "cases were")
            lines.append(f"{met} in the {part} of the model: no test of it.")
    if written.unknown:
        unknown = pluralize(written.unknown, "case")
        lines.append(f"{unknown} may have been in the training of the model; it is unknown.")
    evaluated = (written.folder / "summary.json").stat().st_mtime
    changed = [case for case, path in side.masks.items() if path.stat().st_mtime > evaluated]
    if changed:
        newer = pluralize(len(changed), "mask is", "masks are")
        lines.append(f"{newer} newer than this evaluation: pictures and probabilities may not fit the numbers.")
    flagged = [record for record in side.records if record.get("look_at")]
    if any(record.get("look_at") is not None for record in side.records):
        lines.append(f"To be looked at by a human, says predict: {len(flagged)} of {pluralize(len(side.records), 'case')}.")
    return lines
