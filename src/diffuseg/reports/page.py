"""One page about one or more evaluations: HTML with everything inside it, readable without a network and in print."""

import base64
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from diffuseg import __version__
from diffuseg.atomic_io import atomic_write, check_writable
from diffuseg.errors import UserError
from diffuseg.evaluation.calibration_metrics import MEASURES, usual_radius
from diffuseg.evaluation.metrics import METRICS
from diffuseg.evaluation.selective import REJECTION
from diffuseg.evaluation.statistics import Interval, bootstrap_mean
from diffuseg.inference.wording import needs_review
from diffuseg.reports.case_pictures import case_pictures
from diffuseg.reports.comparison import Comparison, compare_evaluations
from diffuseg.reports.evaluation import ALL, Evaluation
from diffuseg.reports.plots import DARK, cost_plot, dot_plot, reliability_plot, risk_coverage_plot, svg_of
from diffuseg.reports.probabilities import FRACTION, ProbabilityEvaluation, evaluate_probabilities
from diffuseg.reports.tables import difference_rows
from diffuseg.reports.titles import (
    PLOTTED,
    RECORDED,
    evaluation_letter,
    metric_title,
    notes,
    scale_and_digits,
    summary_cells,
    summary_titles,
    tolerance_text,
)
from diffuseg.text import pluralize

Lines = list[list[str]]
Dots = tuple[list[float], tuple[float, float, float]]  # values of cases; their mean, low and high


@dataclass(frozen=True)
class Column:
    """One evaluation on the page: its letter, and what its probabilities are worth.

    left_out  cases whose probabilities are not evaluated, and why
    """

    letter: str
    evaluation: Evaluation
    probabilities: ProbabilityEvaluation | None
    left_out: list[str]


class Page(NamedTuple):
    """What became of a page.

    refused   why evaluations were not compared; "" if they were, or if there is one
    left_out  cases whose probabilities are not evaluated, after the letter of their evaluation, and why
    """

    file: Path
    refused: str
    left_out: list[str]


def write_page(
    evaluations: Sequence[Evaluation],
    out: Path,
    allow_seen: bool = False,
    pictures: Sequence[tuple[str, bytes]] | None = None,
    on_case: Callable[[int, int], None] = lambda done, cases: None,
) -> Page:
    """Write the page to a file, and tell what is not on it.

    Args:
        evaluations: One, or several, which are compared.
        out: The file.
        allow_seen: Compare also cases that a model has met in its training or validation.
        pictures: (title, PNG) of cases; None for `case_pictures`.
        on_case: Called with (done, cases) after each case whose probabilities were looked for.

    Raises:
        UserError: There is no evaluation, one of them lacks its means, or the file cannot be written.
    """
    check_writable(out, file=True)
    if not evaluations:
        raise UserError("there is nothing to report", do="Give folders that `diffuseg evaluate` wrote")
    for evaluation in evaluations:
        if not all(isinstance(evaluation.summary.get(key), dict) for key in ("overall", "classes")):
            raise UserError("lacks the means", file=evaluation.folder / "summary.json", do="Evaluate again")
    columns = _columns(evaluations, on_case)
    comparison, refused = _compare(evaluations, allow_seen) if len(columns) > 1 else (None, "")
    cases = len(evaluations[0].cases)
    pictures = case_pictures(evaluations) if pictures is None else pictures
    content = {
        "heading": f"Report on {len(columns)} evaluations" if len(columns) > 1 else f"Evaluation of {pluralize(cases, 'case')}",
        "columns": columns,
        "settings": _settings(columns),
        "summary": _summary(columns),
        "differences": difference_rows(comparison) if comparison else [],
        "comparison": comparison,
        "refused": refused,
        "dots": _dot_plot(columns),
        "pictures": [(title, base64.b64encode(png).decode()) for title, png in pictures],
        "probabilities": _probability_tables(columns),
        "plots": _plots(columns),
        "band": _band(columns),
        "how": _how(columns),
        "notes": _notes(columns),
        "numbers": {column.letter: _numbers(column.evaluation) for column in columns},
        "version": __version__,
    }
    atomic_write(out, _render(content))
    return Page(Path(out), refused, [f"{column.letter}, {line}" for column in columns for line in column.left_out])


def _render(content: dict[str, Any]) -> str:
    """The template beside this file, filled in; whatever is put into it is escaped unless the template says `safe`."""
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("page.html").render(pluralize=pluralize, **content)


def _columns(evaluations: Sequence[Evaluation], on_case: Callable[[int, int], None]) -> list[Column]:
    total, done = sum(len(evaluation.cases) for evaluation in evaluations), 0

    def one_more() -> None:
        nonlocal done
        done += 1
        on_case(done, total)

    return [
        Column(evaluation_letter(number), evaluation, *evaluate_probabilities(evaluation, one_more))
        for number, evaluation in enumerate(evaluations)
    ]


