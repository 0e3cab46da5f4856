"""What a user can mend is one line that names the file or the setting, and leaves nothing behind."""

import json
from pathlib import Path
from shutil import copytree

import nibabel as nib
import numpy as np
import pytest

from diffuseg.checkpoint import is_finished
from diffuseg.data.dataset import Case, Dataset
from diffuseg.data.plan import load_plan
from diffuseg.errors import UserError
from diffuseg.train import loop
from diffuseg.train.run_folder import name_twins
from tests.train.tiny import call, options, refused, same_weights, settings, start

IMAGE, MASK = "imagesTr/case_001_0000.nii.gz", "labelsTr/case_001.nii.gz"


def change(file: Path, shift=lambda data: data, affine=lambda affine: affine, kind: type = np.uint8) -> None:
    scan = nib.load(file)
    nib.save(nib.Nifti1Image(shift(np.asarray(scan.dataobj)).astype(kind), affine(scan.affine)), file)


def holed(data: np.ndarray) -> np.ndarray:
    data = data.astype(np.float32)
    data[3, 4, 5] = np.nan
    return data


# what is done to a good folder -> words of the line; whether it is seen only once the file is read
FAULTS = {
    "missing mask": (lambda d: (d / MASK).unlink(), ("labelsTr", "missing mask for 1 of 4 cases: case_001"), False),
    "empty folder": (lambda d: [f.unlink() for f in (d / "imagesTr").iterdir()], ("imagesTr", "no image"), False),
    "other shape": (lambda d: change(d / MASK, lambda m: m[:-1]), (MASK, "(9, 12, 9)", "(10, 12, 9)"), True),
    "other affine": (lambda d: change(d / MASK, affine=lambda a: a + np.diag([1, 0, 0, 0])), (MASK, "mm"), True),
    "unknown label": (lambda d: change(d / MASK, lambda m: np.where(m, 7, 0)), (MASK, "label value 7", "1 head"), True),
    "NaN": (lambda d: change(d / IMAGE, holed, kind=np.float32), (IMAGE, "NaN or infinite values: 1 of 1080"), True),
    "truncated": (lambda d: (d / IMAGE).write_bytes((d / IMAGE).read_bytes()[:300]), (IMAGE, "truncated"), True),
    "zero bytes": (lambda d: (d / MASK).write_bytes(b""), (MASK, "empty (0 bytes)"), True),
}


@pytest.fixture
def spoilt(tmp_path, data) -> Path:
    """A copy that a test may damage."""
    return copytree(data, tmp_path / "data")


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_data_ends_a_plan_and_a_training_before_they_begin(tmp_path, spoilt, fault):
    spoil, words, _ = FAULTS[fault]
    spoil(spoilt)
    refused(call("plan", spoilt, "--out", tmp_path / "plan.json"), *words)
    refused(call(*options(spoilt, tmp_path / "out")), *words)
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("side", ["train", "val"])
@pytest.mark.parametrize("fault", [name for name, (*_, late) in FAULTS.items() if late])
def test_bad_data_under_a_given_plan_is_named_when_it_is_read(tmp_path, spoilt, plan, request, fault, side):
    """The loader reads in a thread of its own: what it is refused there arrives unchanged."""
    if side == "train":
        request.getfixturevalue("quick")
    spoil, words, _ = FAULTS[fault]
    spoil(spoilt)
    others = ["case_000", "case_002", "case_003"]
    split = {"train": others[:2], "val": others[2:], side: ["case_001"] if side == "val" else [*others[:2], "case_001"]}
    (spoilt / "splits_final.json").write_text(json.dumps([split]))
    out = tmp_path / "out"
    refused(call(*options(spoilt, out), "--plan", plan), *words)
    assert not (out / "best.safetensors").exists() and not is_finished(out / "last.safetensors")
    assert not [p for p in out.rglob(".*")]


def test_a_training_that_met_bad_data_goes_on_when_it_is_mended(tmp_path, spoilt, plan, quick):
    arguments, image = [*options(spoilt, tmp_path / "out", steps=3), "--plan", plan], spoilt / IMAGE
    good = image.read_bytes()
    image.write_bytes(b"")
    refused(call(*arguments), IMAGE)
    refused(call(*arguments, "--resume"), IMAGE)
    image.write_bytes(good)
    done = call(*arguments, "--resume")
    assert done.exit_code == 0, done.output
    assert call(*options(spoilt, tmp_path / "straight", steps=3), "--plan", plan).exit_code == 0
    assert same_weights(tmp_path / "out" / "last.safetensors", tmp_path / "straight" / "last.safetensors")


