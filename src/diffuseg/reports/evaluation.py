"""One evaluation: its rows and their means, written as cases.csv and summary.json, and read from them."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from diffuseg.atomic_io import atomic_write, nan_to_none, write_json
from diffuseg.data.layout import read_json
from diffuseg.data.outputs import record_of
from diffuseg.errors import UserError
from diffuseg.evaluation.metrics import METRICS, Score
from diffuseg.evaluation.statistics import bootstrap_mean
from diffuseg.reports.folders import masks_in, truths_in

ALL = "mean of classes"
HOW_TO = "Give folders that `diffuseg evaluate` wrote"
COLUMNS = {key: f"{key}_{metric.unit}" if metric.unit else key for key, metric in METRICS.items()}
VOLUMES = ("truth_ml", "prediction_ml", "interval_low_ml", "interval_high_ml")


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

    def cells(self) -> list[str]:
        """The line of cases.csv: the `head` says what each cell is."""
        score = self.score
        numbers = [*score.values.values(), score.truth_ml, score.prediction_ml, *(self.interval or (math.nan, math.nan))]
        shown = ["" if math.isnan(number) else f"{number:.6g}" for number in numbers]
        return [self.case, self.patient, self.label, *shown, score.empty]

    @staticmethod
    def head() -> list[str]:
        """The first line of cases.csv."""
        return ["case", "patient", "class", *COLUMNS.values(), *VOLUMES, "empty"]

    @classmethod
    def read(cls, line: dict[str, str]) -> "Row":
        """A line of cases.csv; numbers have the six digits that stand there."""
        values = {key: float(line[column] or math.nan) for key, column in COLUMNS.items()}
        truth, prediction, low, high = (float(line[name] or math.nan) for name in VOLUMES)
        score = Score(values, truth, prediction, line["empty"])  # type: ignore[arg-type]
        return cls(line["case"], line["class"], line["patient"], score, None if math.isnan(low) else (low, high))


@dataclass(frozen=True)
class Evaluation:
    """What was measured of the predictions of some cases.

    rows         by case, then class
    summary      what summary.json holds: "classes" and "overall" with mean, low, high and n of each metric, and the rules
    folder       where it is written
    name         what it is called beside others
    predictions  mask file of each case that is still there; truths: those of each labelled case
    """

    rows: list[Row]
    summary: dict[str, Any]
    folder: Path
    name: str
    predictions: dict[str, Path] = field(default_factory=dict)
    truths: dict[str, tuple[Path, ...]] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path | str, name: str | None = None) -> "Evaluation":
        """Read what `write` wrote; the files it was made from are found where they still are.

        Args:
            folder: Where `write` wrote.
            name: What the evaluation is called; None: as the folder.

        Raises:
            UserError: cases.csv or summary.json is not there, is not that of an evaluation, or holds no case.
        """
        folder = Path(folder)
        table, file = folder / "cases.csv", folder / "summary.json"
        if not (table.is_file() and file.is_file()):
            raise UserError("there is no evaluation here", file=folder, do=HOW_TO)
        summary = read_json(file)
        try:
            with table.open(encoding="utf-8", errors="surrogateescape", newline="") as lines:
                rows = [Row.read(line) for line in csv.DictReader(lines)]
            _check(rows, summary)
        except (OSError, KeyError, TypeError, ValueError, csv.Error, UnicodeError) as error:
            what = f"cannot be read as an evaluation ({type(error).__name__}: {error})"
            raise UserError(what, file=folder, do=HOW_TO) from None
        if not rows:
            raise UserError("there is no case in it", file=table)
        folders = summary.get("folders", {})
        cases = {row.case for row in rows}
        masks = {case: path for case, path in _existing(masks_in, folders.get("predictions")).items() if case in cases}
        return cls(rows, summary, folder, name or folder.resolve().name, masks, _existing(truths_in, folders.get("labels")))

    def write(self) -> "Evaluation":
        """Write cases.csv and summary.json to its folder; returns itself."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([Row.head(), *(row.cells() for row in self.rows)])
        atomic_write(self.folder / "cases.csv", text.getvalue())
        write_json(self.folder / "summary.json", nan_to_none(self.summary))
        return self

    @property
    def pictures(self) -> bool:
        """Whether masks are pictures without a scale, whose lengths and sizes are in pixels."""
        return bool(self.summary.get("pictures"))

    @cached_property
    def cells(self) -> dict[tuple[str, str], Row]:
        """The row of each case and class."""
        return {(row.case, row.label): row for row in self.rows}

    @property
    def patients(self) -> dict[str, str]:
        """The patient of each case."""
        return {row.case: row.patient for row in self.rows}

    @property
    def cases(self) -> list[str]:
        """The cases that were measured, sorted."""
        return sorted(self.patients)

    @property
    def classes(self) -> list[str]:
        """The classes that were measured."""
        return list(dict.fromkeys(row.label for row in self.rows))

    @property
    def labels(self) -> dict[str, int]:
        """Class -> value in the masks, background left out; empty where it is not written."""
        return {name: value for name, value in self.summary.get("labels", {}).items() if value != 0}

    @property
    def missing(self) -> list[str]:
        """Labelled cases without a prediction: in no mean, but never unmentioned."""
        return self.summary.get("missing", [])

    @property
    def unlabelled(self) -> list[str]:
        """Predictions without a mask."""
        return self.summary.get("unlabelled", [])

    @property
    def faults(self) -> list[str]:
        """One line for each case, or file beside it, that is not in the means because it is broken."""
        return self.summary.get("faults", [])

    @property
    def tolerance(self) -> float:
        """The tolerance of NSD in mm."""
        return self.summary["nsd_tolerance_mm"]

    @property
    def means(self) -> dict[str, dict[str, Any]]:
        """The means of each class; the mean of classes last, if there are several."""
        classes = self.summary["classes"]
        return classes | {ALL: self.summary["overall"]} if len(classes) > 1 else classes

    def seen(self, side: str) -> list[str]:
        """Cases known to have been in the "training" or "validation" of the model."""
        return list(self.summary.get("seen", {}).get(side, []))

    @property
    def unknown(self) -> int:
        """The number of cases of which it is not known whether the model met them in training."""
        return int(self.summary.get("seen", {}).get("unknown", len(self.cases)))

    def per_case(self, metric: str, label: str | None = None, unsigned: bool = False) -> np.ndarray:
        """The value of each of `cases`: of one class, or the mean of the classes that have a value; NaN where none has.

        Args:
            metric: A key of METRICS.
            label: A class; None for the mean.
            unsigned: Errors count without their sign.
        """
        sign = abs if unsigned and METRICS[metric].best == "zero" else float
        means = []
        for case in self.cases:
            values = [self.cells[case, name].score.values[metric] for name in ([label] if label else self.classes)]
            finite = [sign(value) for value in values if math.isfinite(value)]
            means.append(float(np.mean(finite)) if finite else math.nan)
        return np.array(means)

    def without(self, pairs: Iterable[tuple[str, str]], metric: str) -> "Evaluation":
        """The same without the values of a metric for these cases and classes."""
        left_out, rows = set(pairs), []
        for row in self.rows:
            if (row.case, row.label) in left_out:
                row = replace(row, score=replace(row.score, values=row.score.values | {metric: math.nan}))
            rows.append(row)
        return replace(self, rows=rows)

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """What predict wrote of each case."""
        records = [record_of(self.predictions[case].parent, case) for case in self.cases if case in self.predictions]
        return [record for record in records if record]

    @property
    def seconds(self) -> float:
        """Median time of a case; NaN where nothing is recorded."""
        times = [record["seconds"] for record in self.records if isinstance(record.get("seconds"), int | float)]
        return float(np.median(times)) if times else math.nan

    def setting(self, key: str) -> str:
        """A setting of the predictions as predict recorded it, several where they differ; "-" where nothing is recorded."""
        values = dict.fromkeys(str(record[key]) for record in self.records if record.get(key) is not None)
        return ", ".join(values) or "-"


