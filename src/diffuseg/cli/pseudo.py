"""The commands `pseudo-label` and `calibrate-saliency`: from image-level labels to masks."""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from diffuseg.cli.app import Device, app, console
from diffuseg.cli.progress import ProgressBars

Labels = Annotated[
    Path | None,
    typer.Option(help="Image-level labels: a CSV with case and label.", show_default="DATASET/image_labels.csv, if there"),
]


@app.command("pseudo-label")
def pseudo_label(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A checkpoint or a run, of cdm for example.")],
    dataset: Annotated[Path, typer.Argument(help="The data set to make masks for; its own masks, if any, are not read.")],
    out: Annotated[Path, typer.Option(help="Folder of the new data set, for any method that learns from masks.")],
    labels: Labels = None,
    confidence: Annotated[
        float, typer.Option(min=0, max=1, help="Keep masks of at least so much: agreement of the draws (Dice of pairs).")
    ] = 0.7,
    draws: Annotated[int | None, typer.Option(min=2, help="Draws per case.", show_default="8")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="key=value of the method, as far as it concerns drawing; repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same result.")] = 0,
    device: Device = None,
) -> None:
    """Make masks for a data set that has none, keep those to be trusted, and write them as a data set to train on."""
    from diffuseg.inference.model import NOTICE, load
    from diffuseg.inference.sampling import SamplingOptions
    from diffuseg.studies.pseudo_labels import pseudo_label as make

    loaded = load(model, device, set_ or [])
    with ProgressBars(console(stderr=True)) as bars:
        options, warn = SamplingOptions(draws, seed=seed), bars.progress.console.print
        rows = make(loaded, dataset, out, labels, confidence, options, warn, bars.case)
    for (kept, reason), number in Counter((row.kept, row.reason) for row in rows).items():
        typer.echo(f"{number} {'kept' if kept else 'left out'}: {reason}")
    typer.echo(f"{out}: a data set; pseudo_labels.csv lists all cases. {NOTICE}")


@app.command("calibrate-saliency")
@app.command("border", hidden=True, deprecated=True)
def calibrate_saliency(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A checkpoint or a run of a method that learns from image-level labels.")
    ],
    dataset: Annotated[Path, typer.Argument(help="The data set it was trained on; its masks, if any, are not read.")],
    labels: Labels = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="key=value of the map, as it will be given to predict; repeatable.")
    ] = None,
    device: Device = None,
) -> None:
    """Learn the threshold of maps from training images without the object, and when a map shows it; predict uses both.

    Training does this for its own maps; it is needed again for other settings of them. Labels are read, masks are not.
    """
    from diffuseg.atomic_io import check_writable
    from diffuseg.inference.checkpoints import one_model
    from diffuseg.inference.saliency_calibration import calibrate_checkpoints

    file = Path(one_model(model))
    if file.is_file():
        check_writable(file, file=True)
    with ProgressBars(console(stderr=True)) as bars:
        found = calibrate_checkpoints([file], dataset, labels, device, set_ or [], bars.measured)
    if found is None:
        typer.echo(f"{model}: 99 % of the maps of images without the object are not above 0; nothing is written")
        return
    for name, value in found.null_threshold.items():
        detection = found.detection_threshold[name]
        typer.echo(f"{name}: null threshold {value:.3g}, detection threshold {detection:.3f}, from {found.images} images")