def _compare(evaluations: Sequence[Evaluation], allow_seen: bool) -> tuple[Comparison | None, str]:
    try:
        return compare_evaluations(evaluations, allow_seen=allow_seen), ""
    except UserError as fault:
        return None, str(fault)


def _pictures(columns: Sequence[Column]) -> bool:
    """Whether all of them are of pictures without a scale."""
    return all(column.evaluation.pictures for column in columns)


def _band(columns: Sequence[Column]) -> str:
    """The voxels near the borders, as text."""
    radius = f"{usual_radius([1.0]):g}"
    return (
        f"pixels within {radius} pixels" if _pictures(columns) else f"voxels within {radius} mm (two voxels, if that is more)"
    )


def _notes(columns: Sequence[Column]) -> dict[str, list[str]]:
    """What stands under the numbers, by heading: first what is said of all evaluations, under none."""
    lines = {column.letter: [*notes(column.evaluation), *_remarks(column.evaluation)] for column in columns}
    shared = [line for line in lines[columns[0].letter] if all(line in each for each in lines.values())]
    own = {f"{c.letter}: {c.evaluation.name}": [line for line in lines[c.letter] if line not in shared] for c in columns}
    return {"": shared} | {heading: each for heading, each in own.items() if each}


def _settings(columns: Sequence[Column]) -> Lines:
    """A line per evaluation, heading first."""
    lines = [["", "evaluation", "cases", "model", "draws", "steps", "seconds for a case"]]
    for column in columns:
        one = column.evaluation
        settings = [one.setting(key) for key in ("model_name", "draws", "steps")]
        seconds = f"{one.seconds:.2f}" if math.isfinite(one.seconds) else "-"
        lines.append([column.letter, one.name, str(len(one.cases)), *settings, seconds])
    return lines


def _summary(columns: Sequence[Column]) -> dict[str, Lines]:
    """Heading -> lines, heading first: of one evaluation a column per class, of several a table per class."""
    pictures = _pictures(columns)
    titles = ["", *summary_titles(pictures)]
    if len(columns) == 1:
        cells = [[name, *summary_cells(entry, pictures)] for name, entry in columns[0].evaluation.means.items()]
        return {"": [list(line) for line in zip(titles, *cells, strict=True)]}
    tables = {}
    names = dict.fromkeys(name for column in columns for name in column.evaluation.means)
    for name in sorted(names, key=lambda name: name != ALL):  # the mean of classes first
        cells = []
        for column in columns:
            entry = column.evaluation.means.get(name)
            cells.append([column.letter, *(["-"] * (len(titles) - 1) if entry is None else summary_cells(entry, pictures))])
        tables[name] = [list(line) for line in zip(titles, *cells, strict=True)]
    return tables


def _dot_plot(columns: Sequence[Column]) -> str:
    """Every case as a dot: of one evaluation by class, of several the mean of classes, errors without their sign."""
    pictures = _pictures(columns)
    if len(columns) > 1:
        titles = {key: metric_title(key, unsigned=True, pictures=pictures) for key in PLOTTED}
        many = {
            title: {c.letter: _scaled(*_mean_dots(c, key), key, pictures) for c in columns} for key, title in titles.items()
        }
        return dot_plot(many, DARK)
    one = columns[0].evaluation
    panels = {}
    for key in PLOTTED:
        panels[metric_title(key, pictures=pictures)] = {
            name: _scaled(
                one.per_case(key, name if name in one.classes else None).tolist(), Interval.of(entry[key]), key, pictures
            )
            for name, entry in one.means.items()
        }
    return dot_plot(panels)


def _scaled(values: list[float], ends: tuple[float, float, float], key: str, pictures: bool) -> Dots:
    """The values of cases, and their mean, low and high, in the unit of the metric's title."""
    scale = scale_and_digits(key, pictures)[0]
    mean, low, high = (scale * end for end in ends)
    return [scale * value for value in values], (mean, low, high)


def _mean_dots(column: Column, key: str) -> tuple[list[float], tuple[float, float, float]]:
    one = column.evaluation
    values = one.per_case(key, unsigned=True)
    mean, low, high = bootstrap_mean(values, [one.patients[case] for case in one.cases])
    return values.tolist(), (mean, low, high)


def _probability_tables(columns: Sequence[Column]) -> dict[str, Lines]:
    """Tables of what the probabilities are worth, heading first: "calibration", "rejection"."""
    shown = {column.letter: column.probabilities for column in columns if column.probabilities is not None}
    if not shown:
        return {}
    scores, rest = [["", *shown]], [["", *shown]]
    for region in ("band", "image"):
        for name, title in MEASURES.items():
            scores.append([f"{title}, {region}", *(one.scores[region][name].text(4) for one in shown.values())])
    for name, title in REJECTION.items():
        rest.append([title.format(FRACTION), *(one.rejection[name].text(4) for one in shown.values())])
    return {"calibration": scores, "rejection": rest}


