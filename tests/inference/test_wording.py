"""What is said of a record to a person, in terminal, page and notebook: what an interval is, why a case needs review."""

import dataclasses
import json

import pytest

from diffuseg.cli.predict import tell
from diffuseg.inference import show
from diffuseg.inference.calibration import Calibration, apply_calibration
from diffuseg.inference.folder import FolderResult
from diffuseg.inference.wording import amounts, interval_note, review_reason, unlike_text
from diffuseg.viewer.cases import find_cases
from tests.inference.oracle import make_model
from tests.viewer.conftest import pictures, volumes  # noqa: F401, fixtures

LEARNT = {"near": {"shift": 0.5, "alpha": 0.1, "cases": 9}}  # of one class alone: the other had too few cases
UNSURE = "its draws expect a Dice of 0.810 (uncertainty score 0.190, review begins above 0.150)"
UNLIKE = "it is unlike the images of the training"
REVIEW = {"needs_review": True, "uncertainty_score": 0.19, "review_threshold": 0.15}


def calibration(**parts) -> Calibration:
    settings = {"draws": 3, "steps": 3, "sampler": "ancestral", "fuse": "mean", "options": {}}
    return Calibration(1.5, LEARNT, 0.9, 0.2, settings, dataset="made", fold=0, cases=9, patients=9, **parts)


def shown_in(folder, case: str) -> dict:
    return find_cases(folder, only=case)[0].describe()


def test_an_interval_that_is_not_calibrated_is_called_raw_wherever_it_is_shown(volumes):  # noqa: F811
    record = json.loads((volumes / "a.json").read_text())
    raw = lambda: [line.endswith("raw") for line in amounts(record)]
    in_page = lambda: [row[-1] for row in shown_in(volumes, "a")["volumes"]]
    assert raw() == in_page() == [True, True] and "calibration" not in record
    assert shown_in(volumes, "a")["note"] == record["volume_note"] + "; raw: not calibrated, as the model is not"
    record["calibration"] = {"applied": True, "widening": dict.fromkeys(("near", "far part"), LEARNT["near"])}
    (volumes / "a.json").write_text(json.dumps(record))
    assert raw() == in_page() == [False, False]
    record["calibration"] = {"applied": True, "widening": LEARNT}
    (volumes / "a.json").write_text(json.dumps(record))
    assert raw() == in_page() == [False, True]
    few = "; raw: not calibrated, as there were too few cases to learn from"
    assert shown_in(volumes, "a")["note"] == record["volume_note"] + few
    record["calibration"] = {"applied": False, "reason": "learnt with draws 32, now 3"}
    (volumes / "a.json").write_text(json.dumps(record))
    assert raw() == in_page() == [True, True]
    why = "; raw: not calibrated, as that was learnt with draws 32, now 3"
    assert shown_in(volumes, "a")["note"] == record["volume_note"] + why
    record["volume_note"] += "; raw: not calibrated, as it is far"
    assert interval_note(record) == record["volume_note"], "said once"


def test_of_a_single_draw_only_a_calibrated_interval_is_shown_and_none_is_called_raw(volumes):  # noqa: F811
    """A point promises nothing; what levels of the probability were calibrated to does, with one draw too."""
    note = "a single draw: the interval is a point and says nothing about uncertainty"
    record = json.loads((volumes / "a.json").read_text()) | {"draws": 1, "volume_note": note}
    record |= {"volume_ml": {"near": 1.0, "far part": 2.0}, "volume_ml_90": {"near": [1.0, 1.0], "far part": [2.0, 2.0]}}
    assert amounts(record) == ["near 1 ml", "far part 2 ml"] and interval_note(record) == note
    record["volume_ml_90"]["near"] = [0.5, 1.5]
    record["calibration"] = {"applied": True, "widening": LEARNT}
    assert amounts(record) == ["near 1 ml [0.5, 1.5]", "far part 2 ml"] and interval_note(record) == note
    (volumes / "a.json").write_text(json.dumps(record))
    assert [row[2:4] for row in shown_in(volumes, "a")["volumes"]] == [[0.5, 1.5], [None, None]]


