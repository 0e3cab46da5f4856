"""Several models as one, and images that are mirrored too: the mean of what each gives, and nothing else."""

import gc
import json
from dataclasses import asdict, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from diffuseg.checkpoint import save_checkpoint
from diffuseg.cli import app
from diffuseg.errors import UserError
from diffuseg.inference.calibration import Calibration
from diffuseg.inference.ensemble import interval
from diffuseg.inference.model import load
from diffuseg.inference.sampling import SamplingOptions, mirrors
from diffuseg.inference.several import load_models, models_and_inputs
from diffuseg.methods import METHODS, Method
from diffuseg.pulse import watching
from diffuseg.types import Image
from tests.inference.oracle import Certain, Oracle, make_model, make_plan

LEARNT = Calibration(2.0, {}, 0.5, 0.1, {"draws": 2, "steps": 1, "sampler": "ancestral", "fuse": "mean"}, "made", 0, 5, 5)
PLAN = make_plan(patch=(8, 8, 8), widths=(4, 4), normalisation=("zscore",), intensity=())


def write_model(path: Path, seed: int, method: str = "concat", plan=PLAN, **meta) -> Path:
    torch.manual_seed(seed)
    save_checkpoint(path, METHODS[method](plan, METHODS[method].config_class()), {"name": f"made/{seed}", "fold": seed} | meta)
    return path


