"""Trainings from image-level labels: no mask is needed, none is read, and the denoising error chooses the checkpoint."""

import csv
import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from diffuseg.train.checkpoint import load_checkpoint, read_meta
from diffuseg.train.prepare import TrainSettings, prepare
from diffuseg.train.validate import HeldOut, validate
from tests.train.tiny import call, options, refused

WISHES = ["plan.widths=4,8", "plan.batch=4", "plan.patch=16,16", "T=20", "train.validation_cases=0"]


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """Ten grey pictures of noise without masks, half of them with a bright spot; labels in a table."""
    folder = tmp_path_factory.mktemp("pictures")
    rng, rows = np.random.default_rng(0), ["case,label"]
    (folder / "imagesTr").mkdir()
    for number in range(10):
        picture = rng.normal(90, 10, (16, 16))
        if number % 2:
            picture[4:9, 5:10] += 120
        PIL.Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / f"imagesTr/p{number}_0000.png")
        rows.append(f"p{number},{'spot' if number % 2 else 'background'}")
    (folder / "image_labels.csv").write_text("\n".join(rows) + "\n")
    described = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "spot": 1}, "file_ending": ".png"}
    (folder / "dataset.json").write_text(json.dumps(described))
    return folder


def command(data: Path, out: Path, *more: object, steps: int = 4) -> list[str]:
    wishes = [part for wish in WISHES for part in ("--set", wish)]
    fixed = ["--method", "cdm", "--device", "cpu", "--precision", "fp32", "--steps", str(steps)]
    return ["train", str(data), "--out", str(out), *fixed, *wishes, *map(str, more)]


def test_a_data_set_without_masks_trains_and_validates(pictures, tmp_path):
    done = call(*command(pictures, tmp_path / "run", "--val-every", "2"))
    assert done.exit_code == 0, done.output
    with (tmp_path / "run/log.csv").open() as file:
        errors = [float(row["validation/error"]) for row in csv.DictReader(file) if row["validation/error"]]
    meta = read_meta(tmp_path / "run/best.safetensors")
    assert len(errors) == 2 and meta["validation"]["error"] == min(errors) and meta["validation"]["cases"] == 2
    resumed = call(*command(pictures, tmp_path / "run", "--val-every", "2", "--resume"))
    assert resumed.exit_code == 0, resumed.output
    table = pictures.parent / "other.csv"
    table.write_text((pictures / "image_labels.csv").read_text().replace("p1,spot", "p1,background"))
    refused(call(*command(pictures, tmp_path / "run", "--resume", "--labels", table)), "--resume", "image_labels")


@pytest.mark.parametrize(
    ("method", "wish", "kind"), [("cdm", (), "flips"), ("cdm", ("plan.augmentation=mr",), "mr"), ("cam", (), "mr")]
)
def test_a_model_of_images_does_not_learn_made_up_intensities_unless_asked_to(pictures, tmp_path, method, wish, kind):
    wishes = [w for w in WISHES if method == "cdm" or not w.startswith("T=")]
    plan = prepare(TrainSettings(pictures, method, tmp_path / "run", steps=1, set=[*wishes, *wish], device="cpu")).plan
    assert plan.augmentation == kind and (kind == "mr" or "would also learn" in plan.reasons["augmentation"])


def test_a_classifier_beside_it_trains_in_a_phase_of_its_own_and_class_maps_train_too(pictures, tmp_path):
    both = call(*command(pictures, tmp_path / "both", "--set", "classifier_widths=4,8"))
    assert both.exit_code == 0, both.output
    with (tmp_path / "both/log.csv").open() as file:
        assert {"network/loss", "classifier/loss", "classifier/right"} <= set(next(csv.reader(file)))
    maps = command(pictures, tmp_path / "cam")
    maps[maps.index("cdm")] = "cam"
    maps[maps.index("T=20") - 1 : maps.index("T=20") + 1] = []
    done = call(*maps)
    assert done.exit_code == 0, done.output
    assert read_meta(tmp_path / "cam/best.safetensors")["validation"]["error"] > 0


def test_a_data_set_without_masks_has_a_plan(pictures, tmp_path):
    refused(call("plan", pictures, "--out", tmp_path / "plan.json"), "missing mask")
    done = call("plan", pictures, "--image-labels", "--out", tmp_path / "plan.json")
    assert done.exit_code == 0 and (tmp_path / "plan.json").is_file(), done.output


def test_validation_reads_no_mask_and_repeats_itself(pictures, tmp_path):
    run = prepare(TrainSettings(pictures, "cdm", tmp_path / "run", steps=1, set=WISHES, device="cpu", precision="fp32"))
    first, again = (validate(run.average, run.batches, run.validation) for _ in range(2))
    assert isinstance(first, HeldOut) and first == again and first.score == -first.error
    assert 0 <= first.right_label <= 1
    # Its error is the mean of what the method says of each held-out image under its own label.
    labels = run.batches.labels
    each = [
        run.average.held_out(run.batches.of([case]).image(case), number)[labels[case]]
        for number, case in enumerate(run.validation.cases)
    ]
    assert first.error == pytest.approx(float(torch.stack(each).mean()))


def test_a_model_without_masks_predicts(pictures, tmp_path):
    done = call(*command(pictures, tmp_path / "run", steps=1))
    assert done.exit_code == 0, done.output
    method, plan, _ = load_checkpoint(tmp_path / "run/last.safetensors")
    assert plan.classes == 2
    p = next(iter(method.draw(torch.randn(1, 16, 16), seeds=[0])))
    assert p.shape == (2, 16, 16) and p.min() >= 0 and torch.allclose(p.sum(0), torch.ones(16, 16))


def test_labels_are_for_methods_that_learn_from_them(pictures, data, tmp_path):
    table = pictures / "image_labels.csv"
    refused(call(*options(data, tmp_path / "run"), "--labels", table), "--labels", "learns from masks")
    assert not (tmp_path / "run").exists()
    one = tmp_path / "one.csv"
    one.write_text(table.read_text().replace("spot", "background"))
    refused(call(*command(pictures, tmp_path / "run", "--labels", one)), "spot")
