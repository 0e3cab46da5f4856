"""DICOM series with what is marked on them become a data set, voxel for voxel."""

import json
import shlex
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from typer.testing import CliRunner

from diffuseg.cli import app
from diffuseg.data.convert.dicom import pair_dicom
from diffuseg.data.dataset import open_dataset
from diffuseg.data.io import read_image, read_mask
from diffuseg.errors import UserError
from diffuseg.inference.dicom_seg import DicomOut, save_dicom
from tests.data.dicom_phantom import ORIENTATIONS, Phantom, header, number, write, write_series
from tests.inference.oracle import make_model
from tests.train.tiny import call, refused

CLASSES = {"background": 0, "near": 2, "far part": 5}


def convert(source: Path, out: Path, *more: str):
    return CliRunner().invoke(app, ["convert", str(source), "--out", str(out), "--yes", *more])


def mark(series: Path, kind: str = "binary", seed: int = 0) -> np.ndarray:
    """A segmentation of a series in its folder: any voxel may be of any class; returns these."""
    p = make_model(labels=CLASSES).predict(series, draws=1)
    p.mask = np.random.default_rng(seed).choice(sorted(CLASSES.values()), p.mask.shape).astype(np.uint8)
    (file, *others) = save_dicom(p, series, "marked", DicomOut(kind), probabilities=False)
    for other in others:  # entropy, and the report
        other.unlink()
    assert file.name == "marked_seg.dcm"
    return p.mask


def region(series: Path, phantom: Phantom, outlines: list, shift: float = 0.0) -> None:
    """A structure set: (name, slice, corners as (column, row)) in voxels, of which `phantom` says where they lie."""
    one = pydicom.dcmread(next(path for path in series.iterdir()))
    ds = header("1.2.840.10008.5.1.4.1.1.481.3", PatientID=one.PatientID)
    ds.Modality, names = "RTSTRUCT", list(dict.fromkeys(name for name, _, _ in outlines))
    refers, study, frame = Dataset(), Dataset(), Dataset()
    refers.SeriesInstanceUID, frame.FrameOfReferenceUID = one.SeriesInstanceUID, one.FrameOfReferenceUID
    study.RTReferencedSeriesSequence = Sequence([refers])
    frame.RTReferencedStudySequence = Sequence([study])
    ds.ReferencedFrameOfReferenceSequence = Sequence([frame])
    regions, drawn = [], []
    for n, name in enumerate(names, 1):
        known, contours = Dataset(), Dataset()
        known.ROINumber, known.ROIName, contours.ReferencedROINumber, found = n, name, n, []
        for k, corners in ((k, corners) for which, k, corners in outlines if which == name):
            contour = Dataset()
            at = [np.diag([-1, -1, 1, 1]) @ phantom.affine() @ [x, y, k + shift, 1] for x, y in corners]
            contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", len(at)
            contour.ContourData = [number(value) for point in at for value in point[:3]]
            found.append(contour)
        contours.ContourSequence = Sequence(found)
        regions, drawn = [*regions, known], [*drawn, contours]
    ds.StructureSetROISequence, ds.ROIContourSequence = Sequence(regions), Sequence(drawn)
    write([ds], series, names="RS{}")


@pytest.mark.parametrize(
    ("name", "kind"), [("axial", "binary"), ("sagittal", "labelmap"), ("oblique", "binary"), ("feet first", "labelmap")]
)
def test_a_series_and_its_segmentation_are_a_case_voxel_for_voxel(tmp_path, name, kind):
    phantom = Phantom(orientation=ORIENTATIONS[name])
    write_series(tmp_path / "in" / "scan", phantom)
    mask = mark(tmp_path / "in" / "scan", kind)
    with pytest.raises(UserError, match="diffuseg convert"):
        open_dataset(tmp_path / "in")
    done = convert(tmp_path / "in", tmp_path / "set")
    assert done.exit_code == 0, done.output
    dataset = open_dataset(tmp_path / "set")
    assert dataset.labels == {"background": 0, "near": 1, "far part": 2} and [case.id for case in dataset.cases] == ["scan"]
    image, found = read_image(dataset.cases[0].images[0]), read_mask(dataset.cases[0].masks[0])
    np.testing.assert_array_equal(image.data[0], phantom.data)
    np.testing.assert_array_equal(found.data[0], np.select([mask == 2, mask == 5], [1, 2]))
    np.testing.assert_allclose(image.affine, phantom.affine(), atol=1e-4)


def test_cases_of_one_patient_stay_together_and_nothing_of_the_header_comes_along(tmp_path):
    for folder, patient in (("a/first", "SECRET-1"), ("a/second", "SECRET-1"), ("b", "SECRET-2"), ("c", "SECRET-3")):
        write_series(tmp_path / "in" / folder, PatientID=patient)
        if folder != "c":
            mark(tmp_path / "in" / folder)
    done = convert(tmp_path / "in", tmp_path / "set")
    assert done.exit_code == 0, done.output
    assert "images without a mask, left out (1)" in done.stderr
    description = json.loads((tmp_path / "set" / "dataset.json").read_text())
    first, second, other = (description["patients"][case] for case in ("a_first", "a_second", "b"))
    assert first == second != other
    assert not any(b"SECRET" in path.read_bytes() for path in (tmp_path / "set").rglob("*") if path.is_file())


