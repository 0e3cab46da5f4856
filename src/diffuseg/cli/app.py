"""What all commands share: the application, its exit codes, and where it prints."""

from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from diffuseg.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

USER_ERROR, SOME_FAILED, INTERRUPTED = 2, 3, 130
ORDER = (  # as one meets them
    "plan",
    "train",
    "curve",
    "calibrate",
    "ambiguity",
    "audit",
    "crossval",
    "predict",
    "merge",
    "view",
    "pseudo-label",
    "calibrate-saliency",
    "border",  # the former name of that
    "evaluate",
    "compare",
    "report",
    "demo-data",
)


class Commands(TyperGroup):
    """Turns a fault that the user can mend into one line and an exit code."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The commands in the order in which one needs them."""
        return sorted(super().list_commands(ctx), key=ORDER.index)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; UserError exits with 2, an interrupt with 130, both with one line and no traceback."""
        try:
            return super().invoke(ctx)
        except UserError as fault:
            complain(f"error: {fault}")
            raise typer.Exit(USER_ERROR) from None
        except KeyboardInterrupt:
            complain("interrupted")
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    cls=Commands,
    help="Segment medical images with conditional diffusion models, with an honest uncertainty. For research only.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def console(stderr: bool = False) -> "Console":
    """Where tables and bars are printed."""
    from rich.console import Console

    return Console(stderr=stderr)


def complain(text: str) -> None:
    """Say in one red line of the error output what is wrong."""
    typer.secho(" ".join(text.split()), fg="red", err=True)
