"""The commands: parsing and printing, nothing else. What is heavy is imported by the command that needs it."""

import ctypes
import gc
import io
import os
import sys
from typing import Annotated

import typer

from diffuseg import __version__
from diffuseg.cli import (
    calibrate,
    convert,
    crossval,
    data,
    evaluate,
    export,
    hub,
    info,
    merge,
    postprocess,
    predict,
    pseudo,
    serve,
    train,
    view,
)
from diffuseg.cli.app import app

__all__ = [
    "app", "calibrate", "convert", "crossval", "data", "evaluate", "export", "hub", "info", "main", "merge", "postprocess",
    "predict", "pseudo", "serve", "train", "view",
]  # fmt: skip


def main() -> None:
    """What `diffuseg` calls."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait sleep, as others may need the processor
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")  # what Apple's GPU cannot do, the processor does
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show stops nothing
    keep_freed_memory()
    try:
        app(prog_name="diffuseg")
    finally:
        gc.freeze()  # the process ends, and needs no search for garbage among a million objects of libraries


def keep_freed_memory() -> None:
    """Let the C library keep what a layer frees for the next one, where it is glibc; arrays of more than 32 MiB are given back.

    Otherwise the system takes back arrays of some MiB at once, and clears their pages anew for every layer of every step.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    mallopt(-3, 2**25)  # M_MMAP_THRESHOLD, the most that glibc takes
    mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def _version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"diffuseg {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass
