"""The command that takes a model out of Python: `export`."""

from pathlib import Path
from typing import Annotated

import typer

from diffuseg.cli.app import app


@app.command()
def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A checkpoint, or the name of a packaged model.")],
    out: Annotated[Path, typer.Option(help="Folder for the graphs and model.json.")],
    fmt: Annotated[str, typer.Option("--format", help="onnx or openvino.")] = "onnx",
    draws: Annotated[
        int | None, typer.Option(help="Draws that model.json names.", show_default="what the model recommends")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.", show_default="what the model recommends")] = None,
    sampler: Annotated[str | None, typer.Option(help="ancestral or ddim.", show_default="what the model recommends")] = None,
) -> None:
    """Write a model's networks as graphs that run without PyTorch, and what an engine has to know besides."""
    import diffuseg
    from diffuseg.inference.export import export as export_model
    from diffuseg.inference.sampling import SamplingOptions

    loaded = diffuseg.load(model, device="cpu")
    for path in export_model(loaded, out, fmt, SamplingOptions(draws=draws, steps=steps, sampler=sampler)):
        typer.echo(f"{path}  {path.stat().st_size / 2**20:.1f} MB")
