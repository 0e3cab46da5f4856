"""The bars of a command that goes through cases: how far it is, and the time left."""

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console


class ProgressBars:
    """Two bars with the time left: cases, and the draws of the present case; without a terminal, a line per case."""

    def __init__(self, console: "Console") -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        left = (TextColumn("left"), TimeRemainingColumn())
        self.progress = Progress(*columns, *left, console=console, disable=not console.is_terminal, transient=True)
        self.cases = self.progress.add_task("cases", total=None)
        self.draws = self.progress.add_task("draws", total=None)

    def __enter__(self) -> "ProgressBars":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def case(self, name: str, number: int, cases: int) -> None:
        if self.progress.disable:
            typer.echo(f"{number + 1}/{cases} {name}", err=True)
        self.progress.update(self.cases, completed=number, total=cases)
        self.progress.reset(self.draws, description=f"draws of {name}", total=None)

    def draw(self, done: int, draws: int) -> None:
        self.progress.update(self.draws, completed=done, total=draws)

    def measured(self, done: int, cases: int) -> None:
        self.progress.update(self.cases, completed=done, total=cases)
