"""One segmented case in its native geometry, and how it becomes files."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from diffuseg import scratch
from diffuseg.atomic_io import write_json
from diffuseg.blocks import blocks
from diffuseg.data import io
from diffuseg.data.dicom import case_name
from diffuseg.data.dicom_series import Stack
from diffuseg.data.given import Kind, give_back
from diffuseg.data.outputs import KEPT, PREVIEW, probability_names, sidecar_name
from diffuseg.data.pictures import LOSSLESS
from diffuseg.errors import UserError
from diffuseg.inference import show
from diffuseg.inference.preview import write_preview
from diffuseg.types import Image


@dataclass(repr=False)
class Prediction:
    """One segmented case in its native geometry.

    mask         [*s] label values as in dataset.json: what the draws agree on, by the fusion that was asked for
    probability  [k, *s] mean over the draws, sums to 1 over k; class 0 is background
    uncertainty  name -> [*s]: "entropy" of the mean (nats), "expected_entropy", "mutual_information", "variance"
    image        the image that it belongs to
    provenance   what goes into <case>.json: volumes in ml with their interval over draws, seeds, steps, model, versions
    draws        [n, *s] the mask of each draw, where they were kept
    steps        [steps, *s] the first draw step by step: probability of the foreground in percent, where they were kept
    kind         what the image was given as: "path", "array", "nibabel", ...

    `like_input` gives mask or maps back as that kind; `to_nibabel`, `to_sitk` and `to_metatensor` as these. A notebook shows a
    prediction as a picture with its volumes; `plot` draws the picture into axes.
    """

    mask: np.ndarray
    probability: Float[np.ndarray, "k *s"]
    uncertainty: dict[str, np.ndarray]
    image: Image
    provenance: dict[str, Any]
    draws: np.ndarray | None = None
    steps: np.ndarray | None = None
    kind: Kind = "Image"

    def values(self, what: str = "mask") -> np.ndarray:
        """The array of this name: "mask", "probability", "draws", "steps", or a map of `uncertainty` such as "entropy".

        Raises:
            UserError: There is none of this name, or it was not kept.
        """
        own = {"mask": self.mask, "probability": self.probability, "draws": self.draws, "steps": self.steps}
        found = (own | self.uncertainty).get(what)
        if found is None and what in KEPT:
            raise UserError(f"the {what} of this prediction were not kept", do=f"Ask for them: predict(..., keep_{what}=True)")
        if found is None:
            known = [name for name, array in (own | self.uncertainty).items() if array is not None]
            raise UserError(f"a prediction has no {what!r}", do=f"It has: {', '.join(known)}")
        return found

    def like_input(self, what: str = "mask") -> Any:
        """What `values` gives, as the kind that the image was given as, at the same place; of paths an array."""
        return give_back(self.values(what), self.image, self.kind)

    def to_nibabel(self, what: str = "mask") -> Any:
        """What `values` gives as a nibabel image (RAS), several planes as its last axis."""
        return give_back(self.values(what), self.image, "nibabel")

    def to_sitk(self, what: str = "mask") -> Any:
        """What `values` gives as a SimpleITK image (LPS), several planes as its components."""
        return give_back(self.values(what), self.image, "SimpleITK")

    def to_metatensor(self, what: str = "mask") -> Any:
        """What `values` gives as a MONAI MetaTensor, channels first; with the meta data of the image if that was one."""
        return give_back(self.values(what), self.image, "MetaTensor")

    def plot(self, axes: Any = None) -> np.ndarray:
        """Draw image with mask, probability and entropy into axes of matplotlib, one to three; returns them."""
        return show.plot(self, axes)

    def __repr__(self) -> str:
        return show.one_line(self)

    def _repr_html_(self) -> str:
        return show.as_html(self)

    def save(
        self,
        folder: Path | str,
        case: str | None = None,
        ending: str | None = None,
        probabilities: bool = True,
        prob_dtype: str = "float32",
    ) -> Path:
        """Write mask, foreground probabilities, entropy, provenance and what was kept into a folder; see `prediction.save`.

        Args:
            folder: Made if it is not there.
            case: Name of the case; None: that of the image's file.
            ending: Of the files, such as ".nii.gz"; None: that of the image's file, .png for a lossy one.
            probabilities: Whether they are written.
            prob_dtype: As what they are stored: "float32", or "uint8" in 255 parts.

        Returns:
            The path of the mask.

        Raises:
            UserError: The folder cannot be written, the format cannot hold the image, or the mask would replace the image.
        """
        return save(self, Path(folder), case, ending, probabilities, prob_dtype)


def save(
    prediction: Prediction,
    folder: Path,
    case: str | None = None,
    ending: str | None = None,
    probabilities: bool = True,
    prob_dtype: str = "float32",
) -> Path:
    """Write one case into a folder, in the image's own geometry; returns the path of the mask.

    <case><ending>          label values, the smallest integer type that holds them
    <case>_prob<ending>     probability of the foreground classes, several as channels; .png: one file per class;
                            left out without `probabilities`; with `prob_dtype` "uint8" in 255 parts, of which the
                            header of NIfTI says so (scl_slope 1/255), and the record (prob_dtype)
    <case>_entropy<ending>  nats; .png: as a fraction of log(classes)
    <case>_draws<ending>    label values of each draw as channels, if they were kept; .png: <case>_draws.tif
    <case>_steps<ending>    percent of foreground of each step as channels, if they were kept; .png: <case>_steps.tif
    <case>_preview.png      of .png and .tif: the image with the mask in colours, which no reader takes for a mask
    <case>.json             provenance; written last, so that its presence says that the case is finished

    Case and ending are by default those of the image's file (.png for a lossy one); each file is written aside and then
    renamed.

    Raises:
        UserError: The folder cannot be written, the format cannot hold the image, or the mask would replace the image.
    """
    source, folder = prediction.image.source, Path(folder)
    stack = prediction.image.header if isinstance(prediction.image.header, Stack) else None
    if ending is None:
        ending = ending_for(stack or source) if source is not None else (".png" if prediction.image.dims == 2 else ".nii.gz")
    if case is None and stack is not None:
        case = case_name(stack, stack.place, False)
    elif case is None:
        case = "prediction" if source is None else re.sub(r"_0000$", "", io.case_of(source, io.ending_of(source)))
    if source is not None and folder.joinpath(case + ending).resolve() == source.resolve():
        raise UserError("the mask would take the place of the image", file=source, do="Choose another folder or name")
    record = folder / f"{case}.json"
    if record.exists():
        record.unlink()  # while its files are replaced the case is not finished
    mask = folder / (case + ending)
    _write_kept(prediction, folder, case, ending)
    if not probabilities:
        _remove_probabilities(prediction, folder, case, ending)
    for name, probability in _probabilities(prediction, ending) if probabilities else ():
        several, bytes_ = probability.shape != prediction.mask.shape, prob_dtype == "uint8"
        stored, slope = (in_bytes(probability, several), 1 / 255) if bytes_ else (probability, 1.0)
        io.write(folder / sidecar_name(case, name, ending), stored, prediction.image, slope)
    entropy, unit = prediction.uncertainty["entropy"], "nats"
    if ending == ".png":
        classes = len(prediction.probability)
        entropy, unit = as_fraction(entropy, math.log(classes)), f"fraction of log({classes}) nats"
    io.write(folder / sidecar_name(case, "entropy", ending), entropy, prediction.image)
    if ending in LOSSLESS and prediction.mask.ndim == 2:
        labels = prediction.provenance["labels"]
        write_preview(prediction.image.data, prediction.mask, labels, folder / sidecar_name(case, PREVIEW, ending))
    io.write(mask, prediction.mask, prediction.image)  # after its maps: a mask without them is not ours to replace
    how = {"prob_dtype": prob_dtype} if prob_dtype != "float32" else {}
    how = how if probabilities else {"probabilities": False}
    write_json(record, {"case": case} | prediction.provenance | {"entropy_unit": unit} | how)
    return mask


def in_bytes(values: Float[np.ndarray, "*s"], several: bool) -> UInt8[np.ndarray, "*s"]:
    """Values in [0, 1], of one plane or several, in 255 parts."""
    found = scratch.zeros(values.shape, np.uint8)
    for plane, stored in zip(values, found, strict=True) if several else [(values, found)]:
        for part in blocks(plane.shape):
            stored[part] = np.rint(255 * plane[part])
    return found


def as_fraction(values: Float[np.ndarray, "*s"], top: float) -> Float[np.ndarray, "*s"]:
    """values / top, in [0, 1]."""
    found = scratch.zeros(values.shape)
    for part in blocks(values.shape):
        found[part] = np.clip(values[part] / top, 0, 1)
    return found


def ending_for(source: Path | Stack) -> str:
    """The file ending of results: that of the image, or where that is only read .png for .jpg, .mha for .mhd.

    Of DICOM it is .nii.gz, of a picture .png.
    """
    if isinstance(source, Stack):
        return ".nii.gz" if source.dims == 3 else ".png"
    ending = io.ending_of(source)
    return io.WRITTEN_AS.get(ending, ending)


def _probabilities(prediction: Prediction, ending: str) -> list[tuple[str, np.ndarray]]:
    foreground = prediction.probability[1:]
    for part in blocks(foreground.shape[1:]):  # interpolation may leave [0, 1] by a rounding error; in place: it may be large
        np.clip(foreground[:, part], 0, 1, out=foreground[:, part])
    names = probability_names(prediction.provenance["labels"], ending)
    if len(names) == 1:
        return [(names[0], foreground[0] if len(foreground) == 1 else foreground)]
    return list(zip(names, foreground, strict=True))


def _remove_probabilities(prediction: Prediction, folder: Path, case: str, ending: str) -> None:
    """Those of an earlier prediction must not stay beside the new mask."""
    if (folder / sidecar_name(case, "entropy", ending)).exists():
        for name in probability_names(prediction.provenance["labels"], ending):
            (folder / sidecar_name(case, name, ending)).unlink(missing_ok=True)


def _write_kept(prediction: Prediction, folder: Path, case: str, ending: str) -> None:
    """Write the draws and steps that were kept; those of an earlier prediction must not stay beside the new mask."""
    ours = (folder / sidecar_name(case, "entropy", ending)).exists()
    for what, planes in zip(KEPT, (prediction.draws, prediction.steps), strict=True):
        path = folder / sidecar_name(case, what, ending)
        if planes is not None:
            io.write(path, planes, prediction.image)
        elif ours:
            path.unlink(missing_ok=True)
