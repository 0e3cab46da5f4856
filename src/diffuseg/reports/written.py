"""Evaluations as they were written: read back, and refused where they cannot be compared with each other."""

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from diffuseg.data.layout import ellipsize, read_json
from diffuseg.errors import UserError
from diffuseg.evaluation.metrics import METRICS
from diffuseg.text import pluralize

WRITTEN = "Give folders that `diffuseg evaluate` wrote"


@dataclass(frozen=True)
class Written:
    """One evaluation.

    values    (case, class) -> metric -> value, NaN where it has none
    truth_ml  (case, class) -> volume of the truth, as text
    patients  case -> patient
    summary   what summary.json holds
    """

    name: str
    folder: Path
    values: dict[tuple[str, str], dict[str, float]]
    truth_ml: dict[tuple[str, str], str]
    patients: dict[str, str]
    summary: dict[str, Any]

    @property
    def cases(self) -> list[str]:
        """The cases that were measured, sorted."""
        return sorted(self.patients)

    @property
    def classes(self) -> list[str]:
        """The classes that were measured."""
        return list(dict.fromkeys(label for _, label in self.values))

    def per_case(self, metric: str, label: str | None = None) -> np.ndarray:
        """Value of each of `cases`: of one class, or the mean of the classes that have a value; errors without their sign."""
        sign = abs if METRICS[metric].best == "zero" else float
        found = []
        for case in self.cases:
            values = [self.values[case, name][metric] for name in ([label] if label else self.classes)]
            there = [sign(value) for value in values if math.isfinite(value)]
            found.append(float(np.mean(there)) if there else math.nan)
        return np.array(found)

    def without(self, pairs: Iterable[tuple[str, str]], metric: str) -> "Written":
        """The same without the values of a metric for these cases and classes."""
        values = {key: dict(found) for key, found in self.values.items()}
        for key in pairs:
            values[key][metric] = math.nan
        return replace(self, values=values)

    def seen(self, side: str) -> list[str]:
        """Cases known to have been in the "training" or "validation" of the model."""
        return list(self.summary.get("seen", {}).get(side, []))

    @property
    def unknown(self) -> int:
        """The number of cases of which it is not known whether the model met them in training."""
        return int(self.summary.get("seen", {}).get("unknown", len(self.cases)))


def read_evaluations(folders: Sequence[Path]) -> list[Written]:
    """Evaluations by folder, each with a name of its own: the last part of the path or, where that is not enough, all of it.

    Refuses folders without cases.csv and summary.json, files that are not those of an evaluation, and an empty one.
    """
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    for number, name in enumerate(list(names)):
        if name in names[:number]:
            names[number] = f"{name} ({number + 1})"
    return [_read(folder, name) for folder, name in zip(folders, names, strict=True)]


def in_some_only(evaluations: Sequence[Written], metric: str) -> set[tuple[str, str]]:
    """Cases and classes that have a value in some evaluations and none in others: a false alarm where others are empty too."""
    known = [{key for key, found in one.values.items() if math.isfinite(found[metric])} for one in evaluations]
    return set().union(*known) - set(known[0]).intersection(*known)


def refuse_unlike(evaluations: Sequence[Written], allow_seen: bool = False) -> None:
    """Refuse what makes a comparison meaningless: fewer than two, other rules, other cases, masks, classes or patients.

    And, unless `allow_seen`, cases that a model is known to have met in its training or validation.
    """
    if len(evaluations) < 2:
        raise UserError("there is nothing to compare", do="Give at least two evaluations")
    first = evaluations[0]
    for other in evaluations[1:]:
        for what, option, read in RULES_IN_COMMON:
            if read(first) != read(other):
                raise UserError(
                    f"its {what} is {read(other)}, that of {first.folder} is {read(first)}",
                    file=other.folder,
                    do=f"Evaluate both with the same {option}",
                )
        _refuse_other("cases", set(first.cases), set(other.cases), first, other)
        _refuse_other("classes", set(first.classes), set(other.classes), first, other)
        odd = [case for case, label in first.values if first.truth_ml[case, label] != other.truth_ml[case, label]]
        if odd:
            raise UserError(f"true volumes are not those of {first.folder}: {ellipsize(dict.fromkeys(odd))}", file=other.folder)
        if first.patients != other.patients:
            raise UserError(f"its patients are not those of {first.folder}", file=other.folder, do="Evaluate both again")
    for side in () if allow_seen else ("training", "validation"):
        for evaluation in evaluations:
            seen = evaluation.seen(side)
            if seen:
                what = (
                    f"its model met {len(seen)} of {pluralize(len(evaluation.cases), 'case')} in its {side}: {ellipsize(seen)}"
                )
                raise UserError(what, file=evaluation.folder, do="Compare on other cases, or say --allow-seen")


RULES_IN_COMMON = (
    ("empty-mask rule", "--empty", lambda evaluation: evaluation.summary["rule"]["empty"]),
    ("tolerance of NSD", "--nsd-tolerance", lambda evaluation: f"{evaluation.summary['nsd_tolerance_mm']:g} mm"),
)


def _refuse_other(what: str, ones: set[str], others: set[str], first: Written, other: Written) -> None:
    if ones == others:
        return
    lacks = [f"it lacks {ellipsize(sorted(ones - others))}"] if ones - others else []
    more = [f"it has {ellipsize(sorted(others - ones))}"] if others - ones else []
    message = f"its {what} are not those of {first.folder}: {' and '.join(lacks + more)}"
    raise UserError(message, file=other.folder, do=f"Evaluate both on the same {what}")


def _read(folder: Path, name: str) -> Written:
    table, file = folder / "cases.csv", folder / "summary.json"
    if not (table.is_file() and file.is_file()):
        raise UserError("there is no evaluation here", file=folder, do=WRITTEN)
    summary = read_json(file)
    try:
        with table.open(encoding="utf-8", newline="") as lines:
            values, truth_ml, patients = _rows(csv.DictReader(lines))
        known = {summary["rule"]["empty"], summary["rule"]["means"], float(summary["nsd_tolerance_mm"])}
        complete = set(values) == {(case, label) for case in patients for _, label in values}
        if not (known and complete and isinstance(summary.get("seen", {}), dict)):
            raise ValueError("rows are missing")
    except (OSError, KeyError, TypeError, ValueError, csv.Error, UnicodeError) as error:
        raise UserError(f"cannot be read as an evaluation ({type(error).__name__}: {error})", file=folder, do=WRITTEN) from None
    if not values:
        raise UserError("there is no case in it", file=table)
    return Written(name, folder, values, truth_ml, patients, summary)


def _rows(
    rows: Iterable[dict[str, str]],
) -> tuple[dict[tuple[str, str], dict[str, float]], dict[tuple[str, str], str], dict[str, str]]:
    columns = {key: f"{key}_{metric.unit}" if metric.unit else key for key, metric in METRICS.items()}
    values, truth_ml, patients = {}, {}, {}
    for row in rows:
        at = (row["case"], row["class"])
        values[at] = {key: float(row[column] or math.nan) for key, column in columns.items()}
        truth_ml[at] = row["truth_ml"]
        patients[row["case"]] = row["patient"]
    return values, truth_ml, patients
