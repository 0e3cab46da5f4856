"""Settings as JSON and by --set; former names of settings keep working."""

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from diffuseg import config
from diffuseg.checkpoint import load_checkpoint
from diffuseg.config import from_dict, override, to_dict
from diffuseg.data.plan import Plan
from diffuseg.errors import UserError
from diffuseg.methods import METHODS
from diffuseg.methods.weak.base import SaliencyCalibration
from diffuseg.methods.weak.cdm import CDMConfig


@dataclass(frozen=True)
class Settings:
    aliases: ClassVar[dict[str, str]] = {"speed": "rate", "kind=old": "kind=new", "gone": ""}
    removed: ClassVar[dict[str, str]] = {"kind=better": "kind=other", "colour": ""}

    rate: float = 1.0
    kind: Literal["new", "other"] = "new"


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch):
    monkeypatch.setattr(config, "_WARNED", set())


def test_what_is_stored_is_read_by_present_and_former_names_without_a_word(caplog):
    assert from_dict(Settings, {"speed": 2, "kind": "old", "gone": 3}) == Settings(2.0, "new")
    assert from_dict(Settings, to_dict(Settings(3.0, "other"))) == Settings(3.0, "other")
    assert not caplog.records


def test_a_former_name_that_is_typed_works_and_is_warned_of_once(caplog):
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert override(Settings(), ["speed=2", "kind=old", "gone=1"]) == Settings(2.0, "new")
    assert [record.getMessage() for record in caplog.records] == [
        "--set speed=2: now called --set rate=2",
        "--set kind=old: now called --set kind=new",
        "--set gone=1: this setting is gone",
    ]
    caplog.clear()
    assert override(Settings(), ["rate=2", "kind=other"]) == Settings(2.0, "other") and not caplog.records


def test_a_stored_option_that_is_gone_is_named_with_what_is_used_instead(caplog):
    with caplog.at_level(logging.WARNING):
        assert from_dict(Settings, {"kind": "better", "colour": "red"}, file=Path("a.json")) == Settings(kind="other")
    assert [record.getMessage() for record in caplog.records] == [
        "a.json: kind=better: this option is gone; kind=other is used",
        "a.json: colour=red: this option is gone; left out",
    ]


def test_an_option_that_is_gone_is_refused_where_it_is_typed():
    with pytest.raises(UserError, match=r"--set kind=better: this option is gone\. Give kind=other"):
        override(Settings(), ["kind=better"])
    with pytest.raises(UserError, match=r"--set colour=red: this option is gone\. Leave it out"):
        override(Settings(), ["colour=red"])


def test_other_names_are_refused_whatever_was_renamed():
    for key in ("velocity", "kinds"):
        with pytest.raises(UserError, match=f"unknown setting '{key}'"):
            override(Settings(), [f"{key}=1"])
        with pytest.raises(UserError, match=f"unknown setting '{key}'"):
            from_dict(Settings, {key: 1})


def test_every_alias_leads_to_a_setting_that_is_there():
    for cls in [*(method.config_class for method in METHODS.values()), SaliencyCalibration]:
        for old, new in (getattr(cls, "aliases", {}) | getattr(cls, "removed", {})).items():
            name, _, value = new.partition("=")
            assert not new or name in cls.__dataclass_fields__, (cls, old)
            if value:
                key, _, former = old.partition("=")
                assert getattr(from_dict(cls, {key: former}), name) == value


def test_settings_of_a_former_version_load_from_a_checkpoint():
    """The golden checkpoint of cDAL has a key that has another name now."""
    method, _, meta = load_checkpoint("tests/golden/checkpoints/cdal.safetensors")
    assert "hardest" in meta["config"] and method.config.p_terminal_timestep == meta["config"]["hardest"]


def test_a_calibration_of_maps_is_read_by_the_former_names_of_its_header():
    how = {"map": "levels", "steps": 3, "smooth": 1.0, "part": "signed", "switch": None, "support": 2.0}
    old = {"how": how, "border": {"a": 0.1}, "peak": {"a": 0.5}, "images": 7}
    read = SaliencyCalibration.read(old, CDMConfig)
    settings = {"map": "likelihood_ratio", "steps": 3, "smooth": 1.0, "part": "signed", "support": 2.0}
    assert read == SaliencyCalibration(settings, {"a": 0.1}, {"a": 0.5}, 7)
    assert SaliencyCalibration.read(to_dict(read), CDMConfig) == read


def test_a_calibration_of_maps_with_an_option_that_is_gone_fits_no_maps():
    now = {"map": "published", "steps": 3, "part": "signed"}
    for gone in ({"map": "shared"}, {"part": "positive"}, {"switch": "scaled"}):
        entry = {"settings": now | gone, "null_threshold": {}, "detection_threshold": {}, "images": 7}
        assert SaliencyCalibration.read(entry, CDMConfig).settings != now
    assert SaliencyCalibration.read(entry | {"settings": now | {"switch": "full"}}, CDMConfig).settings == now


def test_a_list_of_one_needs_no_comma():
    plan = Plan(dataset="made", channels=("c",), labels={"background": 0}, file_ending=".png", dims=2)
    assert override(plan, ["normalisation=zscore", "widths=8"]) == dataclasses.replace(
        plan, normalisation=("zscore",), widths=(8,)
    )
    with pytest.raises(UserError, match="normalisation"):
        override(plan, ["normalisation=mean"])
