"""The loop: it knows phases, not methods. One step = one batch, and every phase whose turn it is."""

import copy
import hashlib
import json
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffuseg.config import from_dict, override, to_dict
from diffuseg.data.batches import Batches
from diffuseg.data.dataset import Dataset, open_dataset, splits
from diffuseg.data.plan import Plan, fingerprint, load_plan, make_plan, save_plan
from diffuseg.errors import UserError
from diffuseg.methods import METHODS, Method, Phase
from diffuseg.methods.presets import PRESETS
from diffuseg.precision import Precision, choose_precision
from diffuseg.train.checkpoint import save_checkpoint
from diffuseg.train.progress import Progress
from diffuseg.train.state import Optimisers, load_state, save_state
from diffuseg.train.validate import Validation, validate


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


@dataclass(frozen=True)
class Recipe:
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
    """A training under way."""

    settings: TrainSettings
    recipe: Recipe
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
    best: float = -1.0


def train(settings: TrainSettings) -> Path:
    """Train one method on one fold; returns the checkpoint that validated best.

    Refuses unknown methods, presets and settings, an out folder that already holds a run (without --resume), a fold that
    does not exist, and a resume with other settings than the run was started with.
    """
    run = _prepare(settings)
    state = settings.out / "resume.safetensors"
    if settings.resume and state.exists():
        scalars = load_state(state, run.method, run.average, run.optimisers)
        run.step, run.seconds, run.best = scalars["step"], scalars["seconds"], scalars["best"]
    with Progress(settings.out, run.step, run.steps, settings.max_minutes, run.fabric.is_global_zero) as progress:
        progress.note(f"{settings.method} on {run.fabric.device}, {run.precision.reason}")
        try:
            _train(run, progress, state)
        except KeyboardInterrupt:
            _save(run, state)
            progress.note(f"stopped at step {run.step}; continue with --resume")
            raise
        _save(run, state)
        if run.fabric.is_global_zero:
            save_checkpoint(settings.out / "last.safetensors", run.average, run.meta | {"steps_trained": run.step})
        progress.note(f"best validation Dice {run.best:.4f}; waited {100 * _waited(run):.0f} % of the time for data")
    return settings.out / "best.safetensors"


