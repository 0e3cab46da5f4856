"""Two or more evaluations of the same cases: which differences are more than chance, and how large they are.

For each metric and pair: the mean difference with its bootstrap interval, a sign-flip test over patients, Holm's correction
over all metrics and pairs at once, effect sizes. For each metric: how often each evaluation is first if patients are drawn
anew. docs/evaluation.md says what each number is for.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from diffuseg.atomic_io import check_writable, nan_to_none, write_json
from diffuseg.errors import UserError
from diffuseg.evaluation.metrics import METRICS
from diffuseg.evaluation.significance import FLIPS, cohens_d, first_places, holm, rank_biserial, sign_flip_test
from diffuseg.evaluation.statistics import CONFIDENCE, EQUAL, METHOD, RESAMPLES, Interval, bootstrap_mean, paired_difference
from diffuseg.reports.evaluation import ALL, Evaluation, load_evaluations
from diffuseg.text import did_you_mean, few, pluralize

LEVEL = 0.05  # of a family of tests
DEFAULT = ("dice", "hd95")


@dataclass(frozen=True)
class Difference:
    """What two evaluations differ by in one metric: first minus second, over the n cases that have a value in all evaluations.

    mean, low, high  in the unit of the metric; errors without their sign
    p, adjusted      of the sign-flip test; after Holm's correction over the whole comparison
    d, rank_biserial effect sizes, positive where the first value is higher
    unpaired         cases with a class that has a value in some evaluations only, which is left out there
    verdict          "no difference", "not told apart", or the name of the better one
    """

    metric: str
    first: str
    second: str
    n: int
    patients: int
    mean: float
    low: float
    high: float
    p: float
    adjusted: float
    cohens_d: float
    rank_biserial: float
    unpaired: int
    verdict: str


@dataclass(frozen=True)
class Comparison:
    """What was found.

    means        metric -> evaluation -> its mean with interval, over the same cases as the differences
    first        metric -> evaluation -> how often it is the best if patients are drawn anew; sums to 1
    differences  of each pair, metric after metric
    notes        what has to stand under every table
    pictures     whether all masks are pictures without a scale
    """

    names: list[str]
    label: str
    means: dict[str, dict[str, Interval]]
    first: dict[str, dict[str, float]]
    differences: list[Difference]
    notes: list[str]
    pictures: bool = False


def compare(
    folders: Sequence[Path | str],
    out_dir: Path | str | None = None,
    metrics: Sequence[str] = DEFAULT,
    label: str | None = None,
    allow_seen: bool = False,
) -> Comparison:
    """Compare evaluations that `diffuseg evaluate` wrote; writes comparison.json to `out_dir`, if there is one.

    Args:
        folders: Where they are.
        out_dir: Folder for comparison.json.
        metrics: As in `compare_evaluations`, and so are `label` and `allow_seen`.

    Raises:
        UserError: A folder holds no evaluation, and what `compare_evaluations` raises.
    """
    if out_dir is not None:
        check_writable(out_dir)
    evaluations = load_evaluations(folders)
    comparison = compare_evaluations(evaluations, metrics, label, allow_seen)
    if out_dir is not None:
        write_json(Path(out_dir) / "comparison.json", nan_to_none(_content(comparison, evaluations)))
    return comparison


def compare_evaluations(
    evaluations: Sequence[Evaluation],
    metrics: Sequence[str] = DEFAULT,
    label: str | None = None,
    allow_seen: bool = False,
) -> Comparison:
    """Compare evaluations of the same cases.

    The tests are those of the metrics asked for, so ask only for what is meant to decide.

    Args:
        evaluations: Two or more.
        metrics: Keys of METRICS.
        label: A class; None for the mean of a case's classes.
        allow_seen: Also cases that a model has met in its training or validation.

    Raises:
        UserError: They cannot be compared, or a metric or class is unknown.
    """
    check_comparable(evaluations, allow_seen)
    unknown = [metric for metric in metrics if metric not in METRICS]
    if unknown or not metrics:
        what = f"unknown metric {few(unknown)}" if unknown else "no metric"
        raise UserError(what, do=did_you_mean(unknown[0] if unknown else "", METRICS))
    first = evaluations[0]
    if label is not None and label not in first.classes:
        raise UserError(f"there is no class {label!r}", file=first.folder, do=did_you_mean(label, first.classes, "Classes"))
    patients = [first.patients[case] for case in first.cases]
    scores: dict[str, dict[str, np.ndarray]] = {}
    raw = []
    for metric in dict.fromkeys(metrics):
        unpaired = in_some_only(evaluations, metric)
        values = {e.name: e.without(unpaired, metric).per_case(metric, label, unsigned=True) for e in evaluations}
        count = len({case for case, name in unpaired if label in (None, name)})
        for one, other in itertools.combinations(values.items(), 2):
            raw.append(_difference(metric, one, other, patients, count))
        scores[metric] = values
    adjusted = holm([difference.p for difference in raw])
    differences = [_decided(difference, p) for difference, p in zip(raw, adjusted, strict=True)]
    return Comparison(
        [evaluation.name for evaluation in evaluations],
        label or (ALL if len(first.classes) > 1 else first.classes[0]),
        {m: {name: bootstrap_mean(v, patients) for name, v in values.items()} for m, values in scores.items()},
        {metric: _first(metric, values, patients) for metric, values in scores.items()},
        differences,
        _notes(evaluations, differences),
        all(evaluation.pictures for evaluation in evaluations),
    )


def in_some_only(evaluations: Sequence[Evaluation], metric: str) -> set[tuple[str, str]]:
    """Cases and classes that have a value in some evaluations and none in others: a false alarm where others are empty too."""
    valued = [{at for at, row in one.cells.items() if math.isfinite(row.score.values[metric])} for one in evaluations]
    return set().union(*valued) - set(valued[0]).intersection(*valued)


def check_comparable(evaluations: Sequence[Evaluation], allow_seen: bool = False) -> None:
    """Check that a comparison means something.

    Args:
        evaluations: What is to be compared.
        allow_seen: Also cases that a model is known to have met in its training or validation.

    Raises:
        UserError: There are fewer than two, or their rules, cases, masks, classes or patients are not the same, or cases
            were seen.
    """
    if len(evaluations) < 2:
        raise UserError("there is nothing to compare", do="Give at least two evaluations")
    first = evaluations[0]
    for other in evaluations[1:]:
        _check_equal("empty-mask rule", "--empty", first, other, *(one.summary["rule"]["empty"] for one in (first, other)))
        _check_equal("tolerance of NSD", "--nsd-tolerance", first, other, *(f"{one.tolerance:g} mm" for one in (first, other)))
        _check_same_names("cases", first, other, set(first.cases), set(other.cases))
        _check_same_names("classes", first, other, set(first.classes), set(other.classes))
        odd = [at[0] for at, row in first.cells.items() if _shown(row.score.truth_ml) != _shown(other.cells[at].score.truth_ml)]
        if odd:
            raise UserError(f"true volumes are not those of {first.folder}: {few(dict.fromkeys(odd))}", file=other.folder)
        if first.patients != other.patients:
            raise UserError(f"its patients are not those of {first.folder}", file=other.folder, do="Evaluate both again")
    for side in () if allow_seen else ("training", "validation"):
        for one in evaluations:
            seen = one.seen(side)
            if seen:
                what = f"its model met {len(seen)} of {pluralize(len(one.cases), 'case')} in its {side}: {few(seen)}"
                raise UserError(what, file=one.folder, do="Compare on other cases, or say --allow-seen")


def _shown(volume: float) -> str:
    """A volume as cases.csv has it."""
    return f"{volume:.6g}"


def _check_equal(what: str, option: str, first: Evaluation, other: Evaluation, one: str, another: str) -> None:
    if one != another:
        message = f"its {what} is {another}, that of {first.folder} is {one}"
        raise UserError(message, file=other.folder, do=f"Evaluate both with the same {option}")


def _check_same_names(what: str, first: Evaluation, other: Evaluation, ones: set[str], others: set[str]) -> None:
    if ones == others:
        return
    lacks = [f"it lacks {few(sorted(ones - others))}"] if ones - others else []
    more = [f"it has {few(sorted(others - ones))}"] if others - ones else []
    message = f"its {what} are not those of {first.folder}: {' and '.join(lacks + more)}"
    raise UserError(message, file=other.folder, do=f"Evaluate both on the same {what}")


def _difference(
    metric: str, first: tuple[str, np.ndarray], second: tuple[str, np.ndarray], patients: list[str], unpaired: int
) -> Difference:
    (one, ones), (other, others) = first, second
    apart = ones - others
    valued = np.isfinite(apart)
    same = valued.any() and np.abs(apart[valued]).max() < EQUAL
    return Difference(
        metric,
        one,
        other,
        int(valued.sum()),
        len({patient for patient, keep in zip(patients, valued.tolist(), strict=True) if keep}),
        *paired_difference(ones, others, patients),
        sign_flip_test(apart, patients),
        math.nan,
        cohens_d(apart, patients),
        rank_biserial(apart, patients),
        unpaired,
        "no difference" if same and not unpaired else "not told apart",
    )


def _decided(difference: Difference, adjusted: float) -> Difference:
    """With its adjusted p-value, and the better one named if that is below the level."""
    verdict = difference.verdict
    if adjusted < LEVEL:
        first = (difference.mean > 0) == (METRICS[difference.metric].best == "highest")
        verdict = difference.first if first else difference.second
    return replace(difference, adjusted=adjusted, verdict=verdict)


def _first(metric: str, values: dict[str, np.ndarray], patients: list[str]) -> dict[str, float]:
    sign = 1 if METRICS[metric].best == "highest" else -1
    shares = first_places(sign * np.stack(list(values.values())), patients)
    return dict(zip(values, shares.tolist(), strict=True))


def _notes(evaluations: Sequence[Evaluation], differences: list[Difference]) -> list[str]:
    first, tests = evaluations[0], pluralize(len(differences), "test")
    over = first.summary.get("interval", {}).get("over", "over patients")
    lines = [
        f"{pluralize(len(first.cases), 'case')}; empty masks: {first.summary['rule']['means']}.",
        f"Intervals and tests {over}.",
        f"p: sign-flip test of the mean difference; adjusted: Holm over the {tests} of this comparison.",
        f"A name stands under 'better' where the adjusted p is below {LEVEL:g}.",
        "The test knows of other patients like these; nothing of other seeds of a training.",
    ]
    missing = first.summary.get("missing", [])
    if missing:
        without = pluralize(len(missing), "labelled case without a prediction is", "labelled cases without a prediction are")
        lines.append(f"{without} in no number: {few(missing)}.")
    if len(differences) * 2.0 ** (1 - max(d.patients for d in differences)) >= LEVEL:
        lines.append(f"So few patients cannot show any difference in {tests}, however large it is.")
    left_out = max(d.unpaired for d in differences)
    if left_out:
        lines.append(
            f"Up to {pluralize(left_out, 'case')} with a class that has a value in some evaluations only (in others it is in "
            "neither mask): there it is left out of means and differences alike, so a false alarm is not counted. Evaluate "
            "with --empty one to count it."
        )
    for evaluation in evaluations:
        for side in ("training", "validation"):
            if evaluation.seen(side):
                met = pluralize(len(evaluation.seen(side)), "case was", "cases were")
                lines.append(f"{evaluation.name}: {met} in the {side} of its model.")
        if evaluation.unknown:
            unknown = pluralize(evaluation.unknown, "case")
            lines.append(f"{evaluation.name}: {unknown} may have been in the training of its model; it is unknown.")
    return lines


def _content(comparison: Comparison, evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    return {
        "evaluations": {evaluation.name: str(evaluation.folder) for evaluation in evaluations},
        "cases": evaluations[0].cases,
        "class": comparison.label,
        "rule": evaluations[0].summary["rule"],
        "nsd_tolerance_mm": evaluations[0].summary["nsd_tolerance_mm"],
        "means": {m: {name: i._asdict() for name, i in values.items()} for m, values in comparison.means.items()},
        "first_places": comparison.first,
        "differences": [asdict(difference) for difference in comparison.differences],
        "level": LEVEL,
        "correction": "Holm",
        "interval": {"confidence": CONFIDENCE, "method": METHOD, "resamples": RESAMPLES},
        "sign_flips": FLIPS,
        "seed": 0,
        "seen": {e.name: {side: e.seen(side) for side in ("training", "validation")} for e in evaluations},
        "notes": comparison.notes,
    }