@pytest.mark.parametrize("name", ["axial", "oblique"])
def test_contours_become_voxels_and_inner_ones_are_holes(tmp_path, name):
    phantom = Phantom(np.zeros((9, 8, 4), np.int16), orientation=ORIENTATIONS[name])
    write_series(tmp_path / "in", phantom)
    box = lambda x, y, a, b: [(x - 0.4, y - 0.4), (a + 0.4, y - 0.4), (a + 0.4, b + 0.4), (x - 0.4, b + 0.4)]
    region(
        tmp_path / "in", phantom, [("kidney", 1, box(1, 2, 6, 6)), ("kidney", 1, box(3, 3, 4, 5)), ("body", 2, box(0, 0, 8, 7))]
    )
    done = convert(tmp_path / "in", tmp_path / "set", "--labels", "kidney")  # of the structures this one
    assert done.exit_code == 0, done.output
    expected = np.zeros((9, 8, 4), int)
    expected[1:7, 2:7, 1], expected[3:5, 3:6, 1] = 1, 0
    dataset = open_dataset(tmp_path / "set")
    np.testing.assert_array_equal(read_mask(dataset.cases[0].masks[0]).data[0], expected)
    assert dataset.labels == {"background": 0, "kidney": 1}


def test_what_does_not_lie_on_its_series_is_refused(tmp_path):
    phantom = Phantom()
    write_series(tmp_path / "in", phantom)
    region(tmp_path / "in", phantom, [("kidney", 1, [(0, 0), (4, 0), (4, 4)])], shift=0.5)
    refused = convert(tmp_path / "in", tmp_path / "set")
    assert refused.exit_code == 2 and "between the slices" in refused.stderr and not (tmp_path / "set").exists()
    write_series(tmp_path / "other", phantom)
    mark(tmp_path / "other")
    ds = pydicom.dcmread(tmp_path / "other" / "marked_seg.dcm")
    for frame in ds.PerFrameFunctionalGroupsSequence:
        place = frame.PlanePositionSequence[0]
        place.ImagePositionPatient = [float(value) + 0.4 for value in place.ImagePositionPatient]
    ds.save_as(tmp_path / "other" / "marked_seg.dcm")
    refused = convert(tmp_path / "other", tmp_path / "set")
    assert refused.exit_code == 2 and "do not lie on the voxels" in refused.stderr


def test_two_accounts_of_one_structure_and_broken_objects_are_refused(tmp_path):
    write_series(tmp_path / "in")
    mark(tmp_path / "in")
    (tmp_path / "in" / "again.dcm").write_bytes((tmp_path / "in" / "marked_seg.dcm").read_bytes())
    with pytest.raises(UserError, match="near, far part marked more than once"):
        pair_dicom(tmp_path / "in")
    ds = pydicom.dcmread(tmp_path / "in" / "again.dcm")
    del ds.SegmentSequence
    ds.save_as(tmp_path / "in" / "again.dcm")
    with pytest.raises(UserError, match=r"again\.dcm: cannot be read, broken"):
        pair_dicom(tmp_path / "in")
    raw = (tmp_path / "in" / "marked_seg.dcm").read_bytes()
    (tmp_path / "in" / "again.dcm").unlink()
    (tmp_path / "in" / "marked_seg.dcm").write_bytes(raw[:-20])
    refused = convert(tmp_path / "in", tmp_path / "set")
    assert refused.exit_code == 2 and "marked_seg.dcm" in refused.stderr and refused.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["train", "plan"])
def test_a_folder_of_dicom_is_told_the_command_that_makes_a_data_set_of_it_and_the_command_does(tmp_path, command, monkeypatch):
    write_series(tmp_path / "in")
    mark(tmp_path / "in")
    said = call(command, tmp_path / "in", *(("--out", tmp_path / "run") if command == "train" else ()))
    assert said.exit_code == 2 and "folder of DICOM, no data set" in said.stderr, said.output
    asked = shlex.split(said.stderr.split("`")[1])
    monkeypatch.chdir(tmp_path)
    made = call(*asked[1:], "--yes")
    assert made.exit_code == 0 and [case.id for case in open_dataset(tmp_path / "in_dataset").cases], made.output
    monkeypatch.chdir(tmp_path / "in")
    inside = shlex.split(call(command, ".", *(("--out", "run") if command == "train" else ())).stderr.split("`")[1])
    assert inside == ["diffuseg", "convert", ".", "--out", str(tmp_path / "in_dataset")], "beside the folder, not in it"


def test_dicom_without_marks_is_no_data_set_and_can_be_predicted_as_it_is(tmp_path):
    write_series(tmp_path / "in")
    for options in ((), ("--images-only",)):
        refused(call("convert", tmp_path / "in", "--out", tmp_path / "set", *options), "`diffuseg predict MODEL FOLDER` takes")
    refused(call("convert", tmp_path / "in", "--out", tmp_path / "set"), "no DICOM SEG or RTSTRUCT is here")
