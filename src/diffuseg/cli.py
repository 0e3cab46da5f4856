"""The commands: parsing and printing, nothing else. What is heavy is imported by the command that needs it."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from diffuseg import __version__
from diffuseg.bars import Bars
from diffuseg.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

USER_ERROR, SOME_FAILED, INTERRUPTED = 2, 3, 130


class EmptyRule(StrEnum):
    """The rules of `diffuseg.evaluation.metrics.Empty`, without importing it."""

    nan = "nan"
    one = "one"
    zero = "zero"


class Fuse(StrEnum):
    """The names in `diffuseg.inference.fusion.FUSIONS`, without importing it."""

    mean = "mean"
    vote = "vote"
    staple = "staple"


class Commands(TyperGroup):
    """Turns a fault that the user can mend into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; UserError exits with 2, an interrupt with 130, both with one line and no traceback."""
        try:
            return super().invoke(ctx)
        except UserError as fault:
            _complain(f"error: {fault}")
            raise typer.Exit(USER_ERROR) from None
        except KeyboardInterrupt:
            _complain("interrupted")
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    cls=Commands,
    help="Segment medical images with conditional diffusion models, with an honest uncertainty. For research only.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """What the command `diffuseg` calls."""
    app(prog_name="diffuseg")


def _version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"diffuseg {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def plan(
    dataset: Annotated[Path, typer.Argument(help="Folder in the nnU-Net v2 raw or the MSD layout.")],
    out: Annotated[Path | None, typer.Option(help="Where to write the plan.", show_default="./<name>_plan.json")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a plan that is already there.")] = False,
) -> None:
    """Decide how to train on a data set, and say why; the plan is a JSON file to be looked at and edited."""
    from rich.markup import escape
    from rich.table import Table

    from diffuseg.data.dataset import open_dataset
    from diffuseg.data.plan import explain, fingerprint, make_plan, save_plan

    data = open_dataset(dataset)
    name = "".join(c if c.isalnum() or c in "-_." else "_" for c in data.name)
    path = out or Path(f"{name}_plan.json")
    if path.exists() and not overwrite:
        raise UserError("there is a plan already", file=path, do="Give another --out, or --overwrite")
    made = make_plan(data, fingerprint(data))
    table = Table("setting", "value", "reason", title=escape(data.name))
    for row in explain(made):
        table.add_row(*map(escape, row))
    _console().print(table)
    save_plan(made, path)
    typer.echo(f"{path}: written; edit it and give it to `diffuseg train --plan`")


@app.command()
def train(
    dataset: Annotated[Path, typer.Argument(help="Folder in the nnU-Net v2 raw or the MSD layout.")],
    out: Annotated[Path, typer.Option(help="Folder of the run: checkpoints, logs, pictures.")],
    method: Annotated[str, typer.Option(help="unet, concat, cdal, medsegdiff or medsegdiff_v2.")] = "cdal",
    fold: Annotated[int, typer.Option(help="Fold to validate on.")] = 0,
    plan: Annotated[Path | None, typer.Option(help="An edited plan.", show_default="made from the data")] = None,
    max_minutes: Annotated[float | None, typer.Option(help="Stop after this time.")] = None,
    steps: Annotated[int | None, typer.Option(help="Stop after so many steps.", show_default="the plan's")] = None,
    preset: Annotated[str | None, typer.Option(help="Settings of a paper, such as cdal/hippocampus.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="key=value of the method, plan.key=value, train.key=value; repeatable.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of all randomness.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.", show_default="a GPU if there is one")] = None,
    precision: Annotated[str, typer.Option(help="auto, bf16 or fp32.")] = "auto",
    val_every: Annotated[int | None, typer.Option(help="Steps between validations.", show_default="an eighth of all")] = None,
) -> None:
    """Train a method on one fold; under torchrun the same command trains on several GPUs and nodes."""
    from diffuseg.train.loop import TrainSettings
    from diffuseg.train.loop import train as run

    best = run(
        TrainSettings(
            dataset=dataset,
            method=method,
            out=out,
            fold=fold,
            plan=plan,
            steps=steps,
            max_minutes=max_minutes,
            preset=preset,
            set=set_ or [],
            resume=resume,
            seed=seed,
            device=device,
            precision=precision,
            validate_every=val_every,
        )
    )
    typer.echo(f"best checkpoint: {best}")


@app.command()
def predict(
    model: Annotated[str, typer.Argument(help="A checkpoint, or the name of a packaged model such as hippocampus.")],
    inputs: Annotated[list[Path], typer.Argument(metavar="INPUT...", help="Images, or folders with images.")],
    out: Annotated[Path, typer.Option(help="Folder for masks, probabilities, entropy and a .json per case.")],
    draws: Annotated[
        int | None,
        typer.Option(help="Segmentations drawn per case; their spread is the uncertainty.", show_default="recommended, or 8"),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps per draw.", show_default="the model's")] = None,
    sampler: Annotated[str | None, typer.Option(help="ancestral, ddim, ...", show_default="the model's")] = None,
    fuse: Annotated[Fuse, typer.Option(help="How the draws make one mask; probabilities are always their mean.")] = Fuse.mean,
    seed: Annotated[int, typer.Option(help="Same seed, same result.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.", show_default="a GPU if there is one")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Also do cases that are already finished.")] = False,
) -> None:
    """Segment images in their own geometry, with uncertainty. Exit code 3: some cases failed, the others are kept."""
    from diffuseg.inference.files import predict_folder
    from diffuseg.inference.model import NOTICE, load

    loaded = load(model, device)
    typer.echo(f"{loaded.name} ({loaded.hash}) on {loaded.device}, {loaded.precision.reason}")
    best = loaded.recommended(draws, steps, sampler)
    if best is not None:
        what = f"draws {best['draws']}, steps {best['steps']}: recommended by `diffuseg curve`"
        typer.echo(f"{what} (fold {best['fold']}, {best['cases']} cases); --draws and --steps choose otherwise")
    with Bars(_console(stderr=True)) as bars:
        report = predict_folder(loaded, inputs, out, draws, seed, steps, sampler, overwrite, bars.case, bars.draw, fuse.value)
    for case, reason in report.skipped:
        typer.echo(f"skipped {case}: {reason}")
    for case, reason in report.failed:
        _complain(f"failed {case}: {reason}")
    counts = {"finished": report.finished, "skipped": report.skipped, "failed": report.failed}
    typer.echo(f"{out}: " + ", ".join(f"{len(cases)} {what}" for what, cases in counts.items() if cases) + f". {NOTICE}")
    if report.failed:
        raise typer.Exit(SOME_FAILED if report.finished or report.skipped else USER_ERROR)


@app.command()
def curve(
    model: Annotated[str, typer.Argument(help="A checkpoint, or the name of a packaged model.")],
    dataset: Annotated[Path, typer.Argument(help="The data set it was trained on: validation cases of a fold are measured.")],
    out: Annotated[Path | None, typer.Option(help="Folder for curve.csv, .json, .png.", show_default="./<model>_curve")] = None,
    steps: Annotated[str, typer.Option(help="Numbers of steps, such as 1,2,4.", show_default="powers of two")] = "",
    draws: Annotated[str, typer.Option(help="Numbers of draws.")] = "1,2,4,8",
    fold: Annotated[int | None, typer.Option(help="Fold to measure on.", show_default="the model's")] = None,
    cases: Annotated[int, typer.Option(min=0, help="So many of its cases, spread evenly; 0: all.")] = 0,
    sampler: Annotated[str | None, typer.Option(help="ancestral, ddim, ...", show_default="the model's")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.", show_default="a GPU if there is one")] = None,
    store: Annotated[bool, typer.Option(help="Write the recommended setting into the checkpoint (its hash changes).")] = True,
) -> None:
    """Measure Dice, calibration, time and memory over steps x draws, and recommend the cheapest good setting."""
    from diffuseg.inference.curve import measure_curve, table, write_curve
    from diffuseg.inference.model import load
    from diffuseg.train.checkpoint import amend_meta

    loaded = load(model, device)
    with Bars(_console(stderr=True)) as bars:
        found = measure_curve(
            loaded, dataset, _numbers("--steps", steps), _numbers("--draws", draws), fold, cases, sampler, on_case=bars.measured
        )
    _console().print(table(found))
    for path in write_curve(found, out or Path(f"{Path(model).stem}_curve")):
        typer.echo(f"written: {path}")
    if store and Path(model).is_file():
        amend_meta(Path(model), {"recommended": found.recommendation()})
        typer.echo(f"{model}: remembers the recommended setting")


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
    measured = measure(predictions, labels, out, empty=empty.value, nsd_tolerance=nsd_tolerance)
    _console().print(table(measured))
    how = {"Predictions": str(predictions), "Labels": str(labels)} | made_by(predictions, measured.cases)
    pictures = case_pictures(measured, images)
    if pictures:
        picture = out / "cases.png"
        write_whole(picture, stacked([png for _, png in pictures]))
        typer.echo(f"picture: {picture}")
    typer.echo(f"page:    {write_page(out / 'index.html', measured, pictures, how)}")
    for fault in measured.faults:
        _complain(f"failed {fault}")
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
    _console().print(*tables(found), sep="\n")
    if out is not None:
        typer.echo(f"{out / 'comparison.json'}: written")


@app.command("demo-data")
def demo_data(
    out: Annotated[Path, typer.Argument(help="Folder for the data set.")],
    cases: Annotated[int, typer.Option(min=1, help="Number of volumes.")] = 40,
    test_cases: Annotated[int, typer.Option(min=0, help="Further volumes in imagesTs and labelsTs.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the volumes.")] = 0,
) -> None:
    """Make up a small 3-D data set with an ambiguous border; no patient, no licence."""
    from diffuseg.data.synthetic import make_dataset

    try:
        make_dataset(out, cases=cases, seed=seed, test_cases=test_cases)
    except OSError as error:
        raise UserError(f"cannot be written ({error.strerror or error})", file=out) from None
    typer.echo(f"{out}: {cases} volumes to train on, {test_cases} to test on")


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise UserError(f"{option} {text}: expected whole numbers, such as 1,2,4") from None


def _console(stderr: bool = False) -> "Console":
    from rich.console import Console

    return Console(stderr=stderr)


def _complain(text: str) -> None:
    typer.secho(" ".join(text.split()), fg="red", err=True)


if __name__ == "__main__":
    main()
