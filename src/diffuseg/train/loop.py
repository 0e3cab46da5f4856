"""The loop: it knows phases, not methods. One step = one batch, and every phase whose turn it is."""

import hashlib
import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffuseg.checkpoint import save_checkpoint
from diffuseg.errors import UserError
from diffuseg.inference.saliency_calibration import calibrate_checkpoints
from diffuseg.methods import Method, Phase
from diffuseg.text import pluralize
from diffuseg.train.interrupt import Interrupt
from diffuseg.train.progress import Progress
from diffuseg.train.setup import Run, TrainConfig, TrainSettings, prepare
from diffuseg.train.state import load_state, save_state
from diffuseg.train.validate import validate

VALIDATIONS = 8  # of a training, evenly spread, where nothing else is asked for
VALIDATING = 0.25  # of a training by the clock: more than this share does not go into validations on the way

__all__ = ["TrainConfig", "TrainSettings", "step", "train"]


def train(settings: TrainSettings) -> Path:
    """Train one method on one fold; returns the checkpoint that validated best.

    Refuses unknown methods, presets and settings, an out folder that already holds a run (without --resume), a fold that
    does not exist, and a resume with other settings than the run was started with. Ctrl-C stops after the step under way,
    saves, and is a KeyboardInterrupt.
    """
    run = prepare(settings)
    state = settings.out / "resume.safetensors"
    if settings.resume and state.exists():
        scalars = load_state(state, run.method, run.average, run.optimisers)
        run.step, run.seconds, run.best = scalars["step"], scalars["seconds"], scalars["best"]
    with Progress(settings.out, run.step, run.steps, settings.max_minutes, run.fabric.is_global_zero) as progress:
        progress.note(f"{settings.method} on {run.fabric.device}, {run.precision.reason}")
        stopped = _train(run, progress, state)
        _save(run, progress, state)
        if stopped:
            progress.note(f"stopped at step {run.step}; continue with --resume")
            raise KeyboardInterrupt
        if run.fabric.is_global_zero:
            meta = run.meta | {"steps_trained": run.step, "seconds": run.seconds}
            save_checkpoint(settings.out / "last.safetensors", run.average, meta)
            if run.method.supervision == "image_label":
                _compare_maps(run, progress)
        progress.note(f"best validation score {run.best:.4f}; waited {100 * _waited(run):.0f} % of the time for data")
        if run.step < run.recipe.warmup:
            done = pluralize(run.step, "step was", "steps were")
            few = f"only {done} done, fewer than the {run.recipe.warmup} over which the learning rate rises"
            progress.note(f"Warning: {few}: this model has hardly learnt anything. Give it more time or steps.")
    return settings.out / "best.safetensors"


def _compare_maps(run: Run, progress: Progress) -> None:
    """Let both checkpoints know what maps of training images look like, by the labels of these images."""
    settings = run.settings
    progress.note("comparing the maps of training images with and without the object; no mask is read")
    places = [settings.out / f"{name}.safetensors" for name in ("best", "last")]
    found = calibrate_checkpoints(places, settings.dataset, settings.labels, str(run.fabric.device), on_case=progress.compared)
    if found is None:
        progress.note("Warning: maps of images without the object are not above 0: each image gets a border of its own")


def _train(run: Run, progress: Progress, state: Path) -> bool:
    """All steps that are left; whether Ctrl-C stopped them early."""
    every = run.settings.validate_every
    world, rank = run.fabric.world_size, run.fabric.global_rank
    started, before = time.monotonic(), run.seconds
    limit = math.inf if run.settings.max_minutes is None else 60 * run.settings.max_minutes
    if run.seconds >= limit:
        return False  # a finished run that is resumed
    with Interrupt(_say_so if run.fabric.is_global_zero else lambda: None) as interrupt:
        for batch in run.batches.iterate(run.step, run.steps, rank, world):
            done = max(run.step / run.steps, run.seconds / limit)
            log = step(run, batch.to(run.fabric.device), done)
            run.step += 1
            run.seconds = before + time.monotonic() - started
            reached = max(run.step / run.steps, run.seconds / limit)
            due = run.step % every == 0 if every else int(VALIDATIONS * reached) > int(VALIDATIONS * done)
            spare = math.isinf(limit) or run.validating <= VALIDATING * run.seconds  # a busy machine shall train, not validate
            told = (
                run.seconds >= limit,
                interrupt.asked,
                due and spare,
            )  # clocks differ between processes: the first one's counts
            out_of_time, stopped, due = run.fabric.broadcast(told)
            last = run.step == run.steps or out_of_time
            # The first step and every so many from there: even turns, as those of rare phases are.
            told_of = (run.step - 1) % run.recipe.log_every == 0 or last
            progress.advance(run.step, run.seconds, log if told_of else None)
            if due or last:
                _validate(run, progress)
            if run.step % run.recipe.save_every == 0:
                _save(run, progress, state)
            if out_of_time or stopped:
                return stopped and not last
    return False


