"""Render the tables of README and docs from benchmarks/results/*.json; with --check, fail where they differ.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; NAME is a function below.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffuseg.evaluation.statistics import paired_difference
from diffuseg.train.checkpoint import model_hash, read_meta

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PEOPLE = {"one rater, copied": "one_rater", "raters drawn with replacement": "resampled_raters"}
WEAK_RULES = ("quantile 0.97, largest", "published: Otsu")
FULL = "U-Net from masks"
SIDES = ("before", "after")
CONTROLS = ["unet", "ours", "noise", "leaking", "other", "nolatent", "plain", "label", "input"]
PLACE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def _load(name: str) -> dict[str, Any]:
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        raise SystemExit(f"{path.relative_to(ROOT)} is not there: run the benchmark that writes it")
    return json.loads(path.read_text())


def _grid(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _dice(row: dict[str, Any]) -> str:
    return f"{row['dice']:.3f} [{row['dice_low']:.3f}, {row['dice_high']:.3f}]"


def _difference(row: dict[str, Any], bar: dict[str, Any]) -> str:
    """Mean over cases of row - bar with its interval; both were measured on the same cases."""
    cases = sorted(bar["dice_per_case"])
    found = paired_difference(*([r["dice_per_case"][case] for case in cases] for r in (row, bar)))
    return f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def _named(row: dict[str, Any]) -> str:
    return f"`{row['method']}`" + (f", {row['what']}" if row.get("what") else "")


def hippocampus() -> str:
    """Methods beside each other on fold 0, single draw and mean of eight."""
    rows = []
    for row in _load("hippocampus_fold0")["rows"]:
        rows.append([
            _named(row), str(row["steps"]) if row["method"] != "unet" else "-", str(row["draws"]), _dice(row),
            *(f"{v:.3f}" for v in row["dice_per_class"].values()), str(row["evaluations_per_case"]),
            f"{row['parameters'] / 1e6:.1f} M", str(row["training_steps"]),
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
    ]
    return _grid(head, rows)


def differences() -> str:
    """Each method at its own number of steps against the U-Net, case by case."""
    found = _load("hippocampus_fold0")["rows"]
    bar = next(row for row in found if row["method"] == "unet")
    rows = []
    for row in found:
        if row["method"] != "unet" and row["steps"] == row["default_steps"]:
            rows.append([_named(row), str(row["steps"]), str(row["draws"]), _difference(row, bar)])
    return _grid(["method", "steps", "draws", "Dice minus that of the U-Net [95 % CI, paired]"], rows)


def shipped() -> str:
    """The packaged model alone, at its own number of steps."""
    rows = []
    for row in _load("hippocampus_fold0")["rows"]:
        if row["method"] == "cdal" and row["model"] not in _weights("hippocampus"):
            raise SystemExit("the scores of cDAL are not those of the packaged model: run benchmarks.score on it")
        if row["method"] == "cdal" and row["steps"] == row["default_steps"]:
            rows.append(
                [str(row["draws"]), _dice(row), *(f"{v:.3f}" for v in row["dice_per_class"].values()), str(row["cases"])]
            )
    return _grid(["draws", "Dice [95 % CI]", "anterior", "posterior", "cases"], rows)


def _weights(name: str) -> list[str]:
    """Hashes of all files with the weights of a packaged model: itself, and what it was before its header was amended."""
    path = ROOT / "src" / "diffuseg" / "models" / f"{name}.safetensors"
    return [model_hash(path), *read_meta(path).get("amended", [])]


def shipped_calibration() -> str:
    """What the packaged model's own calibration did, scored on cases that it was not learnt from."""
    found = _load("hippocampus_calibration")
    if found["model"] not in _weights("hippocampus"):
        raise SystemExit("the calibration is not that of the packaged model: run `diffuseg calibrate` on it")
    rows = [
        [
            f"{title}, in the band round the border",
            *(f"{found['scores']['band'][name][side]['mean']:.3f}" for side in SIDES),
            "",
        ]
        for name, title in (("ece", "calibration error"), ("nll", "NLL (nats)"))
    ]
    for name, sides in found["coverage"].items():
        cells = [
            f"{sides[side]['fraction']['mean']:.2f} ({sides[side]['mean_width_ml']:.2f} ml)" for side in ("raw", "widened")
        ]
        ends = sides["widened"]["fraction"]
        rows.append(
            [f"true volume inside the 90 % interval, {name} (width)", *cells, f"[{ends['low']:.2f}, {ends['high']:.2f}]"]
        )
    return _grid(["", "before", "after", "95 %"], rows)


