"""The report on several evaluations: nothing from elsewhere in it, names escaped, numbers those of the parts."""

import base64
import html
import io
import json
import os
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import PIL.Image
import pytest
from typer.testing import CliRunner

from diffuseg.cli import app
from diffuseg.data.io import write
from diffuseg.errors import UserError
from diffuseg.evaluation.calibration_metrics import band, measures
from diffuseg.evaluation.selective import aurc, expected_dice_loss
from diffuseg.reports.comparison import compare
from diffuseg.reports.evaluate import evaluate
from diffuseg.reports.evaluation import Evaluation, load_evaluations
from diffuseg.reports.figures import cases_figure
from diffuseg.reports.page import Page, write_page
from diffuseg.reports.probabilities import evaluate_probabilities, probability_of
from diffuseg.reports.titles import notes
from diffuseg.types import Image

SHAPE, CASES = (14, 12, 9), 7
LABELS = {"background": 0, "head <b>": 1, "tail": 5}
LIKE = Image(np.zeros((1, *SHAPE)), np.diag([1.0, 1.0, 2.0, 1.0]))


def write_report(folders: list[Path], out: Path) -> Page:
    return write_page(load_evaluations(folders), out)


def truth(number: int) -> np.ndarray:
    array = np.zeros(SHAPE, np.int16)
    array[3:7, 3 : 7 + number % 4, 2:7] = 1
    array[7:10, 3:9, 2:7] = 5
    return array


def probability(number: int, shift: int, sharp: float) -> np.ndarray:
    """[3, *s]: surer the larger `sharp` is, moved by `shift` voxels."""
    classes = np.searchsorted([0, 1, 5], np.roll(truth(number), shift, 0))
    noise = np.random.default_rng(number).normal(0, 1, (3, *SHAPE))
    logits = sharp * (3 * np.eye(3)[classes].transpose(3, 0, 1, 2) + noise)
    return np.exp(logits) / np.exp(logits).sum(0)


def predict(folder: Path, shift: int, sharp: float, seconds: float = 1.0, **record) -> Path:
    for number in range(CASES):
        p = probability(number, shift + number % 2, sharp).astype(np.float32)
        write(folder / f"case_{number}.nii.gz", np.array([0, 1, 5], np.int16)[p.argmax(0)], LIKE)
        write(folder / f"case_{number}_prob.nii.gz", p[1:], LIKE)
        said = {"draws": 4, "steps": 2, "model_name": "made <i>", "seconds": seconds + number, "seen_in": "neither"} | record
        (folder / f"case_{number}.json").write_text(json.dumps(said))
    return folder


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory) -> list[Path]:
    root = tmp_path_factory.mktemp("report")
    for number in range(CASES):
        write(root / "set" / "labelsTs" / f"case_{number}.nii.gz", truth(number), LIKE)
        image = np.random.default_rng(number).normal(size=SHAPE).astype(np.float32)
        write(root / "set" / "imagesTs" / f"case_{number}_0000.nii.gz", image, LIKE)
    (root / "set" / "dataset.json").write_text(json.dumps({"labels": LABELS}))
    predict(root / "sharp", 0, 4.0)
    predict(root / "blunt & co", 1, 1.0, 9.0, look_at=False, calibration={"applied": True, "temperature": 2.0, "cases": 30})
    found = []
    for name in ("sharp", "blunt & co"):
        evaluate(root / name, root / "set" / "labelsTs", root / "scores" / name)
        found.append(root / "scores" / name)
    return found


@pytest.fixture(scope="module")
def page(evaluations, tmp_path_factory) -> str:
    out, refused, left_out = write_report(evaluations, tmp_path_factory.mktemp("page") / "out" / "report.html")
    assert refused == "" and left_out == []
    return out.read_text(encoding="utf-8")


def test_nothing_comes_from_elsewhere(page):
    for target in re.findall(r"(?:src|href|xlink:href)\s*=\s*[\"']([^\"']*)", page):
        assert target.startswith(("data:image/png;base64,", "#")), target
    plain = re.sub(r"xmlns(:\w+)?=\"[^\"]*\"|<!DOCTYPE[^>]*>", "", page)  # names of languages, which nobody fetches
    assert not re.search(r"https?:|//\w|@import|url\((?!#)|<script|<link|<iframe", re.sub(r"base64,[\w+/=]*", "", plain))


