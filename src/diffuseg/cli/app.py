"""What all commands share: the application, its exit codes, and where it prints."""

import errno
import gc
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from contextvars import ContextVar
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from diffuseg.cli.usage import one_line
from diffuseg.errors import Terminated, UserError
from diffuseg.text import nearest

if TYPE_CHECKING:
    from rich.console import Console

USER_ERROR, SOME_FAILED, INTERRUPTED, TERMINATED = 2, 3, 130, 143
ORDER = (  # as one meets them
    "convert",
    "plan",
    "train",
    "curve",
    "calibrate",
    "postprocess",
    "ambiguity",
    "audit",
    "crossval",
    "predict",
    "merge",
    "serve",
    "view",
    "export",
    "push",
    "pull",
    "pseudo-label",
    "calibrate-saliency",
    "border",  # the former name of that
    "evaluate",
    "compare",
    "report",
    "info",
    "demo-data",
)


_level: ContextVar[int] = ContextVar("level", default=0)  # -1 quiet, 1 verbose
_until_the_end: ContextVar[ExitStack] = ContextVar("until_the_end")  # closed when the command ends


def is_quiet() -> bool:
    """Whether only errors and warnings are to be printed."""
    return _level.get() < 0


class Commands(TyperGroup):
    """Turns a fault that the user can mend into one line and an exit code, and gives every command --quiet and --verbose."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command by its name."""
        command = super().get_command(ctx, cmd_name)
        if command is not None and all(option.name != "quiet" for option in command.params):
            command.params += [option for option in get_command(_levels).params if option.name in ("quiet", "verbose")]
        return command

    def list_commands(self, ctx: Any) -> list[str]:
        """The commands in the order in which one needs them."""
        return sorted(super().list_commands(ctx), key=ORDER.index)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Options before the command, and its name."""
        try:
            with one_line():
                return super().parse_args(ctx, args)
        except UserError as fault:
            complain(f"error: {fault}")
            raise typer.Exit(USER_ERROR) from None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that is called, its name and what follows it."""
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            shown = [name for name in ORDER if name != "border"]
            near = nearest(args[0], shown)
            there = f"Did you mean `diffuseg {near}`?" if near else f"There are: {', '.join(shown)}"
            raise UserError(f"diffuseg has no command {args[0]}. {there}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; UserError and OSError exit with 2, Ctrl-C with 130, SIGTERM with 143: one line, no traceback."""
        level, resources = _level.set(0), ExitStack()
        _until_the_end.set(resources)
        try:
            with resources, _terminable(), one_line():
                return super().invoke(ctx)
        except UserError as fault:
            if _level.get() > 0:
                traceback.print_exc()
            complain(f"error: {fault}")
            raise typer.Exit(USER_ERROR) from None
        except OSError as error:  # of the machine: a disk that is full, a name that is too long
            if error.errno == errno.EPIPE:  # whoever reads the output has seen enough
                raise
            if _level.get() > 0:
                traceback.print_exc()
            place = f"{error.filename}: " if error.filename else ""
            complain(f"error: {place}{error.strerror or error}; --verbose tells where")
            raise typer.Exit(USER_ERROR) from None
        except KeyboardInterrupt as signalled:
            ended = isinstance(signalled, Terminated)
            complain("terminated" if ended else "interrupted")
            raise typer.Exit(TERMINATED if ended else INTERRUPTED) from None
        finally:
            _level.reset(level)


app = typer.Typer(
    cls=Commands,
    help="Segment medical images with conditional diffusion models, with an honest uncertainty. For research only.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _quiet(wanted: bool) -> None:
    """What is printed goes nowhere; errors and warnings have a stream of their own."""
    if wanted:
        _level.set(-1)
        nowhere = _until_the_end.get().enter_context(open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        _until_the_end.get().enter_context(redirect_stdout(nowhere))


def _verbose(wanted: bool) -> None:
    """What the library logs is printed too."""
    if wanted:
        _level.set(1)
        log, lines = logging.getLogger("diffuseg"), _Lines()
        before = log.level
        log.addHandler(lines)
        log.setLevel(logging.DEBUG)
        _until_the_end.get().callback(lambda: (log.removeHandler(lines), log.setLevel(before)))


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        typer.echo(self.format(record), err=True)


_levels = typer.Typer(add_completion=False)


@_levels.command()
def _every_command(
    quiet: Annotated[
        bool,
        typer.Option("--quiet", "-q", callback=_quiet, expose_value=False, help="Print errors and warnings only."),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option("--verbose", "-v", callback=_verbose, expose_value=False, help="Print details, and where an error arose."),
    ] = False,
) -> None:
    pass


@contextmanager
def _terminable() -> Iterator[None]:
    """While it is entered SIGTERM raises `Terminated`, as Ctrl-C raises KeyboardInterrupt."""
    try:
        previous = signal.signal(signal.SIGTERM, _terminate)
    except ValueError:  # not the main thread, where signals do not arrive
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:N or mps.", show_default="a GPU if there is one")]
SomeCases = Annotated[int, typer.Option(min=0, help="So many of its cases, spread evenly; 0: all.")]
OneModel = Annotated[
    str, typer.Argument(metavar="MODEL", help="A checkpoint, a run, or the name of a packaged model such as hippocampus.")
]


def beside(model: str, what: str) -> Path:
    """Where results about a model lie: beside its checkpoint, so in its run; of a packaged model in the working directory."""
    path = Path(model)
    if not path.is_file():
        return Path(f"{path.stem}_{what}")
    return path.with_name(what if path.stem == "best" else f"{what}_{path.stem}")


def refuse_unwritable(out: Path, model: str | None) -> None:
    """Before any work: the folder of the results, and the checkpoint that is to remember them."""
    from diffuseg.atomic_io import check_writable

    check_writable(out)
    if model is not None and Path(model).is_file():
        check_writable(model, file=True)


def import_libraries() -> None:
    """Import torch and nibabel for a command that needs both, without what makes their import long.

    No garbage is looked for among the objects of torch, now or later. For a process of ours alone, as nibabel is.
    """
    if "torch" not in sys.modules and gc.isenabled():
        gc.disable()
        try:
            import torch  # noqa: F401
        finally:
            gc.freeze()
            gc.enable()
    import_nibabel_alone()


def import_nibabel_alone() -> None:
    """Import nibabel without the pydicom that it finds: part of every start, for a NIfTI extension that nothing here reads.

    For a process of ours alone: where nibabel is somebody else's too, it stays as it is. DICOM is read by pydicom all the same.
    """
    if "nibabel" in sys.modules or "pydicom" in sys.modules:
        return
    sys.modules["pydicom"] = None  # type: ignore[assignment]
    try:
        import nibabel  # noqa: F401
    finally:
        del sys.modules["pydicom"]


def console(stderr: bool = False) -> "Console":
    """Where tables and bars are printed."""
    from rich.console import Console

    return Console(stderr=stderr)


def say_aside(text: str) -> None:
    """Say on the error output what goes on, as a line of progress; nothing with --quiet."""
    if not is_quiet():
        typer.echo(text, err=True)


def complain(text: str) -> None:
    """Say in red on the error output what is wrong: in one line, but for a list, which is indented after a colon."""
    lines = [""]
    for line in text.split("\n"):
        if lines[-1].startswith("  ") or (line.startswith("  ") and lines[-1].endswith(":")):
            lines.append("  " * line.startswith("  ") + line.strip())
        else:
            lines[-1] = " ".join(f"{lines[-1]} {line}".split())
    typer.secho("\n".join(lines), fg="red", err=True)
