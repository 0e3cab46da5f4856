"""Steps and draws measured: shared draws are those of predict, scores are right, the recommendation is the cheapest."""

import csv
import dataclasses
import hashlib
import io
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from typer.testing import CliRunner

from diffuseg.checkpoint import amend_meta, model_hash, read_meta, save_checkpoint
from diffuseg.cli import app
from diffuseg.data.dataset import load_case, open_dataset, splits
from diffuseg.data.synthetic import make_dataset
from diffuseg.data.transforms import class_indices
from diffuseg.errors import UserError
from diffuseg.evaluation.calibration_metrics import band
from diffuseg.evaluation.metrics import dice
from diffuseg.inference.model import Model, load
from diffuseg.methods import METHODS
from diffuseg.studies import curve as module
from diffuseg.studies.curve import WITHIN, Curve, Point, measure_curve, table, usual_steps, write_curve
from tests.inference.oracle import Certain, make_model, make_plan

SHAPE = (8, 9, 7)
LABELS = {"background": 0, "head": 1, "tail": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("made") / "data", cases=6, shape=SHAPE)


def save(folder: Path, dtype: torch.dtype = torch.float32, **meta) -> Path:
    plan = make_plan(patch=SHAPE, widths=(4, 4), normalisation=("zscore",), intensity=(), labels=LABELS)
    torch.manual_seed(0)
    method = METHODS["concat"](plan, METHODS["concat"].config_class(T=8, steps=3))
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    path = folder / "best.safetensors"
    save_checkpoint(path, method, {"name": "made/concat"} | meta, dtype)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    return load(save(tmp_path_factory.mktemp("run")), "cpu")


@pytest.fixture(scope="module")
def measured(model, data) -> Curve:
    return measure_curve(model, data, steps=[2, 1], draws=[3, 1], fold=1)


def test_every_setting_is_measured_on_the_validation_cases_of_the_fold(measured, data, model):
    assert [(p.steps, p.draws, p.evaluations) for p in measured.points] == [(1, 1, 1), (1, 3, 3), (2, 1, 2), (2, 3, 6)]
    assert measured.cases == splits(open_dataset(data))[1]["val"] and measured.timed in measured.cases
    assert (measured.sampler, measured.model, measured.fold) == ("ddim", model.hash, 1)
    assert all(p.seconds > 0 for p in measured.points)


def test_shared_draws_give_what_predict_gives_for_each_number_of_draws(measured, data, model):
    """Dice, NLL and Brier score again, from separate predictions and written otherwise."""
    dataset = open_dataset(data)
    for point in measured.points:
        found = []
        for case in (case for case in dataset.cases if case.id in measured.cases):
            p = model.predict(case.images, draws=point.draws, steps=point.steps)
            _, mask = load_case(dataset, case)
            truth = class_indices(mask, model.plan)
            overlap = np.nanmean([dice(p.mask == k, truth == k) for k in (1, 2)])
            near = band(truth, p.image.spacing)
            y, q = np.eye(3)[truth[near]], p.probability[:, near].T.astype(float)
            found.append((overlap, -np.log(np.clip((q * y).sum(-1), 1e-6, None)).mean(), ((q - y) ** 2).sum(-1).mean()))
        np.testing.assert_allclose((point.dice, point.nll, point.brier), np.mean(found, axis=0), atol=1e-5)


def test_a_perfect_model_scores_perfectly(data, monkeypatch):
    """The oracle reads classes from intensities; here the image is the truth."""
    real = module.Batches.whole

    def whole(self, case):
        found = real(self, case)
        image = torch.from_numpy(found.truth[None].astype(np.float32))
        assert found.image.shape == image.shape
        return found._replace(image=image)

    monkeypatch.setattr(module.Batches, "whole", whole)
    made = measure_curve(make_model(labels=LABELS), data, draws=[1, 2], fold=0, limit=1)
    assert {(p.steps, p.draws) for p in made.points} == {(s, n) for s in (1, 2, 4) for n in (1, 2)}
    for p in made.points:
        assert p.dice == 1 and p.nll == pytest.approx(0, abs=1e-6) and p.brier == pytest.approx(0, abs=1e-6)
    assert (made.recommended.steps, made.recommended.draws) == (1, 2)  # a single draw has no uncertainty
    assert len(made.cases) == 1 and math.isnan(made.points[0].dice_low)


def curve_of(*points: tuple[int, int, float, float]) -> Curve:
    """From (steps, draws, dice, seconds)."""
    made = [Point(s, n, d, d - 0.01, d + 0.01, 0.1, 0.1, s * n, sec, None) for s, n, d, sec in points]
    return Curve(made, "0" * 12, "made", 0, ["a"], "ddim", 0, "a", "cpu", "fp32")


