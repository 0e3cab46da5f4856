"""What a folder of results holds for the page: its cases, their layers, and what their records say.

Only names and records are looked at here, not a voxel. Whatever is missing is left out of the page and named on it.
"""

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffuseg.data import io
from diffuseg.data.dicom import holds_series
from diffuseg.data.outputs import PREVIEW, probability_names, records, sidecar_name, stored_as_one
from diffuseg.data.pictures import LOSSLESS, LOSSY
from diffuseg.errors import UserError
from diffuseg.inference.calibration import is_raw
from diffuseg.inference.checkpoints import checkpoints
from diffuseg.inference.wording import has_interval, interval_note, needs_review, review_reason, size_unit, unlike_text
from diffuseg.reports.figures import OKABE_ITO
from diffuseg.reports.folders import image_of, images_to_labels, mask_of
from diffuseg.text import did_you_mean, few
from diffuseg.viewer.record import unreadable_records, valid_record

RECORDED = {"model_name": "Model", "model": "Checkpoint", "method": "Method", "draws": "Draws", "steps": "Steps"}
RECORDED |= {
    "uncertainty_score": "Uncertainty score",
    "sampler": "Sampler",
    "seed": "Seed",
    "fuse": "Fusion",
    "device": "Device",
    "precision": "Precision",
}
SEEN = {"training": "This image was in the training of the model.", "validation": "This image was in its validation."}


@dataclass(frozen=True)
class Layer:
    """One thing that can be shown.

    key     its name in an address: letters and digits
    kind    "image", intensities; "labels", class indices; "scale", values from 0 to `top`
    plane   of the file's planes the one that is meant; None: all of them, as frames, or as colours of a picture
    unit    of the values; stored: what a file holds where the value is `top` (a .png holds 65535 for 1)
    frames  a title for each frame; empty where there is only one
    """

    key: str
    title: str
    kind: str
    file: Path
    plane: int | None = None
    unit: str = ""
    top: float = 1.0
    stored: float = 1.0
    frames: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """A finished case: its record, its layers (the image first, if it was found), and what could not be found."""

    name: str
    record: dict[str, Any]
    layers: tuple[Layer, ...]
    faults: tuple[str, ...] = ()
    picture: bool = False
    classes: tuple[str, ...] = field(default=())

    @property
    def image_found(self) -> bool:
        """Whether its image is among the layers; true where there is nothing to lay upon it."""
        return not self.layers or self.layers[0].kind == "image"

    def describe(self) -> dict[str, Any]:
        """What the page needs to know besides the voxels, as plain values for JSON."""
        ml, spread = self.record.get("volume_ml") or {}, self.record.get("volume_ml_90") or {}
        ends = {name: (spread.get(name) if has_interval(self.record, name) else None) or [None, None] for name in ml}
        rows = [[name, value, *ends[name], is_raw(self.record, name)] for name, value in ml.items()]
        remarks = [SEEN[side] for side in SEEN if side == self.record.get("seen_in")]
        remarks += [*_review(self.record), *_unlike(self.name, self.record)]
        scale, unit = size_unit(self.record)
        about = {title: self.record[key] for key, title in RECORDED.items() if self.record.get(key) is not None}
        return {
            "case": self.name,
            "picture": self.picture,
            "classes": [{"name": name, "colour": colour(number)} for number, name in enumerate(self.classes)],
            "layers": [
                {"key": x.key, "title": x.title, "kind": x.kind, "unit": x.unit, "top": x.top, "frames": list(x.frames)}
                for x in self.layers
            ],
            "volumes": rows,
            "unit": unit,
            "scale": scale,
            "note": interval_note(self.record),
            "about": {title: str(value) for title, value in about.items()},
            "remarks": [*remarks, *self.faults],
        }


def _review(record: dict[str, Any]) -> list[str]:
    """Whether a person is to look at the case, and why."""
    why = review_reason(record)
    return [f"Needs review by a person{f': {why}' if why else ''}."] if needs_review(record) else []


def _unlike(case: str, record: dict[str, Any]) -> list[str]:
    outside = record.get("outside_training")
    found = [f"Unlike the images of the training: {unlike_text(outside, f'{case}.json')}."] if outside else []
    return [*found, *(["Far outside of the training: its intervals are raw, not calibrated."] if record.get("anyway") else [])]


def colour(number: int) -> str:
    """The colour of a foreground class, counted from 0, as in all other pictures of this program."""
    return OKABE_ITO[number % len(OKABE_ITO)]


def find_cases(folder: Path, images: Path | None = None, only: str | None = None, labels: Path | None = None) -> list[Case]:
    """The finished cases of a folder that `predict` wrote, by name, or only one of them.

    An image is the file that its record names, from the working directory or from the folder of the record, or, with `images`,
    `<case>` or `<case>_0000` in that folder. The truth is `<case>` in the folder `labels`, or without it in labelsTr of
    imagesTr, where the image is. Beside others, a case without a record that can be read is named; odd parts of a record are
    left out. Files outside the folder, where a link leads to, are not shown.

    Args:
        folder: Of the results.
        images: Folder of the images.
        only: Name of the case.
        labels: Folder of the truth.

    Raises:
        UserError: A folder is not there, nothing of it can be shown, or the case is not in it.
    """
    for place in (folder, *(given for given in (images, labels) if given)):
        if not place.is_dir():
            raise UserError("no such folder", file=place)
    known, odd = records(folder), unreadable_records(folder)
    if not known and not odd:
        do = "Give one that `diffuseg predict` wrote"
        if checkpoints(folder):
            do = f"It holds a model: predict with it first, `diffuseg predict {folder} IMAGES --out DIR`, and view DIR"
        raise UserError("there is no result in this folder", file=folder, do=do)
    if only in odd or not known:
        raise odd.get(only or "", next(iter(odd.values())))
    if only is not None and only not in known:
        raise UserError(
            f"there is no case {only!r}",
            file=folder,
            do=did_you_mean(only, known) if len(known) < 20 else f"There are {few(known)}",
        )
    cases = [_case(folder, name, record, images, labels) for name, record in known.items() if only in (None, name)]
    without = [Case(name, {}, (), (_within(folder, fault),)) for name, fault in odd.items() if only is None]
    if not any(case.layers for case in cases):
        raise UserError(f"there is nothing to show of case {cases[0].name}: {' '.join(cases[0].faults)}", file=folder)
    return sorted([*cases, *without], key=lambda case: case.name)


