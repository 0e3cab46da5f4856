"""What the images of a training are like in numbers, and in what another image is unlike all of them.

A network gives a mask for anything; nothing in it says that an image is of another kind than those it has learnt from, and the
uncertainty that draws show may even fall. So a checkpoint remembers the range of a few numbers over its training cases.
"""

from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np
from jaxtyping import Integer, Num

from diffuseg.blocks import blocks
from diffuseg.data.dataset import Dataset, evenly_spaced, load_case, load_image
from diffuseg.data.plan import Plan
from diffuseg.data.transforms import grid_transform
from diffuseg.errors import UserError
from diffuseg.types import Image

CASES = 256  # that are measured, at most
VOXELS = 200_000  # of one channel, at regular intervals, at most
PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
MARGIN = 0.5  # of the range over the training cases, on either side; more where there are few cases
RATIO = 1.25  # by which spacing and extent may always differ
VOLUME_RATIO = 2.0  # by which volumes may always differ
POSITION = 0.08  # by which a percentile may always be elsewhere between the first and the last
PART = "give the part that images of the training show: --region, or a cropped file"
FAR_EXTENT = 3.0  # times the largest extent of the training: from there on an image is far outside of it
FAR_SPACING = 5.0  # times the largest spacing, or a part of the smallest
FAR_INTENSITY = 3.0  # times the contrast of the training images, by which an intensity with a meaning of its own lies outside
CONTRAST = 0.15  # of the contrast of the training images, by which their intensities may always differ


def measure(image: Image, plan: Plan) -> dict[str, float]:
    """The numbers of one image by name: spacing and extent along the axes of the plan, intensities where they have a meaning of
    their own, and where its percentiles lie between the first and the 99th, which an inverted or cut-off image has elsewhere.
    """
    found = _sizes(image, plan)
    for channel, (values, how) in enumerate(zip(image.data, plan.normalisation, strict=True)):
        found |= _intensities(_some(values), plan.channels[channel], how)
    return {name: float(f"{value:.6g}") for name, value in found.items()}


def _sizes(image: Image, plan: Plan) -> dict[str, float]:
    """Spacing and extent; no voxel is looked at."""
    transform = grid_transform(image, plan)
    shape = transform.oriented
    spacing = np.array(image.spacing)
    if transform.reorientation is not None:
        spacing = spacing[np.argsort(transform.reorientation[:, 0])]
    found: dict[str, float] = {}
    for axis, (n, mm) in enumerate(zip(shape, spacing.tolist(), strict=True)):
        found[f"spacing of axis {axis} in mm"] = mm
        found[f"extent of axis {axis} in mm"] = n * mm
    return {name: float(f"{value:.6g}") for name, value in found.items()}


def _intensities(values: Num[np.ndarray, " n"], name: str, how: str) -> dict[str, float]:
    values = values.astype(np.float64)
    shown = values[values != 0] if how == "zscore" and values.any() else values  # as the normalisation has it
    low, *inner, high = np.percentile(shown, PERCENTILES).tolist()
    reach = max(high - low, 1e-12)
    positions = {
        f"position of percentile {p} of {name}": (v - low) / reach for p, v in zip(PERCENTILES[1:-1], inner, strict=True)
    }
    if how == "zscore":
        return positions
    absolute = np.percentile(values, PERCENTILES).tolist()
    return positions | {f"percentile {p} of {name}": v for p, v in zip(PERCENTILES, absolute, strict=True) if p in (1, 50, 99)}


def levels(image: Image, mask: np.ndarray, plan: Plan) -> dict[str, float]:
    """How bright each class is: its mean less the median, as a share of the contrast. An inverted image has the other sign.

    Args:
        image: As in its file.
        mask: Label values [*s].
        plan: Names the classes.
    """
    found: dict[str, float] = {}
    for channel, values in zip(plan.channels, image.data, strict=True):
        low, middle, high = np.percentile(_some(values), (1, 50, 99)).tolist()
        for label, value in plan.labels.items():
            total, count = _inside(values, mask, value) if value else (0.0, 0)
            if count:
                found[f"level of {label} in {channel}"] = (total / count - middle) / max(high - low, 1e-12)
    return found


