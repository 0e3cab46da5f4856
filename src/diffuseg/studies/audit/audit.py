"""The audit of a finished training run: row after row, each kept as soon as it is finished."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from diffuseg.atomic_io import check_writable, nan_to_none, write_json
from diffuseg.checkpoint import is_finished, load_checkpoint
from diffuseg.data.batches import Batches
from diffuseg.data.dataset import Dataset, open_dataset, patients, splits
from diffuseg.data.layout import read_json
from diffuseg.errors import UserError
from diffuseg.inference.checkpoints import LAST, run_folder
from diffuseg.inference.folds import validation_cases
from diffuseg.inference.model import Model, load
from diffuseg.methods import Method
from diffuseg.reports.tables import text_table
from diffuseg.studies.audit.measure import SCORES, measure_case, summary
from diffuseg.studies.audit.rows import Row, Training, sampled_rows, trained_rows
from diffuseg.text import did_you_mean, pluralize

DRAWS = 4


@dataclass(frozen=True)
class AuditOptions:
    """What `diffuseg audit` was asked for. steps: of the trainings, None for as many as the run had; cases: 0 for all."""

    run: Path
    dataset: Path
    out: Path
    draws: int = DRAWS
    steps: int | None = None
    retrain: bool = False
    only: tuple[str, ...] = ()
    cases: int = 0
    device: str | None = None


def audit(
    options: AuditOptions,
    say: Callable[[str], None] = lambda line: None,
    on_case: Callable[[int, int], None] = lambda done, cases: None,
) -> dict[str, Any]:
    """Measure every row that is asked for and is not there yet; returns what audit.json holds.

    Rows that audit.json holds already stay as they are.

    Args:
        options: Which run, data set and rows.
        say: Called with the cost of each row, before anything starts.
        on_case: Called with (done, cases) after each case of a row.

    Raises:
        UserError: The run is not finished or learnt from no masks, the data set has other folds, a row is not known, or `out`
            holds another audit.
    """
    options = replace(options, run=run_folder(options.run))
    record, model = _run(options)
    dataset = open_dataset(options.dataset)
    names = _cases(options, record, model, dataset)
    steps = int(model.meta["steps_trained"]) if options.steps is None else options.steps
    short = steps != int(model.meta["steps_trained"])
    rows = _chosen(options, record, model, short)
    file = options.out / "audit.json"
    found = _before(file, {
        "model": model.hash, "dataset": dataset.name, "fold": record["fold"], "cases": names, "draws": options.draws,
        "sampler": model.method.default_sampler if model.method.generative else None, "training_steps": steps,
    }, model.file_hashes)  # fmt: skip
    left = [row for row in rows if row.name not in found["rows"]]
    check_writable(options.out)
    for row in left:
        say(f"{row.name}: {row.what}. {_cost(row, model, steps, len(names))}")
    of = [patients(dataset)[0][name] for name in names]
    source = Batches(dataset, names, model.plan)
    for row in left:
        methods = [_trained(options, record, row, i, steps) for i in range(len(row.trainings))] or [model.method]
        started = time.monotonic()
        scores = {}
        for number, name in enumerate(names):
            other = source.whole(names[(number + 1) % len(names)])
            scores[name] = measure_case(model, [m.to(model.device) for m in methods], row, source.whole(name), other)
            on_case(number + 1, len(names))
        reference = "again" if row.trainings and short else "run"
        found["rows"][row.name] = {
            "what": row.what, "draws": row.draws, "steps": row.steps, "calls": row.calls,
            "parameters": sum(p.numel() for m in methods for p in m.parameters()), "trainings": len(row.trainings),
            "seconds_per_case": (time.monotonic() - started) / len(names), "against": reference, "per_case": scores,
        }  # fmt: skip
        write_json(file, nan_to_none(_compared(found, of)))
    return _compared(found, of)


def table(found: dict[str, Any]) -> Table:
    """For a terminal: each score, and its difference to the run, or to the run once more where trainings were shorter."""
    rows = []
    for name, row in found["rows"].items():
        cells = [_text(row["scores"][key], alone=name == row["against"]) for key in SCORES]
        rows.append((f"{name}\n{pluralize(row['calls'], 'call')}", *cells))
    title, head = "Is diffusion doing anything here?", ("row", *SCORES.values())
    return text_table(title, head, rows, _notes(found), right=False, lines=True)


def _run(options: AuditOptions) -> tuple[dict[str, Any], Model]:
    if not (options.run / "run.json").is_file():
        raise UserError("there is no training run here", file=options.run, do="Give a folder that `diffuseg train` wrote")
    record = read_json(options.run / "run.json")
    checkpoint = options.run / LAST
    if not is_finished(checkpoint):
        raise UserError("this training is not finished", file=options.run, do="Finish it with --resume")
    model = load(checkpoint, options.device)
    if model.method.supervision != "mask":
        what = f"{model.meta['method']} learns from image-level labels"
        raise UserError(what, file=options.run, do="There is no audit of it")
    if options.draws < 2 or (options.steps is not None and options.steps < 1):
        raise UserError("at least 2 draws and 1 training step are needed")
    return record, model


def _cases(options: AuditOptions, record: dict[str, Any], model: Model, dataset: Dataset) -> list[str]:
    folds, fold = splits(dataset), record["fold"]
    if not fold < len(folds) or record.get("cases", folds[fold]) != folds[fold]:
        raise UserError("its folds are not those of the run", file=options.dataset, do="Give the data set of the training")
    return validation_cases(model, dataset, fold, options.cases)


def _chosen(options: AuditOptions, record: dict[str, Any], model: Model, short: bool) -> list[Row]:
    steps = model.method.default_steps if model.method.generative else 1
    free = sampled_rows(model.method, options.draws if model.method.generative else 1, steps)
    trained = trained_rows(record, model.method, free[0].draws, steps)
    trained = trained if short else trained[1:]
    known = {row.name: row for row in (*free, *trained)}
    for name in options.only:
        if name not in known:
            raise UserError(f"there is no row {name!r}", do=did_you_mean(name, known))
        if not options.retrain and known[name] in trained:
            raise UserError(f"the row {name} needs a training", do="Give --retrain too")
    needed = {"run", *({"again"} if options.retrain and short else ())}
    rows = [*free, *(trained if options.retrain else [])]
    return [row for row in rows if not options.only or row.name in {*options.only, *needed}]


def _before(file: Path, of: dict[str, Any], aliases: Sequence[str]) -> dict[str, Any]:
    """The rows that are there already, of the same weights under whatever name."""
    if not file.exists():
        return {"of": of, "rows": {}}
    before = read_json(file)
    if isinstance(before, dict) and before.get("of", {}).get("model") in aliases:
        before["of"]["model"] = of["model"]
    changed = [key for key, value in of.items() if not isinstance(before, dict) or before.get("of", {}).get(key) != value]
    if changed:
        raise UserError(f"holds an audit with other {', '.join(changed)}", file=file, do="Give another --out")
    if not isinstance(before.get("rows"), dict):
        raise UserError("is no audit as this command writes it", file=file, do="Give another --out, or remove it")
    for row in before["rows"].values():  # what has no number is null in JSON
        row["per_case"] = {c: {k: math.nan if v is None else v for k, v in s.items()} for c, s in row["per_case"].items()}
    return before


def _cost(row: Row, model: Model, steps: int, cases: int) -> str:
    training = ""
    if row.trainings:
        each = float(model.meta["seconds"]) * steps / int(model.meta["steps_trained"])
        minutes = f"about {len(row.trainings) * each / 60:.0f} minutes at the pace of the run"
        training = f"{pluralize(len(row.trainings), 'training')} of {pluralize(steps, 'step')}, {minutes}; then "
    return f"{training}{pluralize(cases, 'case')} x {pluralize(row.calls, 'network call')} per tile"


def _trained(options: AuditOptions, record: dict[str, Any], row: Row, number: int, steps: int) -> Method:
    """The weights at the end of a training, which is done, or gone on with, where it is not finished."""
    from diffuseg.train.loop import TrainSettings, train

    wanted: Training = row.trainings[number]
    out = options.out / "runs" / _folder(row, number)
    last = out / "last.safetensors"
    if not is_finished(last):
        train(TrainSettings(
            options.dataset, wanted.method, out, record["fold"], options.run / "plan.json", steps, set=list(wanted.wishes),
            resume=(out / "run.json").exists(), seed=wanted.seed, device=options.device, validate_every=steps,
        ))  # fmt: skip
    return load_checkpoint(last)[0]


def _folder(row: Row, number: int) -> str:
    """Members of an ensemble are U-Nets, and the first of them is that of the row "unet"."""
    return row.name if row.sampling != "members" else "unet" if number == 0 else f"unet_{number}"


def _compared(found: dict[str, Any], of: Sequence[str]) -> dict[str, Any]:
    for row in found["rows"].values():
        reference = found["rows"].get(row["against"], row)
        row["scores"] = summary(row["per_case"], reference["per_case"], of)
    return found


def _text(score: dict[str, dict[str, float | None]], alone: bool) -> str:
    """Mean and difference in a line, its interval in the next."""
    mean, change, low, high = (
        math.nan if value is None else value
        for value in (score["mean"]["mean"], *(score["difference"][key] for key in ("mean", "low", "high")))
    )
    text = "-" if math.isnan(mean) else f"{mean:.3f}"
    if alone or math.isnan(change):
        return text
    interval = "" if math.isnan(low) else f"\n[{low:+.3f}, {high:+.3f}]"
    return f"{text}  {change:+.3f}{interval}"


def _notes(found: dict[str, Any]) -> list[str]:
    of = found["of"]
    lines = [f"{name}: {row['what']}." for name, row in found["rows"].items()]
    cases = pluralize(len(of["cases"]), "validation case")
    lines += [
        f"Fold {of['fold']} of {of['dataset']}, {cases}, the last weights of each training. "
        "Differences are paired; their intervals are bootstraps over patients, and know nothing of other seeds of a training."
    ]
    if any(row["against"] == "again" for row in found["rows"].values()):
        took = pluralize(of["training_steps"], "step")
        lines.append(f"Trainings took {took}: they are compared with the row again, the others with run.")
    return lines
