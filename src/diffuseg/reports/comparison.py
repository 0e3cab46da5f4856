"""Two or more evaluations of the same cases: which differences are more than chance, and how large they are.

For each metric and pair: the mean difference with its bootstrap interval, a sign-flip test over patients, Holm's correction
over all metrics and pairs at once, effect sizes. For each metric: how often each evaluation is first if patients are drawn
anew. docs/evaluation.md says what each number is for.
"""

import itertools
import math
import string
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from diffuseg.atomic_io import check_writable, nan_to_none, write_json
from diffuseg.data.layout import ellipsize
from diffuseg.errors import UserError
from diffuseg.evaluation.metrics import METRICS
from diffuseg.evaluation.significance import FLIPS, cohens_d, first_places, holm, rank_biserial, sign_flip_test
from diffuseg.evaluation.statistics import CONFIDENCE, EQUAL, METHOD, RESAMPLES, Interval, bootstrap_mean, paired_difference
from diffuseg.reports.summary import ALL
from diffuseg.reports.written import Written, in_some_only, read_evaluations, refuse_unlike
from diffuseg.text import pluralize

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
    """

    names: list[str]
    label: str
    means: dict[str, dict[str, Interval]]
    first: dict[str, dict[str, float]]
    differences: list[Difference]
    notes: list[str]


def compare(
    folders: Sequence[Path | str],
    out_dir: Path | str | None = None,
    metrics: Sequence[str] = DEFAULT,
    label: str | None = None,
    allow_seen: bool = False,
    seed: int = 0,
) -> Comparison:
    """Compare evaluations that `diffuseg evaluate` wrote; writes comparison.json to `out_dir`, if there is one.

    Of one class (`label`) or of the mean of a case's classes. The tests are those of the metrics asked for, so ask only for
    what is meant to decide. Refuses what `read_evaluations` and `refuse_unlike` do, unknown metrics and classes, and none.
    """
    if out_dir is not None:
        check_writable(out_dir)
    evaluations = read_evaluations([Path(folder) for folder in folders])
    refuse_unlike(evaluations, allow_seen)
    unknown = [metric for metric in metrics if metric not in METRICS]
    if unknown or not metrics:
        raise UserError(
            f"{'unknown metric ' + ellipsize(unknown) if unknown else 'no metric'}", do=f"Known: {', '.join(METRICS)}"
        )
    metrics = list(dict.fromkeys(metrics))
    classes = evaluations[0].classes
    if label is not None and label not in classes:
        raise UserError(f"there is no class {label!r}", file=evaluations[0].folder, do=f"Classes: {', '.join(classes)}")
    patients = [evaluations[0].patients[case] for case in evaluations[0].cases]
    odd = {metric: in_some_only(evaluations, metric) for metric in metrics}
    scores = {m: {e.name: e.without(odd[m], m).per_case(m, label) for e in evaluations} for m in metrics}
    left_out = {metric: len({case for case, name in odd[metric] if label in (None, name)}) for metric in metrics}
    raw = [
        _difference(metric, (one, ones), (other, others), patients, left_out[metric], seed)
        for metric, values in scores.items()
        for (one, ones), (other, others) in itertools.combinations(values.items(), 2)
    ]
    differences = [_decided(d, adjusted) for d, adjusted in zip(raw, holm([d.p for d in raw]), strict=True)]
    found = Comparison(
        [evaluation.name for evaluation in evaluations],
        label or (ALL if len(classes) > 1 else classes[0]),
        {m: {name: bootstrap_mean(v, patients) for name, v in values.items()} for m, values in scores.items()},
        {metric: _first(metric, values, patients, seed) for metric, values in scores.items()},
        differences,
        _notes(evaluations, differences),
    )
    if out_dir is not None:
        write_json(Path(out_dir) / "comparison.json", nan_to_none(_content(found, evaluations, seed)))
    return found


def mean_rows(found: Comparison) -> list[tuple[str, ...]]:
    """As text, first the heading: metric, evaluation, mean with interval, how often it is first."""
    rows = [("metric", "evaluation", "mean [95 % interval]", "first")]
    for metric, values in found.means.items():
        for name, interval in values.items():
            place = found.first[metric][name]
            often = "-" if math.isnan(place) else f"{place:.0%}"
            rows.append((title(metric), name, interval.text(METRICS[metric].digits), often))
    return rows


def difference_rows(found: Comparison) -> list[tuple[str, ...]]:
    """As text, first the heading: metric, pair, mean with interval, p-values, sizes of effects, number of cases, the better."""
    rows = [("metric", "difference", "mean [95 % interval]", "p", "adjusted p", "d", "rank-biserial", "n", "better")]
    for d in found.differences:
        numbers = (Interval(d.mean, d.low, d.high).text(METRICS[d.metric].digits), _p(d.p), _p(d.adjusted))
        effects = (f"{d.cohens_d:.2f}", f"{d.rank_biserial:.2f}")
        rows.append((title(d.metric), f"{d.first} - {d.second}", *numbers, *effects, str(d.n), d.verdict))
    return rows


def letter(number: int) -> str:
    """What stands for an evaluation beside others, whose names may be long: A, B, and so on."""
    return string.ascii_uppercase[number] if number < 26 else f"#{number + 1}"


def lettered(found: Comparison) -> list[tuple[str, ...]]:
    """The `difference_rows` with letters in place of names."""
    letters = _letters(found)
    head, *rows = difference_rows(found)
    pairs = [f"{letters[d.first]} - {letters[d.second]}" for d in found.differences]
    return [head, *((row[0], pair, *row[2:-1], letters.get(row[-1], row[-1])) for row, pair in zip(rows, pairs, strict=True))]


def tables(found: Comparison) -> list[Table]:
    """The comparison for a terminal of 80 columns: means and first places, then differences by metric, the notes below."""
    letters = _letters(found)
    means = _table(found.label, ("metric", "", "mean [95 % interval]", "first"))
    for metric, name, *cells in mean_rows(found)[1:]:
        means.add_row(*map(escape, (metric, letters[name], *cells)))
    shown, rows = [means], lettered(found)[1:]
    for metric in found.means:
        chosen = [(d, row) for d, row in zip(found.differences, rows, strict=True) if d.metric == metric]
        head = f"{title(metric)}: differences of {pluralize(chosen[0][0].n, 'case')}"  # equal for all pairs
        shown.append(_table(head, ("pair", "mean [95 % interval]", "p", "adjusted p", "better")))
        for _, (_, pair, mean, p, adjusted, *_, better) in chosen:
            shown[-1].add_row(*map(escape, (pair, mean, p, adjusted, better)))
    means.caption = escape("\n".join(f"{letter}: {name}" for name, letter in letters.items()))
    shown[-1].caption = escape("\n".join([*found.notes, "Sizes of effects (d, rank-biserial) are in comparison.json: --out."]))
    return shown


def _table(title: str, columns: tuple[str, ...]) -> Table:
    return Table(*map(escape, columns), title=escape(title), caption_justify="left")


def _letters(found: Comparison) -> dict[str, str]:
    return {name: letter(number) for number, name in enumerate(found.names)}


def title(metric: str) -> str:
    """A metric's name with its unit; errors are compared without their sign."""
    found = METRICS[metric]
    unsigned = "absolute " if found.best == "zero" else ""
    return f"{unsigned}{found.title}{f' ({found.unit})' if found.unit else ''}"


