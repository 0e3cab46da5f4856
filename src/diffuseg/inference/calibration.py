"""What `diffuseg calibrate` learnt about a model: kept in its checkpoint, used by predict where the settings are the same."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from diffuseg.config import from_dict
from diffuseg.evaluation.calibration_metrics import apply_temperature
from diffuseg.evaluation.conformal import ConformalMargin
from diffuseg.text import pluralize

SETTINGS = ("draws", "steps", "sampler", "fuse")  # what probabilities and intervals depend on; any seed will do


@dataclass(frozen=True)
class Calibration:
    """A temperature, a widening per class, a threshold, and what they were learnt from.

    temperature  of the mean probability of the draws
    widening     class -> how its 90 % volume interval is widened; classes with too few cases are not in it
    threshold    the doubt above which a case should be looked at; `fraction` of the calibration cases is above it, at most
    settings     draws, steps, sampler and fuse that it was learnt with: with others it says nothing
    dataset, fold, cases, patients   validation cases that it was learnt from, and how many patients they are of
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

    @property
    def where(self) -> str:
        """What it was learnt from, in words."""
        patients = "" if self.patients == self.cases else f" of {pluralize(self.patients, 'patient')}"
        return f"{pluralize(self.cases, 'validation case')}{patients} (fold {self.fold} of {self.dataset})"

    def mismatch(self, asked: dict[str, Any]) -> str:
        """Which of the settings of a prediction are not those it was learnt with; "" if it fits."""
        other = [key for key in SETTINGS if self.settings[key] != asked[key]]
        return "; ".join(f"{key} {self.settings[key]}, now {asked[key]}" for key in other)

    def announce(self, asked: dict[str, Any]) -> str:
        """One line: what is applied to predictions with these settings, or why nothing is."""
        mismatch = self.mismatch(asked)
        if mismatch:
            return f"calibration not applied: learnt with {mismatch}; ask for the same, or calibrate your own model again"
        widened = f"intervals of {', '.join(self.widening)} widened, " if self.widening else ""
        look = f"cases with a doubt above {self.threshold:.3f} are to be looked at"
        return f"calibrated on {self.where}: temperature {self.temperature:.3f}, {widened}{look}"

    def temper(self, probability: Float[np.ndarray, "k *s"]) -> Float[np.ndarray, "k *s"]:
        """Probabilities with this temperature, in single precision; the largest of a voxel stays the largest."""
        return apply_temperature(probability, self.temperature).astype(np.float32)

    def widen(self, intervals: dict[str, list[float]]) -> dict[str, list[float]]:
        """Intervals [low, high] in ml by class, widened; those of classes that are not known are left as they are."""
        return {name: self._widened(name, *ends) for name, ends in intervals.items()}

    def _widened(self, name: str, low: float, high: float) -> list[float]:
        if name not in self.widening:
            return [low, high]
        ends = from_dict(ConformalMargin, self.widening[name]).apply(np.array([low]), np.array([high]))
        return [round(float(end[0]), 6) for end in ends]


def calibration_header(calibration: Calibration) -> dict[str, Any]:
    """As a checkpoint's header keeps it."""
    return asdict(calibration)


def read_calibration(meta: dict[str, Any]) -> Calibration | None:
    """The calibration in a checkpoint's header, if there is one. Refuses one that another version wrote otherwise."""
    found = meta.get("calibration")
    return None if found is None else from_dict(Calibration, found, "calibration.")


def calibration_record(calibration: Calibration, doubt: float, mismatch: str) -> dict[str, Any]:
    """What <case>.json says of it: was it applied, from how many cases was it learnt, should one look at this case."""
    if mismatch:
        reason = f"learnt with other settings: {mismatch}"
        return {"calibration": {"applied": False, "reason": reason}, "look_at": None}
    kept = {key: value for key, value in calibration_header(calibration).items() if key not in ("threshold", "fraction")}
    look = {"look_at": doubt > calibration.threshold, "look_at_threshold": calibration.threshold}
    return {"calibration": {"applied": True} | kept} | look
