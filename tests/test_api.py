"""What `import diffuseg` offers: names by heart, nothing imported before it is used, `python -m diffuseg`."""

import inspect
import os
import pydoc
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import diffuseg
from diffuseg.data.synthetic import make_dataset
from diffuseg.errors import UserError
from diffuseg.inference.sampling import SamplingOptions, options_of
from diffuseg.train import loop
from tests.inference.oracle import make_model

HEAVY = ("torch", "monai", "matplotlib", "nibabel", "scipy", "SimpleITK", "numpy", "typer", "rich", "tensorboard")


def python(*arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(Path(diffuseg.__file__).parents[1])}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_costs_nothing_and_dir_shows_what_there_is():
    code = f"import sys, diffuseg; print(set(diffuseg.__all__) <= set(dir(diffuseg)), {set(HEAVY)!r} & set(sys.modules))"
    assert python("-c", code) == "True set()"


def test_python_dash_m_is_the_command():
    assert python("-m", "diffuseg", "--version") == f"diffuseg {diffuseg.__version__}"


def test_help_names_everything_that_is_offered():
    text = pydoc.plain(pydoc.render_doc(diffuseg))
    offered = {name for name in diffuseg.__all__ if not name.startswith("__")}
    assert {name for name in offered if name not in text} == set()
    for name in ("load", "plan", "predict", "evaluate", "train"):
        found = getattr(diffuseg, name)
        assert callable(found) and inspect.getdoc(found)
    assert list(inspect.signature(diffuseg.train).parameters) == ["dataset", "out", "method", "settings"]


def test_plan_evaluate_and_predict_do_what_the_commands_do(tmp_path):
    data = make_dataset(tmp_path / "data", cases=3, shape=(10, 12, 9))
    plan = diffuseg.plan(data, dims=2)
    assert (plan.dims, plan.reasons["dims"]) == (2, "as asked for")
    with pytest.raises(UserError, match="did you mean 'dims'"):
        diffuseg.plan(data, dim=2)
    found = diffuseg.evaluate(data / "labelsTr", data / "labelsTr", tmp_path / "out")
    assert found.summary["cases"] == 3 and set(found.per_case("dice").tolist()) == {1.0}
    image = np.random.default_rng(0).integers(0, 2, (6, 5, 4)) * 10
    model = make_model()
    p = diffuseg.predict(model, image, draws=2, spacing=(1, 2, 3))
    assert p.provenance["draws"] == 2 and p.image.spacing == (1, 2, 3)
    with pytest.raises(UserError, match="Packaged models"):
        diffuseg.predict("nothing", image)


def test_train_is_the_package_and_a_function(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(loop, "train", lambda settings: asked.append(settings) or tmp_path / "best.safetensors")
    best = diffuseg.train("data", tmp_path / "run", "unet", steps=7, plan="plan.json", set=["train.ema=0.9"])
    assert best == tmp_path / "best.safetensors"
    expected = loop.TrainSettings(
        Path("data"), "unet", tmp_path / "run", steps=7, plan=Path("plan.json"), set=["train.ema=0.9"]
    )
    assert asked == [expected]
    assert diffuseg.train.loop is loop
    with pytest.raises(UserError, match=r"no setting 'step'.*Did you mean steps"):
        diffuseg.train("data", "run", step=7)
    given = set(inspect.signature(loop.TrainSettings).parameters)
    assert {"steps", "fold", "max_minutes", "resume", "set"} <= given, "these are in the docstring of train"


def test_what_is_shown_at_a_prompt_is_one_line_without_arrays(tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((6, 5, 4), np.float32), np.diag([1.0, 2.0, 3.0, 1.0])), tmp_path / "scan.nii.gz")
    model = make_model()
    p = model.predict(tmp_path / "scan.nii.gz", draws=2)
    assert repr(p) == "Prediction(scan.nii.gz, organ 0.000 ml [0.000 to 0.000 raw], 2 draws, uncertainty score 0.000)"
    assert repr(p.image) == f"Image(1 of 6 x 5 x 4, float32, voxels of 1 x 2 x 3 mm, {tmp_path / 'scan.nii.gz'})"
    assert repr(model) == "Model('oracle' (000000000000), oracle, classes organ, on cpu)"


WRONG = {
    "diffuseg.load(5)": "a model is a path, not int",
    "diffuseg.plan(5)": "a data set is a path, not int",
    "diffuseg.train(None, 'x')": "a data set is a path, not NoneType",
    "diffuseg.evaluate([1], 'x')": "predictions is a path, not list. Give folders",
    "diffuseg.evaluate('x', 'y', nsd_tolerance='1 mm')": "the tolerance of NSD is a distance in mm, not 1 mm",
    "diffuseg.load('hippocampus', device=0)": "unknown device '0'",
    "diffuseg.train('x', 'y', steps='many')": "steps='many': expected whole number",
    "diffuseg.train('x', 'y', set='a=b')": "set='a=b': expected a list",
    "options_of(None, {'draws': 'many'})": "draws='many': expected whole number",
    "options_of(None, {'draws': 2.5})": "draws=2.5: expected whole number",
    "options_of(None, {'drws': 2})": "there is no option 'drws'. Did you mean draws?",
    "options_of('fast', {})": "options are SamplingOptions or a number of draws, not str",
    "options_of(4, {'seed': 'a'})": "seed='a': expected whole number",
}


def test_a_wrong_type_is_one_sentence():
    """In a process of its own: in this one types are checked before."""
    calls = "".join(f"\ntry:\n {call}\nexcept diffuseg.UserError as fault:\n print(fault)" for call in WRONG)
    said = python("-c", f"import diffuseg\nfrom diffuseg.inference.sampling import options_of{calls}").splitlines()
    assert len(said) == len(WRONG) and max(map(len, said)) < 250
    assert [line for line, expected in zip(said, WRONG.values(), strict=True) if expected not in line] == []


def test_numbers_of_numpy_are_numbers():
    assert options_of(np.int64(4), {"seed": np.int32(3), "region": Path("m.nii")}) == SamplingOptions(4, seed=3, region="m.nii")
    assert type(options_of(np.int64(4), {}).draws) is int
