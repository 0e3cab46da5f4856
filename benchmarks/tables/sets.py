"""Methods beside each other on the data sets of benchmarks/evidence.toml: one table for each file of benchmarks.score."""

from typing import Any

from benchmarks.tables.grid import called, ends, grid, less, load, network_calls, scored


def thyroid() -> str:
    """Thyroid nodules in ultrasound."""
    return _beside("thyroid_fold0")


def thyroid_parts() -> str:
    """MedSegDiff V1 part by part with 1000 timesteps, and V2, each minus the whole V1."""
    return _parts("thyroid_fold0", "medsegdiff", "1000 levels")


def fundus() -> str:
    """Rim of the disc and cup in fundus photographs."""
    return _beside("fundus_fold0")


def monuseg() -> str:
    """Nuclei in stained tissue."""
    return _beside("monuseg_fold0")


def cxr() -> str:
    """Lungs in chest X-rays."""
    return _beside("cxr_fold0")


def cxr_parts() -> str:
    """cDAL as released without its attention, and with its adversary, each minus as it is released."""
    return _parts("cxr_fold0", "cdal", "as released, with the plan's sizes")


def _parts(name: str, method: str, what: str) -> str:
    """The rows whose name goes on after `what`, of any method, minus the method's row of that name; paired over patients."""
    found = [row for row in load(name)["rows"] if (row["what"] or "").startswith(what)]
    whole = {row["draws"]: row for row in found if (row["method"], row["what"]) == (method, what)}
    cells: dict[str, list[str]] = {}
    for row in sorted((row for row in found if row is not whole[row["draws"]]), key=lambda row: row["draws"]):
        cells.setdefault(_named(row)[0], []).append(less(row, whole[row["draws"]]))
    draws = [f"Dice of {'one draw' if n == 1 else f'the mean of {n}'} [95 % CI, paired]" for n in sorted(whole)]
    return grid([f"minus `{method}`, {what}", *draws], [[name, *values] for name, values in cells.items()])


def _beside(name: str) -> str:
    """Each row with its interval, its difference to the U-Net of the first seed, and what it costs."""
    found = load(name)["rows"]
    bar = next((row for row in found if row["method"] == "unet" and not row.get("what")), None)
    rows = [
        [*_named(row), scored(row), "-" if bar is None or row is bar else less(row, bar), _gap(row), *_cost(row, bar)]
        for row in found
    ]
    cost = ["network calls", "s per image", "parameters", "training steps", "training time over the U-Net's"]
    where = f"{found[0]['cases']} validation cases of fold {found[0]['fold']}"
    cases = f"\n{where}; last weights. Times are of the processor, one thread.\n"
    quality = ["Dice [95 % CI]", "minus the U-Net's [95 % CI, paired]", "Dice of draw and truth, minus that of two draws"]
    return grid(["method", "steps", "draws", *quality, *cost], rows) + cases


def _named(row: dict[str, Any]) -> list[str]:
    what = f", {called(row['what'])}" if row.get("what") else ""
    return [f"`{row['method']}`{what}", "-" if row["method"] == "unet" else str(row["steps"]), str(row["draws"])]


def _gap(row: dict[str, Any]) -> str:
    """How far the draws are from being as unlike one another as they are unlike the truth."""
    return ends(row["agreement"]["gap"]) if row.get("agreement") else "-"


def _cost(row: dict[str, Any], bar: dict[str, Any] | None) -> list[str]:
    times = [(one or {}).get("training_processor_seconds") for one in (row, bar)]
    measured = row["draws"] > 1 or row["method"] == "unet"  # one draw of several was not made alone
    seconds = row.get("processor_seconds_per_case") if measured else None
    return [
        network_calls(row["method"], row["evaluations_per_case"]),
        f"{seconds:.2f}" if seconds is not None else "-",
        f"{row['parameters'] / 1e6:.1f} M",
        str(row["training_steps"]),
        f"{times[0] / times[1]:.2f}" if times[0] and times[1] else "-",
    ]
