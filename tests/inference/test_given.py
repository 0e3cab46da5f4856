"""What `predict` takes: one phantom given in each way has one mask at one place in the world, and comes back as it went in."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms import Compose, EnsureChannelFirst, EnsureChannelFirstd, Lambdad, LoadImage, LoadImaged, Orientation

from diffuseg.errors import UserError
from diffuseg.inference.model import Model
from diffuseg.types import Image
from tests.inference.oracle import Oracle, make_model

pytestmark = pytest.mark.filterwarnings("ignore:NvImgCodec")  # MONAI about one of its readers of DICOM
SHAPE = (9, 7, 8)  # voxels of the phantom along i, j, k


class Corner(Oracle):
    """Class 1 in the right, anterior, superior corner of the grid, whatever the intensities: an answer about places."""

    def draw(self, image, seeds, **options):
        inside = torch.zeros(image.shape[1:])
        inside[tuple(slice(2 * n // 3, None) for n in inside.shape)] = 1
        for _ in seeds:
            yield torch.stack([1 - inside, inside])


def oblique() -> np.ndarray:
    """Voxel -> RAS mm of a scan that is stored posterior, superior, left, of three spacings, turned by ten degrees."""
    axes = np.array([[0.0, 0.0, -1.0], [-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    c, s = np.cos(np.radians(10)), np.sin(np.radians(10))
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn @ axes @ np.diag([1.0, 2.0, 1.5]), [11.0, -23.0, 5.0]
    return affine


VOXELS = np.random.default_rng(0).integers(0, 100, SHAPE).astype(np.float32)


def in_itk() -> sitk.Image:
    """The phantom as SimpleITK has it: the array turned round, the world LPS."""
    image, flip = sitk.GetImageFromArray(VOXELS.transpose(2, 1, 0)), np.diag([-1.0, -1.0, 1.0])
    spacing = np.linalg.norm(oblique()[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((flip @ (oblique()[:3, :3] / spacing)).ravel().tolist())
    image.SetOrigin((flip @ oblique()[:3, 3]).tolist())
    return image


def lps_tensor() -> MetaTensor:
    affine = torch.from_numpy(np.diag([-1.0, -1.0, 1.0, 1.0]) @ oblique())
    return MetaTensor(torch.from_numpy(VOXELS)[None], affine=affine, meta={"space": "LPS"})


def on_disk(folder: Path) -> Path:
    nib.save(nib.Nifti1Image(VOXELS, oblique()), folder / "scan.nii.gz")
    return folder / "scan.nii.gz"


GIVEN = {  # what is given, and the keywords that go along
    "path": (on_disk, {}),
    "text": (lambda folder: str(on_disk(folder)), {}),
    "paths": (lambda folder: [on_disk(folder)], {}),
    "array": (lambda _: VOXELS, {"affine": oblique()}),
    "array of integers, with channels": (lambda _: VOXELS[None].astype(np.int16), {"affine": oblique().tolist()}),
    "tensor": (lambda _: torch.from_numpy(VOXELS).requires_grad_(), {"affine": torch.from_numpy(oblique())}),
    "tensor of half the bits": (lambda _: torch.from_numpy(VOXELS).bfloat16()[None], {"affine": oblique()}),
    "nibabel": (lambda _: nib.Nifti1Image(VOXELS, oblique()), {}),
    "nibabel, from a file": (lambda folder: nib.load(on_disk(folder)), {}),
    "nibabel, another format": (lambda _: nib.MGHImage(VOXELS, oblique()), {}),
    "SimpleITK": (lambda _: in_itk(), {}),
    "SimpleITK, from a file": (lambda folder: sitk.ReadImage(on_disk(folder)), {}),
    "MetaTensor": (lambda folder: EnsureChannelFirst()(LoadImage()(on_disk(folder))), {}),
    "MetaTensor, without channels": (lambda folder: LoadImage()(on_disk(folder)), {}),
    "MetaTensor, of LPS": (lambda _: lps_tensor(), {}),
    "Image": (lambda _: Image(VOXELS[None], oblique()), {}),
}


def model() -> Model:
    return make_model(method=Corner, orientation="RAS", spacing=(1.5, 1.0, 2.0))


def world(indices: np.ndarray) -> np.ndarray:
    """The phantom's own places in RAS mm, sorted."""
    points = indices @ oblique()[:3, :3].T + oblique()[:3, 3]
    return np.array(sorted(points.round(3).tolist()))


