"""LIDC: draws against four readers. Tables of one row per method show the first training of each; `raters_seeds` shows all."""

from typing import Any

import numpy as np

from benchmarks.tables.grid import change, ends, grid, load, network_calls

LONGER = "U-Net, as `distributional`"  # a U-Net of other settings
SEED = ", seed "  # followed by its number in the name of a row
PEOPLE = {"one rater, copied": "one_rater", "raters drawn with replacement": "resampled_raters"}


def raters() -> str:
    """Draws against the raters of LIDC: methods, what raters reach, and what knows nothing of shapes."""
    found = _first()
    plain = _plain(found)
    rows = [[row["name"], *_against(row["draws"])] for row in found]
    rows.append(["softmax of the U-Net, each pixel by itself", *_against(plain["pixelwise"])])
    rows += [[name, *_against(plain[source])] for name, source in PEOPLE.items()]
    return grid(["draws of", *(f"GED, {n} draws" for n in (4, 16, 32)), "HM-IoU", "max. Dice"], rows)


def raters_quality() -> str:
    """The mean probability of the draws, and the masks made of them, against the same raters."""
    rows = []
    for row in _first():
        mean = row["mean"]
        measures = [mean["dice"], mean["dice_fused"], mean["ece_band"], row["aurc"]]
        calls = row["evaluations_per_draw"] * row["n"] if row["dropout"] or row["method"] != "unet" else len(row["models"])
        shown = network_calls(row["method"], calls)
        rows.append([row["name"], *map(ends, measures), shown, f"{sum(row['training_steps'])}"])
    head = [
        "draws of",
        "Dice of the mean's mask",
        "Dice of `--fuse dice`",
        "ECE in the band",
        "AURC, by doubt",
        "network calls",
    ]
    return grid([*head, "training steps"], rows)


def raters_differences() -> str:
    """Each diffusion model against the bars, case by case, patients as units; those of `distributional` also against a U-Net
    that was trained as they were, for as long.
    """
    found = _first()
    plain, several = _plain(found), next((row for row in found if len(row["models"]) > 1), None)
    one = plain["per_case"]["mean"]["dice"]
    bars = {"softmax of the U-Net": (plain["per_case"]["pixelwise"], one)}
    bars |= {several["name"]: (several["per_case"]["draws"], one)} if several else {}
    longer = {
        row["name"]: (row["per_case"]["draws"], row["per_case"]["mean"]["dice"]) for row in found if LONGER in row["name"]
    }
    rows = []
    for row in found:
        if row["method"] != "unet":
            for name, (bar, mask) in (bars | (longer if row["method"] == "distributional" else {})).items():
                cells = [_paired(row, row["per_case"]["draws"][key], bar[key]) for key in ("ged_16", "hm_iou")]
                overlaps = [_paired(row, row["per_case"]["mean"][key], mask) for key in ("dice", "dice_fused")]
                rows.append([row["name"], name, *cells, *overlaps])
    head = [
        "draws of",
        "minus",
        "GED-16 (below 0: better)",
        "HM-IoU (above 0: better)",
        "Dice of the mean, minus that of the U-Net",
        "Dice of `--fuse dice`, minus that of the U-Net",
    ]
    return grid(head, rows)


def raters_agreement() -> str:
    """Whether draws agree with a rater as they do with one another, where it was measured."""
    keys = ("dice_draw_rater", "dice_draw_draw", "dice_gap")
    rows = [[row["name"], *(ends(row["draws"][key]) for key in keys)] for row in _first() if keys[2] in row["draws"]]
    return grid(["draws of", "Dice, draw and rater", "Dice, two draws", "difference"], rows)


def raters_seeds() -> str:
    """Trainings that differ in the seed alone, one by one; and the mean of the seeds against that of the U-Nets."""
    found, rows = load("lidc_raters")["rows"], []
    plain = [row for row in found if row["name"].partition(SEED)[0] == _plain(found)["name"]]
    for name in dict.fromkeys(row["name"].partition(SEED)[0] for row in found if SEED in row["name"]):
        seeds = [row for row in found if row["name"].partition(SEED)[0] == name]
        each = lambda values, digits=3: ", ".join(f"{value:.{digits}f}" for value in values)
        cells = [each(row["draws"][key]["mean"] for row in seeds) for key in ("ged_16", "hm_iou")]
        gaps = [row["draws"]["dice_gap"]["mean"] for row in seeds if "dice_gap" in row["draws"]]
        own = [row["mean"]["ece_band_by_chance"]["mean"] for row in seeds if "ece_band_by_chance" in row["mean"]]
        drawn = seeds[0]["method"] != "unet"
        means = [[_over_seeds(some, key) for some in (seeds, plain)] for key in ("dice", "dice_fused")]
        against = [_paired(seeds[0], *pair) if drawn else "-" for pair in means]
        cells += [each(gaps) if drawn else "-", each(row["mean"]["ece_band"]["mean"] for row in seeds)]
        rows.append([name, *cells, each(own) if drawn else "-", *against])
    head = [
        "training",
        "GED-16",
        "HM-IoU",
        "Dice, draw and rater, minus two draws",
        "ECE in the band",
        "the same, by chance alone",
        "Dice of the mean's mask, minus the U-Net's, means over seeds",
        "Dice of `--fuse dice`, the same",
    ]
    return grid(head, rows)


def _over_seeds(rows: list[dict[str, Any]], key: str) -> list[float]:
    """Mean over the trainings, case by case."""
    return np.mean([row["per_case"]["mean"][key] for row in rows], axis=0).tolist()


def raters_controls() -> str:
    """Short trainings of `distributional` that differ in one setting, against the first, case by case."""
    found = load("lidc_controls")["rows"]
    base, rows = found[0]["per_case"], []
    for row in found:
        own = row["per_case"]
        pairs = [(own["draws"][key], base["draws"][key]) for key in ("ged_16", "hm_iou")]
        pairs.append((own["mean"]["dice_fused"], base["mean"]["dice_fused"]))
        cells = ["-"] * len(pairs) if row is found[0] else [_paired(row, *pair) for pair in pairs]
        rows.append([row["name"], *(ends(row["draws"][key]) for key in ("ged_16", "hm_iou", "dice_gap")), *cells])
    less = [f"{what}, minus the first's" for what in ("GED-16", "HM-IoU", "Dice of `--fuse dice`")]
    return grid(["training", "GED-16", "HM-IoU", "Dice, draw and rater, minus two draws", *less], rows)


def _first() -> list[dict[str, Any]]:
    return [row for row in load("lidc_raters")["rows"] if SEED not in row["name"]]


def _plain(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return next(row for row in rows if row["method"] == "unet" and len(row["models"]) == 1 and not row["dropout"])


def _paired(row: dict[str, Any], first: list[float], second: list[float]) -> str:
    return change(first, second, row["patient_of_case"])


def _against(source: dict[str, Any]) -> list[str]:
    return [ends(source[key]) for key in ("ged_4", "ged_16", "ged_32", "hm_iou", "maximum_dice")]
