"""What an evaluation found: its rows, their means with intervals, and the same as text for terminal and page."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from diffuseg.data.layout import ellipsize
from diffuseg.evaluation.metrics import METRICS, Score
from diffuseg.evaluation.statistics import Interval, bootstrap_mean
from diffuseg.text import pluralize

ALL = "mean of classes"
COLUMNS = 4  # more classes than this become lines of the table in the terminal


@dataclass(frozen=True)
class Row:
    """One class of one case; `interval` is the predicted 90 % interval of its volume in ml, where one was written."""

    case: str
    label: str
    patient: str
    score: Score
    interval: tuple[float, float] | None

    @property
    def covered(self) -> bool | None:
        """Whether the true volume lies in the predicted interval; None where there is no interval."""
        return None if self.interval is None else self.interval[0] <= self.score.truth_ml <= self.interval[1]


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    labels       class -> value in the masks, background left out
    rows         by case, then class
    summary      what summary.json holds: "classes" and "overall" with mean, low, high and n of each metric, and the rules
    missing      labelled cases without a prediction: in no mean, but never unmentioned
    unlabelled   predictions without a mask
    faults       one line for each case, or file beside it, that is not in the means because it is broken
    predictions  mask file of each case that has a prediction and a label; truths: those of each labelled case
    """

    labels: dict[str, int]
    rows: list[Row]
    summary: dict[str, Any]
    missing: list[str]
    unlabelled: list[str]
    faults: list[str]
    predictions: dict[str, Path]
    truths: dict[str, tuple[Path, ...]]

    @property
    def cases(self) -> list[str]:
        """The cases that were measured."""
        return list(dict.fromkeys(row.case for row in self.rows))

    def per_case(self, metric: str) -> dict[str, float]:
        """Mean over the classes of each case, classes without a value left out; NaN where no class has one."""
        return {case: value for case, (value, _) in _over_classes(self.rows, metric).items()}


def summarise(rows: list[Row]) -> dict[str, Any]:
    """Means over cases with their intervals: "classes" (each by itself) and "overall" (mean of a case's classes first)."""
    names = dict.fromkeys(row.label for row in rows)
    classes = {}
    for name in names:
        chosen = [row for row in rows if row.label == name]
        of = [row.patient for row in chosen]
        means = {key: _mean([row.score.values[key] for row in chosen], of) for key in METRICS}
        classes[name] = means | _counts(chosen)
    overall = {}
    for key in METRICS:
        pairs = list(_over_classes(rows, key).values())
        overall[key] = _mean([value for value, _ in pairs], [patient for _, patient in pairs])
    return {"classes": classes, "overall": overall | _counts(rows)}


def headings(evaluation: Evaluation) -> list[str]:
    """Titles of the columns of the summary, without the first one."""
    at = {"nsd": f" at {evaluation.summary['nsd_tolerance_mm']:g} mm"}
    columns = [f"{m.title}{at.get(key, '')}{f' ({m.unit})' if m.unit else ''}" for key, m in METRICS.items()]
    coverage = ["volume in 90 % interval"] if "interval_coverage" in evaluation.summary["overall"] else []
    return [*columns, "n", "empty: both / truth / prediction", *coverage]


def body(evaluation: Evaluation) -> dict[str, list[str]]:
    """The summary as text: class -> one cell for each of `headings`; the mean of classes last, if there are several."""
    entries = dict(evaluation.summary["classes"])
    if len(entries) > 1:
        entries[ALL] = evaluation.summary["overall"]
    lines = {}
    for name, entry in entries.items():
        cells = [Interval.of(entry[key]).text(metric.digits) for key, metric in METRICS.items()]
        cells += [str(entry["dice"]["n"]), " / ".join(str(entry["empty"][key]) for key in ("both", "truth", "prediction"))]
        if "interval_coverage" in evaluation.summary["overall"]:
            covered = entry.get("interval_coverage")
            cells.append(f"{covered['fraction']:.0%} of {covered['n']}" if covered else "-")
        lines[name] = cells
    return lines


def notes(evaluation: Evaluation) -> list[str]:
    """What has to stand under every table: the rules, and the cases that are in no mean."""
    summary = evaluation.summary
    lines = [f"{summary['rule']['means']}.", f"95 % intervals {summary['interval']['over']}."]
    if any(len(paths) > 1 for paths in evaluation.truths.values()):
        lines.append(f"The truth is {summary['truth']}.")
    labelled = pluralize(summary["labelled"], "labelled case")
    for names, one, several in (
        (
            evaluation.missing,
            f"of {labelled} has no prediction and is in no mean",
            f"of {labelled} have no prediction and are in no mean",
        ),
        (evaluation.unlabelled, "prediction has no mask to compare with", "predictions have no mask to compare with"),
        (evaluation.faults, "file is faulty: what it holds is in no mean", "files are faulty: what they hold is in no mean"),
    ):
        if names:
            lines.append(f"{pluralize(len(names), one, several)}: {ellipsize(names)}.")
    if summary["unheld_intervals"]:
        lines.append(summary["unheld_intervals"])
    for side in ("training", "validation"):
        if summary["seen"][side]:
            names = summary["seen"][side]
            met = pluralize(len(names), "case was", "cases were")
            lines.append(f"{met} in the {side} of the model, so no test of it: {ellipsize(names)}.")
    return lines


def table(evaluation: Evaluation) -> Table:
    """The summary for a terminal, a column per class (a line each, if there are many), the rules below."""
    found, titles = body(evaluation), headings(evaluation)
    shown = Table(title=f"Mean [95 % interval] over {pluralize(evaluation.summary['cases'], 'case')}".replace("[", "\\["))
    lines = [["", *found], *([title, *(cells[i] for cells in found.values())] for i, title in enumerate(titles))]
    if len(found) > COLUMNS:
        lines = [list(line) for line in zip(*lines, strict=True)]
    for number, title in enumerate(lines[0]):
        shown.add_column(title, justify="right" if number else "left")
    for line in lines[1:]:
        shown.add_row(*(cell.replace("[", "\\[") for cell in line))
    shown.caption = "\n".join(notes(evaluation)).replace("[", "\\[")
    shown.caption_justify = "left"
    return shown


def _over_classes(rows: list[Row], metric: str) -> dict[str, tuple[float, str]]:
    """Case -> mean over its classes that have a value, and its patient."""
    values: dict[str, tuple[list[float], str]] = {}
    for row in rows:
        values.setdefault(row.case, ([], row.patient))[0].append(row.score.values[metric])
    there = {case: ([v for v in found if math.isfinite(v)], patient) for case, (found, patient) in values.items()}
    return {case: (float(np.mean(v)) if v else math.nan, patient) for case, (v, patient) in there.items()}


def _mean(values: list[float], patients: list[str]) -> dict[str, Any]:
    return bootstrap_mean(values, patients)._asdict() | {"n": sum(math.isfinite(value) for value in values)}


def _counts(rows: list[Row]) -> dict[str, Any]:
    counts: dict[str, Any] = {
        "empty": {which: sum(row.score.empty == which for row in rows) for which in ("both", "truth", "prediction")}
    }
    told = [row.covered for row in rows if row.covered is not None]
    if told:
        counts["interval_coverage"] = {"fraction": sum(told) / len(told), "n": len(told)}
    return counts
