"""`diffuseg info`, and `--json`: one object on the output, everything else on the error output."""

import json
from dataclasses import dataclass, fields

import numpy as np
import pytest
import torch

from diffuseg.checkpoint import load_checkpoint, save_checkpoint, weights_hash
from diffuseg.config import override
from diffuseg.data.plan import Plan
from diffuseg.data.synthetic import make_dataset
from diffuseg.methods import METHODS
from diffuseg.methods.base import setting
from diffuseg.methods.settings import meanings_of, settings_of
from diffuseg.train.settings import TrainConfig
from tests.inference.oracle import make_plan
from tests.test_cli import call, refused

SHAPE = (10, 12, 9)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    labels = {"background": 0, "head": 1, "tail": 2}
    plan = make_plan(patch=SHAPE, widths=(8, 8), normalisation=("zscore",), intensity=(), labels=labels)
    torch.manual_seed(0)
    meta = {"name": "made/concat", "fold": 1, "steps_trained": 7, "training_cases": {"a": "0", "b": "1"}, "seed": 3}
    path = tmp_path_factory.mktemp("run") / "best.safetensors"
    save_checkpoint(path, METHODS["concat"](plan, METHODS["concat"].config_class()), meta)
    return path


def only_json(*arguments):
    """What a command prints with --json: one line that is an object."""
    done = call(*arguments, "--json")
    assert done.exit_code == 0, done.output
    assert done.stdout.count("\n") == 1, done.stdout
    return json.loads(done.stdout), done.stderr


def test_a_model_tells_what_it_is(checkpoint):
    found, shown = only_json("info", checkpoint)
    method, plan, _ = load_checkpoint(checkpoint)
    assert (found["name"], found["method"], found["classes"]) == ("made/concat", "concat", plan.labels)
    assert (found["hash"], found["file"], found["channels"]) == (weights_hash(checkpoint), str(checkpoint), ["MR"])
    assert found["parameters"] == sum(value.numel() for value in method.state_dict().values())
    assert found["plan"]["patch"] == list(SHAPE) and found["plan"]["orientation"] == "RAS"
    training = found["training"]
    assert (training["steps"], training["fold"], training["seed"], training["training_cases"]) == (7, 1, 3, 2)
    assert found["draws"] == {"default": {"draws": 8, "steps": 10}, "recommended": None} and found["calibration"] is None
    assert "made/concat" in shown


def test_the_packaged_model_says_licence_calibration_and_where_its_card_is():
    found, _ = only_json("info", "hippocampus")
    assert found["licence"] == "CC-BY-SA 4.0" and found["model_card"].endswith("hippocampus.md")
    assert found["calibration"]["settings"]["draws"] == 32 and found["fingerprint"]["cases"] == 166


def test_what_is_not_known_of_a_model_is_a_dash():
    shown = call("info", "hippocampus").stdout
    assert "weighted_for: - " in shown, "no cases count more than others"
    assert [line for line in shown.split("\n") if line.rstrip(" │").endswith(":")] == []


def test_without_a_name_there_are_lists():
    found, shown = only_json("info")
    assert found["models"] == ["hippocampus"] and list(found["methods"]) == list(METHODS)
    assert "distributional" in shown and "anterior, posterior" in shown
    for text in found["methods"].values():
        assert text.endswith(".") and len(text.split()) > 8 and not any(sign in text for sign in ("x_t", "->", "(+)", "=", "|"))
    refused(call("info", "liver"), "liver", "Models: hippocampus", "Methods: unet, ssn, concat")


@pytest.mark.parametrize("name", METHODS)
def test_every_setting_of_a_method_is_listed_with_a_default_that_set_takes(name):
    found, _ = only_json("info", name)
    listed = {one["name"]: one for one in found["settings"]}
    config = METHODS[name].config_class
    assert {field.name for field in fields(config)} <= set(listed)
    assert {f"train.{field.name}" for field in fields(TrainConfig)} <= set(listed)
    assert (
        {"plan.dims", "plan.patch", "plan.steps"}
        <= set(listed)
        <= {
            *(field.name for field in fields(config)),
            *(f"train.{field.name}" for field in fields(TrainConfig)),
            *(f"plan.{field.name}" for field in fields(Plan)),
        }
    )
    assert [key for key, one in listed.items() if not one["meaning"]] == []
    for field in fields(config):
        assert override(config(), [f"{field.name}={json.dumps(listed[field.name]['default'])}"]) == config()


def test_meanings_are_read_from_docstrings_of_the_class_and_those_above_it():
    @dataclass(frozen=True)
    class Below:
        """What is shared.

        one, two   first of all
                   and more
        nothing    that is a field
        """

        one: int = 1
        two: float = setting(2.0, 0, 3)

    @dataclass(frozen=True)
    class Above(Below):
        """two: second after all"""

        three: tuple[int, ...] | None = None

    assert meanings_of(Below) == {"one": "first of all and more", "two": "first of all and more"}
    assert meanings_of(Above) == {"one": "first of all and more", "two": "second after all"}
    one, two, three = settings_of(Above, "x.")
    assert (one.name, one.default, one.type) == ("x.one", 1, "whole number")
    assert two.type == "number, 0 to 3" and three.type == "list of whole number or null" and three.meaning == ""


def test_commands_whose_output_scripts_read_print_one_object(tmp_path, checkpoint):
    data = make_dataset(tmp_path / "data", cases=3, shape=SHAPE)
    found, shown = only_json("plan", data, "--out", tmp_path / "plan.json")
    assert found["plan"] == json.loads((tmp_path / "plan.json").read_text()) and found["file"] == str(tmp_path / "plan.json")
    assert "reason" in shown
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"no image")
    predict = ("predict", checkpoint, data / "imagesTr", "--out", tmp_path / "out", "--draws", 1, "--steps", 1)
    found, shown = only_json(*predict)
    assert len(found["finished"]) == 3 and found["failed"] == [] and found["out"] == str(tmp_path / "out")
    done = call(*predict[:2], broken, *predict[3:], "--json")
    assert done.exit_code == 2 and json.loads(done.stdout)["failed"][0][0] == "broken"
    found, _ = only_json("evaluate", tmp_path / "out", data / "labelsTr", "--out", tmp_path / "eval")
    written = json.loads((tmp_path / "eval/summary.json").read_text())
    assert found == written and np.isfinite(found["cases"])


def test_a_refusal_leaves_the_output_empty(tmp_path):
    done = call("evaluate", tmp_path, tmp_path, "--out", tmp_path / "out", "--json")
    refused(done)
    assert done.stdout == ""
