"""SIGTERM ends a run as Ctrl-C does: what is finished is kept, and said."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def like_an_interrupt() -> Iterator[Callable[[], bool]]:
    """While it lasts, SIGTERM interrupts the program as Ctrl-C would; gives a function that says
    whether one has come. Only the main thread may set signals: in others nothing changes.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def interrupt(number: int, _frame: object) -> None:
        received.append(number)
        signal.raise_signal(signal.SIGINT)  # an event loop may have its own way to take this one

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGTERM, before)
