"""The unified information stream: what happens to sessions, as typed rows (MARS, arXiv:2604.26963).

One row is ten integers. ``FIELDS`` names the payload integers of each kind; the same table
writes ``events.parquet``, builds the ``Event`` objects policies see, and goes over the wire.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

EVENTS_VERSION = 1
NUM_PAYLOAD = 6


class Kind(IntEnum):
    """Event kinds; the value is stored, the name is written to files."""

    SESSION_ARRIVE = 0
    SESSION_ADMIT = 1
    SESSION_END = 2
    TURN_READY = 3
    GPU_SUBMIT = 4
    GPU_SCHED_FIRST = 5
    GPU_FIRST_TOKEN = 6
    GPU_PREEMPT = 7
    GPU_RESUME = 8
    GPU_END = 9
    KV_PIN = 10
    KV_UNPIN = 11
    TOOL_ENQUEUED = 12
    TOOL_START = 13
    TOOL_END = 14
    KV_STATS = 15
    CPU_STATS = 16
    RUN_END = 17
    KV_LOAD = 18
    KV_LOADED = 19
    HOST_STATS = 20
    LINK_STATS = 21
    ROUTE = 22
    REPLICA_STATS = 23
    REPLICA_UP = 24
    REPLICA_DOWN = 25


HOST_KINDS = (Kind.KV_LOAD, Kind.KV_LOADED, Kind.HOST_STATS, Kind.LINK_STATS)
"""Kinds that only cells with host memory for KV have; files of others do not name them."""


FLEET_KINDS = (Kind.ROUTE, Kind.REPLICA_STATS, Kind.REPLICA_UP, Kind.REPLICA_DOWN)
"""Kinds that only cells with several replicas have; files of others do not name them."""


class Status(IntEnum):
    """How a session ended."""

    OK = 0
    TOO_LARGE = 1
    """Its context does not fit the KV cache or the model: rejected, counted as failed."""
    ERROR = 2
    TIMEOUT = 3
    MOVED = 4
    """Said to the policies of one replica: the session goes on at another. In no record."""


class Unpin(IntEnum):
    """Why retained KV was given up."""

    RETURN = 0
    EXPIRE = 1
    PRESSURE = 2
    END = 3


FIELDS: dict[Kind, tuple[str, ...]] = {
    Kind.SESSION_ARRIVE: ("prompt_tokens", "parent", "parent_turn"),
    Kind.SESSION_ADMIT: ("window",),
    Kind.SESSION_END: ("status",),
    Kind.TURN_READY: ("prompt_tokens",),
    Kind.GPU_SUBMIT: ("prompt_tokens", "blocks"),
    Kind.GPU_SCHED_FIRST: ("cached_tokens", "uncached_tokens"),
    Kind.GPU_FIRST_TOKEN: (),
    Kind.GPU_PREEMPT: ("lost_tokens", "blocks"),
    Kind.GPU_RESUME: ("cached_tokens", "uncached_tokens"),
    Kind.GPU_END: (
        "output_tokens",
        "cached_tokens",
        "prefilled_tokens",
        "recomputed_tokens",
        "num_tools",
        "is_last",
    ),
    Kind.KV_PIN: ("blocks", "until_ps"),
    Kind.KV_UNPIN: ("blocks", "reason", "held_ps"),
    Kind.TOOL_ENQUEUED: ("name", "tool_class"),
    Kind.TOOL_START: ("name", "tool_class", "nice", "nice_after_ps"),
    Kind.TOOL_END: ("name", "tool_class", "error", "cpu_ps"),
    Kind.KV_STATS: (
        "free_blocks",
        "referenced_blocks",
        "pinned_blocks",
        "cached_blocks",
        "mean_referenced_mblocks",
        "evicted_blocks",
    ),
    Kind.CPU_STATS: ("running", "queued", "busy_core_ps", "gpu_busy_ps"),
    Kind.RUN_END: (
        "steps",
        "evicted_blocks",
        "preemptions",
        "gpu_busy_ps",
        "num_blocks",
        "tool_cores",
    ),
    Kind.KV_LOAD: ("local_tokens", "loaded_tokens"),
    Kind.KV_LOADED: ("waited_ps",),
    Kind.HOST_STATS: (
        "resident_blocks",
        "num_blocks",
        "stored_blocks",
        "loaded_blocks",
        "evicted_blocks",
    ),
    Kind.LINK_STATS: ("d2h_bytes", "h2d_bytes", "d2h_busy_ps", "h2d_busy_ps", "stall_ps"),
    Kind.ROUTE: ("replica", "previous"),
    Kind.REPLICA_STATS: ("replica", "free_blocks", "running", "waiting", "gpu_busy_ps", "steps"),
    Kind.REPLICA_UP: ("replica", "num_blocks"),
    Kind.REPLICA_DOWN: ("replica", "sessions", "turns", "lost_blocks"),
}
"""Payload names by kind (at most NUM_PAYLOAD). ``name`` and ``tool_class`` are indices into the
log's string table; ``parent`` is a session index or -1; blocks and tokens are counts.

KV_STATS: ``referenced`` = held by running turns, ``pinned`` = held for returning sessions,
``cached`` = evictable with reusable content, ``free`` = evictable, cached ones included;
``mean_referenced_mblocks`` = time-weighted mean of referenced + pinned since the previous
sample, in 1/1000 block; ``evicted_blocks`` since the previous sample.

KV_LOAD: a waiting turn has ``local_tokens`` on
the GPU and begins to load ``loaded_tokens``; KV_LOADED: the engine has them. HOST_STATS and
LINK_STATS come with KV_STATS: ``resident`` of ``num_blocks`` are held now, everything else counts
from the start of the run; ``stall_ps`` is time in which steps waited for a copy.

ROUTE: the turn goes to ``replica``; ``previous`` is where the session's last one went, or -1. What
the engine then says of the session is said by that replica. REPLICA_STATS comes with KV_STATS, one
for each replica; busy time and steps count from its start. REPLICA_DOWN: with so many unfinished
sessions, of which so many had a turn there, and so many blocks with content."""


class Event(NamedTuple):
    """One event as policies receive it. ``args`` follows ``FIELDS[kind]``."""

    time_s: float
    kind: Kind
    session: int
    turn: int
    call: int
    args: tuple[int, ...]
    name: str = ""
    """Tool name for tool events."""
    tool_class: str = ""

    def get(self, field: str) -> int:
        """Payload value by its name in ``FIELDS``; KeyError if this kind has no such field."""
        names = FIELDS[self.kind]
        if field not in names:
            raise KeyError(f"{self.kind.name} has no field {field!r}")
        return self.args[names.index(field)]
