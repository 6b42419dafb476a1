"""From what the gateway wrote down to the event log of a cell.

A gateway knows sessions from their first request on and numbers them as they come. A cell's log begins
at time zero, has sessions in the order of the plan, and counts latency from arrival to the moment the
agent was done, whatever happened in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from marsbench.engine.live.metrics import ServerMetrics
from marsbench.events import FIELDS, Kind, Status
from marsbench.records import ROW, EventLog

TIME, KIND, SESSION, TURN, CALL, PAYLOAD = 0, 1, 2, 3, 4, 5
TOOLS = (Kind.TOOL_ENQUEUED, Kind.TOOL_START, Kind.TOOL_END)
NS = 1000
"""Picoseconds."""
UNKNOWN = -1


@dataclass(frozen=True, slots=True)
class SessionBook:
    """One session of the plan, as the driver saw it; times by CLOCK_MONOTONIC."""

    session_id: str
    name: str
    """What it called itself to the gateway."""
    arrival_ns: int
    end_ns: int
    status: Status


@dataclass(frozen=True, slots=True)
class EngineMoment:
    """The engine at one moment."""

    at_ns: int
    metrics: ServerMetrics


def write_cell_log(
    log: EventLog,
    source: EventLog,
    lives: Sequence[SessionBook],
    samples: Sequence[EngineMoment],
    *,
    source_start_ns: int,
    start_ns: int,
    end_ns: int,
    tool_cores: int,
) -> None:
    """Fill an empty ``log``. ``start_ns`` becomes time zero."""
    log.session_ids = [life.session_id for life in lives]
    for text in source.strings:
        log.intern(text)
    numbers = _numbers(source, lives, log)
    rows = np.array(source.to_numpy()) if len(source) else np.empty((0, ROW), dtype=np.int64)
    rows = rows[np.isin(rows[:, SESSION], list(numbers))]
    rows[:, TIME] += (source_start_ns - start_ns) * NS
    rows = _renumbered(rows, numbers, len(lives))
    rows = _within_lives(rows, lives, start_ns)
    rows = _without_open_ends(rows, lives)
    own = [_row((end_ns - start_ns) * NS, Kind.RUN_END, *_totals(samples, tool_cores))]
    for index, life in enumerate(lives):
        arrival, end = (life.arrival_ns - start_ns) * NS, (life.end_ns - start_ns) * NS
        own.append(_row(arrival, Kind.SESSION_ARRIVE, 0, -1, 0, session=index))
        own.append(_row(end, Kind.SESSION_END, int(life.status), session=index))
    own += [_kv(sample, start_ns) for sample in samples if sample.metrics.num_blocks]
    merged = np.concatenate([np.array(own, dtype=np.int64), rows])
    rank = np.zeros(len(merged), dtype=np.int64)  # of events at one moment
    rank[merged[:, KIND] == Kind.SESSION_ARRIVE] = -1
    rank[merged[:, KIND] == Kind.SESSION_END] = 1
    rank[merged[:, KIND] == Kind.RUN_END] = 2
    ordered = merged[np.lexsort((rank, merged[:, TIME]))]
    ordered[:, TIME] = np.minimum(ordered[:, TIME], (end_ns - start_ns) * NS)
    log.rows.frombytes(np.ascontiguousarray(ordered).tobytes())


def _numbers(source: EventLog, lives: Sequence[SessionBook], log: EventLog) -> dict[int, int]:
    """The gateway's session numbers -> ours; sub-agents follow behind the plan's sessions."""
    by_name = {life.name: index for index, life in enumerate(lives)}
    found: dict[int, int] = {}
    for number, session_id in enumerate(source.session_ids):
        name = session_id.partition("/")[0]
        if session_id in by_name:
            found[number] = by_name[session_id]
        elif name in by_name:
            found[number] = len(log.session_ids)
            rest = session_id.removeprefix(name)
            log.session_ids.append(lives[by_name[name]].session_id + rest)
    return found


def _renumbered(
    rows: np.ndarray[tuple[int, int], np.dtype[np.int64]], numbers: dict[int, int], num_lives: int
) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """Our numbers; of the plan's sessions without arrivals and ends, which the driver knows."""
    table = np.full(max(numbers, default=0) + 1, UNKNOWN, dtype=np.int64)
    table[list(numbers)] = list(numbers.values())
    rows[:, SESSION] = table[rows[:, SESSION]]
    life = np.isin(rows[:, KIND], (Kind.SESSION_ARRIVE, Kind.SESSION_END))
    parent = PAYLOAD + FIELDS[Kind.SESSION_ARRIVE].index("parent")
    children = (rows[:, KIND] == Kind.SESSION_ARRIVE) & (rows[:, parent] >= 0)
    rows[children, parent] = table[rows[children, parent]]
    return rows[~(life & (rows[:, SESSION] < num_lives))]


def _within_lives(
    rows: np.ndarray[tuple[int, int], np.dtype[np.int64]],
    lives: Sequence[SessionBook],
    start_ns: int,
) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """What the gateway learned after an agent had ended happened when it ended."""
    if not lives or not len(rows):
        return rows
    first = np.array([life.arrival_ns - start_ns for life in lives], dtype=np.int64) * NS
    last = np.array([life.end_ns - start_ns for life in lives], dtype=np.int64) * NS
    ours = (rows[:, SESSION] >= 0) & (rows[:, SESSION] < len(lives))
    who = rows[ours, SESSION]
    rows[ours, TIME] = np.clip(rows[ours, TIME], first[who], last[who])
    return rows


def _without_open_ends(
    rows: np.ndarray[tuple[int, int], np.dtype[np.int64]], lives: Sequence[SessionBook]
) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """The call with which an agent says that it is done is no tool call: it never runs."""
    ended = {(r[SESSION], r[TURN]) for r in rows[rows[:, KIND] == Kind.TOOL_END].tolist()}
    done = {index for index, life in enumerate(lives) if life.status == Status.OK}
    keep = [
        not (row[KIND] in TOOLS and row[SESSION] in done and (row[SESSION], row[TURN]) not in ended)
        for row in rows.tolist()
    ]
    return rows[np.array(keep, dtype=bool)] if keep else rows


def _totals(samples: Sequence[EngineMoment], tool_cores: int) -> tuple[int, ...]:
    """Payload of RUN_END; -1 = the engine does not tell."""
    if not samples:
        return UNKNOWN, UNKNOWN, UNKNOWN, 0, 0, tool_cores
    gained = samples[-1].metrics.since(samples[0].metrics)
    busy_ns = sum(
        after.at_ns - before.at_ns
        for before, after in pairwise(samples)
        if after.metrics.running or after.metrics.generated_tokens > before.metrics.generated_tokens
    )
    steps = gained.steps or UNKNOWN
    return steps, UNKNOWN, gained.preemptions, busy_ns * NS, gained.num_blocks, tool_cores


def _kv(sample: EngineMoment, start_ns: int) -> list[int]:
    """A KV_STATS row of a reading."""
    metrics = sample.metrics
    used = round(metrics.kv_usage * metrics.num_blocks)
    payload = (metrics.num_blocks - used, used, 0, UNKNOWN, used * 1000, UNKNOWN)
    return _row(max(0, sample.at_ns - start_ns) * NS, Kind.KV_STATS, *payload)


def _row(time_ps: int, kind: Kind, *payload: int, session: int = -1) -> list[int]:
    row = [time_ps, int(kind), session, -1, -1, *payload]
    return row + [0] * (ROW - len(row))
