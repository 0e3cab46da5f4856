"""Evaluations held against each other: what is found, what is refused, what is said."""

import csv
import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from diffuseg.cli import app
from diffuseg.data.io import write
from diffuseg.errors import UserError
from diffuseg.evaluation.significance import cohens_d, first_places, holm, rank_biserial, sign_flip_test
from diffuseg.evaluation.statistics import paired_difference
from diffuseg.reports import comparison as module
from diffuseg.reports.comparison import Comparison, compare
from diffuseg.reports.evaluate import evaluate
from diffuseg.reports.tables import comparison_tables, difference_rows, mean_rows
from diffuseg.reports.titles import metric_title
from diffuseg.types import Image

CASES, CLASSES = 12, ("head", "tail")
METRIC = {"dice": 1.0, "iou": 1.0, "hd95_mm": -20.0, "nsd": 1.0, "volume_error_ml": 1.0, "relative_volume_error": 1.0}


def put(folder: Path, scores: np.ndarray, change: dict | None = None, patients: int = CASES) -> Path:
    """An evaluation as it is written, scores [case, class]; NaN for no value."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "cases.csv").open("w", newline="") as lines:
        rows = csv.writer(lines)
        volumes = ["truth_ml", "prediction_ml", "interval_low_ml", "interval_high_ml", "empty"]
        rows.writerow(["case", "patient", "class", *METRIC, *volumes])
        for case, values in enumerate(scores):
            for name, value in zip(CLASSES, values, strict=True):
                shown = ["" if math.isnan(value) else f"{value * factor:.6g}" for factor in METRIC.values()]
                rows.writerow([f"c{case:02d}", f"p{case % patients}", name, *shown, f"{1 + case / 10:.6g}", "1", "", "", ""])
    summary = {
        "cases": len(scores),
        "missing": [],
        "rule": {"empty": "nan", "means": "No value for what is in neither mask"},
        "nsd_tolerance_mm": 1.0,
        "interval": {"over": "over patients: patients.csv"},
        "seen": {"training": [], "validation": [], "neither": len(scores), "unknown": 0},
    } | (change or {})
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def made(seed: int, shift: float = 0.0) -> np.ndarray:
    hard = np.random.default_rng(0).uniform(0.5, 0.8, (CASES, 1))
    return (hard + np.random.default_rng(seed).normal(shift, 0.02, (CASES, len(CLASSES)))).round(4)


def lines_of(found: Comparison, width: int) -> list[str]:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(*comparison_tables(found), sep="\n")
    return console.export_text().splitlines()


def printed(found: Comparison) -> str:
    """All that is printed, wherever lines break."""
    return " ".join(" ".join(lines_of(found, 250)).split())


def test_each_number_is_that_of_the_cases(tmp_path: Path) -> None:
    scores = {"a": made(1), "b": made(2, 0.03), "c": made(3)}
    of = [f"p{case % 6}" for case in range(CASES)]
    folders = [put(tmp_path / name, values, patients=6) for name, values in scores.items()]
    found = compare(folders, tmp_path / "out", ["dice", "volume_error"])
    means = {name: values.mean(1) for name, values in scores.items()}
    assert [(d.metric, d.first, d.second) for d in found.differences[:3]] == [
        ("dice", "a", "b"),
        ("dice", "a", "c"),
        ("dice", "b", "c"),
    ]
    p_values = []
    for d in found.differences:
        apart = np.abs(means[d.first]) - np.abs(means[d.second])
        assert (d.mean, d.low, d.high) == pytest.approx(paired_difference(*(means[n] for n in (d.first, d.second)), of))
        p_values.append(sign_flip_test(apart, of))
        assert d.p == pytest.approx(p_values[-1]) and (d.n, d.patients, d.unpaired) == (CASES, 6, 0)
        assert (d.cohens_d, d.rank_biserial) == pytest.approx((cohens_d(apart, of), rank_biserial(apart, of)))
    assert [d.adjusted for d in found.differences] == pytest.approx(holm(p_values))
    assert list(found.first["dice"].values()) == pytest.approx(first_places(np.stack(list(means.values())), of))
    # of an error, the smallest is the best
    assert list(found.first["volume_error"].values()) == pytest.approx(first_places(-np.stack(list(means.values())), of))
    written = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert written["differences"][0]["p"] == found.differences[0].p and written["correction"] == "Holm"
    assert written["first_places"] == found.first and written["cases"] == [f"c{n:02d}" for n in range(CASES)]


def test_a_clear_difference_is_named_and_the_better_one_for_each_kind_of_metric(tmp_path: Path) -> None:
    folders = [put(tmp_path / "good", made(1, 0.1)), put(tmp_path / "bad", made(2))]
    found = compare(folders, metrics=["dice", "hd95", "volume_error"])
    dice, distance, error = found.differences
    assert dice.verdict == "good" and dice.mean > 0.05 and found.first["dice"] == {"good": 1, "bad": 0}
    assert distance.verdict == "good" and distance.mean < -1 and distance.rank_biserial == -1  # here high Dice is low HD95
    assert error.verdict == "bad", "the larger error is the worse one"
    text = printed(found)
    assert "A: good B: bad" in text and "A - B" in text and "100%" in text
    assert "HD95 (mm)" in text and "absolute volume error (ml)" in text
    assert "Holm over the 3 tests" in text and "over patients: patients.csv" in text and "unknown" not in text
    one_class = compare(folders, label="tail")
    assert one_class.label == "tail" and one_class.differences[0].mean == pytest.approx((made(1, 0.1) - made(2))[:, 1].mean())


def test_the_page_that_the_module_names_explains_every_column(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / re.search(r"docs/[\w/]+\.md", module.__doc__)[0]
    explained = set(re.findall(r"^\| ([^|]+) \|", page.read_text(), re.MULTILINE))
    found = compare([put(tmp_path / "a", made(1)), put(tmp_path / "b", made(2))])
    heads = {head.removesuffix(" [95 % interval]") for rows in (mean_rows(found), difference_rows(found)) for head in rows[0]}
    assert heads - {"metric", "evaluation", "difference"} <= explained


def test_the_tables_fit_eighty_columns_with_every_number_whole(tmp_path: Path) -> None:
    names = [f"a method with {'a very ' * 20}long name [{name}]" for name in "abc"]
    folders = [put(tmp_path / name / "evaluation", made(number, number // 2)) for number, name in enumerate(names)]
    found = compare(folders, metrics=["dice", "hd95", "relative_volume_error"])
    lines = lines_of(found, 80)
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    assert all(len(line) <= 80 for line in lines)
    assert [row[:2] for row in rows[:9]] == [
        [metric_title(metric, unsigned=True), name] for metric in found.means for name in "ABC"
    ]
    assert [row[2:] for row in rows[:9]] == [list(row[2:]) for row in mean_rows(found)[1:]]
    pairs = ["A - B", "A - C", "B - C"] * 3
    verdicts = [dict(zip(found.names, "ABC", strict=True)).get(d.verdict, d.verdict) for d in found.differences]
    expected = zip(pairs, difference_rows(found)[1:], verdicts, strict=True)
    assert rows[9:] == [[pair, *row[2:5], verdict] for pair, row, verdict in expected]
    assert {"C", "not told apart"} <= set(verdicts)


def test_two_copies_of_one_run_do_not_differ(tmp_path: Path) -> None:
    folders = [put(tmp_path / name / "evaluation", made(1)) for name in ("a", "b")]
    found = compare(folders, tmp_path / "out")
    assert found.names == [str(folder) for folder in folders]
    for d in found.differences:
        assert d.verdict == "no difference" and (d.mean, d.low, d.high, d.p, d.adjusted) == (0, 0, 0, 1, 1)
        assert d.cohens_d == d.rank_biserial == 0
    assert set(found.first["dice"].values()) == {0.5} and "no difference" in printed(found)
    assert compare([folders[0]] * 2).differences[0].verdict == "no difference"


def test_noise_is_not_told_apart(tmp_path: Path) -> None:
    found = compare([put(tmp_path / "a", made(4)), put(tmp_path / "b", made(5))])
    assert {d.verdict for d in found.differences} == {"not told apart"}
    few = compare([put(tmp_path / "c", made(4, 0.3), patients=4), put(tmp_path / "d", made(5), patients=4)])
    assert {d.verdict for d in few.differences} == {"not told apart"} and "So few patients" in printed(few)


def test_cases_without_a_value_in_one_of_the_two_are_counted(tmp_path: Path) -> None:
    one, other = made(1), made(1)
    one[3] = one[7] = other[7] = math.nan
    other[3] = 0  # a false alarm
    found = compare([put(tmp_path / "a", one), put(tmp_path / "b", other)])
    d = found.differences[0]
    assert (d.n, d.unpaired, d.verdict) == (CASES - 2, 1, "not told apart") and d.mean == 0
    assert "false alarm" in printed(found) and "--empty one" in printed(found)
    assert sum(found.first["dice"].values()) == 1


def test_means_and_differences_are_those_of_the_same_cases(tmp_path: Path) -> None:
    """Of three, one has a false alarm where the two others have no value: it counts for none of them."""
    scores = {"a": made(1), "b": made(2), "c": made(3)}
    for name in ("a", "b"):
        scores[name][4] = math.nan
    scores["c"][4] = 0
    found = compare([put(tmp_path / name, values) for name, values in scores.items()], metrics=["dice", "hd95"])
    kept = [case for case in range(CASES) if case != 4]
    for name, values in scores.items():
        assert found.means["dice"][name].mean == pytest.approx(values[kept].mean())
    for d in found.differences:
        means = found.means[d.metric]
        assert d.mean == pytest.approx(means[d.first].mean - means[d.second].mean) and (d.n, d.unpaired) == (CASES - 1, 1)
    assert "left out of means and differences alike" in " ".join(found.notes)


def test_the_mean_of_classes_is_over_those_that_all_have_a_value_for(tmp_path: Path) -> None:
    """In case 4 one has a false alarm of the first class: there the second alone is compared, and the case is counted."""
    one, other = made(1), made(2)
    one[4, 0], other[4, 0] = math.nan, 0
    d = compare([put(tmp_path / "a", one), put(tmp_path / "b", other)]).differences[0]
    expected = (one - other).mean(1)
    expected[4] = one[4, 1] - other[4, 1]
    assert d.mean == pytest.approx(expected.mean()) and (d.n, d.unpaired) == (CASES, 1)
    second = compare([tmp_path / "a", tmp_path / "b"], label=CLASSES[1]).differences[0]
    assert second.unpaired == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rule": {"empty": "one", "means": "x"}}, "empty-mask rule is one, that of"),
        ({"nsd_tolerance_mm": 2.0}, "tolerance of NSD is 2 mm, that of"),
        ({"seen": {"training": ["c03"], "validation": []}}, "its model met 1 of 12 cases in its training: c03"),
        ({"seen": {"training": [], "validation": ["c04", "c05"]}}, "its model met 2 of 12 cases in its validation"),
        ({"seen": []}, "cannot be read as an evaluation"),
        ({"rule": {}}, "cannot be read as an evaluation"),
    ],
)
def test_what_cannot_be_compared_is_refused(change: dict, says: str, tmp_path: Path) -> None:
    folders = [put(tmp_path / "a", made(1)), put(tmp_path / "b", made(2), change)]
    with pytest.raises(UserError, match=says):
        compare(folders, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    if change.get("seen"):
        allowed = compare(folders, allow_seen=True)
        assert "of its model" in " ".join(allowed.notes)


def test_other_cases_masks_and_patients_are_refused(tmp_path: Path) -> None:
    a = put(tmp_path / "a", made(1))
    with pytest.raises(UserError, match="there is nothing to compare"):
        compare([a])
    with pytest.raises(UserError, match="it lacks c11"):
        compare([a, put(tmp_path / "b", made(2)[:-1])])
    with pytest.raises(UserError, match="it has c11"):
        compare([tmp_path / "b", a])
    with pytest.raises(UserError, match="patients are not those"):
        compare([a, put(tmp_path / "c", made(2), patients=6)])
    other = put(tmp_path / "d", made(2))
    table = other / "cases.csv"
    table.write_text(table.read_text().replace(",1.3,", ",1.31,"))
    with pytest.raises(UserError, match=r"true volumes are not those of .*c03"):
        compare([a, other])
    table.write_text(table.read_text().replace("tail", "body"))
    with pytest.raises(UserError, match=r"classes are not those of .*it lacks tail and it has body"):
        compare([a, other])
    table.write_text("\n".join(table.read_text().splitlines()[:-1]))
    with pytest.raises(UserError, match="rows are missing"):
        compare([a, other])
    table.write_text("case,class\n1,2\n")
    with pytest.raises(UserError, match="cannot be read as an evaluation"):
        compare([a, other])
    with pytest.raises(UserError, match="no evaluation here"):
        compare([a, tmp_path])
    for settings, says in (
        ({"metrics": ["dise"]}, "unknown metric dise"),
        ({"metrics": []}, "no metric"),
        ({"label": "x"}, "'x'"),
    ):
        with pytest.raises(UserError, match=says):
            compare([a, a], **settings)


def test_from_masks_to_a_comparison_on_the_command_line(tmp_path: Path) -> None:
    call = lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])
    for number in range(8):
        truth = np.zeros((6, 6, 6), np.uint8)
        truth[1:5, 1:5, 1 : 3 + number % 3] = 1
        like = Image(truth[None])
        write(tmp_path / "labels" / f"{number}.nii.gz", truth, like)
        write(tmp_path / "good" / f"{number}.nii.gz", truth, like)
        write(tmp_path / "bad" / f"{number}.nii.gz", np.roll(truth, 1, 0), like)
    for name in ("good", "bad"):
        evaluate(tmp_path / name, tmp_path / "labels", tmp_path / "scores" / name)
    done = call("compare", tmp_path / "scores/good", tmp_path / "scores/bad", "--out", tmp_path / "out", "--metric", "dice")
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert found["differences"][0]["verdict"] == "good" and found["differences"][0]["p"] == pytest.approx(2 / 2**8)
    assert (
        "good: 8 cases may have been in the training of its model; it is unknown" in " ".join(found["notes"])
        and "comparison.json" in done.output
    )
    assert found["differences"][0]["cohens_d"] is None or math.isfinite(found["differences"][0]["cohens_d"])
    refused = call("compare", tmp_path / "scores/good")
    assert refused.exit_code == 2 and refused.stderr.startswith("error: there is nothing to compare")
