"""The command that brings together what several processes did: `merge`."""

from pathlib import Path
from typing import Annotated

import typer

from diffuseg.cli.app import SOME_FAILED, app


@app.command()
def merge(
    out: Annotated[Path, typer.Argument(help="Folder of all results: of predict --shard, or of evaluate --shard.")],
    folders: Annotated[
        list[Path] | None, typer.Argument(metavar="[FOLDER...]", help="Where each process wrote; left out: all wrote into OUT.")
    ] = None,
) -> None:
    """Check that shards cover the list of cases, each case once and alike, and merge them. Otherwise the cases are named.

    Exit code 3: everything is there, but some cases failed with a reason, as in one run.
    """
    from diffuseg.reports.shards import is_evaluation, merge_evaluation

    sources = folders or [out]
    if is_evaluation(sources[0]):
        from diffuseg.cli.evaluate import show

        show(merge_evaluation(out, sources), out)
        return
    from diffuseg.cli.predict import tell
    from diffuseg.inference.merge import merge as merge_predictions

    result = merge_predictions(out, folders or ())
    tell(result, out)
    if result.failed:
        raise typer.Exit(SOME_FAILED)
