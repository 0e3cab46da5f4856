"""Tables of benchmarks/tables/sets.py and mutants.py, and which row of MedSegDiff is the whole of another; made-up results."""

import json
from typing import Any

import numpy as np
import pytest

from benchmarks.tables import grid
from benchmarks.tables.medsegdiff import _whole
from benchmarks.tables.mutants import mutants
from benchmarks.tables.sets import thyroid, thyroid_parts
from diffuseg.evaluation.statistics import paired_difference


@pytest.fixture
def keep(tmp_path, monkeypatch):
    """Write results where the tables look for them."""
    monkeypatch.setattr(grid, "RESULTS", tmp_path)
    return lambda name, content: (tmp_path / f"{name}.json").write_text(json.dumps(content))


def cells(table: str) -> list[list[str]]:
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.split("\n") if line.startswith("|")]
    return lines[2:]


def row(method: str, dice: list[float | None], seconds: float, what: str | None = None, calls: int = 1) -> dict[str, Any]:
    known = float(np.mean([v for v in dice if v is not None]))
    return {
        "method": method, "what": what, "steps": 2, "draws": 8, "dice": known, "dice_low": known, "dice_high": known,
        "dice_per_case": {f"case{i}": v for i, v in enumerate(dice)}, "evaluations_per_case": calls,
        "processor_seconds_per_case": 0.25, "parameters": 1_230_000, "training_steps": 1500,
        "training_processor_seconds": seconds, "cases": len(dice), "fold": 0,
    }  # fmt: skip


def test_rows_are_paired_with_the_unet_of_the_first_seed_and_cost_what_they_cost(keep):
    """A case without a value in one of the two has no part in the difference."""
    rows = [
        row("unet", [0.7, 0.8, 0.9, 0.5], 200.0, "seed 1"),
        row("unet", [0.5, 0.6, 0.7, None], 100.0),
        row("medsegdiff", [0.6, 0.7, None, 0.9], 250.0, "1000 levels", 80),
        row("distributional", [0.5, 0.6, 0.7, 0.8], 300.0, calls=32),
    ]
    rows[3]["agreement"] = {"gap": {"mean": -0.03, "low": -0.05, "high": 0.01}}
    keep("thyroid_fold0", {"rows": rows})
    table = thyroid()
    found = {line[0]: line for line in cells(table)}
    assert found["`unet`"][1] == "-" and found["`unet`"][4] == "-"
    assert found["`unet`, seed 1"][4].startswith("+0.200 [") and found["`medsegdiff`, 1000 levels"][4].startswith("+0.100 [")
    assert found["`distributional`"][4].startswith("+0.000 [")
    assert [line[6] for line in found.values()] == ["1", "1", "80", "1 and 32 light"]
    assert [line[5] for line in found.values()] == ["-", "-", "-", "-0.030 [-0.050, 0.010]"]
    assert [line[-1] for line in found.values()] == ["2.00", "1.00", "2.50", "3.00"]
    assert "4 validation cases of fold 0; last weights." in table


def test_the_interval_of_a_difference_is_over_patients_where_they_are_known(keep):
    """Images of one patient that differ alike tell as much as one image does."""
    better = [0.125, 0.125, 0.125, 0.125, 0.0, 0.03125]
    rows = [row("unet", [0.5] * 6, 100.0), row("cdal", [0.5 + d for d in better], 100.0)]
    alone = paired_difference(better, [0.0] * 6)
    together = paired_difference(better, [0.0] * 6, [0, 0, 0, 0, 1, 2])
    for patients, (mean, low, high) in [(None, alone), ([0, 0, 0, 0, 1, 2], together)]:
        keep("thyroid_fold0", {"rows": [r | {"patient_of_case": patients} for r in rows]})
        assert cells(thyroid())[1][4] == f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"
    assert together.high - together.low > alone.high - alone.low + 0.01


def test_parts_are_held_against_the_whole_of_as_many_draws(keep):
    of = lambda what, *dices, method="medsegdiff": [
        row(method, [dice, dice + 0.1], 1.0, what) | {"draws": draws} for draws, dice in zip((8, 1), dices, strict=True)
    ]
    rows = of("1000 levels, without FF-Parser", 0.5, 0.25) + of("1000 levels", 0.75, 0.625) + of("fewer", 0.1, 0.1)
    keep("thyroid_fold0", {"rows": rows + of("1000 levels", 0.25, 0.5, method="medsegdiff_v2")})
    found = [[line[0], *(cell.split(" ")[0] for cell in line[1:])] for line in cells(thyroid_parts())]
    parts = ["`medsegdiff`, 1000 levels, without FF-Parser", "-0.375", "-0.250"]
    assert found == [parts, ["`medsegdiff_v2`, 1000 levels", "-0.125", "-0.500"]]


def test_mutants_are_counted_by_package_and_survivors_are_named_with_the_reason(keep):
    rows = [
        {"name": "a", "file": "methods/x.py", "tests": "t", "killed": True},
        {"name": "b", "file": "diffusion/y.py", "tests": "t", "killed": False, "reason": "equal"},
        {"name": "c", "file": "methods/weak/z.py", "tests": "t", "killed": True},
        {"name": "d", "file": "methods/x.py", "tests": "t", "killed": True},
    ]
    keep("mutants", {"rows": rows})
    table = mutants()
    assert cells(table) == [["`diffusion`", "1", "0", "b (equal)"], ["`methods`", "3", "3", "-"]]
    assert table.endswith("\n3 of 4 seen, 75 %.\n")


@pytest.mark.parametrize(
    ("name", "whole"),
    [("v1", None), ("v1_plain", "v1"), ("v1_long", None), ("v1_long_plain", "v1_long"), ("v2_long", None), ("concat", None),
     ("v2_condition", "v2"), ("unet", None)],
)  # fmt: skip
def test_a_part_is_held_against_the_whole_of_its_own_timesteps(name, whole):
    assert _whole(name) == whole
