"""What a run needs before its first step: settings, data, plan, model, optimisers, and a folder of its own."""

import copy
import json
import math
import os
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from diffuseg.atomic_io import write_json
from diffuseg.checkpoint import image_digest, known_as, weights_hash
from diffuseg.config import check_stored, from_dict, is_count, is_map, override, to_dict
from diffuseg.data.batches import Batches
from diffuseg.data.dataset import Dataset, check_patient_leakage, open_dataset, splits
from diffuseg.data.inventory import few
from diffuseg.data.labels import check_labels, read_labels
from diffuseg.data.layout import read_json
from diffuseg.data.plan import Plan, check_plan, fingerprint, load_plan, make_plan, save_plan
from diffuseg.data.world import training_fingerprint
from diffuseg.device import Precision
from diffuseg.errors import UserError
from diffuseg.inference.dicom_codes import check_codes, read_codes
from diffuseg.methods import METHODS, Method
from diffuseg.methods.presets import PRESETS, method_of, preset_of
from diffuseg.train.distributed import Processes, join_processes
from diffuseg.train.finetune import history, start_from
from diffuseg.train.precision import training_precision
from diffuseg.train.state import Optimisers
from diffuseg.train.validate import Validation


@dataclass(frozen=True)
class TrainSettings:
    """The options of `diffuseg train`. `set` holds key=value strings for method, plan ("plan.") and training ("train.")."""

    dataset: Path
    method: str
    out: Path
    fold: int = 0
    plan: Path | None = None
    steps: int | None = None
    max_minutes: float | None = None
    preset: str | None = None
    set: list[str] = field(default_factory=list)
    resume: bool = False
    seed: int = 0
    device: str | None = None
    precision: str = "auto"
    validate_every: int | None = None
    labels: Path | None = None
    start: Path | None = None
    patience: int | None = None


@dataclass(frozen=True)
class TrainConfig:
    """How any method is trained; --set train.key=value changes it.

    ema        decay of the weight average that is validated and shipped (warmed up from the start)
    clip       largest norm of a phase's gradient; 0 for no clipping
    warmup     steps over which the learning rate rises
    floor      last learning rate as a share of the first (cosine)
    save_every steps between resume points
    validation_cases  how many cases of the fold a validation during training looks at, spread evenly; 0 for all
    """

    ema: float = 0.998
    clip: float = 1.0
    weight_decay: float = 1e-2
    warmup: int = 50
    floor: float = 0.01
    save_every: int = 200
    log_every: int = 10
    validation_cases: int = 16


@dataclass
class TrainState:
    """A training under way.

    seconds     of wall time, with those of earlier sittings
    validating  seconds of this sitting that went into validations
    best        validation score so far
    waiting     validations since that one
    due         a validation was begun, or should have been, and is not done
    bounds      which cases a training by the clock validates on, and whether patches of them; None before the first validation
    lengthened  the steps that a resumed run had been started with, where it is to have more now
    """

    settings: TrainSettings
    config: TrainConfig
    plan: Plan
    method: Method
    average: Method
    optimisers: Optimisers
    batches: Batches
    validation: Validation
    precision: Precision
    processes: Processes
    meta: dict[str, Any]
    steps: int
    step: int = 0
    seconds: float = 0.0
    validating: float = 0.0
    best: float = -math.inf
    waiting: int = 0
    due: bool = False
    bounds: dict[str, Any] | None = None
    lengthened: int | None = None

    @property
    def patient(self) -> bool:
        """Whether the training goes on, as far as --patience is concerned."""
        return self.settings.patience is None or self.waiting < self.settings.patience


def set_up(settings: TrainSettings) -> TrainState:
    """Everything that `train` works with.

    Raises:
        UserError: as `train` says.
    """
    dataset, fold, labels = _open_data(settings)
    _check_options(settings)
    processes = join_processes(settings.device)
    plan, method_config, config = _configure(settings, dataset)
    _check_config(config)
    torch.manual_seed(settings.seed)  # initial weights; everything later has generators of its own
    method = METHODS[settings.method](plan, method_config).to(processes.device)
    method.check_training()
    if settings.start is not None:
        start_from(method, settings.start)
    digests = file_digests(dataset, fold)
    provenance = _provenance(settings, dataset, fold, digests)
    processes.broadcast_weights(method)
    if method.generative:
        method.sampling(None, None)
    precision = processes.broadcast(training_precision(method, processes.device, settings.precision))
    average = copy.deepcopy(method).requires_grad_(False)
    lengthened = None
    if processes.is_first:  # one for all: a second would find the folder taken
        lengthened = _reserve_folder(settings, plan, method_config, config, fold, labels, digests)
    processes.barrier()
    return TrainState(
        settings=settings,
        config=config,
        plan=plan,
        method=method,
        average=average,
        optimisers=_optimisers(method, config),
        batches=Batches(dataset, fold["train"], plan, settings.seed, labels=labels),
        validation=Validation(dataset, fold["val"], plan, settings.seed, config.validation_cases),
        precision=precision,
        processes=processes,
        meta=provenance | fingerprint_of(processes, dataset, fold["train"], plan),
        steps=_steps(settings, plan),
        lengthened=lengthened,
    )


