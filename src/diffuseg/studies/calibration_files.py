"""What a calibration found, for people and programs: two tables in the terminal, calibration.json, two plots."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from diffuseg.atomic_io import atomic_write, nan_to_none, write_json
from diffuseg.evaluation.calibration_metrics import MEASURES
from diffuseg.evaluation.selective import REJECTION, risk_coverage
from diffuseg.evaluation.statistics import CONFIDENCE, Interval
from diffuseg.inference.calibration import calibration_header
from diffuseg.reports.figures import png_of
from diffuseg.reports.plots import reliability_plot, risk_coverage_plot
from diffuseg.studies.calibrate import ALPHA, FRACTION, Measured


def write_calibration(found: Measured, model: str, out: Path) -> list[Path]:
    """Write calibration.json, reliability.png and risk_coverage.png into a folder; returns their paths."""
    paths = [Path(out) / name for name in ("calibration.json", "reliability.png", "risk_coverage.png")]
    write_json(paths[0], nan_to_none(_content(found, model)))
    atomic_write(paths[1], png_of(reliability_plot(found.diagrams)))
    atomic_write(paths[2], png_of(risk_coverage_plot({"by doubt": _risk_and_doubt(found)}, FRACTION)))
    return paths


def tables(found: Measured) -> list[Table]:
    """The numbers for a terminal: calibration before and after, then intervals and rejection."""
    learnt = found.calibration
    scores = Table("", *map(escape, ("before", "after", "difference [95 %]")), title=f"Temperature {learnt.temperature:.3f}")
    for region, measures in found.scores.items():
        for name, values in measures.items():
            cells = [f"{values[side].mean:.4f}" for side in ("before", "after")]
            scores.add_row(f"{MEASURES[name]}, {region}", *cells, escape(values["difference"].text(4, "+")))
    scores.caption, scores.caption_justify = escape(f"{learnt.where}. {found.how['temperature'].capitalize()}."), "left"
    rest = Table("", escape("[95 %]"), title="Intervals and rejection")
    for name, sides in found.coverage.items():
        for side in ("raw", "widened"):
            share, n = Interval(**sides[side]["fraction"]), sides[side]["cases"]
            value = f"{share.text(2)} of {n}, mean width {_ml(sides[side]['mean_width_ml'])}"
            rest.add_row(escape(f"{name}: volume in the {side} {1 - ALPHA:.0%} interval"), escape(value))
    for name, title in REJECTION.items():
        rest.add_row(title.format(learnt.fraction), escape(found.selective[name].text(4)))
    rest.add_row(f"doubt above which a case is to be looked at (at most {learnt.fraction:.0%} are)", f"{learnt.threshold:.4f}")
    lacking = [name for name in found.coverage if name not in learnt.widening]
    notes = [f"Intervals: {found.how['intervals']}."]
    if lacking:
        notes.append(f"Too few cases to widen the intervals of {', '.join(lacking)}: {math.ceil(1 / ALPHA - 1)} are needed.")
    rest.caption, rest.caption_justify = escape("\n".join(notes)), "left"
    return [scores, rest]


def _risk_and_doubt(found: Measured) -> tuple[np.ndarray, np.ndarray]:
    rows = list(found.per_case.values())
    return np.array([row["risk"] for row in rows]), np.array([row["doubt"] for row in rows])


def _content(found: Measured, model: str) -> dict[str, Any]:
    curve = risk_coverage(*_risk_and_doubt(found))
    plain = lambda values: {name: value._asdict() for name, value in values.items()}
    return {
        "model": model,
        "learnt": calibration_header(found.calibration),
        "how": found.how,
        "confidence": CONFIDENCE,
        "scores": {region: {name: plain(v) for name, v in values.items()} for region, values in found.scores.items()},
        "coverage": found.coverage,
        "selective": plain(found.selective) | {"fraction": FRACTION},
        "reliability": {
            side: {name: values.tolist() for name, values in diagram._asdict().items()}
            for side, diagram in found.diagrams.items()
        },
        "risk_coverage": {name: values.tolist() for name, values in curve._asdict().items()},
        "cases": found.per_case,
    }


def _ml(width: float) -> str:
    return f"{width:.3f} ml" if math.isfinite(width) else "infinite (too few cases to calibrate on)"
