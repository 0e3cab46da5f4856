"""Which slices make an image, which image is meant, and what is refused with which words."""

import shutil

import numpy as np
import pytest
from pydicom.dataset import Dataset

from diffuseg.data.dicom import open_series
from diffuseg.data.io import read_image
from diffuseg.errors import UserError
from diffuseg.inference import several
from tests.data import dicom_phantom as phantoms
from tests.data.dicom_phantom import CR, CT, ORIENTATIONS, Phantom, enhanced, slices, write, write_series
from tests.inference.oracle import make_model
from tests.train.tiny import call

US_FILM, SR, SEG = "1.2.840.10008.5.1.4.1.1.3.1", "1.2.840.10008.5.1.4.1.1.88.33", "1.2.840.10008.5.1.4.1.1.66.4"


def make_study(folder):
    """Two series, a localizer in three directions, a report, a segmentation and a DICOMDIR, in nested folders."""
    write(slices(Phantom(), SeriesNumber=2, SeriesDescription="T1 mprage"), folder / "x" / "y")
    write(slices(Phantom(gap=4.0), SeriesNumber=5, SeriesDescription="T2 flair"), folder / "x")
    scout = {"SeriesNumber": 1, "SeriesDescription": "loc", "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    one = Phantom(phantoms.blocks((8, 6, 1)))
    made = [
        slices(Phantom(one.data, ORIENTATIONS[name]), series="1.2.3.1", **scout)[0] for name in ("axial", "coronal", "sagittal")
    ]
    write(made, folder, names="LOC{}")
    write([phantoms.header(SR, Modality="SR")], folder, names="REPORT{}")
    seg = phantoms.header(SEG, Modality="SEG")
    phantoms.set_pixels(seg, np.zeros((4, 4), np.uint8))
    write([seg], folder, names="SEG{}")
    index = phantoms.header("1.2.840.10008.1.3.10")
    write([index], folder, names="DICOMDIR")
    (folder / "notes").write_text("not DICOM")


@pytest.mark.parametrize("asked", ["5", "flair", "FLAIR"])
def test_a_series_is_chosen_by_number_uid_or_part_of_its_description(tmp_path, asked):
    make_study(tmp_path)
    found = open_series(tmp_path, [asked])
    assert [stack.label for stack in found] == ["5"]
    assert open_series(tmp_path, [found[0].slices[0].series])[0].files == found[0].files
    np.testing.assert_allclose(found[0].affine, Phantom(gap=4.0).affine(), atol=1e-9)


def test_without_a_choice_the_message_lists_what_is_there(tmp_path):
    make_study(tmp_path)
    with pytest.raises(UserError) as error:
        open_series(tmp_path)
    text = str(error.value)
    assert "2 image series, and none was chosen" in text and "--series" in text
    (first,) = open_series(tmp_path, ["2"])
    assert f"\n  2      MR  'T1 mprage': 5 slices, 7 x 6 x 5, 1.3 x 0.7 x 2.5 mm, UID {first.slices[0].series}\n" in text
    assert text.count("(localizer)") == 3 and "1 SR" in text and "1 SEG" in text and "1 DICOMDIR" in text
    assert "Secret" not in text and "SECRET" not in text


def test_each_uid_of_the_list_chooses_what_its_line_says(tmp_path):
    make_study(tmp_path)
    with pytest.raises(UserError) as error:
        open_series(tmp_path)
    listed = [line for line in str(error.value).split("\n") if " UID " in line]
    assert len(listed) == 5
    for line in listed:
        uid = line.split(" UID ")[1].split(" (")[0]
        assert [stack.label for stack in open_series(tmp_path, [uid])] == [line.split()[0]]


def test_on_the_command_line_the_series_are_a_list_before_any_model_is_announced(tmp_path, monkeypatch):
    model = make_model()
    monkeypatch.setattr(several, "load_models", lambda *_: model)
    make_study(tmp_path / "study")
    done = call("predict", "oracle", tmp_path / "study", "--out", tmp_path / "out")
    assert done.exit_code == 2 and done.stdout == "", done.output
    first, *rest = done.stderr.rstrip("\n").split("\n")
    assert first == f"error: {tmp_path / 'study'}: 2 image series, and none was chosen:"
    assert len(rest) == 7 and all(line.startswith("  ") for line in rest[:-1]) and rest[-1].startswith("Choose by --series UID")
    for file in (tmp_path / "empty", tmp_path / "none.nii.gz"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        assert call("predict", "oracle", file, "--out", tmp_path / "out").stdout == "", "nor is one of no image"
    write_series(tmp_path / "one")
    both = call("predict", "oracle", tmp_path / "study", tmp_path / "one", "--out", tmp_path / "out")
    assert both.exit_code == 3 and both.stdout.startswith("oracle (") and "failed study: " in both.stderr, both.output


def test_all_takes_every_image_and_a_name_that_means_two_or_none_is_refused(tmp_path):
    make_study(tmp_path)
    assert [stack.label for stack in open_series(tmp_path, ["all"])] == ["2", "5"]
    assert [stack.label for stack in open_series(tmp_path, ["5", "2"])] == ["5", "2"], "in the order that was asked for"
    with pytest.raises(UserError, match="--series T means 2 images"):
        open_series(tmp_path, ["T"])
    with pytest.raises(UserError, match=r"(?s)there is no series 'dwi'; there are:\n.*T1 mprage"):
        open_series(tmp_path, ["dwi"])


def test_beside_localizers_and_objects_the_only_image_is_meant(tmp_path):
    make_study(tmp_path)
    shutil.rmtree(tmp_path / "x" / "y")
    assert read_image(tmp_path).spacing[2] == pytest.approx(4.0)
    shutil.rmtree(tmp_path / "x")
    with pytest.raises(UserError, match="nothing but localizers"):
        read_image(tmp_path)
    for path in tmp_path.glob("LOC*"):
        path.unlink()
    with pytest.raises(UserError, match=r"no image in them \(.*1 SR"):
        read_image(tmp_path)


def test_missing_slices_are_named(tmp_path):
    paths = write_series(tmp_path / "scan", Phantom(phantoms.blocks((7, 6, 8))))
    paths[3].unlink()
    paths[4].unlink()
    what = (
        f"missing slices: 2 slices between {paths[2].name} and {paths[5].name} .7.5 mm apart, others 2.5 mm.. Export it again"
    )
    with pytest.raises(UserError, match=what):
        read_image(tmp_path / "scan")


def test_a_slice_that_is_there_twice_is_named(tmp_path):
    paths = write_series(tmp_path / "scan")
    shutil.copy(paths[2], tmp_path / "scan" / "copy")
    with pytest.raises(UserError, match=rf"duplicate slices.*(copy and {paths[2].name}|{paths[2].name} and copy)"):
        read_image(tmp_path / "scan")


def test_uneven_slices_are_refused_and_rounded_positions_are_not(tmp_path):
    made = slices(Phantom())
    made[2].ImagePositionPatient[2] += 0.15  # rounded to a digit, as some exports do
    write(made, tmp_path / "rounded")
    np.testing.assert_allclose(read_image(tmp_path / "rounded").affine, Phantom().affine(), atol=1e-9)
    made[2].ImagePositionPatient[2] += 0.5
    paths = write(made, tmp_path / "uneven")
    with pytest.raises(UserError, match=f"not evenly spaced: .* {paths[2].name} is 0.65 mm off"):
        read_image(tmp_path / "uneven")


def test_time_points_are_told_apart_where_a_header_does_it(tmp_path):
    made = []
    for time in (1, 2, 10):
        phantom = Phantom(phantoms.blocks() + 1000 * time)
        made += slices(phantom, series="1.2.3.4", TemporalPositionIdentifier=time)
    write(made, tmp_path / "perfusion")
    with pytest.raises(UserError, match=r"3 image series(.|\n)*3/3 .*time point 10"):
        read_image(tmp_path / "perfusion")
    stack = open_series(tmp_path / "perfusion", ["3/2"])[0]
    np.testing.assert_array_equal(read_image(stack).data[0], phantoms.blocks() + 2000)
    for ds in made:
        del ds.TemporalPositionIdentifier
    write(made, tmp_path / "alike")
    with pytest.raises(UserError, match="3 images at each of 5 positions, and nothing in their headers tells them apart"):
        read_image(tmp_path / "alike")


def test_a_series_of_two_directions_is_two_images(tmp_path):
    made = slices(Phantom(), series="1.2.3.4") + slices(Phantom(orientation=ORIENTATIONS["sagittal"]), series="1.2.3.4")
    write(made, tmp_path / "scan")
    assert [stack.label for stack in open_series(tmp_path / "scan", ["all"])] == ["3/1", "3/2"]


def test_slices_that_are_turned_against_each_other_are_refused(tmp_path):
    made = slices(Phantom(phantoms.blocks((200, 100, 4))))
    made[1].ImageOrientationPatient = [0.99998, 0.00632, 0, -0.00632, 0.99998, 0]
    paths = write(made, tmp_path / "scan")
    with pytest.raises(UserError, match=f"{paths[1].name} is turned against {paths[0].name}"):
        read_image(tmp_path / "scan")


@pytest.mark.parametrize("case", ["film", "mosaic", "palette", "no pixel size"])
def test_what_is_no_volume_is_refused_in_a_sentence(tmp_path, case):
    made = slices(Phantom(), sop=CT)
    if case == "film":
        made = [phantoms.header(US_FILM, Modality="US", NumberOfFrames=3)]
        phantoms.set_pixels(made[0], np.zeros((3, 4, 5), np.uint8))
    for ds in made:
        if case == "mosaic":
            ds.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
        if case == "palette":
            ds.PhotometricInterpretation = "PALETTE COLOR"
        if case == "no pixel size":
            del ds.PixelSpacing
    write(made, tmp_path / "scan")
    words = {
        "film": "no place in space",
        "mosaic": "mosaic",
        "palette": "palette",
        "no pixel size": "no distance between pixels",
    }
    with pytest.raises(UserError, match=words[case]):
        read_image(tmp_path / "scan")


def test_pictures_are_read_one_by_one_and_volumes_come_before_them(tmp_path):
    """A CR of two views is two pictures; a screenshot beside a volume is not what is meant."""
    views = []
    for n in range(2):
        ds = phantoms.header(CR, "1.2.3.4")
        phantoms.set_pixels(ds, np.full((4, 5), n, np.uint16))
        views.append(ds)
    paths = write(views, tmp_path / "xray", names="view{}.dcm")
    assert {stack.place for stack in open_series(tmp_path / "xray")} == set(paths)
    with pytest.raises(UserError, match="2 pictures in one folder"):
        read_image(tmp_path / "xray")
    for n in range(2):
        assert (read_image(paths[n]).data == n).all()
    write_series(tmp_path / "xray")
    assert read_image(tmp_path / "xray").dims == 3


def test_a_single_slice_is_as_thick_as_it_says(tmp_path):
    write_series(tmp_path / "one", Phantom(phantoms.blocks((7, 6, 1))))
    assert read_image(tmp_path / "one").spacing == pytest.approx((1.3, 0.7, 9.9))


def test_an_enhanced_file_of_two_echoes_is_two_images(tmp_path):
    ds = enhanced(Phantom(phantoms.blocks((7, 6, 6))))
    for n, frame in enumerate(ds.PerFrameFunctionalGroupsSequence):
        echo = Dataset()
        echo.EffectiveEchoTime = 10.0 + 20 * (n % 2)
        frame.MREchoSequence = [echo]
        frame.PlanePositionSequence[0].ImagePositionPatient = [0, 0, 3.0 * (n // 2)]
    write([ds], tmp_path / "scan")
    first, second = open_series(tmp_path / "scan", ["all"])
    assert (first.detail, second.detail) == ("echo time 10.0", "echo time 30.0")
    np.testing.assert_array_equal(read_image(second).data[0], phantoms.blocks((7, 6, 6))[:, :, 1::2])


def test_a_slice_that_is_a_link_to_nowhere_is_refused(tmp_path):
    """It would be a slice that is missing at an end, which no distance shows."""
    paths = write_series(tmp_path / "scan")
    paths[-1].unlink()
    paths[-1].symlink_to("nowhere")
    with pytest.raises(UserError, match=f"links to nowhere: {paths[-1].name}"):
        read_image(tmp_path / "scan")
