"""Masks from image-level labels."""

from typing import Any

from benchmarks.tables.grid import called, change, grid, load, mean_of

WEAK_RULES = ("as `predict` does", "published: Otsu")
FULL = "U-Net from masks"
GUIDED = ("accumulated, guided by 10", "accumulated")  # CG-CDM's map and CDM's, mean of several draws
AGAIN = {"weak": "seed 0", "weak_again_seed1": "seed 1", "weak_again_seed2": "seed 2", "weak_fold1": "fold 1, seed 0"}
CAM = "the class activation map that the other half chooses"
PLAIN = "accumulated, one draw (CDM as published)"
GUIDED_ONCE = "accumulated, guided by 10, one draw (CG-CDM as published)"


def weak(results: str = "weak") -> str:
    """Masks from image-level labels: every map, on the half of the validation patients on which nothing was chosen."""
    rows, maps = [], load(results)["maps"]
    full = next((row["rules"][row["best"]]["dice"][0] for row in maps if row["map"] == FULL), None)
    for row in maps:
        best, rules = row["best"], row["rules"]
        fixed = [f"{rules[name]['dice'][0]:.3f}" if name in rules else "-" for name in WEAK_RULES]
        at = rules[best]
        cells = [
            mean_of(at["dice"]),
            f"{at['dice'][0] / full:.2f}" if full else "-",
            f"{at['iou'][0]:.3f}",
            f"{at['hd95_mm'][0]:.0f}",
            *fixed,
            mean_of(at["dice_all_slices"]),
        ]
        ap = [f"{row['ap'][0]:.3f}", mean_of(row["ap_smoothed"])]
        rows.append([called(row["map"]), *ap, best, *cells, str(row["evaluations"]), f"{row['seconds']:.1f}"])
    head = [
        "map",
        "AP, raw",
        "AP, smoothed [95 % CI]",
        "best rule",
        "Dice [95 % CI]",
        "of full supervision's",
        "IoU",
        "HD95",
        "Dice, default rule",
        "Dice, Otsu",
    ]
    return grid([*head, "Dice, all slices [95 % CI]", "evaluations", "CPU s / image"], rows)


def weak_differences(results: str = "weak") -> str:
    """The best sensitivity map (by the Dice on which it was chosen) against the bars, paired over patients."""
    content = load(results)
    found = {row["map"]: row for row in content["maps"]}
    chosen = lambda row: _best(row).get("dice_chosen", 0.0)
    bars = {name: row for name, row in found.items() if _best(row).get("dice_chosen") is not None}
    maps = {n: r for n, r in bars.items() if n.startswith(("levels", "accumulated", "shared", "one level"))}
    cams = {n: r for n, r in bars.items() if ", layer" in n}
    ours = max(maps, key=lambda name: chosen(maps[name]))
    kinds = [{n: r for n, r in bars.items() if n.startswith(kind)} for kind in ("guided count", "classifier-free count")]
    best = [max(rows, key=lambda name, rows=rows: chosen(rows[name])) for rows in (cams, *kinds) if rows]
    against = [*(n for n in bars if n.startswith(("intensity", "position"))), *best]
    pairs = [(ours, name) for name in against] + [(n, ours) for n in found if n not in bars and n != FULL]
    pairs += [(ours, FULL)] if FULL in found else []
    pairs += [GUIDED] if all(name in found for name in GUIDED) else []
    rows = []
    for first, second in pairs:
        rows.append([first, second, change(_overlaps(found[first]), _overlaps(found[second]), content["patients"])])
    return grid(["Dice of", "minus Dice of", "difference [95 % CI over patients]"], rows)


def weak_ablation() -> str:
    """CDM one setting at a time, on the half of the patients on whom choices are made."""
    head = ["map", "what", "value", "AP, raw", "AP, smoothed [95 % CI]", "Dice, default rule [95 % CI]", "evaluations"]
    rows = []
    for point in load("weak_ablation")["points"]:
        cells = [f"{point['ap'][0]:.3f}", mean_of(point["ap_smoothed"]), mean_of(point["dice"]), str(point["evaluations"])]
        rows.append([f"`{point['map']}`", point["knob"], f"{point['value']:g}", *cells])
    return grid(head, rows)


def weak_verdicts(results: str = "weak") -> str:
    """Whether an image shows the object: who says so how well, on the same half."""
    content = load(results)
    rows = [
        [name, f"{v['auc']:.3f}", mean_of(v["accuracy"]), mean_of(v["accuracy_at_0"]) if ":" in name else "-"]  # 0: of models
        for name, v in content["verdicts"].items()
    ]
    return grid(["judge", "AUC", "accuracy, threshold of the other half [95 % CI]", "accuracy as it is [95 % CI]"], rows)


def weak_busi() -> str:
    """The same of lesions in breast ultrasound."""
    return weak("weak_busi")


def weak_busi_differences() -> str:
    """The same of lesions in breast ultrasound."""
    return weak_differences("weak_busi")


def weak_busi_verdicts() -> str:
    """The same of lesions in breast ultrasound."""
    return weak_verdicts("weak_busi")


def weak_fold1() -> str:
    """The same of other patients with glioma."""
    return weak("weak_fold1")


def weak_fold1_differences() -> str:
    """The same of other patients with glioma."""
    return weak_differences("weak_fold1")


def weak_again() -> str:
    """Dice of the maps that matter, from several trainings: three seeds of one fold, and another fold."""
    shown = ["intensity", CAM, PLAIN, GUIDED_ONCE, "accumulated, tau 0", "levels", "U-Net from pseudo-labels", FULL]
    trainings = [_of_training(name)[0] for name in AGAIN]
    rows = []
    for name in shown:
        found = [maps.get(name) for maps in trainings]
        rows.append([called(name), *(mean_of(_best(row)["dice"]) if row else "-" for row in found)])
    return grid(["Dice [95 % CI over patients]", *AGAIN.values()], rows)


def weak_again_differences() -> str:
    """The same maps against one another in each training, paired over its patients."""
    pairs = [("levels", "intensity"), ("levels", CAM), ("levels", "accumulated, tau 0"), (GUIDED_ONCE, PLAIN)]
    pairs += [("U-Net from pseudo-labels", "levels"), ("levels", FULL)]
    rows = [[called(first), called(second)] for first, second in pairs]
    for maps, patients in map(_of_training, AGAIN):
        for row, pair in zip(rows, pairs, strict=True):
            known = all(name in maps for name in pair)
            row.append(change(*(_overlaps(maps[name]) for name in pair), patients) if known else "-")
    return grid(["Dice of", "minus Dice of", *AGAIN.values()], rows)


def _best(row: dict[str, Any]) -> dict[str, Any]:
    """What a map reaches with the rule that the other half chooses for it."""
    return row["rules"][row["best"]]


def _overlaps(row: dict[str, Any]) -> list[float]:
    return list(_best(row)["dice_per_case"].values())


def _of_training(results: str) -> tuple[dict[str, dict[str, Any]], list[Any]]:
    """Its maps by name, with the class activation map that the other half chooses; the patients of its cases."""
    content = load(results)
    maps = {row["map"]: row for row in content["maps"]}
    cams = [row for name, row in maps.items() if ", layer" in name]
    return maps | {CAM: max(cams, key=lambda row: _best(row)["dice_chosen"])}, content["patients"]


def weak_released() -> str:
    """CDM's published map, and CG-CDM's, on the released training."""
    return weak("weak_released").replace("map, on our training)", "map)")
