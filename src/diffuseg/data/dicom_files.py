"""DICOM files by their headers: which files of a folder are images, and what each slice or frame says of itself.

Not a voxel is looked at here. Names and endings count for nothing: a file is DICOM if its first bytes say so. Of a header only
what tells slices, stacks and series apart is kept; nothing of the patient.
"""

import contextlib
import math
import os
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffuseg.errors import UserError
from diffuseg.text import few

EXTRA = 'pip install "diffuseg[dicom]"'
# What has rows and columns and is no image of a patient: segmentations, dose, what is made of images or points at them.
NO_IMAGES = {
    "SEG",
    "RTDOSE",
    "RTSTRUCT",
    "RTPLAN",
    "RTRECORD",
    "SR",
    "KO",
    "PR",
    "REG",
    "FID",
    "DOC",
    "AU",
    "ECG",
    "M3D",
    "PLAN",
}
NO_IMAGE_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.30": "parametric map",
    "1.2.840.10008.5.1.4.1.1.66.4": "SEG",
    "1.2.840.10008.5.1.4.1.1.66.7": "SEG",
    "1.2.840.10008.1.3.10": "DICOMDIR",
}
# What may differ between several images at one position, and how it is called; the first that splits them evenly is followed.
TRAITS = {
    "TemporalPositionIdentifier": "time point",
    "TemporalPositionIndex": "time point",
    "EchoTime": "echo time",
    "EffectiveEchoTime": "echo time",
    "EchoNumbers": "echo",
    "DiffusionBValue": "b-value",
    "TriggerTime": "trigger time",
    "NominalCardiacTriggerDelayTime": "trigger delay",
    "InversionTime": "inversion time",
    "ImageType": "image type",
    "FrameType": "frame type",
    "FrameAcquisitionNumber": "acquisition",
    "AcquisitionNumber": "acquisition",
    "AcquisitionTime": "acquisition time",
    "ConvolutionKernel": "kernel",
}
HEADER = (
    "SOPClassUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality", "SeriesNumber",
    "SeriesDescription", "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "PixelSpacing",
    "ImagerPixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "SliceThickness", "SpacingBetweenSlices",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", *TRAITS,
)  # fmt: skip


@dataclass(frozen=True)
class Slice:
    """One image plane as its header describes it: a file, or a frame of a file.

    frame        number of the frame in a multi-frame file, from 0; None of a file that is one plane
    shape        rows and columns
    position     centre of the first pixel, LPS mm; None where the image has no place in the patient
    orientation  directions of a row and of a column, LPS, six numbers
    spacing      mm between rows and between columns
    traits       what may differ between images at one position (see TRAITS)
    """

    file: Path
    frame: int | None
    series: str
    number: int | None
    description: str
    modality: str
    localizer: bool
    mosaic: bool
    shape: tuple[int, int]
    samples: int
    photometric: str
    space: str
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, float] | None
    thickness: float | None
    film: bool = False
    traits: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """How messages name it: the file, and the frame where there are several."""
        return self.file.name if self.frame is None else f"{self.file.name} (frame {self.frame + 1})"


def pydicom() -> Any:
    """The library that reads DICOM.

    Raises:
        UserError: It is not installed; the message names the extra.
    """
    try:
        import pydicom
    except ImportError:
        raise UserError("reading and writing DICOM needs pydicom and highdicom", do=EXTRA) from None
    return pydicom


