"""DICOM as `convert` takes it: image series, and what SEG and RTSTRUCT objects in the same folders mark on them.

A mask belongs to the series that it refers to, wherever the two files lie. Frames and contours are laid by their positions in
space onto the voxels of the series; what does not lie on these is refused, as nothing is resampled. Cases are called after
their folders, and patients are numbered: nothing of the header goes into the data set.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from diffuseg.data.claimed_size import DEFLATE, Claim, check_claim
from diffuseg.data.convert.pairing import Drawn, Pair, Pairing, Shape
from diffuseg.data.convert.polygons import rasterise
from diffuseg.data.convert.reading import attempt
from diffuseg.data.dicom_files import dicom_files, lenient, pydicom, read_header
from diffuseg.data.dicom_series import ELSEWHERE, Stack, find_stacks
from diffuseg.data.geometry import LPS_TO_RAS
from diffuseg.errors import UserError
from diffuseg.text import few
from diffuseg.types import Image

BETWEEN = 0.3  # of a slice: as far as a contour may be from one
MARKS = {"SEG", "RTSTRUCT"}
AS_IT_IS = "`diffuseg predict MODEL FOLDER` takes DICOM as it is"


@dataclass(frozen=True)
class Marks:
    """What one object marks: the series it refers to, and its segments or regions by name, with their numbers."""

    file: Path
    series: str
    space: str
    parts: tuple[tuple[str, int], ...]
    read: Callable[[Path, int, Image], np.ndarray]


def pair_dicom(source: Path, wanted: Sequence[str] = ()) -> Pairing:
    """The series below a folder with what is marked on them; of structures the wanted ones, or all.

    Raises:
        UserError: Nothing is marked, one structure of a series is marked twice, or a file cannot be read.
    """
    files = dicom_files(source)
    with lenient():
        marks = [each for file in files if (each := attempt(file, partial(_marks, file))) is not None]
    if not marks:
        do = f"Export masks as one of them into this folder; {AS_IT_IS}"
        raise UserError("a data set needs masks, and no DICOM SEG or RTSTRUCT is here", file=source, do=do)
    stacks = [stack for stack in find_stacks(source)[0] if stack.dims == 3 and not stack.localizer]
    drawn: dict[int, list[Drawn]] = defaultdict(list)
    lost = []
    for each in marks:
        number = _image_of(each, stacks)
        if number is None:
            lost.append(each.file)
            continue
        parts = [(name, part) for name, part in each.parts if not wanted or name in wanted]
        drawn[number] += [Drawn(each.file, what=name, read=partial(each.read, each.file, part)) for name, part in parts]
    names = _names(stacks, source)
    for number, found in drawn.items():
        twice = [what for what, count in Counter(one.what for one in found).items() if count > 1]
        if twice:
            what = f"{names[number]}: {few(twice)} marked more than once, in {few(sorted({one.path.name for one in found}))}"
            raise UserError(what, file=source, do="Take away all but one of these files")
    pairs = [Pair(names[number], (stacks[number].place,), tuple(found)) for number, found in drawn.items() if found]
    bare = tuple(stack.place for number, stack in enumerate(stacks) if not drawn.get(number))
    patients = _patients({names[number]: stack for number, stack in enumerate(stacks)})
    ordered = tuple(sorted(pairs, key=lambda pair: pair.name))
    return Pairing(ordered, without_mask=bare, without_image=tuple(lost), patients=patients)


def _marks(file: Path) -> Marks | None:
    """What a file marks; None of any other object."""
    header = read_header(file, ["Modality"])
    if str(getattr(header, "Modality", "")) not in MARKS:
        return None
    header = read_header(file)
    if header.Modality == "SEG":
        if header.SegmentationType == "FRACTIONAL":
            do = "Export it as binary, or take it away"
            raise UserError("a fractional segmentation has no exact border", file=file, do=do)
        parts = [(str(one.SegmentLabel), int(one.SegmentNumber)) for one in header.SegmentSequence]
        refers = getattr(header, "ReferencedSeriesSequence", None)
        series = str(refers[0].SeriesInstanceUID) if refers else ""
        space = str(getattr(header, "FrameOfReferenceUID", ""))
        return Marks(file, series, space, tuple(part for part in parts if part[1]), read_segment)
    frame = header.ReferencedFrameOfReferenceSequence[0]
    studies = getattr(frame, "RTReferencedStudySequence", None) or []
    found = [str(one.SeriesInstanceUID) for study in studies for one in study.RTReferencedSeriesSequence]
    parts = [(str(one.ROIName), int(one.ROINumber)) for one in header.StructureSetROISequence]
    return Marks(file, found[0] if found else "", str(frame.FrameOfReferenceUID), tuple(parts), read_region)


def _image_of(marks: Marks, stacks: Sequence[Stack]) -> int | None:
    """The number of the stack that is meant: by its series, or the only one in the same space."""
    for key, value in (("series", marks.series), ("space", marks.space)):
        found = [number for number, stack in enumerate(stacks) if value and getattr(stack.slices[0], key) == value]
        if len(found) == 1:
            return found[0]
        if len(found) > 1 and key == "series":
            what = f"it is of a series that holds {len(found)} images"
            raise UserError(what, file=marks.file, do="Take away the images that it is not of")
    return None


def _names(stacks: Sequence[Stack], source: Path) -> list[str]:
    """After their folders, with the number of the series where a folder holds several."""
    folders = [stack.files[0].parent.relative_to(source).parts for stack in stacks]
    plain = ["_".join(parts) or source.resolve().name for parts in folders]
    return [
        name if plain.count(name) == 1 else f"{name}_{stack.label.replace('/', '_').replace('#', 'n')}"
        for name, stack in zip(plain, stacks, strict=True)
    ]


def _patients(stacks: dict[str, Stack]) -> dict[str, str]:
    """Case -> patient, numbered in the order of the cases; series without one are each of a patient of their own."""
    numbers: dict[str, int] = {}
    found = {}
    for name, stack in sorted(stacks.items()):
        file = stack.files[0]
        known = attempt(file, partial(_patient, file)) or f"unknown/{name}"
        found[name] = f"patient{numbers.setdefault(known, len(numbers) + 1)}"
    return found


def _patient(file: Path) -> str:
    return str(getattr(read_header(file, ["PatientID"]), "PatientID", "") or "")


@lenient()
def read_segment(file: Path, number: int, image: Image) -> np.ndarray:
    """One segment on the voxels of its series [column, row, slice], 0 and 1."""
    header, planes = _frames(file, file.stat().st_mtime_ns)
    shared = header.SharedFunctionalGroupsSequence[0] if getattr(header, "SharedFunctionalGroupsSequence", None) else None
    to_index, mask = np.linalg.inv(image.affine) @ LPS_TO_RAS, np.zeros(image.shape, np.uint8)
    labelmap = header.SegmentationType == "LABELMAP"
    for group, plane in zip(header.PerFrameFunctionalGroupsSequence, planes, strict=True):
        if labelmap or int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber) == number:
            _lay(plane == number if labelmap else plane > 0, _placement(group, shared), to_index, mask, file)
    return mask


@lru_cache(maxsize=1)
def _frames(file: Path, changed: int) -> tuple[Any, np.ndarray]:
    """Header and frames [n, row, column] of a segmentation; the last one is kept, as its segments are asked one by one."""
    header = pydicom().dcmread(file)
    shape = int(header.NumberOfFrames), int(header.Rows), int(header.Columns)
    check_claim(file, Claim(shape, 1), file.stat().st_size, 8 * DEFLATE)
    return header, header.pixel_array.reshape(shape)


def _placement(group: Any, shared: Any) -> np.ndarray:
    """(column, row, 0, 1) of a frame -> LPS mm, [4, 4]."""

    def of(name: str) -> Any:
        return next(getattr(place, name)[0] for place in (group, shared) if getattr(place, name, None))

    orientation = np.array(of("PlaneOrientationSequence").ImageOrientationPatient, float).reshape(2, 3)
    down, across = map(float, of("PixelMeasuresSequence").PixelSpacing)
    placed = np.eye(4)
    placed[:3, 0], placed[:3, 1] = orientation[0] * across, orientation[1] * down
    placed[:3, 3] = np.array(of("PlanePositionSequence").ImagePositionPatient, float)
    return placed


def _lay(marked: np.ndarray, placed: np.ndarray, to_index: np.ndarray, mask: np.ndarray, file: Path) -> None:
    """Mark the voxels on which the marked pixels [row, column] of a frame lie."""
    rows, columns = np.nonzero(marked)
    if not len(rows):
        return
    points = np.stack([columns, rows, np.zeros_like(rows), np.ones_like(rows)])
    at = (to_index @ placed @ points)[:3]
    voxels = np.rint(at).astype(int)
    steps = np.abs((to_index @ placed)[:3, :2])
    if np.abs(at - voxels).max() > ELSEWHERE or np.abs(steps - np.rint(steps)).max() > ELSEWHERE:
        raise UserError(
            "its pixels do not lie on the voxels of its series", file=file, do="Export it on the grid of the series"
        )
    if (voxels < 0).any() or (voxels >= np.array(mask.shape)[:, None]).any():
        raise UserError("part of what it marks lies outside of its series", file=file, do="Is it of this series?")
    mask[tuple(voxels)] = 1


@lenient()
def read_region(file: Path, number: int, image: Image) -> np.ndarray:
    """One region of a structure set on the voxels of its series, 0 and 1: a voxel is inside if its middle is.

    Of contours on one slice those within others are holes.
    """
    header = pydicom().dcmread(file)
    to_index, mask = np.linalg.inv(image.affine) @ LPS_TO_RAS, np.zeros(image.shape, np.uint8)
    for region in header.ROIContourSequence:
        for contour in getattr(region, "ContourSequence", ()) if int(region.ReferencedROINumber) == number else ():
            points = np.array(contour.ContourData, float).reshape(-1, 3)
            if len(points) < 3:
                continue  # a point marks no voxel
            columns, rows, at = (to_index @ np.concatenate([points, np.ones((len(points), 1))], 1).T)[:3]
            k = round(float(at.mean()))
            if np.abs(at - k).max() > BETWEEN:
                raise UserError(
                    "a contour lies between the slices of its series", file=file, do="Export it on the slices of the series"
                )
            if not 0 <= k < mask.shape[2]:
                raise UserError("part of what it marks lies outside of its series", file=file, do="Is it of this series?")
            outline = tuple((float(x), float(y)) for x, y in zip(columns + 0.5, rows + 0.5, strict=True))
            mask[:, :, k] ^= rasterise([Shape((outline,))], (mask.shape[1], mask.shape[0]), file).T
    return mask
