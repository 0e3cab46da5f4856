"""What a training shows while it runs: a bar with the time left, a CSV, TensorBoard, and pictures."""

import csv
import io
from pathlib import Path
from types import TracebackType
from typing import Any

import rich.progress
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from diffuseg.atomic_io import atomic_write
from diffuseg.errors import UserError
from diffuseg.text import pluralize


class Progress:
    """Bar on the terminal, `log.csv` and `tensorboard/` in the run's folder, `validation.png` after each validation.

    On resuming at step n, what was written beyond n is dropped, so that curves continue as if nothing had happened.
    Only the first process of several shows or writes anything.
    """

    def __init__(self, out: Path, step: int, steps: int, minutes: float | None, shown: bool) -> None:
        self.out, self.step, self.shown, self.minutes = out, step, shown, minutes
        self.text, self.score = "", ""
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.bar = rich.progress.Progress(*columns, TextColumn("left"), TimeRemainingColumn(), disable=not shown)
        total = steps if minutes is None else int(60 * minutes)
        self.task = self.bar.add_task("training", total=total, completed=step if minutes is None else 0)
        self.saliency_task: Any = None
        self.rows: list[dict[str, Any]] = _read(out / "log.csv", step) if shown else []

    def __enter__(self) -> "Progress":
        if self.shown:
            from torch.utils.tensorboard import SummaryWriter

            self.board: Any = SummaryWriter(str(self.out / "tensorboard"), purge_step=self.step + 1)
            self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self.shown:
            self.bar.stop()
            self.write()
            self.board.close()

    def note(self, text: str) -> None:
        """One line for the user."""
        if self.shown:
            self.bar.console.print(text, highlight=False, markup=False)

    def advance(self, step: int, seconds: float, log: dict[str, float] | None) -> None:
        """A step is done; `log` is given when it is to be written down."""
        if not self.shown:
            return
        if log is not None:
            self.rows.append({"step": step, "seconds": round(seconds, 1)} | log)
            for key, value in log.items():
                self.board.add_scalar(key, value, step)
            losses = [f"{k.split('/')[0]} {v:.3f}" for k, v in log.items() if k.endswith("/loss")]
            self.text = "  ".join(losses)
            if len(self.rows) % 20 == 0:
                self.write()
        done = step if self.minutes is None else seconds
        self.bar.update(self.task, completed=done, description=f"{self.text}  {self.score}".strip() or "training")

    def saliency_measured(self, done: int, total: int) -> None:
        """After the training: the maps of so many training images are measured."""
        if self.saliency_task is None:
            self.saliency_task = self.bar.add_task("maps of training images", total=total)
        self.bar.update(self.saliency_task, completed=done)

    def validated(self, step: int, seconds: float, result: Any) -> None:
        """A validation is done: score, row, picture."""
        self.score = str(result)
        row = {f"validation/{key}": value for key, value in result.values.items()}
        for key, value in row.items():
            self.board.add_scalar(key, value, step)
        self.rows.append({"step": step, "seconds": round(seconds, 1)} | row)
        self.write()
        self.note(f"step {step}: validation {result} ({pluralize(result.cases, 'case')})")
        if result.pictures:
            from diffuseg.reports.figures import validation_figure

            try:
                atomic_write(self.out / "validation.png", validation_figure(result.pictures))
            except Exception as error:  # a picture is not worth a training
                self.note(f"Warning: validation.png could not be drawn ({type(error).__name__}: {error})")

    def write(self) -> None:
        """Bring `log.csv` up to date."""
        keys = list(dict.fromkeys(key for row in self.rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, keys)
        writer.writeheader()
        writer.writerows(self.rows)
        atomic_write(self.out / "log.csv", text.getvalue())
        self.board.flush()


def _read(path: Path, step: int) -> list[dict[str, Any]]:
    """Rows of an interrupted run up to the step that it is resumed from."""
    if not path.exists() or step == 0:
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [{k: v for k, v in row.items() if v != ""} for row in csv.DictReader(file)]
        return [row for row in rows if int(row["step"]) <= step]
    except (ValueError, KeyError, TypeError, csv.Error):
        raise UserError("is damaged", file=path, do="Remove it: training goes on without its curve so far") from None
