"""MedSegDiff beside its bars, with its parts taken out, and its samplers."""

from typing import Any

from benchmarks.tables.grid import change, grid, load, scored

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
        cells = [_paired(row["scores"][count], bar) for count in ("one draw", "mean of 25")]
        whole = by_name.get(name[:2])  # "v1" or "v2", of which a part is taken out
        apart = _paired(row["scores"]["mean of 25"], whole["scores"]["mean of 25"]) if whole and whole is not row else ""
        rows.append([row["what"], *cells, apart, _paired(row["scores"]["staple of 25"], row["scores"]["mean of 25"])])
    head = ["Dice of", "one draw - U-Net", "mean of 25 - U-Net", "mean of 25 - that of the whole", "STAPLE - mean, 25 draws"]
    return grid(head, rows)


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
