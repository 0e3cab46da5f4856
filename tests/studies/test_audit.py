"""A finished training held against its controls: numbers, resuming, refusals. Trainings of a few steps."""

import json
import shutil
from pathlib import Path

import pytest

from diffuseg.checkpoint import load_checkpoint, read_meta
from diffuseg.config import override, to_dict
from diffuseg.data.dataset import open_dataset, splits
from diffuseg.data.synthetic import make_dataset
from diffuseg.errors import UserError
from diffuseg.methods import METHODS
from diffuseg.studies.audit import audit as module
from diffuseg.studies.audit.audit import AuditOptions, audit, table
from diffuseg.studies.audit.measure import SCORES, summary
from diffuseg.studies.audit.rows import Training, sampled_rows, trained_rows
from diffuseg.train.loop import train
from diffuseg.train.settings import TrainConfig
from tests.train.tiny import call, refused, settings


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("made") / "data", cases=6, shape=(10, 12, 9))


@pytest.fixture(scope="module")
def run(tmp_path_factory, data) -> Path:
    """A cDAL after four steps."""
    out = tmp_path_factory.mktemp("runs") / "run"
    train(settings(data, out, "cdal", "T=4", "steps=2", "train.validation_cases=1", validate_every=4))
    return out


@pytest.fixture(scope="module")
def first(tmp_path_factory, data, run) -> tuple[AuditOptions, dict]:
    asked = AuditOptions(run, data, tmp_path_factory.mktemp("audits") / "audit", draws=2, device="cpu")
    return asked, audit(asked)


def test_the_rows_of_the_weights_alone(first, data):
    found = first[1]
    assert list(found["rows"]) == ["run", "noise", "other_case", "steps_1", "steps_4", "latent"]
    assert found["of"]["cases"] == splits(open_dataset(data))[0]["val"] and len(found["of"]["cases"]) > 1
    assert [row["calls"] for row in found["rows"].values()] == [4, 4, 4, 2, 8, 4]
    for name, row in found["rows"].items():
        assert set(row["per_case"]) == set(found["of"]["cases"]) and row["against"] == "run"
        for key in SCORES:
            mean, difference = row["scores"][key]["mean"]["mean"], row["scores"][key]["difference"]["mean"]
            assert difference == pytest.approx(mean - found["rows"]["run"]["scores"][key]["mean"]["mean"], abs=1e-9), (
                name,
                key,
            )
    assert found["rows"]["run"]["scores"]["one"]["difference"] == {"mean": 0, "low": 0, "high": 0}
    assert found["rows"]["noise"]["per_case"] != found["rows"]["run"]["per_case"]
    assert table(found).row_count == 6


def test_finished_rows_are_kept(first, monkeypatch):
    """A row that is missing is measured again and alone; nothing is measured twice."""
    asked = first[0]
    file = asked.out / "audit.json"
    kept = json.loads(file.read_text())
    gone = kept["rows"].pop("steps_1")
    file.write_text(json.dumps(kept))
    measured = []
    real = module.measure_case
    monkeypatch.setattr(
        module, "measure_case", lambda run, methods, row, *more: measured.append(row.name) or real(run, methods, row, *more)
    )
    said: list[str] = []
    again = audit(asked, said.append)
    assert set(measured) == {"steps_1"} and len(said) == 1 and "2 network calls" in said[0]
    assert again["rows"]["steps_1"]["per_case"] == gone["per_case"]
    assert (
        audit(asked)["rows"]["steps_1"]["scores"]["mean"]["difference"]
        == again["rows"]["steps_1"]["scores"]["mean"]["difference"]
    )
    assert set(measured) == {"steps_1"}