def _some(values: Num[np.ndarray, "*s"]) -> Num[np.ndarray, " n"]:
    """Values at regular intervals, row by row."""
    return values[np.unravel_index(np.arange(0, values.size, max(1, values.size // VOXELS)), values.shape)]


def _inside(values: Num[np.ndarray, "*s"], mask: Integer[np.ndarray, "*s"], value: int) -> tuple[float, int]:
    """Sum and number of the values where a mask has this value."""
    total, count = 0.0, 0
    for part in blocks(values.shape):
        inside = values[part][mask[part] == value]
        total, count = total + float(inside.sum(dtype=np.float64)), count + inside.size
    return total, count


def training_fingerprint(dataset: Dataset, cases: Sequence[str], plan: Plan) -> dict[str, Any]:
    """The range of each number over training cases, and of the volumes of the classes; cases that cannot be read are left out.

    Args:
        dataset: Holds the cases.
        cases: Names of those to train on.
        plan: Of the model.

    Returns:
        {"cases": n, "ranges": {name: [low, high]}, "volume_ml": {class: [low, high]}}, for the header of a checkpoint.
    """
    by_id = {case.id: case for case in dataset.cases}
    numbers: list[dict[str, float]] = []
    volumes: list[dict[str, float]] = []
    shades: list[dict[str, float]] = []
    for name in evenly_spaced(list(cases), CASES):
        case = by_id[name]
        try:
            image, mask = (load_image(dataset, case), None) if case.mask is None else load_case(dataset, case)
            numbers.append(measure(image, plan))
        except UserError:
            continue  # the training will say so when it meets it
        if mask is not None:
            count = {label: int((mask.data == value).sum()) for label, value in plan.labels.items() if value}
            volumes.append({label: n * image.voxel_ml for label, n in count.items()})
            shades.append(levels(image, mask.data[0], plan))
    ranges = _ranges(numbers) | _ranges(shades)
    return {"cases": len(numbers), "ranges": ranges, "volume_ml": _ranges(volumes)}


def _ranges(rows: list[dict[str, float]]) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            values.setdefault(name, []).append(value)
    return {name: [float(f"{f(found):.6g}") for f in (min, max)] for name, found in values.items()}


def outside_training(
    fingerprint: dict[str, Any] | None,
    image: Image,
    plan: Plan,
    volume_ml: dict[str, float] | None = None,
    mask: np.ndarray | None = None,
) -> list[str]:
    """In what an image and its predicted volumes are unlike all training cases, each with its figures; [] where in nothing.

    Args:
        fingerprint: Of the training, from a checkpoint's header; None: there is none.
        image: As in its file.
        plan: Of the model.
        volume_ml: Predicted volume of each class, in ml.
        mask: Predicted label values.
    """
    if not _has_ranges(fingerprint):
        return []
    picture, few = _is_picture(image), _widened(fingerprint)
    faults = _faults(measure(image, plan) | ({} if mask is None else levels(image, mask, plan)), fingerprint, picture)
    for label, value in (volume_ml or {}).items():
        if label in fingerprint.get("volume_ml", {}):
            low, high = fingerprint["volume_ml"][label]
            if not low / (VOLUME_RATIO * few) <= value <= high * VOLUME_RATIO * few:
                faults.append(_say(f"volume of {label} in ml", value, (low, high), picture))
    return faults


def larger_than_training(fingerprint: dict[str, Any] | None, image: Image, plan: Plan) -> list[str]:
    """In which axes an image is far larger than those of the training, with figures: a whole head for a model of crops, say.

    Args:
        fingerprint: Of the training, from a checkpoint's header; None: there is none.
        image: As in its file.
        plan: Of the model.
    """
    if not _has_ranges(fingerprint):
        return []
    found = _faults(_sizes(image, plan), fingerprint, _is_picture(image))
    extents = [fault for fault in found if fault.startswith("extent")]
    return extents if any(PART in fault for fault in extents) else []


def far_from_training(fingerprint: dict[str, Any] | None, image: Image, plan: Plan) -> list[str]:
    """In what an image is so far outside of the training that no mask of it means anything, each with its figures.

    Smaller extents are not: a part of what the training images show is still of their kind.

    Args:
        fingerprint: Of the training, from a checkpoint's header; None: there is none.
        image: As in its file.
        plan: Of the model.
    """
    if not _has_ranges(fingerprint):
        return []
    ranges = fingerprint["ranges"]
    numbers = {name: value for name, value in measure(image, plan).items() if name in ranges and _far(name, value, ranges)}
    return [_say(name, value, ranges[name], _is_picture(image)) for name, value in numbers.items()]


def _has_ranges(fingerprint: dict[str, Any] | None) -> TypeGuard[dict[str, Any]]:
    """Whether there is anything to compare an image with."""
    return bool(fingerprint and fingerprint.get("ranges"))


def _far(name: str, value: float, ranges: dict[str, list[float]]) -> bool:
    """Whether one number is far outside; positions and levels, which have no scale, never are."""
    low, high = ranges[name]
    if name.startswith("extent"):
        return value > FAR_EXTENT * high
    if name.startswith("spacing"):
        return not low / FAR_SPACING <= value <= FAR_SPACING * high
    if name.startswith("percentile"):
        reach = FAR_INTENSITY * _contrast(name, ranges)
        return not low - reach <= value <= high + reach
    return False


def _contrast(name: str, ranges: dict[str, list[float]]) -> float:
    """Between the darkest and the brightest of the training images, in the channel of a percentile."""
    channel = name.partition(" of ")[2]
    return ranges[f"percentile 99 of {channel}"][1] - ranges[f"percentile 1 of {channel}"][0]


def _faults(numbers: dict[str, float], fingerprint: dict[str, Any], picture: bool) -> list[str]:
    """What of the numbers lies outside; the last extent says what to do, where the image shows more than the training."""
    ranges, few, faults, larger = fingerprint["ranges"], _widened(fingerprint), [], 0
    for name, value in numbers.items():
        if name in ranges and not _within(name, value, ranges, few):
            faults.append(_say(name, value, ranges[name], picture))
            larger = len(faults) if name.startswith("extent") and value > ranges[name][1] else larger
    if larger:
        faults[larger - 1] += f" ({PART})"
    return faults


def _widened(fingerprint: dict[str, Any]) -> float:
    return 1 + 4 / max(int(fingerprint.get("cases", 1)), 1)  # ranges over few cases are too narrow


def _is_picture(image: Image) -> bool:
    """Whether an image has no scale, so that its sizes are pixels."""
    return image.dims == 2 and set(image.spacing) == {1.0}


def _within(name: str, value: float, ranges: dict[str, list[float]], few: float) -> bool:
    low, high = ranges[name]
    margin = MARGIN * few * (high - low)
    if name.startswith(("spacing", "extent")):
        return low / RATIO - margin <= value <= high * RATIO + margin
    if name.startswith(("position", "level")):
        margin = max(margin, POSITION * few)
    else:
        margin = max(MARGIN * (high - low), CONTRAST * _contrast(name, ranges))
    return low - margin <= value <= high + margin


def _say(name: str, value: float, around: Sequence[float], picture: bool = False) -> str:
    """One fault with its figures; of a picture without a scale sizes are pixels, where the fingerprint has mm and ml."""
    if picture and name.startswith("volume of "):
        name, value = name.replace("volume", "area").replace("in ml", "in pixels"), 1000 * value
        around = [1000 * end for end in around]
    elif picture and name.endswith(" in mm"):
        name = f"{name.removesuffix('mm')}pixels"
    return f"{name} is {value:.4g}, in training {around[0]:.4g} to {around[1]:.4g}"
