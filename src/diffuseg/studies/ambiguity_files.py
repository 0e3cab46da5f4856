"""What was measured against raters, as a table for a terminal, cases.csv and summary.json."""

import math
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from diffuseg.atomic_io import nan_to_none, write_csv, write_json
from diffuseg.evaluation.statistics import Interval
from diffuseg.studies.ambiguity import SOURCES, Ambiguity, MultiRaterScores
from diffuseg.text import pluralize

TITLES = {"hm_iou": "HM-IoU", "maximum_dice": "max. Dice", "ci": "CI", "soft_dice": "soft Dice"}


def write_ambiguity(measured: Ambiguity, out: Path) -> list[Path]:
    """Write cases.csv (a row per case) and summary.json (means with intervals, rules, models) into a folder."""
    rows = [_row(case) for case in measured.cases]
    paths = [Path(out) / "cases.csv", Path(out) / "summary.json"]
    write_csv(paths[0], rows)
    write_json(paths[1], nan_to_none(measured.summary))
    return paths


def tables(measured: Ambiguity) -> list[Table]:
    """Means with intervals: each source of masks against all raters, and below it everything else."""
    summary = measured.summary
    number = f"{pluralize(summary['cases'], 'case')}, {pluralize(summary['draws'], 'draw')}"
    title = f"Against all raters: mean [95 % interval], {number}"
    shown = Table("measure", *(_name(source, summary) for source in SOURCES), title=title.replace("[", "\\["))
    for key in summary["ambiguity"]["draws"]:
        measure = TITLES.get(key) or f"GED, {pluralize(int(key.removeprefix('ged_')), 'draw')}"
        shown.add_row(measure, *(_cell(summary["ambiguity"][source][key]) for source in SOURCES))
    empty, over = summary["empty"], summary["interval"]["over"]
    none = pluralize(empty["no rater"], "case")
    lines = [
        "GED: lower is better, 0 best. All others: higher is better, 1 best.",
        f"{summary['rule']}.",
        f"Empty masks: of no rater in {none}, some in {empty['some raters']}, all in {empty['all raters']}.",
        f"95 % intervals over {pluralize(summary['patients'], 'patient')}: {over}.",
    ]
    shown.caption, shown.caption_justify = "\n".join(lines), "left"
    rest = Table("measure", "mean", title="Against one rater, and of the mean probability")
    for who, name in (("draws", "draws against one rater"), ("raters", "other raters against one rater")):
        single = summary["single"][who]
        rest.add_row(f"{name}: GED, as many of both", _cell(single["ged"]))
        rest.add_row(f"{name}: mean IoU", _cell(single["iou"]))
    names = {
        "dice": "Dice with the majority",
        "dice_fused": "the same of --fuse dice",
        "ece": "ECE, whole image",
        "ece_band": "ECE near the borders",
        "uncertainty_score": "uncertainty score",
    }
    for key, name in names.items():
        rest.add_row(name, _cell(summary["mean"][key]))
    for key, name in (("aurc", "AURC of 1 - Dice by uncertainty score"), ("excess_aurc", "excess AURC")):
        rest.add_row(name, _cell(summary["selective"][key]))
    return [shown, rest]


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
    return escape(Interval.of(entry).text(3))
