"""Folders are read as they are, and each fault in them is one line that names it."""

import json
import os
import re
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffuseg.data.dataset import Case, Dataset, check, find_images, load_case, open_dataset, patients, splits
from diffuseg.data.label_values import ignore_value, label_values
from diffuseg.errors import UserError

SHAPE = (4, 5, 6)
LABELS = {"background": 0, "head": 1, "tail": 2}


UNANNOTATED = (
    "void",
    "unknown",
    "ignore_label",
    "edge ignored",
    "don't-care",
    "not_annotated",
    "Exclude",
    "unsure",
    "border (exclude)",
    "unlabelled part",
)


def save(path: Path, data: np.ndarray, affine=None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, np.eye(4) if affine is None else affine), path)


def describe(folder: Path, **changes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    values = {"channel_names": {"0": "T1"}, "labels": LABELS, "file_ending": ".nii.gz", **changes}
    kept = {key: value for key, value in values.items() if value is not None}
    (folder / "dataset.json").write_text(json.dumps(kept))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three cases with one channel in the nnU-Net layout; the files of case a are a's own values."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[1:3, 1:3, 1:3], mask[3, 3, 3] = 1, 2
    for number, case in enumerate("abc"):
        save(tmp_path / f"imagesTr/{case}_0000.nii.gz", np.full(SHAPE, number, np.float32))
        save(tmp_path / f"labelsTr/{case}.nii.gz", mask)
    describe(tmp_path, numTraining=3)
    return tmp_path


def refused(call, *words: str) -> str:
    """The one line that a call is refused with; it holds all these words."""
    with pytest.raises(UserError) as fault:
        call()
    line = str(fault.value)
    assert "\n" not in line
    for word in words:
        assert word in line, line
    return line


def test_nnunet_layout(folder):
    (folder / "imagesTr/._a_0000.nii.gz").write_bytes(b"left by a Mac")
    (folder / "labelsTr/.DS_Store").write_bytes(b"")
    dataset = open_dataset(folder)
    assert dataset.name == folder.name and dataset.channels == ("T1",) and dataset.labels == LABELS
    assert [case.id for case in dataset.cases] == ["a", "b", "c"] and dataset.file_ending == ".nii.gz"
    assert dataset.extra["numTraining"] == 3
    for number, case in enumerate(dataset.cases):
        image, mask = load_case(dataset, case)
        assert image.data.shape == mask.data.shape == (1, *SHAPE) and (image.data == number).all()
        assert np.bincount(mask.data.ravel()).tolist() == [111, 8, 1]
    assert check(dataset) == []


def test_channels_of_nnunet_are_in_their_order(folder):
    names = {str(n): f"channel{n}" for n in range(11)}
    describe(folder, channel_names=dict(reversed(names.items())))
    for case in "abc":
        for number in range(11):
            save(folder / f"imagesTr/{case}_{number:04d}.nii.gz", np.full(SHAPE, number, np.int16))
    dataset = open_dataset(folder)
    assert dataset.channels == tuple(names.values())
    image, _ = load_case(dataset, dataset.cases[0])
    assert image.data[:, 0, 0, 0].tolist() == list(range(11))
    (folder / "imagesTr/b_0007.nii.gz").unlink()
    refused(lambda: open_dataset(folder), "imagesTr", "missing channel: b_0007.nii.gz", "11 channels")
    for number in range(1, 11):
        (folder / f"imagesTr/b_{number:04d}.nii.gz").unlink(missing_ok=True)
    refused(lambda: open_dataset(folder), "missing channel: b_0001.nii.gz, b_0002", "and 5 more")


@pytest.mark.parametrize("ending", [".png", ".jpg"])
def test_a_colour_picture_is_one_file(tmp_path, ending):
    describe(tmp_path, channel_names={"0": "R", "1": "G", "2": "B"}, labels={"background": 0, "x": 1}, file_ending=ending)
    for part in ("imagesTr", "labelsTr"):
        (tmp_path / part).mkdir()
    PIL.Image.fromarray(np.full((8, 9, 3), [10, 20, 30], np.uint8)).save(tmp_path / f"imagesTr/a_0000{ending}")
    PIL.Image.fromarray(np.ones((8, 9), np.uint8)).save(tmp_path / "labelsTr/a.png")
    dataset = open_dataset(tmp_path)
    image, mask = load_case(dataset, dataset.cases[0])
    np.testing.assert_allclose(image.data[:, 0, 0], [10, 20, 30], atol=3)
    assert mask.data.shape == (1, 8, 9)
    PIL.Image.fromarray(np.ones((8, 9), np.uint8)).save(tmp_path / f"imagesTr/a_0000{ending}")
    refused(lambda: load_case(dataset, dataset.cases[0]), f"a_0000{ending}", "1 channel, but", "names 3 (R, G, B)")


@pytest.mark.parametrize("listed", [True, False])
def test_msd_layout(tmp_path, listed):
    data = np.random.default_rng(0).normal(size=(*SHAPE, 2)).astype(np.float32)
    for case in ("la_10", "la_2"):
        save(tmp_path / f"imagesTr/{case}.nii.gz", data)
        save(tmp_path / f"labelsTr/{case}.nii.gz", np.ones(SHAPE, np.uint8))
        (tmp_path / f"imagesTr/._{case}.nii.gz").write_bytes(b"left by a Mac")
    training = [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in ("la_2", "._la_2")]
    values = {"name": "LA", "modality": {"0": "T2", "1": "ADC"}, "labels": {"1": "head", "0": "background", "2": "tail"}}
    (tmp_path / "dataset.json").write_text(json.dumps({**values, **({"training": training} if listed else {})}))
    dataset = open_dataset(tmp_path)
    assert (dataset.name, dataset.channels, dataset.file_ending) == ("LA", ("T2", "ADC"), ".nii.gz")
    assert list(dataset.labels.items()) == list(LABELS.items())
    assert [case.id for case in dataset.cases] == (["la_2"] if listed else ["la_10", "la_2"])
    image, _ = load_case(dataset, dataset.cases[0])
    np.testing.assert_array_equal(image.data, np.moveaxis(data, -1, 0))
    if listed:
        (tmp_path / "labelsTr/la_2.nii.gz").unlink()
        refused(lambda: open_dataset(tmp_path), "dataset.json", "missing: labelsTr/la_2.nii.gz")


def test_ending_is_inferred(folder):
    describe(folder, file_ending=None)
    assert open_dataset(folder).file_ending == ".nii.gz"
    (folder / "imagesTr/a_0000.png").write_bytes(b"x")
    refused(lambda: open_dataset(folder), "imagesTr", ".nii.gz, .png")
    describe(folder, file_ending="nii.gz")
    assert open_dataset(folder).file_ending == ".nii.gz"


def test_images_of_a_bare_folder(tmp_path):
    def names(channels):
        return {case: [path.name for path in paths] for case, paths in find_images(tmp_path, channels).items()}

    for name in ("b_0000.png", "a_0000.png", "b_0001.png", "a_0001.png", ".c_0000.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    assert names(2) == {"a": ["a_0000.png", "a_0001.png"], "b": ["b_0000.png", "b_0001.png"]}
    assert list(names(1)) == ["a_0000", "a_0001", "b_0000", "b_0001"]  # one channel: 0001 is part of the name
    refused(lambda: find_images(tmp_path, 3), "missing channel: a_0002.png, b_0002.png")
    refused(lambda: find_images(tmp_path / "none", 1), "none", "one file ending")


FAULTS = {
    "no such folder": lambda folder: [path.rename(folder / "away") for path in [folder / "imagesTr"]],
    "no such file": lambda folder: (folder / "dataset.json").unlink(),
    "JSON": lambda folder: (folder / "dataset.json").write_text('{"labels": '),
    "object": lambda folder: (folder / "dataset.json").write_text("[]"),
    "no image": lambda folder: [path.unlink() for path in (folder / "imagesTr").iterdir()],
    "no .mha image": lambda folder: describe(folder, file_ending=".mha"),
    "file_ending .dcm is not known": lambda folder: describe(folder, file_ending=".dcm"),
    "channel_names": lambda folder: describe(folder, channel_names=None),
    'must count from "0"': lambda folder: describe(folder, channel_names={"1": "T1"}),
    "not so: a_0001.nii.gz": lambda folder: (folder / "imagesTr/a_0001.nii.gz").write_bytes(b"x"),
    'needs "labels"': lambda folder: describe(folder, labels={}),
    "must be label 0": lambda folder: describe(folder, labels={"background": 1, "head": 0}),
    "background must be": lambda folder: describe(folder, labels={"head": 1}),
    "one integer per label": lambda folder: describe(folder, labels={"background": 0, "whole": [1, 2]}),
    "different values": lambda folder: describe(folder, labels={"background": 0, "a": 1, "b": 1}),
    "missing mask for 2 of 3 cases: a, c": lambda folder: [(folder / f"labelsTr/{c}.nii.gz").unlink() for c in "ac"],
    "Expected <case>.nii.gz; a.NII.gz is not looked at": lambda folder: (folder / "labelsTr/a.nii.gz").rename(
        folder / "labelsTr/a.NII.gz"
    ),
}


@pytest.mark.parametrize("words", FAULTS)
def test_faults_of_a_folder(folder, words):
    FAULTS[words](folder)
    refused(lambda: open_dataset(folder), str(folder), words)


def test_no_such_dataset(tmp_path):
    refused(lambda: open_dataset(tmp_path / "none"), "none: no such folder")


def spoil(folder: Path) -> dict[str, tuple[str, ...]]:
    """Six faults in three cases: path -> words of its line."""
    image = lambda case: folder / f"imagesTr/{case}_0000.nii.gz"
    mask = lambda case: folder / f"labelsTr/{case}.nii.gz"
    values = np.zeros(SHAPE, np.int16)
    values[0, 0, :2], values[1, 1, 1] = 7, -1
    save(mask("a"), values)
    image("b").write_bytes(image("b").read_bytes()[:60])
    mask("b").write_bytes(b"")
    save(image("c"), np.full(SHAPE, np.nan, np.float32))
    save(folder / "labelsTr/d.nii.gz", values)
    return {
        "labelsTr/a.nii.gz: label value 7": ("2 voxels", "Allowed: 0 background, 1 head, 2 tail"),
        "labelsTr/a.nii.gz: label value -1": ("(in 1 voxel)", "dataset.json"),
        "imagesTr/b_0000.nii.gz": ("truncated",),
        "labelsTr/b.nii.gz": ("empty (0 bytes)",),
        "imagesTr/c_0000.nii.gz": ("NaN or infinite values: 120 of 120",),
        "labelsTr/d.nii.gz": ("no image for this mask",),
    }


def test_check_finds_all_faults_and_load_case_the_first(folder):
    expected = spoil(folder)
    dataset = open_dataset(folder)
    lines = check(dataset)
    assert len(lines) == len(expected)
    for place, words in expected.items():
        (line,) = [line for line in lines if place in line]
        assert all(word in line for word in words), line
    for case, word in zip(dataset.cases, ("label value", "truncated", "NaN"), strict=True):
        refused(lambda case=case: load_case(dataset, case), word)


def test_image_and_mask_on_different_grids(folder):
    dataset = open_dataset(folder)
    save(folder / "labelsTr/a.nii.gz", np.zeros((4, 5, 7), np.uint8))
    refused(lambda: load_case(dataset, dataset.cases[0]), "a.nii.gz", "(4, 5, 7)", "(4, 5, 6)", "a_0000.nii.gz")
    save(folder / "labelsTr/b.nii.gz", np.zeros(SHAPE, np.uint8), np.diag([1, 1, 3.25, 1]))
    refused(lambda: load_case(dataset, dataset.cases[1]), "b.nii.gz", "3.25", "is not [[1.", "11.2 mm")
    nothing = Case("c", dataset.cases[2].images, None)
    refused(lambda: load_case(dataset, nothing), "case c has no mask")


def test_check_counts_cases(folder):
    describe(folder, numTraining=4)
    assert re.search(r"numTraining is 4, but the number of cases is 3", *check(open_dataset(folder)))


def of_names(names: list[str], folder: Path = Path("nowhere"), **extra) -> Dataset:
    return Dataset(folder, "x", ("T1",), LABELS, ".png", tuple(Case(name, (), None) for name in names), extra)


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 6), min_size=2, max_size=20), folds=st.integers(2, 6), seed=st.integers(0, 9))
def test_folds_cover_each_case_once_and_keep_patients_together(sizes, folds, seed):
    names = [f"p{patient}_{number}" for patient, size in enumerate(sizes) for number in range(size)]
    dataset = of_names(names, patient_pattern=r"^p\d+")
    result = splits(dataset, folds, seed)
    assert result == splits(dataset, folds, seed)
    assert len(result) == min(folds, len(sizes))
    assert Counter(case for fold in result for case in fold["val"]) == Counter(names)
    for fold in result:
        assert sorted(fold["train"] + fold["val"]) == sorted(names)
        assert {name.split("_")[0] for name in fold["train"]}.isdisjoint(name.split("_")[0] for name in fold["val"])
    lengths = [len(fold["val"]) for fold in result]
    assert max(lengths) - min(lengths) <= max(sizes)  # dealing to the smallest fold keeps them even


