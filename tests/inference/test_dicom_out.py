"""What is written as DICOM lies voxel for voxel where the NIfTI has it, read back by highdicom, by hand and by SimpleITK."""

import dataclasses
import json

import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from diffuseg.data.io import read_image
from diffuseg.errors import UserError
from diffuseg.inference.dicom_codes import read_codes
from diffuseg.inference.dicom_seg import DicomOut, save_dicom
from diffuseg.inference.folder import predict_folder
from diffuseg.inference.sampling import SamplingOptions
from tests.data import dicom_phantom as phantoms
from tests.data.dicom_phantom import CR, ORIENTATIONS, Phantom, enhanced, slices, write, write_series
from tests.inference.oracle import make_model

THREE = {"background": 0, "near": 2, "far part": 5}
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
LIVER = ("10200004", "SCT", "Liver")


def predicted(place, kind="binary", codes=None, labels=THREE, **record):
    """A prediction whose mask, probability and entropy differ at every end of every axis, saved as NIfTI and DICOM."""
    p = make_model(labels=labels).predict(place, draws=1)
    rng = np.random.default_rng(7)
    probability = rng.dirichlet([1] * len(labels), p.mask.shape)
    probability = np.moveaxis(probability, -1, 0).astype(np.float32)
    p.mask = np.array(sorted(labels.values()), np.uint8)[probability.argmax(0)]
    p.probability = probability
    p.uncertainty["entropy"] = -(probability * np.log(np.maximum(probability, 1e-9))).sum(0)
    p.provenance["volume_ml"] = {name: 0.001 * (p.mask == value).sum() for name, value in labels.items() if value}
    p.provenance["volume_ml_90"] = {name: [0.5, 2.25] for name, value in labels.items() if value}
    p.provenance |= record
    out = place.parent / "out" if place.is_dir() else place.parent.parent / "out"
    save_dicom(p, out, "a", DicomOut(kind, codes or {}))
    p.save(out, "a")
    return p, out


def frames_by_hand(file, segments: int):
    """Each frame of a SEG as (segment, position of its first pixel, pixels), by pydicom and the standard alone."""
    ds = pydicom.dcmread(file)
    if ds.BitsAllocated == 1:
        bits = np.unpackbits(np.frombuffer(ds.PixelData, np.uint8), bitorder="little")
        planes = bits[: ds.NumberOfFrames * ds.Rows * ds.Columns].reshape(ds.NumberOfFrames, ds.Rows, ds.Columns)
    else:
        planes = ds.pixel_array.reshape(ds.NumberOfFrames, ds.Rows, ds.Columns)
    for group, plane in zip(ds.PerFrameFunctionalGroupsSequence, planes, strict=True):
        kind = group.get("SegmentIdentificationSequence")
        number = int(kind[0].ReferencedSegmentNumber) if kind else None
        yield number, np.array(group.PlanePositionSequence[0].ImagePositionPatient, float), plane, group


def stacked(file, affine, shape, segments: int) -> np.ndarray:
    """Segments [segment, i, j, k] of a SEG, each frame put where its position says on the grid of this affine."""
    found = np.full((segments, *shape), -1)
    inverse = np.linalg.inv(affine)
    for number, position, plane, _ in frames_by_hand(file, segments):
        index = inverse @ LPS_TO_RAS @ [*position, 1]
        np.testing.assert_allclose(index[:2], 0, atol=1e-3)
        k = round(index[2])
        assert abs(index[2] - k) < 1e-3
        assert (found[(number or 1) - 1, :, :, k] == -1).all(), "one frame per slice and segment"
        found[(number or 1) - 1, :, :, k] = plane.T
    assert (found >= 0).all(), "every slice of the source has its frame"
    return found


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
@pytest.mark.parametrize("name", ["axial", "sagittal", "oblique", "feet first"])
def test_a_segmentation_is_the_mask_voxel_for_voxel(tmp_path, name, kind):
    phantom = Phantom(orientation=ORIENTATIONS[name])
    write_series(tmp_path / "scan", phantom)
    _, out = predicted(tmp_path / "scan", kind)
    nifti = nib.load(out / "a.nii.gz")
    mask = np.asarray(nifti.dataobj)
    np.testing.assert_allclose(nifti.affine, phantom.affine(), atol=1e-5)
    found = stacked(out / "a_seg.dcm", phantom.affine(), mask.shape, 2 if kind == "binary" else 1)
    for number, value in ((1, 2), (2, 5)):
        segment = found[number - 1] if kind == "binary" else found[0] == number
        np.testing.assert_array_equal(segment.astype(bool), mask == value)
    volume = hd.seg.segread(out / "a_seg.dcm").get_volume(combine_segments=True)
    to_mask = np.linalg.inv(nifti.affine) @ LPS_TO_RAS @ volume.affine
    for index in np.ndindex(*volume.array.shape):
        i, j, k = np.rint(to_mask @ [*index, 1])[:3].astype(int)
        assert THREE[["background", "near", "far part"][volume.array[index]]] == mask[i, j, k]