def scan(seed: int = 0) -> Image:
    return Image(np.random.default_rng(seed).normal(size=(1, 6, 5, 7)).astype(np.float32))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Three folds, untrained, of which each has met other images."""
    folder = tmp_path_factory.mktemp("run")
    for fold in range(3):
        (folder / f"fold_{fold}").mkdir()
        side = {"training_cases": {"a": f"t{fold}"}, "validation_cases": {"b": f"v{fold}"}}
        prints = {"fingerprint": {"cases": 2, "ranges": {"x": [fold, fold + 1]}, "volume_ml": {"organ": [1.0, 2.0 + fold]}}}
        write_model(folder / f"fold_{fold}/best.safetensors", fold, calibration=asdict(LEARNT), **side, **prints)
    return folder


def files(run: Path) -> list[Path]:
    return [run / f"fold_{fold}/best.safetensors" for fold in range(3)]


def test_the_mean_of_several_models_with_the_draws_that_each_makes_alone(run):
    joint = load_models(files(run), "cpu").predict(scan(), draws=2, steps=1, seed=3, keep_draws=True)
    alone = [load(file, "cpu").predict(scan(), draws=2, steps=1, seed=3, calibrate=False) for file in files(run)]
    np.testing.assert_allclose(joint.probability, np.mean([p.probability for p in alone], 0), atol=1e-6)
    assert joint.provenance["draws"] == 6
    assert joint.provenance["seeds"] == [seed for p in alone for seed in p.provenance["seeds"]]
    assert [member["hash"] for member in joint.provenance["members"]] == [p.provenance["model"] for p in alone]
    assert joint.provenance["network_evaluations"] == sum(p.provenance["network_evaluations"] for p in alone)
    assert joint.draws is not None
    ml = [float((draw == 3).sum()) / 1000 for draw in joint.draws]
    (low, high), own = interval(ml), joint.provenance["volume_ml"]["organ"]
    np.testing.assert_allclose(joint.provenance["volume_ml_90"]["organ"], (min(low, own), max(high, own)), atol=1e-6)
    assert "calibration" not in joint.provenance


def test_the_order_in_which_models_are_given_does_not_matter(run):
    one, other = load_models(files(run), "cpu"), load_models(files(run)[::-1], "cpu")
    assert one.hash == other.hash and one.hash not in [load(file, "cpu").hash for file in files(run)]
    assert (one.predict(scan(), draws=1, steps=1).probability == other.predict(scan(), draws=1, steps=1).probability).all()
    assert (one.predict(scan(), draws=1, steps=1).probability == one.predict(scan(), draws=1, steps=1).probability).all(), (
        "and again"
    )


def test_one_model_at_a_time_is_in_memory(run):
    gc.collect()
    before = sum(isinstance(thing, Method) for thing in gc.get_objects())
    model = load_models(files(run), "cpu")
    model.predict(scan(), draws=1, steps=1)
    gc.collect()
    assert sum(isinstance(thing, Method) for thing in gc.get_objects()) == before + 1


def test_what_any_model_has_met_was_met(run):
    meta = load_models(files(run), "cpu").meta
    assert set(meta["training_cases"].values()) == {"t0", "t1", "t2"}
    assert set(meta["validation_cases"].values()) == {"v0", "v1", "v2"}
    assert meta["fingerprint"] == {"cases": 2, "ranges": {"x": [0, 3]}, "volume_ml": {"organ": [1.0, 4.0]}}


def test_models_that_do_not_belong_together_are_refused(tmp_path, run):
    first = files(run)[0]
    other = lambda **changes: write_model(tmp_path / "other.safetensors", 5, **changes)
    for changes, says in (
        ({"plan": replace(PLAN, labels={"background": 0, "tumour": 1})}, "classes background, tumour differ"),
        ({"plan": replace(PLAN, spacing=(1.0, 1.0, 2.0))}, r"plan \(spacing\)"),
        ({"method": "unet"}, "its method is unet, that of .* concat"),
    ):
        with pytest.raises(UserError, match=says):
            load_models([first, other(**changes)], "cpu")
    load_models([first, other(plan=replace(PLAN, reasons={"patch": "another reason"}))], "cpu")
    with pytest.raises(UserError, match="given twice"):
        load_models([first, first], "cpu")


def test_leading_arguments_that_are_models_or_runs_are_models(run, tmp_path):
    expected = [str(file) for file in files(run)]
    folds = [str(run / f"fold_{fold}") for fold in range(3)]
    assert models_and_inputs([str(run), "scans"]) == (expected, [Path("scans")])
    assert models_and_inputs([*folds, "a.nii", str(tmp_path)]) == (expected, [Path("a.nii"), tmp_path])
    assert models_and_inputs([*expected, "a.nii"]) == (expected, [Path("a.nii")])
    assert models_and_inputs(["hippocampus", "a.nii"]) == (["hippocampus"], [Path("a.nii")])
    with pytest.raises(UserError, match="all arguments are models"):
        models_and_inputs(folds)
    for model in (*folds, str(run), "hippocampus"):
        with pytest.raises(UserError, match=r"scans: neither a checkpoint, .*\. The model comes first: `diffuseg"):
            models_and_inputs(["scans", model])


def test_the_command_takes_several_folds(run, tmp_path):
    nib.save(nib.Nifti1Image(scan().data[0], np.eye(4)), tmp_path / "a.nii.gz")
    folds = [str(run / f"fold_{fold}") for fold in range(3)]
    given = [
        *folds,
        str(tmp_path / "a.nii.gz"),
        "--out",
        str(tmp_path / "out"),
        "--draws",
        "1",
        "--steps",
        "1",
        "--device",
        "cpu",
    ]
    done = CliRunner().invoke(app, ["predict", *given])
    assert done.exit_code == 0, done.output
    assert "3 models: 3 times the cost, 3 x 1 draws" in done.output
    record = json.loads((tmp_path / "out/a.json").read_text())
    assert record["draws"] == 3 and [member["fold"] for member in record["members"]] == [0, 1, 2]


class Left(Certain):
    """Looks at the neighbour on the left: what is not the same in a mirror."""

    def draw(self, image, seeds, **options):
        yield from super().draw(0.5 * (image + image.roll(1, 1)), seeds, **options)


def flipped(image: Image, axis: int) -> Image:
    return replace(image, data=np.ascontiguousarray(np.flip(image.data, 1 + axis)))


def intensities() -> Image:
    return Image(10.0 * np.random.default_rng(0).integers(0, 2, (1, 6, 5, 4)))


def test_of_a_model_that_is_the_same_in_a_mirror_nothing_changes():
    model = make_model(method=Certain, flips=(0, 1))
    plain, mirrored = model.predict(intensities()), model.predict(intensities(), mirror=True)
    assert (plain.probability == mirrored.probability).all() and (plain.mask == mirrored.mask).all()
    assert (plain.provenance["draws"], mirrored.provenance["draws"]) == (1, 4)
    assert mirrored.provenance["options"] == {"mirror": True} and plain.provenance["options"] == {}


@pytest.mark.parametrize("mirror", [False, True])
def test_the_evaluations_that_progress_counts_on_are_those_that_are_made(run, tmp_path, mirror):
    """Else the bar would end before all draws are made, or long after."""
    flips = write_model(tmp_path / "flips.safetensors", 0, plan=replace(PLAN, flips=(0, 1)))
    model = load(flips, "cpu") if mirror else load_models(files(run), "cpu")
    options, shares = SamplingOptions(draws=2, steps=3, mirror=mirror), []
    with watching(shares.append), torch.no_grad():
        model.predict(scan(), options)
    assert sum(shares) == pytest.approx(model.passes(options)) == 2 * 3 * (4 if mirror else 3)


def test_of_a_model_that_is_not_the_result_is_mirrored_with_the_image():
    model = make_model(method=Left, flips=(0,))
    image, turned = intensities(), flipped(intensities(), 0)
    plain = [model.predict(each).probability for each in (image, turned)]
    assert not (plain[0] == np.flip(plain[1], 1)).all()
    both = [model.predict(each, mirror=True).probability for each in (image, turned)]
    np.testing.assert_allclose(both[0], np.flip(both[1], 1), atol=1e-7)
    np.testing.assert_allclose(both[0], (plain[0] + np.flip(plain[1], 1)) / 2, atol=1e-7)


def test_only_what_the_plan_allows_is_mirrored_and_never_left_and_right():
    assert mirrors(make_plan(flips=(0, 2)), True) == [(), (0,), (2,), (0, 2)]
    assert mirrors(make_plan(dims=2, slice_axis=1, patch=(4, 4), flips=(0, 1)), True) == [(), (0,), (2,), (0, 2)]
    assert mirrors(make_plan(dims=2, orientation=None, patch=(4, 4), flips=(1,)), False) == [(), (1,)]
    sides = {"background": 0, "left lung": 1, "right lung": 2}
    assert mirrors(make_plan(flips=(0, 2), labels=sides), True) == [(), (2,)], "the first axis of RAS is left and right"
    for plan, volume in (
        (make_plan(reasons={"flips": "Anatomy is not symmetric."}), True),
        (make_plan(flips=(0,), labels=sides), True),
        (make_plan(dims=2, orientation=None, patch=(4, 4), flips=(0, 1), labels=sides), False),
    ):
        with pytest.raises(UserError, match="may not be mirrored"):
            mirrors(plan, volume)


def test_a_calibration_is_not_applied_to_mirrored_draws():
    model = make_model(noise=0.3, method=Oracle, flips=(0,))
    learnt = {key: model.settings(draws=4)[key] for key in ("draws", "steps", "sampler", "fuse")}
    calibration = replace(LEARNT, settings=learnt)
    assert not calibration.mismatch(model.settings(draws=4))
    assert "mirrored" in calibration.mismatch(model.settings(draws=2, mirror=True)), "though there are four draws"