def places_of(result) -> np.ndarray:
    """Where a mask lies in RAS mm, by the library that it is of, sorted."""
    if isinstance(result, sitk.Image):
        indices = np.argwhere(sitk.GetArrayFromImage(result))[:, ::-1]
        points = [result.TransformIndexToPhysicalPoint([int(i) for i in index]) for index in indices]
        return np.array(sorted((np.array(points) * [-1, -1, 1]).round(3).tolist()))
    data, affine = (result.get_fdata(), result.affine) if isinstance(result, nib.Nifti1Image) else (result[0], result.affine)
    return np.array(sorted(nib.affines.apply_affine(np.asarray(affine), np.argwhere(np.asarray(data))).round(3).tolist()))


@pytest.mark.parametrize("kind", GIVEN)
def test_one_phantom_has_one_mask_at_one_place_however_it_is_given(kind, tmp_path):
    make, keywords = GIVEN[kind]
    p = model().predict(make(tmp_path), draws=1, **keywords)
    expected = np.zeros(SHAPE, bool)  # the phantom is stored posterior, superior, left
    expected[:3, 4:, :3] = True
    np.testing.assert_array_equal(p.mask == 3, expected)
    places = world(np.argwhere(expected))
    assert (places.mean(0) > world(np.argwhere(np.ones(SHAPE))).mean(0)).all(), "right, anterior, superior"
    for result in (p.to_nibabel(), p.to_sitk()):
        np.testing.assert_allclose(places_of(result), places, atol=2e-3)
    if kind != "MetaTensor, of LPS":  # which goes back as LPS, below
        np.testing.assert_allclose(places_of(p.to_metatensor()), places, atol=2e-3)
    assert p.provenance["volume_ml"]["organ"] == pytest.approx(27 * 3.0 / 1000)


def test_noise_is_that_of_the_voxels_and_not_of_the_way_they_came(tmp_path):
    made = {kind: make(tmp_path) for kind, (make, _) in GIVEN.items() if "half" not in kind}
    seeds = {kind: make_model().predict(image, draws=3, **GIVEN[kind][1]).provenance["seeds"] for kind, image in made.items()}
    assert {tuple(one) for one in seeds.values()} == {tuple(seeds["path"])}


def test_results_come_back_as_the_kind_that_was_given(tmp_path):
    def back(kind: str, what: str = "mask"):
        make, keywords = GIVEN[kind]
        given = make(tmp_path)
        return given, model().predict(given, draws=2, **keywords).like_input(what)

    given, image = back("SimpleITK")
    assert image.GetPixelID() == sitk.sitkUInt8 and image.GetSize() == given.GetSize()
    sitk.LabelOverlay(sitk.Cast(given, sitk.sitkUInt8), image)  # ITK refuses two images that do not lie on one grid
    given, image = back("nibabel, from a file")
    np.testing.assert_array_equal(image.affine, given.affine)
    assert image.get_data_dtype() == np.uint8 and image.header["sform_code"] == given.header["sform_code"]
    _, image = back("nibabel", "probability")
    assert image.shape == (*SHAPE, 2)
    given, tensor = back("MetaTensor")
    assert isinstance(tensor, MetaTensor) and tensor.shape == (1, *SHAPE)
    assert tensor.meta["filename_or_obj"] == given.meta["filename_or_obj"] and torch.equal(tensor.affine, given.affine)
    given, tensor = back("MetaTensor, of LPS", "entropy")
    assert tensor.meta["space"] == "LPS" and torch.equal(tensor.affine, given.affine) and tensor.dtype == torch.float32
    _, tensor = back("tensor")
    assert type(tensor) is torch.Tensor and tensor.shape == SHAPE and set(tensor.unique().tolist()) == {0, 3}
    _, image = back("Image", "probability")
    assert isinstance(image, Image) and image.data.shape == (2, *SHAPE)
    for kind in ("array", "path", "paths"):
        assert type(back(kind)[1]) is np.ndarray


