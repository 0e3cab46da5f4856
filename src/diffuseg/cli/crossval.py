"""The command `crossval`: what a training makes of cases that it was not trained on, for every case."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from diffuseg.cli.app import SOME_FAILED, USER_ERROR, Device, app, complain, console
from diffuseg.cli.predict import SameDraws, SameSampler, SameSteps
from diffuseg.cli.progress import ProgressBars
from diffuseg.text import pluralize


class Which(StrEnum):
    """Checkpoints of a run."""

    last = "last"
    best = "best"


@app.command()
def crossval(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of `train --fold all`, or of one training.")],
    dataset: Annotated[Path, typer.Argument(help="The data set it was trained on.")],
    out: Annotated[Path, typer.Option(help="Folder of the predictions, for `evaluate`.")],
    checkpoint: Annotated[
        Which, typer.Option(help="best was chosen on the very cases it is evaluated on here, last was not.")
    ] = Which.last,
    draws: SameDraws = None,
    steps: SameSteps = None,
    sampler: SameSampler = None,
    mirror: Annotated[bool, typer.Option("--mirror", help="As in predict.")] = False,
    set_: Annotated[list[str] | None, typer.Option("--set", help="As in predict.")] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same result.")] = 0,
    device: Device = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Also do cases that are already finished.")] = False,
) -> None:
    """Predict every case by the fold that was not trained on it: what an honest cross-validation evaluates."""
    from diffuseg.cli.predict import tell
    from diffuseg.inference.folder import Callbacks
    from diffuseg.inference.sampling import SamplingOptions
    from diffuseg.studies.crossval import cross_validate

    options = SamplingOptions(draws, steps, sampler, seed, mirror=mirror)
    with ProgressBars(console(stderr=True)) as bars:
        name = f"{checkpoint.value}.safetensors"
        told = Callbacks(bars.case, bars.draw)
        found = cross_validate(run, dataset, out, options, device, set_ or [], overwrite, name, told)
    tell(found.result, out)
    if found.left:
        what = pluralize(len(found.left), "case of the data set is", "cases of the data set are")
        complain(f"Warning: {what} in the validation of no fold given, and not predicted")
    typer.echo(f"next: diffuseg evaluate {out} {dataset / 'labelsTr'} --out {out}_scores")
    if found.result.failed:
        raise typer.Exit(SOME_FAILED if found.result.finished or found.result.skipped else USER_ERROR)
