"""Tables for a terminal: whatever is in them can be read, and typed again."""

import io
import itertools
import json

import numpy as np
import PIL.Image
import pytest
from rich.console import Console

from diffuseg.reports.tables import text_table
from tests.test_cli import call


def printed(table, width: int) -> list[list[str]]:
    """The cells of each line, stripped."""
    text = io.StringIO()
    Console(file=text, width=width).print(table)
    lines = text.getvalue().split("\n")
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_names_stay_whole_and_no_word_is_cut_off(width):
    long = "plan.normalisation=" + ",".join(["zscore"] * 9)
    rows = [("train.checkpoint_activations", "false", long), ("lr", "0.001", "how fast it learns, in words that are many")]
    lines = printed(text_table("", ("key", "default", "meaning"), rows, right=False), width)
    assert [line[0] for line in lines if line[0]] == ["train.checkpoint_activations", "lr"]
    second = next(number for number, line in enumerate(lines) if line[0] == "lr")
    assert "".join(line[2] for line in lines[:second]) == long
    assert " ".join(line[2] for line in lines[second:]) == rows[1][2]


def test_settings_are_listed_by_the_names_that_set_takes(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = call("info", "unet").stdout
    assert "train.validation_cases " in shown and "train.checkpointing " in shown and "…" not in shown


def test_the_plan_says_in_full_what_else_can_be_chosen(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    random = np.random.default_rng(0)
    for place, case in itertools.product(("imagesTr", "labelsTr"), "abcde"):
        (tmp_path / place).mkdir(exist_ok=True)
        picture = random.integers(0, 256, (32, 32, 3)) if place == "imagesTr" else random.integers(0, 2, (32, 32))
        PIL.Image.fromarray(picture.astype(np.uint8)).save(tmp_path / place / f"{case}{'_0000' * (place == 'imagesTr')}.png")
    about = {"channel_names": {"0": "R", "1": "G", "2": "B"}, "labels": {"background": 0, "spot": 1}, "file_ending": ".png"}
    (tmp_path / "dataset.json").write_text(json.dumps(about))
    cells = [line.strip("│").split("│") for line in call("plan", tmp_path).stdout.split("\n") if line.startswith("│")]
    said = "".join(line[2].strip() for line in cells)
    assert "plan.normalisation=zscore,zscore,zscore" in said