@contextlib.contextmanager
def lenient() -> Generator[None, None, None]:
    """Values that break a rule of form, such as a number that is too long, are taken as they are and without a word."""
    config = pydicom().config
    with config.disable_value_validation():
        yield


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its first bytes: "DICM" after a preamble, or, of old files, the first group without one.

    Raises:
        UserError: The file cannot be read.
    """
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            start = file.read(132)
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror or error})", file=path) from None
    old = start[:2] == b"\x08\x00" and start[2:4] in (b"\x00\x00", b"\x01\x00", b"\x05\x00", b"\x08\x00", b"\x16\x00")
    return start[128:] == b"DICM" or (old and len(start) == 132)


def dicom_files(place: Path, nested: bool = True) -> list[Path]:
    """The DICOM files of a folder, and with `nested` of those in it; hidden files and folders are passed over.

    Raises:
        UserError: Beside them are links that lead nowhere, which may be slices.
    """
    found, lost = [], []
    for folder, inner, names in os.walk(place):
        inner[:] = sorted(name for name in inner if nested and not name.startswith("."))
        paths = [Path(folder, name) for name in sorted(names) if not name.startswith(".")]
        found += [path for path in paths if is_dicom(path)]
        lost += [path for path in paths if path.is_symlink() and not path.exists()]
    if found and lost:
        do = "Fetch the files (datalad get, git annex get), or remove the links"
        raise UserError(f"links to nowhere: {few(path.name for path in lost)}", file=place, do=do)
    return found


def holds_dicom(place: Path) -> bool:
    """Whether there is a DICOM file in a folder or below it."""
    for folder, inner, names in os.walk(place):
        inner[:] = [name for name in inner if not name.startswith(".")]
        if any(is_dicom(Path(folder, name)) for name in sorted(names) if not name.startswith(".")):
            return True
    return False


def read_slices(files: Iterable[Path]) -> tuple[list[Slice], dict[str, int]]:
    """The planes of all image files, and how many files hold something else, by what it is ("SR", "SEG", ...).

    Raises:
        UserError: A file is DICOM and cannot be read: it may be a slice.
    """
    slices: list[Slice] = []
    others: Counter[str] = Counter()
    with lenient():
        for file in files:
            header = read_header(file, HEADER)
            try:
                other = _no_image(header)
                if other is not None:
                    _refuse_cut_off(header, file)
                    others[other] += 1
                    continue
                slices += _slices(header, file)
            except UserError:
                raise
            except Exception as error:  # values are decoded when they are asked for, and a broken one raises anything
                reason = " ".join(str(error).split())[:160]
                raise UserError(f"its header cannot be understood ({reason})", file=file, do="Export it again") from None
    return slices, dict(others)


def read_header(file: Path, keywords: Sequence[str] | None = None) -> Any:
    """A header without the pixels, or only these elements of it.

    Args:
        file: A DICOM file.
        keywords: Names of the elements, such as "Rows"; None: all but the pixels.

    Raises:
        UserError: It cannot be read.
    """
    tags = None if keywords is None else list(keywords)
    try:
        return pydicom().dcmread(file, stop_before_pixels=True, specific_tags=tags, force=True)
    except Exception as error:  # a broken file raises anything at all
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        what = f"is DICOM and cannot be read, broken or truncated ({reason})"
        raise UserError(what, file=file, do="Copy or export it again, or take it away") from None


def _no_image(header: Any) -> str | None:
    """What an object without an image of the patient is; None for an image."""
    kind = str(getattr(header, "SOPClassUID", ""))
    modality = str(getattr(header, "Modality", "") or "")
    if kind in NO_IMAGE_CLASSES:
        return NO_IMAGE_CLASSES[kind]
    if modality in NO_IMAGES:
        return modality
    if not (getattr(header, "Rows", None) and getattr(header, "Columns", None)):
        media = getattr(header, "file_meta", {}).get("MediaStorageSOPClassUID", "")
        return NO_IMAGE_CLASSES.get(str(media), modality or "without an image")
    return None


def _refuse_cut_off(header: Any, file: Path) -> None:
    """Refuse an object that calls itself an image and does not say how large it is: its header ends too early."""
    kind = getattr(header, "SOPClassUID", None) or getattr(header, "file_meta", {}).get("MediaStorageSOPClassUID", "")
    if "Image Storage" in pydicom().uid.UID(str(kind)).name and not getattr(header, "Rows", None):
        raise UserError("is an image whose header is cut off", file=file, do="Copy or export it again, or take it away")


def _slices(header: Any, file: Path) -> list[Slice]:
    frames = int(getattr(header, "NumberOfFrames", 1) or 1)
    groups = getattr(header, "PerFrameFunctionalGroupsSequence", None)
    if groups is None:
        return [_slice(header, file, None, [header], film=frames > 1)]
    if len(groups) != frames:
        raise ValueError(f"{frames} frames, but {len(groups)} of them are described")
    shared = getattr(header, "SharedFunctionalGroupsSequence", None) or [None]
    return [_slice(header, file, n, [*_items(group), *_items(shared[0]), header]) for n, group in enumerate(groups)]


def _items(group: Any) -> list[Any]:
    """The data sets in the sequences of a functional group."""
    return [] if group is None else [item for element in group if element.VR == "SQ" for item in element.value]


def _slice(header: Any, file: Path, frame: int | None, places: list[Any], film: bool = False) -> Slice:
    """One plane; each value is that of the first of `places` that has one: the frame's own, the shared ones, the header."""

    def get(name: str) -> Any:
        values = (getattr(place, name, None) for place in places)
        return next((value for value in values if value is not None and str(value) != ""), None)

    numbers = lambda name, count: _numbers(get(name), name, count)
    kind = [str(part).upper() for part in (get("FrameType") or get("ImageType") or ())]
    position, orientation = numbers("ImagePositionPatient", 3), numbers("ImageOrientationPatient", 6)
    placed = position is not None and orientation is not None and not film
    spacing = numbers("PixelSpacing", 2) or numbers("ImagerPixelSpacing", 2)
    between, thick = numbers("SpacingBetweenSlices", 1), numbers("SliceThickness", 1)
    number = getattr(header, "SeriesNumber", None)
    return Slice(
        file=file,
        frame=frame,
        series=str(getattr(header, "SeriesInstanceUID", "")),
        number=None if number in (None, "") else int(number),
        description=" ".join(str(getattr(header, "SeriesDescription", "") or "").split()),
        modality=str(getattr(header, "Modality", "") or "?"),
        localizer="LOCALIZER" in kind,
        mosaic="MOSAIC" in kind,
        shape=(int(header.Rows), int(header.Columns)),
        samples=int(getattr(header, "SamplesPerPixel", 1) or 1),
        photometric=str(getattr(header, "PhotometricInterpretation", "")),
        space=str(getattr(header, "FrameOfReferenceUID", "")),
        position=position if placed else None,
        orientation=orientation if placed else None,
        spacing=None if spacing is None else (spacing[0], spacing[1]),
        thickness=next((abs(value[0]) for value in (between, thick) if value and value[0]), None),
        film=film or (frame is not None and not placed),
        traits={name: _plain(get(name)) for name in TRAITS if get(name) is not None},
    )


def _numbers(value: Any, name: str, count: int) -> tuple[float, ...] | None:
    """So many finite numbers; None where there is nothing."""
    if value is None or (count > 1 and len(value) == 0):
        return None
    found = tuple(float(part) for part in ([value] if count == 1 else value))
    if len(found) != count or not all(map(math.isfinite, found)):
        raise ValueError(f"{name} is {value}")
    return found


def _plain(value: Any) -> str:
    return str(value) if isinstance(value, str) or not isinstance(value, Sequence) else "/".join(map(str, value))
