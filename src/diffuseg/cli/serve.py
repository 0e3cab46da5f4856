"""The command that keeps a model loaded: `serve`."""

from pathlib import Path
from typing import Annotated

import typer

from diffuseg.cli.app import Device, app, say_aside
from diffuseg.cli.predict import Engine, EngineOption, Fuse, ProbType, SameDraws, SameFuse, SameSampler, SameSteps


@app.command()
def serve(
    model: Annotated[list[str], typer.Argument(metavar="MODEL", help="As in predict.")],
    folder: Annotated[
        Path | None, typer.Option(help="Images in it may be asked for by their paths.", show_default="images are sent")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 0,
    draws: SameDraws = None,
    steps: SameSteps = None,
    sampler: SameSampler = None,
    fuse: SameFuse = Fuse.mean,
    seed: Annotated[int, typer.Option(help="As in predict.")] = 0,
    device: Device = None,
    no_prob: Annotated[bool, typer.Option("--no-prob", help="As in predict.")] = False,
    prob_dtype: Annotated[ProbType, typer.Option(help="As in predict.")] = ProbType.float32,
    anyway: Annotated[bool, typer.Option("--anyway", help="As in predict.")] = False,
    engine: EngineOption = Engine.pytorch,
) -> None:
    """Keep a model loaded and segment images that are sent to it over HTTP, on this machine alone.

    It prints its ADDRESS. POST an image to ADDRESS/predict?name=scan.nii.gz and get a zip of what predict would write.
    """
    from diffuseg.inference.checkpoints import model_paths
    from diffuseg.inference.engine import by_engine
    from diffuseg.inference.sampling import SamplingOptions
    from diffuseg.inference.serve import Served, open_service
    from diffuseg.inference.several import load_models
    from diffuseg.loopback import serve as answer

    loaded = load_models([path for name in model for path in model_paths(name)], device)
    loaded = by_engine(loaded, engine.value, say_aside)
    options = SamplingOptions(draws, steps, sampler, seed, fuse.value, anyway=anyway)
    server, address = open_service(Served(loaded, options, folder, not no_prob, prob_dtype.value), port)

    def ready() -> None:
        typer.echo(f"{address}  answers with {loaded.name} ({loaded.hash}) to this machine alone; Ctrl-C ends it")

    answer(server, ready)
