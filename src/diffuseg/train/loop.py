"""The loop: it knows phases, not methods. One step = one batch, and every phase whose turn it is."""

import hashlib
import math
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from diffuseg.checkpoint import save_checkpoint
from diffuseg.errors import UserError
from diffuseg.inference.saliency_calibration import calibrate_checkpoints
from diffuseg.pulse import duration
from diffuseg.text import pluralize
from diffuseg.timing import timed
from diffuseg.train.interrupt import Interrupt, Stopped
from diffuseg.train.loggers import Loggers
from diffuseg.train.progress import Progress
from diffuseg.train.run_folder import remember_unread
from diffuseg.train.settings import TrainConfig, TrainSettings
from diffuseg.train.setup import TrainState, set_up
from diffuseg.train.state import load_state, save_state
from diffuseg.train.trial import train_only
from diffuseg.train.validate import HeldOut, Result, bounded, validate
from diffuseg.types import Batch

VALIDATIONS = 8  # of a training, evenly spread, where nothing else is asked for
VALIDATING = 0.25  # of a training by the clock: more than this share does not go into validations on the way
ONE_VALIDATION = 1 / 16  # of the same: what a single validation may take
SAVE_SECONDS = 300  # between resume points, where that many steps take longer

__all__ = ["TrainConfig", "TrainSettings", "step", "train"]


def train(settings: TrainSettings, started: float | None = None) -> Path:
    """Train one method on one fold. A signal (Ctrl-C, SIGTERM) stops it after the step or the tile under way, and it saves.

    Args:
        settings: What to train, on what, and for how long.
        started: From when on max_minutes count, by `time.monotonic`; None: from now on.

    Returns:
        The checkpoint that validated best.

    Raises:
        UserError: a method, preset, setting or fold does not exist; the out folder already holds a run (without
            --resume), or none (with it); --resume with other settings than the run was started with.
        KeyboardInterrupt: it was stopped by Ctrl-C; `Terminated` if by SIGTERM.
    """
    started = time.monotonic() if started is None else started
    state = set_up(settings, lambda text: Console().print(text, highlight=False, markup=False, soft_wrap=True))
    resume_file = settings.out / "resume.safetensors"
    if settings.resume and resume_file.exists():
        _restore(state, load_state(resume_file, state.method, state.average, state.optimisers))
    kept = (state.step, state.due)
    loggers = Loggers(settings.log_to, state.told)
    with Progress(settings.out, kept, state.steps, settings.max_minutes, state.processes.is_first, loggers) as progress:
        progress.note(f"{settings.method} on {state.processes.device}, {state.precision.reason}")
        _announce(state, progress)
        try:
            stopped = _train(state, progress, resume_file, started)
        except UserError as fault:
            remember_unread(settings, fault.file)
            raise
        _save(state, progress, resume_file, finished=stopped is None)
        if stopped is not None:
            progress.note(f"stopped at step {state.step}; continue with --resume")
            raise stopped
        if state.processes.is_first and state.method.supervision == "image_label":
            _calibrate_saliency(state, progress)
        if not state.patient:
            progress.note(f"stopped early, at step {state.step}: no better one in {pluralize(state.waiting, 'validation')}")
        waited = f"; waited {100 * _waited(state):.0f} % of the time for data" if state.batches.total else ""
        progress.note(f"best validation score {state.best:.4f}{waited}")
        if state.step < state.config.warmup:
            done = pluralize(state.step, "step was", "steps were")
            few = f"only {done} done, fewer than the {state.config.warmup} over which the learning rate rises"
            progress.warn(f"{few}: this model has hardly learnt anything. Give it more time or steps.")
    return settings.out / "best.safetensors"


def _restore(state: TrainState, scalars: dict[str, Any]) -> None:
    """Go on where the run was; runs of earlier versions say less."""
    state.step, state.seconds, state.best = scalars["step"], scalars["seconds"], scalars["best"]
    state.prepared = scalars.get("prepared", 0.0)
    best = state.settings.out / "best.safetensors"
    if math.isfinite(state.best) and not best.exists():
        do = "Put it back, or train in another --out"
        raise UserError(f"--resume: the checkpoint that validated best, {state.best:.4f}, is not there", file=best, do=do)
    state.waiting, state.due, state.bounds = scalars.get("waiting", 0), scalars.get("due", False), scalars.get("bounds")
    if state.bounds is not None and state.settings.max_minutes is not None:
        names, patches = tuple(state.bounds["cases"]), state.bounds["patches"]
        state.validation = replace(state.validation, only=names, draws=state.bounds["draws"], patches=patches)


