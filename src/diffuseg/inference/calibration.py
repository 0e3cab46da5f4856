"""What `diffuseg calibrate` learnt about a model: kept in its checkpoint, used by predict where the settings are the same."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from diffuseg import scratch
from diffuseg.blocks import blocks
from diffuseg.config import from_dict
from diffuseg.errors import UserError
from diffuseg.evaluation.calibration_metrics import apply_temperature
from diffuseg.evaluation.conformal import ConformalMargin
from diffuseg.evaluation.level_sets import LevelMargin
from diffuseg.text import pluralize

SETTINGS = ("draws", "steps", "sampler", "fuse")  # what probabilities and intervals depend on; any seed will do
CALIBRATED = " (volume_ml_90_raw); volume_ml_90 is calibrated on "  # in the note of a record


@dataclass(frozen=True)
class Calibration:
    """A temperature, a 90 % interval per class, a threshold, and what they were learnt from.

    temperature  of the mean probability of the draws
    widening     class -> its 90 % volume interval: a `LevelMargin`, or, of earlier versions, the `ConformalMargin` by which
                 that of the draws is widened; classes with too few cases are not in it
    threshold    the uncertainty score above which a case needs review; at most `fraction` of the calibration cases do
    settings     draws, steps, sampler and fuse that it was learnt with: with others it says nothing
    dataset, fold, cases, patients   validation cases that it was learnt from, and how many patients they are of
    weighted_for   the images that the intervals are for, where cases like these counted more; "": images like the cases
    """

    temperature: float
    widening: dict[str, dict[str, Any]]
    threshold: float
    fraction: float
    settings: dict[str, Any]
    dataset: str
    fold: int
    cases: int
    patients: int
    weighted_for: str = ""

    @property
    def id(self) -> str:
        """What tells it from other calibrations of the same weights: whatever of it changes a prediction."""
        return digest_of([self.temperature, self.widening, self.threshold])

    @property
    def where(self) -> str:
        """What it was learnt from, as text."""
        patients = "" if self.patients == self.cases else f" of {pluralize(self.patients, 'patient')}"
        like = f"; intervals weighted for {self.weighted_for}" if self.weighted_for else ""
        return f"{pluralize(self.cases, 'validation case')}{patients} (fold {self.fold} of {self.dataset}{like})"

    def mismatch(self, settings: dict[str, Any]) -> str:
        """Which of the settings of a prediction are not those it was learnt with; "" if it fits."""
        return settings_mismatch(self.settings, settings)

    def announce(self, settings: dict[str, Any]) -> str:
        """One line: what is applied to predictions with these settings, or why nothing is."""
        mismatch = self.mismatch(settings)
        if mismatch:
            return f"calibration not applied: learnt with {mismatch}; ask for the same, or calibrate your own model again"
        which = f"of {', '.join(self.widening)} adjusted" if self.widening else "raw (too few cases to adjust them)"
        few = f"at most {self.fraction:.0%} of those cases were"
        look = f"a case is marked for review by a person where its draws expect a Dice below {1 - self.threshold:.3f} ({few})"
        return f"calibrated on {self.where}: temperature {self.temperature:.3f}, intervals {which}, {look}"

    def temper(self, probability: Float[np.ndarray, "k *s"]) -> Float[np.ndarray, "k *s"]:
        """Probabilities with this temperature, in single precision; the largest of a voxel stays the largest."""
        found = scratch.zeros(probability.shape)
        for part in blocks(probability.shape[1:]):
            found[:, part] = apply_temperature(probability[:, part], self.temperature)
        return found

    def widen(
        self, intervals: dict[str, list[float]], probability: Float[np.ndarray, "k *s"], voxel: float
    ) -> dict[str, list[float]]:
        """Intervals [low, high] in ml by class as calibration cases ask for; those of classes that are not known are left.

        Args:
            intervals: Those of the draws, in the order of the classes.
            probability: Of the classes, background first, without this temperature.
            voxel: Volume of a voxel in ml.
        """
        return {
            name: self._adjusted(name, ends, probability, k, voxel) for k, (name, ends) in enumerate(intervals.items(), start=1)
        }

    def _adjusted(self, name: str, ends: list[float], probability: np.ndarray, label: int, voxel: float) -> list[float]:
        learnt = self.widening.get(name)
        if learnt is None:
            return ends
        return [round(end, 6) for end in margin_of(learnt).interval(probability, label, voxel, ends)]


def margin_of(learnt: dict[str, Any], where: str = "") -> LevelMargin | ConformalMargin:
    """What a checkpoint keeps of the interval of one class, by the name of its constant.

    Args:
        learnt: As it is kept.
        where: It is kept, for messages.

    Raises:
        UserError: It is neither.
    """
    return from_dict(LevelMargin if "shift" in learnt else ConformalMargin, learnt, where)


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Names of the settings of a draw that are not the same in both."""
    return [key for key in SETTINGS if one.get(key) != other[key]]


