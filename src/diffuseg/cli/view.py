"""The command that shows results: `view`."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from diffuseg.cli.app import app, complain
from diffuseg.text import pluralize


@app.command()
def view(
    folder: Annotated[Path, typer.Argument(metavar="CASE_DIR", help="Folder that `diffuseg predict` wrote.")],
    case: Annotated[str | None, typer.Option(help="Show this case alone.", show_default="all of the folder")] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder with the images.", show_default="where the records say they were")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Folder with masks drawn by people.", show_default="labelsTs beside imagesTs, if there")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 0,
    export: Annotated[Path | None, typer.Option(help="Write one HTML file that needs no server, and end.")] = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
) -> None:
    """Look at image, mask, truth, probability, uncertainty, draws and steps, in a page. Nothing leaves this machine."""
    from diffuseg.atomic_io import check_writable
    from diffuseg.text import few
    from diffuseg.viewer.cases import find_cases

    if export is not None:
        check_writable(export, file=True)
    cases = find_cases(folder, images, case, labels)
    without = [one.name for one in cases if not one.image_found]
    if without:
        complain(f"no image found for {pluralize(len(without), 'case')}: {few(without)}; --images FOLDER says where images are")
    count = pluralize(len(cases), "case")
    if export is not None:
        from diffuseg.viewer.page import write_page

        size = write_page(cases, export)
        typer.echo(f"{export}: {count} with their images, {size / 2**20:.1f} MB; opens in a browser without a network")
        return
    import webbrowser

    from diffuseg.loopback import serve
    from diffuseg.viewer.server import doorway, open_server

    server, address = open_server(cases, port)
    with server, doorway(address) if browser else nullcontext() as door:

        def ready() -> None:
            typer.echo(f"{address}  shows {count} to this machine alone; Ctrl-C ends it")
            if door is not None:
                webbrowser.open(door)

        serve(server, ready)