def test_folds_depend_on_the_seed_and_not_on_the_order():
    names = [f"case{n}" for n in range(40)]
    assert splits(of_names(names), seed=0) != splits(of_names(names), seed=1)
    back = splits(of_names(names[::-1]), seed=0)
    assert [set(fold["val"]) for fold in back] == [set(fold["val"]) for fold in splits(of_names(names), seed=0)]
    assert {len(fold["val"]) for fold in back} == {8}
    refused(lambda: splits(of_names(["one"])), "2 patients")


def test_a_patient_with_many_cases_does_not_swell_a_fold():
    names = [f"small{n}_0" for n in range(6)] + [f"large_{n}" for n in range(6)]
    for seed in range(5):
        folds = splits(of_names(names, patient_pattern="^[a-z]+[0-9]*"), folds=2, seed=seed)
        assert [len(fold["val"]) for fold in folds] == [6, 6]


def test_the_rules_that_tell_patients(tmp_path):
    names = ["p1_a", "p1_b", "p2_a"]
    assert patients(of_names(names)) == (dict(zip(names, names, strict=True)), "each case is taken for a patient of its own")
    found, rule = patients(of_names(names, patient_pattern=r"^(p\d)_"))
    assert found == {"p1_a": "p1", "p1_b": "p1", "p2_a": "p2"} and r"^(p\d)_" in rule
    (tmp_path / "patients.csv").write_text("case,age,patient\np1_a,70,x\np1_b,71,y\np2_a,60,x\n", encoding="utf-8-sig")
    found, rule = patients(of_names(names, tmp_path, patient_pattern=r"^(p\d)_"))
    assert found == {"p1_a": "x", "p1_b": "y", "p2_a": "x"} and "patients.csv" in rule
    listed = {"p1_a": "u", "p1_b": "u", "p2_a": 7}
    assert patients(of_names(names, tmp_path, patients=listed))[0] == {"p1_a": "u", "p1_b": "u", "p2_a": "7"}
    refused(lambda: patients(of_names(names, patients={"p1_a": "u"})), "no patient for p1_b, p2_a")
    refused(lambda: patients(of_names(names, patients=["p1_a"])), '"patients" must be')
    refused(lambda: patients(of_names([*names, "q"], tmp_path)), "patients.csv", "no patient for q")
    refused(lambda: patients(of_names([*names, "q"], patient_pattern="^p")), "dataset.json", "no patient for q")
    refused(lambda: patients(of_names(names, patient_pattern="(")), "regular expression")
    (tmp_path / "patients.csv").write_text("name,patient\n")
    refused(lambda: patients(of_names(names, tmp_path)), "columns case and patient")


