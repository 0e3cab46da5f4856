"""Hippocampus: methods side by side, the packaged model, cDAL part by part, speed."""

from typing import Any

import numpy as np

from benchmarks.tables.grid import RESULTS, ROOT, called, ends, grid, less, load, network_calls, scored, shares
from diffuseg.checkpoint import known_as
from diffuseg.text import pluralize

SIDES = ("before", "after")
INTERVALS = {
    "hippocampus_calibration": "`distributional`",
    "hippocampus_calibration_cdal": "`cdal`",
    "hippocampus_calibration_unet": "`unet`",
}
CONTROLS = ["unet", "ours", "noise", "leaking", "other", "nolatent", "plain", "label_kept", "input_kept", "input"]


def hippocampus() -> str:
    """Methods beside each other on fold 0, single draw and mean of eight."""
    rows, found = [], load("hippocampus_fold0")["rows"]
    bar = next(row["training_seconds"] for row in found if row["method"] == "unet")
    for row in found:
        rows.append([
            _named(row), str(row["steps"]) if row["method"] != "unet" else "-", str(row["draws"]), scored(row),
            *(f"{v:.3f}" for v in row["dice_per_class"].values()), network_calls(row["method"], row["evaluations_per_case"]),
            f"{row['parameters'] / 1e6:.1f} M", str(row["training_steps"]),
            f"{row['training_seconds'] / bar:.2f}" if row["training_seconds"] else "-",
        ])  # fmt: skip
    head = [
        "method",
        "steps",
        "draws",
        "Dice [95 % CI]",
        "anterior",
        "posterior",
        "network calls",
        "parameters",
        "training steps",
        "training time over the U-Net's",
    ]
    return grid(head, rows)


def differences() -> str:
    """Each method at its own number of steps against the U-Net, case by case."""
    found = load("hippocampus_fold0")["rows"]
    bar = next(row for row in found if row["method"] == "unet")
    rows = []
    for row in found:
        if row is not bar and row["steps"] == row["default_steps"]:
            steps = str(row["steps"]) if row["method"] != "unet" else "-"
            rows.append([_named(row), steps, str(row["draws"]), less(row, bar)])
    return grid(["method", "steps", "draws", "Dice minus that of the U-Net [95 % CI, paired]"], rows)


def shipped() -> str:
    """The packaged model alone, at its own number of steps."""
    rows, weights = [], _weights("hippocampus")
    for row in load("hippocampus_fold0")["rows"]:
        if row["model"] in weights and row["steps"] == row["default_steps"]:
            rows.append(
                [str(row["draws"]), scored(row), *(f"{v:.3f}" for v in row["dice_per_class"].values()), str(row["cases"])]
            )
    if not rows:
        raise SystemExit("no scores are those of the packaged model: run benchmarks.score on it")
    return grid(["draws", "Dice [95 % CI]", "anterior", "posterior", "cases"], rows)


def _weights(name: str) -> list[str]:
    """Hashes of all files with the weights of a packaged model: itself, and what it was before its header was amended."""
    path = ROOT / "src" / "diffuseg" / "models" / f"{name}.safetensors"
    return list(known_as(path))


def shipped_calibration() -> str:
    """What calibration does to the packaged model and to a U-Net, each scored on cases that it was not learnt from.

    Calibrated intervals cover nine of ten by construction, of any model: what tells models apart is how wide they are.
    """
    found = [load(name) for name in ("hippocampus_calibration", "hippocampus_calibration_unet")]
    if found[0]["model"] not in _weights("hippocampus"):
        raise SystemExit("the calibration is not that of the packaged model: run `diffuseg calibrate` on it")
    wide = {row["model"]: row for row in load("intervals")["rows"]}
    rows = [
        [
            f"{title}, in the band round the border",
            *(f"{one['scores']['band'][key][side]['mean']:.3f}" for one in found for side in SIDES),
        ]
        for key, title in (("ece", "calibration error"), ("nll", "NLL (nats)"))
    ]
    rows.append(["temperature", *(cell for one in found for cell in ("1", f"{one['learnt']['temperature']:.2f}"))])
    for name in found[0]["coverage"]:
        cells = [cell for one in found for cell in _width(wide[one["model"]]["classes"][name])]
        rows.append([f"width of the 90 % interval over the volume, {name}", *cells])
    return grid(["", "as it comes", "calibrated", "U-Net, as it comes", "U-Net, calibrated"], rows)


def _width(values: dict[str, Any]) -> list[str]:
    """Mean width of the draws' own interval with how many it holds, and of the calibrated one; over the mean true volume."""
    share = {kind: np.mean(shares(values, kind)) for kind in ("raw", "levels")}
    held = f" (holds {values['inside']['raw']} of {len(values['width_ml']['raw'])})"
    return [f"{share['raw']:.2f}{held}" if share["raw"] else "-", f"{share['levels']:.2f}"]


def intervals() -> str:
    """90 % volume intervals of draws that differ, beside those of near-copies: a constant share of the volume."""
    rows = []
    for file, name in INTERVALS.items():
        if not (RESULTS / f"{file}.json").exists():
            continue  # not measured yet
        found = load(file)
        draws = found["learnt"]["settings"]["draws"]
        for part, sides in found["coverage"].items():
            cells = [_covered(sides[side]) for side in ("raw", "widened")]
            rows.append([f"{name}, {pluralize(draws, 'draw')}", part, *cells])
    return grid(["model", "class", "raw: covered [95 %], mean width", "conformal: covered [95 %], mean width"], rows)


