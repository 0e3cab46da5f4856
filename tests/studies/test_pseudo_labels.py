"""Pseudo-labels: which masks are kept and why, and that what is kept is a data set to train on."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from diffuseg.checkpoint import save_checkpoint
from diffuseg.data.dataset import check, load_case, open_dataset, splits
from diffuseg.errors import UserError
from diffuseg.inference.sampling import SamplingOptions
from diffuseg.methods.weak.cdm import CDM, CDMConfig
from diffuseg.studies.pseudo_labels import decide, pseudo_label
from tests.inference.oracle import Certain, make_model, make_plan
from tests.train.tiny import call, refused


@pytest.fixture
def folder(tmp_path) -> Path:
    """Pictures whose grey value 10 is the organ: in a, b and c; d, e and f have none."""
    images = tmp_path / "data/imagesTr"
    images.mkdir(parents=True)
    for number, case in enumerate("abcdef"):
        picture = np.zeros((12, 14), np.uint8)
        if number < 3:
            picture[2 : 6 + number, 3:9] = 10
        PIL.Image.fromarray(picture).save(images / f"{case}_0000.png")
    (tmp_path / "data/patients.csv").write_text("case,patient\n" + "".join(f"{c},p{i % 3}\n" for i, c in enumerate("abcdef")))
    description = {
        "channel_names": {"0": "MR"},
        "labels": {"background": 0, "organ": 3},
        "file_ending": ".png",
        "licence": "CC0",
    }
    (tmp_path / "data/dataset.json").write_text(json.dumps(description))
    return tmp_path / "data"


def know(folder: Path) -> None:
    (folder / "image_labels.csv").write_text("case,organ\na,1\nb,1\nc,1\nd,0\ne,0\nf,0\n")


FLAT = {"orientation": None, "dims": 2, "file_ending": ".png", "patch": (16, 16)}


def test_the_rule():
    assert decide(True, True, True, None, 0.7) == (1.0, True, "known to show no class")
    assert decide(True, False, True, None, 0.7)[1] is False
    assert decide(False, True, True, None, 0.7)[:2] == (0.0, False)
    assert decide(False, True, False, 0.69, 0.7)[:2] == (0.69, False)
    assert decide(False, False, False, 0.7, 0.7)[:2] == (0.7, True)


def test_what_is_kept_is_a_data_set_with_the_models_masks(folder, tmp_path):
    know(folder)
    out = tmp_path / "pseudo"
    found = pseudo_label(make_model(**FLAT), folder, out)
    assert [(p.case, p.label, p.kept, p.confidence) for p in found] == [
        *((case, "organ", True, 1.0) for case in "abc"),
        *((case, "background", True, 1.0) for case in "def"),
    ]
    made = open_dataset(out)
    assert check(made) == [] and made.extra["licence"] == "CC0"
    for case in made.cases:
        image, mask = load_case(made, case)
        assert np.array_equal(mask.data[0], 3 * (image.data[0] == 10))
    sides = splits(made)
    assert all({*fold["train"]} | {*fold["val"]} == set("abcdef") for fold in sides)
    assert sides == splits(open_dataset(folder, masks=False))


def test_no_mask_of_an_image_far_outside_of_the_training_is_kept(folder, tmp_path):
    know(folder)
    wide = np.zeros((12, 70), np.uint8)
    wide[2:8, 3:9] = 10
    PIL.Image.fromarray(wide).save(folder / "imagesTr/a_0000.png")
    ranges = {f"extent of axis {axis} in mm": [12.0, 14.0] for axis in range(2)}
    model = make_model(**FLAT)
    model = replace(model, meta=model.meta | {"fingerprint": {"cases": 9, "ranges": ranges}})
    found = {row.case: row for row in pseudo_label(model, folder, tmp_path / "pseudo")}
    assert not found["a"].kept and "far outside of the training" in found["a"].reason
    assert all(found[case].kept for case in "bcdef")


def test_draws_that_disagree_are_left_out_and_listed(folder, tmp_path):
    know(folder)
    noisy = make_model(0.7, **FLAT)
    found = pseudo_label(noisy, folder, tmp_path / "all", min_confidence=0.0)
    confidence = {p.case: p.confidence for p in found if p.label == "organ"}
    assert all(0 < value < 1 for value in confidence.values())
    least = sorted(confidence.values())[1] - 1e-3
    again = pseudo_label(noisy, folder, tmp_path / "some", min_confidence=least)
    kept = [p.case for p in again if p.kept]
    assert kept == [*(case for case in "abc" if confidence[case] >= least), *"def"] and len(kept) == 5
    assert [case.id for case in open_dataset(tmp_path / "some").cases] == kept
    rows = list(csv.DictReader((tmp_path / "some/pseudo_labels.csv").read_text().splitlines()))
    assert [row["case"] for row in rows] == list("abcdef") and [row["kept"] for row in rows].count("False") == 1
    with pytest.raises(UserError, match="organ is to be trusted"):
        pseudo_label(noisy, folder, tmp_path / "none", min_confidence=1.0)


def test_without_labels_the_model_alone_is_no_proof_of_absence(folder, tmp_path):
    found = pseudo_label(make_model(**FLAT), folder, tmp_path / "out")
    assert [p.case for p in found if p.kept] == ["a", "b", "c"] and not any(p.known for p in found)


def test_a_second_round_with_a_model_that_makes_one_draw_trusts_its_expected_dice(folder, tmp_path):
    know(folder)
    found = pseudo_label(make_model(method=Certain, **FLAT), folder, tmp_path / "out")
    assert all(p.kept and p.confidence > 0.99 for p in found)  # its probabilities are 0 and 1
    unsure = make_model(0.4, method=Certain, **FLAT)
    for pseudo in pseudo_label(unsure, folder, tmp_path / "again", min_confidence=0.0)[:3]:
        case = next(c for c in open_dataset(folder, masks=False).cases if c.id == pseudo.case)
        assert pseudo.confidence == pytest.approx(
            1 - unsure.predict(case.images, calibrate=False).provenance["doubt"], abs=1e-4
        )
        assert pseudo.confidence < 1


def test_where_one_class_is_known_no_other_is_in_the_mask(folder, tmp_path):
    """The picture also shows what the model takes for a second class."""
    classes = {"background": 0, "organ": 3, "other": 4}
    description = json.loads((folder / "dataset.json").read_text()) | {"labels": classes}
    (folder / "dataset.json").write_text(json.dumps(description))
    (folder / "image_labels.csv").write_text("case,label\na,organ\nb,organ\nc,other\nd,background\ne,other\nf,background\n")
    for case in "abce":
        picture = np.zeros((12, 14), np.uint8)
        picture[2:6, 3:9], picture[8:11, 3:9] = 10, 20
        PIL.Image.fromarray(picture).save(folder / f"imagesTr/{case}_0000.png")
    pseudo_label(make_model(labels=classes, **FLAT), folder, tmp_path / "out")
    made = open_dataset(tmp_path / "out")
    shown = {case.id: set(np.unique(load_case(made, case)[1].data)) for case in made.cases}
    assert shown == {"a": {0, 3}, "b": {0, 3}, "c": {0, 4}, "e": {0, 4}, "d": {0}, "f": {0}}


def test_nothing_is_left_behind_when_nothing_can_be_trusted_or_it_is_stopped(folder, tmp_path):
    know(folder)
    noisy = make_model(0.7, **FLAT)
    with pytest.raises(UserError, match="organ is to be trusted"):
        pseudo_label(noisy, folder, tmp_path / "out", min_confidence=1.0)

    def stop(case: str, number: int, of: int) -> None:
        if number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pseudo_label(noisy, folder, tmp_path / "out", on_case=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_folds_that_would_be_without_cases_are_dropped_with_a_word(folder, tmp_path):
    know(folder)
    folds = [{"train": list("bcdef"), "val": ["a"]}, {"train": list("abdef"), "val": ["c"]}]
    (folder / "splits_final.json").write_text(json.dumps(folds))
    (folder / "imagesTr/a_0000.png").write_bytes((folder / "imagesTr/d_0000.png").read_bytes())  # nothing to be found in a
    said: list[str] = []
    pseudo_label(make_model(**FLAT), folder, tmp_path / "out", note=said.append)
    assert "fold 0 has no case left" in said[0] and not (tmp_path / "out/splits_final.json").exists()


def test_refusals(folder, tmp_path):
    know(folder)
    single = make_model(**FLAT)
    single.method.supervision = "image_label"
    with pytest.raises(UserError, match="one draw"):
        pseudo_label(single, folder, tmp_path / "out", options=SamplingOptions(draws=1))
    with pytest.raises(UserError, match="classes are"):
        pseudo_label(make_model(labels={"background": 0, "other": 1}, **FLAT), folder, tmp_path / "out")
    with pytest.raises(UserError, match="not empty"):
        pseudo_label(make_model(**FLAT), folder, folder)


def test_from_labels_to_a_data_set_by_the_command(folder, tmp_path):
    know(folder)
    plan = make_plan(normalisation=("zscore",), intensity=(), widths=(4, 8), **FLAT)
    save_checkpoint(tmp_path / "m.safetensors", CDM(plan, CDMConfig(T=20, steps=1)), {"name": "made"})
    done = call(
        "pseudo-label",
        tmp_path / "m.safetensors",
        folder,
        "--out",
        tmp_path / "new",
        "--confidence",
        "0",
        "--draws",
        "2",
        "--set",
        "support=0",
    )
    assert done.exit_code == 0, done.output
    assert "3 kept: confidence of 0 or more" in done.stdout and "3 kept: known to show no class" in done.stdout
    trained = call(
        "train", tmp_path / "new", "--method", "unet", "--out", tmp_path / "run", "--steps", "1", "--set", "plan.widths=4,8",
        "--set", "plan.patch=16,16", "--set", "plan.batch=2", "--device", "cpu",
    )  # fmt: skip
    assert trained.exit_code == 0, trained.output
    refused(call("pseudo-label", tmp_path / "m.safetensors", folder, "--out", tmp_path / "b", "--set", "T=5"), "fixed when")
