"""An event loop whose time passes only while it has nothing to do, so that no test waits or is late.

Client and server run in it together: however busy the machine is, what the server does "in 8 ms" takes
exactly 8 ms on the loop's clock, and work itself takes none.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

from marsbench.engine.live.clock import Clock

Result = TypeVar("Result")

GRACE_S = 0.001
"""How long a message on its way between two sockets of this machine is waited for, really."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """Jumps to the next timer when no socket has anything to say."""

    def __init__(self) -> None:
        self.now_s = 0.0
        super().__init__(_Jumping(self))

    def time(self) -> float:
        return self.now_s

    def clock(self) -> Clock:
        """A live run's clock that shows this loop's time."""
        return Clock(lambda: round(self.now_s * 1e9))


class _Jumping(selectors.DefaultSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        events = super().select(GRACE_S)
        if not events:
            self._loop.now_s += timeout
        return events


def run_virtually(main: Coroutine[Any, Any, Result]) -> Result:
    """As ``asyncio.run``, in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


def virtual_clock() -> Clock:
    """The clock of the virtual loop that runs now."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop.clock()
