"""Probabilities in bytes: whoever reads them gets what the draws said, to half a step of 1/255."""

import json

import nibabel as nib
import numpy as np
import pytest

from diffuseg import scratch
from diffuseg.data.io import read_mask, read_planes, write
from diffuseg.inference.folder import predict_folder
from diffuseg.inference.sampling import SamplingOptions
from diffuseg.reports.case_pictures import read_with_maps
from diffuseg.reports.probabilities import probability_of
from diffuseg.types import Image
from diffuseg.viewer.cases import find_cases
from diffuseg.viewer.voxels import encode
from tests.inference.oracle import make_model

THREE = {"background": 0, "near": 2, "far": 5}
FOUR = THREE | {"last": 7}


def predicted(folder, ending, labels, dtype):
    picture = ending in (".png", ".tif")
    data = 10 * np.random.default_rng(0).integers(0, len(labels), (6, 5) if picture else (6, 5, 4)).astype(np.uint8)
    case = folder / f"a{ending}"
    write(case, data, Image(data[None]))
    changes = {"dims": 2, "orientation": None, "patch": (8, 8)} if picture else {}
    model = make_model(noise=0.6, labels=labels, **changes)
    predict = lambda: predict_folder(model, [case], folder / "out", SamplingOptions(3), prob_dtype=dtype)
    return predict, model.predict(case, draws=3)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("labels", [{"background": 0, "near": 2}, THREE, FOUR])
@pytest.mark.parametrize("ending", [".nii.gz", ".tif", ".png", ".mha"])
def test_bytes_are_read_as_probabilities(tmp_path, monkeypatch, ending, labels, large):
    predict, right = predicted(tmp_path, ending, labels, "uint8")
    monkeypatch.setattr(scratch, "IN_MEMORY", 20 if large else 2**20)
    assert predict().finished == ["a"]
    out = tmp_path / "out"
    mask = read_mask(out / f"a{ending}")
    found = probability_of("a", mask, out / f"a{ending}", labels)
    np.testing.assert_allclose(found, right.probability, atol=(len(labels)) / 255)
    np.testing.assert_allclose(found[1:], right.probability[1:], atol=0.006)
    _, foreground, _ = read_with_maps("a", out / f"a{ending}", len(labels))
    np.testing.assert_allclose(foreground, right.probability[1:].sum(0), atol=0.006)
    case = find_cases(out)[0]
    layer = next(layer for layer in case.layers if layer.key == "prob0")
    shown = nib.Nifti1Image.from_bytes(encode(case, layer, 10**6)).get_fdata().squeeze()
    expected = right.probability[1].T if mask.dims == 2 else right.probability[1]
    np.testing.assert_allclose(shown, expected, atol=0.0041)


def test_the_header_and_the_record_say_the_scale(tmp_path):
    predict, _ = predicted(tmp_path, ".nii.gz", THREE, "uint8")
    predict()
    image = nib.load(tmp_path / "out/a_prob.nii.gz")
    assert image.get_data_dtype() == np.uint8
    assert (image.dataobj.slope, image.dataobj.inter) == (pytest.approx(1 / 255), 0)
    assert json.loads((tmp_path / "out/a.json").read_text())["prob_dtype"] == "uint8"


def test_a_case_with_another_type_is_done_again_and_one_without_probabilities_is_not_in_need(tmp_path):
    predict, right = predicted(tmp_path, ".nii.gz", THREE, "uint8")
    assert [predict().finished, predict().finished] == [["a"], []]
    again, _ = predicted(tmp_path, ".nii.gz", THREE, "float32")
    assert [again().finished, again().finished] == [["a"], []]
    assert "prob_dtype" not in json.loads((tmp_path / "out/a.json").read_text())
    np.testing.assert_allclose(read_planes(tmp_path / "out/a_prob.nii.gz").data, right.probability[1:], atol=1e-6)