def _plots(columns: Sequence[Column]) -> dict[str, str]:
    shown = {column.letter: column.probabilities for column in columns if column.probabilities is not None}
    plots = {}
    if shown:
        diagrams = {letter: one.diagram for letter, one in shown.items()}
        plots["reliability"] = svg_of(reliability_plot(diagrams, _pictures(columns)))
        curves = {letter: (one.risk, one.uncertainty) for letter, one in shown.items()}
        plots["rejection"] = svg_of(risk_coverage_plot(curves, FRACTION))
    costs = {}
    for column in columns:
        one = column.evaluation
        if math.isfinite(one.seconds):
            name = f"{column.letter}: {one.setting('draws')} x {one.setting('steps')}"
            costs[name] = (one.seconds, _mean_dots(column, "dice")[1])
    if len(costs) > 1:
        plots["cost"] = svg_of(cost_plot(costs))
    return plots


def _how(columns: Sequence[Column]) -> Lines:
    """How each was made, a line per setting and a column per evaluation, heading first."""
    each = [_how_one(column.evaluation) for column in columns]
    keys = dict.fromkeys(key for settings in each for key in settings)
    lines = [[key, *(settings.get(key) or "-" for settings in each)] for key in keys]
    return [["", *(column.letter for column in columns)], *lines]


def _how_one(evaluation: Evaluation) -> dict[str, str]:
    summary = evaluation.summary
    folders, interval = summary.get("folders", {}), summary.get("interval", {})
    settings = {"Predictions": folders.get("predictions", "-"), "Labels": folders.get("labels", "-")}
    settings |= {title: evaluation.setting(key) for key, title in RECORDED.items() if evaluation.setting(key) != "-"}
    settings["Calibration"] = ", ".join(dict.fromkeys(map(_calibration, evaluation.records)))
    settings["Empty masks"] = summary["rule"]["means"]
    settings["Tolerance of NSD"] = tolerance_text(evaluation.tolerance, evaluation.pictures)
    if {"confidence", "method", "resamples", "over"} <= set(interval):
        settings["Intervals"] = "{confidence:.0%}, {method}, {resamples} resamples, {over}".format(**interval)
    settings["Versions"] = ", ".join(f"{name} {version}" for name, version in summary.get("versions", {}).items())
    return settings


def _calibration(record: dict[str, Any]) -> str:
    calibration = record.get("calibration")
    if not isinstance(calibration, dict):
        return "none"
    if not calibration.get("applied"):
        return "not applied"
    cases = pluralize(calibration.get("cases", 0), "case")
    return f"temperature {calibration.get('temperature', math.nan):.3f}, from {cases}"


def _remarks(evaluation: Evaluation) -> list[str]:
    """What the files beside an evaluation say: whether they changed since, and how many cases need review."""
    lines, file = [], evaluation.folder / "summary.json"
    written = file.stat().st_mtime if file.is_file() else math.inf
    changed = [case for case, path in evaluation.predictions.items() if path.stat().st_mtime > written]
    if changed:
        newer = pluralize(len(changed), "mask is", "masks are")
        lines.append(f"{newer} newer than this evaluation: pictures and probabilities may not fit the numbers.")
    review = [needs_review(record) for record in evaluation.records]
    if any(needed is not None for needed in review):
        flagged = sum(bool(needed) for needed in review)
        lines.append(f"Needs review by a person, says predict: {flagged} of {pluralize(len(review), 'case')}.")
    return lines


def _numbers(evaluation: Evaluation) -> Lines:
    """All numbers, a line per case and class, heading first."""
    pictures = evaluation.pictures
    unit, (scale, digits) = "pixels" if pictures else "ml", scale_and_digits("volume_error", pictures)
    sizes = [f"{what} ({unit})" for what in ("true", "predicted", "90 % interval")]
    lines = [["case", "class", *(metric_title(key, pictures=pictures) for key in METRICS), *sizes]]
    size = lambda ml: f"{scale * ml:.{digits}f}"
    for row in evaluation.rows:
        values = [(row.score.values[key], *scale_and_digits(key, pictures)) for key in METRICS]
        cells = [f"{value * factor:.{places}f}" if math.isfinite(value) else "-" for value, factor, places in values]
        interval = "[{}, {}]".format(*map(size, row.interval)) if row.interval else "-"
        volumes = [size(row.score.truth_ml), size(row.score.prediction_ml), interval]
        lines.append([row.case, row.label, *cells, *volumes])
    return lines
