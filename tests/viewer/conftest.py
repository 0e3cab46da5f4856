"""Folders of results as `predict` writes them, of a volume and of pictures."""

import numpy as np
import PIL.Image
import pytest

from diffuseg.data import io
from diffuseg.inference.folder import predict_folder
from diffuseg.inference.sampling import SamplingOptions
from diffuseg.types import Image
from tests.inference.oracle import make_model

LABELS = {"background": 0, "near": 2, "far part": 5}
AFFINE = np.array([[0, -1.5, 0, 7], [0.9, 0, 0, -3], [0, 0, -2.0, 11], [0, 0, 0, 1.0]])
KEPT = {"draws": 3, "steps": 3, "keep_draws": True, "keep_steps": True}


def organs(*shape: int) -> np.ndarray:
    return 10.0 * np.random.default_rng(0).integers(0, 3, shape)


@pytest.fixture
def volumes(tmp_path):
    """Results of two volumes that are stored at an angle, named a and b."""
    (tmp_path / "scans").mkdir()
    for number, case in enumerate("ab"):
        scan = Image(np.roll(organs(6, 5, 4), number, 0)[None].astype(np.float32), AFFINE)
        io.write(tmp_path / "scans" / f"{case}_0000.nii.gz", scan.data[0], scan)
    model = make_model(noise=0.6, labels=LABELS)
    assert len(predict_folder(model, [tmp_path / "scans"], tmp_path / "out", SamplingOptions(**KEPT)).finished) == 2
    return tmp_path / "out"


@pytest.fixture
def pictures(tmp_path):
    """Results of one grey picture, p, wider than high."""
    data = np.kron(organs(4, 5), np.ones((4, 4))).astype(np.uint8)
    PIL.Image.fromarray(data).save(tmp_path / "p.png")
    model = make_model(noise=0.6, labels=LABELS, dims=2, orientation=None, patch=(8, 8), file_ending=".png")
    assert predict_folder(model, [tmp_path / "p.png"], tmp_path / "flat", SamplingOptions(**KEPT)).finished == ["p"]
    return tmp_path / "flat"
