"""Methods of other packages: registered by a decorator or an entry point, they are trained, stored and drawn from as ours."""

import inspect
import sys
from importlib.metadata import EntryPoint

import numpy as np
import pytest

from diffuseg.checkpoint import load_checkpoint
from diffuseg.data.synthetic import make_dataset
from diffuseg.errors import UserError
from diffuseg.evaluation.metrics import METRICS, Grid, Metric, Rule, measure
from diffuseg.methods import METHODS, Method, register_method, registry
from tests.contract import test_methods
from tests.train.tiny import call

TINY = EntryPoint("tiny", "tests.contract.tiny_method:Tiny", registry.ENTRY_POINTS)
SHORT = ("--steps", 3, "--device", "cpu", "--precision", "fp32")
PLAN = [part for wish in ("plan.patch=8,8,8", "plan.batch=2") for part in ("--set", wish)]


@pytest.fixture
def installed(monkeypatch):
    """As if a package with this entry point were installed, and nothing of it imported yet."""
    monkeypatch.setattr(registry, "entry_points", lambda group: [TINY] if group == registry.ENTRY_POINTS else [])
    monkeypatch.setattr(METHODS, "_installed", None)
    monkeypatch.setattr(METHODS, "_methods", {name: cls for name, cls in METHODS._methods.items() if name != "tiny"})
    monkeypatch.delitem(sys.modules, "tests.contract.tiny_method", raising=False)


def test_an_entry_point_is_listed_before_it_is_imported(installed):
    assert "tiny" in METHODS and list(METHODS)[-1] == "tiny" and len(METHODS) == len(list(METHODS))
    assert "tests.contract.tiny_method" not in sys.modules
    assert METHODS["tiny"].__name__ == "Tiny" and METHODS["tiny"] is METHODS["tiny"]
    assert len(inspect.getsource(sys.modules["tests.contract.tiny_method"]).splitlines()) < 100


def test_a_method_from_outside_trains_and_predicts_by_the_commands(installed, tmp_path):
    data = make_dataset(tmp_path / "data", cases=6, shape=(10, 12, 9), test_cases=1)
    done = call("train", data, "--out", tmp_path / "run", "--method", "tiny", *SHORT, *PLAN, "--set", "T=3")
    assert done.exit_code == 0, done.output
    checkpoint = tmp_path / "run/last.safetensors"
    method, _, meta = load_checkpoint(checkpoint)
    assert meta["method"] == "tiny" and meta["config"]["T"] == 3 and type(method) is METHODS["tiny"]
    done = call("predict", checkpoint, data / "imagesTs", "--out", tmp_path / "out", "--draws", 2, "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert list((tmp_path / "out").glob("case_*.json"))


@pytest.mark.parametrize("check", [
    test_methods.test_same_seed_same_draw_alone_or_among_others,
    test_methods.test_gradients_reach_exactly_the_modules_of_the_phase,
    test_methods.test_a_loss_is_a_function_of_batch_and_generator,
    test_methods.test_a_few_steps_of_training_lower_the_loss,
])  # fmt: skip
def test_the_contract_holds_for_a_method_from_outside(installed, check):
    check("tiny")


def test_a_measure_that_is_added_to_the_dictionary_is_measured(monkeypatch):
    precision = lambda p, t, spacing, rule: float((p & t).sum() / p.sum())
    monkeypatch.setitem(METRICS, "precision", Metric("precision", "", 3, "highest", precision))
    truth = np.zeros((4, 4, 4), int)
    truth[1:3] = 1
    prediction = np.ones_like(truth)
    (score,) = measure(prediction, truth, {"organ": 1}, Grid((1.0, 1.0, 1.0), 1e-3), Rule()).values()
    assert score.values["precision"] == 0.5


def test_two_methods_of_one_name_are_refused_and_the_first_one_stays(monkeypatch):
    monkeypatch.setattr(METHODS, "_methods", dict(METHODS._methods))
    before = METHODS["concat"]
    with pytest.raises(UserError, match="'concat' is there already"):

        @register_method("concat")
        class Other(Method):
            pass

    assert METHODS["concat"] is before
    assert register_method("concat")(before) is before  # a module that is imported again


def test_an_unknown_name_is_no_method():
    assert "none" not in METHODS and METHODS.get("none") is None
    with pytest.raises(KeyError):
        METHODS["none"]
