"""Errors that a user can mend: which file, what is wrong, what to do; and what ends a command from outside."""

import os
from pathlib import Path
from typing import cast


class UserError(Exception):
    """Something in the input is wrong; the command line prints it as one line and exits with 2, without a traceback."""

    def __init__(self, what: str, *, file: Path | str | None = None, do: str | None = None) -> None:
        self.file = file
        message = what if file is None else f"{file}: {what}"
        super().__init__(message if do is None else f"{message}. {do}")


def path_of(value: object, what: str, do: str | None = None) -> Path:
    """A path that was given in Python.

    Args:
        value: Text or a path.
        what: What it is the path of, for the message.
        do: What to give in place of anything else.

    Raises:
        UserError: It is neither.
    """
    if isinstance(value, str | os.PathLike):
        return Path(os.fspath(cast("str | os.PathLike[str]", value)))
    raise UserError(f"{what} is a path, not {type(value).__name__}", do=do)


class Terminated(KeyboardInterrupt):
    """SIGTERM, as a cluster sends it: whatever cleans up after Ctrl-C cleans up after this too."""
