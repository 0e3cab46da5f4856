"""Commands that measure predictions: `evaluate`, `compare`, `report`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from diffuseg.bars import Bars
from diffuseg.cli.app import SOME_FAILED, app, complain, console
from diffuseg.errors import UserError


class EmptyRule(StrEnum):
    """The rules of `diffuseg.evaluation.metrics.Empty`, without importing it."""

    nan = "nan"
    one = "one"
    zero = "zero"


@app.command()
def evaluate(
    predictions: Annotated[Path, typer.Argument(metavar="PRED_DIR", help="Folder with predicted masks.")],
    labels: Annotated[Path, typer.Argument(metavar="LABELS_DIR", help="Folder with masks of the same names.")],
    out: Annotated[Path, typer.Option(help="Folder for cases.csv, summary.json and index.html.")],
    images: Annotated[
        Path | None, typer.Option(help="Folder with the images, for the pictures.", show_default="beside LABELS_DIR")
    ] = None,
    empty: Annotated[EmptyRule, typer.Option(help="Score of a class that is in neither mask; nan: no score.")] = EmptyRule.nan,
    nsd_tolerance: Annotated[float, typer.Option(help="Tolerance of the normalised surface Dice in mm.")] = 1.0,
) -> None:
    """Compare predictions with masks: scores per case and class, means with 95 % intervals, and one page to look at.

    Exit code 3: some cases could not be compared, the others were.
    """
    from diffuseg.evaluation.evaluate import evaluate as measure
    from diffuseg.evaluation.evaluate import table
    from diffuseg.evaluation.report import case_pictures, made_by, stacked, write_page
    from diffuseg.whole import write_whole

    if images is not None and not images.is_dir():
        raise UserError("no such folder", file=images)
    measured = measure(predictions, labels, out, empty.value, nsd_tolerance, images)
    console().print(table(measured))
    how = {"Predictions": str(predictions), "Labels": str(labels)} | made_by(predictions, measured.cases)
    pictures = case_pictures(measured, images)
    if pictures:
        picture = out / "cases.png"
        write_whole(picture, stacked([png for _, png in pictures]))
        typer.echo(f"picture: {picture}")
    typer.echo(f"page:    {write_page(out / 'index.html', measured, pictures, how)}")
    for fault in measured.faults:
        complain(f"failed {fault}")
    if measured.faults:
        raise typer.Exit(SOME_FAILED)


@app.command()
def compare(
    evaluations: Annotated[list[Path], typer.Argument(metavar="EVAL...", help="Folders that `diffuseg evaluate` wrote.")],
    out: Annotated[Path | None, typer.Option(help="Folder for comparison.json.", show_default="printed only")] = None,
    metric: Annotated[list[str] | None, typer.Option(help="Repeatable.", show_default="dice and hd95")] = None,
    label: Annotated[str | None, typer.Option("--class", help="A class.", show_default="mean of classes")] = None,
    allow_seen: Annotated[bool, typer.Option("--allow-seen", help="Also cases of a model's training or validation.")] = False,
) -> None:
    """Compare evaluations of the same cases: paired differences, tests over patients, who would be first how often."""
    from diffuseg.evaluation.compare import DEFAULT, tables
    from diffuseg.evaluation.compare import compare as hold

    found = hold(evaluations, out, metric or DEFAULT, label, allow_seen)
    console().print(*tables(found), sep="\n")
    if out is not None:
        typer.echo(f"{out / 'comparison.json'}: written")


@app.command()
def report(
    evaluations: Annotated[list[Path], typer.Argument(metavar="EVAL...", help="Folders that `diffuseg evaluate` wrote.")],
    out: Annotated[Path, typer.Option(help="The page, one file.")],
    allow_seen: Annotated[bool, typer.Option("--allow-seen", help="As in compare.")] = False,
) -> None:
    """Write one page about evaluations side by side: numbers, tests, cases, calibration, rejection, cost."""
    from diffuseg.evaluation.side_by_side import write_report

    with Bars(console(stderr=True)) as bars:
        page, refused = write_report(evaluations, out, allow_seen, bars.measured)
    if refused:
        typer.echo(f"not compared: {refused}")
    typer.echo(f"page: {page}")
