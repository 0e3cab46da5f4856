"""A plan: the grid a model works on, and the reason for each of its settings."""

import json
import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from diffuseg.atomic_io import write_json
from diffuseg.config import from_dict, to_dict
from diffuseg.data.dataset import Dataset
from diffuseg.data.decisions import DECISIONS
from diffuseg.data.fingerprint import Fingerprint, fingerprint
from diffuseg.data.layout import read_json
from diffuseg.errors import UserError

__all__ = ["Fingerprint", "Plan", "check_plan", "explain", "fingerprint", "load_plan", "make_plan", "save_plan"]


@dataclass(frozen=True)
class Plan:
    """Everything about the data that a model has to remember.

    dims           2 or 3: spatial axes the network sees
    context        2.5-D: neighbouring slices on each side that become further channels; 0 otherwise
    orientation    axis codes the volume is brought to ("RAS"); None for plain 2-D pictures
    spacing        mm per axis of the working grid; None keeps the file's own grid
    crop           voxels per axis of the working grid that are kept, about the middle of a case; outside of them nothing is
                   seen in training and everything is predicted as background; None keeps all
    normalisation  one of "zscore" | "ct" | "unit", per channel
    intensity      per channel: statistics the normalisation needs ("ct": low, high, mean, std)
    patch          spatial size of a training patch and of a prediction tile (2.5-D: in-plane)
    slice_axis     axis of the reoriented volume along which a 2-D method slices it
    augmentation   what is changed at random: as suits a modality; "flips": nothing but mirroring
    flips          axes of the patch along which mirroring is a harmless augmentation
    ignore         label value of voxels that nobody has annotated: they count in no loss and no measure; None: there is none
    clip           whether intensities beyond percentiles 0.5 and 99.5 are clipped before they are scaled ("zscore", "ct")
    raters         what training learns from where a case has masks of several raters: one that is drawn anew each time
                   ("random"), all of them at once ("all"), or their "majority", "union" or "intersection"
    """

    dataset: str
    channels: tuple[str, ...]
    labels: dict[str, int]
    file_ending: str
    dims: int = 3
    context: int = 0
    orientation: str | None = "RAS"
    spacing: tuple[float, ...] | None = None
    crop: tuple[int, ...] | None = None
    normalisation: tuple[Literal["zscore", "ct", "unit"], ...] = ("zscore",)
    intensity: tuple[dict[str, float], ...] = ()
    patch: tuple[int, ...] = (32, 32, 32)
    slice_axis: int = 2
    widths: tuple[int, ...] = (16, 32, 64, 128)
    batch: int = 2
    steps: int = 2000
    augmentation: Literal["mr", "ct", "colour", "xray", "flips", "none"] = "mr"
    flips: tuple[int, ...] = ()
    ignore: int | None = None
    clip: bool = True
    raters: Literal["random", "all", "majority", "union", "intersection"] = "random"
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def turns(self) -> bool:
        """Whether patches are turned and zoomed at random, so that some of what surrounds them comes in."""
        return self.augmentation not in ("flips", "none")

    @property
    def classes(self) -> int:
        """Number of classes k, background included."""
        return len(self.labels)

    @property
    def names(self) -> list[str]:
        """The classes by name, in the order of their indices: by rising label value, background first."""
        return sorted(self.labels, key=self.labels.__getitem__)

    @property
    def image_channels(self) -> int:
        """Image channels the network sees: in 2.5-D each channel comes with its neighbouring slices."""
        return len(self.channels) * (2 * self.context + 1)


def make_plan(dataset: Dataset, fingerprint: Fingerprint, **overrides: Any) -> Plan:
    """The plan that follows from a fingerprint, with the reason for each setting; overrides are settings taken as they are.

    What depends on an override follows it (dims=2 also gives 2-D patches).

    Args:
        dataset: The data set.
        fingerprint: What was measured of it.
        overrides: Settings of the plan by name.

    Raises:
        UserError: Unknown settings, and what does not fit.
    """
    known = {
        "dataset": dataset.name,
        "channels": dataset.channels,
        "labels": dataset.labels,
        "file_ending": dataset.file_ending,
        "ignore": dataset.ignore,
    }
    for name in known.keys() & overrides.keys():
        if from_dict(Plan, known | {name: overrides[name]}) != from_dict(Plan, known):
            raise UserError(f"{name} comes from dataset.json and not from a setting", file=dataset.folder / "dataset.json")
    overridden = from_dict(Plan, known | overrides)
    for name in ("batch", "steps", "patch", "widths", "spacing", "crop"):  # decisions divide by them
        value = getattr(overridden, name)
        if value is not None and min(value if isinstance(value, tuple) else (value,), default=0) <= 0:
            raise UserError(f"{name} must be positive, at least 1 where it counts something; it is {_text(value)}")
    chosen, reasons = dict(known), {name: "as in dataset.json" for name in known}
    for name, decide in DECISIONS.items():
        if name in overrides:
            chosen[name], reasons[name] = getattr(overridden, name), "as asked for"
        else:
            chosen[name], reasons[name] = decide(fingerprint, chosen)
    plan = from_dict(Plan, chosen | {"reasons": reasons})
    check_plan(plan)
    return plan