def shipped_doubt() -> str:
    """Whether sending the most doubtful cases to a human lowers the error of the rest."""
    found = _load("hippocampus_calibration")["selective"]
    text = {key: "{mean:.4f} [{low:.4f}, {high:.4f}]".format(**value) for key, value in found.items() if key != "fraction"}
    rows = [["1 - Dice of all cases", text["risk"]], ["of the rest", text["rest"]], ["what that takes off", text["gain"]]]
    return _grid([f"the {found['fraction']:.0%} most doubtful cases sent away", "[95 % CI]"], rows)


def ablation() -> str:
    """What each measure of cDAL does, from short trainings judged on cases set aside from the training fold."""
    found = {row["name"]: row for row in _load("cdal_ablation")["rows"]}
    chosen = [row for name, row in found.items() if name not in CONTROLS[2:]]
    return _ablation(chosen, found["unet"])


def controls() -> str:
    """The controls that ask whether diffusion does anything."""
    found = {row["name"]: row for row in _load("cdal_ablation")["rows"]}
    return _ablation([found[name] for name in CONTROLS if name in found], found["unet"])


def _ablation(chosen: list[dict[str, Any]], bar: dict[str, Any]) -> str:
    rows = []
    for row in chosen:
        numbers = [
            f"{row[key]:.3f}" if row.get(key) is not None else "-" for key in ("one", "mean", "one_step", "nll", "disagreement")
        ]
        rows.append([row["what"], f"`{row['set']}`" if row["set"] else "", *numbers, _difference(row, bar)])
    head = ["what", "--set", "one draw", "mean of 4", "one draw, 1 step", "NLL", "changed voxels", "difference"]
    return _grid(head, rows)


def speed() -> str:
    """Ratios within one run."""
    content = _load("speed")
    rows = [[r["what"], f"{r['ratio']:.2f}", r["means"]] for r in content["rows"]]
    steps = {r["what"].split()[3]: r["seconds_fp32"] for r in content["rows"] if "seconds_fp32" in r}
    rows.append(["training step of cDAL", f"{steps['cdal'] / steps['unet']:.2f}", "over one of the U-Net, both in float32"])
    where = content["environment"]
    return _grid(["measured", "ratio", "of what to what"], rows) + f"\n{where['threads']} threads, {where['precision']}.\n"


def doubt() -> str:
    """Which number of a case finds the bad ones."""
    found = _load("hippocampus_doubt")
    rows = [
        [row["number"], f"{row['mean']:.3f}", f"{row['spearman']:+.2f}", _ends(row["gain"], 4), f"{row['excess_aurc']:.4f}"]
        for row in found["rows"]
    ]
    sent = f"error (1 - Dice, mean {found['risk']:.3f}) taken off by sending {found['fraction']:.0%} away [95 % CI]"
    return _grid(["number", "its mean", "rank correlation with the error", sent, "excess AURC"], rows)


