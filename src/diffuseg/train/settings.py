"""The options of a training, and what of them can be refused before any work."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from diffuseg.errors import UserError
from diffuseg.train.loggers import Logger, check_loggers


@dataclass(frozen=True)
class TrainSettings:
    """The options of `diffuseg train`. `set` holds key=value strings for method, plan ("plan.") and training ("train.").

    `log_to` holds names, "wandb" or "mlflow", or objects as in `train/loggers.py`.
    """

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
    log_to: Sequence[str | Logger] = ()
    batch: str | None = None
    compile: bool = False


@dataclass(frozen=True)
class TrainConfig:
    """How any method is trained; --set train.key=value changes it.

    ema        decay of the weight average that is validated and shipped (warmed up from the start)
    clip       largest norm of a phase's gradient; 0 for no clipping
    warmup     steps over which the learning rate rises
    floor      last learning rate as a share of the first (cosine)
    save_every steps between resume points
    checkpointing     compute features again for the gradients instead of keeping them: less memory, more time, the same result
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
    checkpointing: bool = False


def check_options(settings: TrainSettings) -> None:
    """Check the options of a training before anything is read.

    Raises:
        UserError: No training can have one of them, or there is no run for --resume.
    """
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
    check_loggers(settings.log_to)
    if settings.batch is not None and settings.batch != "auto" and not settings.batch.isdecimal():
        raise UserError(f"--batch {settings.batch}: expected a number, or auto")
    if settings.resume and not (settings.out / "run.json").exists():
        do = "Give the --out of a run, or leave out --resume to begin one"
        raise UserError("--resume: there is no run here to go on with", file=settings.out, do=do)
    state, last = settings.out / "resume.safetensors", settings.out / "last.safetensors"
    if settings.resume and last.exists() and not state.exists():
        do = "Put it back, or train in another --out: here, what was learnt would be lost"
        raise UserError("--resume: the state of the run is not there", file=state, do=do)


def check_config(config: TrainConfig) -> None:
    """Check numbers that would fail only in the loop.

    Raises:
        UserError: One is out of range.
    """
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
