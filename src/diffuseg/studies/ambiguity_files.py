"""What was measured against raters, as a table for a terminal, cases.csv and summary.json."""

import math
from pathlib import Path
from typing import Any

from rich.table import Table

from diffuseg.atomic_io import nan_to_none, write_csv, write_json
from diffuseg.evaluation.statistics import Interval
from diffuseg.reports.tables import text_table
from diffuseg.studies.ambiguity import SOURCES, Ambiguity, MultiRaterScores
from diffuseg.text import pluralize

TITLES = {
    "hm_iou": "HM-IoU",
    "maximum_dice": "max. Dice",
    "ci": "CI",
    "dice_draw_rater": "Dice, draw and rater",
    "dice_draw_draw": "Dice, two draws",
    "dice_gap": "difference of these two",
    "soft_dice": "soft Dice",
}
MEAN_TITLES = {
    "dice": "Dice with the majority",
    "dice_fused": "the same of --fuse dice",
    "ece": "ECE, whole image",
    "ece_band": "ECE near the borders",
    "ece_band_by_chance": "the same, by chance alone",
    "uncertainty_score": "uncertainty score",
}


def write_ambiguity(measured: Ambiguity, out: Path) -> list[Path]:
    """Write cases.csv (a row per case) and summary.json (means with intervals, rules, models) into a folder."""
    rows = [_row(case) for case in measured.cases]
    paths = [Path(out) / "cases.csv", Path(out) / "summary.json"]
    write_csv(paths[0], rows)
    write_json(paths[1], nan_to_none(measured.summary))
    return paths


def tables(measured: Ambiguity) -> list[Table]:
    """Means with intervals: each source of masks against all raters, and below it everything else."""
    return [_source_table(measured.summary), _mean_table(measured.summary)]


def _source_table(summary: dict[str, Any]) -> Table:
    """Each source of masks against all raters."""
    number = f"{pluralize(summary['cases'], 'case')}, {pluralize(summary['draws'], 'draw')}"
    measures = summary["ambiguity"]
    rows = [(_title(key), *(_cell(measures[source][key]) for source in SOURCES)) for key in measures["draws"]]
    empty, none = summary["empty"], pluralize(summary["empty"]["no rater"], "case")
    notes = [
        "GED: lower is better, 0 best. Difference: 0 best; below 0 draws differ less than they err.",
        "HM-IoU, max. Dice, CI and soft Dice: higher is better, 1 best.",
        f"{summary['rule']}.",
        f"Empty masks: of no rater in {none}, some in {empty['some raters']}, all in {empty['all raters']}.",
        f"95 % intervals over {pluralize(summary['patients'], 'patient')}: {summary['interval']['over']}.",
    ]
    head = ("measure", *(_name(source, summary) for source in SOURCES))
    return text_table(f"Against all raters: mean [95 % interval], {number}", head, rows, notes, right=False)


def _mean_table(summary: dict[str, Any]) -> Table:
    """Draws against single raters, the mean probability, and how well uncertainty finds the bad cases."""
    rows = []
    for who, name in (("draws", "draws against one rater"), ("raters", "other raters against one rater")):
        rows.append((f"{name}: GED, as many of both", _cell(summary["single"][who]["ged"])))
        rows.append((f"{name}: mean IoU", _cell(summary["single"][who]["iou"])))
    rows += [(name, _cell(summary["mean"][key])) for key, name in MEAN_TITLES.items()]
    for key, name in (("aurc", "AURC of 1 - Dice by uncertainty score"), ("excess_aurc", "excess AURC")):
        rows.append((name, _cell(summary["selective"][key])))
    return text_table("Against one rater, and of the mean probability", ("measure", "mean"), rows, right=False)


def _title(key: str) -> str:
    """Of a measure; one that has no title of its own stands under its name."""
    if key.startswith("ged_"):
        return f"GED, {pluralize(int(key.removeprefix('ged_')), 'draw')}"
    return TITLES.get(key, key.replace("_", " "))


def _name(source: str, summary: dict[str, Any]) -> str:
    models = summary["models"]
    if source != "draws":
        return source
    if len(models) > 1:
        return f"ensemble of {len(models)}"
    return "draws" if models[0]["generative"] else "one mask, copied"


def _row(case: MultiRaterScores) -> dict[str, Any]:
    row: dict[str, Any] = {"case": case.case, "patient": case.patient, "raters": case.raters[0], "empty": case.raters[1]}
    row |= case.mean
    for block in (case.sources, {f"single {who}": values for who, values in case.single.items()}):
        row |= {f"{name.replace(' ', '_')}_{key}": value for name, values in block.items() for key, value in values.items()}
    return {key: _text(value) for key, value in row.items()}


def _text(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return "" if math.isnan(value) else f"{value:.6g}"


def _cell(entry: dict[str, Any]) -> str:
    return Interval.of(entry).text(3)
