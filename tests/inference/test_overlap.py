"""Overlap of tiles: less of it costs fewer tiles, and what is asked for decides the result and stands in its record."""

import numpy as np
import pytest

from benchmarks.memory import model
from diffuseg.errors import UserError
from tests.inference.oracle import Oracle, make_model


def counting():
    """A pointwise model on pictures, the number of tiles that it has seen, and a picture of 40 x 33 voxels."""
    made, seen = model(2, False, patch=(16, 16)), []
    denoise = made.method.denoise
    made.method.denoise = lambda *inputs: (seen.append(1), denoise(*inputs))[1]
    return made, seen, np.random.default_rng(0).integers(0, 200, (40, 33)).astype(np.float32)


@pytest.mark.parametrize(("overlap", "tiles"), [(0.0, 3 * 3), (0.25, 3 * 3), (0.5, 4 * 4), (0.75, 7 * 6), (None, 4 * 4)])
def test_tiles_are_as_many_as_the_overlap_asks_for(overlap, tiles):
    """Along an axis of n voxels, tiles of p = 16 that share at least a part o are ceil((n - p) / (p (1 - o))) + 1."""
    made, seen, picture = counting()
    made.predict(picture, draws=2, steps=3, overlap=overlap)
    assert len(seen) == 3 * tiles


def test_a_pointwise_model_gives_the_same_and_the_record_says_what_was_asked():
    made, _, picture = counting()
    usual, named, none = (made.predict(picture, draws=2, steps=2, overlap=overlap) for overlap in (None, 0.5, 0.0))
    assert (usual.probability == named.probability).all() and usual.provenance["options"] == named.provenance["options"] == {}
    np.testing.assert_allclose(none.probability, usual.probability, atol=1e-6)
    assert none.provenance["options"] == {"overlap": 0.0}


@pytest.mark.parametrize("overlap", [-0.1, 1.0, float("nan")])
def test_an_overlap_that_makes_no_tiles_is_refused(overlap):
    with pytest.raises(UserError, match=r"share of the patch from 0 to 0\.9"):
        counting()[0].predict(counting()[2], overlap=overlap)


def test_a_model_that_sees_images_as_a_whole_refuses_it(monkeypatch):
    monkeypatch.setattr(Oracle, "supervision", "image_label")
    with pytest.raises(UserError, match="without tiles"):
        make_model().settings(overlap=0.25)
