"""Processes that share a list without a plan: each claims the next case that nobody has; they may join and die at any time.

Every worker has a file of its own in OUT/shards/claims and touches it while it lives. A claim of a case is a hard link to
that file, `<case>.1`: link(2) is atomic on local file systems and on every version of NFS, and the time of the file is
the last sign of life of whoever holds the claim. A claim whose file has not been touched for `expires` seconds is that of a
dead worker, and `<case>.2` may be linked beside it, which again only one can do; claims are never taken over in place.

Times are compared with that of the worker's own file, so the clocks of machines need not agree: the file server sets both.
A worker that was only asleep finishes its case beside the one that took it over. Both write the same result, whole.
"""

import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from diffuseg.errors import UserError
from diffuseg.inference.shards import Shard, read_shard
from diffuseg.inference.worklist import PLACE, note_of
from diffuseg.text import few, pluralize

EXPIRES = 300.0  # seconds; NFS may show the time of a file a minute late
BEATS = 10  # signs of life within that time


class Claims:
    """The claims of one worker; `left` are the cases that others still held when it ended."""

    division = "claims"

    def __init__(self, expires: float = EXPIRES) -> None:
        if not expires > 0:
            raise UserError(f"--shard claim:{expires:g}: give the seconds after which a silent worker counts as dead")
        self.expires, self.left = expires, list[str]()
        self.patience = expires  # seconds to wait at the end for claims that may expire
        self._name = f".{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"

    def announce(self) -> str:
        """One line: how the cases are shared."""
        return f"cases are claimed one by one; a worker that is silent for {self.expires:g} s counts as dead"

    def then(self, out: Path) -> str:
        """One line: what is left to do."""
        held = f"{pluralize(len(self.left), 'case is', 'cases are')} held by others, who are alive ({few(self.left)}); "
        return f"{held if self.left else ''}when all are through: diffuseg merge {out}"

    def turns(self, cases: Sequence[str], out: Path) -> Iterator[str]:
        """The cases that this worker gets, each claimed while it is worked on.

        At the end it waits for those that others hold, as long as it takes to see that these are alive.

        Args:
            cases: Of the whole list, sorted.
            out: Folder that all workers share.
        """
        place = out / PLACE / "claims"
        place.mkdir(parents=True, exist_ok=True)
        mine, stop = place / self._name, threading.Event()
        mine.touch()
        started = self._now(mine)
        threading.Thread(target=self._live, args=(mine, stop), daemon=True).start()
        try:
            waiting, until = list(cases), time.monotonic() + self.patience
            while waiting:
                held = []
                for case in waiting:
                    generation = 0 if _done_since(out, case, started) else self._claim(mine, case)
                    if generation is None:
                        held.append(case)
                    elif generation:
                        try:
                            if not _done_since(out, case, started):
                                yield case
                                until = time.monotonic() + self.patience
                        finally:
                            _release(place, case, generation)
                if held and time.monotonic() >= until:
                    self.left = held
                    return
                waiting = held
                time.sleep(min(1.0, self.expires / BEATS) if held else 0)
        finally:
            stop.set()
            mine.unlink(missing_ok=True)

    def total(self, cases: Sequence[str]) -> int:
        """How many cases it may get: all of them."""
        return len(cases)

    def _claim(self, mine: Path, case: str) -> int | None:
        """Claim a case: the generation of the claim, or None where another worker has it."""
        generation = 1
        while True:
            claim = mine.with_name(f"{case}.{generation}")
            try:
                os.link(mine, claim)
                return generation
            except FileExistsError:
                if _same(mine, claim):
                    return generation  # the answer to the first try was lost on its way
            except OSError as error:
                do = "Use --shard i/n, which needs none"
                raise UserError(f"claims need hard links ({error.strerror})", file=claim, do=do) from None
            try:
                silent = self._now(mine) - claim.stat().st_mtime
            except FileNotFoundError:
                return None  # just released: look again later
            if silent < self.expires:
                return None
            generation += 1

    def _live(self, mine: Path, stop: threading.Event) -> None:
        while not stop.wait(self.expires / BEATS):
            with suppress(OSError):  # a file server that is away for a moment
                os.utime(mine)

    def _now(self, mine: Path) -> float:
        """The time by the clock that dates all of these files."""
        os.utime(mine)
        return mine.stat().st_mtime


def _release(place: Path, case: str, generation: int) -> None:
    for number in range(1, generation + 1):  # those of dead workers first
        (place / f"{case}.{number}").unlink(missing_ok=True)


def _done_since(out: Path, case: str, started: float) -> bool:
    """Whether a worker has finished a case, or failed at it, since this one started."""
    with suppress(OSError), os.scandir(out):
        pass  # to open a folder makes NFS ask for what is new in it
    for file in (out / f"{case}.json", note_of(out, case)):
        with suppress(FileNotFoundError):
            if file.stat().st_mtime >= started:
                return True
    return False


def _same(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except FileNotFoundError:
        return False


def read_share(text: str | None, overwrite: bool = False) -> Shard | Claims | None:
    """What --shard asks for: "2/4" and "auto" a shard, "claim" claims, "claim:60" those that expire after 60 s.

    Args:
        text: None: nothing is asked for, and nothing is returned.
        overwrite: Whether cases that are finished are done again.

    Raises:
        UserError: It is none of these, or claims of cases that are to be overwritten.
    """
    if text is None:
        return None
    kind, colon, seconds = text.partition(":")
    if kind != "claim":
        return read_shard(text)
    if overwrite:
        raise UserError("--shard claim --overwrite: nothing tells who has overwritten a case", do="Choose a new --out")
    try:
        return Claims(float(seconds)) if colon else Claims()
    except ValueError:
        raise UserError(f"--shard {text}: {seconds!r} are no seconds", do="Expected claim, or claim:60") from None