def test_simpleitk_finds_a_segment_at_the_same_places(tmp_path):
    """A single class, as SimpleITK reads one frame per slice; it unpacks bits where their number is a multiple of 8."""
    phantom = Phantom(phantoms.blocks((8, 6, 5)), ORIENTATIONS["oblique"])
    write_series(tmp_path / "scan", phantom)
    p, out = predicted(tmp_path / "scan", labels={"background": 0, "lesion": 1})
    image = sitk.ReadImage(str(out / "a_seg.dcm"))
    found = sitk.GetArrayFromImage(image)
    inverse = np.linalg.inv(p.image.affine)
    for k, j, i in np.ndindex(*found.shape):
        place = image.TransformIndexToPhysicalPoint((i, j, k))
        voxel = tuple(np.rint(inverse @ LPS_TO_RAS @ [*place, 1])[:3].astype(int))
        assert (found[k, j, i] > 0) == (p.mask[voxel] == 1)


def test_tilted_and_enhanced_sources(tmp_path):
    c, s = np.cos(np.radians(15)), np.sin(np.radians(15))
    tilted = Phantom(orientation=(1, 0, 0, 0, c, -s), step=(0.0, 0.0, 3.0))
    write_series(tmp_path / "tilted" / "scan", tilted)
    shuffled = Phantom(orientation=ORIENTATIONS["coronal"])
    write([enhanced(shuffled, [3, 0, 4, 1, 2])], tmp_path / "enhanced" / "scan")
    for name, phantom in (("tilted", tilted), ("enhanced", shuffled)):
        p, out = predicted(tmp_path / name / "scan")
        found = stacked(out / "a_seg.dcm", phantom.affine(), p.mask.shape, 2)
        np.testing.assert_array_equal(found, [p.mask == 2, p.mask == 5])


def test_frames_refer_to_their_source_and_share_its_frame_of_reference(tmp_path):
    write_series(tmp_path / "scan")
    _, out = predicted(tmp_path / "scan")
    sources = [pydicom.dcmread(path) for path in (tmp_path / "scan").iterdir()]
    by_uid = {ds.SOPInstanceUID: np.array(ds.ImagePositionPatient, float) for ds in sources}
    for name in ("seg", "prob", "entropy"):
        ds = pydicom.dcmread(out / f"a_{name}.dcm")
        assert ds.FrameOfReferenceUID == sources[0].FrameOfReferenceUID
        assert ds.StudyInstanceUID == sources[0].StudyInstanceUID and ds.PatientID == "SECRET-ID"
        assert ds.SeriesInstanceUID != sources[0].SeriesInstanceUID
        for _, position, _, group in frames_by_hand(out / f"a_{name}.dcm", 2):
            uid = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
            np.testing.assert_allclose(by_uid[uid], position)


def test_probabilities_and_entropy_are_fractions(tmp_path):
    phantom = Phantom(orientation=ORIENTATIONS["sagittal"])
    write_series(tmp_path / "scan", phantom)
    p, out = predicted(tmp_path / "scan")
    ds = pydicom.dcmread(out / "a_prob.dcm")
    assert (ds.SegmentationType, ds.SegmentationFractionalType, ds.MaximumFractionalValue) == ("FRACTIONAL", "PROBABILITY", 255)
    found = stacked(out / "a_prob.dcm", phantom.affine(), p.mask.shape, 2) / 255
    np.testing.assert_allclose(found, p.probability[1:], atol=0.51 / 255)
    entropy = stacked(out / "a_entropy.dcm", phantom.affine(), p.mask.shape, 1)[0] / 255
    np.testing.assert_allclose(entropy, p.uncertainty["entropy"] / np.log(3), atol=0.51 / 255)


