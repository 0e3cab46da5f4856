"""Ctrl-C between two steps, not within one: a step that is done by halves could not be resumed exactly."""

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any


class Interrupt:
    """While it is entered, a first Ctrl-C only sets `asked` and is told to `told`; a second one is a KeyboardInterrupt at once.

    Python delivers signals to the main thread: in any other thread this does nothing.
    """

    def __init__(self, told: Callable[[], None] = lambda: None) -> None:
        self.asked, self.told = False, told
        self.before: Any = None

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            self.before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self.told()
