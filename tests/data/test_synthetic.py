"""The made-up data are what their documentation says: reproducible, anatomical, and ambiguous where it matters."""

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import binary_dilation, binary_erosion, label

from diffuseg.data.dataset import check, load_case, open_dataset
from diffuseg.data.synthetic import make_dataset, make_pictures, picture, volume

SOME = [volume(0, index) for index in range(6)]


def test_a_dataset_is_a_sound_nnunet_folder(tmp_path):
    dataset = open_dataset(make_dataset(tmp_path / "set", cases=3, shape=(20, 24, 18), channels=2))
    assert check(dataset) == []
    assert dataset.channels == ("T1", "T2") and list(dataset.labels) == ["background", "head", "tail"]
    image, mask = load_case(dataset, dataset.cases[1])
    data, truth, affine = volume(0, 1, (20, 24, 18), channels=2)
    np.testing.assert_array_equal(image.data, data)
    np.testing.assert_array_equal(mask.data[0], truth)
    np.testing.assert_allclose(image.affine, affine, atol=1e-5)


def test_pure_function_of_seed_and_case(tmp_path):
    files = lambda folder: {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*.*"))}
    few = files(make_dataset(tmp_path / "few", cases=2, shape=(16, 20, 16), seed=5))
    many = files(make_dataset(tmp_path / "many", cases=3, shape=(16, 20, 16), seed=5))
    other = files(make_dataset(tmp_path / "other", cases=2, shape=(16, 20, 16), seed=6))
    assert len(few) == 5 and len(many) == 7
    for name in few:
        if name.name != "dataset.json":
            assert few[name] == many[name] and few[name] != other[name]


def test_the_image_does_not_show_where_head_ends():
    moved = []
    for index in range(4):
        plain, sure, _ = volume(0, index, border_jitter=0.0)
        image, mask, _ = volume(0, index, border_jitter=3.0)
        np.testing.assert_array_equal(image, plain)
        np.testing.assert_array_equal(mask > 0, sure > 0)
        moved.append((mask != sure)[sure > 0].mean())
    assert 0.05 < max(moved) < 0.5


def test_the_border_varies_as_much_as_it_says():
    # The border lies across the tube: what moves from one label to the other is jitter times cross-section.
    shifts = []
    for index in range(25):
        (_, sure, affine), (_, mask, _) = volume(3, index, border_jitter=0.0), volume(3, index, border_jitter=1.5)
        moved = ((mask == 1).sum() - (sure == 1).sum()) * abs(np.linalg.det(affine[:3, :3]))
        shifts.append(moved / (np.pi * 4.0**2))  # radius of the tube there: about 4 mm
    assert 0.9 < np.std(shifts) < 2.4 and abs(np.mean(shifts)) < 1.0


def test_head_lies_in_front_of_tail_whatever_the_grid():
    handedness = set()
    for _, mask, affine in [volume(0, index, (24, 28, 22)) for index in range(12)]:
        place = lambda value: affine[:3] @ [*np.argwhere(mask == value).mean(0), 1]  # noqa: B023
        assert (place(1) - place(2))[1] > 10 * 22 / 36 * 0.8
        codes = nib.aff2axcodes(affine)
        assert codes in (("R", "A", "S"), ("L", "A", "S"))
        handedness.add(codes[0])
        assert not np.allclose(affine[:3, :3], np.diag(np.diag(affine[:3, :3])))  # oblique
    assert handedness == {"R", "L"}


def test_the_organ_is_one_piece_inside_the_volume():
    for _, mask, _ in SOME:
        pieces, count = label(mask > 0)
        largest = np.bincount(pieces.ravel())[1:].max()
        assert largest > 0.97 * (mask > 0).sum() and count < 4
        assert (mask == 1).sum() > 500 and (mask == 2).sum() > 300
        edge = np.ones(mask.shape, bool)
        edge[1:-1, 1:-1, 1:-1] = False
        assert (mask[edge] > 0).sum() <= 5


def test_parts_look_alike_and_their_surroundings_do_not():
    brighter = []
    for image, mask, _ in SOME:
        scale = np.median(image)
        inside = binary_erosion(mask > 0)
        head, tail = (np.median(image[0][inside & (mask == value)]) / scale for value in (1, 2))
        assert abs(head - tail) < 0.15
        shell = binary_dilation(mask > 0, iterations=2) & ~binary_dilation(mask > 0)
        brighter.append((image[0][shell] / scale > (head + tail) / 2 + 0.1).mean())
    assert np.mean(brighter) > 0.8


def test_noise_of_a_magnitude_image():
    image = SOME[0][0][0].astype(float)
    # Second differences leave noise alone: their variance is 6 sigma^2 for white noise.
    noise = np.diff(image, n=2, axis=2)
    sigma = 1.4826 * np.median(np.abs(noise - np.median(noise))) / np.sqrt(6)
    assert 0.02 < sigma / np.percentile(image, 95) < 0.08 and image.min() >= 0


def test_contrasts_of_channels_and_scales_of_cases():
    image, _, _ = volume(1, 0, channels=3)
    dark = image[0] < 0.45 * np.median(image[0])  # fluid
    assert 20 < dark.sum() < 0.2 * dark.size
    assert np.median(image[1][dark]) > 1.3 * np.median(image[1])
    np.testing.assert_array_equal(image[0], volume(1, 0)[0][0])
    medians = [np.median(image) for image, _, _ in SOME]
    assert max(medians) > 2 * min(medians)
    with pytest.raises(ValueError, match="channels=4"):
        volume(0, 0, channels=4)


@pytest.mark.parametrize("shape", [(12, 12, 12), (16, 24, 12), (30, 20, 44)])
def test_other_shapes_show_the_same_parts(shape):
    image, mask, _ = volume(2, 0, shape)
    assert image.shape == (1, *shape) and set(np.unique(mask)) == {0, 1, 2}


def test_pictures_are_sound_and_nuclei_are_dark_and_blue(tmp_path):
    dataset = open_dataset(make_pictures(tmp_path / "set", cases=2, size=96, seed=4))
    assert check(dataset) == [] and dataset.channels == ("R", "G", "B")
    for number, case in enumerate(dataset.cases):
        image, mask = load_case(dataset, case)
        expected, truth = picture(4, number, 96)
        np.testing.assert_array_equal(np.moveaxis(image.data, 0, -1), expected)
        np.testing.assert_array_equal(mask.data[0], truth)
        nuclei = mask.data[0] == 1
        assert 0.05 < nuclei.mean() < 0.5
        red, green, blue = (np.median(plane[nuclei]) for plane in image.data)
        assert blue > red > green
        assert red < np.median(image.data[0][~nuclei]) - 30