def _announce(state: TrainState, progress: Progress) -> None:
    """What the training learns from, and how a resumed one goes on."""
    for note in state.notes:
        progress.note(note)
    learns, looks = len(state.batches.cases), len(state.validation.chosen)
    progress.note(f"{pluralize(learns, 'case')} to learn from, {looks} of {len(state.validation.cases)} to validate on")
    if state.lengthened is not None and state.step:
        rate = _schedule(state.step, state.step / state.steps, state.config)
        how = f"from here on the learning rate is that of a run of {state.steps} steps, now {rate:.3f} of its highest"
        progress.note(f"lengthened from {state.lengthened} to {state.steps} steps, of which {state.step} are done: {how}")


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
        progress.warn("saliency of training images without the object is not positive; each image gets a threshold of its own")


def _train(state: TrainState, progress: Progress, resume_file: Path, begun: float) -> KeyboardInterrupt | None:
    """Train the steps that are left; returns what stopped them early, None where they are done."""
    processes = state.processes
    over = state.seconds + state.prepared >= _minutes(state)  # a finished run that is resumed
    started, before, saved = time.monotonic(), state.seconds, state.seconds
    if not over:
        _count_preparation(state, progress, started - begun)
    limit = _limit(state)
    with Interrupt(_announce_stop if processes.is_first else lambda: None) as interrupt:
        if state.due and not _validate(state, progress, interrupt):
            return interrupt.error
        if over or not state.patient:
            return None
        for batch in state.batches.iterate(state.step, state.steps, processes.rank, processes.world_size):
            done = max(state.step / state.steps, state.seconds / limit)
            log = step(state, batch.to(processes.device), done)
            state.step += 1
            state.seconds = before + time.monotonic() - started
            # Clocks differ between processes: that of the first one counts.
            flags = (state.seconds, state.seconds >= limit, interrupt.requested, _is_due(state, done, limit))
            state.seconds, out_of_time, stopped, due = processes.broadcast(flags)
            last = state.step == state.steps or out_of_time
            state.due = due or last
            # The first step and every so many from there: even turns, as those of rare phases are.
            logged = (state.step - 1) % state.config.log_every == 0 or last
            progress.advance(state.step, state.seconds, log, logged)
            turn = state.step == 1 or state.step % state.config.save_every == 0 or state.seconds - saved > SAVE_SECONDS
            if turn or state.due:  # also before a validation, which may take long
                _save(state, progress, resume_file)
                saved = state.seconds
            if stopped or (state.due and not _validate(state, progress, interrupt)):
                return interrupt.error
            if out_of_time or not state.patient:
                return None
    return None


def _count_preparation(state: TrainState, progress: Progress, seconds: float) -> None:
    """Add to a training by the clock what came before the first step of this sitting, and say so where nothing is left."""
    before = state.seconds + state.prepared
    state.prepared += state.processes.broadcast(seconds)
    progress.prepared, minutes = state.prepared, _minutes(state)
    if state.seconds + state.prepared >= minutes:
        took = f"starting and reading the cases took {duration(seconds)}"
        took += f" after {duration(before)} of earlier runs" if before else ""
        took += f", and --max-minutes are {duration(minutes)}"
        progress.warn(f"{took}: one step is made and saved. Give it more time.")


def _minutes(state: TrainState) -> float:
    """Seconds that the command may take, with its preparation."""
    return math.inf if state.settings.max_minutes is None else 60 * state.settings.max_minutes


def _limit(state: TrainState) -> float:
    """Seconds that the steps and validations of the training may take; one step is always made."""
    return max(_minutes(state) - state.prepared, 1e-3)


def _is_due(state: TrainState, done: float, limit: float) -> bool:
    """Whether a validation on the way is due now, where `done` of the training was done before the last step."""
    every = state.settings.validate_every
    reached = max(state.step / state.steps, state.seconds / limit)
    due = state.step % every == 0 if every else int(VALIDATIONS * reached) > int(VALIDATIONS * done)
    # A busy machine shall train, not validate.
    return due and (math.isinf(limit) or state.validating <= VALIDATING * state.seconds)


