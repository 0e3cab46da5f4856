"""Where the curves of a training go besides log.csv: TensorBoard where it is installed, others where they are asked for."""

import importlib
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from diffuseg.atomic_io import atomic_write
from diffuseg.errors import UserError
from diffuseg.text import did_you_mean


@runtime_checkable
class Logger(Protocol):
    """What takes the numbers of a training; an object of one's own can be one."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Take values by name, as they are after so many steps."""

    def flush(self) -> None:
        """Bring what was taken to where it is kept."""

    def close(self, failed: bool) -> None:
        """The training has ended, or `failed`."""


class TensorBoard:
    """Files in the run's folder."""

    def __init__(self, out: Path, step: int, settings: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)

    def log(self, values: dict[str, float], step: int) -> None:
        """As in `Logger`."""
        for key, value in values.items():
            self.writer.add_scalar(key, value, step)

    def flush(self) -> None:
        """As in `Logger`."""
        self.writer.flush()

    def close(self, failed: bool) -> None:
        """As in `Logger`."""
        self.writer.close()


class WandB:
    """Weights & Biases; its own environment variables say where to, and whether online at all (WANDB_PROJECT, WANDB_MODE)."""

    def __init__(self, out: Path, step: int, settings: dict[str, Any]) -> None:
        wandb: Any = importlib.import_module("wandb")
        key = _remembered(out / ".wandb_run", step)
        self.run = wandb.init(id=key or None, resume="allow", name=_name(out), dir=str(out), config=settings)
        atomic_write(out / ".wandb_run", str(self.run.id))

    def log(self, values: dict[str, float], step: int) -> None:
        """As in `Logger`; what comes again after a resume is dropped there."""
        self.run.log(values, step=step)

    def flush(self) -> None:
        """It sends by itself."""

    def close(self, failed: bool) -> None:
        """As in `Logger`."""
        self.run.finish(exit_code=int(failed))


class MLflow:
    """MLflow; its own environment variables say where to (MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME)."""

    def __init__(self, out: Path, step: int, settings: dict[str, Any]) -> None:
        self.mlflow: Any = importlib.import_module("mlflow")
        key = _remembered(out / ".mlflow_run", step)
        run = self.mlflow.start_run(run_id=key or None, run_name=_name(out))
        atomic_write(out / ".mlflow_run", str(run.info.run_id))
        if not key:
            self.mlflow.log_params(settings)

    def log(self, values: dict[str, float], step: int) -> None:
        """As in `Logger`; its names have letters, digits and few signs."""
        self.mlflow.log_metrics({re.sub(r"[^\w\-. /]", "_", key): value for key, value in values.items()}, step=step)

    def flush(self) -> None:
        """It sends by itself."""

    def close(self, failed: bool) -> None:
        """As in `Logger`."""
        self.mlflow.end_run("FAILED" if failed else "FINISHED")


LOGGERS: dict[str, Callable[[Path, int, dict[str, Any]], Logger]] = {"wandb": WandB, "mlflow": MLflow}


class Loggers:
    """TensorBoard and what is asked for. One that fails is warned of and left out: curves are not worth a training.

    Args:
        asked: Names in `LOGGERS`, or loggers.
        settings: What is told of the training to the services that are asked for.
    """

    def __init__(self, asked: Sequence[str | Logger] = (), settings: dict[str, Any] | None = None) -> None:
        self.asked, self.settings, self.active = asked, settings or {}, list[Logger]()
        self.warn: Callable[[str], None] = lambda text: None

    def open(self, out: Path, step: int, warn: Callable[[str], None]) -> None:
        """Begin, in the folder of a run that goes on from a step; `warn` tells of one that fails later.

        Raises:
            UserError: One that is asked for cannot begin.
        """
        self.warn = warn
        with suppress(ImportError):
            self.active.append(TensorBoard(out, step, self.settings))
        for one in self.asked:
            try:
                self.active.append(LOGGERS[one](out, step, self.settings) if isinstance(one, str) else one)
            except Exception as error:  # nobody is known there, or it cannot be reached
                do = "Mend that, or leave out --log-to, and give --resume"
                raise UserError(f"--log-to {one}: it cannot begin ({_reason(error)})", do=do) from None

    def log(self, values: dict[str, float], step: int) -> None:
        """Give the values to all."""
        self._each(lambda logger: logger.log(values, step))

    def flush(self) -> None:
        """Let all of them keep what they have."""
        self._each(lambda logger: logger.flush())

    def close(self, failed: bool) -> None:
        """Tell all of them that the training is over."""
        self._each(lambda logger: logger.close(failed))

    def _each(self, do: Callable[[Logger], None]) -> None:
        for logger in list(self.active):
            try:
                do(logger)
            except Exception as error:  # of a service that cannot be reached, or of a full disk
                self.active.remove(logger)
                self.warn(f"no more curves for {type(logger).__name__} ({_reason(error)}); log.csv has them all")


def check_loggers(asked: Sequence[str | Logger]) -> None:
    """Refuse loggers that are not known or not installed, before any work."""
    for one in asked:
        if isinstance(one, str):
            if one not in LOGGERS:
                raise UserError(f"--log-to {one}: not known", do=did_you_mean(one, LOGGERS))
            try:
                importlib.import_module(one)
            except ImportError:
                raise UserError(f"--log-to {one}: it is not installed", do=f"pip install 'diffuseg[{one}]'") from None


def _remembered(file: Path, step: int) -> str:
    """What a service calls the run that is gone on with; "" for a new one."""
    return file.read_text().strip() if step and file.is_file() else ""


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _name(out: Path) -> str:
    return "/".join(out.absolute().parts[-2:])