SPLIT_FAULTS = {
    "unknown cases: z": [{"train": ["a", "z"], "val": ["b"]}],
    "fold 1 has cases in train and in val: b": [{"train": ["a"], "val": ["b"]}, {"train": ["a", "b"], "val": ["b"]}],
    'fold 0 names a case twice in "train"': [{"train": ["a", "a"], "val": ["b"]}],
    'fold 0 needs a list of cases "val"': [{"train": ["a"], "val": []}],
    'fold 0 needs a list of cases "train"': [["a"]],
    "must list folds": {"train": ["a"], "val": ["b"]},
}


@pytest.mark.parametrize("words", SPLIT_FAULTS)
def test_faults_of_given_splits(folder, words):
    (folder / "splits_final.json").write_text(json.dumps(SPLIT_FAULTS[words]))
    dataset = open_dataset(folder)
    line = refused(lambda: splits(dataset), "splits_final.json", words)
    assert check(dataset) == [line]


def test_given_splits_are_taken_as_they_are(folder):
    given_folds = [{"train": ["c", "a"], "val": ["b"]}]
    (folder / "splits_final.json").write_text(json.dumps(given_folds))
    assert splits(open_dataset(folder), folds=5, seed=3) == given_folds
    describe(folder, patients={"a": "x", "b": "x", "c": "y"})
    (line,) = check(open_dataset(folder))
    assert "splits_final.json" in line and "patients in train and in val: x" in line