def test_trainings_take_over_everything_but_what_is_left_out(run):
    record, (method, _, _) = json.loads((run / "run.json").read_text()), load_checkpoint(run / "last.safetensors")
    rows = {row.name: row for row in trained_rows(record, method, 4, 2)}
    assert list(rows) == [
        "again",
        "unet",
        "x_noise",
        "x_other",
        "no_recycling",
        "no_latent",
        "no_adversary",
        "ensemble",
        "dropout",
    ]

    def parsed(training: Training) -> tuple[dict, dict]:
        own = [w for w in training.wishes if not w.startswith("train.")]
        recipe = [w.removeprefix("train.") for w in training.wishes if w.startswith("train.")]
        config = override(METHODS[training.method].config_class(), own)
        return to_dict(config), to_dict(override(TrainConfig(), recipe))

    config, recipe = parsed(rows["again"].trainings[0])
    assert (config, recipe) == (record["config"], record["train"]) and rows["again"].trainings[0].seed == record["seed"]
    for name, key, value in (("x_noise", "x_t", "noise"), ("no_latent", "latent", 0), ("no_adversary", "adversarial", 0)):
        config, recipe = parsed(rows[name].trainings[0])
        assert config == record["config"] | {key: value} and recipe == record["train"]
    config, recipe = parsed(rows["unet"].trainings[0])
    assert config["widths"] == list(method.widths) and recipe == record["train"]
    assert config["learning_rate"] == record["config"]["learning_rate"]
    assert len({training.seed for training in rows["ensemble"].trainings}) == 5 == rows["ensemble"].draws
    assert rows["dropout"].calls == rows["again"].calls == 8 and "dropout=0.1" in rows["dropout"].trainings[0].wishes


def test_a_control_that_the_run_already_is_is_no_row(run):
    record, (method, _, _) = json.loads((run / "run.json").read_text()), load_checkpoint(run / "last.safetensors")
    record["config"] |= {"adversarial": 0.0, "recycle": 0.0}
    names = [row.name for row in trained_rows(record, method, 4, 2)]
    assert "no_adversary" not in names and "no_recycling" not in names and "x_other" in names


def test_a_deterministic_run_has_no_steps_to_ask_about(run):
    plan = load_checkpoint(run / "last.safetensors")[1]
    unet = METHODS["unet"](plan, METHODS["unet"].config_class())
    assert [row.name for row in sampled_rows(unet, 1, 1)] == ["run"]


def test_shorter_trainings_are_held_against_the_run_once_more(tmp_path, data, run):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    done = call("audit", copy, data, "--draws", 2, "--cases", 2, "--retrain", "--steps", 1, "--only", "unet", "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert "1 training of 1 step," in done.stdout and done.stdout.index("1 training") < done.stdout.index("Is diffusion")
    found = json.loads((copy / "audit" / "audit.json").read_text())
    assert list(found["rows"]) == ["run", "again", "unet"] and found["rows"]["unet"]["against"] == "again"
    trained = copy / "audit" / "runs" / "unet" / "last.safetensors"
    assert read_meta(trained)["method"] == "unet" and read_meta(trained)["steps_trained"] == 1
    ours, theirs = (found["rows"][name]["scores"]["one"] for name in ("unet", "again"))
    assert ours["difference"]["mean"] == pytest.approx(ours["mean"]["mean"] - theirs["mean"]["mean"])
    refused(call("audit", copy, data, "--draws", 3, "--cases", 1), "other cases, draws, training_steps", "another --out")


def test_refusals(tmp_path, data, run, first):
    with pytest.raises(UserError, match="no training run here"):
        audit(AuditOptions(tmp_path, data, tmp_path / "a"))
    with pytest.raises(UserError, match="no row 'x'"):
        audit(AuditOptions(run, data, tmp_path / "a", only=("x",)))
    with pytest.raises(UserError, match="needs a training"):
        audit(AuditOptions(run, data, tmp_path / "a", only=("unet",)))
    with pytest.raises(UserError, match="at least 2 draws"):
        audit(AuditOptions(run, data, tmp_path / "a", draws=1))
    with pytest.raises(UserError, match="folds are not those"):
        audit(AuditOptions(run, make_dataset(tmp_path / "other", cases=5, shape=(8, 8, 8)), tmp_path / "a"))
    (tmp_path / "half").mkdir()
    shutil.copy(run / "run.json", tmp_path / "half")
    with pytest.raises(UserError, match="not finished"):
        audit(AuditOptions(tmp_path / "half", data, tmp_path / "a"))
    assert not (tmp_path / "a").exists()


def test_differences_are_paired_and_over_patients():
    cases = {
        f"c{i}": {"one": 0.5 + 0.1 * i, "mean": 0.5, "nll": float("nan") if i == 1 else 1.0, "changed": 0.0} for i in range(6)
    }
    reference = {name: {key: value - 0.02 for key, value in case.items()} for name, case in cases.items()}
    found = summary(cases, reference, [f"p{i // 2}" for i in range(6)])
    assert found["one"]["difference"]["mean"] == pytest.approx(0.02) and found["one"]["difference"]["low"] == pytest.approx(
        0.02
    )
    assert found["nll"]["mean"]["mean"] == 1.0, "a case without a border has no value"