def _say_so() -> None:
    # Not through the progress bar: a signal may come while that is printing, and printing within printing is an error.
    os.write(2, b"\nstopping after this step; Ctrl-C once more stops at once\n")


def step(run: Run, batch: Any, done: float) -> dict[str, float]:
    """One batch through every phase whose turn it is; `done` in [0, 1] sets the learning rate. Returns what to log."""
    run.method.train()
    log: dict[str, float] = {}
    for index, phase in enumerate(run.method.phases):
        if run.step % phase.every:
            continue
        _only(run.method, phase)
        seed = _mix(run.settings.seed, run.step, index, run.fabric.global_rank)
        rng = torch.Generator().manual_seed(seed)
        torch.manual_seed(_mix(seed))  # what dropout uses: a resumed run shall drop the same
        optimiser = run.optimisers["+".join(phase.modules)]
        rate = phase.learning_rate * _schedule(run.step, done, run.recipe)
        for group in optimiser.param_groups:
            group["lr"] = rate
        with run.precision.autocast(run.fabric.device):
            loss, said = run.method.loss(batch, phase, rng)
        if not math.isfinite(float(loss.detach())):
            what = f"the loss of {phase.name} is {float(loss.detach())} at step {run.step + 1}"
            raise UserError(
                what, do="Lower the learning rate, or look for odd images; --resume goes on from the last good state"
            )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        parameters = [p for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
        _average_gradients(run, parameters)
        if run.recipe.clip:
            torch.nn.utils.clip_grad_norm_(parameters, run.recipe.clip)
        optimiser.step()
        log |= {f"{phase.name}/{k}": float(v) for k, v in {"loss": loss.detach(), **said}.items()}
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
    """Exponential moving average of the weights and of batch statistics, with a decay that starts low."""
    decay = min(run.recipe.ema, (1 + run.step) / (10 + run.step))
    new: list[Tensor] = list(run.method.parameters())
    torch._foreach_lerp_(list[Tensor](run.average.parameters()), new, 1 - decay)
    for kept, buffer in zip(run.average.buffers(), run.method.buffers(), strict=True):
        if kept.is_floating_point():
            kept.lerp_(buffer, 1 - decay)


def _schedule(step: int, done: float, recipe: TrainConfig) -> float:
    """Linear warm-up, then a cosine from 1 to the floor."""
    warm = min((step + 1) / max(recipe.warmup, 1), 1.0)
    return warm * (recipe.floor + (1 - recipe.floor) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


def _mix(*numbers: int) -> int:
    """One seed from several numbers."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:7], "big")


def _validate(run: Run, progress: Progress) -> None:
    started, score = time.monotonic(), -math.inf
    if run.fabric.is_global_zero:
        with run.precision.autocast(run.fabric.device):
            result = validate(run.average, run.batches, run.validation)
        score = result.score
        progress.validated(run.step, run.seconds, result)
        if score > run.best:
            meta = run.meta | {"steps_trained": run.step, "seconds": run.seconds, "validation": result.summary()}
            save_checkpoint(run.settings.out / "best.safetensors", run.average, meta)
    run.best = max(run.best, run.fabric.broadcast(score))
    run.validating += time.monotonic() - started


def _save(run: Run, progress: Progress, state: Path) -> None:
    if run.fabric.is_global_zero:
        progress.write()  # first: a kill must not leave a state that is ahead of its log
        scalars = {"step": run.step, "seconds": run.seconds, "best": run.best}
        save_state(state, run.method, run.average, run.optimisers, scalars)


def _waited(run: Run) -> float:
    return run.batches.waited / max(run.batches.total, 1e-9)