def test_the_report_has_volumes_with_their_intervals_and_points_at_the_segments(tmp_path):
    write_series(tmp_path / "scan")
    learnt = {"applied": True, "widening": {"near": {"shift": 0.5}}}  # of one of the classes: the other's interval is raw
    p, out = predicted(tmp_path / "scan", codes={"near": {"type": LIVER}}, calibration=learnt)
    report = hd.sr.srread(out / "a_sr.dcm")
    segmentation = pydicom.dcmread(out / "a_seg.dcm")
    groups = report.content.get_volumetric_roi_measurement_groups()
    assert [group.tracking_identifier for group in groups] == ["near", "far part"]
    for number, (name, group) in enumerate(zip(("near", "far part"), groups, strict=True), 1):
        values = {m.name.value: (m.value, m.unit.value) for m in group.get_measurements()}
        assert values["118565006"] == (pytest.approx(p.provenance["volume_ml"][name]), "ml")
        raw = "RAW" if name == "far part" else ""
        assert (values[f"VOLUME90LOW{raw}"][0], values[f"VOLUME90HIGH{raw}"][0]) == (0.5, 2.25) and len(values) == 3
        found = [
            (item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID, item.ReferencedSOPSequence[0].ReferencedSegmentNumber)
            for item in group[0].ContentSequence
            if "ReferencedSegmentNumber" in item.get("ReferencedSOPSequence", [{}])[0]
        ]
        assert found == [(segmentation.SOPInstanceUID, number)]
    assert groups[0].finding_type.value == "10200004" and groups[1].finding_type.meaning == "Tissue"


def test_codes_reach_the_segments(tmp_path):
    write_series(tmp_path / "scan")
    table = {"codes": {"near": list(LIVER), "far part": {"type": ["x", "99TEST", "y"], "category": ["c", "99TEST", "d"]}}}
    (tmp_path / "dataset.json").write_text(json.dumps(table))
    _, out = predicted(tmp_path / "scan", codes=read_codes(tmp_path / "dataset.json"))
    near, far = pydicom.dcmread(out / "a_seg.dcm").SegmentSequence
    code = lambda sequence: (sequence[0].CodeValue, sequence[0].CodingSchemeDesignator, sequence[0].CodeMeaning)
    assert (near.SegmentLabel, far.SegmentLabel) == ("near", "far part")
    assert code(near.SegmentedPropertyTypeCodeSequence) == LIVER
    assert code(near.SegmentedPropertyCategoryCodeSequence) == ("123037004", "SCT", "Anatomical Structure")
    assert code(far.SegmentedPropertyCategoryCodeSequence) == ("c", "99TEST", "d")


@pytest.mark.parametrize(
    "table", [[], {"codes": {"a": ["1", "SCT"]}}, {"codes": {"a": {"kind": ["1", "SCT", "x"]}}}, {"labels": {}}]
)
def test_a_table_without_codes_is_refused(tmp_path, table):
    (tmp_path / "codes.json").write_text(json.dumps(table))
    with pytest.raises(UserError, match=r"codes.json: .*code"):
        read_codes(tmp_path / "codes.json")


def test_nothing_of_the_patient_is_in_nifti_or_json(tmp_path):

    write_series(tmp_path / "scan")
    predict_folder(make_model(), [tmp_path / "scan"], tmp_path / "out", SamplingOptions(draws=1))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "scan.json", "scan.nii.gz", "scan_entropy.nii.gz", "scan_prob.nii.gz",
    ]  # fmt: skip
    import gzip

    for path in (tmp_path / "out").iterdir():
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        for secret in (b"ecret", b"SECRET", b"19510203", b"20200102", b"1.2.826.0", b"made-up phantom"):
            assert secret not in content, path


def test_a_folder_becomes_dicom_once_and_again_when_the_kind_changes(tmp_path):
    write_series(tmp_path / "scan")
    write_series(tmp_path / "other", Phantom(gap=4.0), SeriesNumber=8)
    (tmp_path / "other").rename(tmp_path / "scan" / "other")
    options, out = SamplingOptions(draws=1), tmp_path / "out"
    run = lambda **kw: predict_folder(make_model(), [tmp_path / "scan"], out, options, **kw)
    with pytest.raises(UserError, match="2 image series"):
        run()
    result = run(series=["8"], dicom=DicomOut("binary"))
    assert result.finished == ["scan"] and (out / "scan_seg.dcm").exists()
    assert json.loads((out / "scan.json").read_text())["dicom"]["files"][0] == "scan_seg.dcm"
    assert run(series=["8"], dicom=DicomOut("binary")).skipped
    assert run(series=["8"], dicom=DicomOut("labelmap")).finished
    assert pydicom.dcmread(out / "scan_seg.dcm").SegmentationType == "LABELMAP"
    assert run(series=["8"]).skipped, "DICOM that nobody asked for again stays"
    assert run(series=["8"], overwrite=True).finished and not (out / "scan_seg.dcm").exists(), "an old one beside a new mask"
    assert run(series=["all"]).finished == ["scan_3", "scan_8"]
    failed = run(series=["3"]).failed
    assert len(failed) == 1 and "another image of this name" in failed[0][1]


