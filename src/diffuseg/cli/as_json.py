"""`--json`: one JSON object on the output and nothing else; what a command prints besides goes to the error output."""

import json
import sys
from contextlib import redirect_stdout
from contextvars import ContextVar
from typing import Any, TextIO

import typer

_output: ContextVar[TextIO | None] = ContextVar("output", default=None)


def _begin(ctx: Any, wanted: bool) -> None:
    if wanted:
        token = _output.set(sys.stdout)
        ctx.call_on_close(lambda: _output.reset(token))
        ctx.with_resource(redirect_stdout(sys.stderr))


JSON = typer.Option(
    "--json", callback=_begin, is_eager=True, expose_value=False, help="Print one JSON object; the rest goes to stderr."
)


def print_json(content: Any) -> None:
    """Print the result of a command as one line of JSON, where --json asks for it; NaN and infinity become null."""
    output = _output.get()
    if output is not None:
        from diffuseg.atomic_io import nan_to_none

        output.write(json.dumps(nan_to_none(content)) + "\n")
        output.flush()
