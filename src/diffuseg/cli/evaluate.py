"""Commands that measure: `evaluate`, `compare` and `report` predictions, `ambiguity` of a model against raters."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffuseg.cli.app import SOME_FAILED, Device, SomeCases, app, beside, complain, console
from diffuseg.cli.as_json import JSON, print_json
from diffuseg.cli.progress import ProgressBars
from diffuseg.errors import UserError
from diffuseg.text import pluralize

if TYPE_CHECKING:
    from diffuseg.reports.evaluation import Evaluation


class EmptyRule(StrEnum):
    """The rules of `diffuseg.evaluation.metrics.Empty`, without importing it."""

    nan = "nan"
    one = "one"
    zero = "zero"


@app.command()
def evaluate(
    predictions: Annotated[Path, typer.Argument(metavar="PRED_DIR", help="Folder with predicted masks.")],
    labels: Annotated[Path, typer.Argument(metavar="LABELS_DIR", help="Folder with masks of the same names.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for cases.csv, summary.json and index.html.", show_default="printed only")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder with the images, for the pictures.", show_default="beside LABELS_DIR")
    ] = None,
    empty: Annotated[EmptyRule, typer.Option(help="Score of a class that is in neither mask; nan: no score.")] = EmptyRule.nan,
    nsd_tolerance: Annotated[float, typer.Option(help="Tolerance of the normalised surface Dice in mm.")] = 1.0,
    shard: Annotated[
        str | None,
        typer.Option(
            help="2/4: measure the second of four shares and write its rows, for `merge`; auto: as in predict.",
            show_default="all cases",
        ),
    ] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Compare predictions with masks: scores per case and class, means with 95 % intervals, and one page to look at.

    Exit code 3: some cases could not be compared, the others were.
    """
    if images is not None and out is None:
        raise UserError("--images: pictures are drawn where there is a page", do="Give --out too, or leave it out")
    if images is not None and not images.is_dir():
        raise UserError("no such folder", file=images)
    if shard is not None:
        _measure_shard((predictions, labels, empty.value, nsd_tolerance, images), out, shard)
        return
    from diffuseg.reports.evaluate import evaluate as evaluate_folders

    show(evaluate_folders(predictions, labels, out, empty.value, nsd_tolerance, images), out)


def _measure_shard(asked: tuple[Any, ...], out: Path | None, shard: str) -> None:
    if out is None:
        raise UserError("--shard writes rows for `merge`", do="Give --out, a folder that all shards share")
    from diffuseg.atomic_io import check_writable
    from diffuseg.inference.shards import read_shard
    from diffuseg.reports.evaluate import Comparison
    from diffuseg.reports.shards import evaluate_shard

    check_writable(out)
    chosen = read_shard(shard)
    comparison = Comparison.open(*asked)
    cases = chosen.of(list(comparison.pairs))
    typer.echo(f"{chosen.announce()}: {len(cases)} of {pluralize(len(comparison.pairs), 'case')}")
    faults = evaluate_shard(comparison, out, chosen)
    for fault in faults:
        complain(f"failed {fault}")
    typer.echo(f"when all are through: diffuseg merge {out}")
    if faults:
        raise typer.Exit(SOME_FAILED)


def show(evaluation: "Evaluation", out: Path | None) -> None:
    """Print the table of an evaluation and write its page; exit code 3 where some cases could not be compared."""
    from diffuseg.atomic_io import atomic_write
    from diffuseg.reports.case_pictures import case_pictures, stack_pictures
    from diffuseg.reports.page import write_page
    from diffuseg.reports.tables import evaluation_table

    console().print(evaluation_table(evaluation))
    print_json(evaluation.summary)
    if out is not None:
        pictures = case_pictures([evaluation])
        if pictures:
            picture = out / "cases.png"
            atomic_write(picture, stack_pictures([png for _, png in pictures]))
            typer.echo(f"picture: {picture}")
        with ProgressBars(console(stderr=True)) as bars:
            page = write_page([evaluation], out / "index.html", pictures=pictures, on_case=bars.measured)
        typer.echo(f"page:    {page.file}")
        for line in page.left_out:
            complain(f"probabilities left out: {line}")
    for fault in evaluation.faults:
        complain(f"failed {fault}")
    if evaluation.faults:
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
    from diffuseg.reports.comparison import DEFAULT
    from diffuseg.reports.comparison import compare as compare_folders
    from diffuseg.reports.tables import comparison_tables

    comparison = compare_folders(evaluations, out, metric or DEFAULT, label, allow_seen)
    console().print(*comparison_tables(comparison), sep="\n")
    if out is not None:
        typer.echo(f"{out / 'comparison.json'}: written")


