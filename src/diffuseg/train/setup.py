"""What a run needs before its first step: settings, data, plan, model, optimisers, and a folder of its own."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from diffuseg.config import from_dict, override, to_dict
from diffuseg.data.batches import Batches
from diffuseg.data.dataset import Dataset, check_patient_leakage, open_dataset, refuse_other_channels, splits
from diffuseg.data.labels import check_labels, read_labels
from diffuseg.data.plan import Plan, check_plan, fingerprint, load_plan, make_plan
from diffuseg.data.world import training_fingerprint
from diffuseg.device import Precision
from diffuseg.errors import UserError
from diffuseg.inference.checkpoints import model_file
from diffuseg.inference.dicom_codes import check_codes, read_codes
from diffuseg.methods import METHODS, Method
from diffuseg.methods.presets import PRESETS, method_of, preset_of
from diffuseg.text import did_you_mean, nearest, pluralize
from diffuseg.train.compiled import compile_networks
from diffuseg.train.distributed import Processes, join_processes
from diffuseg.train.finetune import history, start_from
from diffuseg.train.memory import AUTO, batch_that_fits, recompute_blocks
from diffuseg.train.precision import training_precision
from diffuseg.train.run_folder import digests_of_files, name_in, name_twins, reserve_folder
from diffuseg.train.settings import TrainConfig, TrainSettings, check_config, check_options
from diffuseg.train.state import Optimisers
from diffuseg.train.validate import Validation


@dataclass
class TrainState:
    """A training under way.

    seconds     of wall time, with those of earlier sittings, from the first step of each
    prepared    seconds before the first steps, of all sittings; they count where the training goes by the clock
    validating  seconds of this sitting that went into validations
    best        validation score so far
    waiting     validations since that one
    due         a validation was begun, or should have been, and is not done
    bounds      which cases a training by the clock validates on, and whether patches of them; None before the first validation
    notes       what the set-up has to say
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
    prepared: float = 0.0
    validating: float = 0.0
    best: float = -math.inf
    waiting: int = 0
    due: bool = False
    bounds: dict[str, Any] | None = None
    lengthened: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def patient(self) -> bool:
        """Whether the training goes on, as far as --patience is concerned."""
        return self.settings.patience is None or self.waiting < self.settings.patience

    @property
    def told(self) -> dict[str, Any]:
        """What services are told of the training: how it is done, and not on what."""
        asked, configs = self.settings, {"": self.method.config, "train.": self.config}
        settings = {prefix + key: value for prefix, config in configs.items() for key, value in to_dict(config).items()}
        return {"method": asked.method, "fold": asked.fold, "seed": asked.seed, "steps": asked.steps} | settings


def set_up(settings: TrainSettings, say: Callable[[str], None] = lambda text: None) -> TrainState:
    """Everything that `train` works with.

    Args:
        settings: The options of the training.
        say: Called with a line before the cases are read, which takes minutes where they are large or many.

    Raises:
        UserError: as `train` says.
    """
    dataset, fold, labels = _open_data(settings)
    check_options(settings)
    if settings.start is not None:
        settings = replace(settings, start=model_file(settings.start))
    processes = join_processes(settings.device)
    if processes.is_first:
        say(f"reading {pluralize(len(dataset.cases), 'case')}")
    plan, method_config, config = _configure(settings, dataset)
    check_config(config)
    torch.manual_seed(settings.seed)  # initial weights; everything later has generators of its own
    method = METHODS[settings.method](plan, method_config).to(processes.device)
    method.check_training()
    if settings.start is not None:
        start_from(method, settings.start)
    digests = digests_of_files(dataset, fold)
    name_twins(dataset, fold, digests)
    provenance = _provenance(settings, dataset, fold, digests)
    processes.broadcast_weights(method)
    if method.generative:
        method.sampling(None, None)
    precision = processes.broadcast(training_precision(method, processes.device, settings.precision))
    plan, notes = _batch(settings, method, precision, processes, plan)
    average = copy.deepcopy(method).requires_grad_(False)
    if config.checkpointing:
        recompute_blocks(method)
    if settings.compile:
        names = compile_networks(method, plan.batch, precision, processes.device)
        notes += (f"compiled: {', '.join(names)}",)
    lengthened = None
    if processes.is_first:  # one for all: a second would find the folder taken
        lengthened = reserve_folder(settings, plan, method_config, config, fold, labels, digests)
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
        notes=notes,
    )