def _announce_stop() -> None:
    # Not through the progress bar: a signal may come while that is printing, and printing within printing is an error.
    os.write(2, b"\nstopping after this step or tile; a second signal stops at once\n")


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
        train_only(state.method, phase.modules)
        seed = _seed(state.settings.seed, state.step, index, state.processes.rank)
        rng = torch.Generator().manual_seed(seed)
        torch.manual_seed(_seed(seed))  # what dropout uses: a resumed run shall drop the same
        optimiser = state.optimisers["+".join(phase.modules)]
        rate = phase.learning_rate * _schedule(state.step, done, state.config)
        for group in optimiser.param_groups:
            group["lr"] = rate
        with timed("loss"), state.precision.autocast(state.processes.device):
            loss, terms = state.method.loss(batch, phase, rng)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise _not_finite(state, f"the loss of {phase.name} is {value}")
        optimiser.zero_grad(set_to_none=True)
        with timed("backward"):
            loss.backward()
        parameters = [p for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
        _average_gradients(state, parameters)
        norm = torch.nn.utils.clip_grad_norm_(parameters, state.config.clip or math.inf)
        if not math.isfinite(norm):
            raise _not_finite(state, f"the gradient of {phase.name} is {float(norm)}")
        with timed("update"):
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


def _average_gradients(state: TrainState, parameters: list[torch.nn.Parameter]) -> None:
    """The mean over processes, by hand: phases that train part of a model, or twice differentiate it, stay simple."""
    if state.processes.world_size == 1:
        return
    flat: Tensor = torch.cat([p.grad.flatten() for p in parameters])  # type: ignore[union-attr]
    flat = state.processes.mean(flat)
    for p, g in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad = g.view_as(p)


@torch.no_grad()
@timed("update")
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


@timed("validate")
def _validate(state: TrainState, progress: Progress, interrupt: Interrupt) -> bool:
    """Validate, and keep the best; False where a signal stopped it, which is then due still."""
    started, score = time.monotonic(), None
    if state.processes.is_first:
        result = _result(state, progress, interrupt)
        if result is not None:
            score = result.score
            progress.validated(state.step, state.seconds, result)
            if score > state.best:
                meta = _meta(state) | {"validation": result.summary()}
                save_checkpoint(state.settings.out / "best.safetensors", state.average, meta)
    score = state.processes.broadcast(score)
    if score is None:
        return False
    state.waiting = 0 if score > state.best else state.waiting + 1
    state.best, state.due = max(state.best, score), False
    state.validating += time.monotonic() - started
    return True


def _result(state: TrainState, progress: Progress, interrupt: Interrupt) -> Result | HeldOut | None:
    """What the validation found; None where a signal stopped it."""
    try:
        with interrupt.at_once(), progress.beating(), state.precision.autocast(state.processes.device):
            _bound(state, progress)
            result = validate(state.average, state.batches, replace(state.validation, on_case=progress.validating))
    except Stopped:
        return None
    if math.isfinite(_minutes(state)) and state.bounds is None:  # from now on always the same cases
        chosen = state.validation.chosen[: result.cases]
        if len(chosen) < len(state.validation.chosen):
            state.validation = replace(state.validation, only=tuple(chosen))
        state.bounds = {"cases": chosen, "draws": state.validation.draws, "patches": state.validation.patches}
        state.validation = replace(state.validation, seconds=math.inf)
    return result


def _bound(state: TrainState, progress: Progress) -> None:
    """Before the first validation of a training by the clock: what it can afford. With --steps the clock decides nothing."""
    if math.isinf(_minutes(state)) or state.bounds is not None:
        return
    seconds = ONE_VALIDATION * _minutes(state)
    state.validation = bounded(state.validation, state.average, state.batches, seconds)
    if state.validation.bounds():
        cost = f"to look at more would take longer than {seconds:.{0 if seconds > 10 else 1}f} s, a sixteenth of the time"
        progress.note(f"validations look at {state.validation.bounds()}: {cost}")


def _meta(state: TrainState) -> dict[str, Any]:
    return state.meta | {"steps_trained": state.step, "seconds": state.seconds}


@timed("save")
def _save(state: TrainState, progress: Progress, resume_file: Path, finished: bool = False) -> None:
    """What --resume goes on from, and the average weights as they are now."""
    if state.processes.is_first:
        progress.write()  # first: a kill must not leave a state that is ahead of its log
        scalars = {"step": state.step, "seconds": state.seconds, "prepared": state.prepared, "best": state.best}
        scalars |= {"waiting": state.waiting, "due": state.due, "bounds": state.bounds}
        save_state(resume_file, state.method, state.average, state.optimisers, scalars)
        save_checkpoint(state.settings.out / "last.safetensors", state.average, _meta(state) | {"finished": finished})


def _waited(state: TrainState) -> float:
    """Share of the time that was spent waiting for batches."""
    return min(state.batches.waited / state.batches.total, 1.0)  # a last wait has no step behind it
