"""Where the time goes: parts of the work by name, measured only while somebody asks."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_spent: dict[str, float] | None = None
_running: list[str] = []
_since = 0.0
_thread = 0


@contextmanager
def profile(say: Callable[[str], object] | None) -> Iterator[dict[str, float]]:
    """Measure what happens inside, and say each part's share at the end; nothing where nobody is to hear it.

    Gives the seconds by name, those of "other" in no named part; what other threads do meanwhile is not counted.
    """
    global _spent, _thread
    if say is None:
        yield {}
        return
    _spent = spent = {"other": 0.0}
    _thread = threading.get_ident()
    try:
        with timed("other"):
            yield spent
    finally:
        _spent = None
        say(shares(spent))


@contextmanager
def timed(name: str) -> Iterator[None]:
    """A part of the work; also a decorator. What is timed inside it counts there and not here."""
    if _spent is None or threading.get_ident() != _thread:
        yield
        return
    _charge()
    _running.append(name)
    try:
        yield
    finally:
        _charge()
        _running.pop()


def _charge() -> None:
    """Give the time since the last change to what is running."""
    global _since
    now = time.perf_counter()
    if _spent is not None and _running:
        _spent[_running[-1]] = _spent.get(_running[-1], 0.0) + now - _since
    _since = now


def shares(spent: dict[str, float]) -> str:
    """One line: each part's share of the time, the largest first."""
    total = sum(spent.values()) or 1.0
    parts = sorted(spent.items(), key=lambda item: -item[1])
    return f"{total:.1f} s: " + ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in parts)