def test_names_are_escaped(page):
    assert "head &lt;b&gt;" in page and "<b>tail" not in page and "head <b>" not in page
    assert "blunt &amp; co" in page and "made &lt;i&gt;" in page and "<i>" not in page


def test_the_parts_and_their_numbers_are_there(page, evaluations):
    for heading in (
        "Summary",
        "Which differences",
        "Every case",
        "Worst, median and best",
        "frequencies",
        "uncertainty",
        "cost",
    ):
        assert re.search(rf"<h2>[^<]*{heading}", page), heading
    for folder in evaluations:
        summary = json.loads((folder / "summary.json").read_text())
        for entry in (summary["overall"], *summary["classes"].values()):
            for key, digits in (("dice", 3), ("hd95", 2)):
                value = entry[key]
                assert f"{value['mean']:.{digits}f} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]" in page
    tables = re.findall(r"<h3>(mean of classes|tail|head &lt;b&gt;)</h3>", page)
    assert tables == ["mean of classes", "head &lt;b&gt;", "tail"]
    found = compare(evaluations)
    assert f"{found.differences[0].adjusted:.3f}" in page and "A - B" in page
    assert "temperature 2.000, from 30 cases" in page and "<!-- B: 4 x 2 -->" in page
    assert "Needs review by a person, says predict: 0 of 7 cases." in page
    assert len(page.encode()) < 15e6


