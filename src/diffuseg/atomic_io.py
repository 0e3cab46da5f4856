"""Files are written completely or not at all."""

import csv
import errno
import io
import json
import math
import os
import secrets
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from diffuseg.errors import UserError


@contextmanager
def atomic_path(path: Path | str) -> Generator[Path, None, None]:
    """A hidden path beside `path` to write to: renamed to it when the block ends well, removed when it does not.

    Makes the folder.

    Raises:
        UserError: The place cannot be written.
    """
    path = Path(path)
    who = f"{os.getpid()}-{secrets.token_hex(3)}"  # processes of several machines may have one number
    aside = path.with_name(f".{who}-{path.name}")  # with the ending that libraries look at
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        os.chmod(aside, 0o666 & ~_umask())  # some libraries write for the owner alone
        os.replace(aside, path)
    except OSError as error:
        raise UserError(f"cannot be written ({error.strerror or error})", file=path) from None
    finally:
        if aside.exists():
            aside.unlink()


def check_writable(path: Path | str, file: bool = False) -> None:
    """Check that a folder or file could be written, before work is done for it. Makes nothing.

    Args:
        path: A folder that is missing is one that can be made.
        file: It is a file.

    Raises:
        UserError: It could not be written.
    """
    path = Path(path)
    try:
        if file and path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        place = path.parent if file else path
        while not os.path.lexists(place):
            place = place.parent
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise UserError(f"cannot be written ({error.strerror or error})", file=path) from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def atomic_write(path: Path | str, content: str | bytes) -> None:
    """Write text or bytes to a file; text as UTF-8, names of files that are not UTF-8 as the bytes that they are."""
    with atomic_path(path) as aside:
        aside.write_bytes(content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content)


def nan_to_none(value: Any) -> Any:
    """Plain values with None in place of NaN and infinity, which JSON does not know."""
    if isinstance(value, dict):
        return {key: nan_to_none(inner) for key, inner in cast("dict[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [nan_to_none(inner) for inner in cast("Sequence[Any]", value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path | str, content: Any) -> None:
    """Write plain values as JSON."""
    atomic_write(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def write_csv(path: Path | str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV; the first one has the columns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    atomic_write(path, text.getvalue())