def _open_data(settings: TrainSettings) -> tuple[Dataset, dict[str, list[str]], dict[str, int] | None]:
    """The data set, the cases of the fold, and the image-level labels if the method learns from these."""
    if settings.method not in METHODS:
        raise UserError(f"unknown method {settings.method!r}", do=f"Known: {', '.join(METHODS)}")
    if settings.preset is not None and preset_of(settings.preset) is None:
        raise UserError(f"unknown preset {settings.preset!r}", do=f"Known: {', '.join(PRESETS)}")
    if settings.preset is not None and method_of(settings.preset) != settings.method:
        raise UserError(f"the preset {settings.preset} is one of --method {method_of(settings.preset)}, not {settings.method}")
    dataset = open_dataset(settings.dataset, masks=METHODS[settings.method].supervision == "mask")
    folds = splits(dataset)
    check_patient_leakage(dataset)
    if not 0 <= settings.fold < len(folds):
        raise UserError(f"there is no fold {settings.fold}", do=f"Folds are 0 to {len(folds) - 1}.")
    fold = folds[settings.fold]
    return dataset, fold, _labels(settings, dataset, fold)


def _check_options(settings: TrainSettings) -> None:
    if settings.max_minutes is not None and not 0 < settings.max_minutes < math.inf:
        raise UserError(f"--max-minutes {settings.max_minutes}: give a positive, finite time")
    if settings.steps is not None and settings.steps < 1:
        raise UserError(f"--steps {settings.steps}: at least one step is needed")
    if settings.seed < 0:
        raise UserError("--seed is 0 or more")
    if settings.validate_every is not None and settings.validate_every < 1:
        raise UserError("--val-every is at least 1")
    if settings.patience is not None and settings.patience < 1:
        raise UserError("--patience is at least 1 validation")
    if settings.resume and not (settings.out / "run.json").exists():
        do = "Give the --out of a run, or leave out --resume to begin one"
        raise UserError("--resume: there is no run here to go on with", file=settings.out, do=do)


def _check_config(config: TrainConfig) -> None:
    """Refuse numbers that would fail only in the loop."""
    bounds = {
        "save_every": (1, math.inf),
        "log_every": (1, math.inf),
        "validation_cases": (0, math.inf),
        "warmup": (0, math.inf),
        "weight_decay": (0, math.inf),
        "clip": (0, math.inf),
        "ema": (0, 1),
        "floor": (0, 1),
    }
    for name, (low, high) in bounds.items():
        value = getattr(config, name)
        if not low <= value <= high:
            rule = f"is {low} or more" if high == math.inf else f"is between {low} and {high}"
            raise UserError(f"train.{name} {rule}, not {value}")


def _steps(settings: TrainSettings, plan: Plan) -> int:
    """Steps of the training: as asked for, without end where a time is given, else the plan's."""
    if settings.steps is not None:
        return settings.steps
    return plan.steps if settings.max_minutes is None else 10**9


def _configure(settings: TrainSettings, dataset: Dataset) -> tuple[Plan, Any, TrainConfig]:
    """Plan, settings of the method and of the training: defaults, then the preset, then --set."""
    preset = (preset_of(settings.preset) if settings.preset else None) or {}
    method_config = from_dict(METHODS[settings.method].config_class, preset.get("config", {}))
    config = from_dict(TrainConfig, preset.get("train", {}))
    overrides: dict[str, list[str]] = {"plan": [], "train": [], "": []}
    for assignment in settings.set:
        group, dot, rest = assignment.partition(".")
        if dot and group in overrides and "=" not in group:
            overrides[group].append(rest)
        else:
            overrides[""].append(assignment)
    plan = _plan(settings, dataset, preset.get("plan", {}), overrides["plan"])
    return plan, override(method_config, overrides[""]), override(config, overrides["train"])


def _plan(settings: TrainSettings, dataset: Dataset, preset: dict[str, Any], overrides: list[str]) -> Plan:
    """The plan of a file with the overrides put in; or made from the data, where later decisions follow the overrides."""
    if settings.plan is not None:
        given = load_plan(settings.plan)
        plan = override(from_dict(Plan, to_dict(given) | preset), overrides)
        changed = [key for key, value in vars(plan).items() if value != getattr(given, key)]
        plan = replace(plan, reasons=plan.reasons | dict.fromkeys(changed, "as asked for"))
    else:
        measured = fingerprint(dataset)
        overridden = override(from_dict(Plan, to_dict(make_plan(dataset, measured)) | preset), overrides)
        names = {*preset, *(assignment.partition("=")[0] for assignment in overrides)}
        chosen = {name: getattr(overridden, name) for name in names}
        if METHODS[settings.method].models_images and "augmentation" not in names:
            plan = make_plan(dataset, measured, **chosen, augmentation="flips")
            why = "A model of the images would also learn the bias, blur and noise that augmentation makes up."
            plan = replace(plan, reasons=plan.reasons | {"augmentation": why})
        else:
            plan = make_plan(dataset, measured, **chosen)
    check_plan(plan)
    return plan