def _open_data(settings: TrainSettings) -> tuple[Dataset, dict[str, list[str]], dict[str, int] | None]:
    """The data set, the cases of the fold, and the image-level labels if the method learns from these."""
    if settings.method not in METHODS:
        raise UserError(f"unknown method {settings.method!r}", do=did_you_mean(settings.method, METHODS))
    if settings.preset is not None and preset_of(settings.preset) is None:
        raise UserError(f"unknown preset {settings.preset!r}", do=did_you_mean(settings.preset, PRESETS))
    if settings.preset is not None and method_of(settings.preset) != settings.method:
        raise UserError(f"the preset {settings.preset} is one of --method {method_of(settings.preset)}, not {settings.method}")
    dataset = open_dataset(settings.dataset, masks=METHODS[settings.method].supervision == "mask")
    folds = splits(dataset)
    check_patient_leakage(dataset)
    if not 0 <= settings.fold < len(folds):
        raise UserError(f"there is no fold {settings.fold}", do=f"Folds are 0 to {len(folds) - 1}.")
    fold = folds[settings.fold]
    return dataset, fold, _labels(settings, dataset, fold)


def _batch(
    settings: TrainSettings, method: Method, precision: Precision, processes: Processes, plan: Plan
) -> tuple[Plan, tuple[str, ...]]:
    """The plan with the batch of --batch auto, and a line about it; a resumed run keeps its own."""
    if settings.batch != AUTO:
        return plan, ()
    if settings.resume:
        batch = load_plan(settings.out / "plan.json").batch
    else:
        batch = processes.broadcast(batch_that_fits(method, precision, processes.device))
    method.plan = replace(plan, batch=batch, reasons=plan.reasons | {"batch": "the largest that fits into the GPU"})
    return method.plan, (f"batch of {batch}: the largest that fits",)


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
    batch = [] if settings.batch in (None, AUTO) else [f"plan.batch={settings.batch}"]
    for assignment in [*settings.set, *batch]:
        group, dot, rest = assignment.partition(".")
        if dot and group in overrides and "=" not in group:
            overrides[group].append(rest)
        else:
            overrides[""].append(assignment)
    plan = _plan(settings, dataset, preset.get("plan", {}), overrides["plan"])
    names = {"plan": Plan, "train": TrainConfig, "": type(method_config)}
    others = lambda own: [
        f"{group}.{field.name}".lstrip(".") for group, cls in names.items() if group != own for field in fields(cls)
    ]
    changed = override(method_config, overrides[""], elsewhere=others(""))
    return plan, changed, override(config, overrides["train"], "train.", others("train"))


def _plan(settings: TrainSettings, dataset: Dataset, preset: dict[str, Any], overrides: list[str]) -> Plan:
    """The plan of a file with the overrides put in; or made from the data, where later decisions follow the overrides."""
    if settings.plan is not None:
        given = load_plan(settings.plan)
        _refuse_other_set(given, dataset, settings.plan)
        plan = override(from_dict(Plan, to_dict(given) | preset), overrides, "plan.")
        changed = [key for key, value in vars(plan).items() if value != getattr(given, key)]
        plan = replace(plan, reasons=plan.reasons | dict.fromkeys(changed, "as asked for"))
    else:
        measured = fingerprint(dataset)
        overridden = override(from_dict(Plan, to_dict(make_plan(dataset, measured)) | preset), overrides, "plan.")
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


def _refuse_other_set(plan: Plan, dataset: Dataset, file: Path) -> None:
    """Refuse a plan that was made for other classes or channels than those of the data set."""
    for what, own, there in (("labels", plan.labels, dataset.labels), ('"ignore"', plan.ignore, dataset.ignore)):
        if own != there:
            do = _renamed(plan.labels, dataset.labels) if what == "labels" else ""
            those = "those" if what == "labels" else "that"
            text = f"its {what} {_listed(own)}, and {those} of {dataset.folder} {_listed(there)}"
            raise UserError(text, file=file, do=f"{do}Make a plan of this data set")
    refuse_other_channels(dataset, plan.channels, str(file))


def _listed(labels: dict[str, int] | int | None) -> str:
    if not isinstance(labels, dict):
        return "is none" if labels is None else f"is {labels}"
    return f"are {', '.join(f'{name} = {value}' for name, value in labels.items())}"


def _renamed(own: dict[str, int], there: dict[str, int]) -> str:
    """Names of a plan that may be mistyped ones of the data set."""
    near = [(name, nearest(name, there)) for name in own if name not in there]
    return "".join(f"Did you mean {meant} by {name}? " for name, meant in near if meant)


def _labels(settings: TrainSettings, dataset: Dataset, fold: dict[str, list[str]]) -> dict[str, int] | None:
    """The class of each case for a method that learns from labels; None for one that learns from masks."""
    if METHODS[settings.method].supervision == "mask":
        if settings.labels is not None:
            raise UserError(f"--labels: the method {settings.method} learns from masks", do="Choose --method cdm")
        return None
    labels = read_labels(dataset, settings.labels)
    check_labels(labels, fold["train"], list(dataset.labels))
    return labels


def fingerprint_of(processes: Processes, dataset: Dataset, cases: list[str], plan: Plan) -> dict[str, Any]:
    """What predictions are compared with, for the header of checkpoints; only the first process writes these."""
    return {"fingerprint": training_fingerprint(dataset, cases, plan)} if processes.is_first else {}


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
    digest = lambda case: digests[name_in(dataset, by_id[case].images[0])]
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
