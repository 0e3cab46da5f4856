"""Trainings from image-level labels: no mask is needed, none is read, and the denoising error chooses the checkpoint."""

import csv
import json
from pathlib import Path
from shutil import copy

import numpy as np
import PIL.Image
import pytest
import torch
from scipy.ndimage import gaussian_filter

from diffuseg.checkpoint import load_checkpoint, read_meta
from diffuseg.data.dataset import open_dataset, splits
from diffuseg.data.io import read_image
from diffuseg.data.plan import load_plan
from diffuseg.data.transforms import to_grid
from diffuseg.methods import METHODS
from diffuseg.methods.weak.base import SCALE
from diffuseg.train import loop
from diffuseg.train.settings import TrainSettings
from diffuseg.train.setup import set_up
from diffuseg.train.validate import HeldOut, validate
from tests.train.tiny import call, options, refused, same_weights

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


def wishes_of(method: str) -> list[str]:
    """Classifiers have no levels."""
    return [wish for wish in WISHES if method == "cdm" or not wish.startswith("T=")]


def command(data: Path, out: Path, *more: object, steps: int = 4, method: str = "cdm") -> list[str]:
    wishes = [part for wish in wishes_of(method) for part in ("--set", wish)]
    fixed = ["--method", method, "--device", "cpu", "--precision", "fp32", "--steps", str(steps)]
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
    wishes = [*wishes_of(method), *wish]
    plan = set_up(TrainSettings(pictures, method, tmp_path / "run", steps=1, set=wishes, device="cpu")).plan
    assert plan.augmentation == kind and (kind == "mr" or "would also learn" in plan.reasons["augmentation"])


def test_a_classifier_beside_it_trains_in_a_phase_of_its_own_and_class_maps_train_too(pictures, tmp_path):
    both = call(*command(pictures, tmp_path / "both", "--set", "classifier_widths=4,8"))
    assert both.exit_code == 0, both.output
    with (tmp_path / "both/log.csv").open() as file:
        assert {"network/loss", "classifier/loss", "classifier/right"} <= set(next(csv.reader(file)))
    done = call(*command(pictures, tmp_path / "cam", method="cam"))
    assert done.exit_code == 0, done.output
    assert read_meta(tmp_path / "cam/best.safetensors")["validation"]["error"] > 0


def log(out: Path) -> list[dict[str, str]]:
    with (out / "log.csv").open() as file:
        return list(csv.DictReader(file))


def brightness(method, x_0, *_):
    return 1 + x_0[:, 0]


@pytest.mark.parametrize("method", ["cdm", "cam"])
def test_a_training_ends_with_a_border_of_its_own_images_and_so_does_one_that_goes_on(pictures, tmp_path, monkeypatch, method):
    monkeypatch.setattr(METHODS[method], "saliency", brightness)
    asked, out = command(pictures, tmp_path, "--val-every", "2", method=method), tmp_path
    done = call(*asked)
    assert done.exit_code == 0 and done.stdout.count("comparing the maps") == 1, done.output
    trained, plan = splits(open_dataset(pictures, masks=False))[0]["train"], load_plan(out / "plan.json")
    maps = [
        1 + (to_grid(read_image(pictures / f"imagesTr/{case}_0000.png"), plan)[0][0] * SCALE[plan.normalisation[0]]).numpy()
        for case in trained
        if int(case[1:]) % 2 == 0
    ]
    expected = np.quantile([gaussian_filter(m, 1.0, mode="nearest") for m in maps], 0.99)
    before = {}
    for name in ("best", "last"):
        file = out / f"{name}.safetensors"
        copy(file, tmp_path / f"{name}.before")
        loaded, _, before[name] = load_checkpoint(file)
        assert loaded.null_threshold(1, *loaded.sampling(None, None)) == pytest.approx(expected, rel=2e-3) and expected > 0.1
        assert before[name]["references"][-1]["images"] == len(trained)
        assert 0 < loaded.calibration.detection_threshold["spot"] < 1
    rows = log(out)
    done = call(*asked, "--resume")
    assert done.exit_code == 0, done.output
    assert log(out) == rows
    for name in ("best", "last"):
        assert same_weights(out / f"{name}.safetensors", tmp_path / f"{name}.before")
        meta = read_meta(out / f"{name}.safetensors")
        assert meta | {"amended": 0} == before[name] | {"amended": 0}


