"""Commands about data: `plan`, `demo-data`."""

from pathlib import Path
from typing import Annotated

import typer

from diffuseg.cli.app import app, complain, console
from diffuseg.cli.as_json import JSON, print_json
from diffuseg.errors import UserError
from diffuseg.text import pluralize


@app.command()
def plan(
    dataset: Annotated[Path, typer.Argument(help="Folder in the nnU-Net v2 raw or the MSD layout.")],
    out: Annotated[Path | None, typer.Option(help="Where to write the plan.", show_default="./<name>_plan.json")] = None,
    image_labels: Annotated[
        bool, typer.Option("--image-labels", help="For methods that learn from image-level labels: masks are not read.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a plan that is already there.")] = False,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Decide how to train on a data set, and say why; the plan is a JSON file to be looked at and edited."""
    from diffuseg.config import to_dict
    from diffuseg.data.dataset import open_dataset, splits
    from diffuseg.data.plan import explain, fingerprint, make_plan, save_plan
    from diffuseg.reports.tables import text_table

    data = open_dataset(dataset, masks=not image_labels)
    name = "".join(c if c.isalnum() or c in "-_." else "_" for c in data.name)
    path = out or Path(f"{name}_plan.json")
    if path.exists() and not overwrite:
        raise UserError("there is a plan already", file=path, do="Give another --out, or --overwrite")
    made = make_plan(data, fingerprint(data))
    console().print(text_table(data.name, ("setting", "value", "reason"), explain(made), right=False))
    save_plan(made, path)
    try:
        splits(data)
    except UserError as fault:  # a plan can be made of one case, and no validation
        complain(f"`diffuseg train` will stop here: {fault}")
    typer.echo(f"{path}: written; edit it and give it to `diffuseg train --plan`")
    print_json({"file": str(path), "plan": to_dict(made)})


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
    typer.echo(f"{out}: {pluralize(cases, 'volume')} to train on, {test_cases} to test on")
