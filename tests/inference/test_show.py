"""A prediction in a notebook: a picture, volumes with intervals, what is doubtful."""

import base64
import io
import re
import subprocess
import sys

import matplotlib
import numpy as np
import PIL.Image
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from diffuseg.drawing import OKABE_ITO
from diffuseg.errors import UserError
from diffuseg.inference.show import as_html, picture, volume_rows
from diffuseg.types import Image
from tests.inference.oracle import make_model


@pytest.fixture(scope="module")
def box():
    """A prediction of a box of 4 x 4 x 4 voxels of 2 mm, whose draws differ a little."""
    data = np.zeros((1, 16, 14, 12), np.float32)
    data[0, 4:8, 5:9, 6:10] = 10
    labels = {"background": 0, "<b>organ</b> & $x$": 3}
    return make_model(noise=0.3, labels=labels).predict(Image(data, np.diag([2.0, 2.0, 2.0, 1.0])), draws=3)


def colour(png: bytes, wanted: str) -> int:
    """How many pixels are about of a colour."""
    pixels = np.asarray(PIL.Image.open(io.BytesIO(png)).convert("RGB"), float) / 255
    return int((np.abs(pixels - to_rgb(wanted)).max(-1) < 0.08).sum())


def test_html_has_the_picture_the_numbers_and_nothing_that_is_not_escaped(box):
    box.provenance["outside_training"] = ["spacing <2 mm>"]
    text = box._repr_html_()
    png = base64.b64decode(re.search(r"base64,([^\"]+)", text)[1])
    assert png == picture(box) and colour(png, OKABE_ITO[2]) > 50, "the outline of class 3"
    low, high = box.provenance["volume_ml_90"]["<b>organ</b> & $x$"]
    volume = box.provenance["volume_ml"]["<b>organ</b> & $x$"]
    assert f"<td>&lt;b&gt;organ&lt;/b&gt; &amp; $x$</td><td>{volume:.3f} ml</td><td>{low:.3f} to {high:.3f} raw</td>" in text
    assert "Unlike the images of the training: spacing &lt;2 mm&gt;." in text and "<b>" not in text
    assert "3 draws" in text and "Not a medical device".lower() in text.lower()
    del box.provenance["outside_training"]
    assert "Unlike" not in as_html(box)


def test_pictures_have_pixels_or_an_area_and_no_millilitres():
    model = make_model(dims=2, orientation=None, patch=(8, 8))
    image = np.zeros((12, 10))
    image[2:5, 3:7] = 10
    rows = [re.findall(r"<td>([^<]*)</td>", model.predict(image, draws=1, **given)._repr_html_()) for given in ({}, AREA)]
    assert rows == [["organ", "12 pixels", "-"], ["organ", "24 mm²", "-"]]
    found = model.predict(image, draws=1)  # of a whole slide, whose areas may be far below 1 mm²
    found.provenance |= {"volume_ml": {"organ": 0.00025}, "slide": {"um_per_pixel": [0.5, 0.5]}}
    assert volume_rows(found) == [("organ", "0.250 mm²", "-")]


AREA = {"spacing": (0.5, 4.0)}


def test_axes_of_the_caller_are_drawn_into_and_the_mask_lies_where_it_is(box):
    figure = Figure()
    axes = figure.subplots(1, 2)
    drawn = box.plot(axes)
    assert list(drawn) == list(axes)
    outline = np.concatenate([path.vertices for one in axes[0].collections for path in one.get_paths()])
    np.testing.assert_allclose([outline.min(0), outline.max(0)], [[3.5, 4.5], [7.5, 8.5]])
    shown = axes[1].images[0].get_array()  # i to the right, j upwards
    mask = box.mask != 0
    np.testing.assert_allclose(shown, box.probability[1][..., mask.sum((0, 1)).argmax()].T)
    single = Figure().subplots()
    assert list(box.plot(single)) == [single]
    with pytest.raises(UserError, match="4 axes"):
        box.plot(Figure().subplots(1, 4))


def test_without_axes_there_is_a_figure_of_pyplot(box, monkeypatch):
    monkeypatch.setattr(matplotlib, "get_backend", lambda **_: "agg")
    from matplotlib import pyplot

    pyplot.switch_backend("agg")
    axes = box.plot()
    assert len(axes) == 3 and pyplot.get_fignums()
    pyplot.close("all")


def test_an_empty_mask_is_shown_too():
    p = make_model().predict(np.zeros((6, 5, 4)), draws=1)
    assert "0.000 ml" in p._repr_html_() and picture(p).startswith(b"\x89PNG")


def test_numbers_need_no_matplotlib(box, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.patches", None)
    assert "<img" not in as_html(box) and " ml</td>" in as_html(box)


def test_predicting_imports_nothing_that_draws():
    code = "import sys, diffuseg.inference.prediction; print('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
