"""An evaluation in shards is, once merged, that of one process to the last bit."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from diffuseg.cli import app
from diffuseg.errors import UserError
from diffuseg.inference.shards import Shard
from diffuseg.reports.evaluate import Comparison, evaluate
from diffuseg.reports.shards import evaluate_shard, merge_evaluation
from tests.reports.test_evaluate import folders  # noqa: F401 (a fixture)

WRITTEN = ("cases.csv", "summary.json")


def open_(predictions: Path, labels: Path) -> Comparison:
    return Comparison.open(predictions, labels, "nan", 1.0, None)


def test_merged_shards_are_one_evaluation_bit_for_bit(folders, tmp_path):  # noqa: F811
    predictions, labels = folders
    (predictions / "case_0003.nii.gz").write_bytes(b"broken")
    for case in ("case_0000", "case_0001"):  # intervals that are held against true volumes, one of them broken
        record = {"draws": 2, "volume_ml_90": {"head": [0.1, 1 / 3]} if case < "case_0001" else {"head": 1}}
        (predictions / f"{case}.json").write_text(json.dumps(record))
    evaluate(predictions, labels, tmp_path / "a/scores")
    out = tmp_path / "b/scores"
    said = [evaluate_shard(open_(predictions, labels), out, Shard(index, 3)) for index in (2, 3, 1)]
    assert sum(map(len, said)) == 2
    merge_evaluation(out, [out])
    for name in WRITTEN:
        assert (out / name).read_bytes() == (tmp_path / "a/scores" / name).read_bytes()


@pytest.mark.parametrize("page", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_commands(folders, tmp_path, monkeypatch, page):  # noqa: F811
    predictions, labels = folders
    if not page:
        empty = SimpleNamespace(file="index.html", left_out=[])
        monkeypatch.setattr("diffuseg.reports.page.write_page", lambda *_, **__: empty)
        monkeypatch.setattr("diffuseg.reports.case_pictures.case_pictures", lambda _: [])
    run = lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])
    for index in (1, 2):
        done = run("evaluate", predictions, labels, "--out", tmp_path / str(index), "--shard", f"{index}/2")
        assert done.exit_code == 0, done.output
        assert f"{4 - index} of 5 cases" in done.stdout
    done = run("merge", tmp_path / "all/scores", tmp_path / "1", tmp_path / "2")
    assert done.exit_code == 0 and "Dice" in done.stdout, done.output
    assert run("evaluate", predictions, labels, "--out", tmp_path / "one/scores").exit_code == 0
    for name in (*WRITTEN, *(["index.html"] if page else [])):
        assert (tmp_path / "all/scores" / name).read_bytes() == (tmp_path / "one/scores" / name).read_bytes()


def test_what_is_not_the_whole_is_refused_by_name(folders, tmp_path):  # noqa: F811
    predictions, labels = folders
    evaluate_shard(open_(predictions, labels), tmp_path / "1", Shard(1, 3))
    evaluate_shard(open_(predictions, labels), tmp_path / "3", Shard(3, 3))
    with pytest.raises(UserError, match=r"shards missing: 2/3"):
        merge_evaluation(tmp_path / "all", [tmp_path / "1", tmp_path / "3"])
    shutil.copytree(tmp_path / "3", tmp_path / "again")
    with pytest.raises(UserError, match=r"there twice: 3/3"):
        merge_evaluation(tmp_path / "all", [tmp_path / "1", tmp_path / "3", tmp_path / "again"])
    with pytest.raises(UserError, match=r"another comparison \(tolerance\)"):
        evaluate_shard(Comparison.open(predictions, labels, "nan", 2.0, None), tmp_path / "1", Shard(2, 3))
    with pytest.raises(UserError, match="another number of shards"):
        evaluate_shard(open_(predictions, labels), tmp_path / "1", Shard(2, 4))
    evaluate_shard(open_(predictions, labels), tmp_path / "2", Shard(2, 3))
    (predictions / "case_0004.nii.gz").unlink()
    with pytest.raises(UserError, match=r"came or went since: case_0004"):
        merge_evaluation(tmp_path / "all", [tmp_path / str(index) for index in (1, 2, 3)])
    assert not (tmp_path / "all").exists()
