"""How a run that does not finish ends: SIGTERM as Ctrl-C, and one line that says what is kept."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from marsbench.cli import EXIT_INTERRUPTED, EXIT_TERMINATED, RunFailed

if TYPE_CHECKING:
    from marsbench.experiment.runner import RunResult


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
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            # a shell starts what it puts in the background deaf to Ctrl-C; this is no Ctrl-C
            signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.raise_signal(signal.SIGINT)  # an event loop may have its own way to take this one

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGTERM, before)


def unfinished(result: RunResult, kept: str, *, terminated: bool) -> RunFailed:
    """The error in which a run ends that is not complete; ``kept`` says what is left and how to go on.

    Its status is 130 after Ctrl-C, 143 after SIGTERM, and 1 if cells failed, of which it names the first.
    """
    if result.interrupted:
        word, code = (
            ("terminated", EXIT_TERMINATED) if terminated else ("interrupted", EXIT_INTERRUPTED)
        )
        return RunFailed(f"{word}: {kept}", code=code)
    cell, error = result.failures[0]
    return RunFailed(
        f"{len(result.failures)} cells failed, first {cell.describe()}: {error}; {kept}"
    )