def raters() -> str:
    """Draws against the raters of LIDC: methods, what raters reach, and what knows nothing of shapes."""
    found = _load("lidc_raters")["rows"]
    plain = _plain(found)
    rows = [[row["name"], *_against(row["draws"])] for row in found]
    rows.append(["softmax of the U-Net, each pixel by itself", *_against(plain["pixelwise"])])
    rows += [[name, *_against(plain[source])] for name, source in PEOPLE.items()]
    return _grid(["draws of", *(f"GED, {n} draws" for n in (4, 16, 32)), "HM-IoU", "max. Dice"], rows)


def raters_quality() -> str:
    """The mean probability of the draws, and the masks made of them, against the same raters."""
    rows = []
    for row in _load("lidc_raters")["rows"]:
        mean = row["mean"]
        measures = [mean["dice"], mean["dice_fused"], mean["ece_band"], row["aurc"]]
        calls = row["evaluations_per_draw"] * row["n"] if row["dropout"] or row["method"] != "unet" else len(row["models"])
        rows.append([row["name"], *map(_ends, measures), str(calls), f"{sum(row['training_steps'])}"])
    head = [
        "draws of",
        "Dice of the mean's mask",
        "Dice of `--fuse dice`",
        "ECE in the band",
        "AURC, by doubt",
        "network calls",
    ]
    return _grid([*head, "training steps"], rows)


def raters_differences() -> str:
    """Each diffusion model against the bars, case by case, patients as units."""
    found = _load("lidc_raters")["rows"]
    plain, several = _plain(found), next((row for row in found if len(row["models"]) > 1), None)
    bars = {"softmax of the U-Net": plain["per_case"]["pixelwise"]}
    bars |= {several["name"]: several["per_case"]["draws"]} if several else {}
    rows = []
    for row in found:
        if row["method"] != "unet":
            one = plain["per_case"]["mean"]["dice"]
            overlaps = [_paired(row, row["per_case"]["mean"][key], one) for key in ("dice", "dice_fused")]
            for name, bar in bars.items():
                cells = [_paired(row, row["per_case"]["draws"][key], bar[key]) for key in ("ged_16", "hm_iou")]
                rows.append([row["name"], name, *cells, *overlaps])
    head = [
        "draws of",
        "minus",
        "GED-16 (below 0: better)",
        "HM-IoU (above 0: better)",
        "Dice of the mean, minus that of one U-Net",
        "Dice of `--fuse dice`, minus that of one U-Net",
    ]
    return _grid(head, rows)


