"""A prediction as DICOM: segmentations on the grid of its source, and a report of volumes with their intervals.

<case>_seg.dcm      SEG of the mask, BINARY or LABELMAP: one frame per source slice (and segment); segments 1, 2, ... are the
                    foreground classes by rising label value
<case>_prob.dcm     FRACTIONAL SEG: probability of each foreground class, in steps of 1/255
<case>_entropy.dcm  FRACTIONAL SEG: entropy as a fraction of log(classes), in steps of 1/255
<case>_sr.dcm       Comprehensive 3D SR, TID 1500: volume and its 90 % interval per class

Patient, study and frame of reference are those of the source, which the files refer to. Needs the extra `diffuseg[dicom]`.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from diffuseg.atomic_io import atomic_path
from diffuseg.data.dicom_files import lenient, pydicom, read_header
from diffuseg.data.dicom_series import Stack
from diffuseg.data.outputs import record_of
from diffuseg.errors import UserError
from diffuseg.inference.dicom_codes import Code, check_codes, codes_of
from diffuseg.inference.dicom_report import MAKER, highdicom, volume_report
from diffuseg.inference.prediction import Prediction

NAMES = ("seg", "prob", "entropy", "sr")
STEPS = 255  # a fraction is stored as so many parts of 1
NEEDED = (  # what a segmentation takes from its source, and old or stripped files may lack
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate", "StudyTime",
    "ReferringPhysicianName",
)  # fmt: skip


@dataclass(frozen=True)
class DicomOut:
    """What to write as DICOM.

    kind   "binary", one frame per class and slice, or "labelmap", newer and smaller, which fewer programs read
    codes  by class, see `read_codes`; "tissue" for a class without
    """

    kind: str = "binary"
    codes: Mapping[str, dict[str, Code]] = field(default_factory=dict)


def dicom_names(case: str, dims: int = 3, probabilities: bool = True) -> list[str]:
    """The names of the files that `save_dicom` writes for a volume (dims 3) or a picture."""
    return [f"{case}_{what}.dcm" for what in NAMES if (dims == 3 or what != "sr") and (probabilities or what != "prob")]


def refuse_dicom_out(
    out: DicomOut | None, cases: Mapping[str, Sequence[Path | Stack]], labels: Mapping[str, int], folder: Path
) -> None:
    """Check before any work that DICOM can be written.

    Args:
        out: What is asked for; None: no DICOM.
        cases: What they are read from.
        labels: Of the model.
        folder: Where results go.

    Raises:
        UserError: An image is not DICOM, the library is not there, codes are of unknown classes, or a result would replace an
            input.
    """
    if out is None:
        return
    highdicom()
    check_codes(out.codes, labels)
    for case, paths in cases.items():
        source = paths[0]
        if not isinstance(source, Stack):
            what = "--dicom-out writes results of DICOM series, and this is none"
            raise UserError(what, file=source, do="Give its DICOM folder, or leave out --dicom-out")
        taken = {file.resolve() for file in source.files} & {(folder / name).resolve() for name in dicom_names(case)}
        if taken:
            raise UserError("a result would take the place of this input", file=taken.pop(), do="Choose another --out")


def lacks_dicom(out: DicomOut | None, folder: Path, case: str, source: Path | Stack, probabilities: bool) -> bool:
    """Whether a finished case has no DICOM of the kind that is asked for.

    Args:
        out: What is asked for; None: nothing.
        folder: Of the results.
        case: Its name.
        source: What it was read from; of files that are not DICOM nothing is asked.
        probabilities: Whether these are asked for.
    """
    if out is None or not isinstance(source, Stack):
        return False
    there = record_of(folder, case).get("dicom", {}).get("kind") == out.kind
    names = dicom_names(case, source.dims, probabilities)
    return not (there and all(folder.joinpath(name).exists() for name in names))


def replace_dicom(prediction: Prediction, folder: Path, case: str, out: DicomOut | None, probabilities: bool) -> None:
    """Write DICOM where it is asked for; what an earlier prediction wrote must not stay beside a new mask.

    Args:
        prediction: Of a DICOM series.
        folder: Of the results.
        case: Its name.
        out: What is asked for; None: nothing.
        probabilities: Whether these are asked for.
    """
    for name in record_of(folder, case).get("dicom", {}).get("files", []):
        if name in dicom_names(case):
            folder.joinpath(name).unlink(missing_ok=True)
    if out is not None:
        save_dicom(prediction, folder, case, out, probabilities)


def save_dicom(
    prediction: Prediction, folder: Path, case: str, out: DicomOut | None = None, probabilities: bool = True
) -> list[Path]:
    """Write a prediction of a DICOM series as DICOM, and note it in its provenance; returns the files.

    Args:
        prediction: Of an image that was read from DICOM.
        folder: Where to.
        case: How the names of the files begin.
        out: What kind, with which codes.
        probabilities: Also write the probabilities.

    Raises:
        UserError: An image that was not read from DICOM, or from several multi-frame files; no highdicom.
    """
    out = out or DicomOut()
    highdicom()
    stack = prediction.image.header
    if not isinstance(stack, Stack):
        raise UserError(
            "DICOM can be written of a DICOM series alone", file=prediction.image.source, do="Leave out --dicom-out"
        )
    if stack.slices[0].frame is not None and len(stack.files) > 1:
        raise UserError("DICOM of several multi-frame files cannot be written", file=stack.place, do="Leave out --dicom-out")
    with lenient():
        headers = _headers(stack)
        names = _names(prediction)
        described = [_segment(k, name, out.codes, prediction) for k, name in enumerate(names, 1)]
        values = prediction.provenance["labels"]
        index = sum((prediction.mask == values[name]) * k for k, name in enumerate(names, 1))
        made = {"seg": _segmentation(stack, headers, np.asarray(index, np.uint8), described, out.kind.upper(), "mask")}
        if probabilities:
            planes = np.clip(prediction.probability[1:], 0, 1)
            made["prob"] = _segmentation(stack, headers, planes, described, "FRACTIONAL", "probability of each class")
        entropy = np.clip(prediction.uncertainty["entropy"] / math.log(len(values)), 0, 1)[None]
        what = f"uncertainty: entropy as a fraction of log({len(values)})"
        unsure = [_segment(1, "Uncertainty (entropy)", {}, prediction)]
        made["entropy"] = _segmentation(stack, headers, entropy, unsure, "FRACTIONAL", what)
        if stack.dims == 3:
            made["sr"] = volume_report(prediction, headers, made["seg"], names, out.codes)
        paths = [_write(folder / f"{case}_{what}.dcm", made[what]) for what in NAMES if what in made]
    prediction.provenance["dicom"] = {"kind": out.kind, "files": [path.name for path in paths]}
    return paths


def _write(path: Path, dataset: Any) -> Path:
    with atomic_path(path) as aside:
        dataset.save_as(aside)
    return path


def _names(prediction: Prediction) -> list[str]:
    """The foreground classes, by rising value."""
    labels = prediction.provenance["labels"]
    return sorted(labels, key=labels.__getitem__)[1:]


def _headers(stack: Stack) -> list[Any]:
    """The headers of the source files in the order of space, with empty values for what they lack."""
    headers = [read_header(file) for file in stack.files]
    for header in headers:
        for name in NEEDED:
            if name not in header:
                setattr(header, name, None if "Date" in name or "Time" in name else "")
        header.ensure_file_meta()
        if "TransferSyntaxUID" not in header.file_meta:
            header.file_meta.TransferSyntaxUID = pydicom().uid.ImplicitVRLittleEndian
    return headers


def _segment(number: int, name: str, codes: Mapping[str, dict[str, Code]], prediction: Prediction) -> Any:
    hd = highdicom()
    known = codes_of(name, codes)
    category, kind = (hd.sr.CodedConcept(*known[key]) for key in ("category", "type"))
    made = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=name[:64],
        segmented_property_category=category,
        segmented_property_type=kind,
        algorithm_type="AUTOMATIC",
        algorithm_identification=_algorithm(prediction),
        tracking_uid=hd.UID(),
        tracking_id=name[:64],
    )
    if "modifier" in known:
        made.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [
            hd.sr.CodedConcept(*known["modifier"])
        ]
    return made


def _algorithm(prediction: Prediction) -> Any:
    hd, record = highdicom(), prediction.provenance
    return hd.AlgorithmIdentificationSequence(
        name=f"diffuseg {record['model_name']}"[:64],
        family=hd.sr.CodedConcept("123110", "DCM", "Artificial Intelligence"),
        version=f"{_version()} ({record['model']})"[:64],
        parameters={name: str(record[name]) for name in ("draws", "steps", "seed") if record.get(name) is not None},
    )


def _version() -> str:
    from diffuseg import __version__

    return __version__


def _segmentation(stack: Stack, headers: list[Any], planes: np.ndarray, segments: list[Any], kind: str, what: str) -> Any:
    """A SEG of classes [i, j, k], or of fractions [segments, i, j, k], with all frames of the source, the empty ones too."""
    hd, uids = highdicom(), pydicom().uid
    frames = planes if kind == "FRACTIONAL" else planes[None]
    if stack.dims == 2:
        frames = frames[..., None].swapaxes(1, 2)
    frames = np.ascontiguousarray(frames.transpose(3, 2, 1, 0))  # [slice, row, column, segment]
    positions = None
    numbers = [part.frame for part in stack.slices]
    if numbers[0] is not None:
        if len(numbers) == int(headers[0].NumberOfFrames):
            frames = frames[np.argsort(np.array(numbers))]  # as in the file
        else:
            places = [part.position for part in stack.slices]
            positions = [hd.PlanePositionSequence("PATIENT", place) for place in places]
    compact = kind != "BINARY"
    made = hd.seg.Segmentation(
        source_images=headers,
        pixel_array=frames if kind == "FRACTIONAL" else frames[..., 0],
        segmentation_type=kind,
        segment_descriptions=segments,
        series_instance_uid=hd.UID(),
        series_number=_series_number(stack),
        sop_instance_uid=hd.UID(),
        instance_number=1,
        software_versions=_version(),
        max_fractional_value=STEPS,
        plane_positions=positions,
        omit_empty_frames=False,
        transfer_syntax_uid=uids.RLELossless if compact else uids.ExplicitVRLittleEndian,
        content_label=kind,
        content_description=what[:64],
        **MAKER,
    )
    made.SeriesDescription = f"diffuseg {what}"[:64]
    return made


def _series_number(stack: Stack) -> int:
    """That of the source times 100: it tells what the series is made of, and rarely meets another one."""
    with suppress(TypeError):
        return 100 * max(int(stack.slices[0].number), 0) + 1  # type: ignore[arg-type]
    return 100