def test_a_spacing_is_enough_for_an_array_that_lies_straight():
    p = model().predict(VOXELS, draws=1, spacing=(2, 3, 4))
    np.testing.assert_array_equal(p.image.affine, np.diag([2.0, 3.0, 4.0, 1.0]))
    flat = make_model(dims=2, orientation=None, patch=(8, 8)).predict(VOXELS[0], draws=1, spacing=np.array([0.5, 0.25]))
    assert flat.image.spacing == (0.5, 0.25)
    turned = np.array([[0.0, 2.0, 5.0], [-3.0, 0.0, 7.0], [0.0, 0.0, 1.0]])  # of a picture, [3, 3]
    image = make_model(dims=2, orientation=None, patch=(8, 8)).predict(VOXELS[0], draws=1, affine=turned).image
    np.testing.assert_array_equal(image.affine @ [1, 0, 0, 1], [5, 4, 0, 1])


def test_channels_are_files_images_or_an_axis(tmp_path):
    two = make_model(channels=("T1", "T2"), normalisation=("zscore",) * 2, intensity=())
    images = [nib.Nifti1Image(VOXELS, oblique()), nib.Nifti1Image(VOXELS[::-1].copy(), oblique())]
    for number, image in enumerate(images):
        nib.save(image, tmp_path / f"scan_000{number}.nii.gz")
    files = [tmp_path / "scan_0000.nii.gz", str(tmp_path / "scan_0001.nii.gz")]
    stacked = np.stack([VOXELS, VOXELS[::-1]])
    meta = MetaTensor(torch.from_numpy(stacked), affine=torch.from_numpy(oblique()))
    seeds = {tuple(two.predict(one, draws=2).provenance["seeds"]) for one in (files, tuple(files), images, meta)}
    seeds.add(tuple(two.predict(stacked, draws=2, affine=oblique()).provenance["seeds"]))
    assert len(seeds) == 1
    with pytest.raises(UserError, match=r"image 1 of the list: its affine .* mm apart.*predict_many"):
        two.predict([images[0], nib.Nifti1Image(VOXELS, np.eye(4))])


def test_a_model_is_a_step_of_a_monai_pipeline(tmp_path):
    path, segment = on_disk(tmp_path), model()
    mask = Compose([LoadImage(), EnsureChannelFirst(), segment])(path)
    np.testing.assert_array_equal(mask[0], segment.predict(path).mask)
    assert isinstance(mask, MetaTensor) and mask.meta["filename_or_obj"] == str(path)
    read = Compose([LoadImaged("image"), EnsureChannelFirstd("image"), Lambdad("image", segment)])({"image": path})
    assert torch.equal(read["image"], mask)
    turn = Orientation("LPS", labels=None)
    turned = Compose([LoadImage(), EnsureChannelFirst(), turn, segment])(path)
    np.testing.assert_allclose(places_of(turned), places_of(mask), atol=2e-3)
    back = turn.inverse(turned)  # what was done to the image is remembered by its mask
    np.testing.assert_array_equal(back, mask)


class ItkLike:
    """Of a package that is not taken."""