def test_worst_median_and_best_by_the_mean_of_all(page, evaluations):
    scores = np.mean([e.per_case("dice") for e in load_evaluations(evaluations)], axis=0)
    order = [f"case_{i}" for i in np.argsort(scores)]
    titles = re.findall(r"<h3>(Worst|Median|Best) case: (case_\d)", page)
    assert titles == [("Worst", order[0]), ("Median", order[CASES // 2]), ("Best", order[-1])]
    pictures = re.findall(r"base64,([\w+/=]+)", page)
    assert len(pictures) == 3 and all(PIL.Image.open(io.BytesIO(base64.b64decode(p))).width > 800 for p in pictures)


def test_probabilities_are_judged_as_calibration_does_it(evaluations):
    written = load_evaluations(evaluations)[1]
    found, left_out = evaluate_probabilities(written)
    assert found is not None and not left_out and found.cases == [f"case_{n}" for n in range(CASES)]
    expected, doubts, risks = [], [], []
    for number in range(CASES):
        p, t = probability(number, 1 + number % 2, 1.0), np.searchsorted([0, 1, 5], truth(number))
        expected.append(measures(p, t, band(t, [1.0, 1.0, 2.0])))
        doubts.append(expected_dice_loss(p, p.argmax(0)))
        risks.append(1 - np.mean([written.cells[f"case_{number}", name].score.values["dice"] for name in written.classes]))
    for name in expected[0]:
        assert found.scores["band"][name].mean == pytest.approx(np.mean([one[name] for one in expected]), abs=1e-4), name
    assert found.uncertainty == pytest.approx(doubts, abs=1e-4) and found.risk == pytest.approx(risks)
    assert found.rejection["aurc"].mean == pytest.approx(aurc(np.array(risks), np.array(doubts)))


def test_numbers_that_are_no_probabilities_are_not_made_some(tmp_path):
    labels = {"background": 0, "a": 1, "b": 5}
    for values, says in (([50.0, 20.0], "from 20 to 50"), ([-0.3, 0.5], "from -0.3 to 0.5"), ([0.7, 0.6], "from 0.6 to 0.7")):
        whole = np.stack([np.full(LIKE.shape, value, np.float32) for value in values])
        nib.save(nib.Nifti1Image(np.moveaxis(whole, 0, -1), LIKE.affine), tmp_path / "c_prob.nii.gz")
        with pytest.raises(UserError, match=f"{says}.*not probabilities"):
            probability_of("c", LIKE, tmp_path / "c.nii.gz", labels)


def test_an_evaluation_without_its_means_is_named(evaluations, tmp_path):
    shutil.copytree(evaluations[0], tmp_path / "scores")
    summary = json.loads((tmp_path / "scores/summary.json").read_text())
    (tmp_path / "scores/summary.json").write_text(json.dumps({k: v for k, v in summary.items() if k != "overall"}))
    done = CliRunner().invoke(app, ["report", str(tmp_path / "scores"), "--out", str(tmp_path / "r.html")])
    assert done.exit_code == 2 and "summary.json: lacks the means" in " ".join(done.stderr.split())


def test_a_case_whose_probabilities_cannot_be_judged_is_named_and_the_rest_is_kept(evaluations, tmp_path):
    folder = Path(json.loads((evaluations[0] / "summary.json").read_text())["folders"]["predictions"])
    shutil.copytree(folder, tmp_path / "predictions")
    evaluate(tmp_path / "predictions", folder.parent / "set" / "labelsTs", tmp_path / "scores")
    probability_file = lambda number: tmp_path / "predictions" / f"case_{number}_prob.nii.gz"
    spoilt = probability(0, 0, 4.0).astype(np.float32)[1:]
    spoilt[0, 2, 3, 4] = np.nan
    nib.save(nib.Nifti1Image(np.moveaxis(spoilt, 0, -1), LIKE.affine), probability_file(0))
    write(probability_file(1), spoilt[1], LIKE)
    write(probability_file(2), spoilt[1:, :-1], Image(np.zeros((1, 13, 12, 9)), LIKE.affine))
    probability_file(3).unlink()
    (tmp_path / "predictions" / "case_4.json").write_text('{"doubt": NaN}')
    done = CliRunner().invoke(app, ["report", str(tmp_path / "scores"), "--out", str(tmp_path / "r.html")])
    page, said = (tmp_path / "r.html").read_text(), " ".join(done.stderr.split())
    assert done.exit_code == 0, done.output
    reasons = (
        f"A, case_0: {probability_file(0)}: NaN or infinite values: 1 of 3024",
        f"A, case_1: {probability_file(1)}: probabilities of 1 class, not of 2",
        f"A, case_2: {probability_file(2)}: its shape (13, 12, 9) is not (14, 12, 9)",
        "A, 1 case without probabilities: case_3",
    )
    for reason in reasons:
        assert f"probabilities left out: {reason}" in said and f"<p>{reason}" in page
    assert "frequencies?</h2>" in page and "case_4" not in said
    written = load_evaluations([tmp_path / "scores"])[0]
    found, _ = evaluate_probabilities(written)
    assert found is not None and found.cases == [f"case_{n}" for n in (4, 5, 6)] and np.isfinite(found.uncertainty).all()
    for number in (4, 5, 6):
        probability_file(number).write_bytes(b"no gzip")
    out, _, left_out = write_report([tmp_path / "scores"], tmp_path / "none.html")
    assert len(left_out) == 7 and "frequencies?</h2>" not in out.read_text() and "case_6" in out.read_text()


def test_probabilities_in_pictures_are_read_by_class(tmp_path):
    like = Image(np.zeros((1, 6, 7), np.int16))
    for name, value in (("_head_b_", 0.25), ("_tail", 0.5)):
        write(tmp_path / f"x_prob{name}.png", np.full((6, 7), value, np.float32), like)
    p = probability_of("x", like, tmp_path / "x.png", LABELS)
    assert p is not None and p[:, 2, 3] == pytest.approx([0.25, 0.25, 0.5], abs=1e-4)
    assert probability_of("y", like, tmp_path / "y.png", LABELS) is None


def test_a_page_on_pictures_has_pixels_and_no_voxels(tmp_path):
    like = Image(np.zeros((1, 12, 12)))
    (tmp_path / "labelsTs").mkdir()
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "spot": 1}}))
    for number in range(3):
        mask = np.zeros((12, 12), np.int16)
        mask[2:8, 3 : 8 + number] = 1
        write(tmp_path / "labelsTs" / f"p{number}.png", mask, like)
        write(tmp_path / "out" / f"p{number}.png", np.roll(mask, 1, 0), like)
        write(tmp_path / "out" / f"p{number}_prob.png", (0.1 + 0.8 * np.roll(mask, 1, 0)).astype(np.float32), like)
        (tmp_path / "out" / f"p{number}.json").write_text(json.dumps({"draws": 4, "steps": 2}))
    evaluate(tmp_path / "out", tmp_path / "labelsTs", tmp_path / "scores")
    shown = write_report([tmp_path / "scores"], tmp_path / "page.html").file.read_text(encoding="utf-8")
    assert "Of the pixels within 3 pixels of a true border, of" in shown
    assert "of the pixels" in shown and "of all these pixels" in shown, "in the plot"
    assert "voxel" not in re.sub(r"base64,[^\"]*", "", shown)


