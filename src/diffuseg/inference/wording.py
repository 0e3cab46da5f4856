"""What <case>.json says of a prediction, in the words and units of a person: sizes, intervals, why it needs review."""

from collections.abc import Sequence
from typing import Any

from diffuseg.data.pictures import LOSSLESS, LOSSY
from diffuseg.inference.calibration import CALIBRATED, is_raw
from diffuseg.inference.provenance import THICKNESS

POINTS = 4  # in which an image is unlike those of the training, told at once


def amounts(record: dict[str, Any]) -> list[str]:
    """The foreground classes of a record as text: "head 1.21 ml [1.10, 1.32]"; of pictures in mm2, or pixels without a scale.

    The interval is left out where a single draw makes it a point, and called raw where it is not calibrated.
    """
    ends = record.get("volume_ml_90", {})
    scale, unit = size_unit(record)
    style = ".3g" if has_digits(record) else ".0f"
    found = []
    for name, ml in record["volume_ml"].items():
        low, high = (f"{scale * end:{style}}" for end in ends.get(name, (ml, ml)))
        size = f"{scale * ml:{style}}"
        spread = f" [{low}, {high}]{' raw' if is_raw(record, name) else ''}" if has_interval(record, name) else ""
        found.append(f"{name} {size} {unit}{spread}")
    return found


def has_digits(record: dict[str, Any]) -> bool:
    """Whether sizes are told with digits behind the point: those of volumes, and areas of whole slides, which may be small."""
    unit = size_unit(record)[1]
    return unit == "ml" or (unit == "mm2" and "slide" in record)


def has_interval(record: dict[str, Any], name: str) -> bool:
    """Whether a class has an interval that says anything: of a single draw it is a point, unless it is calibrated."""
    return record.get("draws") != 1 or not is_raw(record, name)


def size_unit(record: dict[str, Any]) -> tuple[float, str]:
    """By what a volume in ml is to be multiplied, and the unit that a person expects: ml, of pictures pixels or mm2."""
    if len((record.get("grid") or {}).get("shape", ())) != 2:
        return 1.0, "ml"
    slide = record.get("slide")
    if isinstance(slide, dict):
        return 1000.0, "mm2" if slide.get("um_per_pixel") else "pixels"
    source, steps = str(record.get("source") or "").lower(), set(record["grid"].get("spacing_mm", ()))
    pixels = source.endswith(LOSSLESS + LOSSY) or (not source and steps == {1.0})  # of an array that came without a scale
    return 1000.0, "pixels" if pixels else "mm2"  # a picture is taken for 1 mm thick, its pixels for 1 mm wide


def interval_note(record: dict[str, Any]) -> str:
    """What the intervals of a record are, and why some are raw, without names of its keys; of pictures, areas."""
    note = str(record.get("volume_note") or "")
    before, calibrated, how = note.partition(CALIBRATED)
    if calibrated:
        note = f"calibrated on {how}; before that, {before}"
    classes = record.get("volume_ml") or {}
    if "; raw:" not in note and any(has_interval(record, name) and is_raw(record, name) for name in classes):
        note += f"; raw: not calibrated, as {_why_raw(record.get('calibration') or {})}"
    return note if size_unit(record)[1] == "ml" else note.replace(THICKNESS, "").replace("the volumes of", "the areas of")


def _why_raw(calibration: dict[str, Any]) -> str:
    """Why a calibration, as a record has it, gave no interval of some class."""
    if calibration.get("applied"):
        return "there were too few cases to learn from"
    reason = calibration.get("reason")
    return f"that was {reason}" if reason else "the model is not"


def unlike_text(faults: Sequence[str], where: str) -> str:
    """In what an image is unlike those of the training: a few points, sizes before intensities, and where the others are.

    Args:
        faults: Of the image, as its record has them.
        where: All of them can be read.
    """
    ranked = sorted(faults, key=lambda fault: ("percentile" in fault) + fault.startswith("position of"))
    left = len(ranked) - POINTS
    return "; ".join([*ranked[:POINTS], *([f"and {left} more in {where}"] if left > 0 else [])])


def review_reason(record: dict[str, Any]) -> str:
    """Why a case needs review by a person, as text; "" where it does not, or where the record does not say why.

    `doubt` and `look_at_threshold` are what `uncertainty_score` and `review_threshold` were called.
    """
    if not needs_review(record):
        return ""
    score = record.get("uncertainty_score", record.get("doubt"))
    limit = record.get("review_threshold", record.get("look_at_threshold"))
    unlike = ["it is unlike the images of the training"] if record.get("outside_training") else []
    if score is None or (unlike and (limit is None or score <= limit)):
        return "".join(unlike)
    above = "" if limit is None else f", review begins above {limit:.3f}"
    return ", and ".join([*unlike, f"its draws expect a Dice of {1 - score:.3f} (uncertainty score {score:.3f}{above})"])


def needs_review(record: dict[str, Any]) -> bool | None:
    """Whether a person is to look at a case; None where that was not asked. `look_at` is what this was called."""
    said = record.get("needs_review", record.get("look_at"))
    return None if said is None else bool(said)
