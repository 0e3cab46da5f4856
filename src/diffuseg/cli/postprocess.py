"""The command that learns how masks of a model are cleaned: `postprocess`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from diffuseg.cli.app import Device, OneModel, SomeCases, app, beside, console, refuse_unwritable
from diffuseg.cli.predict import Fuse, SameDraws, SameFuse, SameSampler, SameSteps
from diffuseg.cli.progress import ProgressBars


@app.command()
def postprocess(
    model: OneModel,
    dataset: Annotated[Path, typer.Argument(help="The data set it was trained on: validation cases of a fold are used.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for postprocessing.json.", show_default="postprocessing, beside the model")
    ] = None,
    draws: SameDraws = None,
    steps: SameSteps = None,
    sampler: SameSampler = None,
    fuse: SameFuse = Fuse.mean,
    fold: Annotated[int | None, typer.Option(help="Fold to learn from.", show_default="the model's")] = None,
    cases: SomeCases = 0,
    device: Device = None,
    store: Annotated[bool, typer.Option(help="Write what is learnt into the checkpoint, beside its weights.")] = True,
) -> None:
    """Try keeping the largest component and filling holes; predict then does what raises the Dice for certain, if anything."""
    from diffuseg.checkpoint import amend_meta, read_meta
    from diffuseg.inference.checkpoints import one_model
    from diffuseg.inference.model import load
    from diffuseg.inference.sampling import SamplingOptions
    from diffuseg.studies.postprocess import learn_postprocessing, table, write_postprocessing

    model = one_model(model)
    out = out or beside(model, "postprocessing")
    refuse_unwritable(out, model if store else None)
    loaded = load(model, device)
    with ProgressBars(console(stderr=True)) as bars:
        options = SamplingOptions(draws, steps, sampler, fuse=fuse.value)
        found = learn_postprocessing(loaded, dataset, options, fold, cases, bars.measured)
    console().print(table(found))
    typer.echo(f"written: {write_postprocessing(found, loaded.hash, out)}")
    kept = found.postprocessing
    typer.echo("no rule helps for certain" if kept is None else kept.announce(loaded.settings(options)))
    if not store or not Path(model).is_file():
        return
    if kept is not None:
        amend_meta(Path(model), {"postprocessing": asdict(kept)}, loaded.hash)
        typer.echo(f"{model}: remembers these rules, for the same draws, steps, sampler and fusion")
    elif read_meta(Path(model)).get("postprocessing") is not None:
        amend_meta(Path(model), {"postprocessing": None}, loaded.hash)
        typer.echo(f"{model}: forgets the rules that it had")