def test_what_holds_for_all_evaluations_is_said_once(page, evaluations):
    rules = [line for line in notes(Evaluation.load(evaluations[0])) if line in notes(Evaluation.load(evaluations[1]))]
    assert len(rules) >= 3
    for rule in rules:
        assert page.count(f"<li>{html.escape(rule)}</li>") == 1
    assert (
        page.index("<li>Tolerance of NSD 1 mm.</li>")
        < page.index("<h3>B: blunt &amp; co</h3>")
        < page.index("says predict: 0 of 7")
    )
    assert "<h3>A: sharp</h3>" not in page, "of it alone nothing is said"


def test_evaluations_without_files_still_make_a_page(evaluations, tmp_path):
    """Older ones do not say where their files are; others were moved."""
    for name, folders in (("old", None), ("moved", {"predictions": "/nowhere", "labels": "/nowhere", "images": "/nowhere"})):
        folder = tmp_path / name
        folder.mkdir()
        summary = json.loads((evaluations[0] / "summary.json").read_text())
        summary.pop("folders" if folders is None else "labels")
        (folder / "summary.json").write_text(json.dumps(summary | ({} if folders is None else {"folders": folders})))
        (folder / "cases.csv").write_bytes((evaluations[0] / "cases.csv").read_bytes())
    text = write_report([tmp_path / "old", tmp_path / "moved"], tmp_path / "r.html")[0].read_text()
    assert "Every case" in text and "Worst, median" not in text and "frequencies" not in text and "cost</h2>" not in text
    alone = write_report([evaluations[0]], tmp_path / "one.html")[0].read_text()
    assert "Evaluation of 7 cases<" in alone and "Which differences" not in alone and "Not compared" not in alone


def test_what_cannot_be_compared_is_said_and_shown_side_by_side(evaluations, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "summary.json").write_bytes((evaluations[0] / "summary.json").read_bytes())
    lines = (evaluations[0] / "cases.csv").read_text().splitlines()
    (other / "cases.csv").write_text("\n".join(line for line in lines if "case_6" not in line))
    out, refused, _ = write_report([evaluations[0], other], tmp_path / "r.html")
    assert "lacks case_6" in refused and "Not compared" in out.read_text() and "lacks case_6" in out.read_text()
    done = CliRunner().invoke(app, ["report", str(evaluations[0]), str(other), "--out", str(tmp_path / "c.html")])
    assert done.exit_code == 0 and "not compared: " in done.stdout and (tmp_path / "c.html").exists()
    with pytest.raises(UserError, match="no evaluation here"):
        write_report([tmp_path], tmp_path / "n.html")
    with pytest.raises(UserError, match="nothing to report"):
        write_report([], tmp_path / "n.html")


def test_masks_that_changed_since_are_said(evaluations, tmp_path):
    mask = Path(json.loads((evaluations[0] / "summary.json").read_text())["folders"]["predictions"]) / "case_0.nii.gz"
    before, later = mask.stat(), (evaluations[0] / "summary.json").stat().st_mtime + 10
    os.utime(mask, (later, later))
    text = write_report([evaluations[0]], tmp_path / "r.html")[0].read_text()
    os.utime(mask, (before.st_atime, before.st_mtime))
    assert "1 mask is newer than this evaluation" in text


def test_a_page_of_fifty_cases_stays_small(evaluations, tmp_path):
    """The size of a page hardly depends on the number of cases: pictures are those of three."""
    lines = (evaluations[0] / "cases.csv").read_text().splitlines()
    folder = tmp_path / "many"
    folder.mkdir()
    rows = [line.replace("case_", f"c{n}_") for n in range(8) for line in lines[1:]]
    (folder / "cases.csv").write_text("\n".join([lines[0], *rows]))
    (folder / "summary.json").write_bytes((evaluations[0] / "summary.json").read_bytes())
    few, many = (write_report([f], tmp_path / f"{f.name}.html")[0].stat().st_size for f in (evaluations[0], folder))
    assert many < few + 200_000 < 15e6


def test_predictions_of_a_case_are_drawn_in_one_window():
    image, wrong = np.zeros(SHAPE, np.float32), np.roll(truth(0), 3, 0)
    row = lambda mask: {"title": "A", "mask": mask, "probability": None, "entropy": None}
    one, two = (PIL.Image.open(io.BytesIO(cases_figure(image, truth(0), rows))) for rows in ([row(wrong)], [row(wrong)] * 2))
    assert two.height > 1.6 * one.height and two.width == one.width
    with pytest.raises(ValueError, match="nothing to draw"):
        cases_figure(image, truth(0), [])