def _train(run: Run, progress: Progress, state: Path) -> None:
    every = run.settings.validate_every or max(run.steps // 8, 1)
    world, rank = run.fabric.world_size, run.fabric.global_rank
    started, before = time.monotonic(), run.seconds
    limit = math.inf if run.settings.max_minutes is None else 60 * run.settings.max_minutes
    for batch in run.batches.iterate(run.step, run.steps, rank, world):
        done = max(run.step / run.steps, run.seconds / limit)
        log = step(run, batch.to(run.fabric.device), done)
        run.step += 1
        run.seconds = before + time.monotonic() - started
        out_of_time = run.fabric.broadcast(run.seconds >= limit)
        last = run.step == run.steps or out_of_time
        progress.advance(run.step, run.seconds, log if run.step % run.recipe.log_every == 0 or last else None)
        if run.step % every == 0 or last:
            _validate(run, progress)
        if run.step % run.recipe.save_every == 0:
            _save(run, state)
        if out_of_time:
            break


def step(run: Run, batch: Any, done: float) -> dict[str, float]:
    """One batch through every phase whose turn it is; `done` in [0, 1] sets the learning rate. Returns what to log."""
    run.method.train()
    log: dict[str, float] = {}
    for index, phase in enumerate(run.method.phases):
        if run.step % phase.every:
            continue
        _only(run.method, phase)
        rng = torch.Generator().manual_seed(_mix(run.settings.seed, run.step, index, run.fabric.global_rank))
        optimiser = run.optimisers["+".join(phase.modules)]
        rate = phase.learning_rate * _schedule(run.step, done, run.recipe)
        for group in optimiser.param_groups:
            group["lr"] = rate
        with run.precision.autocast(run.fabric.device):
            loss, said = run.method.loss(batch, phase, rng)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        parameters = [p for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
        _average_gradients(run, parameters)
        if run.recipe.clip:
            torch.nn.utils.clip_grad_norm_(parameters, run.recipe.clip)
        optimiser.step()
        log |= {f"{phase.name}/loss": float(loss.detach())} | {f"{phase.name}/{k}": float(v) for k, v in said.items()}
        log["rate"] = rate
    _follow(run)
    return log


def _only(method: Method, phase: Phase) -> None:
    """Gradients reach exactly the modules that the phase names."""
    for name, module in method.named_children():
        module.requires_grad_(name in phase.modules)


def _average_gradients(run: Run, parameters: list[torch.nn.Parameter]) -> None:
    """The mean over processes, by hand: phases that train part of a model, or twice differentiate it, stay simple."""
    if run.fabric.world_size == 1:
        return
    flat: Tensor = torch.cat([p.grad.flatten() for p in parameters])  # type: ignore[union-attr]
    flat = run.fabric.all_reduce(flat, reduce_op="mean")
    for p, g in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad = g.view_as(p)


@torch.no_grad()
def _follow(run: Run) -> None:
    """Exponential moving average of the weights, with a decay that starts low."""
    decay = min(run.recipe.ema, (1 + run.step) / (10 + run.step))
    new, old = list(run.method.parameters()), list(run.average.parameters())
    torch._foreach_lerp_(old, new, 1 - decay)


def _schedule(step: int, done: float, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine from 1 to the floor."""
    warm = min((step + 1) / max(recipe.warmup, 1), 1.0)
    return warm * (recipe.floor + (1 - recipe.floor) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


def _mix(*numbers: int) -> int:
    """One seed from several numbers."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:7], "big")


def _validate(run: Run, progress: Progress) -> None:
    score = 0.0
    if run.fabric.is_global_zero:
        with run.precision.autocast(run.fabric.device):
            result = validate(run.average, run.batches, run.validation)
        score = result.dice
        progress.validated(run.step, run.seconds, result)
        if score > run.best:
            meta = run.meta | {"steps_trained": run.step, "seconds": run.seconds, "validation": result.summary()}
            save_checkpoint(run.settings.out / "best.safetensors", run.average, meta)
    run.best = max(run.best, run.fabric.broadcast(score))


def _save(run: Run, state: Path) -> None:
    if run.fabric.is_global_zero:
        scalars = {"step": run.step, "seconds": run.seconds, "best": run.best}
        save_state(state, run.method, run.average, run.optimisers, scalars)


def _waited(run: Run) -> float:
    return run.batches.waited / max(run.batches.total, 1e-9)


# -- what a run needs before its first step ---------------------------------------------------------------------------


def _prepare(settings: TrainSettings) -> Run:
    if settings.method not in METHODS:
        raise UserError(f"unknown method {settings.method!r}", do=f"Known: {', '.join(METHODS)}")
    if settings.preset is not None and settings.preset not in PRESETS:
        raise UserError(f"unknown preset {settings.preset!r}", do=f"Known: {', '.join(PRESETS)}")
    dataset = open_dataset(settings.dataset)
    folds = splits(dataset)
    if not 0 <= settings.fold < len(folds):
        raise UserError(f"there is no fold {settings.fold}", do=f"Folds are 0 to {len(folds) - 1}.")
    fold = folds[settings.fold]
    fabric = _fabric(settings.device)
    plan, config, recipe = _configure(settings, dataset)
    if settings.steps is not None:
        steps = settings.steps
    else:
        steps = plan.steps if settings.max_minutes is None else 10**9
    if steps < 1:
        raise UserError(f"--steps {steps}: at least one step is needed")
    _claim(settings, plan, config, recipe)
    torch.manual_seed(settings.seed)  # initial weights; everything later has generators of its own
    method = METHODS[settings.method](plan, config).to(fabric.device)
    method = fabric.broadcast(method) if fabric.world_size > 1 else method
    average = copy.deepcopy(method).requires_grad_(False)
    precision = choose_precision(fabric.device, settings.precision)
    return Run(
        settings, recipe, plan, method, average, _optimisers(method, recipe),
        Batches(dataset, fold["train"], plan, settings.seed),
        Validation(dataset, fold["val"], plan, settings.seed, recipe.validation_cases),
        precision, fabric, _meta(settings, dataset, fold), steps,
    )  # fmt: skip


def _fabric(device: str | None) -> Any:
    """CPU, one GPU, or under torchrun all the processes it started."""
    from lightning.fabric import Fabric

    accelerator = {"cpu": "cpu", "cuda": "cuda"}.get((device or "").split(":")[0])
    if accelerator is None:
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no CUDA device is available", do="Leave --device out, or give cpu.")
    local, nodes = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), int(os.environ.get("GROUP_WORLD_SIZE", 1))
    distributed = int(os.environ.get("WORLD_SIZE", 1)) > 1
    devices: Any = local
    if accelerator == "cuda" and not distributed and device and ":" in device:
        devices = [int(device.split(":")[1])]
    fabric = Fabric(
        accelerator=accelerator, devices=devices, num_nodes=nodes, strategy="ddp" if distributed else "auto"
    )
    if distributed:
        fabric.launch()
    return fabric


def _configure(settings: TrainSettings, dataset: Dataset) -> tuple[Plan, Any, Recipe]:
    """Plan, method settings and recipe: defaults, then the preset, then --set."""
    plan = load_plan(settings.plan) if settings.plan is not None else make_plan(dataset, fingerprint(dataset))
    preset = PRESETS[settings.preset] if settings.preset else {}
    config = from_dict(METHODS[settings.method].config_class, preset.get("config", {}))
    recipe = from_dict(Recipe, preset.get("train", {}))
    plan = from_dict(Plan, to_dict(plan) | preset.get("plan", {}))
    wishes: dict[str, list[str]] = {"plan": [], "train": [], "": []}
    for wish in settings.set:
        room, dot, rest = wish.partition(".")
        known = dot and room in wishes and "=" not in room
        wishes[room if known else ""].append(rest if known else wish)
    return override(plan, wishes["plan"]), override(config, wishes[""]), override(recipe, wishes["train"])


def _claim(settings: TrainSettings, plan: Plan, config: Any, recipe: Recipe) -> None:
    """Take the out folder, or make sure that a resumed run is the same run."""
    out, asked = settings.out, {
        "method": settings.method, "fold": settings.fold, "seed": settings.seed, "steps": settings.steps,
        "plan": to_dict(plan), "config": to_dict(config), "train": to_dict(recipe),
    }  # fmt: skip
    record = out / "run.json"
    if record.exists():
        if not settings.resume:
            raise UserError("already holds a run", file=out, do="Give --resume to continue it, or another --out.")
        before = json.loads(record.read_text())
        changed = [key for key in asked if before.get(key) != json.loads(json.dumps(asked[key]))]
        if changed:
            raise UserError(f"--resume with another {', '.join(changed)} than the run was started with", file=out)
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(asked, indent=1) + "\n")
        save_plan(plan, out / "plan.json")
    except OSError as error:
        raise UserError(f"cannot write there ({error.strerror})", file=out) from None


def _optimisers(method: Method, recipe: Recipe) -> Optimisers:
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
    digest = lambda case: hashlib.sha256(by_id[case].images[0].read_bytes()).hexdigest()[:16]
    return {
        "name": f"{dataset.name}/{settings.method}/fold{settings.fold}",
        "seed": settings.seed,
        "fold": settings.fold,
        "training_cases": {case: digest(case) for case in fold["train"]},
        "validation_cases": {case: digest(case) for case in fold["val"]},
        "dataset_licence": str(dataset.extra.get("licence", "unknown")),
        "dataset_reference": str(dataset.extra.get("reference", "")),
    }
