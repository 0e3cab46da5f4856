"""A checkpoint gives back the method that it was made of."""

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffuseg.checkpoint import amend_meta, load_checkpoint, model_hash, read_meta, save_checkpoint
from diffuseg.errors import UserError
from tests.contract.test_methods import build


def test_half_the_numbers_draw_nearly_the_same(tmp_path):
    method = build("cdal").eval()
    full, half = tmp_path / "full.safetensors", tmp_path / "half.safetensors"
    save_checkpoint(full, method, {})
    save_checkpoint(half, method, {}, dtype=torch.float16)
    assert {value.dtype for value in load_file(half).values()} == {torch.float16}
    assert half.stat().st_size < 0.6 * full.stat().st_size
    loaded, plan, _ = load_checkpoint(half)
    assert plan == method.plan and all(p.dtype == torch.float32 for p in loaded.parameters())
    image = torch.randn(2, 8, 12, 9, generator=torch.Generator().manual_seed(0))
    for one, other in zip(method.draw(image, seeds=[1, 2]), loaded.draw(image, seeds=[1, 2]), strict=True):
        torch.testing.assert_close(one, other, atol=5e-3, rtol=0)
        assert not torch.equal(one, other)


def old_cdm(path: Path, **settings) -> Path:
    """A checkpoint of CDM with these settings in its header, as a former version wrote it."""
    save_checkpoint(path, build("cdm"), {})
    amend_meta(path, {"config": read_meta(path)["config"] | settings}, model_hash(path))
    return path


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"map": "shared"}, "map=shared: this option is gone; map=published is used"),
        ({"part": "positive"}, "part=positive: this option is gone; part=signed is used"),
        ({"switch": "scaled"}, "switch=scaled: this option is gone; left out"),
    ],
)
def test_a_checkpoint_with_an_option_that_is_gone_says_what_is_used_instead(tmp_path, caplog, settings, expected):
    path = old_cdm(tmp_path / "old.safetensors", **settings)
    with caplog.at_level(logging.WARNING):
        load_checkpoint(path)
    assert [record.getMessage() for record in caplog.records] == [f"{path}: {expected}"]


def test_a_checkpoint_with_former_names_of_the_same_settings_loads_without_a_word(tmp_path, caplog):
    path = old_cdm(tmp_path / "old.safetensors", map="accumulated", switch="full", threshold="negatives")
    with caplog.at_level(logging.WARNING):
        method, _, _ = load_checkpoint(path)
    assert (method.config.map, method.config.threshold) == ("published", "null_quantile") and not caplog.records
    with pytest.raises(UserError, match=r"part=positive: this option is gone\. Give part=signed"):
        load_checkpoint(path, options=["part=positive"])


def test_the_controls_of_cdal_are_stored_under_its_name(tmp_path):
    save_checkpoint(tmp_path / "m.safetensors", build("cdal", "2d", "x_t=noise"), {})
    assert read_meta(tmp_path / "m.safetensors")["method"] == "cdal"
    assert load_checkpoint(tmp_path / "m.safetensors")[0].config.x_t == "noise"