REFUSED = {
    "nothing": (None, {}, "this is no image: None. Give a path"),
    "a number": (3, {}, "this is no image: int"),
    "a dictionary": ({"image": VOXELS}, {}, "this is no image: dict"),
    "another package": (ItkLike(), {}, "this is no image: .*ItkLike"),
    "a boolean array": (VOXELS > 50, {}, r"a boolean array of shape \(9, 7, 8\) is a mask"),
    "a boolean tensor": (torch.from_numpy(VOXELS > 50), {}, "a boolean array .* is a mask"),
    "complex": (VOXELS + 1j, {}, "an array of shape .* type complex64"),
    "complex nibabel": (nib.Nifti1Image(VOXELS + 1j, np.eye(4)), {}, "complex64"),
    "objects": (np.full(SHAPE, None), {}, "type object"),
    "masked voxels": (np.ma.masked_less(VOXELS, 50), {}, "masked array"),
    "no list at all": ([], {}, "empty list"),
    "a list of arrays": ([VOXELS, VOXELS], {}, "a list of ndarray.*np.stack.*predict_many"),
    "a list of tensors": ([torch.from_numpy(VOXELS)], {}, "a list of Tensor.*np.stack"),
    "a list of nothing": ([None], {}, "a list of NoneType"),
    "NaN": (np.where(VOXELS > 98, np.nan, VOXELS), {}, r"NaN or infinite values in the image: \d+ of 504"),
    "NaN of nibabel": (nib.Nifti1Image(VOXELS * np.nan, np.eye(4)), {}, "NaN or infinite"),
    "NaN of SimpleITK": (sitk.GetImageFromArray(VOXELS * np.nan), {}, "NaN or infinite"),
    "beyond float32": (VOXELS.astype(np.float64) + 1e39, {}, "NaN or infinite"),
    "two axes": (VOXELS[0], {}, r"an array of shape \(7, 8\).*takes real numbers with 3 axes"),
    "a picture of nibabel": (nib.Nifti1Image(VOXELS[0], np.eye(4)), {}, "a picture .* for volumes"),
    "a batch": (VOXELS[None, None], {}, "one case at a time"),
    "nothing in it": (VOXELS[:0], {}, "an array of shape"),
    "channels": (np.stack([VOXELS] * 2), {}, "2 channels, but the plan has 1"),
    "channels of SimpleITK": (sitk.Compose(in_itk(), in_itk()), {}, "2 channels, but the plan has 1"),
    "channels last": (VOXELS[..., None], {}, "9 channels, but the plan has 1"),
    "affine and spacing": (VOXELS, {"affine": np.eye(4), "spacing": (1, 1, 1)}, "both"),
    "affine of an image": (in_itk(), {"affine": np.eye(4)}, "affine= is for arrays and tensors: a SimpleITK"),
    "spacing of a path": ("scan.nii.gz", {"spacing": (1, 1, 1)}, "spacing= is for arrays and tensors: a path"),
    "an affine of another shape": (VOXELS, {"affine": np.eye(3)}, r"an affine of shape \(3, 3\)"),
    "an affine in words": (VOXELS, {"affine": "RAS"}, "affine='RAS' is no matrix"),
    "an affine that maps to nothing": (VOXELS, {"affine": np.diag([1.0, 1, 0, 1])}, "does not map voxels to a volume"),
    "an affine with another last row": (VOXELS, {"affine": np.ones((4, 4))}, "another last row"),
    "too few spacings": (VOXELS, {"spacing": (1, 1)}, "Give 3 sizes of a voxel"),
    "a spacing of 0": (VOXELS, {"spacing": (1, 0, 1)}, "Give 3 sizes of a voxel"),
    "a spacing in words": (VOXELS, {"spacing": "1 mm"}, "Give 3 sizes of a voxel"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_image_is_refused_in_one_sentence(name):
    given, keywords, says = REFUSED[name]
    oracle = make_model()
    with pytest.raises(UserError, match=says) as fault:
        oracle.predict(given, **keywords)
    assert len(str(fault.value)) < 300 and "\n" not in str(fault.value)
    assert not oracle.method.calls


def test_a_volume_is_no_picture():
    flat = make_model(dims=2, orientation=None, patch=(8, 8))
    for given in (VOXELS[None], nib.Nifti1Image(VOXELS, np.eye(4)), in_itk(), Image(VOXELS[None])):
        with pytest.raises(UserError, match=r"with 2 axes|plan is for pictures"):
            flat.predict(given)


def test_a_case_is_known_again_by_the_file_of_a_nibabel_image(tmp_path):
    """Results are named after it, and the record says where they came from."""
    p = model().predict(nib.load(on_disk(tmp_path)), draws=1)
    assert p.image.source == tmp_path / "scan.nii.gz"
    assert p.save(tmp_path / "out").name == "scan.nii.gz"
    assert model().predict(nib.Nifti1Image(VOXELS, oblique()), draws=1).image.source is None


def test_what_a_prediction_holds_is_asked_for_by_name():
    p = make_model(noise=0.5).predict(VOXELS, draws=2, keep_draws=True)
    np.testing.assert_array_equal(p.values("entropy"), p.uncertainty["entropy"])
    assert p.to_nibabel("draws").shape == (*SHAPE, 2)
    with pytest.raises(UserError, match=r"the steps of this prediction were not kept.*keep_steps=True"):
        p.values("steps")
    with pytest.raises(UserError, match=r"has no 'entropie'.*mask, probability, draws, entropy"):
        p.to_sitk("entropie")
