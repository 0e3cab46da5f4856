"""The folder of a run: its record (run.json), and whether a training that is resumed is the same training."""

import json
import os
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from diffuseg.atomic_io import write_json
from diffuseg.checkpoint import image_digest, known_as, weights_hash
from diffuseg.config import check_stored, is_count, is_list, is_map, to_dict
from diffuseg.data.dataset import Dataset
from diffuseg.data.geometry import warn_once
from diffuseg.data.layout import read_json
from diffuseg.data.plan import Plan, save_plan
from diffuseg.errors import UserError
from diffuseg.text import few
from diffuseg.train.settings import TrainConfig, TrainSettings

RECORDED = {  # of run.json, where code relies on it
    "steps": lambda value: value is None or is_count(value),
    "digests": lambda value: value is None or is_map(value, lambda one: isinstance(one, str)),
    "unread": lambda value: is_list(value, lambda one: isinstance(one, str)),
    "lengthened": lambda value: isinstance(value, list),
    "plan": lambda value: isinstance(value, dict),
}


def reserve_folder(
    settings: TrainSettings,
    plan: Plan,
    method_config: Any,
    config: TrainConfig,
    fold: dict[str, list[str]],
    labels: dict[str, int] | None,
    digests: dict[str, str],
) -> int | None:
    """Take the out folder, or make sure that a resumed run is the same run; returns its former steps where it gets more.

    Args:
        settings: Of the training; so are `plan`, `method_config` and `config`.
        fold: Names of its cases, {"train": [...], "val": [...]}.
        labels: Class of each case, of a method that learns from image-level labels.
        digests: Of the files, by their path in the data set.

    Raises:
        UserError: The folder holds a run and nothing is resumed, or the run was started with other settings or files.
    """
    out, file = settings.out, settings.out / "run.json"
    record = {
        "method": settings.method, "fold": settings.fold, "seed": settings.seed, "steps": settings.steps,
        "plan": to_dict(plan), "config": to_dict(method_config), "train": to_dict(config), "cases": fold,
        "image_labels": labels, "digests": digests,
    }  # fmt: skip
    if settings.start is not None:
        record["from"] = weights_hash(settings.start)
    if not file.exists():
        save_plan(plan, out / "plan.json")
        write_json(file, record)
        return None
    if not settings.resume:
        raise UserError("already holds a run", file=out, do="Give --resume to continue it, or another --out.")
    previous = read_json(file)
    check_stored(previous, RECORDED, file)
    if (out / "resume.safetensors").exists():  # else nothing was learnt yet, and files may have been mended
        unread = previous.pop("unread", [])
        known = {name: digest for name, digest in (previous.get("digests") or {}).items() if name not in unread}
        _refuse_changed_files(known, digests, settings.dataset)
    if previous.get("digests") not in (None, digests):
        write_json(file, previous | {"digests": digests})
    if settings.start is not None and previous.get("from") in known_as(settings.start):
        record["from"] = previous["from"]
    before, now = _comparable(previous, method_config), _comparable(record, method_config)
    _refuse_edited_plan(out / "plan.json", previous, method_config)
    former = _refuse_fewer_steps(previous.get("steps"), settings, plan)
    if former is not None:
        before["steps"] = now["steps"]
    changed = [key for key in now if key != "digests" and before.get(key) != now[key]]
    if changed:
        raise UserError(f"--resume with another {', '.join(changed)} than the run was started with", file=out)
    if former is not None:
        kept = read_json(file)
        longer = [*kept.get("lengthened", []), {"from": former, "to": settings.steps}]
        write_json(file, kept | {"steps": settings.steps, "lengthened": longer})
    return former


def _refuse_edited_plan(file: Path, previous: dict[str, Any], method_config: Any) -> None:
    """Refuse a plan.json that somebody has edited: the run goes on with the plan that it was started with, in run.json."""
    if file.exists():
        there, before = (_comparable({"plan": plan}, method_config)["plan"] for plan in (read_json(file), previous["plan"]))
        odd = [key for key in before if isinstance(there, dict) and there.get(key) != before[key]]
        if odd:
            do = "Put them back; another plan is that of another run: --plan with another --out"
            raise UserError(f"--resume: {few(odd)} changed since the run was started", file=file, do=do)


def _refuse_fewer_steps(before: int | None, settings: TrainSettings, plan: Plan) -> int | None:
    """The steps a run had been started with, where --resume asks for more; None where for the same. Refuses fewer."""
    former = plan.steps if before is None else before
    if settings.steps is None or settings.steps == before:
        return None
    if settings.steps < former:
        what = f"--resume --steps {settings.steps}: the run was started with {former}"
        raise UserError(what, file=settings.out, do="Give as many, or more to lengthen it")
    return former


def remember_unread(settings: TrainSettings, file: Path | str | None) -> None:
    """A file that could not be read has taught a training nothing: it may be mended before --resume."""
    record, known = settings.out / "run.json", read_json(settings.out / "run.json")
    name = None if file is None else Path(os.path.relpath(file, settings.dataset)).as_posix()
    if name in known.get("digests", {}):
        write_json(record, known | {"unread": [*known.get("unread", []), name]})


def digests_of_files(dataset: Dataset, fold: dict[str, list[str]]) -> dict[str, str]:
    """The digest of each image and mask of a fold, by its path in the data set: what a run was started with."""
    cases = {*fold["train"], *fold["val"]}
    files = [file for case in dataset.cases if case.id in cases for file in (*case.images, *case.masks)]
    return {name_in(dataset, file): image_digest(file) for file in files}


def name_twins(dataset: Dataset, fold: dict[str, list[str]], digests: dict[str, str]) -> None:
    """Warn of one image under the names of several cases: what is learnt by heart would look like what was understood."""
    found: dict[tuple[str, ...], list[str]] = {}
    for case in dataset.cases:
        if all(name_in(dataset, file) in digests for file in case.images):
            found.setdefault(tuple(digests[name_in(dataset, file)] for file in case.images), []).append(case.id)
    for twins in found.values():
        if len(twins) > 1:
            across = {*twins} & {*fold["train"]} and {*twins} & {*fold["val"]}
            what = f"{', '.join(twins)} are the same image{', in train and in val' if across else ''}"
            warn_once(dataset.folder, f"{what}: one of them is enough")


def name_in(dataset: Dataset, file: Path) -> str:
    """What the record of a run calls a file: its path in the data set, with slashes."""
    return Path(os.path.relpath(file, dataset.folder)).as_posix()


def _refuse_changed_files(before: dict[str, str] | None, now: dict[str, str], folder: Path) -> None:
    """Refuse to go on over other voxels; runs of earlier versions do not remember theirs."""
    changed = [name for name, digest in (before or {}).items() if now.get(name, digest) != digest]
    if changed:
        what = f"--resume: {few(changed)} changed since the run was started"
        raise UserError(what, file=folder, do="Put the files back as they were, or start again in another --out")


def _comparable(record: dict[str, Any], method_config: Any) -> dict[str, Any]:
    """A run's record with the defaults of settings that are newer than it, and without reasons, which decide nothing."""
    filled = json.loads(json.dumps(record))
    for key, cls in {"plan": Plan, "config": type(method_config), "train": TrainConfig}.items():
        if isinstance(filled.get(key), dict):
            defaults = {f.name: f.default for f in fields(cls) if f.default is not MISSING}
            filled[key] = json.loads(json.dumps(defaults)) | filled[key]
            filled[key].pop("reasons", None)
    return filled
