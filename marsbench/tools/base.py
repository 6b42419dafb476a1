"""What a tool call asks of the tool cores, and what a model of those cores must offer.

Public traces hardly ever record the CPU work of a tool call. Where a trace does not say,
``ToolAssumptions`` does, class by class, and lists what it assumed so that reports can.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from marsbench.core import ToolCall, to_ps
from marsbench.errors import ConfigError

MILLI = 1000
"""Parallelism is counted in thousandths of a core."""

WEIGHTS = (
    1024, 820, 655, 526, 423, 335, 272, 215, 172, 137,
    110, 87, 70, 56, 45, 36, 29, 23, 18, 15,
)  # fmt: skip
"""Weight of a call on contended cores by its niceness, 0 to 19, as Linux has it (1.25 a level)."""

CPU_SHARE: dict[str, float] = {
    "read": 0.2,
    "edit": 0.2,
    "plan": 0.05,
    "human": 0.0,
    "web": 0.05,
    "subagent": 0.0,
    "shell_read": 0.5,
    "shell_edit": 0.5,
    "git": 0.5,
    "script": 0.9,
    "test": 0.95,
    "build": 0.85,
}
"""Assumed share of a call's wall time that is CPU work, by tool class. Not measured: file tools
and plans mostly wait for the agent's own process, tests and scripts compute, builds also
download. Any share can be overridden; runs state those they used."""

SHELL_CLASSES = frozenset({"shell_read", "shell_edit", "git", "script", "test", "build"})
"""Classes that run as a command under the harness's timeout."""

TIMEOUT_SLACK = 1.02
"""A recorded wall time up to this much past the timeout is a call that the harness killed."""


@dataclass(frozen=True, slots=True)
class ToolAssumptions:
    """What is assumed about tool calls that the trace does not record."""

    cpu_share: Mapping[str, float] = field(default_factory=lambda: dict(CPU_SHARE))
    default_cpu_share: float = 0.5
    """For classes that ``cpu_share`` does not name."""
    shell_timeout_s: float | None = 120.0
    """Wall time after which the harness kills a shell command; None = never. 120 s is Claude
    Code's default, 30 s mini-SWE-agent's."""

    def __post_init__(self) -> None:
        for name, share in [*self.cpu_share.items(), ("default", self.default_cpu_share)]:
            if not 0.0 <= share <= 1.0:
                raise ConfigError(f"tools: CPU share of {name!r} is {share}; it must be in 0..1")
        if self.shell_timeout_s is not None and self.shell_timeout_s <= 0:
            raise ConfigError(
                f"tools: shell_timeout_s is {self.shell_timeout_s}; "
                "it must be positive, or null for no timeout"
            )

    def share(self, tool_class: str) -> float:
        """CPU share assumed for a class."""
        return self.cpu_share.get(tool_class, self.default_cpu_share)

    def provenance(self) -> dict[str, str]:
        """What was assumed, by topic, for the run's records."""
        shares = ", ".join(f"{name} {share:g}" for name, share in sorted(self.cpu_share.items()))
        timeout = "none" if self.shell_timeout_s is None else f"{self.shell_timeout_s:g} s"
        return {
            "cpu_s": f"assumed where not recorded, as share of wall time: {shares}; "
            f"other classes {self.default_cpu_share:g}",
            "order": "assumed: CPU work first, then the I/O wait",
            "timeout": f"assumed for shell commands: {timeout}",
        }


