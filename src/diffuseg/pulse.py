"""Progress of long work: when a line about it is due, and a beat for every tile that is done."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_watcher: ContextVar[Callable[[float], None] | None] = ContextVar("watcher", default=None)


@contextmanager
def watching(on_beat: Callable[[float], None]) -> Iterator[None]:
    """While it is entered, `on_beat` is called with what each tile is of a denoising step, times the draws it is made for."""
    token = _watcher.set(on_beat)
    try:
        yield
    finally:
        _watcher.reset(token)


def beat(share: float) -> None:
    """Tell whoever is watching that so much of one draw's denoising step is done."""
    watcher = _watcher.get()
    if watcher is not None:
        watcher(share)


class Pulse:
    """Says when a line about the progress is due: the first time, at each tenth of the work, after a minute of silence.

    Quick work shall not flood a log: lines are at least `least` seconds apart.
    """

    def __init__(self, every: float = 60.0, least: float = 5.0, clock: Callable[[], float] = time.perf_counter) -> None:
        self.every, self.least, self.clock = every, least, clock
        self.started = clock()
        self.first: float | None = None
        self.last, self.tenth = self.started, 0

    def due(self, share: float) -> bool:
        """Whether a line shall be printed, now that this share of the work is done."""
        now, tenth = self.clock(), int(10 * share)
        if self.first is None:
            self.first = share
        else:
            silence = now - self.last
            if silence < self.least or (tenth <= self.tenth and silence < self.every):
                return False
        self.last, self.tenth = now, tenth
        return True

    def left(self, share: float) -> str:
        """The time left at the pace so far, as text; "" where nothing can be said yet."""
        done = share - (self.first or 0.0)
        return f"{duration((self.clock() - self.started) * (1 - share) / done)} left" if done > 0 else ""


def duration(seconds: float) -> str:
    """Hours, minutes and seconds as h:mm:ss."""
    whole = round(max(seconds, 0))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
