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
from diffuseg.checkpoint import image_digest
from diffuseg.config import from_dict, override, to_dict
from diffuseg.data.batches import Batches
from diffuseg.data.dataset import Dataset, open_dataset, refuse_leaks, splits
from diffuseg.data.labels import check_labels, read_labels
from diffuseg.data.layout import read_json
from diffuseg.data.plan import Plan, check_plan, fingerprint, load_plan, make_plan, save_plan
from diffuseg.device import Precision, choose_device, choose_precision
from diffuseg.errors import UserError
from diffuseg.methods import METHODS, Method
from diffuseg.methods.presets import PRESETS, method_of
from diffuseg.train.state import Optimisers
from diffuseg.train.validate import Validation


@dataclass(frozen=True)
class TrainSettings:
    """What `diffuseg train` was asked for. `set` holds key=value strings for method, plan ("plan.") and training ("train.")."""

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
class Run:
    """A training under way.

    seconds     of wall time, with those of earlier sittings
    validating  seconds of this sitting that went into validations
    best        validation score so far
    """

    settings: TrainSettings
    recipe: TrainConfig
    plan: Plan
    method: Method
    average: Method
    optimisers: Optimisers
    batches: Batches
    validation: Validation
    precision: Precision
    fabric: Any
    meta: dict[str, Any]
    steps: int
    step: int = 0
    seconds: float = 0.0
    validating: float = 0.0
    best: float = -math.inf


def prepare(settings: TrainSettings) -> Run:
    """Everything `train` works with; refuses what its docstring says."""
    if settings.method not in METHODS:
        raise UserError(f"unknown method {settings.method!r}", do=f"Known: {', '.join(METHODS)}")
    if settings.preset is not None and settings.preset not in PRESETS:
        raise UserError(f"unknown preset {settings.preset!r}", do=f"Known: {', '.join(PRESETS)}")
    if settings.preset is not None and method_of(settings.preset) != settings.method:
        raise UserError(f"the preset {settings.preset} is one of --method {method_of(settings.preset)}, not {settings.method}")
    dataset = open_dataset(settings.dataset, masks=METHODS[settings.method].supervision == "mask")
    folds = splits(dataset)
    refuse_leaks(dataset)
    if not 0 <= settings.fold < len(folds):
        raise UserError(f"there is no fold {settings.fold}", do=f"Folds are 0 to {len(folds) - 1}.")
    fold = folds[settings.fold]
    labels = _labels(settings, dataset, fold)
    if settings.max_minutes is not None and not 0 < settings.max_minutes < math.inf:
        raise UserError(f"--max-minutes {settings.max_minutes}: some time is needed, and an end of it")
    fabric = _fabric(settings.device)
    precision = choose_precision(fabric.device, settings.precision)
    plan, config, recipe = _configure(settings, dataset)
    if settings.steps is not None:
        steps = settings.steps
    else:
        steps = plan.steps if settings.max_minutes is None else 10**9
    if steps < 1:
        raise UserError(f"--steps {steps}: at least one step is needed")
    torch.manual_seed(settings.seed)  # initial weights; everything later has generators of its own
    method = METHODS[settings.method](plan, config)
    method = fabric.broadcast(method) if fabric.world_size > 1 else method
    method = method.to(fabric.device)
    average = copy.deepcopy(method).requires_grad_(False)
    _check(settings, recipe, method)
    if fabric.is_global_zero:  # one claims for all: a second would find the folder taken
        _claim(settings, plan, config, recipe, fold, labels)
    fabric.barrier()
    return Run(
        settings, recipe, plan, method, average, _optimisers(method, recipe),
        Batches(dataset, fold["train"], plan, settings.seed, labels=labels),
        Validation(dataset, fold["val"], plan, settings.seed, recipe.validation_cases),
        precision, fabric, _meta(settings, dataset, fold), steps,
    )  # fmt: skip


def _fabric(device: str | None) -> Any:
    """CPU, one GPU, or under torchrun all the processes it started."""
    from lightning.fabric import Fabric

    accelerator = choose_device(device).type
    local, nodes = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), int(os.environ.get("GROUP_WORLD_SIZE", 1))
    distributed = int(os.environ.get("WORLD_SIZE", 1)) > 1
    devices: Any = local
    if accelerator == "cuda" and not distributed and device and ":" in device:
        devices = [int(device.split(":")[1])]
    fabric = Fabric(accelerator=accelerator, devices=devices, num_nodes=nodes, strategy="ddp" if distributed else "auto")
    if distributed:
        fabric.launch()
    return fabric


def _configure(settings: TrainSettings, dataset: Dataset) -> tuple[Plan, Any, TrainConfig]:
    """Plan, method settings and recipe: defaults, then the preset, then --set."""
    preset = PRESETS[settings.preset] if settings.preset else {}
    config = from_dict(METHODS[settings.method].config_class, preset.get("config", {}))
    recipe = from_dict(TrainConfig, preset.get("train", {}))
    wishes: dict[str, list[str]] = {"plan": [], "train": [], "": []}
    for wish in settings.set:
        room, dot, rest = wish.partition(".")
        known = dot and room in wishes and "=" not in room
        wishes[room if known else ""].append(rest if known else wish)
    plan = _plan(settings, dataset, preset.get("plan", {}), wishes["plan"])
    return plan, override(config, wishes[""]), override(recipe, wishes["train"])


