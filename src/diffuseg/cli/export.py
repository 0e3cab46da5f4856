"""The command that takes a model elsewhere: `export`."""

from pathlib import Path
from typing import Annotated

import typer

from diffuseg.cli.app import OneModel, app


@app.command()
def export(
    model: OneModel,
    out: Annotated[Path, typer.Option(help="Folder for the graphs and model.json, or for the bundle.")],
    fmt: Annotated[str, typer.Option("--format", help="onnx, openvino, or monai: a bundle.")] = "onnx",
    draws: Annotated[
        int | None, typer.Option(help="Draws that model.json or the bundle names.", show_default="what the model recommends")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.", show_default="what the model recommends")] = None,
    sampler: Annotated[str | None, typer.Option(help="ancestral or ddim.", show_default="what the model recommends")] = None,
) -> None:
    """Write a model's networks as graphs that run without PyTorch, or a MONAI bundle."""
    import diffuseg
    from diffuseg.inference.bundle import export_bundle
    from diffuseg.inference.export import export as export_model
    from diffuseg.inference.sampling import SamplingOptions

    options = SamplingOptions(draws=draws, steps=steps, sampler=sampler)
    if fmt == "monai":
        paths = export_bundle(model, out, options)
    else:
        paths = export_model(diffuseg.load(model, device="cpu"), out, fmt, options)
    for path in paths:
        typer.echo(f"{path}  {path.stat().st_size / 2**20:.1f} MB")
