"""The preview of a picture: the mask in colours over the image, and a file that nothing takes for an image or a mask."""

import numpy as np
import PIL.Image
import pytest

from diffuseg.data.io import read_mask
from diffuseg.data.outputs import SIDECAR, without_results
from diffuseg.drawing import OKABE_ITO
from diffuseg.inference.folder import predict_folder
from diffuseg.inference.preview import SHARE, preview
from diffuseg.inference.sampling import SamplingOptions
from tests.inference.oracle import make_model

LABELS = {"background": 0, "near": 2, "far part": 5}
COLOURS = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in OKABE_ITO]


def test_classes_have_their_colours_and_the_background_is_the_image():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (3, 12, 14)).astype(np.uint8)
    mask = np.zeros((12, 14), np.uint8)
    mask[2:9, 1:6], mask[3:12, 8:14] = 2, 5
    shown = preview(image, mask, [2, 5])
    plain = np.moveaxis(image, 0, -1)
    np.testing.assert_array_equal(shown[mask == 0], plain[mask == 0])
    for number, value in enumerate((2, 5)):
        padded = np.pad(mask == value, 1)
        inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:] & (mask == value)
        rim = (mask == value) & ~inner
        assert (shown[rim] == COLOURS[number]).all() and rim.any() and inner.any()
        tinted = (1 - SHARE) * plain[inner] + SHARE * np.array(COLOURS[number])
        np.testing.assert_allclose(shown[inner], tinted, atol=0.51)


def test_a_grey_image_is_shown_in_its_own_window():
    grey = np.linspace(0, 60000, 400).reshape(1, 20, 20).astype(np.float32)
    shown = preview(grey, np.zeros((20, 20), np.uint8), [1])
    assert shown.min() == 0 and shown.max() == 255 and (shown[..., 0] == shown[..., 2]).all()
    assert (np.diff(shown[..., 0].ravel().astype(int)) >= 0).all()
    assert not preview(np.full((1, 4, 4), 7.0), np.zeros((4, 4), np.uint8), [1]).any(), "nothing to divide by"


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_predict_writes_one_beside_pictures_and_never_reads_it(tmp_path, ending):
    data = np.kron(10.0 * np.random.default_rng(0).integers(0, 3, (4, 5)), np.ones((4, 4))).astype(np.uint8)
    PIL.Image.fromarray(data).save(tmp_path / f"p{ending}")
    model = make_model(noise=0.6, labels=LABELS, dims=2, orientation=None, patch=(8, 8), file_ending=ending)
    predict_folder(model, [tmp_path / f"p{ending}"], tmp_path / "out", SamplingOptions(draws=2, steps=2))
    made = tmp_path / "out" / "p_preview.png"
    mask = read_mask(tmp_path / "out" / f"p{ending}").data[0]
    assert set(np.unique(mask)) <= {0, 2, 5}, "the mask itself keeps its values"
    shown = np.asarray(PIL.Image.open(made))
    assert shown.shape == (*mask.shape, 3) and (shown[mask == 0, 0] == shown[mask == 0, 2]).all() and (mask != 0).any()
    assert without_results([made]) == [] and SIDECAR.fullmatch("p_preview")