def test_a_picture_becomes_a_segmentation_without_a_place(tmp_path):
    ds = phantoms.header(CR)
    del ds.FrameOfReferenceUID
    phantoms.set_pixels(ds, np.arange(80, dtype=np.uint16).reshape(8, 10))
    write([ds], tmp_path / "xray", names="view{}.dcm")
    model = make_model(dims=2, orientation=None, patch=(8, 8), file_ending=".png")
    result = predict_folder(model, [tmp_path / "xray"], tmp_path / "out", SamplingOptions(draws=1), dicom=DicomOut())
    assert result.finished == ["view0"], result.failed
    mask = read_image(tmp_path / "out" / "view0.png").data[0] > 0
    np.testing.assert_array_equal(pydicom.dcmread(tmp_path / "out" / "view0_seg.dcm").pixel_array.reshape(8, 10), mask)


def test_dicom_of_other_images_is_refused_before_any_work(tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((6, 5, 4), np.float32), np.eye(4)), tmp_path / "a.nii.gz")
    with pytest.raises(UserError, match="--dicom-out writes results of DICOM series"):
        predict_folder(make_model(), [tmp_path / "a.nii.gz"], tmp_path / "out", dicom=DicomOut())
    write_series(tmp_path / "scan")
    with pytest.raises(UserError, match="codes for spleen, which the model does not know"):
        out = DicomOut(codes={"spleen": {"type": LIVER}})
        predict_folder(make_model(), [tmp_path / "scan"], tmp_path / "out", dicom=out)
    assert not (tmp_path / "out").exists()


def test_two_series_are_the_channels_of_one_case(tmp_path):
    write(slices(Phantom(), SeriesNumber=1), tmp_path / "scan")
    write(slices(Phantom(phantoms.blocks() * 2), SeriesNumber=2), tmp_path / "scan" / "more")
    base = make_model()
    plan = dataclasses.replace(base.plan, channels=("a", "b"))
    from diffuseg.inference.folder import find_cases

    cases = find_cases([tmp_path / "scan"], len(plan.channels), ["2", "1"])
    data = read_image(cases["scan"]).data
    np.testing.assert_array_equal(data, [2 * phantoms.blocks(), phantoms.blocks()])


def test_one_bad_series_does_not_cost_the_others(tmp_path):
    write_series(tmp_path / "good")
    write_series(tmp_path / "bad", Phantom(phantoms.blocks((7, 6, 9))))[4].unlink()
    result = predict_folder(make_model(), [tmp_path / "good", tmp_path / "bad"], tmp_path / "out", SamplingOptions(draws=1))
    assert result.finished == ["good"]
    assert [name for name, _ in result.failed] == ["bad"] and "missing slices" in result.failed[0][1]
    with pytest.raises(UserError, match="missing slices"):
        predict_folder(make_model(), [tmp_path / "bad"], tmp_path / "out", SamplingOptions(draws=1))


def test_the_viewer_finds_the_series_again(tmp_path):
    from diffuseg.viewer.cases import find_cases

    write_series(tmp_path / "alone")
    write_series(tmp_path / "two", SeriesNumber=1)
    write(slices(Phantom(gap=4.0), SeriesNumber=2), tmp_path / "two", names="B{}")
    predict_folder(make_model(), [tmp_path / "alone"], tmp_path / "out", SamplingOptions(draws=1))
    predict_folder(make_model(), [tmp_path / "two"], tmp_path / "out", SamplingOptions(draws=1), series=["2"])
    alone, two = find_cases(tmp_path / "out")
    assert read_image(alone.layers[0].file).spacing[2] == pytest.approx(2.5)
    assert read_image(two.layers[0].file).spacing[2] == pytest.approx(4.0)
