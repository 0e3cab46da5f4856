"""Files are there whole or not at all."""

import csv
import errno
import io
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffuseg.errors import UserError


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """A hidden path beside `path` to write to: renamed to it when the block ends well, removed when it does not.

    Makes the folder. Refuses a place that cannot be written.
    """
    path = Path(path)
    aside = path.with_name(f".{os.getpid()}-{path.name}")  # with the ending that libraries look at
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


def refuse_unwritable(path: Path | str, file: bool = False) -> None:
    """Refuse a folder (or a `file`) that could not be written, before work is done for it.

    Makes nothing; a folder that is missing is one that can be made.
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


def write_whole(path: Path | str, content: str | bytes) -> None:
    """Write text (as UTF-8) or bytes to a file."""
    with replacing(path) as aside:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)


def without_nan(value: Any) -> Any:
    """Plain values with None in place of NaN and infinity, which JSON does not know."""
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path | str, content: Any) -> None:
    """Write plain values as JSON."""
    write_whole(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def write_csv(path: Path | str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV; the first one has the columns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue())
