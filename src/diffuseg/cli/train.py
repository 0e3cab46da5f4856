"""Commands about a training: `train`, `audit`."""

import time
from pathlib import Path
from typing import Annotated

import typer

from diffuseg import timing
from diffuseg.cli.app import Device, app, console
from diffuseg.cli.progress import ProgressBars
from diffuseg.errors import UserError

ALL = "all"  # of the folds
Fold = Annotated[
    str, typer.Option(help="Fold to validate on, or all: one training after the other, into OUT/fold_0, OUT/fold_1, ...")
]
Labels = Annotated[
    Path | None,
    typer.Option(
        help="Image-level labels for cdm and cam: a CSV with case and label.", show_default="DATASET/image_labels.csv"
    ),
]


@app.command()
def train(
    dataset: Annotated[Path, typer.Argument(help="Folder in the nnU-Net v2 raw or the MSD layout.")],
    out: Annotated[Path, typer.Option(help="Folder of the run: checkpoints, logs, pictures.")],
    method: Annotated[
        str,
        typer.Option(
            help="unet, ssn, concat, distributional, cdal, medsegdiff, medsegdiff_v2; from image-level labels: cdm, cam."
        ),
    ] = "distributional",
    labels: Labels = None,
    fold: Fold = "0",
    plan: Annotated[Path | None, typer.Option(help="An edited plan.", show_default="made from the data")] = None,
    max_minutes: Annotated[float | None, typer.Option(help="Stop after this time, reading the cases included.")] = None,
    steps: Annotated[int | None, typer.Option(help="Stop after so many steps.", show_default="the plan's")] = None,
    preset: Annotated[str | None, typer.Option(help="Settings of a paper, such as cdal/as_released.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="key=value of the method, plan.key=value, train.key=value; repeatable.")
    ] = None,
    start: Annotated[
        Path | None, typer.Option("--from", help="A checkpoint or a run: start with its weights as far as they fit.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out; with more --steps it is lengthened.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of all randomness.")] = 0,
    device: Device = None,
    precision: Annotated[str, typer.Option(help="auto, bf16 or fp32.")] = "auto",
    val_every: Annotated[int | None, typer.Option(help="Steps between validations.", show_default="an eighth of all")] = None,
    patience: Annotated[
        int | None, typer.Option(help="Stop after so many validations without a better one.", show_default="never")
    ] = None,
    log_to: Annotated[
        list[str] | None, typer.Option(help="Send the curves, no images and no names, to wandb or mlflow too; repeatable.")
    ] = None,
    batch: Annotated[
        str | None, typer.Option(help="Elements of a batch; auto: as many as fit into the GPU.", show_default="the plan's")
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Translate the networks with torch.compile first; needs a C++ compiler.")
    ] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Print where the time went.")] = False,
) -> None:
    """Train a method on one fold; under torchrun the same command trains on several GPUs and nodes."""
    started = time.monotonic()  # before PyTorch is imported
    from diffuseg.train.loop import TrainSettings
    from diffuseg.train.loop import train as run

    settings = TrainSettings(
        dataset=dataset, method=method, out=out, labels=labels, fold=_fold(fold), plan=plan, steps=steps,
        max_minutes=max_minutes, preset=preset, set=set_ or [], resume=resume, start=start, seed=seed, device=device,
        precision=precision, validate_every=val_every, patience=patience, log_to=log_to or (), batch=batch, compile=compiled,
    )  # fmt: skip
    with timing.profile(typer.echo if profile else None):
        if fold != ALL:
            typer.echo(f"best checkpoint: {run(settings, started)}")
            return
        from diffuseg.train.folds import train_folds

        best = train_folds(settings, lambda number, folds: typer.echo(f"fold {number} of 0 to {folds - 1}"))
    typer.echo(f"best checkpoints: {best[0]} to {best[-1].parent.name}; next: diffuseg crossval {out} {dataset} --out DIR")


def _fold(text: str) -> int:
    if text != ALL and not text.isdecimal():
        raise UserError(f"--fold {text}: expected the number of a fold, from 0 on, or all")
    return 0 if text == ALL else int(text)


@app.command()
def audit(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished training, or a checkpoint in it.")],
    dataset: Annotated[Path, typer.Argument(help="The data set it was trained on.")],
    out: Annotated[Path | None, typer.Option(help="Folder for audit.json and trainings.", show_default="RUN/audit")] = None,
    retrain: Annotated[
        bool, typer.Option("--retrain", help="Also the rows that need trainings; their cost is printed first.")
    ] = False,
    steps: Annotated[int | None, typer.Option(help="Steps of these trainings.", show_default="the run's")] = None,
    only: Annotated[list[str] | None, typer.Option(help="A row; repeatable.", show_default="all")] = None,
    draws: Annotated[int, typer.Option(min=2, help="Draws per case.")] = 4,
    cases: Annotated[int, typer.Option(min=0, help="So many cases of its fold, spread evenly; 0: all.")] = 0,
    device: Device = None,
) -> None:
    """Ask whether diffusion does anything in a run: without x_t, in one step, without latent, and against trained controls.

    Finished rows are kept; the same command goes on where it was stopped.
    """
    from diffuseg.inference.checkpoints import run_folder
    from diffuseg.studies.audit.answer import answer
    from diffuseg.studies.audit.audit import AuditOptions, table
    from diffuseg.studies.audit.audit import audit as hold

    if steps is not None and (steps < 1 or not retrain):
        what = "these are the steps of the trainings of --retrain" if steps > 0 else "at least one step is needed"
        raise UserError(f"--steps {steps}: {what}")
    folder = out or run_folder(run) / "audit"
    asked = AuditOptions(run, dataset, folder, draws, steps, retrain, tuple(only or ()), cases, device)
    bars = ProgressBars(console(stderr=True))

    def measured(done: int, total: int) -> None:  # only meanwhile: trainings have a bar of their own
        bars.progress.start()
        bars.measured(done, total)
        if done == total:
            bars.progress.stop()

    try:
        found = hold(asked, typer.echo, measured)
    finally:
        bars.progress.stop()
    console().print(table(found))
    typer.echo(answer(found))
    typer.echo(f"{folder / 'audit.json'}: written")
