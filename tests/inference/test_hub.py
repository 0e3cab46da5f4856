"""Models on the hub, with its client as it is and a folder in place of the network."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from diffuseg.checkpoint import FORMAT, image_digest, read_meta, save_checkpoint, seen_in, weights_hash
from diffuseg.cli import app
from diffuseg.errors import UserError
from diffuseg.inference import hub
from diffuseg.inference.info import describe
from diffuseg.inference.model import load
from diffuseg.methods import METHODS
from tests.inference.oracle import make_plan


@pytest.fixture
def there(tmp_path, monkeypatch):
    """What the hub has, by the name of the repository; calls have the arguments that the real ones take."""
    place, private = tmp_path / "hub", {}

    def create_repo(self, repo_id, *, private: bool, exist_ok, **_):
        there.private[repo_id] = private
        return f"https://hub/{repo_id}"

    def upload_folder(self, *, repo_id, folder_path, **_):
        shutil.copytree(folder_path, place / repo_id)

    def get_paths_info(self, repo_id, paths, **_):
        if not (place / repo_id).is_dir():
            raise huggingface_hub.errors.HFValidationError("404 Not\nFound")
        found = [path for path in paths if (place / repo_id / path).exists()]
        return [SimpleNamespace(path=path, size=there.size or (place / repo_id / path).stat().st_size) for path in found]

    def hf_hub_download(repo_id, filename, *, local_dir, **_):
        (Path(local_dir) / ".cache").mkdir(exist_ok=True)
        return shutil.copy(place / repo_id / filename, Path(local_dir) / filename)

    there = SimpleNamespace(place=place, private=private, size=0)
    for name, call in (("create_repo", create_repo), ("upload_folder", upload_folder), ("get_paths_info", get_paths_info)):
        real = getattr(huggingface_hub.HfApi, name)
        monkeypatch.setattr(huggingface_hub.HfApi, name, mock.create_autospec(real, side_effect=call))
    real = huggingface_hub.hf_hub_download
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", mock.create_autospec(real, side_effect=hf_hub_download))
    monkeypatch.chdir(tmp_path)
    return there


@pytest.fixture
def run(tmp_path):
    """A run whose cases have the names of people."""
    scan = tmp_path / "miller_anna_0000.nii.gz"
    scan.write_bytes(b"voxels")
    method = METHODS["unet"](make_plan(patch=(8, 8, 8), widths=(4, 8)), METHODS["unet"].config_class())
    cases = {"training_cases": {"miller_anna": image_digest(scan)}, "validation_cases": {"smith_john": "0" * 16}}
    about = {"name": "made/unet", "steps_trained": 7, "validation": {"dice": 0.5, "cases": 1}}
    save_checkpoint(tmp_path / "run" / "best.safetensors", method, cases | about)
    return tmp_path / "run"


def call(*arguments):
    return CliRunner().invoke(app, [str(one) for one in arguments])


def test_a_model_comes_back_as_it_went_without_the_names_of_its_cases(there, run, tmp_path):
    pushed = call("push", run, "owner/kidney")
    assert pushed.exit_code == 0 and "https://hub/owner/kidney" in pushed.stdout and there.private == {"owner/kidney": True}
    assert sorted(path.name for path in (there.place / "owner/kidney").iterdir()) == ["README.md", "model.safetensors"]
    contents = b"".join(path.read_bytes() for path in (there.place / "owner/kidney").iterdir())
    assert b"anna" not in contents and b"john" not in contents
    pulled = call("pull", "owner/kidney")
    assert pulled.exit_code == 0 and "predict kidney IMAGES" in pulled.stdout
    file = tmp_path / "kidney" / "best.safetensors"
    assert weights_hash(file) == weights_hash(run / "best.safetensors")
    scan = np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32)
    here, back = (load(one, "cpu").predict(scan, spacing=(1, 1, 1)).probability for one in (run / "best.safetensors", file))
    np.testing.assert_array_equal(here, back)
    assert seen_in(read_meta(file), tmp_path / "miller_anna_0000.nii.gz") == "training"
    card = (tmp_path / "kidney" / "best.md").read_text()
    assert describe(file)["model_card"] and "organ" in card and "| 1 case of" in card and "dice 0.500" in card
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".pull")] == []


def test_a_packaged_model_goes_with_its_own_card(there):
    assert hub.push("hippocampus", "owner/h", public=True) == "https://hub/owner/h" and there.private == {"owner/h": False}
    assert "Vanderbilt" in (there.place / "owner/h/README.md").read_text()


def test_what_a_stranger_has_put_there_is_checked_before_it_has_a_name(there, tmp_path):
    (there.place / "owner/bad").mkdir(parents=True)
    save_file({"a": torch.zeros(3)}, there.place / "owner/bad/model.safetensors", metadata={"format": FORMAT, "diffuseg": "{"})
    with pytest.raises(UserError, match="JSON"):
        hub.pull("owner/bad")
    there.size = 10**12
    with pytest.raises(UserError, match="at most"):
        hub.pull("owner/bad")
    (there.place / "owner/bad/model.safetensors").rename(there.place / "owner/bad/pytorch_model.bin")
    with pytest.raises(UserError, match=r"no model\.safetensors"):
        hub.pull("owner/bad")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hub"]


def test_what_the_hub_refuses_is_one_line(there, run):
    refused = call("pull", "owner/none")
    assert refused.exit_code == 2 and refused.stderr.count("\n") == 1 and "HFValidationError: 404 Not Found" in refused.stderr
    (run / "kidney").mkdir()
    with pytest.raises(UserError, match="there already"):
        hub.pull("owner/kidney", run)
    with pytest.raises(UserError, match="neither a checkpoint"):
        hub.push("none", "owner/kidney")


def test_without_the_client_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"diffuseg\[hub\]"):
        hub.pull("owner/kidney")
