"""The page holds all of its numbers and pictures and nothing from elsewhere; pictures show what they say."""

import base64
import io
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from diffuseg.data.io import write
from diffuseg.drawing import View, figure_of
from diffuseg.reports import figures, plots
from diffuseg.reports.case_pictures import case_pictures, read_with_maps
from diffuseg.reports.evaluate import evaluate
from diffuseg.reports.evaluation import Evaluation
from diffuseg.reports.figures import DIFFERENCES, OKABE_ITO, cases_figure, validation_figure
from diffuseg.reports.page import write_page
from diffuseg.reports.titles import summary_cells
from diffuseg.types import Image

SHAPE = (30, 26, 12)
LABELS = {"background": 0, "head": 1, "tail <&>": 2}


def truth() -> np.ndarray:
    """Most of it in slice 7."""
    array = np.zeros(SHAPE, np.int16)
    array[8:14, 8:20, 5:9] = 1
    array[14:20, 8:20, 5:9] = 2
    array[6:22, 6:22, 7] = np.where(np.arange(6, 22) < 14, 1, 2)[:, None]
    return array


@pytest.fixture
def evaluation(tmp_path: Path) -> Evaluation:
    """Five cases, case_n moved by n voxels; images and maps beside them as predict writes them."""
    folder, predictions = tmp_path / "set", tmp_path / "predictions"
    random = np.random.default_rng(0)
    like = Image(truth()[None], np.diag([1.0, 1.0, 2.0, 1.0]))
    for number in range(5):
        moved = np.roll(truth(), number, 0)
        write(folder / "labelsTr" / f"case_{number}.nii.gz", truth(), like)
        write(folder / "imagesTr" / f"case_{number}_0000.nii.gz", random.normal(size=SHAPE).astype(np.float32), like)
        write(predictions / f"case_{number}.nii.gz", moved, like)
        if number != 2:
            probability = np.stack([moved == 1, moved == 2]).astype(np.float32)
            write(predictions / f"case_{number}_prob.nii.gz", probability, like)
            write(predictions / f"case_{number}_entropy.nii.gz", random.random(SHAPE).astype(np.float32), like)
    (predictions / "case_0.json").write_text(json.dumps({"volume_ml_90": {"head": [0.1, 2.5]}}))
    description = {"channel_names": {"0": "MR"}, "labels": LABELS}
    (folder / "dataset.json").write_text(json.dumps(description))
    write(folder / "labelsTr" / "unseen.nii.gz", truth(), like)
    return evaluate(predictions, folder / "labelsTr", tmp_path / "out")


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(PIL.Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def amount(png: bytes, colour: str) -> int:
    """Pixels that have this colour, but for rounding."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(pixels(png) - wanted).max(-1) <= 3).sum())


def test_the_page_needs_nothing_but_itself(evaluation: Evaluation, tmp_path: Path) -> None:
    (tmp_path / "predictions" / "case_1.json").write_text(json.dumps({"model_name": "cdal <script>", "seed": 0}))
    pictures = case_pictures([evaluation])
    page = write_page([evaluation], tmp_path / "out" / "index.html").file.read_text()
    for target in re.findall(r"(?:src|href)\s*=\s*[\"']([^\"']*)", page):
        assert target.startswith(("data:image/png;base64,", "#")), target
    assert not re.search(r"@import|url\((?!#)|<script|<link", page)
    for entry in evaluation.means.values():
        for cell in summary_cells(entry):
            assert cell in page
    for said in (
        "For research only",
        "tail &lt;&amp;&gt;",
        "cdal &lt;script&gt;",
        "unseen",
        "case_4",
        "A class in neither mask",
    ):
        assert said in page, said
    for title, png in pictures:
        assert title in page and base64.b64encode(png).decode() in page
    assert page.count("<svg") == 3 and "[0.100, 2.500]" in page


def test_equal_results_give_equal_pages(evaluation: Evaluation, tmp_path: Path) -> None:
    first, second = (write_page([evaluation], tmp_path / f"{name}.html").file.read_text() for name in "ab")
    assert first == second


def test_worst_median_and_best_are_shown(evaluation: Evaluation) -> None:
    assert [title for title, _ in case_pictures([evaluation])] == [
        "Worst case: case_4",
        "Median case: case_2",  # without maps: it is drawn with what there is
        "Best case: case_0",
    ]


def test_a_broken_image_does_not_cost_the_report(evaluation: Evaluation, tmp_path: Path) -> None:
    (tmp_path / "set" / "imagesTr" / "case_0_0000.nii.gz").write_bytes(b"rubbish")
    assert len(case_pictures([evaluation])) == 3
    (tmp_path / "set" / "imagesTr").rename(tmp_path / "gone")
    assert len(case_pictures([evaluation])) == 3


def test_maps_in_png_are_read_in_their_units(tmp_path: Path) -> None:
    """predict writes one probability per class into a .png, and entropy as a part of log(classes)."""
    like = Image(np.zeros((1, 6, 7), np.int16))
    for name, value in (("", 1), ("_prob_a", 0.25), ("_prob_b", 0.5), ("_entropy", 0.5)):
        write(tmp_path / f"x{name}.png", np.full((6, 7), value, np.int16 if name == "" else np.float32), like)
    write(tmp_path / "y.png", np.zeros((6, 7), np.int16), like)
    _, probability, entropy = read_with_maps("x", tmp_path / "x.png", 3)
    assert probability is not None and probability == pytest.approx(np.full((6, 7), 0.75), abs=1e-4)
    assert entropy is not None and entropy == pytest.approx(np.full((6, 7), 0.5 * np.log(3)), abs=1e-4)
    assert read_with_maps("y", tmp_path / "y.png", 3)[1:] == (None, None)


def drawn(
    image: np.ndarray | None, truth: np.ndarray, mask: np.ndarray, entropy: np.ndarray | None = None, **more: object
) -> bytes:
    """One case as one prediction has it."""
    row = {"title": "t", "mask": mask, "probability": entropy, "entropy": entropy}
    return cases_figure(image, truth, [row], **more)  # type: ignore[arg-type]


def test_a_case_shows_truth_prediction_and_where_they_differ() -> None:
    image, entropy = np.zeros(SHAPE, np.float32), np.zeros(SHAPE, np.float32)
    right = drawn(image, truth(), truth(), entropy, labels=LABELS)
    wrong = drawn(image, truth(), np.roll(truth(), 4, 0), entropy, labels=LABELS)
    for kind, colour in DIFFERENCES.items():
        assert amount(wrong, colour) > amount(right, colour) + 200, kind
    missed = drawn(image, truth(), np.zeros_like(truth()), entropy, labels=LABELS)
    # the classes are outlined in the panel of the truth and in that of the prediction
    for colour in OKABE_ITO[:2]:
        assert amount(right, colour) > amount(missed, colour) > 50


def figures_of(monkeypatch, module) -> list:
    """Where the figures that a module makes a PNG of are kept."""
    found = []
    monkeypatch.setattr(module, "png_of", lambda figure: found.append(figure) or b"")
    return found


def test_the_legend_has_another_class_only_where_there_is_one(monkeypatch) -> None:
    found, mask = figures_of(monkeypatch, figures), np.zeros((8, 8), np.int16)
    for labels in ({"background": 0, "spot": 1}, {"background": 0, "spot": 1, "vessel": 2}):
        drawn(np.zeros((8, 8)), mask, mask, labels=labels)
    one, two = ([text.get_text() for text in figure.legends[0].get_texts()] for figure in found)
    assert one == ["spot", "missed", "in excess"] and two == ["spot", "vessel", "missed", "in excess", "other class"]


def test_numbers_of_draws_are_not_hidden_by_the_ring_nor_by_the_frame(monkeypatch) -> None:
    found = figures_of(monkeypatch, plots)
    rows = [
        {"steps": 1, "draws": n, "seconds": seconds, "dice": 0.8 + n / 100, "nll": 0.3 - n / 100, "brier": 0.2 - n / 100}
        for n, seconds in ((1, 0.2), (2, 0.19), (4, 0.21), (8, 0.38))
    ]
    plots.curve_figure(rows, rows[-1])
    (figure,) = found
    FigureCanvasAgg(figure).draw()
    for axis in figure.axes:
        ring = next(line for line in axis.lines if line.get_label() == "recommended")
        middle, radius = axis.transData.transform(ring.get_xydata()[0]), (ring.get_markersize() / 2 + 1) * figure.dpi / 72
        for text in axis.texts:
            box = text.get_window_extent()
            assert axis.bbox.x0 < box.x0 and box.x1 < axis.bbox.x1 and axis.bbox.y0 < box.y0 and box.y1 < axis.bbox.y1
            near = np.clip(middle, box.min, box.max)
            assert np.hypot(*(near - middle)) > radius, text.get_text()


def test_the_slice_with_most_truth_is_shown() -> None:
    image = np.zeros(SHAPE, np.float32)
    image[..., 7] = np.where(np.indices(SHAPE[:2])[0] % 2, 1.0, 0.0)
    stripes = drawn(image, truth(), truth())
    plain = drawn(image * (np.arange(12) != 7), truth(), truth())
    assert amount(stripes, "#ffffff") > amount(plain, "#ffffff") + 5000


@pytest.mark.parametrize(
    ("shape", "empty"), [((40, 50), True), ((300, 200), False), ((20, 30, 8), True), ((1, 9, 9), False), ((7, 1), False)]
)
def test_odd_shapes_and_empty_masks_are_drawn(shape: tuple[int, ...], empty: bool) -> None:
    labels = np.zeros(shape, np.int16)
    if not empty:
        labels[tuple(n // 2 for n in shape)] = 3
    flat = np.zeros(shape, np.float32)
    for image in (flat, np.stack([flat] * 3), None):
        png = drawn(image, labels, labels * 0, flat, spacing=[1.0, 2.0, 5.0][: len(shape)])
        assert pixels(png).std() > 0
    assert pixels(validation_figure([{"image": flat, "truth": labels, "draws": [labels], "entropy": flat, "title": "t"}])).size


@pytest.mark.parametrize("order", itertools.permutations(range(3)))
@pytest.mark.parametrize("signs", itertools.product((1, -1), repeat=2))
def test_letters_say_where_the_patient_lies(order: tuple[int, ...], signs: tuple[int, int]) -> None:
    """One voxel to the right of the panel, or up, is a step in the world: the letter there names its direction."""
    affine = np.eye(4)
    affine[:3, :3] = np.diag([2.0, 3.0, 4.0])[list(order)] * [*signs, 1]
    affine[:3, 3] = 5, -60, 7
    view = View(truth(), truth(), (2.0, 3.0, 4.0))
    axis = figure_of(1, 1, (2.0, 2.0))[1][0, 0]
    view.letters(axis, affine)
    at = {text.get_position(): text.get_text() for text in axis.texts}
    west, east = (min(at, key=lambda p: p[0]), max(at, key=lambda p: p[0]))
    south, north = (min(at, key=lambda p: p[1]), max(at, key=lambda p: p[1]))
    origin = affine @ [4, 4, 4, 1]
    for step, towards, away in (([1, 0, 0, 0], east, west), ([0, 1, 0, 0], north, south)):
        way = (affine @ (np.array([4, 4, 4, 1]) + step) - origin)[:3]
        world = int(np.abs(way).argmax())
        pair = ("LR", "PA", "IS")[world]
        assert at[towards] == pair[int(way[world] > 0)] and at[away] == pair[int(way[world] < 0)]


def test_letters_are_on_the_picture_of_a_volume_alone() -> None:
    image = np.zeros(SHAPE, np.float32)
    plain, lettered = (drawn(image, truth(), truth(), affine=affine) for affine in (None, np.eye(4)))
    assert amount(lettered, "#ffd933") > amount(plain, "#ffd933") + 10
    flat = [drawn(image[..., 7], truth()[..., 7], truth()[..., 7], affine=affine) for affine in (None, np.eye(4))]
    assert flat[0] == flat[1]


def test_validation_shows_each_draw() -> None:
    row = {"image": np.zeros(SHAPE, np.float32), "truth": truth() * 0, "entropy": np.zeros(SHAPE, np.float32), "title": "a"}
    none, one = truth() * 0, (truth() == 1).astype(np.int16)
    two = (amount(validation_figure([row | {"draws": draws}]), OKABE_ITO[0]) for draws in ([one, none], [one, one]))
    first, both = two
    assert first > 100 and both == pytest.approx(2 * first, rel=0.15)
    stacked = validation_figure([row | {"draws": np.stack([one, none])}, row | {"draws": [one, one, none]}])
    assert amount(stacked, OKABE_ITO[0]) > first
    with pytest.raises(ValueError, match="no case"):
        validation_figure([])


def test_neither_a_screen_nor_the_plots_of_the_caller_are_touched(tmp_path: Path) -> None:
    code = """
import sys
from diffuseg.reports.figures import validation_figure
assert "matplotlib" not in sys.modules and "monai" not in sys.modules and "jinja2" not in sys.modules
import numpy as np
a = np.zeros((9, 9), int)
a[3:5, 3:5] = 1
validation_figure([dict(image=a.astype(float), truth=a, draws=[a], entropy=a * 0.1, title="t")])
assert "matplotlib.pyplot" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("title", ["b$\\frac$ x$$", "M\udcfcller", "a_b^c", "two\nlines", "x" * 500, "[red]<b>&"])
def test_a_title_is_drawn_as_it_is_written(title):
    truth = np.zeros((8, 8), int)
    truth[2:5, 2:5] = 1
    row = {"image": truth, "truth": truth, "draws": [truth], "entropy": truth * 0.1, "title": title}
    assert validation_figure([row]).startswith(b"\x89PNG")
