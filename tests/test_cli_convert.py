"""The command `convert`: it shows first, asks or is told, and says what comes next."""

import json
import shutil

import numpy as np
import PIL.Image
import pytest

from diffuseg.data.dataset import open_dataset
from diffuseg.data.synthetic import make_dataset
from tests.test_cli import call, refused


@pytest.fixture
def source(tmp_path):
    for name in ("a", "b", "c"):
        for kind, value in (("images", 77), ("masks", 255)):
            (tmp_path / "in" / kind).mkdir(parents=True, exist_ok=True)
            data = np.zeros((20, 24), np.uint8)
            data[5:9, 6:12] = value
            PIL.Image.fromarray(data).save(tmp_path / "in" / kind / f"{name}.png")
    (tmp_path / "in/masks/c.png").rename(tmp_path / "in/masks/d.png")
    return tmp_path / "in"


def test_it_shows_then_asks_and_writes_once(source, tmp_path):
    out = tmp_path / "set"
    shown = call("convert", source, "--out", out, "--dry-run")
    assert shown.exit_code == 0 and not out.exists(), shown.output
    assert all(text in shown.stdout for text in ("images/a.png", "masks/b.png", "255", "foreground", "nothing is written"))
    assert "images without a mask, left out (1): images/c.png" in shown.stderr
    assert "masks without an image, left out (1): masks/d.png" in shown.stderr
    untold = call("convert", source, "--out", out)
    assert untold.exit_code == 2 and "say --yes" in untold.stderr and not out.exists()
    told = call("convert", source, "--out", out, "--yes", "--labels", "lesion")
    assert told.exit_code == 0 and f"next: diffuseg plan {out}" in told.stdout.replace("\n", "")
    assert open_dataset(out).labels == {"background": 0, "lesion": 1}
    refused(call("convert", source, "--out", out, "--yes"), str(out), "nothing is overwritten")
    planned = call("plan", out, "--out", tmp_path / "plan.json")
    assert planned.exit_code == 0, planned.output


def test_what_is_asked_wrongly_is_one_line(source, tmp_path):
    out = tmp_path / "set"
    refused(call("convert", source, "--out", out, "--spacing", "1,x"), "--spacing 1,x")
    refused(call("convert", source / "none", "--out", out), "no such folder")
    refused(call("convert", source, "--out", source / "set"), "left as it is", "beside it")
    only = call("convert", source / "images", "--out", out, "--images-only", "--yes")
    assert only.exit_code == 0 and sorted(path.name for path in (out / "imagesTs").iterdir())[0] == "a_0000.png"
    lone = call("convert", source / "masks", "--out", tmp_path / "no", "--yes")
    assert lone.exit_code == 2 and "--pairs" in lone.stderr and "--images-only" in lone.stderr


IDLE = {
    "--images-only --labels a": ("--labels", "no masks"),
    "--images-only --several raters --threshold 3": ("--several", "--threshold"),
    "--several raters": ("--several", "no image has several masks"),
    "--spacing 1,1": ("--spacing", "no image is an array"),
    "--pairs p.csv --channels T1": ("--channels", "--pairs says"),
    "--threshold 300": ("--threshold 300", "no values"),
    "--threshold -1": ("--threshold -1", "all values"),
    "--threshold nan": ("--threshold nan", "no values"),
    "--labels ignore=255": ("labels need a background and further",),
}


@pytest.mark.parametrize("options", IDLE)
def test_options_that_would_do_nothing_are_refused(source, tmp_path, options):
    done = call("convert", source, "--out", tmp_path / "set", "--dry-run", *options.split())
    assert done.exit_code == 2 and "nothing is written" not in done.stdout
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ") and all(text in last for text in IDLE[options]), last


def test_a_plan_of_one_case_says_that_training_will_stop(source, tmp_path):
    for name in ("images/b.png", "masks/b.png"):
        (source / name).unlink()
    assert call("convert", source, "--out", tmp_path / "one", "--yes").exit_code == 0
    planned = call("plan", tmp_path / "one", "--out", tmp_path / "plan.json")
    assert planned.exit_code == 0 and "validation needs cases of at least 2 patients" in planned.stderr


def test_a_value_that_may_be_a_slip_is_told(source, tmp_path):
    (source / "masks/d.png").rename(source / "masks/c.png")
    for kind in ("images", "masks"):
        data = np.array(PIL.Image.open(source / kind / "a.png"))
        data[6, 7] = 128
        PIL.Image.fromarray(data).save(source / kind / "e.png")
    told = call("convert", source, "--out", tmp_path / "set", "--yes")
    assert told.exit_code == 0 and "Warning: value 128 is in 1 of 4 masks only: masks/e.png." in told.stderr, told.output
    assert "Warning" not in call("convert", source, "--out", tmp_path / "named", "--yes", "--labels", "slip,organ").stderr


def test_a_data_set_is_not_converted_but_trained_as_it_is(tmp_path):
    made = make_dataset(tmp_path / "a set", cases=2, shape=(8, 9, 10))
    for options in ((), ("--images-only",)):
        said = call("convert", made, "--out", tmp_path / "out", "--yes", *options)
        refused(said, "is a data set already", f"`diffuseg train '{made}' --out RUN` takes it as it is")
    assert not (tmp_path / "out").exists()


def test_what_is_nearly_a_data_set_keeps_the_names_of_its_classes(source, tmp_path):
    """Here the names of its folders are others."""
    labels = {"background": 0, "lesion": 255}
    (source / "dataset.json").write_text(json.dumps({"channel_names": {"0": "MR"}, "labels": labels, "file_ending": ".png"}))
    done = call("convert", source, "--out", tmp_path / "out", "--yes")
    assert done.exit_code == 0 and list(open_dataset(tmp_path / "out").labels) == ["background", "lesion"], done.output
    other = call("convert", source, "--out", tmp_path / "other", "--yes", "--labels", "scar")
    assert other.exit_code == 0 and list(open_dataset(tmp_path / "other").labels) == ["background", "scar"], other.output


def test_channels_taken_out_of_a_data_set_keep_their_names(tmp_path):
    made = make_dataset(tmp_path / "set", cases=2, shape=(8, 9, 10))
    for image in list((made / "imagesTr").iterdir()):
        shutil.copyfile(image, image.with_name(image.name.replace("_0000", "_0001")))
    text = json.loads((made / "dataset.json").read_text())
    (made / "dataset.json").write_text(json.dumps(text | {"channel_names": {"0": "T1", "1": "FLAIR"}}))
    done = call("convert", made, "--out", tmp_path / "out", "--channels", "0001", "--yes")
    assert done.exit_code == 0, done.output
    data = open_dataset(tmp_path / "out")
    assert data.channels == ("FLAIR",) and data.labels == open_dataset(made).labels
