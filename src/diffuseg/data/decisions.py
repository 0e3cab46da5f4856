"""What follows from a fingerprint: one function per setting of a plan, each with the reason that is shown to the user.

A decision sees those that were made before it, so an override changes what depends on it.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from diffuseg.data.fingerprint import Fingerprint
from diffuseg.data.names import is_ct, is_mr, is_xray, tells_sides
from diffuseg.text import by, pluralize

SAME = 1e-3  # relative difference of spacings below which nothing is resampled
VOXELS = 100_000  # of a 3-D training patch: what two cores train in reasonable time
SIDE = 256  # of a 2-D training patch
ANISOTROPIC = 3.0  # ratio of spacings above which neighbouring slices say too little for a 3-D network
THIN = 8  # slices below which a volume is a stack of pictures
PASSES = 40  # over the training cases
LESION = r"lesion|tumou?r|nodul|metasta|polyp|cyst|cancer|infarct|haemorrhage|hemorrhage"
PICTURES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")

Choice = tuple[Any, str]


def _orientation(f: Fingerprint, d: dict[str, Any]) -> Choice:
    if f.dims == 2:
        return None, "Pictures stay as they are."
    found = ", ".join(f"{count} {codes}" for codes, count in sorted(f.orientations.items()))
    return "RAS", f"An axis must mean the same in every volume; the files are {found}."


def _spacing(f: Fingerprint, d: dict[str, Any]) -> Choice:
    if f.dims == 2:
        return None, "Pictures keep their own grid."
    if np.allclose(f.spacing_smallest, f.spacing_largest, rtol=SAME):
        return f.spacing_median, "All volumes have this spacing, so nothing is resampled."
    between = f"{by(f.spacing_smallest)} to {by(f.spacing_largest)} mm"
    return f.spacing_median, f"The median of the volumes, which have {between}."


def _crop(f: Fingerprint, d: dict[str, Any]) -> Choice:
    return None, "Cases are seen whole; a crop about the middle would leave out what lies further away."


def _dims(f: Fingerprint, d: dict[str, Any]) -> Choice:
    if f.dims == 2:
        return 2, "The images are pictures."
    if min(f.size_median) < THIN:
        return 2, f"Volumes have only about {pluralize(round(min(f.size_median)), 'slice')}."
    spacing = d["spacing"] or f.spacing_median
    ratio = max(spacing) / min(spacing)
    if ratio > ANISOTROPIC:
        return 2, f"Slices are {ratio:.1f} times as far apart as the voxels within them."
    return 3, "Voxels have similar sides, so the third dimension helps."


def _slice_axis(f: Fingerprint, d: dict[str, Any]) -> Choice:
    if f.dims == 2 or d["dims"] == 3:
        return 2, "Not used: nothing is sliced."
    if min(f.size_median) < THIN:
        return int(np.argmin(f.size_median)), "The axis with the fewest slices."
    spacing = d["spacing"] or f.spacing_median
    if max(spacing) > 1.2 * min(spacing):
        return int(np.argmax(spacing)), "The axis with the thickest slices."
    return 2, "Axial slices, as spacings hardly differ."


def _context(f: Fingerprint, d: dict[str, Any]) -> Choice:
    if f.dims == 2 or d["dims"] == 3:
        return 0, "There are no neighbouring slices to add." if f.dims == 2 else "A 3-D network sees them anyway."
    if f.size_median[d["slice_axis"]] < 2:
        return 0, "Volumes are single slices."
    return 1, "One neighbouring slice on either side becomes further channels (2.5-D)."


def _normalisation(f: Fingerprint, d: dict[str, Any]) -> Choice:
    overrule = f"--set plan.normalisation={','.join(['zscore'] * len(f.intensity))} (or ct, unit) chooses otherwise."
    ct, mr = [is_ct(name) for name in d["channels"]], [is_mr(name) for name in d["channels"]]
    low, high = f.brightest
    eight_bits = high < 256 and d["file_ending"] in PICTURES
    whole = f.integer and min(seen["minimum"] for seen in f.intensity) >= 0
    if f.dims == 2 and whole and not any(ct) and (eight_bits or not any(mr)):
        if low < 256 <= high / 4:
            what = f"Files range up to {low:g} and up to {high:g}, as those of 8 and of 16 bits do"
            return ("zscore",) * len(ct), f"{what}: each is brought to mean 0 and deviation 1 by itself. {overrule}"
        return ("unit",) * len(ct), f"Pictures with whole numbers: their full range becomes -1 to 1. {overrule}"
    how = tuple("ct" if yes else "zscore" for yes in ct)
    if "ct" not in how:
        return how, f"Intensities have no unit, so each image is brought to mean 0 and deviation 1 by itself. {overrule}"
    rest = "" if set(how) == {"ct"} else "; other channels by their own mean and deviation"
    called = ", ".join(name for name, yes in zip(d["channels"], ct, strict=True) if yes)
    return how, f"By its name, {called} is CT, which has a unit, so all images are clipped and scaled alike{rest}. {overrule}"


def _clip(f: Fingerprint, d: dict[str, Any]) -> Choice:
    if set(d["normalisation"]) == {"unit"}:
        return True, "Not used: the full range is kept."
    ranges = [f"{row['low']:g} to {row['high']:g}" for row in d["intensity"] if "std" in row]
    what = f"CT is cut to {', '.join(ranges)}" if ranges else "Each image is cut to its percentiles 0.5 and 99.5"
    return True, f"{what}: brighter spots all look alike. --set plan.clip=false keeps them apart."


def _intensity(f: Fingerprint, d: dict[str, Any]) -> Choice:
    low = min(0.0, *(seen["minimum"] for seen in f.intensity))
    high = max(seen["maximum"] for seen in f.intensity)
    if f.integer:
        high = next((2.0**bits - 1 for bits in (8, 10, 12, 14, 16) if high < 2**bits), high)
    rows: list[dict[str, float]] = []
    for how, seen in zip(d["normalisation"], f.intensity, strict=True):
        if how == "ct":
            rows.append({key: seen[key] for key in ("low", "high", "mean", "std")})
        else:
            rows.append({"low": low, "high": high} if how == "unit" else {})
    if "unit" in d["normalisation"]:
        return tuple(rows), "The range of the files' bit depth."
    if "ct" in d["normalisation"]:
        return tuple(rows), "Percentiles 0.5 and 99.5, mean and deviation of the labelled voxels."
    return tuple(rows), "Not used: each image has its own statistics."


def _widths(f: Fingerprint, d: dict[str, Any]) -> Choice:
    if d["dims"] == 3:
        return (16, 32, 64, 128), "Four levels; narrow at full resolution, where 3-D networks spend their time."
    return (32, 64, 128, 128), "Four levels, the usual widths for pictures of this size."


def _patch(f: Fingerprint, d: dict[str, Any]) -> Choice:
    spacing = d["spacing"] or f.spacing_median
    size = [n * s / w for n, s, w in zip(f.size_median, f.spacing_median, spacing, strict=True)]
    if d["crop"] is not None and len(d["crop"]) == len(size):
        size = [min(n, float(limit)) for n, limit in zip(size, d["crop"], strict=True)]
    whole = "The median case" if d["crop"] is None else "What the crop leaves of the median case"
    if d["dims"] == 2 and f.dims == 3:
        del size[d["slice_axis"]]
        whole = whole.replace("case", "slice")
    text, unit = by([round(n) for n in size]), "pixels" if f.dims == 2 else "voxels"
    if d["dims"] == 2:
        multiple = 2 ** len(d["widths"])
        patch = tuple(min(_up(n, multiple), max(SIDE // multiple, 1) * multiple) for n in size)
    else:
        multiple = 2 ** (len(d["widths"]) - 1)
        sides = [_up(n, multiple) for n in size]
        while math.prod(sides) > VOXELS and max(sides) > multiple:
            extent = [side * s if side > multiple else 0 for side, s in zip(sides, spacing, strict=True)]
            sides[int(np.argmax(extent))] -= multiple
        patch = tuple(sides)
    if all(p >= n for p, n in zip(patch, size, strict=True)):
        return patch, f"{whole} has {text} {unit}; rounded up to multiples of {multiple}, it fits whole."
    return patch, f"{whole} has {text} {unit}, more than a training step should cost; multiples of {multiple}."


def _batch(f: Fingerprint, d: dict[str, Any]) -> Choice:
    if d["dims"] == 3:
        return 2, "Two patches of a volume keep a step within a second or two on two cores."
    return min(max(4 * SIDE**2 // math.prod(d["patch"]), 2), 32), f"As many pixels as four patches of {SIDE} x {SIDE}."


def _steps(f: Fingerprint, d: dict[str, Any]) -> Choice:
    voxels = math.prod(f.size_median if d["crop"] is None else map(min, f.size_median, d["crop"]))
    sliced = d["dims"] == 2 and f.dims == 3
    share = math.prod(d["patch"]) * (8 if sliced else 1)  # neighbouring slices are much alike
    per_case = max(1.0, voxels / share)
    steps = round(PASSES * 0.8 * f.cases * per_case / d["batch"], -2)
    steps = int(min(max(steps, 1000), 8000))
    passes = steps * d["batch"] / (0.8 * f.cases * per_case)
    return steps, f"About {passes:.0f} looks at every part of {pluralize(f.cases, 'case')}; between 1000 and 8000 steps."


def _augmentation(f: Fingerprint, d: dict[str, Any]) -> Choice:
    names = " ".join(d["channels"]).lower()
    if f.dims == 2 and (len(d["channels"]) == 3 or re.search(r"\brgb\b|colou?r", names)):
        return "colour", "Three channels of a picture are colours: light and stain vary."
    if "ct" in d["normalisation"] or any(is_ct(name) for name in d["channels"]):
        return "ct", "CT intensities are calibrated and vary little."
    if any(is_xray(name) for name in d["channels"]) or (f.dims == 2 and not any(is_mr(name) for name in d["channels"])):
        return "xray", "Exposure varies, and so does contrast along the range."
    return "mr", "MR varies in contrast, brightness and coil sensitivity."


def _flips(f: Fingerprint, d: dict[str, Any]) -> Choice:
    overrule = "--set plan.flips=... chooses otherwise, [] for none"
    names = [name for name in d["labels"] if d["labels"][name] != 0]
    sided = tells_sides(names)
    if sided:
        return (), f"Labels tell left from right ({', '.join(sided)}). {overrule}."
    if d["augmentation"] == "colour":
        return (0, 1), f"These pictures have no up and no left. {overrule}."
    if all(re.search(LESION, name.lower()) for name in names):
        # The patient's left and right: columns of a picture, the first axis of a volume in RAS.
        if f.dims == 2:
            return (1,), f"A lesion may be on either side, and no name tells left from right. {overrule}."
        if d["orientation"] == "RAS" and (d["dims"] == 3 or d["slice_axis"] != 0):
            return (0,), f"A lesion may be on either side, and no name tells left from right. {overrule}."
    return (), "Anatomy is not symmetric."


def _raters(f: Fingerprint, d: dict[str, Any]) -> Choice:
    fewest, most = f.raters
    if most == 1:
        return "random", "Not used: each case has a single mask."
    have = f"Cases have {most} masks each" if fewest == most else f"Cases have {fewest} to {most} masks"
    return "random", f"{have}: one is drawn at random each time, so that a model can learn how they differ."


DECISIONS: dict[str, Callable[[Fingerprint, dict[str, Any]], Choice]] = {
    "orientation": _orientation,
    "spacing": _spacing,
    "crop": _crop,
    "dims": _dims,
    "slice_axis": _slice_axis,
    "context": _context,
    "normalisation": _normalisation,
    "intensity": _intensity,
    "clip": _clip,
    "widths": _widths,
    "patch": _patch,
    "batch": _batch,
    "steps": _steps,
    "augmentation": _augmentation,
    "flips": _flips,
    "raters": _raters,
}


def _up(n: float, multiple: int) -> int:
    return max(1, math.ceil(round(n) / multiple)) * multiple