@app.command()
def report(
    evaluations: Annotated[list[Path], typer.Argument(metavar="EVAL...", help="Folders that `diffuseg evaluate` wrote.")],
    out: Annotated[Path | None, typer.Option(help="The page, one file.", show_default="tables are printed only")] = None,
    allow_seen: Annotated[bool, typer.Option("--allow-seen", help="As in compare.")] = False,
) -> None:
    """Write one page about evaluations side by side: numbers, tests, cases, calibration, rejection, cost."""
    from diffuseg.atomic_io import check_writable
    from diffuseg.reports.evaluation import load_evaluations
    from diffuseg.reports.page import write_page
    from diffuseg.reports.tables import evaluation_table

    if out is None:
        for one in load_evaluations(evaluations):
            console().print(evaluation_table(one))
        return
    check_writable(out, file=True)
    loaded = load_evaluations(evaluations)
    with ProgressBars(console(stderr=True)) as bars:
        page = write_page(loaded, out, allow_seen, on_case=bars.measured)
    if page.refused:
        typer.echo(f"not compared: {page.refused}")
    for line in page.left_out:
        complain(f"probabilities left out: {line}")
    typer.echo(f"page: {page.file}")


@app.command()
def ambiguity(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="A checkpoint or a run; several with --ensemble.")],
    dataset: Annotated[Path, typer.Argument(help="A data set with raters: validation cases of a fold are measured.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for cases.csv, summary.json.", show_default="ambiguity, beside the model")
    ] = None,
    draws: Annotated[int, typer.Option(min=1, help="Masks per case; GED depends on their number.")] = 16,
    steps: Annotated[int | None, typer.Option(help="Denoising steps per draw.", show_default="the model's")] = None,
    sampler: Annotated[str | None, typer.Option(help="ancestral, ddim, ...", show_default="the model's")] = None,
    fold: Annotated[int | None, typer.Option(help="Fold to measure on.", show_default="the model's")] = None,
    cases: SomeCases = 0,
    ensemble: Annotated[bool, typer.Option("--ensemble", help="Draw i comes from model i, and around again.")] = False,
    patients: Annotated[
        str | None, typer.Option(help="Regular expression for the patient in a case's name, where the data set does not tell.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same result.")] = 0,
    device: Device = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Do draws differ as raters do? GED, HM-IoU and more, beside what raters reach and what knows nothing of shapes."""
    from diffuseg.atomic_io import check_writable
    from diffuseg.inference.checkpoints import one_model
    from diffuseg.inference.model import load
    from diffuseg.inference.sampling import SamplingOptions
    from diffuseg.studies.ambiguity import measure_ambiguity
    from diffuseg.studies.ambiguity_files import tables, write_ambiguity

    if len(models) > 1 and not ensemble:
        raise UserError(f"{len(models)} models", do="Give one, or --ensemble to measure them together")
    models = [one_model(model) for model in models]
    out = out or beside(models[0], "ambiguity")
    check_writable(out)
    loaded = [load(model, device) for model in models]
    with ProgressBars(console(stderr=True)) as bars:
        options = SamplingOptions(draws, steps, sampler, seed)
        found = measure_ambiguity(loaded, dataset, options, fold, cases, patients, bars.measured)
    console().print(*tables(found), sep="\n")
    for path in write_ambiguity(found, out):
        typer.echo(f"written: {path}")
    print_json(found.summary)