def _covered(side: dict[str, Any]) -> str:
    return "{mean:.2f} [{low:.2f}, {high:.2f}]".format(**side["fraction"]) + f", {side['mean_width_ml']:.3f} ml"


def agreement() -> str:
    """Dice of a draw with the truth and of two draws, on hippocampus, where it was measured."""
    rows = []
    for row in load("hippocampus_fold0")["rows"]:
        if row.get("agreement"):
            found = row["agreement"]
            numbers = [f"{found[key]:.3f}" for key in ("draw_truth", "draw_draw")]
            rows.append([_named(row), str(row["steps"]), str(row["draws"]), *numbers, ends(found["gap"], 3)])
    return grid(["method", "steps", "draws", "Dice, draw and truth", "Dice, two draws", "difference [95 % CI]"], rows)


def shipped_doubt() -> str:
    """Whether sending the most doubtful cases to a human lowers the error of the rest."""
    found = load("hippocampus_calibration")["selective"]
    text = {key: "{mean:.4f} [{low:.4f}, {high:.4f}]".format(**value) for key, value in found.items() if key != "fraction"}
    rows = [["1 - Dice of all cases", text["risk"]], ["of the rest", text["rest"]], ["what that takes off", text["gain"]]]
    return grid([f"the {found['fraction']:.0%} most doubtful cases sent away", "[95 % CI]"], rows)


def doubt() -> str:
    """Which number of a case finds the bad ones."""
    found = load("hippocampus_doubt")
    rows = [
        [row["number"], f"{row['mean']:.3f}", f"{row['spearman']:+.2f}", ends(row["gain"], 4), f"{row['excess_aurc']:.4f}"]
        for row in found["rows"]
    ]
    sent = f"error (1 - Dice, mean {found['risk']:.3f}) taken off by sending {found['fraction']:.0%} away [95 % CI]"
    return grid(["number", "its mean", "rank correlation with the error", sent, "excess AURC"], rows)


def ablation() -> str:
    """What each measure of cDAL does, from short trainings judged on cases set aside from the training fold."""
    found = {row["name"]: row for row in load("cdal_ablation")["rows"]}
    chosen = [row for name, row in found.items() if name not in CONTROLS[2:]]
    return _ablation(chosen, found["unet"])


def controls() -> str:
    """The controls that ask whether diffusion does anything."""
    found = {row["name"]: row for row in load("cdal_ablation")["rows"]}
    return _ablation([found[name] for name in CONTROLS if name in found], found["unet"])


COLUMNS = {
    "one": "one draw",
    "mean": "mean of 4",
    "one_step": "one draw, 1 step",
    "nll": "NLL, box",  # rows of before: voxels of a box round the object
    "band_nll": "NLL, band",  # rows of now: voxels of the band round its border
    "disagreement": "changed voxels",
    "seconds": "time",
}


def _ablation(chosen: list[dict[str, Any]], bar: dict[str, Any]) -> str:
    """Columns that some row has; times are over that of the U-Net where both were measured at one precision."""
    shown = {key: title for key, title in COLUMNS.items() if any(row.get(key) is not None for row in chosen)}
    rows = []
    for row in chosen:
        numbers = [_cell(row, key, bar) for key in shown]
        rows.append([row["what"], f"`{row['set']}`" if row["set"] else "", *numbers, less(row, bar)])
    return grid(["what", "--set", *shown.values(), "difference"], rows)


def _cell(row: dict[str, Any], key: str, bar: dict[str, Any]) -> str:
    """A number of a row, "-" where there is none."""
    value = row.get(key)
    if value is None:
        return "-"
    if key == "seconds":
        return f"{value / bar[key]:.2f}" if row.get("precision") == bar.get("precision") and bar.get(key) else "-"
    return f"{value:.3f}"


def speed() -> str:
    """Ratios within one run."""
    content = load("speed")
    machines = [_machine(row.get("environment", content["environment"])) for row in content["rows"]]
    letters = {machine: "abcdefgh"[n] for n, machine in enumerate(dict.fromkeys(machines))}
    on = [letters[machine] for machine in machines]
    rows = [[r["what"], f"{r['ratio']:.2f}", r["means"], at] for r, at in zip(content["rows"], on, strict=True)]
    compared = [(r, n) for n, r in enumerate(content["rows"]) if r["what"].startswith("training step") and "seconds_fp32" in r]
    steps = {r["what"].split()[3]: (r["seconds_fp32"], n) for r, n in compared}
    (cdal, n), (unet, _) = steps["cdal"], steps["unet"]
    rows.append(["training step of cDAL", f"{cdal / unet:.2f}", "over one of the U-Net, both in float32", on[n]])
    trained = {row["method"]: row["training_seconds"] for row in load("hippocampus_fold0")["rows"] if not row["what"]}
    whole = "over that of the U-Net, as many steps: the trainings on the page of results"
    rows.append(["whole training of cDAL", f"{trained['cdal'] / trained['unet']:.2f}", whole, ""])
    notes = "; ".join(f"{letter}: {machine}" for machine, letter in letters.items())
    return grid(["measured", "ratio", "of what to what", "on"], rows) + f"\n{notes}.\n"


def _machine(environment: dict[str, Any]) -> str:
    return f"{pluralize(environment['threads'], 'thread')}, {environment['precision']}"


def _named(row: dict[str, Any]) -> str:
    return f"`{row['method']}`" + (f", {called(row['what'])}" if row.get("what") else "")