def _plain(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return next(row for row in rows if row["method"] == "unet" and len(row["models"]) == 1 and not row["dropout"])


def _paired(row: dict[str, Any], first: list[float], second: list[float]) -> str:
    found = paired_difference(first, second, row["patient_of_case"])
    return f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def _against(source: dict[str, Any]) -> list[str]:
    return [_ends(source[key]) for key in ("ged_4", "ged_16", "ged_32", "hm_iou", "maximum_dice")]


def _ends(found: dict[str, Any], digits: int = 3) -> str:
    return "{mean:.{d}f} [{low:.{d}f}, {high:.{d}f}]".format(**found, d=digits)


def weak() -> str:
    """Masks from image-level labels: every map, on the half of the validation patients on which nothing was chosen."""
    rows = []
    for row in _load("weak")["maps"]:
        best, rules = row["best"], row["rules"]
        fixed = [f"{rules[name]['dice'][0]:.3f}" if name in rules else "-" for name in WEAK_RULES]
        at = rules[best]
        cells = [
            _mean_of(at["dice"]),
            f"{at['iou'][0]:.3f}",
            f"{at['hd95_mm'][0]:.0f}",
            *fixed,
            _mean_of(at["dice_all_slices"]),
        ]
        ap = [f"{row['ap'][0]:.3f}", _mean_of(row["ap_smoothed"])]
        rows.append([row["map"], *ap, best, *cells, str(row["evaluations"]), f"{row['seconds']:.1f}"])
    head = [
        "map",
        "AP, raw",
        "AP, smoothed [95 % CI]",
        "best rule",
        "Dice [95 % CI]",
        "IoU",
        "HD95",
        "Dice, 0.97",
        "Dice, Otsu",
    ]
    return _grid([*head, "Dice, all slices [95 % CI]", "evaluations", "CPU s / image"], rows)


def weak_differences() -> str:
    """The best sensitivity map (by the Dice on which it was chosen) against the bars, paired over patients."""
    content = _load("weak")
    found = {row["map"]: row for row in content["maps"]}
    chosen = lambda row: row["rules"][row["best"]].get("dice_chosen", 0.0)
    overlaps = lambda row: list(row["rules"][row["best"]]["dice_per_case"].values())
    bars = {name: row for name, row in found.items() if row["rules"][row["best"]].get("dice_chosen") is not None}
    maps = {n: r for n, r in bars.items() if n.startswith(("levels", "accumulated", "shared", "one level"))}
    cams = {n: r for n, r in bars.items() if ", layer" in n}
    ours = max(maps, key=lambda name: chosen(maps[name]))
    kinds = [{n: r for n, r in bars.items() if n.startswith(kind)} for kind in ("guided count", "classifier-free count")]
    best = [max(rows, key=lambda name, rows=rows: chosen(rows[name])) for rows in (cams, *kinds) if rows]
    against = [*(n for n in bars if n.startswith(("intensity", "position"))), *best]
    pairs = [(ours, name) for name in against] + [(n, ours) for n in found if n not in bars and n != FULL]
    rows = []
    for first, second in pairs:
        change = paired_difference(overlaps(found[first]), overlaps(found[second]), content["patients"])
        rows.append([first, second, f"{change.mean:+.3f} [{change.low:+.3f}, {change.high:+.3f}]"])
    return _grid(["Dice of", "minus Dice of", "difference [95 % CI over patients]"], rows)


def weak_ablation() -> str:
    """CDM one setting at a time, on the half of the patients on whom choices are made."""
    head = ["map", "what", "value", "AP, raw", "AP, smoothed [95 % CI]", "Dice, default rule [95 % CI]", "evaluations"]
    rows = []
    for point in _load("weak_ablation")["points"]:
        cells = [f"{point['ap'][0]:.3f}", _mean_of(point["ap_smoothed"]), _mean_of(point["dice"]), str(point["evaluations"])]
        rows.append([f"`{point['map']}`", point["knob"], f"{point['value']:g}", *cells])
    return _grid(head, rows)


def weak_verdicts() -> str:
    """Whether an image shows the object: who says so how well, on the same half."""
    content = _load("weak")
    rows = [
        [name, f"{v['auc']:.3f}", _mean_of(v["accuracy"]), _mean_of(v["accuracy_at_0"])]
        for name, v in content["verdicts"].items()
    ]
    return _grid(["judge", "AUC", "accuracy, threshold of the other half [95 % CI]", "accuracy as it is [95 % CI]"], rows)


def _mean_of(interval: list[float]) -> str:
    mean, low, high = interval
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


SHOWN: tuple[Callable[[], str], ...] = (
    hippocampus, differences, shipped, shipped_calibration, shipped_doubt, doubt, ablation, controls, speed,
    raters, raters_quality, raters_differences, weak, weak_differences, weak_ablation, weak_verdicts,
)  # fmt: skip
TABLES = {f.__name__: f for f in SHOWN}


def render(text: str) -> str:
    """The text with every table made anew."""
    return PLACE.sub(lambda m: m[1] + TABLES[m[2]]() + m[3], text)


def main() -> int:
    """Write the tables, or with --check say which file disagrees with the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    cards = sorted((ROOT / "src" / "diffuseg" / "models").glob("*.md"))
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *cards]:
        text = path.read_text()
        new = render(text)
        if new != text:
            stale.append(path.relative_to(ROOT))
            if not check:
                path.write_text(new)
    for path in stale:
        print(f"{path}: {'does not agree with benchmarks/results; run `make tables`' if check else 'rendered'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
