"""Which checkpoint a name means: the same rule for every command that takes a model."""

from pathlib import Path

import pytest
from typer.main import get_command

from diffuseg.cli import app
from diffuseg.errors import UserError
from diffuseg.inference.checkpoints import model_file, model_paths, one_model, run_folder
from diffuseg.inference.model import load
from tests.inference.test_several import write_model
from tests.test_cli import call, refused


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run, and a folder of two."""
    folder = tmp_path_factory.mktemp("trained")
    for place in ("one", "all/fold_0", "all/fold_1"):
        (folder / place).mkdir(parents=True)
        write_model(folder / place / "best.safetensors", len(place))
        (folder / place / "last.safetensors").write_bytes((folder / place / "best.safetensors").read_bytes())
    return folder


def test_a_run_is_its_best_checkpoint_and_a_file_is_itself(run):
    best = run / "one/best.safetensors"
    assert one_model(run / "one") == one_model(best) == str(best)
    assert one_model(run / "one/last.safetensors") == str(run / "one/last.safetensors")
    assert load(run / "one").hash == load(best).hash and load(run / "one").name == load(best).name
    assert model_paths(str(run / "all")) == [str(run / f"all/fold_{n}/best.safetensors") for n in (0, 1)]
    assert model_file("hippocampus").is_file() and one_model("hippocampus") == "hippocampus"


def test_a_run_is_the_folder_of_any_of_its_checkpoints(run):
    assert run_folder(run / "one") == run_folder(run / "one/best.safetensors") == run / "one"
    with pytest.raises(UserError, match=r"2 models, and one is asked for\. Give one, such as .*fold_0"):
        run_folder(run / "all")


def test_what_is_no_single_model_says_what_to_give(run, tmp_path):
    with pytest.raises(UserError, match=r"2 models, and one is asked for\. Give one, such as .*fold_0"):
        one_model(run / "all")
    with pytest.raises(UserError, match=r"Did you mean hippocampus\? Packaged models: hippocampus"):
        one_model("hipocampus")
    write_model(tmp_path / "last.safetensors", 0)
    with pytest.raises(UserError, match=r"no validation of this training is done.*Give .*last\.safetensors"):
        one_model(tmp_path)
    (tmp_path / "last.safetensors").rename(tmp_path / "mine.safetensors")
    with pytest.raises(UserError, match=r"nor a run.*Give the file, such as .*mine\.safetensors"):
        one_model(tmp_path)


# a command -> what stands after the model, so that the first thing to be wrong is what comes after it
COMMANDS = {
    "predict": ("{out}/none.nii.gz", "--out", "{out}/p"),
    "curve": ("{out}/none",),
    "calibrate": ("{out}/none",),
    "postprocess": ("{out}/none",),
    "ambiguity": ("{out}/none",),
    "pseudo-label": ("{out}/none", "--out", "{out}/p"),
    "calibrate-saliency": ("{out}/none",),
    "export": ("--out", "{out}/p", "--format", "none"),
    "serve": ("--folder", "{out}/none"),
    "audit": ("{out}/none",),
    "crossval": ("{out}/none", "--out", "{out}/p"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_a_run(command, run, tmp_path):
    """What each complains about is what follows the model, or what a training would have left beside it."""
    rest = [text.format(out=tmp_path) for text in COMMANDS[command]]
    (run / "one/run.json").write_text('{"fold": 0}')
    for model in (run / "one", run / "one/best.safetensors"):
        found = call(command, model, *rest)
        refused(found, "none")
        assert "nor a run" not in found.stderr and "this is a folder" not in found.stderr


def test_info_and_a_training_take_a_run(run, tmp_path):
    assert call("info", run / "one").output == call("info", run / "one/best.safetensors").output
    refused(call("info", run / "all"), "2 models", "Give one")
    refused(call("view", run / "one"), "there is no result", "predict with it first")


def test_no_command_that_takes_a_model_is_left_out():
    takes = {name for name, one in get_command(app).commands.items() for p in one.params if p.name in ("model", "models")}  # type: ignore[attr-defined]
    assert takes - {"border", "push"} == set(COMMANDS) - {"audit", "crossval"}