LINK = "../.git/annex/objects/nothing"


@pytest.mark.parametrize("name", ["imagesTr/b_0000.nii.gz", "labelsTr/b.nii.gz"])
def test_links_to_nowhere_are_refused_not_passed_over(folder, name):
    (folder / name).unlink()
    (folder / name).symlink_to(LINK)
    refused(lambda: open_dataset(folder), name.split("/")[0], "links to nowhere: " + name.split("/")[1])


def test_two_files_of_one_case_are_refused(folder):
    (folder / "labelsTr/b.nii").write_bytes(b"x")
    refused(lambda: open_dataset(folder), "labelsTr", "b.nii.gz", "two files of one case")


def test_what_no_case_uses_is_named(folder, caplog):
    (folder / "labelsTr/nobody.nii.gz").write_bytes(b"x")
    (folder / "imagesTr/z_0000.png").write_bytes(b"x")
    describe(folder, numTraining=17)
    open_dataset(folder)
    for text in ("nobody.nii.gz", "z_0000.png", "numTraining is 17"):
        assert text in caplog.text


def test_what_says_something_about_a_set_and_is_not_read_is_named(folder, caplog):
    for name in ("splits.json", "patients.xlsx", ".b_0000.nii.gz", "._b_0000.nii.gz", "notes.txt"):
        ((folder / "imagesTr" if name.startswith(".") else folder) / name).write_bytes(b"[]")
    for ending, place in (("_0000.nii.gz", "imagesTr"), (".nii.gz", "labelsTr")):
        (folder / place / f"B{ending}").write_bytes((folder / place / f"b{ending}").read_bytes())
    describe(folder, ignore_label=255, training=[{"image": "a", "label": "b", "fold": 0}])
    open_dataset(folder)
    for text in ("patients.xlsx, splits.json are not read", ": .b_0000.nii.gz", "not read: 'ignore_label', 'fold'", "B and b"):
        assert text in caplog.text
    assert "._b" not in caplog.text and "notes" not in caplog.text


