"""The loop: it knows phases, not methods. One step = one batch, and every phase whose turn it is."""

import hashlib
import math
import os
import time
from pathlib import Path

import torch
from torch import Tensor

from diffuseg.checkpoint import save_checkpoint
from diffuseg.errors import UserError
from diffuseg.inference.saliency_calibration import calibrate_checkpoints
from diffuseg.methods import Method, Phase
from diffuseg.text import pluralize
from diffuseg.train.interrupt import Interrupt
from diffuseg.train.progress import Progress
from diffuseg.train.setup import TrainConfig, TrainSettings, TrainState, set_up
from diffuseg.train.state import load_state, save_state
from diffuseg.train.validate import validate
from diffuseg.types import Batch

VALIDATIONS = 8  # of a training, evenly spread, where nothing else is asked for
VALIDATING = 0.25  # of a training by the clock: more than this share does not go into validations on the way

__all__ = ["TrainConfig", "TrainSettings", "step", "train"]


def train(settings: TrainSettings) -> Path:
    """Train one method on one fold. Ctrl-C stops after the step under way, saves, and is a KeyboardInterrupt.

    Returns:
        The checkpoint that validated best.

    Raises:
        UserError: a method, preset, setting or fold does not exist; the out folder already holds a run (without
            --resume); --resume with other settings than the run was started with.
    """
    state = set_up(settings)
    resume_file = settings.out / "resume.safetensors"
    if settings.resume and resume_file.exists():
        scalars = load_state(resume_file, state.method, state.average, state.optimisers)
        state.step, state.seconds, state.best = scalars["step"], scalars["seconds"], scalars["best"]
    with Progress(settings.out, state.step, state.steps, settings.max_minutes, state.processes.is_first) as progress:
        progress.note(f"{settings.method} on {state.processes.device}, {state.precision.reason}")
        stopped = _train(state, progress, resume_file)
        _save(state, progress, resume_file)
        if stopped:
            progress.note(f"stopped at step {state.step}; continue with --resume")
            raise KeyboardInterrupt
        if state.processes.is_first:
            meta = state.meta | {"steps_trained": state.step, "seconds": state.seconds}
            save_checkpoint(settings.out / "last.safetensors", state.average, meta)
            if state.method.supervision == "image_label":
                _calibrate_saliency(state, progress)
        progress.note(f"best validation score {state.best:.4f}; waited {100 * _waited(state):.0f} % of the time for data")
        if state.step < state.config.warmup:
            done = pluralize(state.step, "step was", "steps were")
            few = f"only {done} done, fewer than the {state.config.warmup} over which the learning rate rises"
            progress.note(f"Warning: {few}: this model has hardly learnt anything. Give it more time or steps.")
    return settings.out / "best.safetensors"


def _calibrate_saliency(state: TrainState, progress: Progress) -> None:
    """Store in both checkpoints what saliency maps of training images look like, by the labels of these images."""
    settings = state.settings
    progress.note("comparing the maps of training images with and without the object; no mask is read")
    checkpoints = [settings.out / f"{name}.safetensors" for name in ("best", "last")]
    device = str(state.processes.device)
    calibration = calibrate_checkpoints(
        checkpoints, settings.dataset, settings.labels, device, on_case=progress.saliency_measured
    )
    if calibration is None:
        what = "saliency of training images without the object is not positive; each image gets a threshold of its own"
        progress.note(f"Warning: {what}")


def _train(state: TrainState, progress: Progress, resume_file: Path) -> bool:
    """Train the steps that are left; returns whether Ctrl-C stopped them early."""
    every, processes = state.settings.validate_every, state.processes
    started, before = time.monotonic(), state.seconds
    limit = math.inf if state.settings.max_minutes is None else 60 * state.settings.max_minutes
    if state.seconds >= limit:
        return False  # a finished run that is resumed
    with Interrupt(_announce_stop if processes.is_first else lambda: None) as interrupt:
        for batch in state.batches.iterate(state.step, state.steps, processes.rank, processes.world_size):
            done = max(state.step / state.steps, state.seconds / limit)
            log = step(state, batch.to(processes.device), done)
            state.step += 1
            state.seconds = before + time.monotonic() - started
            reached = max(state.step / state.steps, state.seconds / limit)
            due = state.step % every == 0 if every else int(VALIDATIONS * reached) > int(VALIDATIONS * done)
            # A busy machine shall train, not validate.
            affordable = math.isinf(limit) or state.validating <= VALIDATING * state.seconds
            # Clocks differ between processes: that of the first one counts.
            flags = (state.seconds >= limit, interrupt.requested, due and affordable)
            out_of_time, stopped, due = processes.broadcast(flags)
            last = state.step == state.steps or out_of_time
            # The first step and every so many from there: even turns, as those of rare phases are.
            logged = (state.step - 1) % state.config.log_every == 0 or last
            progress.advance(state.step, state.seconds, log if logged else None)
            if due or last:
                _validate(state, progress)
            if state.step % state.config.save_every == 0:
                _save(state, progress, resume_file)
            if out_of_time or stopped:
                return stopped and not last
    return False


