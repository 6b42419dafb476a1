"""Protocol of tools that really run: the counterpart of ``ToolModel`` on the wall clock."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

from marsbench.errors import ConfigError, EngineError
from marsbench.tools.base import ToolDemand

STILL_S = 60.0
"""A call whose processes have CPU work left and use no CPU time for so long has been stopped: even the
nicest process on a machine with twenty times as many busy ones as cores gets some in a quarter of that."""

Result = TypeVar("Result")


class Execution(NamedTuple):
    """How a tool call that really ran ended."""

    cpu_ps: int
    """CPU time it used, core-picoseconds, as the operating system counted."""
    timed_out: bool
    """Killed because it ran longer than its timeout."""


@runtime_checkable
class ToolExecutor(Protocol):
    """Runs tool calls for a live engine, all in one event loop.

    Slots are not its business: the caller starts as many calls at once as its dispatch policy
    allows, and the operating system shares the cores among them.
    """

    async def open(self) -> None:
        """Before the first call: check what is needed, start what is slow to start.

        Raises ConfigError where it can never work here.
        """
        ...

    async def run(self, demand: ToolDemand) -> Execution:
        """Run one call to its end, or kill all of it at its timeout. Safe to call concurrently."""
        ...

    async def close(self) -> None:
        """Kill what still runs and leave nothing behind."""
        ...


async def watched(
    work: Awaitable[Result], used_ns: Callable[[], Awaitable[int]], *, name: str, still_s: float
) -> Result:
    """The result of a call's CPU work; EngineError if it uses no CPU time for ``still_s`` seconds.

    ``used_ns`` tells what the call has used. The caller kills what is left of a call that failed.
    """
    working = asyncio.ensure_future(work)
    try:
        last_ns = 0
        while not (await asyncio.wait({working}, timeout=still_s))[0]:
            now_ns = await used_ns()
            if now_ns <= last_ns:
                raise EngineError(
                    f"tool {name!r} has used no CPU time for {still_s:g} s although it has work left: "
                    "its process was stopped (SIGSTOP, a frozen container?); it is killed"
                )
            last_ns = now_ns
        return await working
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


def tool_core_ids(cores: int) -> tuple[int, ...]:
    """Which CPUs tools run on: the last ``cores`` of those this process may use; () = all.

    Raises ConfigError if there are not that many, rather than measure another machine.
    """
    if not cores:
        return ()
    allowed = sorted(os.sched_getaffinity(0))
    if cores > len(allowed):
        raise ConfigError(
            f"tool cores: {cores} asked for, but this machine gives us {len(allowed)}; "
            f"use --tool-cores {len(allowed)} or fewer, or 0 for no pinning"
        )
    return tuple(allowed[-cores:])
