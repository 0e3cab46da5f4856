"""Errors that a user can mend: which file, what is wrong, what to do; and what ends a command from outside."""

from pathlib import Path


class UserError(Exception):
    """Something in the input is wrong; the command line prints it as one line and exits with 2, without a traceback."""

    def __init__(self, what: str, *, file: Path | str | None = None, do: str | None = None) -> None:
        self.file = file
        message = what if file is None else f"{file}: {what}"
        super().__init__(message if do is None else f"{message}. {do}")


class Terminated(KeyboardInterrupt):
    """SIGTERM, as a cluster sends it: whatever cleans up after Ctrl-C cleans up after this too."""