def _within(folder: Path, fault: UserError) -> str:
    """A fault with names of files alone: a page is handed on, and folders are nobody's business."""
    return str(fault).replace(f"{folder}{os.sep}", "")


def _case(folder: Path, name: str, record: dict[str, Any], images: Path | None, truths: Path | None) -> Case:
    try:
        record, faults = valid_record(record, folder / f"{name}.json")
    except UserError as fault:
        return Case(name, {}, (), (_within(folder, fault),))
    labels = record["labels"]
    ending = next((end for end in io.LOSSLESS if (folder / sidecar_name(name, "entropy", end)).exists()), None)
    if ending is None:
        return Case(name, record, (), ("Its mask and maps are not here.",))
    layers = [
        Layer("mask", "Mask", "labels", folder / (name + ending)),
        *_probabilities(folder, name, ending, record),
        *_entropy(folder, name, ending, len(labels)),
        *_kept(folder, name, ending, record),
    ]
    inside = [layer for layer in layers if layer.file.is_file() and layer.file.resolve().is_relative_to(folder.resolve())]
    faults += dict.fromkeys(f"{layer.file.name} is not in the folder." for layer in layers if layer not in inside)
    image = _image(folder, name, record, images)
    if "slide" in record:
        faults.append(f"Whole slides are not shown here: open slide and mask in a viewer of slides, or {name}_{PREVIEW}.png.")
    elif image is None:
        where = f"{name} or {name}_0000 in the folder of --images" if images else _named(record)
        faults.append(f"The image was not found: {where}; `--images FOLDER` says where it is.")
    else:
        colours = None if image.name.lower().endswith(LOSSLESS + LOSSY) else 0
        inside.insert(0, Layer("image", "Image", "image", image, colours))
    truth = _truth(name, image, truths)
    if truth is not None:
        inside.append(Layer("truth", "Truth", "labels", truth))
    elif truths is not None:
        faults.append(f"The truth was not found: {name} in the folder of --labels.")
    classes = sorted(labels, key=labels.__getitem__)[1:]
    return Case(name, record, tuple(inside), tuple(faults), ending in LOSSLESS, tuple(classes))


def _probabilities(folder: Path, case: str, ending: str, record: dict[str, Any]) -> list[Layer]:
    labels = record["labels"]
    classes = sorted(labels, key=labels.__getitem__)[1:]
    names = probability_names(labels, ending)
    stored = stored_as_one(record, ending)
    made = []
    for number, name in enumerate(classes):
        file = folder / sidecar_name(case, names[number if len(names) > 1 else 0], ending)
        plane = 0 if len(names) > 1 else number
        made.append(Layer(f"prob{number}", f"Probability of {name}", "scale", file, plane, "", 1.0, stored))
    return made


def _entropy(folder: Path, case: str, ending: str, classes: int) -> list[Layer]:
    top = math.log(classes)
    stored = 65535.0 if ending == ".png" else top
    return [
        Layer(
            "entropy", "Uncertainty (entropy)", "scale", folder / sidecar_name(case, "entropy", ending), 0, "nats", top, stored
        )
    ]


def _kept(folder: Path, case: str, ending: str, record: dict[str, Any]) -> list[Layer]:
    kept, made = record.get("kept") or {}, []
    if kept.get("draws"):
        frames = tuple(f"draw {i + 1} of {kept['draws']}" for i in range(kept["draws"]))
        made.append(Layer("draws", "Draws", "labels", folder / sidecar_name(case, "draws", ending), frames=frames))
    if kept.get("steps"):
        timesteps = kept["steps"]
        frames = tuple(f"step {i + 1} of {len(timesteps)}, timestep {t}" for i, t in enumerate(timesteps))
        file = folder / sidecar_name(case, "steps", ending)
        made.append(Layer("steps", "Steps of the first draw", "scale", file, None, "%", 100.0, 100.0, frames))
    return made


def _image(folder: Path, case: str, record: dict[str, Any], images: Path | None) -> Path | None:
    """A relative source is looked for from the working directory, where `predict` was told of it, and from the record."""
    if images is not None:
        return image_of(images, case)
    source = record.get("source") or ""
    found = (Path(place) for place in (source, os.path.join(folder, source)) if source and os.path.exists(place))
    is_image = lambda place: place.is_file() and source.lower().endswith(io.ENDINGS)
    return next((place for place in found if is_image(place) or holds_series(place)), None)


def _truth(case: str, image: Path | None, truths: Path | None) -> Path | None:
    """The mask that a person drew: in the folder that was given, or where a data set has it beside the image."""
    if truths is None and image is not None and "images" in image.parent.name:
        truths = images_to_labels(image.parent)
    return None if truths is None or not truths.is_dir() else mask_of(truths, case)


def _named(record: dict[str, Any]) -> str:
    source = record.get("source")
    if not source:
        return "its record names none"
    tried = "" if os.path.isabs(source) else ", looked for from the working directory and from the folder of the results"
    return f"{Path(source).name}{tried}"