def test_a_run_does_not_go_on_over_other_voxels(tmp_path, spoilt, plan, quick):
    arguments, image = [*options(spoilt, tmp_path / "out", steps=2), "--plan", plan], spoilt / IMAGE
    good = image.read_bytes()
    assert call(*arguments).exit_code == 0
    mask = next((spoilt / "labelsTr").iterdir())
    for file in (image, mask):
        kept = file.read_bytes()
        whole = nib.load(file)
        nib.save(nib.Nifti1Image(np.asarray(whole.dataobj)[::-1].copy(), whole.affine), file)
        refused(call(*arguments, "--resume"), file.name, "changed since the run was started", "Put the files back")
        file.write_bytes(kept)
    assert image.read_bytes() == good
    assert call(*arguments, "--resume").exit_code == 0


def test_a_run_does_not_go_on_without_its_state_or_best_checkpoint_or_over_an_edited_plan(tmp_path, data, plan, quick):
    arguments, out = [*options(data, tmp_path / "out", steps=2), "--plan", plan], tmp_path / "out"
    assert call(*arguments).exit_code == 0
    for name, words in (("resume", "state of the run is not there"), ("best", "checkpoint that validated best")):
        kept = (out / f"{name}.safetensors").read_bytes()
        (out / f"{name}.safetensors").unlink()
        refused(call(*arguments, "--resume"), f"{name}.safetensors", words, "Put it back")
        (out / f"{name}.safetensors").write_bytes(kept)
    written = json.loads((out / "plan.json").read_text())
    (out / "plan.json").write_text(json.dumps(written | {"batch": 1, "reasons": {}}))
    refused(call(*arguments, "--resume"), "plan.json", "--resume: batch changed")
    (out / "plan.json").write_text(json.dumps(written))
    assert call(*arguments, "--resume").exit_code == 0


# arguments after those of a good training -> words of the line
WISHES = {
    "--preset cdal/as_relesed": ("unknown preset 'cdal/as_relesed'", "cdal/as_released"),
    "--preset cdal/ours_cxr": ("the preset cdal/ours_cxr", "--method cdal"),  # that of another method
    "--preset cdal/hippocampus": ("the preset cdal/hippocampus", "--method cdal"),  # by its former name
    "--method concat --set sampler=foo": ("unknown sampler 'foo'", "ddim"),
    "--method concat --set steps=0": ("steps=0", "1 or more"),
    "--method cdal --set x_t=other_case": ("x_t=other_case", "recycle=0"),
    "--method cdal --set attention=label": ("attention=label", "recycle=1", "recycle=0"),
    "--method cdal --set attention=label --set recycle=0.5": ("attention=label", "recycle=0.5", "recycle=0"),
    "--set lerning_rate=1": ("unknown setting 'lerning_rate'", "did you mean 'learning_rate'?"),
    "--set train.warm_up=1": ("did you mean 'train.warmup'?",),
    "--set plan.bach=1": ("did you mean 'plan.batch'?",),
    "--set learning_rate": ("--set learning_rate", "key=value"),
    "--set learning_rate=fast": ("learning_rate='fast'", "expected number"),
    "--set plan.batch=0": ("batch", "at least 1"),
    "--set train.save_every=0": ("train.save_every", "1 or more"),
    "--set train.validation_cases=-1": ("train.validation_cases", "0 or more"),
    "--set train.ema=2": ("train.ema", "between 0 and 1"),
    "--set train.weight_decay=-1": ("train.weight_decay", "0 or more"),
    "--set train.clip=-1": ("train.clip", "0 or more"),
    "--set train.floor=2": ("train.floor", "between 0 and 1"),
    "--set plan.patch=1,1,1": ("patch", "4 voxels"),
    "--method cdal --set betas=2,3": ("betas=(2.0, 3.0)", "0 to 0.9999"),
    "--method cdal --set dice=-1": ("dice=-1", "0 or more"),
    "--set learning_rate=-1": ("learning_rate=-1", "0 or more"),
    "--set blocks=0": ("blocks=0", "1 or more"),
    "--set widths=0": ("widths=(0,)", "1 or more"),
    "--method cdal --set discriminator_every=0": ("discriminator_every=0", "1 or more"),
    "--method cdal --set latent=-1": ("latent=-1", "0 or more"),
    "--method cdal --set dropout=2": ("dropout=2", "0 to 0.99"),
    "--method cdal --set recycle=2": ("recycle=2", "0 to 1"),
    "--method cdal --set attention=input --set attention_level=4": ("attention_level=4", "last block is 3"),
    "--seed -1": ("--seed", "0 or more"),
    "--val-every 0": ("--val-every", "at least 1"),
    "--patience 0": ("--patience", "at least 1"),
    "--fold 4": ("no fold 4", "0 to 3"),
    "--fold -1": ("--fold -1", "from 0 on, or all"),
    "--steps 0": ("--steps 0", "at least one"),
    "--max-minutes 0": ("--max-minutes 0",),
    "--max-minutes nan": ("--max-minutes nan",),
    "--device tpu": ("unknown device 'tpu'", "cpu"),
    "--device cuda:99": ("cuda:99", "GPUs found"),
    "--precision fp16": ("unknown precision 'fp16'", "bf16"),
    "--plan nowhere.json": ("nowhere.json", "no such file"),
}