def load_evaluations(folders: Sequence[Path | str]) -> list[Evaluation]:
    """Evaluations by folder, each with a name of its own: the last part of the path or, where that is not enough, all of it.

    Raises:
        UserError: What `Evaluation.load` raises.
    """
    names = [Path(folder).resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    for number, name in enumerate(list(names)):
        if name in names[:number]:
            names[number] = f"{name} ({number + 1})"
    return [Evaluation.load(folder, name) for folder, name in zip(folders, names, strict=True)]


def summarise(rows: list[Row]) -> dict[str, Any]:
    """Means over cases with their intervals: "classes" (each by itself) and "overall" (mean of a case's classes first)."""
    patients = {row.case: row.patient for row in rows}
    classes = {}
    for name in dict.fromkeys(row.label for row in rows):
        chosen = [row for row in rows if row.label == name]
        of = [row.patient for row in chosen]
        means = {key: _mean([row.score.values[key] for row in chosen], of) for key in METRICS}
        classes[name] = means | _counts(chosen)
    overall = {}
    for key in METRICS:
        values: dict[str, list[float]] = {case: [] for case in patients}
        for row in rows:
            if math.isfinite(row.score.values[key]):
                values[row.case].append(row.score.values[key])
        each = [float(np.mean(found)) if found else math.nan for found in values.values()]
        overall[key] = _mean(each, list(patients.values()))
    return {"classes": classes, "overall": overall | _counts(rows)}


def _mean(values: list[float], patients: list[str]) -> dict[str, Any]:
    return bootstrap_mean(values, patients)._asdict() | {"n": sum(math.isfinite(value) for value in values)}


def _counts(rows: list[Row]) -> dict[str, Any]:
    counts: dict[str, Any] = {
        "empty": {which: sum(row.score.empty == which for row in rows) for which in ("both", "truth", "prediction")}
    }
    covered = [row.covered for row in rows if row.covered is not None]
    if covered:
        counts["interval_coverage"] = {"fraction": sum(covered) / len(covered), "n": len(covered)}
    return counts


def _check(rows: list[Row], summary: dict[str, Any]) -> None:
    """Refuse rows that are not all there, and a summary without its rules."""
    rules = (summary["rule"]["empty"], summary["rule"]["means"], float(summary["nsd_tolerance_mm"]))
    cases, classes = {row.case for row in rows}, {row.label for row in rows}
    complete = {(row.case, row.label) for row in rows} == {(case, label) for case in cases for label in classes}
    if not (rules and complete and isinstance(summary.get("seen", {}), dict)):
        raise ValueError("rows are missing")


def _existing(find: Any, folder: str | None) -> dict[str, Any]:
    """Masks by case, none where the folder is not known, or gone."""
    try:
        return find(Path(folder)) if folder else {}
    except UserError:
        return {}