def _difference(
    metric: str, first: tuple[str, np.ndarray], second: tuple[str, np.ndarray], patients: list[str], unpaired: int, seed: int
) -> Difference:
    (one, ones), (other, others) = first, second
    apart = ones - others
    there = np.isfinite(apart)
    interval = paired_difference(ones, others, patients, seed=seed)
    same = there.any() and np.abs(apart[there]).max() < EQUAL
    return Difference(
        metric,
        one,
        other,
        int(there.sum()),
        len({patient for patient, keep in zip(patients, there.tolist(), strict=True) if keep}),
        *interval,
        sign_flip_test(apart, patients, seed=seed),
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


def _first(metric: str, values: dict[str, np.ndarray], patients: list[str], seed: int) -> dict[str, float]:
    sign = 1 if METRICS[metric].best == "highest" else -1
    shares = first_places(sign * np.stack(list(values.values())), patients, seed=seed)
    return dict(zip(values, shares.tolist(), strict=True))


def _notes(evaluations: list[Written], differences: list[Difference]) -> list[str]:
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
        lines.append(f"{without} in no number: {ellipsize(missing)}.")
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


def _content(found: Comparison, evaluations: list[Written], seed: int) -> dict[str, Any]:
    return {
        "evaluations": {evaluation.name: str(evaluation.folder) for evaluation in evaluations},
        "cases": evaluations[0].cases,
        "class": found.label,
        "rule": evaluations[0].summary["rule"],
        "nsd_tolerance_mm": evaluations[0].summary["nsd_tolerance_mm"],
        "means": {m: {name: i._asdict() for name, i in values.items()} for m, values in found.means.items()},
        "first_places": found.first,
        "differences": [asdict(difference) for difference in found.differences],
        "level": LEVEL,
        "correction": "Holm",
        "interval": {"confidence": CONFIDENCE, "method": METHOD, "resamples": RESAMPLES},
        "sign_flips": FLIPS,
        "seed": seed,
        "seen": {e.name: {side: e.seen(side) for side in ("training", "validation")} for e in evaluations},
        "notes": found.notes,
    }


def _p(value: float) -> str:
    return "-" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"
