"""From event rows to replicas: where each turn ran, how often sessions moved, how busy each was."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from marsbench.attribution import Ints
from marsbench.core import PS_PER_S
from marsbench.events import FLEET_KINDS, Kind
from marsbench.timeline import SESSION, TIME, Layout, field, scatter

COLUMNS = (
    "replica", "up_s", "busy_s", "turns", "sessions", "prompt_tokens", "cached_tokens", "lost_blocks",
)  # fmt: skip


def replica_of_turns(kinds: dict[Kind, Ints], layout: Layout) -> Ints:
    """The replica that finished each turn, or got it last; -1 for those that none got, 0 of one."""
    route = kinds[Kind.ROUTE]
    missing = -1 if len(kinds[Kind.REPLICA_UP]) else 0
    rows = layout.turn_rows(route)
    return scatter(layout.total_turns, rows, field(route, Kind.ROUTE, "replica"), missing)


def migrations(kinds: dict[Kind, Ints], num_sessions: int) -> Ints:
    """How often each session's turn went to another replica than its last one."""
    route = kinds[Kind.ROUTE]
    replica, previous = (field(route, Kind.ROUTE, name) for name in ("replica", "previous"))
    moved = (previous >= 0) & (previous != replica)
    return np.bincount(route[moved, SESSION], minlength=num_sessions).astype(np.int64)


def replicas_table(kinds: dict[Kind, Ints], turns: pd.DataFrame) -> pd.DataFrame:
    """``tables.CellTables.replicas``."""
    up, down = kinds[Kind.REPLICA_UP], kinds[Kind.REPLICA_DOWN]
    size = len(up)
    if not size:
        return pd.DataFrame({name: [] for name in COLUMNS})
    end_ps = int(kinds[Kind.RUN_END][0, TIME])
    began = scatter(size, field(up, Kind.REPLICA_UP, "replica"), up[:, TIME], 0)
    dead = field(down, Kind.REPLICA_DOWN, "replica")
    ended = scatter(size, dead, down[:, TIME], end_ps)
    sample = kinds[Kind.REPLICA_STATS]
    busy = scatter(
        size,
        field(sample, Kind.REPLICA_STATS, "replica"),
        field(sample, Kind.REPLICA_STATS, "gpu_busy_ps"),
        0,
    )
    ran = turns[turns["replica"] >= 0].groupby("replica")

    def per_replica(found: pd.Series) -> npt.NDArray[np.int64]:
        return found.reindex(range(size), fill_value=0).to_numpy(dtype=np.int64)

    return pd.DataFrame(
        {
            "replica": np.arange(size),
            "up_s": (ended - began) / PS_PER_S,
            "busy_s": busy / PS_PER_S,
            "turns": per_replica(ran.size()),
            "sessions": per_replica(ran["session"].nunique()),
            "prompt_tokens": per_replica(ran["prompt_tokens"].sum()),
            "cached_tokens": per_replica(ran["cached_tokens"].sum()),
            "lost_blocks": scatter(size, dead, field(down, Kind.REPLICA_DOWN, "lost_blocks"), 0),
        }
    )


def replica_of_rows(rows: Ints) -> Ints:
    """The replica of each event row: that of its session's last ROUTE, or the one it is about; -1
    where it belongs to none.
    """
    found = np.full(len(rows), -1, dtype=np.int64)
    own = np.isin(rows[:, 1], [*FLEET_KINDS])
    found[own] = rows[own, 5]
    engine = [
        Kind.GPU_SCHED_FIRST, Kind.GPU_FIRST_TOKEN, Kind.GPU_PREEMPT, Kind.GPU_RESUME,
        Kind.GPU_END, Kind.KV_PIN, Kind.KV_UNPIN,
    ]  # fmt: skip
    told = np.isin(rows[:, 1], engine)
    homes: dict[int, int] = {}
    route = int(Kind.ROUTE)
    for k in np.flatnonzero(told | (rows[:, 1] == route)).tolist():
        session = int(rows[k, 2])
        if rows[k, 1] == route:
            homes[session] = int(rows[k, 5])
        else:
            found[k] = homes.get(session, -1)
    return found
