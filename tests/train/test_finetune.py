"""Starting from a checkpoint: what fits is kept, the rest is new, the cases of both trainings are remembered."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from diffuseg.checkpoint import read_meta, save_checkpoint, weights_hash
from diffuseg.errors import UserError
from diffuseg.train import loop
from diffuseg.train.finetune import history, start_from
from tests.train.tiny import call, options, refused, settings, start


@pytest.fixture
def base(tmp_path, data, quick):
    loop.train(settings(data, tmp_path / "base", steps=2))
    return tmp_path / "base" / "last.safetensors"


def test_a_training_starts_with_the_weights_and_remembers_whose(tmp_path, data, base):
    state = start(data, tmp_path / "next", start=base)
    stored = load_file(base)
    assert all(torch.equal(value, stored[name]) for name, value in state.method.state_dict().items())
    assert all(torch.equal(value, stored[name]) for name, value in state.average.state_dict().items())
    assert state.meta["from"]["model"] == weights_hash(base) and state.meta["from"]["steps_trained"] == 2
    other = start(data, tmp_path / "fresh")
    assert any(not torch.equal(value, stored[name]) for name, value in other.method.state_dict().items())


def test_weights_of_another_width_are_new_and_named(tmp_path, data, base, caplog):
    state = start(data, tmp_path / "next", "unet", "plan.widths=4,16", start=base)
    stored, own = load_file(base), state.method.state_dict()
    same = {name for name, value in own.items() if stored[name].shape == value.shape}
    assert same and len(same) < len(own)
    assert all(torch.equal(own[name], stored[name]) for name in same)
    assert f"{len(same)} of {len(own)} tensors kept" in caplog.text and "new: network." in caplog.text


def test_a_u_net_gives_all_of_itself_but_its_last_layers_to_a_distributional_model(tmp_path, data, base):
    """Its image encoder and U-Net have the same names and shapes there; the light part is new."""
    state, stored = start(data, tmp_path / "next", "distributional", start=base), load_file(base)
    own = state.method.state_dict()
    kept = {name for name in stored if name in own and torch.equal(own[name], stored[name])}
    assert {name.rpartition(".")[0] for name in stored.keys() - kept} == {"network.norm.norm", "network.last"}
    assert {name.split(".")[0] for name in own.keys() - stored.keys()} == {"generator", "mapping", "network"}


def test_what_validation_cases_would_have_taught_is_refused(tmp_path, data, base):
    """A checkpoint of fold 0 has been trained on the validation cases of fold 1."""
    result = call(*options(data, tmp_path / "next"), "--fold", 1, "--from", base)
    refused(result, "was trained on", "validation cases", "Give the fold")


def test_cases_of_the_first_training_are_those_of_the_second_too(base):
    seen = read_meta(base)["training_cases"]
    new = {"training_cases": {"another": "0" * 16}, "validation_cases": {"third": "1" * 16}}
    assert history(base, new)["training_cases"] == seen | {"another": "0" * 16}
    (case, digest), *_ = seen.items()
    with pytest.raises(UserError, match="was trained on 1 of the validation cases \\(again\\)"):
        history(base, new | {"validation_cases": {"again": digest, "other": "1" * 16}})
    twice = {"training_cases": {case: digest}, "validation_cases": {"again": digest}}  # two names of one image in the new data
    assert history(base, twice)["training_cases"] == seen


def test_a_checkpoint_of_which_nothing_fits_is_refused(tmp_path, data, base):
    result = call(*options(data, tmp_path / "next", "concat", "plan.widths=6,12"), "--from", base)
    refused(result, base.name, "no weight fits")


def test_channels_in_another_order_are_refused(tmp_path, data, base):
    meta, method = read_meta(base), start(data, tmp_path / "next").method
    save_checkpoint(tmp_path / "two.safetensors", method, meta | {"plan": meta["plan"] | {"channels": ["T1", "T2"]}})
    method.plan = replace(method.plan, channels=("T2", "T1"))
    with pytest.raises(UserError, match="its channels are T1, T2, here T2, T1"):
        start_from(method, tmp_path / "two.safetensors")