def _plan(settings: TrainSettings, dataset: Dataset, preset: dict[str, Any], wishes: list[str]) -> Plan:
    """The plan of a file with what is asked for put in; or made from the data, where what depends on a wish follows it."""
    if settings.plan is not None:
        given = load_plan(settings.plan)
        plan = override(from_dict(Plan, to_dict(given) | preset), wishes)
        changed = [key for key, value in vars(plan).items() if value != getattr(given, key)]
        plan = replace(plan, reasons=plan.reasons | dict.fromkeys(changed, "as asked for"))
    else:
        found = fingerprint(dataset)
        asked = override(from_dict(Plan, to_dict(make_plan(dataset, found)) | preset), wishes)
        names = {*preset, *(wish.partition("=")[0] for wish in wishes)}
        chosen = {name: getattr(asked, name) for name in names}
        if METHODS[settings.method].models_images and "augmentation" not in names:
            plan = make_plan(dataset, found, **chosen, augmentation="flips")
            why = "A model of the images would also learn the bias, blur and noise that augmentation makes up."
            plan = replace(plan, reasons=plan.reasons | {"augmentation": why})
        else:
            plan = make_plan(dataset, found, **chosen)
    check_plan(plan)
    return plan


def _check(settings: TrainSettings, recipe: TrainConfig, method: Method) -> None:
    """Refuse numbers that only the loop would stumble over."""
    rules = {
        "--seed is 0 or more": settings.seed >= 0,
        "--val-every is at least 1": settings.validate_every is None or settings.validate_every >= 1,
        "train.save_every and train.log_every are at least 1": min(recipe.save_every, recipe.log_every) >= 1,
        "train.validation_cases is 0 or more": recipe.validation_cases >= 0,
        "train.ema is between 0 and 1": 0 <= recipe.ema <= 1,
        "train.floor is between 0 and 1": 0 <= recipe.floor <= 1,
        "train.weight_decay and train.clip are 0 or more": min(recipe.weight_decay, recipe.clip) >= 0,
        "train.warmup is 0 or more": recipe.warmup >= 0,
    }
    for rule, holds in rules.items():
        if not holds:
            raise UserError(rule)
    if method.generative:
        method.sampling(None, None)


def _labels(settings: TrainSettings, dataset: Dataset, fold: dict[str, list[str]]) -> dict[str, int] | None:
    """The class of each case for a method that learns from labels; None for one that learns from masks."""
    if METHODS[settings.method].supervision == "mask":
        if settings.labels is not None:
            raise UserError(f"--labels: the method {settings.method} learns from masks", do="Choose --method cdm")
        return None
    labels = read_labels(dataset, settings.labels)
    check_labels(labels, fold["train"], list(dataset.labels))
    return labels


def _claim(
    settings: TrainSettings,
    plan: Plan,
    config: Any,
    recipe: TrainConfig,
    fold: dict[str, list[str]],
    labels: dict[str, int] | None,
) -> None:
    """Take the out folder, or make sure that a resumed run is the same run."""
    out, asked = settings.out, {
        "method": settings.method, "fold": settings.fold, "seed": settings.seed, "steps": settings.steps,
        "plan": to_dict(plan), "config": to_dict(config), "train": to_dict(recipe), "cases": fold, "image_labels": labels,
    }  # fmt: skip
    record = out / "run.json"
    if record.exists():
        if not settings.resume:
            raise UserError("already holds a run", file=out, do="Give --resume to continue it, or another --out.")
        before = read_json(record)
        if not isinstance(before, dict):
            raise UserError("is no record of a run", file=record, do="Start again in another --out.")
        before, now = _comparable(before, config), _comparable(asked, config)
        changed = [key for key in now if before.get(key) != now[key]]
        if changed:
            raise UserError(f"--resume with another {', '.join(changed)} than the run was started with", file=out)
        return
    save_plan(plan, out / "plan.json")
    write_json(record, asked)


def _comparable(record: dict[str, Any], config: Any) -> dict[str, Any]:
    """A run's record with the defaults of settings that are newer than it, and without reasons, which decide nothing."""
    filled = json.loads(json.dumps(record))
    for key, cls in {"plan": Plan, "config": type(config), "train": TrainConfig}.items():
        if isinstance(filled.get(key), dict):
            defaults = {f.name: f.default for f in fields(cls) if f.default is not MISSING}
            filled[key] = json.loads(json.dumps(defaults)) | filled[key]
            filled[key].pop("reasons", None)
    return filled


def _optimisers(method: Method, recipe: TrainConfig) -> Optimisers:
    """One AdamW per set of modules; phases that train the same modules share it."""
    found: Optimisers = {}
    for phase in method.phases:
        parameters = [p for name in phase.modules for p in method.get_submodule(name).parameters()]
        found.setdefault(
            "+".join(phase.modules),
            torch.optim.AdamW(parameters, phase.learning_rate, phase.betas, weight_decay=recipe.weight_decay),
        )
    return found


def _meta(settings: TrainSettings, dataset: Dataset, fold: dict[str, list[str]]) -> dict[str, Any]:
    """Where a checkpoint came from: its training and validation cases by hash, so that nobody tests on them unawares."""
    by_id = {case.id: case for case in dataset.cases}
    digest = lambda case: image_digest(by_id[case].images[0])
    return {
        "name": f"{dataset.name}/{settings.method}/fold{settings.fold}",
        "seed": settings.seed,
        "fold": settings.fold,
        "training_cases": {case: digest(case) for case in fold["train"]},
        "validation_cases": {case: digest(case) for case in fold["val"]},
        "dataset_licence": str(dataset.extra.get("licence", "unknown")),
        "dataset_reference": str(dataset.extra.get("reference", "")),
    }
