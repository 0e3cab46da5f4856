"""DICOM series of an asymmetric phantom, made with pydicom: different extents and marks along all three axes.

`Phantom` says where it lies; `write_series` writes one file per slice, `write_enhanced` one file for all. `affine` is
worked out here on its own, from the definitions in DICOM PS3.3 C.7.6.2.1.1.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

CT, MR, CR, ENHANCED_MR = (f"1.2.840.10008.5.1.4.1.1.{n}" for n in ("2", "4", "1", "4.1"))
ORIENTATIONS = {
    "axial": (1, 0, 0, 0, 1, 0),
    "sagittal": (0, 1, 0, 0, 0, -1),
    "coronal": (1, 0, 0, 0, 0, -1),
    "feet first": (-1, 0, 0, 0, 1, 0),
    "prone": (-1, 0, 0, 0, -1, 0),
    "oblique": (0.8, 0.6, 0, -0.48, 0.64, 0.6),
}


def blocks(shape=(7, 6, 5)) -> np.ndarray:
    """Voxels [i, j, k]: a ramp that differs along each axis, and a bright mark at one corner only."""
    i, j, k = np.indices(shape)
    data = 100 + 3 * i + 11 * j + 37 * k
    data[0, 0, 0], data[1, 0, 0], data[0, 1, 0] = 900, 800, 700
    data[0, 0, 1:2] = 600
    return data.astype(np.int16)


@dataclass
class Phantom:
    """voxels [column, row, slice]; step is the way from slice to slice in LPS mm, None: along the normal by `gap`."""

    data: np.ndarray = field(default_factory=blocks)
    orientation: tuple[float, ...] = ORIENTATIONS["axial"]
    spacing: tuple[float, float] = (0.7, 1.3)  # between rows, between columns
    gap: float = 2.5
    origin: tuple[float, float, float] = (-31.25, 17.5, 42.0)
    step: tuple[float, float, float] | None = None

    @property
    def way(self) -> np.ndarray:
        if self.step is not None:
            return np.array(self.step)
        a, b = np.reshape(self.orientation, (2, 3))
        normal = [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
        return self.gap * np.array(normal)

    def position(self, k: int) -> np.ndarray:
        return np.array(self.origin) + k * self.way

    def affine(self) -> np.ndarray:
        """(column, row, slice) -> RAS mm by equation C.7.6.2.1-1, slice by slice."""
        affine = np.zeros((4, 4))
        affine[3, 3] = 1
        for axis in range(3):
            affine[axis, 0] = self.orientation[axis] * self.spacing[1]
            affine[axis, 1] = self.orientation[3 + axis] * self.spacing[0]
            affine[axis, 2] = self.way[axis]
            affine[axis, 3] = self.origin[axis]
        affine[:2] *= -1  # LPS to RAS
        return affine


def number(value: float) -> str:
    """A decimal string of at most 16 characters, as exact as it can be."""
    return next(text for text in (f"{value:.{digits}g}" for digits in range(16, 1, -1)) if len(text) <= 16)


def header(sop: str = MR, series: str | None = None, **values) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = UID(sop), generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    ds.SeriesInstanceUID, ds.StudyInstanceUID = series or generate_uid(), "1.2.826.0.1.3680043.8.498.1"
    ds.FrameOfReferenceUID, ds.Modality = "1.2.826.0.1.3680043.8.498.2", {CT: "CT", CR: "CR"}.get(sop, "MR")
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "Secret^Name", "SECRET-ID", "19510203", "O"
    ds.StudyID, ds.StudyDate, ds.StudyTime, ds.AccessionNumber = "1", "20200102", "101112", "SECRET-ACC"
    ds.SeriesNumber, ds.SeriesDescription, ds.ImageType = 3, "made-up phantom", ["ORIGINAL", "PRIMARY", "OTHER"]
    ds.Manufacturer, ds.ReferringPhysicianName, ds.PositionReferenceIndicator = "none", "SECRET^Doctor", ""
    for name, value in values.items():
        setattr(ds, name, value)
    return ds


def set_pixels(ds: Dataset, planes: np.ndarray, photometric: str = "MONOCHROME2") -> None:
    """planes [row, column], [frame, row, column], or with a last axis of three colours."""
    colour = planes.shape[-1] == 3 and planes.dtype == np.uint8
    ds.Rows, ds.Columns = planes.shape[-3:-1] if colour else planes.shape[-2:]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = (3, "RGB") if colour else (1, photometric)
    if colour:
        ds.PlanarConfiguration = 0
    bits = 8 * planes.dtype.itemsize
    ds.BitsAllocated = ds.BitsStored = bits
    ds.HighBit, ds.PixelRepresentation = bits - 1, int(planes.dtype.kind == "i")
    ds.PixelData = planes.tobytes() + b"\0" * (planes.nbytes % 2)
    ds["PixelData"].VR = "OB" if bits == 8 else "OW"


def slices(phantom: Phantom, sop: str = MR, photometric: str = "MONOCHROME2", **values) -> list[FileDataset]:
    """One data set per slice, in the order of k; instance numbers run the other way, as they mean nothing."""
    made, series = [], values.pop("series", None) or generate_uid()
    for k in range(phantom.data.shape[2]):
        ds = header(sop, series, **values)
        ds.InstanceNumber, ds.SliceThickness = phantom.data.shape[2] - k, "9.9"
        ds.ImagePositionPatient = [number(value) for value in phantom.position(k)]
        ds.ImageOrientationPatient = [number(value) for value in phantom.orientation]
        ds.PixelSpacing = [number(value) for value in phantom.spacing]
        set_pixels(ds, np.ascontiguousarray(phantom.data[:, :, k].T), photometric)
        made.append(ds)
    return made


def write(datasets: list[FileDataset], folder: Path, seed: int = 0, names: str = "IM{:04d}") -> list[Path]:
    """The files in the order of the data sets; their names are shuffled."""
    folder.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(seed).permutation(len(datasets))
    paths = [folder / names.format(n) for n in order]
    for ds, path in zip(datasets, paths, strict=True):
        ds.save_as(path, enforce_file_format=True)
    return paths


def write_series(folder: Path, phantom: Phantom | None = None, **values) -> list[Path]:
    return write(slices(phantom or Phantom(), **values), folder)


def enhanced(phantom: Phantom, order: list[int] | None = None, slopes: list[float] | None = None) -> FileDataset:
    """One multi-frame data set; frames in this order of k, each with a slope of its own."""
    count = phantom.data.shape[2]
    order = list(range(count)) if order is None else order
    ds = header(ENHANCED_MR)
    ds.NumberOfFrames, ds.InstanceNumber = count, 1
    measures, plane = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [number(value) for value in phantom.spacing], "9.9"
    plane.ImageOrientationPatient = [number(value) for value in phantom.orientation]
    shared = Dataset()
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Sequence([measures]), Sequence([plane])
    ds.SharedFunctionalGroupsSequence, frames = Sequence([shared]), []
    for n, k in enumerate(order):
        place, change, content, frame = Dataset(), Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [number(value) for value in phantom.position(k)]
        change.RescaleSlope, change.RescaleIntercept = str((slopes or [1] * count)[k]), "0"
        change.RescaleType, content.DimensionIndexValues = "US", [n + 1]
        frame.PlanePositionSequence, frame.FrameContentSequence = Sequence([place]), Sequence([content])
        frame.PixelValueTransformationSequence = Sequence([change])
        frames.append(frame)
    ds.PerFrameFunctionalGroupsSequence = Sequence(frames)
    set_pixels(ds, np.ascontiguousarray(phantom.data[:, :, order].transpose(2, 1, 0)))
    return ds