def test_the_recommended_setting_is_the_cheapest_within_two_thousandths_of_the_best():
    best = (4, 8, 0.9, 9.0)
    near, far, dear = (2, 4, 0.9 - 0.9 * WITHIN, 3.0), (1, 1, 0.9 - 1.1 * WITHIN, 1.0), (4, 4, 0.9, 2.0)
    assert (curve_of(best, far, near, dear).recommended.steps, curve_of(best, near, dear).recommended.draws) == (2, 4)
    assert curve_of(best, far).recommended.steps == 4
    assert curve_of(best, near, (1, 1, 0.9, 0.1)).recommended.draws == 4 and curve_of((1, 1, 0.9, 0.1)).recommended.draws == 1
    assert curve_of((1, 2, math.nan, 0.1), best).recommended.steps == 4
    assert curve_of((1, 4, 0.9, 2.0), (2, 2, 0.9, 1.0), (4, 1, 0.9, 3.0)).recommended.steps == 2
    assert curve_of(best, near).recommendation() == {
        "steps": 2, "draws": 4, "sampler": "ddim", "dice": 0.8982, "within": 0.002, "dataset": "made", "fold": 0, "cases": 1,
    }  # fmt: skip


def test_the_files_say_the_same_as_the_curve(tmp_path):
    made = curve_of((1, 1, 0.8, 1.0), (2, 4, 0.9, 3.0))
    made = dataclasses.replace(made, points=[made.points[0], dataclasses.replace(made.points[1], dice_low=math.nan)])
    paths = write_curve(made, tmp_path / "out")
    assert [path.name for path in paths] == ["curve.csv", "curve.json", "curve.png"]
    rows = list(csv.DictReader(paths[0].read_text().splitlines()))
    assert [(int(r["steps"]), int(r["draws"]), float(r["dice"])) for r in rows] == [(1, 1, 0.8), (2, 4, 0.9)]
    written = json.loads(paths[1].read_text())
    assert written["recommended"] == made.recommendation() and len(written["points"]) == 2
    assert written["points"][1]["dice_low"] is None
    assert paths[2].read_bytes().startswith(b"\x89PNG")


def test_the_table_fits_eighty_columns_with_every_number_whole():
    made = curve_of((1, 1, 0.8, 0.5), (1000, 64, 0.9, 57600.0), (1000, 128, 0.9, 99.996))
    points = [dataclasses.replace(p, nll=13.8155, memory_mb=139000.0) for p in made.points]
    made = dataclasses.replace(made, points=points, timed="a [very] long name of a case " * 4, cases=["a", "b"])
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table(made))
    lines = console.export_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    assert all(len(line) <= 80 for line in lines) and len(rows) == 3
    assert rows[1] == ["1000", "64*", "0.9000 [0.8900, 0.9100]", "13.816", "0.100", "57600", "139000"]
    assert rows[0][-2] == "0.50" and "a [very] long name" in " ".join(lines) and "* recommended" in " ".join(lines)
    assert "2 cases" in " ".join(lines) and "1 case;" in str(table(curve_of((1, 1, 0.8, 0.5))).caption)


def test_refusals(data, model):
    with pytest.raises(UserError, match="one step"):
        measure_curve(make_model(method=Certain), data)
    with pytest.raises(UserError, match="Folds are 0 to 4"):
        measure_curve(model, data, fold=5)
    with pytest.raises(UserError, match="8 timesteps"):
        measure_curve(model, data, steps=[9])
    with pytest.raises(UserError, match="at least one"):
        measure_curve(model, data, draws=[0, 1])
    with pytest.raises(UserError, match="no number"):
        measure_curve(model, data, draws=[])


def test_cases_without_any_class_are_refused_before_the_costs_are_measured(data, model, monkeypatch):
    """No truth and no draw holds a class: every Dice is undefined, and there is nothing to choose by."""
    empty = lambda *arguments: {n: module.Quality(math.nan, 0.1, 0.1, (1.0, 1.0, 0.0)) for n in arguments[3]}
    monkeypatch.setattr(module, "_qualities", empty)
    monkeypatch.setattr(module, "peak_of", lambda *arguments: pytest.fail("nothing is left to measure"))
    with pytest.raises(UserError, match=r"no class is in any truth or draw of 1 case: .*Take more cases"):
        measure_curve(model, data, steps=[1], draws=[1, 2], fold=0, limit=1)


def test_cases_that_were_trained_on_are_refused(data, model):
    case = splits(open_dataset(data))[2]["val"][0]
    image = next(c.images[0] for c in open_dataset(data).cases if c.id == case)
    digest = hashlib.sha256(image.read_bytes()).hexdigest()[:16]
    trained = dataclasses.replace(model, meta=model.meta | {"training_cases": {"renamed": digest}, "fold": 0})
    with pytest.raises(UserError, match=f"{case} of fold 2"):
        measure_curve(trained, data, fold=2)