@pytest.mark.parametrize("wish", WISHES)
def test_a_wish_that_cannot_be_met_is_one_line_and_leaves_no_folder(tmp_path, data, wish):
    refused(call(*options(data, tmp_path / "out"), *wish.split()), *WISHES[wish])
    assert not (tmp_path / "out").exists()


def test_a_patient_on_both_sides_of_a_fold_is_refused(tmp_path, data):
    described = json.loads((data / "dataset.json").read_text())
    cases = sorted(path.name.removesuffix("_0000.nii.gz") for path in (data / "imagesTr").iterdir())
    both = described | {"patients": dict.fromkeys(cases, "one") | {cases[0]: "another"}}
    (tmp_path / "data").mkdir()
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / "data" / folder).symlink_to(data / folder)
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(both))
    split = [{"train": cases[::2], "val": cases[1::2]}]
    (tmp_path / "data" / "splits_final.json").write_text(json.dumps(split))
    refused(call(*options(tmp_path / "data", tmp_path / "out")), "patients in train and in val: one", "splits_final.json")
    assert not (tmp_path / "out").exists()


CHANGES = {
    "seed": ["--seed", "1"],
    "fold, cases": ["--fold", "1"],
    "method, config": ["--method", "concat"],
    "config": ["--set", "dice=0.5"],
    "plan": ["--set", "plan.batch=1"],
    "train": ["--set", "train.ema=0.5"],
}


def test_a_folder_that_holds_a_run_is_continued_as_it_was_or_not_at_all(tmp_path, data):
    out = tmp_path / "out"
    start(data, out)
    refused(call(*options(data, out)), str(out), "already holds a run", "--resume")
    record = (out / "run.json").read_text()
    for what, change in CHANGES.items():
        refused(call(*options(data, out), "--resume", *change), str(out), f"another {what} than")
    refused(call(*options(data, out, steps=3), "--resume"), str(out), "--steps 3: the run was started with 4", "lengthen")
    assert (out / "run.json").read_text() == record
    (out / "resume.safetensors").write_bytes(b"half")
    refused(call(*options(data, out), "--resume"), "resume.safetensors", "no readable state")
    (out / "run.json").write_text(record[:100])
    refused(call(*options(data, out), "--resume"), "run.json", "JSON")


def test_a_run_of_an_older_version_is_continued_with_the_defaults_of_what_is_new(tmp_path, data, plan):
    out, given = tmp_path / "out", ["--plan", plan]
    start(data, out, plan=plan)
    record = json.loads((out / "run.json").read_text())
    del record["plan"]["raters"], record["plan"]["crop"], record["train"]["validation_cases"]
    record["plan"]["reasons"] = {}
    (out / "run.json").write_text(json.dumps(record))
    refused(call(*options(data, out), *given, "--resume", "--set", "plan.raters=union"), "another plan than")
    assert call(*options(data, out, steps=4), *given, "--resume", "--steps", "4").exit_code == 0


def test_there_must_be_a_run_to_go_on_with(tmp_path, data):
    refused(call(*options(data, tmp_path / "out"), "--resume"), str(tmp_path / "out"), "no run here", "leave out --resume")
    assert not (tmp_path / "out").exists()


def test_an_out_that_cannot_be_a_folder(tmp_path, data):
    (tmp_path / "file").write_text("here")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        refused(call(*options(data, out)), str(out), "cannot be written")
    assert (tmp_path / "file").read_text() == "here" and len(list(tmp_path.iterdir())) == 1


@pytest.fixture(scope="module")
def plan(tmp_path_factory, data) -> Path:
    """A plan of the undamaged data, so that a training reads no case before it needs it."""
    out = tmp_path_factory.mktemp("plan")
    start(data, out)
    return out / "plan.json"