def explain(plan: Plan) -> list[tuple[str, str, str]]:
    """Rows to print: setting, value, and the reason for it (empty where someone set it by hand without giving one)."""
    rows = []
    for setting in fields(plan):
        if setting.name != "reasons":
            value = getattr(plan, setting.name)
            rows.append((setting.name, _text(value), plan.reasons.get(setting.name, "")))
    return rows


def save_plan(plan: Plan, path: Path | str) -> None:
    """Write a plan as JSON, to be looked at and edited; aside and then renamed."""
    write_json(path, to_dict(plan))


def load_plan(path: Path | str) -> Plan:
    """Read a plan.

    Args:
        path: A JSON file.

    Raises:
        UserError: Broken JSON, unknown settings (naming the nearest known one), wrong types, and what does not fit.
    """
    values = read_json(Path(path))
    if not isinstance(values, dict):
        raise UserError("a plan is an object { ... }", file=path)
    try:
        plan = from_dict(Plan, values)
        check_plan(plan)
    except UserError as fault:
        raise UserError(str(fault), file=path) from None
    return plan


def check_plan(plan: Plan) -> None:
    """Check that settings fit each other.

    Raises:
        UserError: One does not; the message names it.
    """
    axes = plan.dims if plan.spacing is None else len(plan.spacing)
    volumes = plan.dims == 3 or plan.orientation is not None or axes == 3
    needed = {"zscore": (), "ct": ("low", "high", "mean", "std"), "unit": ("low", "high")}
    rules = {
        "dims": (plan.dims in (2, 3), "is 2 or 3"),
        "context": (0 <= plan.context <= 100 and (plan.context == 0 or plan.dims == 2), "is 0 to 100, and 0 for a 3-D network"),
        "orientation": (_is_orientation(plan.orientation), 'is one letter each of "LR", "PA" and "IS", or null'),
        "spacing": (plan.dims <= axes <= 3 and min(plan.spacing or (1.0,)) > 0, "is one positive number of mm per axis"),
        "crop": (
            plan.crop is None or (len(plan.crop) == (3 if volumes else 2) and min(plan.crop) > 0),
            "is one positive number of voxels per axis, or null",
        ),
        "channels": (0 < len(plan.channels) <= 1000, "are 1 to 1000"),
        "patch": (
            len(plan.patch) == plan.dims and min(plan.patch) >= 4 and math.prod(plan.patch) <= 2**28,
            f"needs {plan.dims} sides of 4 voxels or more, and 2^28 voxels at most",
        ),
        "slice_axis": (plan.slice_axis in (0, 1, 2), "is 0, 1 or 2"),
        "normalisation": (len(plan.normalisation) == len(plan.channels), "needs one entry per channel"),
        "widths": (
            0 < len(plan.widths) <= 12 and 0 < min(plan.widths) <= max(plan.widths) <= 4096,
            "are 12 at most, of 1 to 4096",
        ),
        "batch": (0 < plan.batch <= 10**5, "is at least 1, and 100000 at most"),
        "steps": (0 < plan.steps <= 10**12, "is at least 1, and 10^12 at most"),
        "flips": (all(0 <= axis < plan.dims for axis in plan.flips), f"are axes of the patch, 0 to {plan.dims - 1}"),
        "labels": (
            plan.classes > 1 and min(plan.labels.values()) == 0,
            "need a background, 0, at least one more, and none below 0",
        ),
        "ignore": (plan.ignore is None or plan.ignore > max(plan.labels.values()), "is above all labels, or null"),
    }
    for name, (holds, rule) in rules.items():
        if not holds:
            raise UserError(f"{name} {rule}, not {_text(getattr(plan, name))}")
    for channel, how in enumerate(plan.normalisation):
        known = plan.intensity[channel] if channel < len(plan.intensity) else {}
        lacking = [key for key in needed[how] if key not in known]
        if lacking:
            raise UserError(f"intensity of channel {channel} lacks {', '.join(lacking)}, which {how!r} needs")
        if how != "zscore" and not known["low"] < known["high"]:
            raise UserError(f"intensity of channel {channel}: low must be below high")


def _is_orientation(codes: str | None) -> bool:
    pairs = ("LR", "PA", "IS")
    return codes is None or (len(codes) == 3 and all(sum(codes.count(c) for c in pair) == 1 for pair in pairs))


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
