"""Commands about the Hugging Face Hub: `push`, `pull`."""

from pathlib import Path
from typing import Annotated

import typer

from diffuseg.cli.app import OneModel, app

Repo = Annotated[str, typer.Argument(metavar="REPO", help="OWNER/NAME on the Hugging Face Hub.")]


@app.command()
def push(
    model: OneModel,
    repo: Repo,
    card: Annotated[
        Path | None, typer.Option(help="The model card.", show_default="the .md beside it, or made of its header")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="A repository that is made may be seen by all.")] = False,
) -> None:
    """Put a model with its model card on the Hugging Face Hub; the names of its cases stay here."""
    from diffuseg.inference.hub import push as push_model

    typer.echo(f"{push_model(model, repo, card, public)}: pushed; `diffuseg pull {repo}` fetches it")


@app.command()
def pull(
    repo: Repo,
    out: Annotated[Path | None, typer.Option(help="Folder for it.", show_default="./NAME")] = None,
    revision: Annotated[str | None, typer.Option(help="A branch, tag or commit.", show_default="the newest")] = None,
) -> None:
    """Fetch a model from the Hugging Face Hub, and check it as any stranger's file."""
    from diffuseg.inference.hub import pull as pull_model

    file = pull_model(repo, out, revision)
    typer.echo(f"{file}: fetched; `diffuseg info {file}` says what it is")
    typer.echo(f"next: diffuseg predict {file.parent} IMAGES --out DIR")
