"""Ctrl-C and SIGTERM between two steps, not within one: a step that is done by halves could not be resumed exactly."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from diffuseg.errors import Terminated

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """Raised by a first signal within `Interrupt.at_once`."""


class Interrupt:
    """While it is entered, a first signal sets `requested` and calls `on_request`; a second one is a KeyboardInterrupt at once.

    Python delivers signals to the main thread: in any other thread this does nothing.
    """

    def __init__(self, on_request: Callable[[], None] = lambda: None) -> None:
        self.requested, self.on_request = False, on_request
        self.number, self._at_once = int(signal.SIGINT), False
        self.previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            self.previous = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for number, previous in self.previous.items():
            signal.signal(number, previous)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within it a first signal raises `Stopped`, in the midst of the work: for work that leaves nothing by halves."""
        self._at_once = True
        try:
            if self.requested:
                raise Stopped
            yield
        finally:
            self._at_once = False

    @property
    def error(self) -> KeyboardInterrupt:
        """What the signal means to whoever called."""
        return Terminated() if self.number == signal.SIGTERM else KeyboardInterrupt()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise self.error
        self.requested, self.number = True, number
        self.on_request()
        if self._at_once:
            raise Stopped