def _labels(settings: TrainSettings, dataset: Dataset, fold: dict[str, list[str]]) -> dict[str, int] | None:
    """The class of each case for a method that learns from labels; None for one that learns from masks."""
    if METHODS[settings.method].supervision == "mask":
        if settings.labels is not None:
            raise UserError(f"--labels: the method {settings.method} learns from masks", do="Choose --method cdm")
        return None
    labels = read_labels(dataset, settings.labels)
    check_labels(labels, fold["train"], list(dataset.labels))
    return labels


RECORDED = {  # of run.json, where code relies on it
    "steps": lambda value: value is None or is_count(value),
    "digests": lambda value: value is None or is_map(value, lambda one: isinstance(one, str)),
    "lengthened": lambda value: isinstance(value, list),
    "plan": lambda value: isinstance(value, dict),
}


def _reserve_folder(
    settings: TrainSettings,
    plan: Plan,
    method_config: Any,
    config: TrainConfig,
    fold: dict[str, list[str]],
    labels: dict[str, int] | None,
    digests: dict[str, str],
) -> int | None:
    """Take the out folder, or make sure that a resumed run is the same run; returns its former steps where it gets more."""
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
        _refuse_changed_files(previous.get("digests"), digests, settings.dataset)
    elif previous.get("digests") != digests:
        write_json(file, previous | {"digests": digests})
    if settings.start is not None and previous.get("from") in known_as(settings.start):
        record["from"] = previous["from"]
    before, now = _comparable(previous, method_config), _comparable(record, method_config)
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


def _refuse_fewer_steps(before: int | None, settings: TrainSettings, plan: Plan) -> int | None:
    """The steps a run had been started with, where --resume asks for more; None where for the same. Refuses fewer."""
    former = plan.steps if before is None else before
    if settings.steps is None or settings.steps == before:
        return None
    if settings.steps < former:
        what = f"--resume --steps {settings.steps}: the run was started with {former}"
        raise UserError(what, file=settings.out, do="Give as many, or more to lengthen it")
    return former


def file_digests(dataset: Dataset, fold: dict[str, list[str]]) -> dict[str, str]:
    """The digest of each image and mask of a fold, by its path in the data set: what a run was started with."""
    cases = {*fold["train"], *fold["val"]}
    files = [file for case in dataset.cases if case.id in cases for file in (*case.images, *case.masks)]
    return {_name_in(dataset, file): image_digest(file) for file in files}


def _name_in(dataset: Dataset, file: Path) -> str:
    return Path(os.path.relpath(file, dataset.folder)).as_posix()


def fingerprint_of(processes: Processes, dataset: Dataset, cases: list[str], plan: Plan) -> dict[str, Any]:
    """What predictions are compared with, for the header of checkpoints; only the first process writes these."""
    return {"fingerprint": training_fingerprint(dataset, cases, plan)} if processes.is_first else {}


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


def _optimisers(method: Method, config: TrainConfig) -> Optimisers:
    """One AdamW per set of modules; phases that train the same modules share it."""
    optimisers: Optimisers = {}
    for phase in method.phases:
        parameters = [p for name in phase.modules for p in method.get_submodule(name).parameters()]
        optimisers.setdefault(
            "+".join(phase.modules),
            torch.optim.AdamW(parameters, phase.learning_rate, phase.betas, weight_decay=config.weight_decay),
        )
    return optimisers


def _provenance(
    settings: TrainSettings, dataset: Dataset, fold: dict[str, list[str]], digests: dict[str, str]
) -> dict[str, Any]:
    """Where a checkpoint came from: its training and validation cases by hash, so that a test on them is noticed."""
    by_id = {case.id: case for case in dataset.cases}
    digest = lambda case: digests[_name_in(dataset, by_id[case].images[0])]
    provenance = {
        "name": f"{dataset.name}/{settings.method}/fold{settings.fold}",
        "seed": settings.seed,
        "fold": settings.fold,
        "training_cases": {case: digest(case) for case in fold["train"]},
        "validation_cases": {case: digest(case) for case in fold["val"]},
        "dataset_licence": str(dataset.extra.get("licence", "unknown")),
        "dataset_reference": str(dataset.extra.get("reference", "")),
    }
    if "codes" in dataset.extra:  # of the classes in DICOM
        provenance["codes"] = read_codes(dataset.folder / "dataset.json")
        check_codes(provenance["codes"], dataset.labels)
    return provenance if settings.start is None else provenance | history(settings.start, provenance)