def test_files_of_folds_and_patients_that_are_read_are_not_named(folder, caplog):
    ids = [case.id for case in open_dataset(folder).cases]
    (folder / "splits_final.json").write_text(json.dumps([{"train": ids[:1], "val": ids[1:]}]))
    (folder / "patients.csv").write_text("case,patient\n" + "".join(f"{name},{name}\n" for name in ids))
    splits(open_dataset(folder))
    assert not caplog.text


def test_cases_that_a_fold_leaves_out_are_named(folder, caplog):
    ids = [case.id for case in open_dataset(folder).cases]
    folds = [{"train": ids[:1], "val": ids[1:2]}, {"train": ids[:1], "val": ids[1:]}]
    (folder / "splits_final.json").write_text(json.dumps(folds))
    splits(open_dataset(folder))
    assert f"fold 0 neither learns from nor validates on 1 case of other folds: {ids[2]}" in caplog.text
    assert "fold 1" not in caplog.text


def test_folders_and_pipes_that_no_case_uses_are_named(folder, caplog):
    (folder / "imagesTr/more").mkdir()
    (folder / "labelsTr/z.nii.gz").symlink_to(folder.parent)  # a link to what holds all of it
    os.mkfifo(folder / "imagesTr/y_0000.nii.gz")
    open_dataset(folder)
    for text in ("more/", "z.nii.gz/", "y_0000.nii.gz"):
        assert text in caplog.text


