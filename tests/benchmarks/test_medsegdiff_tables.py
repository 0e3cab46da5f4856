"""The tables of benchmarks/tables/medsegdiff.py and the picture of its curves, of made-up results."""

import json
from typing import Any

import pytest

from benchmarks import figures
from benchmarks.tables import grid
from benchmarks.tables import medsegdiff as tables


@pytest.fixture
def keep(tmp_path, monkeypatch):
    """Write results where the tables look for them."""
    monkeypatch.setattr(grid, "RESULTS", tmp_path)
    return lambda name, content: (tmp_path / f"{name}.json").write_text(json.dumps(content))


def cells(table: str) -> list[list[str]]:
    """The cells of the lines below the head, up to an empty line."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.split("\n\n")[0].strip().split("\n")]
    assert len({len(line) for line in lines}) == 1 and set(lines[1]) == {"---"}
    return lines[2:]


def score(v: float) -> dict[str, Any]:
    """The same Dice in each of four cases."""
    return {"dice": v, "dice_low": v, "dice_high": v, "dice_per_case": {f"case{i}": v for i in range(4)}}


def row(name: str, *values: float) -> dict[str, Any]:
    """A row whose every case has the same Dice: of one draw, and of 25 draws and their STAPLE where there are draws."""
    counts = ("one draw", "mean of 25", "staple of 25")[: len(values)]
    return {"name": name, "what": name, "scores": {n: score(v) for n, v in zip(counts, values, strict=True)}}


def test_a_part_that_is_out_is_compared_with_its_own_whole(keep):
    rows = [row("unet", 0.5), row("concat", 0.1, 0.2, 0.3), row("v1", 0.6, 0.7, 0.8), row("v1_plain", 0.1, 0.2, 0.4)]
    rows += [row("v2", 0.9, 0.9, 0.9), row("v2_no_anchor", 0.8, 0.8, 0.7), row("v2_condition", 0.85)]
    rows += [row("v1_long", 0.3, 0.4, 0.4)]
    keep("isic_medsegdiff", {"rows": rows})
    found = {name: [value.split(" ")[0] for value in values] for name, *values in cells(tables.medsegdiff_isic_differences())}
    assert found == {
        "concat": ["-0.400", "-0.300", "", "+0.100"],
        "v1": ["+0.100", "+0.200", "", "+0.100"],
        "v1_plain": ["-0.400", "-0.300", "-0.500", "+0.200"],
        "v2": ["+0.400", "+0.400", "", "+0.000"],
        "v2_no_anchor": ["+0.300", "+0.300", "-0.100", "-0.100"],
        "v2_condition": ["+0.350", "", "-0.050", ""],
        "v1_long": ["-0.200", "-0.100", "", "+0.000"],
    }


def test_folds_are_paired_case_by_case_and_pooled(keep):
    for name, (unet, v1) in zip(tables.FOLDS, ((0.5, 0.6), (0.5, 0.4), (0.2, 0.5)), strict=True):
        keep(name, {"rows": [row("unet", unet), row("v1", v1), row("v1_published", 0.5)]})
    found = {what: [value.split(" ")[0] for value in values] for what, *values in cells(tables.medsegdiff_isic_folds())}
    assert found["V1 - U-Net"] == ["+0.100", "-0.100", "+0.300", "+0.100"]
    assert found["without the residual - with it"] == ["-0.100", "+0.100", "+0.000", "+0.000"]


def test_few_steps_are_compared_with_many_of_the_same_sampler(keep):
    asked = [("ddim", 10, 0.7), ("ddim", 100, 0.8), ("ancestral", 10, 0.75), ("ancestral", 100, 0.6)]
    found = [{"sampler": s, "steps": n, "scores": {"one draw": score(0.5), "mean of 5": score(v)}} for s, n, v in asked]
    keep("isic_medsegdiff", {"samplers": found})
    assert [line[-1].split(" ")[0] for line in cells(tables.medsegdiff_isic_samplers())] == ["-0.100", "", "+0.150", ""]


def test_a_row_says_what_it_has(keep):
    of = {"evaluations_per_draw": 2, "parameters": 1_234_567, "cases": 4, "training_steps": 600}
    keep("hippocampus_medsegdiff", {"rows": [row("unet", 0.5) | of, row("v1", 0.6, 0.7, 0.8) | of]})
    unet, v1 = cells(tables.medsegdiff_hippocampus())
    assert unet == ["unet", "0.500 [0.500, 0.500]", "-", "-", "-", "-", "2", "1.23 M"]
    assert [v1[3], v1[5]] == ["0.700 [0.700, 0.700]", "0.800 [0.800, 0.800]"]
    assert "4 validation cases, 600 steps" in tables.medsegdiff_hippocampus()


def point(steps: int, draws: int, dice: float) -> dict[str, Any]:
    kept = {"dice": dice, "dice_low": dice - 0.1, "dice_high": dice + 0.1, "nll": 1.0, "brier": 0.5}
    return {"steps": steps, "draws": draws, "evaluations": steps * draws, "seconds": 2.0, "memory_mb": 700.4} | kept


CURVES = {
    "curves": [
        {"what": "V1", "sampler": "ddim", "points": [point(10, 1, 0.7), point(10, 5, 0.8), point(20, 5, 0.81)]},
        {"what": "V1", "sampler": "ancestral", "points": [point(10, 5, 0.75)]},
        {"what": "V1", "sampler": "ancestral", "points": [point(1000, 5, 0.79)]},
    ]
}


def test_the_curve_says_how_much_less_each_setting_costs(keep):
    keep("isic_medsegdiff_curve", CURVES)
    found = cells(tables.medsegdiff_isic_curve())
    assert [line[4:6] for line in found] == [
        ["10", "1/500"],
        ["50", "1/100"],
        ["100", "1/50"],
        ["50", "1/100"],
        ["5000", "all"],
    ]
    assert found[1] == ["V1", "`ddim`", "10", "5", "50", "1/100", "0.800 [0.700, 0.900]", "1.000", "0.500", "2.00", "700"]


def test_the_picture_has_a_line_for_each_sampler_and_number_of_draws():
    (axis,) = figures.sampler_curve(CURVES).axes
    drawn = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axis.get_lines()}
    assert drawn["V1, ddim, draws 1"] == ([10], [0.7]) and drawn["V1, ddim, draws 5"] == ([50, 100], [0.8, 0.81])
    assert drawn["V1, ancestral, draws 5"] == ([50, 5000], [0.75, 0.79])
    assert drawn["Dice of 1000 steps, draws 5"][1] == [0.79, 0.79]
