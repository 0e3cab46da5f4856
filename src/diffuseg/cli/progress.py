"""How far a command is that goes through cases: bars on a terminal, lines without one."""

from contextlib import ExitStack
from typing import TYPE_CHECKING

import typer

from diffuseg.cli.app import is_quiet
from diffuseg.pulse import Pulse, duration, watching

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console


class ProgressBars:
    """Two bars with the time left: cases, and the draws of the present case; without a terminal, a line per case.

    Within a case tiles count. Without a terminal a line tells after each minute, or tenth of a case, how far it is.
    """

    def __init__(self, console: "Console", passes: int = 0) -> None:
        """passes: denoising steps of all draws of a case, where that is known."""
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.fields[count]}"))
        left = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        self.lines = not console.is_terminal and not is_quiet()
        self.progress = Progress(
            *columns, *left, console=console, disable=not console.is_terminal or is_quiet(), transient=True
        )
        self.cases = self.progress.add_task("cases", total=None, count="")
        self.draws = self.progress.add_task("this case", total=None, count="")
        self.passes, self.done, self.name = passes, 0.0, "at work"
        self.pulse, self.within = Pulse(), Pulse()
        self.stack = ExitStack()

    def __enter__(self) -> "ProgressBars":
        self.progress.start()
        self.stack.enter_context(watching(self.beat))
        self.within.due(0.0)
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()
        self.progress.stop()

    def aside(self, tell: "Callable[[], None]") -> None:
        """Let something else be printed, while the bars are away."""
        self.progress.stop()
        tell()
        self.progress.start()

    def case(self, name: str, number: int, cases: int) -> None:
        """A case is begun."""
        if self.lines:
            typer.echo(f"{number + 1}/{cases} {name}", err=True)
        self.progress.update(self.cases, completed=number, total=cases, count=f"{number}/{cases}")
        self.progress.reset(self.draws, description=name, total=None)
        self.name, self.done, self.within = name, 0.0, Pulse()
        self.within.due(0.0)  # its first line is the name

    def beat(self, share: float) -> None:
        """A tile of the present case is done."""
        self.done += share
        part = min(self.done / self.passes, 1.0) if self.passes else 0.0
        if self.passes:
            self.progress.update(self.draws, completed=part, total=1, count=f"{part:.0%} of the draws")
        if self.lines and self.within.due(part):
            known = f"{part:.0%} of the draws, {self.within.left(part)}" if self.passes else "at work"
            typer.echo(f"{self.name}: {known} ({duration(self.within.clock() - self.within.started)} so far)", err=True)

    def draw(self, done: int, draws: int) -> None:
        """So many draws of the present case are done."""
        self.progress.update(self.draws, completed=done / draws, total=1, count=f"{done}/{draws} draws")

    def measured(self, done: int, cases: int) -> None:
        """So many cases are done, in a command that only counts them."""
        self.progress.update(self.cases, completed=done, total=cases, count=f"{done}/{cases}")
        if self.lines and (self.pulse.due(done / cases) or done == cases):
            typer.echo(", ".join(filter(None, (f"{done} of {cases}", self.pulse.left(done / cases)))), err=True)
        self.name, self.done, self.within = f"{done + 1} of {cases}", 0.0, Pulse()
        self.within.due(0.0)

    def say(self, text: str) -> None:
        """One line of the results, above the bars."""
        if self.progress.disable:
            typer.echo(text)
        else:
            self.progress.console.print(text, markup=False, highlight=False, soft_wrap=True)
