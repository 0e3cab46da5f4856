"""Commands that measure a trained model on its validation cases, and keep what they learn in it: `curve`, `calibrate`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from diffuseg.cli.app import Device, OneModel, SomeCases, app, beside, complain, console, refuse_unwritable
from diffuseg.cli.predict import Fuse, SameDraws, SameFuse, SameSampler, SameSteps
from diffuseg.cli.progress import ProgressBars
from diffuseg.errors import UserError


@app.command()
def curve(
    model: OneModel,
    dataset: Annotated[Path, typer.Argument(help="The data set it was trained on: validation cases of a fold are measured.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for curve.csv, .json, .png.", show_default="curve, beside the model")
    ] = None,
    steps: Annotated[str, typer.Option(help="Numbers of steps, such as 1,2,4.", show_default="powers of two")] = "",
    draws: Annotated[str, typer.Option(help="Numbers of draws.")] = "1,2,4,8",
    fold: Annotated[int | None, typer.Option(help="Fold to measure on.", show_default="the model's")] = None,
    cases: SomeCases = 0,
    sampler: Annotated[str | None, typer.Option(help="ancestral, ddim, ...", show_default="the model's")] = None,
    device: Device = None,
    store: Annotated[bool, typer.Option(help="Write the recommended setting into the checkpoint, beside its weights.")] = True,
    calibrate_too: Annotated[
        bool, typer.Option("--calibrate", help="Then calibrate the model for what is recommended.")
    ] = False,
) -> None:
    """Measure Dice, calibration, time and memory over steps x draws, and recommend the cheapest good setting."""
    from diffuseg.checkpoint import amend_meta
    from diffuseg.inference.checkpoints import one_model
    from diffuseg.inference.model import load
    from diffuseg.inference.sampling import SamplingOptions
    from diffuseg.studies.curve import measure_curve, table, write_curve

    model = one_model(model)
    if calibrate_too and not (store and Path(model).is_file()):
        raise UserError(
            "--calibrate needs a checkpoint to write to", do="Leave out --no-store, or give a checkpoint of your own"
        )
    out = out or beside(model, "curve")
    refuse_unwritable(out, model if store else None)
    loaded = load(model, device)
    with ProgressBars(console(stderr=True)) as bars:
        options, counts = SamplingOptions(sampler=sampler), (_numbers("--steps", steps), _numbers("--draws", draws))
        found = measure_curve(loaded, dataset, *counts, options, fold, cases, bars.measured)
    console().print(table(found))
    for path in write_curve(found, out):
        typer.echo(f"written: {path}")
    if store and Path(model).is_file():
        amend_meta(Path(model), {"recommended": found.recommendation()}, loaded.hash)
        typer.echo(f"{model}: remembers the recommended setting")
        again = load(model, device)
        fits = again.calibration is not None and not again.calibration.mismatch(again.settings())
        if again.calibration is not None and not calibrate_too:
            typer.echo(again.calibration.announce(again.settings()))
        if not fits and not calibrate_too:
            typer.echo(f"to calibrate it for the recommended setting: diffuseg calibrate {model} {dataset}")
        if calibrate_too:
            calibrate(model, dataset, None, fold=fold, cases=cases, device=device)


@app.command()
def calibrate(
    model: OneModel,
    dataset: Annotated[Path, typer.Argument(help="The data set it was trained on: validation cases of a fold are used.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for calibration.json and plots.", show_default="calibration, beside the model")
    ] = None,
    draws: SameDraws = None,
    steps: SameSteps = None,
    sampler: SameSampler = None,
    fuse: SameFuse = Fuse.mean,
    fold: Annotated[int | None, typer.Option(help="Fold to learn from.", show_default="the model's")] = None,
    cases: SomeCases = 0,
    device: Device = None,
    store: Annotated[bool, typer.Option(help="Write what is learnt into the checkpoint, beside its weights.")] = True,
    like: Annotated[
        Path | None,
        typer.Option(help="Predictions of the images it will be used on, another scanner's say: cases like these count more."),
    ] = None,
) -> None:
    """Learn a temperature, honest volume intervals and which cases a human should look at; predict then uses them."""
    from diffuseg.checkpoint import amend_meta
    from diffuseg.inference.checkpoints import one_model
    from diffuseg.inference.model import load
    from diffuseg.inference.sampling import SamplingOptions
    from diffuseg.studies.calibrate import measure_calibration
    from diffuseg.studies.calibrate_files import tables, write_calibration

    model = one_model(model)
    out = out or beside(model, "calibration")
    refuse_unwritable(out, model if store else None)
    loaded = load(model, device)
    with ProgressBars(console(stderr=True)) as bars:
        options = SamplingOptions(draws, steps, sampler, fuse=fuse.value)
        found = measure_calibration(loaded, dataset, options, fold, cases, bars.measured, like)
    console().print(*tables(found), sep="\n")
    for path in write_calibration(found, loaded.hash, out):
        typer.echo(f"written: {path}")
    if store and Path(model).is_file():
        amend_meta(Path(model), {"calibration": asdict(found.calibration)}, loaded.hash)
        typer.echo(f"{model}: remembers what was learnt, for the same draws, steps, sampler and fusion")
        missed = found.calibration.mismatch(loaded.settings())
        if missed:
            complain(f"Warning: predict does not use it unless it is told the same: learnt with {missed}")


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise UserError(f"{option} {text}: expected whole numbers, such as 1,2,4") from None