def test_usual_steps_are_powers_of_two_and_the_methods_own(model):
    assert usual_steps(model.method) == [1, 2, 3, 4, 8]
    assert usual_steps(make_model().method) == [1, 2, 4]
    long = METHODS["concat"](model.plan, METHODS["concat"].config_class(T=1000, steps=100))
    assert usual_steps(long) == [1, 2, 4, 8, 16, 32, 64, 100]
    long.default_steps = 10
    assert usual_steps(long) == [1, 2, 4, 8, 10, 16]


def test_peak_memory_is_measured_anew_each_time():
    """In a process of its own: one that has run other tests may hold enough free memory to need no more."""
    code = (
        "import numpy as np, torch\n"
        "from diffuseg.studies.curve import peak_of\n"
        "for megabytes in (200, 1):\n"
        "    print(*peak_of(lambda: np.ones(megabytes * 10**6 // 8), torch.device('cpu')))\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    (seconds, big), (_, small) = (line.split() for line in ran.stdout.splitlines())
    assert float(seconds) > 0
    if big == "None":
        pytest.skip("this system does not tell the peak of a process")
    assert 150 < float(big) - float(small) < 250


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_header_is_amended_and_the_weights_are_not(tmp_path, dtype):
    path = save(tmp_path, dtype, fold=3)
    read = lambda: {k: (t := f.get_tensor(k)).dtype and t for f in [safe_open(path, "pt")] for k in f.keys()}  # noqa: SIM118
    before, weights, names = read_meta(path), read(), sorted(tmp_path.iterdir())
    amend_meta(path, {"recommended": {"steps": 2, "draws": 3, "sampler": "ddim"}}, first := model_hash(path))
    assert read_meta(path) == before | {"recommended": {"steps": 2, "draws": 3, "sampler": "ddim"}, "amended": [first]}
    after = read()
    assert after.keys() == weights.keys() and all(torch.equal(after[k], w) for k, w in weights.items())
    assert all(w.dtype == dtype and after[k].dtype == dtype for k, w in weights.items())
    assert sorted(tmp_path.iterdir()) == names


def test_what_was_measured_on_another_file_is_not_written_into_it(tmp_path):
    path = save(tmp_path)
    measured = model_hash(path)
    amend_meta(path, {"recommended": None}, measured)
    before = path.read_bytes()
    with pytest.raises(UserError, match="has changed while it was measured"):
        amend_meta(path, {"recommended": {"steps": 2}}, measured)
    assert path.read_bytes() == before


def test_a_recommendation_is_used_where_nothing_else_is_asked_for(tmp_path):
    path = save(tmp_path)
    amend_meta(path, {"recommended": {"steps": 2, "draws": 3, "sampler": "ancestral", "fold": 0, "cases": 1}}, model_hash(path))
    model = load(path, "cpu")
    chosen = lambda **asked: [model.settings(**asked)[key] for key in ("draws", "steps", "sampler")]
    assert chosen() == chosen(sampler="ancestral") == [3, 2, "ancestral"]
    assert chosen(draws=5) == [5, 3, "ddim"]
    assert chosen(steps=1) == [8, 1, "ddim"]
    assert chosen(sampler="ddim") == [8, 3, "ddim"]
    image = np.zeros(SHAPE, np.float32)
    assert model.predict(image).provenance["recommended"] is True
    assert model.predict(image, draws=1, steps=1).provenance["recommended"] is False


def test_the_command_measures_writes_stores_and_predict_then_says_so(tmp_path, data):
    path = save(tmp_path, fold=0)
    call = lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])
    done = call("curve", path, data, "--out", tmp_path / "out", "--steps", "1,2", "--draws", "1", "--cases", 1)
    assert done.exit_code == 0, done.output
    assert "recommended" in done.stdout and (tmp_path / "out" / "curve.png").exists()
    stored = read_meta(path)["recommended"]
    assert stored == json.loads((tmp_path / "out" / "curve.json").read_text())["recommended"]
    scan = next((data / "imagesTr").iterdir())
    done = call("predict", path, scan, "--out", tmp_path / "masks")
    assert done.exit_code == 0, done.output
    assert f"draws 1, steps {stored['steps']}: recommended by `diffuseg curve`" in " ".join(done.stdout.split())
    record = json.loads(next((tmp_path / "masks").glob("*.json")).read_text())
    assert (record["draws"], record["steps"]) == (1, stored["steps"])
    done = call("predict", path, scan, "--out", tmp_path / "more", "--draws", 2, "--steps", 1)
    assert "recommended" not in done.stdout
    wrong = call("curve", path, data, "--steps", "one")
    assert wrong.exit_code == 2 and "whole numbers" in wrong.stderr