def settings_mismatch(learnt: dict[str, Any], settings: dict[str, Any]) -> str:
    """Which of the settings of a prediction are not those that something was learnt with; "" where all are."""
    found = [f"{key} {learnt.get(key)}, now {settings[key]}" for key in differing(learnt, settings)]
    return "; ".join([*found, *(["images as they are, now mirrored too"] if settings["options"].get("mirror") else [])])


def read_calibration(meta: dict[str, Any]) -> Calibration | None:
    """The calibration in a checkpoint's header, if there is one.

    Raises:
        UserError: Another version wrote it otherwise, or a number in it is none.
    """
    header = meta.get("calibration")
    if header is None:
        return None
    found = from_dict(Calibration, header, "calibration.")
    for name, learnt in found.widening.items():
        if not margin_of(learnt, f"calibration.widening.{name}.").finite:
            raise UserError(f"calibration.widening.{name}: its constant is not finite", do="Calibrate the model anew")
    return found


def digest_of(content: Any) -> str:
    """First 12 hexadecimal digits of the SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def calibration_of(record: dict[str, Any]) -> str | None:
    """The `id` of the calibration that was applied to a prediction; records of earlier versions say what it held instead."""
    applied = record.get("calibration") or {}
    if not applied.get("applied"):
        return None
    threshold = record.get("review_threshold", record.get("look_at_threshold"))
    return applied.get("id") or digest_of([applied.get("temperature"), applied.get("widening"), threshold])


def is_raw(record: dict[str, Any], name: str) -> bool:
    """Whether the interval of a class in a record is that of the draws, which promises nothing: it is not calibrated."""
    applied = record.get("calibration") or {}
    return not applied.get("applied") or name not in applied.get("widening", {})


def apply_calibration(
    calibration: Calibration, probability: Float[np.ndarray, "k *s"], record: dict[str, Any], voxel: float
) -> Float[np.ndarray, "k *s"]:
    """Tempered probabilities; the record of a prediction gets adjusted intervals and says whether it needs review.

    With other settings than those it was learnt with, probabilities stay and the record says why.

    Args:
        calibration: Of the model.
        probability: Of the classes, [k, *s].
        record: Is changed in its place.
        voxel: Volume of a voxel in ml.
    """
    mismatch = calibration.mismatch(record)
    record |= calibration_record(calibration, record["uncertainty_score"], mismatch)
    if mismatch:
        return probability
    if calibration.widening:
        raw, names = record["volume_ml_90"], ", ".join(calibration.widening)
        record["volume_ml_90"], record["volume_ml_90_raw"] = calibration.widen(raw, probability, voxel), raw
        record["volume_note"] += f"{CALIBRATED}{calibration.where} ({names})"
    return calibration.temper(probability)


def contain(record: dict[str, Any], image_ml: float) -> None:
    """Make each interval of a record hold the volume of its mask, and nothing that is larger than the image.

    Args:
        record: Of a prediction; is changed in its place.
        image_ml: Volume of the image.
    """
    found = record["volume_ml_90"].items()
    volume = {name: record["volume_ml"][name] for name, _ in found}
    record["volume_ml_90"] = {
        name: [min(low, volume[name]), max(min(high, round(image_ml, 6)), volume[name])] for name, (low, high) in found
    }


def calibration_record(calibration: Calibration, uncertainty_score: float, mismatch: str) -> dict[str, Any]:
    """What <case>.json says of it: was it applied, from how many cases was it learnt, does this case need review.

    `look_at` and `look_at_threshold` are the former names of `needs_review` and `review_threshold`.

    Args:
        calibration: Of the model.
        uncertainty_score: Of the case.
        mismatch: Why it is not applied; "" where it is.
    """
    if mismatch:
        reason = f"learnt with other settings: {mismatch}"
        return {"calibration": {"applied": False, "reason": reason}, "needs_review": None, "look_at": None}
    learnt = {key: value for key, value in asdict(calibration).items() if key not in ("threshold", "fraction")}
    review, threshold = uncertainty_score > calibration.threshold, calibration.threshold
    new = {"needs_review": review, "review_threshold": threshold}
    return (
        {"calibration": {"applied": True, "id": calibration.id} | learnt}
        | new
        | {"look_at": review, "look_at_threshold": threshold}
    )
