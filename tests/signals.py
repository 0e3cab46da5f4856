"""Signals without the operating system: a worker of pytest that one reaches at the wrong moment is gone, and says nothing."""

import signal


def arrives(number: signal.Signals) -> None:
    """Call the handler that is installed for a signal, as Python does where one arrives."""
    handler = signal.getsignal(number)
    assert callable(handler), f"nothing listens to {number.name}"
    handler(number, None)