def test_lists_of_files_that_are_not_read_or_name_one_twice_are_refused(folder, caplog):
    described = json.loads((folder / "dataset.json").read_text())
    describe(folder, dataset={"a": {"images": ["elsewhere/a.nii.gz"], "label": "elsewhere/b.nii.gz"}})
    refused(lambda: open_dataset(folder), "dataset.json", '"dataset"', "not read")
    describe(folder, dataset=None, training=[{"image": "imagesTr/b_0000.nii.gz", "label": "labelsTr/b.nii.gz"}] * 40)
    open_dataset(folder)
    assert '"training" lists 40 cases, but the files of imagesTr are used' in caplog.text
    names = sorted(path.name for path in (folder / "imagesTr").iterdir())[:2]
    del described["channel_names"]
    one = [{"image": f"imagesTr/{name}", "label": "labelsTr/b.nii.gz"} for name in names]
    described |= {"modality": {"0": "MR"}, "training": one}
    (folder / "dataset.json").write_text(json.dumps(described))
    refused(lambda: open_dataset(folder), "lists files twice: b.nii.gz")


def test_a_space_makes_no_other_patient_and_patients_of_no_case_are_named(tmp_path, caplog):
    (tmp_path / "patients.csv").write_text("case,patient\na, x\nb,x \nc,y\n")
    assert patients(of_names(["a", "b"], tmp_path))[0] == {"a": "x", "b": "x"}
    assert "patients of cases that are not there: c" in caplog.text
    assert patients(of_names(["a", "b"], patients={"a": "x ", "b": "x"}))[0] == {"a": "x", "b": "x"}


def test_a_key_given_twice_is_refused(folder):
    text = (folder / "dataset.json").read_text()
    (folder / "dataset.json").write_text(text.replace("{", '{"name": "a", "name": "b", ', 1))
    refused(lambda: open_dataset(folder), "dataset.json", "given twice")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"background": 0, "a": 2, "ignore": 1}, "highest"),
        ({"background": 0, "a": 1, "b": -1}, "negative"),
        ({"background": 0, "a": 1, "whole": [1, 2]}, "no regions"),
        *(({"background": 0, "a": 1, name: 2}, "learnt as a class") for name in UNANNOTATED),
        ({"background": 0, "a": 1, " a": 2}, "names that differ"),
        ({"background": 0, "a": 1, "": 2}, "names that differ"),
        ({"Background": 1, "a": 0}, "background must be label 0"),
        ({"0": "background", "1": "a", "2": "a"}, "one name"),
    ],
)
def test_labels_that_mean_something_else_are_refused(tmp_path, labels, words):
    with pytest.raises(UserError, match=words):
        label_values({"labels": labels}, tmp_path / "dataset.json")