def test_a_calibration_without_intervals_says_so_before_any_is_printed():
    learnt = calibration()
    assert "intervals of near adjusted," in learnt.announce(learnt.settings)
    without = dataclasses.replace(learnt, widening={})
    assert "intervals raw (too few cases to adjust them)," in without.announce(learnt.settings)


def test_a_notebook_says_raw_too_and_shows_no_interval_of_a_single_draw(volumes):  # noqa: F811
    p = make_model(noise=0.6).predict(volumes.parent / "scans" / "a_0000.nii.gz", draws=3)
    p.provenance["calibration"] = {"applied": True, "widening": {}}
    assert show.volume_rows(p)[0][2].endswith(" raw") and "raw]" in repr(p)
    single = make_model(noise=0.6).predict(volumes.parent / "scans" / "a_0000.nii.gz", draws=1)
    assert show.volume_rows(single)[0][2] == "-" and "[" not in repr(single)


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ({}, UNSURE),
        ({"outside_training": ["a"]}, f"{UNLIKE}, and {UNSURE}"),
        ({"outside_training": ["a"], "uncertainty_score": 0.02}, UNLIKE),  # 0.02 is no reason: review begins above 0.15
        ({"outside_training": ["a"], "review_threshold": None}, UNLIKE),
    ],
)
def test_a_review_names_its_reason_and_nothing_that_is_none(volumes, parts, why):  # noqa: F811
    record = json.loads((volumes / "a.json").read_text()) | REVIEW | parts
    assert review_reason(record) == why
    (volumes / "a.json").write_text(json.dumps(record))
    assert f"Needs review by a person: {why}." in shown_in(volumes, "a")["remarks"]
    p = make_model(noise=0.6).predict(volumes.parent / "scans" / "a_0000.nii.gz", draws=3)
    p.provenance |= REVIEW | parts
    assert f"<p>Needs review by a person: {why}.</p>" in show.as_html(p)


def test_a_note_on_intervals_has_the_unit_of_the_numbers_beside_it_and_no_key_of_the_record(volumes, pictures):  # noqa: F811
    flat, deep = shown_in(pictures, "p"), shown_in(volumes, "a")
    note = lambda about: about["note"].partition("; raw")[0]
    assert note(flat) == "5th to 95th percentile of the areas of the single draws" and flat["unit"] == "pixels"
    assert note(deep) == "5th to 95th percentile of the volumes of the single draws" and deep["unit"] == "ml"
    p = make_model(noise=0.6, labels={"background": 0, "near": 2, "far part": 5}).predict(
        volumes.parent / "scans" / "a_0000.nii.gz", draws=3, steps=3
    )
    learnt = calibration()
    record = p.provenance | {name: p.provenance[name] for name in learnt.settings}
    learnt = dataclasses.replace(learnt, settings={name: record[name] for name in learnt.settings})
    apply_calibration(learnt, p.probability, record, 0.001)
    assert record["calibration"]["applied"]
    before = "; before that, 5th to 95th percentile of the volumes of the single draws"
    assert interval_note(record).startswith(f"calibrated on 9 validation cases (fold 0 of made) (near){before}")


def test_a_long_list_of_faults_is_told_in_a_few_that_a_person_understands(volumes, capsys):  # noqa: F811
    intensities = [f"position of percentile {n} of T1 is 0, in training 1 to 2" for n in (5, 25, 50)] + [
        "percentile 1 of T1 is 9"
    ]
    sizes = ["extent of axis 0 in mm is 600, in training 96 to 96", "volume of near in ml is 0, in training 3 to 4"]
    faults = [sizes[0], *intensities, sizes[1]]
    told = unlike_text(faults, "a.json")
    assert told == "; ".join([*sizes, intensities[3], intensities[0], "and 2 more in a.json"])
    assert unlike_text(faults[:4], "a.json") == "; ".join(faults[:4]), "none is left"
    record = json.loads((volumes / "a.json").read_text()) | {"outside_training": faults}
    (volumes / "a.json").write_text(json.dumps(record))
    assert f"Unlike the images of the training: {told}." in shown_in(volumes, "a")["remarks"]
    result = FolderResult(finished=["a"], outside_training=[("a", faults)])
    tell(result, volumes)
    assert f"and 2 more in {volumes / 'a.json'}\n" in capsys.readouterr().err
