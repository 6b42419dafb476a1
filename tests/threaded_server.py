"""A fake server in a thread of its own, for tests of commands that block."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from marsbench.engine.live.fake_server import FakeServer, serving


@contextmanager
def in_a_thread(server: FakeServer) -> Iterator[str]:
    """The server's address, until the block ends."""
    started = threading.Event()
    found: dict[str, str] = {}
    over: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def serve() -> None:
        stop = asyncio.Event()
        over.append((asyncio.get_running_loop(), stop))
        async with serving(server) as found["url"]:
            started.set()
            await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert started.wait(10)
        yield found["url"]
    finally:
        for loop, stop in over:
            loop.call_soon_threadsafe(stop.set)
        thread.join()
