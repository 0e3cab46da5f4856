"""What a header claims is compared with what its file can hold, and with a limit, before memory is taken for it.

A few bytes can claim a million million voxels, and a packed file of a megabyte can hold a gigabyte. Deflate packs at most 1032
bytes into one, so that a larger claim is a lie; whatever is within that is bounded by the limit.
"""

import gzip
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from diffuseg.errors import UserError
from diffuseg.text import by

MOST = 2**31  # values of one file: 8 GiB as float32
VARIABLE = "DIFFUSEG_MOST_VOXELS"  # the environment may say another limit
DEFLATE = 1032  # bytes out of one byte, at most
UNBOUNDED = math.inf  # of what no bound is known
HEAD = 4096
SMALLER = "crop the image"  # what to do about a true claim that is too large
SLACK = 2**26  # bytes behind the voxels that a packed file may hold


class Claim(NamedTuple):
    """What a header says: the shape, bytes per value, and bytes of the file before the first."""

    shape: tuple[int, ...]
    itemsize: int
    offset: int = 0

    @property
    def bytes(self) -> int:
        """Bytes up to the last voxel, those before the first included."""
        return self.offset + math.prod(self.shape) * self.itemsize


def most_values() -> int:
    """How many values of one file are read at most.

    Raises:
        UserError: The environment's limit is no number of voxels.
    """
    text = os.environ.get(VARIABLE, str(MOST))
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"{VARIABLE} is a number of voxels, not {text!r}")
    return int(text)


def check_claim(file: Path, claim: Claim, held: int, ratio: float | int = 1, otherwise: str = SMALLER) -> None:
    """Compare what a header claims with the limit, and with what its file can hold.

    Args:
        file: Its name in messages.
        claim: What the header says.
        held: Bytes of the file, or of its voxels where these are stored by themselves.
        ratio: Bytes that one of them may become: 1 as stored, `DEFLATE` packed, `UNBOUNDED` where nothing is known.
        otherwise: What to do where the claim is true and too large.

    Raises:
        UserError: It claims more values than the limit, or more bytes than the file can hold.
    """
    count, most = math.prod(claim.shape), most_values()
    if count < 0 or claim.offset < 0 or min(claim.shape, default=1) < 0:
        raise UserError(f"its header claims the shape {by(claim.shape)}", file=file, do="Copy or export it again")
    if count > most:
        what = f"its header claims {by(claim.shape)} = {count:.3g} values; at most {most} are read"
        raise UserError(what, file=file, do=f"If they are there, {otherwise}, or set {VARIABLE}")
    if claim.bytes > held * ratio:
        what = f"its header claims {by(claim.shape)} values, {claim.bytes} bytes, and the file has {held}"
        packed = " packed" if ratio > 1 else ""
        raise UserError(f"broken or truncated: {what}{packed}", file=file, do="Copy or export it again")


def read_claimed(file: Path, claimed: Claim) -> bytes:
    """The bytes of a file, unpacked if it is packed by gzip, up to what its header claims, see `checked_claim`.

    A packed file is read to its end, so that its checksum is verified.

    Raises:
        UserError: It unpacks to far more than the header claims.
    """
    with open_unpacked(file) as stream:
        content = stream.read(max(claimed.bytes, HEAD))
        read_to_end(stream, file, claimed)
    return content


def checked_claim(file: Path, claim: Callable[[bytes], Claim]) -> Claim:
    """What the header of a file claims, compared with the file.

    Args:
        file: May be packed by gzip.
        claim: Makes a claim of the first `HEAD` bytes of it.

    Raises:
        UserError: What `check_claim` refuses.
    """
    with open_unpacked(file) as stream:
        claimed = claim(stream.read(HEAD))
    check_claim(file, claimed, file.stat().st_size, DEFLATE if is_packed(file) else 1)
    return claimed


def is_packed(file: Path) -> bool:
    """Whether a file is packed by gzip, whatever its name."""
    with file.open("rb") as plain:
        return plain.read(2) == b"\x1f\x8b"


def open_unpacked(file: Path) -> Any:
    """A stream of the bytes of a file, unpacked if it is packed by gzip."""
    return gzip.open(file) if is_packed(file) else file.open("rb")


def read_to_end(stream: Any, file: Path, claimed: Claim) -> None:
    """Read what is left of a packed file, so that its checksum is verified.

    Args:
        stream: Of a file, after what was read; one that is not packed is left alone.
        file: For messages.
        claimed: What its header claims.

    Raises:
        UserError: It unpacks to far more than the header claims.
    """
    left = 0
    while isinstance(stream, gzip.GzipFile) and (more := stream.read(2**20)):
        left += len(more)
        if left > claimed.bytes + SLACK:
            what = f"it unpacks to far more than the {claimed.bytes} bytes that its header claims"
            raise UserError(what, file=file, do="Copy or export it again")