@pytest.mark.parametrize(("name", "said"), [("tumor", True), ("foreground", True), ("bg", False), ("Clear Label", False)])
def test_a_class_at_label_0_is_said_to_be_the_background(tmp_path, caplog, name, said):
    label_values({"labels": {name: 0, "a": 1}}, tmp_path / "dataset.json")
    assert (f"label 0, '{name}', is taken for the background" in caplog.text) == said


def test_the_order_of_labels_says_nothing_and_ignore_is_no_class(tmp_path):
    extra = {"labels": {"ignore": 9, "b": 4, "a": 2, "background": 0}}
    assert list(label_values(extra, tmp_path).items()) == [("background", 0), ("a", 2), ("b", 4)]
    assert ignore_value(extra, tmp_path) == 9


def test_a_folder_of_images_is_told_the_command_that_makes_a_data_set_of_it(tmp_path):
    (tmp_path / "my scans/images").mkdir(parents=True)
    refused(lambda: open_dataset(tmp_path / "my scans"), "no such file", "imagesTr/<case>_0000.nii.gz")
    (tmp_path / "my scans/images/a.bmp").write_bytes(b"x")
    line = refused(lambda: open_dataset(tmp_path / "my scans"), "no data set", "`diffuseg convert '", "makes one")
    assert f"diffuseg convert '{tmp_path}/my scans' --out 'my scans_dataset'" in line


@pytest.mark.parametrize("path", ["/etc/a.nii.gz", "../a.nii.gz", "imagesTr/../../a.nii.gz"])
def test_a_list_of_files_does_not_leave_its_data_set(tmp_path, path):
    folder = tmp_path / "in"
    save(tmp_path / "a.nii.gz", np.zeros(SHAPE, np.uint8))
    save(folder / "imagesTr/b.nii.gz", np.zeros(SHAPE, np.uint8))
    describe(folder, channel_names=None, modality={"0": "T1"}, training=[{"image": path, "label": "imagesTr/b.nii.gz"}])
    refused(lambda: open_dataset(folder), f"names {path}, outside of the data set")
    (folder / "imagesTr/c.nii.gz").symlink_to(tmp_path / "a.nii.gz")  # a link is the work of whoever owns the folder
    listed = [{"image": "imagesTr/../imagesTr/c.nii.gz", "label": "imagesTr/b.nii.gz"}]
    describe(folder, channel_names=None, modality={"0": "T1"}, training=listed)
    assert [case.id for case in open_dataset(folder).cases] == ["c"]


def test_another_spelling_of_a_label_is_shown(folder):
    describe(folder, labels={"background": 0, "lesion": 1})
    for case in "abc":
        save(folder / f"labelsTr/{case}.nii.gz", 255 * (np.arange(120).reshape(SHAPE) > 60).astype(np.uint8))
    line = refused(lambda: load_case(open_dataset(folder), open_dataset(folder).cases[0]), "label value 255")
    assert line.endswith('Allowed: 0 background, 1 lesion. If 255 is lesion in all masks, write "lesion": 255 into "labels"')
    describe(folder, labels={"background": 0, "lesion": 255})
    assert check(open_dataset(folder)) == []


def test_masks_that_mark_nothing_are_refused_and_a_class_in_none_is_named(folder, caplog):
    from diffuseg.data.fingerprint import fingerprint

    for case in "abc":
        save(folder / f"labelsTr/{case}.nii.gz", np.zeros(SHAPE, np.uint8))
    refused(lambda: fingerprint(open_dataset(folder)), "labelsTr: no mask of 3 cases marks anything")
    save(folder / "labelsTr/a.nii.gz", np.ones(SHAPE, np.uint8))
    fingerprint(open_dataset(folder))
    assert "in no mask: tail" in caplog.text
