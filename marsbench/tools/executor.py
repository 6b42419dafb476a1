"""Protocol of tools that really run: the counterpart of ``ToolModel`` on the wall clock."""

from __future__ import annotations

import os
from typing import NamedTuple, Protocol, runtime_checkable

from marsbench.errors import ConfigError
from marsbench.tools.base import ToolDemand


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