def test_the_border_is_made_by_the_labels_of_the_training(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(METHODS["cdm"], "saliency", brightness)
    table, best = tmp_path / "swapped.csv", tmp_path / "run/best.safetensors"
    swapped = {"spot": "background", "background": "spot", "label": "label"}
    rows = [row.split(",") for row in (pictures / "image_labels.csv").read_text().split()]
    table.write_text("".join(f"{case},{swapped[label]}\n" for case, label in rows))
    border = lambda: read_meta(best)["references"][-1]["null_threshold"]["spot"]
    done = call(*command(pictures, tmp_path / "run", "--labels", table, steps=1))
    assert done.exit_code == 0, done.output
    trained = border()
    assert call("border", best, pictures).exit_code == 0 and border() < 0.8 * trained
    assert call("border", best, pictures, "--labels", table).exit_code == 0 and border() == trained


def test_stopped_while_maps_are_compared_a_run_has_its_weights_and_resumes_to_its_border(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(METHODS["cdm"], "saliency", brightness)
    asked = command(pictures, tmp_path, steps=1)

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("diffuseg.train.loop.calibrate_checkpoints", stop)
        assert call(*asked).exit_code == 130
    for name in ("best", "last"):
        assert load_checkpoint(tmp_path / f"{name}.safetensors")[0].calibration is None
    done = call(*asked, "--resume")
    assert done.exit_code == 0 and len(log(tmp_path)) == 2, done.output  # a step and its validation, once
    for name in ("best", "last"):
        assert load_checkpoint(tmp_path / f"{name}.safetensors")[0].calibration.null_threshold["spot"] > 0


def test_a_training_without_a_border_says_so(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(METHODS["cdm"], "saliency", lambda method, x_0, *_: torch.zeros_like(x_0[:, 0]))
    done = call(*command(pictures, tmp_path, steps=1))
    assert done.exit_code == 0 and "Warning: saliency of training images without the object is not positive" in done.stderr
    assert "references" not in read_meta(tmp_path / "best.safetensors")


def test_the_average_follows_batch_statistics_by_hand(pictures, tmp_path):
    wishes = [*wishes_of("cam"), "train.ema=0.25"]
    run = set_up(TrainSettings(pictures, "cam", tmp_path, steps=9, set=wishes, device="cpu", precision="fp32"))
    running = lambda method: {key: v.double() for key, v in method.state_dict().items() if ".running_" in key}
    expected, start = running(run.average), running(run.average)
    for n, batch in enumerate(run.batches.iterate(0, 4)):
        loop.step(run, batch, 0.0)
        run.step += 1
        decay, new = min(0.25, (1 + n) / (10 + n)), running(run.method)
        expected = {key: decay * v + (1 - decay) * new[key] for key, v in expected.items()}
    found = running(run.average)
    assert len(found) == 2 * 6  # mean and variance of two norms in each block and one after it, at both levels
    for key, v in found.items():
        torch.testing.assert_close(v, expected[key], atol=1e-6, rtol=1e-6)
        assert not torch.equal(v, start[key]) and not torch.equal(v, new[key])


def test_a_data_set_without_masks_has_a_plan(pictures, tmp_path):
    refused(call("plan", pictures, "--out", tmp_path / "plan.json"), "missing mask")
    done = call("plan", pictures, "--image-labels", "--out", tmp_path / "plan.json")
    assert done.exit_code == 0 and (tmp_path / "plan.json").is_file(), done.output


def test_validation_reads_no_mask_and_repeats_itself(pictures, tmp_path):
    run = set_up(TrainSettings(pictures, "cdm", tmp_path / "run", steps=1, set=WISHES, device="cpu", precision="fp32"))
    first, again = (validate(run.average, run.batches, run.validation) for _ in range(2))
    assert isinstance(first, HeldOut) and first == again and first.score == -first.error
    assert 0 <= first.right_label <= 1
    # Its error is the mean of what the method says of each held-out image under its own label.
    labels = run.batches.labels
    each = [
        run.average.class_errors(run.batches.of([case]).image(case), number)[labels[case]]
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