def _announce_stop() -> None:
    # Not through the progress bar: a signal may come while that is printing, and printing within printing is an error.
    os.write(2, b"\nstopping after this step; Ctrl-C once more stops at once\n")


def step(state: TrainState, batch: Batch, done: float) -> dict[str, float]:
    """Pass one batch through every phase whose turn it is.

    Args:
        state: the training; its weights, averages and optimisers change in place.
        batch: on the device of the training.
        done: share of the training that is done, in [0, 1]; it sets the learning rate.

    Returns:
        What to log: losses and terms as "phase/name", and the learning rate.

    Raises:
        UserError: a loss or a gradient is not finite.
    """
    state.method.train()
    log: dict[str, float] = {}
    for index, phase in enumerate(state.method.phases):
        if state.step % phase.every:
            continue
        _train_only(state.method, phase)
        seed = _seed(state.settings.seed, state.step, index, state.processes.rank)
        rng = torch.Generator().manual_seed(seed)
        torch.manual_seed(_seed(seed))  # what dropout uses: a resumed run shall drop the same
        optimiser = state.optimisers["+".join(phase.modules)]
        rate = phase.learning_rate * _schedule(state.step, done, state.config)
        for group in optimiser.param_groups:
            group["lr"] = rate
        with state.precision.autocast(state.processes.device):
            loss, terms = state.method.loss(batch, phase, rng)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise _not_finite(state, f"the loss of {phase.name} is {value}")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        parameters = [p for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
        _average_gradients(state, parameters)
        norm = torch.nn.utils.clip_grad_norm_(parameters, state.config.clip or math.inf)
        if not math.isfinite(norm):
            raise _not_finite(state, f"the gradient of {phase.name} is {float(norm)}")
        optimiser.step()
        log |= {f"{phase.name}/{name}": float(term) for name, term in {"loss": value, **terms}.items()}
        log["rate"] = rate
    update_ema(state)
    return log


def _not_finite(state: TrainState, what: str) -> UserError:
    """Before any weight has taken it in: what is wrong, and what may be."""
    fp32 = "Give --precision fp32, lower" if state.precision.dtype != torch.float32 else "Lower"
    do = f"{fp32} the learning rate, or look for odd images; --resume goes on from the last good state"
    return UserError(f"{what} at step {state.step + 1}", do=do)


def _train_only(method: Method, phase: Phase) -> None:
    """Gradients reach exactly the modules that the phase names."""
    for name, module in method.named_children():
        module.requires_grad_(name in phase.modules)


def _average_gradients(state: TrainState, parameters: list[torch.nn.Parameter]) -> None:
    """The mean over processes, by hand: phases that train part of a model, or twice differentiate it, stay simple."""
    if state.processes.world_size == 1:
        return
    flat: Tensor = torch.cat([p.grad.flatten() for p in parameters])  # type: ignore[union-attr]
    flat = state.processes.mean(flat)
    for p, g in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad = g.view_as(p)


@torch.no_grad()
def update_ema(state: TrainState) -> None:
    """Update the exponential moving average of weights and batch statistics, with a decay that starts low."""
    decay = min(state.config.ema, (1 + state.step) / (10 + state.step))
    weights: list[Tensor] = list(state.method.parameters())
    torch._foreach_lerp_(list[Tensor](state.average.parameters()), weights, 1 - decay)
    for average, buffer in zip(state.average.buffers(), state.method.buffers(), strict=True):
        if average.is_floating_point():
            average.lerp_(buffer, 1 - decay)


def _schedule(step: int, done: float, config: TrainConfig) -> float:
    """Linear warm-up, then a cosine from 1 to the floor."""
    warm = min((step + 1) / max(config.warmup, 1), 1.0)
    return warm * (config.floor + (1 - config.floor) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


def _seed(*numbers: int) -> int:
    """One seed from several numbers."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:7], "big")


def _validate(state: TrainState, progress: Progress) -> None:
    started, score = time.monotonic(), -math.inf
    if state.processes.is_first:
        with state.precision.autocast(state.processes.device):
            result = validate(state.average, state.batches, state.validation)
        score = result.score
        progress.validated(state.step, state.seconds, result)
        if score > state.best:
            meta = state.meta | {"steps_trained": state.step, "seconds": state.seconds, "validation": result.summary()}
            save_checkpoint(state.settings.out / "best.safetensors", state.average, meta)
    state.best = max(state.best, state.processes.broadcast(score))
    state.validating += time.monotonic() - started


def _save(state: TrainState, progress: Progress, resume_file: Path) -> None:
    if state.processes.is_first:
        progress.write()  # first: a kill must not leave a state that is ahead of its log
        scalars = {"step": state.step, "seconds": state.seconds, "best": state.best}
        save_state(resume_file, state.method, state.average, state.optimisers, scalars)


def _waited(state: TrainState) -> float:
    """Share of the time that was spent waiting for batches."""
    return state.batches.waited / max(state.batches.total, 1e-9)
