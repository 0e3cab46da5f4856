"""MedSegDiff beside its bars, with its parts taken out, and its samplers."""

from itertools import chain
from typing import Any

from benchmarks.tables.grid import change, grid, load, scored

FOLDS = ("isic_medsegdiff", "isic_medsegdiff_fold1", "isic_medsegdiff_fold2")
COLUMNS = ("one draw", "mean of 5", "mean of 25", "staple of 5", "staple of 25")


def medsegdiff_isic() -> str:
    """Dermoscopy: every row trained alike, Dice by number of draws and fusion."""
    return _rows(load("isic_medsegdiff"))


def medsegdiff_isic_differences() -> str:
    """Dermoscopy: the mean of 25 draws against the U-Net, and against the whole where a part was taken out."""
    return _differences(load("isic_medsegdiff"))


def medsegdiff_isic_samplers() -> str:
    """Dermoscopy: few steps against many, of one model."""
    return _samplers(load("isic_medsegdiff"))


def medsegdiff_hippocampus() -> str:
    """Hippocampus: every row trained alike, Dice by number of draws and fusion."""
    return _rows(load("hippocampus_medsegdiff"))


def medsegdiff_hippocampus_differences() -> str:
    """Hippocampus: the mean of 25 draws against the U-Net, and against the whole where a part was taken out."""
    return _differences(load("hippocampus_medsegdiff"))


def medsegdiff_isic_folds() -> str:
    """Dermoscopy: V1 with either form of eq. 3, 25 draws, against the U-Net, fold by fold and all cases together."""
    scores = lambda row: row["scores"].get("mean of 25", row["scores"].get("one draw"))
    folds = [{row["name"]: scores(row) for row in load(name)["rows"]} for name in FOLDS]
    pairs = {"V1 - U-Net": ("v1", "unet"), "V1, eq. 3 without the residual - U-Net": ("v1_published", "unet")}
    pairs["without the residual - with it"] = ("v1_published", "v1")
    rows = []
    for what, (first, second) in pairs.items():
        of = [[list(fold[name]["dice_per_case"].values()) for fold in folds] for name in (first, second)]
        cells = [change(one, other) for one, other in zip(*of, strict=True)]
        rows.append([what, *cells, change(*(list(chain(*values)) for values in of))])
    cases = [len(fold["unet"]["dice_per_case"]) for fold in folds]
    return grid(["Dice of", *(f"fold {i}, {n} cases" for i, n in enumerate(cases)), f"all {sum(cases)} cases"], rows)


def medsegdiff_isic_curve() -> str:
    """Dermoscopy: Dice, likelihood and cost over steps and draws, for each sampler; how much less than the released setting."""
    curves = load("isic_medsegdiff_curve")["curves"]
    points = [(curve["what"], curve["sampler"], point) for curve in curves for point in curve["points"]]
    most = max(point["evaluations"] for *_, point in points)
    rows = []
    for what, sampler, p in points:
        less = "all" if p["evaluations"] == most else f"1/{most / p['evaluations']:.0f}"
        cells = [what, f"`{sampler}`", str(p["steps"]), str(p["draws"]), str(p["evaluations"]), less, scored(p)]
        rows.append([*cells, f"{p['nll']:.3f}", f"{p['brier']:.3f}", f"{p['seconds']:.2f}", f"{p['memory_mb']:.0f}"])
    head = ["model", "sampler", "steps", "draws", "network calls", "of most", "Dice", "NLL", "Brier score", "s per case", "MB"]
    return grid(head, rows)


def _rows(found: dict[str, Any]) -> str:
    rows = []
    for row in found["rows"]:
        cells = [scored(row["scores"][name]) if name in row["scores"] else "-" for name in COLUMNS]
        rows.append([row["what"], *cells, str(row["evaluations_per_draw"]), f"{row['parameters'] / 1e6:.2f} M"])
    head = ["trained alike", *COLUMNS, "network calls per draw", "parameters"]
    note = f"{found['rows'][0]['cases']} validation cases, {found['rows'][0]['training_steps']} steps of training."
    return grid([name.replace("staple", "STAPLE") for name in head], rows) + f"\n{note}\n"


def _differences(found: dict[str, Any]) -> str:
    rows, by_name = [], {row["name"]: row for row in found["rows"]}
    for name, row in by_name.items():
        if name == "unet":
            continue
        bar = by_name["unet"]["scores"]["one draw"]
        most = "mean of 25" if "mean of 25" in row["scores"] else "one draw"  # the second: V2's condition alone
        cells = [_paired(row["scores"]["one draw"], bar), _paired(row["scores"][most], bar) if most != "one draw" else ""]
        whole = by_name.get(_whole(name))
        cells.append(_paired(row["scores"][most], whole["scores"]["mean of 25"]) if whole else "")
        staple = row["scores"].get("staple of 25")
        rows.append([row["what"], *cells, _paired(staple, row["scores"][most]) if staple else ""])
    head = ["Dice of", "one draw - U-Net", "mean of 25 - U-Net", "mean of 25 - that of the whole", "STAPLE - mean, 25 draws"]
    return grid(head, rows)


def _whole(name: str) -> str | None:
    """The row of which a part was taken out; None for rows that are whole."""
    kind, _, part = name.partition("_")
    if kind not in ("v1", "v2") or part in ("", "long"):
        return None
    return f"{kind}_long" if part.startswith("long_") else kind


def _samplers(found: dict[str, Any]) -> str:
    rows = []
    many = {row["sampler"]: row for row in found["samplers"] if row["steps"] == max(r["steps"] for r in found["samplers"])}
    for row in found["samplers"]:
        scores, most = row["scores"], many[row["sampler"]]["scores"]
        loss = _paired(scores["mean of 5"], most["mean of 5"]) if scores is not most else ""
        rows.append([f"`{row['sampler']}`", str(row["steps"]), scored(scores["one draw"]), scored(scores["mean of 5"]), loss])
    return grid(["sampler", "steps", "one draw", "mean of 5", "mean of 5, minus that of most steps"], rows)


def _paired(first: dict[str, Any], second: dict[str, Any]) -> str:
    """Mean over cases of first - second with its 95 % interval."""
    one, other = (list(score["dice_per_case"].values()) for score in (first, second))
    return change(one, other)