def test_what_depends_on_a_wished_plan_follows_it(tmp_path, data):
    """Two dimensions need two-dimensional patches, and the plan says that it was asked for."""
    wishes = ["--set", "plan.dims=2", "--set", "train.validation_cases=1", "--steps", "1", "--device", "cpu"]
    done = call("train", data, "--out", tmp_path, "--method", "unet", *wishes)
    assert done.exit_code == 0, done.output
    plan = load_plan(tmp_path / "plan.json")
    assert plan.dims == len(plan.patch) == 2 and plan.context == 1 and plan.reasons["dims"] == "as asked for"


@pytest.mark.parametrize(
    ("wishes", "says"),
    [
        (['plan.labels={"background":0,"other":1}'], "labels comes from dataset.json"),
        (["learning_rate=1e30"], "the loss of"),
    ],
)
def test_what_would_be_ignored_or_go_wrong_in_silence_is_refused(data, tmp_path, wishes, says):
    with pytest.raises(UserError, match=says):
        loop.train(settings(data, tmp_path / "run", "unet", *wishes, steps=6))


def test_another_case_needs_a_batch_with_another_case(data, tmp_path):
    with pytest.raises(UserError, match="a batch of one has no other case"):
        start(data, tmp_path, "cdal", "x_t=other_case", "recycle=0", "plan.batch=1")


def test_a_plan_of_other_channels_or_classes_is_refused(tmp_path, spoilt, caplog):
    file, written = spoilt / "dataset.json", json.loads((spoilt / "dataset.json").read_text())
    for number in range(4):
        image = spoilt / f"imagesTr/case_{number:03d}_0000.nii.gz"
        image.with_name(image.name.replace("_0000", "_0001")).write_bytes(image.read_bytes())
    file.write_text(json.dumps(written | {"channel_names": {"0": "T1", "1": "T2"}}))
    start(spoilt, tmp_path / "one")
    plan = tmp_path / "one/plan.json"
    labels = {name if value else "clear": value for name, value in written["labels"].items()}
    for change, words in (
        ({"channel_names": {"0": "T2", "1": "T1"}}, "its channels are T2, T1, those of"),
        ({"labels": labels}, "its labels"),
        ({"labels": written["labels"] | {"ignore": 9}}, '"ignore" is none, and that of'),
    ):
        file.write_text(json.dumps(written | {"channel_names": {"0": "T1", "1": "T2"}} | change))
        refused(call(*options(spoilt, tmp_path / "two"), "--plan", plan), words)
    file.write_text(json.dumps(written | {"channel_names": {"0": "T1", "1": "ADC"}}))
    start(spoilt, tmp_path / "three", plan=plan)
    assert "its channels are T1, ADC" in caplog.text and "in the same order?" in caplog.text


def test_an_endless_time_is_refused(data, tmp_path):
    with pytest.raises(UserError, match="finite"):
        loop.train(settings(data, tmp_path / "run", steps=None, max_minutes=float("inf")))


def test_codes_of_the_classes_go_along_and_bad_ones_are_refused(tmp_path, spoilt):
    """What DICOM calls a class stands in dataset.json and is then in the checkpoint."""
    description = json.loads((spoilt / "dataset.json").read_text())
    label = next(name for name, value in description["labels"].items() if value == 1)
    for name, code in ((label, ["1", "99X", "a head"]), (label, ["1"]), ("liver", ["1", "99X", "liver"])):
        (spoilt / "dataset.json").write_text(json.dumps(description | {"codes": {name: code}}))
        if name == label and len(code) == 3:
            assert start(spoilt, tmp_path / "out").meta["codes"] == {label: {"type": ("1", "99X", "a head")}}
        else:
            refused(call(*options(spoilt, tmp_path / "out")), "dataset.json" if len(code) == 1 else "liver", "code")


def test_one_image_under_two_names_is_named(tmp_path, caplog):
    cases = tuple(Case(name, (tmp_path / f"{name}_0000.nii.gz",), None) for name in "abcd")
    dataset = Dataset(tmp_path, "x", ("MR",), {"background": 0, "h": 1}, ".nii.gz", cases, {})
    digests = {f"{name}_0000.nii.gz": text for name, text in zip("abcd", ("1", "2", "1", "4"), strict=True)}
    name_twins(dataset, {"train": ["a", "b"], "val": ["c", "d"]}, digests)
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: a, c are the same image, in train and in val: one of them is enough"
    ]