@dataclass(slots=True)
class ToolDemand:
    """One tool call as the tool cores see it. Immutable by convention: a frozen one takes twice
    as long to make, and there is one per call.
    """

    name: str
    tool_class: str
    cpu_ps: int
    """CPU work, core-picoseconds."""
    cores_milli: int
    """Most cores it can use at once, times 1000."""
    io_ps: int
    """Wait after the CPU work that no core shortens, picoseconds."""
    timeout_ps: int | None = None
    """Wall time after which the harness kills it."""
    nice: int = 0
    """Niceness it runs at, 0 to 19 as in nice(2). Whoever starts the call sets it."""
    nice_after_ps: int = 0
    """CPU work done at niceness 0 first, core-picoseconds."""

    def __post_init__(self) -> None:
        if self.cpu_ps < 0 or self.io_ps < 0 or self.cores_milli < 1:
            raise ConfigError(
                f"tool {self.name!r}: needs cpu_ps >= 0, io_ps >= 0, cores_milli >= 1; "
                f"has {self.cpu_ps}, {self.io_ps}, {self.cores_milli}"
            )
        if self.timeout_ps is not None and self.timeout_ps < 1:
            raise ConfigError(f"tool {self.name!r}: timeout_ps is {self.timeout_ps}, must be >= 1")

    def alone_ps(self, cores: int = 0) -> int:
        """Wall time with the whole pool of ``cores`` (0 = unlimited) to itself."""
        width = min(self.cores_milli, cores * MILLI) if cores else self.cores_milli
        wall = -(-self.cpu_ps * MILLI // width) + self.io_ps
        return wall if self.timeout_ps is None else min(wall, self.timeout_ps)


class CallOutcome(NamedTuple):
    """How a tool call ended."""

    at_ps: int
    cpu_ps: int
    """CPU work it got, core-picoseconds."""
    timed_out: bool
    """Killed by the harness: its result is an error."""


class ToolModel(Protocol):
    """Tool cores in virtual time. All times are picoseconds and never go back.

    ``handle`` is the caller's number of a call, unique among those not yet popped.
    """

    def start(self, handle: int, demand: ToolDemand, now_ps: int) -> None:
        """Begin a call now. (Waiting for a slot is the caller's business.)"""
        ...

    def next_completion_ps(self) -> int | None:
        """When to call ``pop_completed`` next; None if nothing runs.

        Never later than the next completion. It can be earlier (a call passes from computing to
        waiting, which gives others its cores): ``pop_completed`` then returns nothing.
        """
        ...

    def pop_completed(self, now_ps: int) -> list[int]:
        """Handles of the calls that ended up to now, by end, then by start."""
        ...

    def outcome(self, handle: int) -> CallOutcome:
        """How a call of the latest ``pop_completed`` ended; KeyError for any other."""
        ...

    @property
    def running(self) -> int:
        """Calls started and not yet popped."""
        ...

    def busy_core_ps(self, now_ps: int) -> int:
        """Integral of cores in use from the start until now, core-picoseconds."""
        ...


def demand_of(call: ToolCall, *, speed: float, assumptions: ToolAssumptions) -> ToolDemand:
    """What a recorded call asks of cores that are ``speed`` times as fast as the recording's.

    At speed 1, ``alone_ps()`` is the recorded wall time to the picosecond. CPU work that the
    stated parallelism cannot fit into the recorded wall time proves more parallelism. A call
    recorded well past the shell timeout proves that its harness had none.
    """
    if not speed > 0.0:
        raise ConfigError(f"tools: speed is {speed}; it must be positive (1 = as recorded)")
    if call.wall_s < 0 or call.cores <= 0 or (call.cpu_s is not None and call.cpu_s < 0):
        raise ConfigError(
            f"tool {call.name!r}: needs wall_s >= 0, cores > 0 and cpu_s >= 0; "
            f"has {call.wall_s}, {call.cores}, {call.cpu_s}"
        )
    wall_ps = to_ps(call.wall_s)
    cores_milli = max(1, round(call.cores * MILLI))
    if call.cpu_s is None:
        cpu_ps = round(assumptions.share(call.tool_class) * wall_ps) * cores_milli // MILLI
    else:
        cpu_ps = to_ps(call.cpu_s)
        if wall_ps > 0:
            cores_milli = max(cores_milli, -(-cpu_ps * MILLI // wall_ps))
    io_ps = max(0, wall_ps - -(-cpu_ps * MILLI // cores_milli))
    return ToolDemand(
        name=call.name,
        tool_class=call.tool_class,
        cpu_ps=cpu_ps if speed == 1.0 else round(cpu_ps / speed),
        cores_milli=cores_milli,
        io_ps=io_ps,
        timeout_ps=_timeout_ps(call, wall_ps, assumptions),
    )


def _timeout_ps(call: ToolCall, wall_ps: int, assumptions: ToolAssumptions) -> int | None:
    limit_s = assumptions.shell_timeout_s
    if limit_s is None or call.tool_class not in SHELL_CLASSES:
        return None
    if call.wall_s > limit_s * TIMEOUT_SLACK:
        return None
    return max(to_ps(limit_s), wall_ps)
