"""What a training shows while it runs: a bar or lines with the time left, a CSV, curves for other programs, and pictures."""

import csv
import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import rich.progress
from rich.console import Console, RenderableType
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from diffuseg.atomic_io import atomic_write
from diffuseg.errors import UserError
from diffuseg.pulse import Pulse, duration, watching
from diffuseg.text import pluralize
from diffuseg.train.loggers import Loggers

WRITTEN = 10.0  # seconds of training after which log.csv is brought up to date


class _Bar(rich.progress.Progress):
    """Under the bar a line of its own for losses and the last validation: both are readable at 80 columns."""

    below = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield Text(self.below, no_wrap=True, overflow="ellipsis")


class Progress:
    """Bar on the terminal, `log.csv` in the run's folder, `validation.png` after each validation.

    The same numbers go to `loggers`, see `train/loggers.py`, which are opened when it is entered.

    Without a terminal a line tells the first step, each tenth, and what is new after a minute. On resuming at step n, what
    was written beyond n is dropped, so that curves continue as if nothing had happened; `kept` is n, and whether the
    validation at step n is to be done again. Only the first process of several shows or writes anything.
    """

    def __init__(
        self, out: Path, kept: tuple[int, bool], steps: int, minutes: float | None, shown: bool, loggers: Loggers
    ) -> None:
        self.out, self.step, self.shown, self.minutes, self.steps = out, kept[0], shown, minutes, steps
        self.losses, self.score, self.now = "", "", "validating"
        self.console, self.complaints = Console(), Console(stderr=True)
        self.live = shown and self.console.is_terminal
        text = lambda field: TextColumn(field, markup=False)
        columns = (text("{task.description}"), BarColumn(20), text("{task.fields[count]}"), TimeElapsedColumn())
        self.bar = _Bar(*columns, TextColumn("left"), TimeRemainingColumn(), console=self.console, disable=not self.live)
        total = steps if minutes is None else 60 * minutes
        self.task = self.bar.add_task("training", total=total, completed=kept[0] if minutes is None else 0, count="")
        self.saliency_task: Any = None
        self.pulse, self.tiles, self.written = Pulse(), Pulse(), 0.0
        self.prepared = 0.0  # seconds before the first step, which count where the training goes by the clock
        self.rows: list[dict[str, Any]] = _read(out / "log.csv", *kept) if shown else []
        self.loggers = loggers

    def __enter__(self) -> "Progress":
        if self.shown:
            self.loggers.open(self.out, self.step, self.warn)
            self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self.shown:
            self.bar.stop()
            try:
                self.write()
            finally:
                self.loggers.close(failed=kind is not None)

    def note(self, text: str) -> None:
        """One line for the user."""
        if self.shown:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """One line that is also said where nothing else is."""
        if self.shown:
            self.complaints.print(f"Warning: {text}", highlight=False, markup=False, soft_wrap=True)

    def advance(self, step: int, seconds: float, log: dict[str, float], logged: bool) -> None:
        """A step is done; its values are written down where they are to be `logged`.

        Args:
            step: Number of the step.
            seconds: Since the training began, those before a resume included.
            log: Losses and rate by name.
            logged: Whether they are written to log.csv.
        """
        if not self.shown:
            return
        self.losses = ", ".join(f"{k.split('/')[0]} {v:.3f}" for k, v in log.items() if k.endswith("/loss")) or self.losses
        if logged:
            self.rows.append({"step": step, "seconds": round(seconds, 1)} | log)
            self.loggers.log(log, step)
            if len(self.rows) == 1 or seconds - self.written >= WRITTEN:
                self.written = seconds
                self.write()
        done, total = (step, self.steps) if self.minutes is None else (seconds + self.prepared, 60 * self.minutes)
        count = f"{step}/{self.steps} steps" if self.minutes is None else f"{duration(done)} of {duration(total)} time"
        self.bar.below = self._state()
        self.bar.update(self.task, completed=done, count=count)
        if not self.live and self.pulse.due(share := min(done / total, 1.0)):
            at = f"step {step} of {self.steps}" if self.minutes is None else f"step {step}, {count}"
            left = self.pulse.left(share) if self.minutes is None else f"{duration(total - done)} left"
            self.note(", ".join(part for part in (at, self._state(), left) if part))

    def _state(self) -> str:
        """The losses of the last step that had them, and the last validation."""
        return "; ".join(part for part in (f"loss: {self.losses}" if self.losses else "", self.score) if part)

    def saliency_measured(self, done: int, total: int) -> None:
        """After the training: the maps of so many training images are measured."""
        if self.saliency_task is None:
            self.saliency_task = self.bar.add_task("maps of training images", total=total, count="")
            self.pulse = Pulse()
        self.bar.update(self.saliency_task, completed=done, count=f"{done}/{total}")
        if not self.live and self.pulse.due(done / total):
            self.note(f"maps: {done} of {total}")

    def validating(self, done: int, cases: int) -> None:
        """A validation is under way, and so many cases are done."""
        if not self.shown:
            return
        self.now = f"validating: {done} of {pluralize(cases, 'case')}"
        self.bar.below = f"{self.now}; {self._state()}"
        self.bar.refresh()

    @contextmanager
    def beating(self) -> Iterator[None]:
        """While it is entered, a line tells after each minute that the validation is still at work."""
        self.tiles, self.now = Pulse(), "validating"
        self.tiles.due(0.0)

        def on_beat(share: float) -> None:
            if self.shown and not self.live and self.tiles.due(0.0):
                self.note(f"{self.now} ({duration(self.tiles.clock() - self.tiles.started)})")

        with watching(on_beat):
            yield

    def validated(self, step: int, seconds: float, result: Any) -> None:
        """A validation is done: score, row, picture."""
        self.score = f"{result} at step {step}"
        self.bar.below = self._state()
        row = {f"validation/{key}": value for key, value in result.values.items()}
        self.loggers.log(row, step)
        self.rows.append({"step": step, "seconds": round(seconds, 1)} | row)
        self.write()
        self.note(f"step {step}: validation {result} ({pluralize(result.cases, 'case')})")
        if result.pictures:
            from diffuseg.reports.figures import validation_figure

            try:
                atomic_write(self.out / "validation.png", validation_figure(result.pictures))
            except Exception as error:  # a picture is not worth a training
                self.warn(f"validation.png could not be drawn ({type(error).__name__}: {error})")

    def write(self) -> None:
        """Bring `log.csv` up to date."""
        keys = list(dict.fromkeys(key for row in self.rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, keys)
        writer.writeheader()
        writer.writerows(self.rows)
        atomic_write(self.out / "log.csv", text.getvalue())
        self.loggers.flush()


def _read(path: Path, step: int, again: bool) -> list[dict[str, Any]]:
    """Rows of an interrupted run up to the step that it is resumed from; its last validation may have to be done `again`."""
    if not path.exists() or step == 0:
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [{k: v for k, v in row.items() if v != ""} for row in csv.DictReader(file)]
        validated = lambda row: any(key.startswith("validation/") for key in row)
        return [row for row in rows if int(row["step"]) <= step - (again and validated(row))]
    except (ValueError, KeyError, TypeError, csv.Error):
        raise UserError("is damaged", file=path, do="Remove it: training goes on without its curve so far") from None
