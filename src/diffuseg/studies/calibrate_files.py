"""What calibration found, as tables for a terminal, calibration.json and two pictures."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from diffuseg.atomic_io import atomic_write, nan_to_none, write_json
from diffuseg.evaluation.calibration_metrics import MEASURES
from diffuseg.evaluation.selective import REJECTION, risk_coverage
from diffuseg.evaluation.statistics import CONFIDENCE, Interval
from diffuseg.reports.figures import png_of
from diffuseg.reports.plots import reliability_plot, risk_coverage_plot
from diffuseg.reports.tables import text_table
from diffuseg.studies.calibrate import ALPHA, FRACTION, Measured


def write_calibration(measured: Measured, model: str, out: Path) -> list[Path]:
    """Write calibration.json, reliability.png and risk_coverage.png into a folder; returns their paths."""
    paths = [Path(out) / name for name in ("calibration.json", "reliability.png", "risk_coverage.png")]
    write_json(paths[0], nan_to_none(_content(measured, model)))
    atomic_write(paths[1], png_of(reliability_plot(measured.diagrams, measured.pictures)))
    atomic_write(paths[2], png_of(risk_coverage_plot({"by uncertainty score": _risk_and_uncertainty(measured)}, FRACTION)))
    return paths


def tables(measured: Measured) -> list[Table]:
    """The numbers for a terminal: calibration before and after, then intervals and rejection."""
    return [_score_table(measured), _interval_table(measured)]


def _score_table(measured: Measured) -> Table:
    learnt = measured.calibration
    rows = [
        (
            f"{MEASURES[name]}, {region}",
            f"{values['before'].mean:.4f}",
            f"{values['after'].mean:.4f}",
            values["difference"].text(4, "+"),
        )
        for region, by_measure in measured.scores.items()
        for name, values in by_measure.items()
    ]
    notes = [f"{learnt.where}. {measured.how['temperature'].capitalize()}."]
    return text_table(f"Temperature {learnt.temperature:.3f}", ("", "before", "after", "difference [95 %]"), rows, notes)


def _interval_table(measured: Measured) -> Table:
    learnt, rows = measured.calibration, []
    for name, sides in measured.coverage.items():
        for side in ("raw", "widened"):
            share, n = Interval(**sides[side]["fraction"]), sides[side]["cases"]
            value = f"{share.text(2)} of {n}, mean width {_size(sides[side]['mean_width_ml'], measured.pictures)}"
            size, kind = "area" if measured.pictures else "volume", {"widened": "calibrated"}.get(side, side)
            rows.append((f"{name}: {size} in the {kind} {1 - ALPHA:.0%} interval", value))
    rows += [(title.format(learnt.fraction), measured.selective[name].text(4)) for name, title in REJECTION.items()]
    review = f"uncertainty score above which a case needs review (at most {learnt.fraction:.0%} do)"
    rows.append((review, f"{learnt.threshold:.4f}"))
    notes = [f"Intervals: {measured.how['intervals']}."]
    if learnt.weighted_for:
        notes.append(
            f"What is stored is weighted for {learnt.weighted_for}. The intervals above count all cases alike, as do "
            "temperature and threshold; for images like the cases, calibrate without --like."
        )
    lacking = [name for name in measured.coverage if name not in learnt.widening]
    if lacking:
        needed = math.ceil(1 / ALPHA - 1)
        notes.append(f"Too few cases to calibrate the intervals of {', '.join(lacking)}: {needed} are needed.")
    return text_table("Intervals and rejection", ("", "[95 %]"), rows, notes, right=False)


def _risk_and_uncertainty(measured: Measured) -> tuple[np.ndarray, np.ndarray]:
    rows = list(measured.per_case.values())
    return np.array([row["risk"] for row in rows]), np.array([row["uncertainty_score"] for row in rows])


def _content(measured: Measured, model: str) -> dict[str, Any]:
    curve = risk_coverage(*_risk_and_uncertainty(measured))
    plain = lambda values: {name: value._asdict() for name, value in values.items()}
    return {
        "model": model,
        "learnt": asdict(measured.calibration),
        "how": measured.how,
        "confidence": CONFIDENCE,
        "scores": {region: {name: plain(v) for name, v in values.items()} for region, values in measured.scores.items()},
        "coverage": measured.coverage,
        "selective": plain(measured.selective) | {"fraction": FRACTION},
        "reliability": {
            side: {name: values.tolist() for name, values in diagram._asdict().items()}
            for side, diagram in measured.diagrams.items()
        },
        "risk_coverage": {name: values.tolist() for name, values in curve._asdict().items()},
        "cases": measured.per_case,
    }


def _size(width: float, pictures: bool) -> str:
    if not math.isfinite(width):
        return "infinite (too few cases to calibrate on)"
    return f"{1000 * width:.0f} pixels" if pictures else f"{width:.3f} ml"
