"""From event rows to tables: one row a session, one row a turn, one row a tool call.

Everything downstream (metrics, reports, figures) reads these tables and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from marsbench.attribution import (
    CriticalTool,
    Ints,
    SessionChain,
    TurnTimes,
    attribute,
    component_names,
)
from marsbench.core import PS_PER_S
from marsbench.errors import ResultsError
from marsbench.events import FIELDS, Kind, Status
from marsbench.records import EventLog
from marsbench.replicas import migrations, replica_of_turns, replicas_table
from marsbench.timeline import (
    CALL,
    PAYLOAD,
    SESSION,
    STATUS_NAMES,
    TIME,
    TURN,
    Layout,
    Waits,
    chain_times,
    field,
    milestones,
    scatter,
    split_by_kind,
)


@dataclass(frozen=True, slots=True)
class CellKey:
    """What was run: the coordinates of one cell of an experiment."""

    workload: str
    system: str
    engine: str
    profile: str
    load: float | None
    """Relative to the measured capacity; None if the rate was given directly."""
    rate_per_s: float | None
    """Session arrivals per second; None in closed loop."""
    seed: int
    tool_cores: int
    """0 = unlimited."""
    host_kv_gib: float | None = None
    """Host memory for KV per GPU; None if no cell of the experiment has any."""
    replicas: int | None = None
    """Engines behind one front door; None if no cell of the experiment has several."""

    def as_dict(self) -> dict[str, str | int | float | None]:
        """Field name to value, in the order of ``summary.json``."""
        found = asdict(self)
        for name in ("host_kv_gib", "replicas"):
            if found[name] is None:
                del found[name]
        return found


@dataclass(frozen=True, slots=True)
class RunTotals:
    """The counters of a RUN_END event; None = the engine does not tell."""

    end_s: float
    steps: int | None
    evicted_blocks: int | None
    preemptions: int | None
    gpu_busy_s: float
    num_blocks: int
    tool_cores: int


@dataclass(frozen=True, slots=True)
class CellTables:
    """All tables of one cell. Times in seconds from the start of the run; NaN = did not happen."""

    sessions: pd.DataFrame
    turns: pd.DataFrame
    calls: pd.DataFrame
    """Tool calls: session, turn_index, call, name, tool_class, enqueued_s, started_s, ended_s,
    error, cpu_s."""
    pins: pd.DataFrame
    """Retention, one row per pin given up: session, turn_index, unpinned_s, blocks, reason, held_s."""
    kv: pd.DataFrame
    """KV_STATS samples: time_s and the payload fields."""
    cpu: pd.DataFrame
    """CPU_STATS samples: time_s, running, queued, busy_core_s, gpu_busy_s."""
    host: pd.DataFrame
    """HOST_STATS samples, none in a cell without host memory for KV."""
    link: pd.DataFrame
    """LINK_STATS samples: bytes and seconds each way."""
    totals: RunTotals
    replicas: pd.DataFrame
    """One row a replica, none in a cell with one engine: replica, up_s (how long it lived), busy_s,
    turns, sessions (that had a turn there), prompt_tokens, cached_tokens, lost_blocks."""


def build_tables(
    log: EventLog,
    *,
    ideal_s: Sequence[float] | None = None,
    with_loads: bool = False,
    with_replicas: bool = False,
) -> CellTables:
    """Tables of one cell's events.

    ``ideal_s`` is each session's latency alone on an empty system, by session index (NaN where
    unknown). ``with_loads`` keeps the columns of loads from host memory where this cell has none
    but others of its experiment do; a cell that has some always has them. ``with_replicas`` adds to turns
    where they ran, and to sessions how often they moved. Raises ResultsError if the events do not end with RUN_END or contradict themselves.
    """
    kinds = split_by_kind(log)
    if len(kinds[Kind.RUN_END]) != 1:
        raise ResultsError(
            f"events hold {len(kinds[Kind.RUN_END])} RUN_END rows instead of one: "
            "the cell was cut off or written twice; run it again"
        )
    layout = Layout(kinds, len(log.session_ids))
    times = milestones(kinds, layout)
    loads = with_loads or bool(len(kinds[Kind.HOST_STATS]))
    whole, waits = chain_times(kinds, layout, times, with_loads=loads)
    calls, tool = _calls(kinds, layout, whole, log.strings)
    chain = SessionChain(
        layout.first_turn, layout.arrival, layout.end, layout.parent, layout.parent_turn
    )
    parts, session_parts = attribute(whole, tool, chain)
    names = component_names(whole)
    by_name = dict(zip(names, parts.T, strict=True))
    turns = _turns_table(kinds, layout, times, waits, tool, whole, by_name, log.session_ids)
    sessions = _sessions_table(
        kinds,
        layout,
        turns,
        dict(zip(names, session_parts.T, strict=True)),
        log.session_ids,
        ideal_s,
    )
    if with_replicas:
        turns["replica"] = replica_of_turns(kinds, layout)
        sessions["migrations"] = migrations(kinds, len(sessions))
    return CellTables(
        sessions=sessions,
        turns=turns,
        replicas=replicas_table(kinds, turns),
        calls=calls,
        pins=_pins(kinds),
        kv=_samples(kinds[Kind.KV_STATS], Kind.KV_STATS),
        cpu=_samples(kinds[Kind.CPU_STATS], Kind.CPU_STATS),
        host=_samples(kinds[Kind.HOST_STATS], Kind.HOST_STATS),
        link=_samples(kinds[Kind.LINK_STATS], Kind.LINK_STATS),
        totals=_totals(kinds[Kind.RUN_END][0]),
    )


def _calls(
    kinds: dict[Kind, Ints], layout: Layout, chain: TurnTimes, strings: Sequence[str]
) -> tuple[pd.DataFrame, CriticalTool]:
    """The calls table, and each turn's call that ended last (ties: the first of them)."""
    queued, started, ended = (
        kinds[kind] for kind in (Kind.TOOL_ENQUEUED, Kind.TOOL_START, Kind.TOOL_END)
    )
    num_calls = np.zeros(layout.total_turns, dtype=np.int64)
    np.maximum.at(num_calls, layout.turn_rows(queued), queued[:, CALL] + 1)
    first_call = np.concatenate(([0], np.cumsum(num_calls))).astype(np.int64)
    total = int(first_call[-1])
    turn_of = np.repeat(np.arange(layout.total_turns), num_calls)

    def column(rows: Ints, values: Ints, missing: int) -> Ints:
        return scatter(total, first_call[layout.turn_rows(rows)] + rows[:, CALL], values, missing)

    at = {
        "enqueued": column(queued, queued[:, TIME], -1),
        "started": column(started, started[:, TIME], -1),
        "ended": column(ended, ended[:, TIME], -1),
    }
    session = layout.session_of[turn_of]
    calls = pd.DataFrame(
        {
            "session": session,
            "turn_index": layout.turn_index[turn_of],
            "call": np.arange(total) - first_call[:-1][turn_of],
            "name": _categories(
                column(queued, field(queued, Kind.TOOL_ENQUEUED, "name"), 0), strings
            ),
            "tool_class": _categories(
                column(queued, field(queued, Kind.TOOL_ENQUEUED, "tool_class"), 0), strings
            ),
            **{f"{name}_s": _seconds(values) for name, values in at.items()},
            "error": column(ended, field(ended, Kind.TOOL_END, "error"), 0).astype(bool),
            "cpu_s": column(ended, field(ended, Kind.TOOL_END, "cpu_ps"), 0) / PS_PER_S,
        }
    )
    low, high = chain.end[turn_of], chain.next_start[turn_of]
    end = np.clip(np.where(at["ended"] < 0, high, at["ended"]), low, high)
    start = np.clip(np.where(at["started"] < 0, end, at["started"]), low, end)
    enqueue = np.clip(np.where(at["enqueued"] < 0, start, at["enqueued"]), low, start)
    order = np.lexsort((-np.arange(total), end, turn_of))
    is_critical = np.ones(total, dtype=bool)
    is_critical[:-1] = turn_of[order][1:] != turn_of[order][:-1]
    critical = order[is_critical]
    tool = CriticalTool(chain.end.copy(), chain.end.copy(), chain.end.copy())
    for target, source in ((tool.enqueue, enqueue), (tool.start, start), (tool.end, end)):
        target[turn_of[critical]] = source[critical]
    return calls, tool


def _categories(codes: Ints, texts: Sequence[str]) -> pd.Series[str]:
    """Texts by code, stored once each (two codes may have the same text)."""
    dense, unique = pd.factorize(np.array(texts, dtype=object))
    return pd.Series(pd.Categorical.from_codes(dense[codes], categories=pd.Index(unique)))


def _seconds(picoseconds: Ints) -> npt.NDArray[np.float64]:
    """Seconds; NaN for -1 (did not happen)."""
    return np.where(picoseconds < 0, np.nan, picoseconds / PS_PER_S)


def _turns_table(
    kinds: dict[Kind, Ints],
    layout: Layout,
    times: dict[str, Ints],
    waits: Waits,
    tool: CriticalTool,
    chain: TurnTimes,
    parts: dict[str, Ints],
    session_ids: Sequence[str],
) -> pd.DataFrame:
    ready, end, sched = kinds[Kind.TURN_READY], kinds[Kind.GPU_END], kinds[Kind.GPU_SCHED_FIRST]
    size = layout.total_turns
    columns: dict[str, object] = {
        "session": layout.session_of,
        "session_id": _categories(layout.session_of, session_ids),
        "turn_index": layout.turn_index,
        **{f"{name}_s": _seconds(values) for name, values in times.items()},
        "prompt_tokens": scatter(
            size, layout.turn_rows(ready), field(ready, Kind.TURN_READY, "prompt_tokens"), 0
        ),
        "cached_tokens": scatter(
            size, layout.turn_rows(sched), field(sched, Kind.GPU_SCHED_FIRST, "cached_tokens"), 0
        ),
    }
    if chain.loading is not None:
        columns["loaded_tokens"] = _loaded_first(kinds, layout, times["sched_first"])
    for name in ("prefilled_tokens", "recomputed_tokens", "output_tokens", "num_tools"):
        columns[name] = scatter(size, layout.turn_rows(end), field(end, Kind.GPU_END, name), 0)
    finished = (times["end"] >= 0) & (chain.next_start > chain.end)
    columns["preemptions"] = waits.count
    columns["preempted_s"] = (waits.before + waits.after) / PS_PER_S
    columns["tool_wait_s"] = np.where(
        finished, (np.maximum(tool.end, chain.end) - chain.end) / PS_PER_S, 0.0
    )
    for name, part in parts.items():
        columns[f"{name}_s"] = part / PS_PER_S
    return pd.DataFrame(columns)


def _loaded_first(kinds: dict[Kind, Ints], layout: Layout, sched_first: Ints) -> Ints:
    """Of each turn's prefix hit when first scheduled, the tokens that host memory had."""
    loads = kinds[Kind.KV_LOAD]
    row = layout.turn_rows(loads)
    first = (sched_first[row] < 0) | (loads[:, TIME] <= sched_first[row])
    tokens = field(loads, Kind.KV_LOAD, "loaded_tokens")
    return scatter(layout.total_turns, row[first], tokens[first], 0)


def _sessions_table(
    kinds: dict[Kind, Ints],
    layout: Layout,
    turns: pd.DataFrame,
    parts: dict[str, Ints],
    session_ids: Sequence[str],
    ideal_s: Sequence[float] | None,
) -> pd.DataFrame:
    size = len(session_ids)
    admit, end = kinds[Kind.SESSION_ADMIT], kinds[Kind.SESSION_END]
    ok = layout.status == Status.OK
    latency = np.where(ok, (layout.end - layout.arrival) / PS_PER_S, np.nan)
    ideal = np.full(size, np.nan) if ideal_s is None else np.asarray(ideal_s, dtype=np.float64)
    if len(ideal) != size:
        raise ResultsError(f"ideal latencies of {len(ideal)} sessions given for {size} sessions")
    columns: dict[str, object] = {
        "session": np.arange(size),
        "session_id": list(session_ids),
        "parent": layout.parent,
        "parent_turn": layout.parent_turn,
        "arrival_s": layout.arrival / PS_PER_S,
        "admit_s": _seconds(scatter(size, admit[:, SESSION], admit[:, TIME], -1)),
        "end_s": _seconds(scatter(size, end[:, SESSION], end[:, TIME], -1)),
        "status": _categories(layout.status, STATUS_NAMES),
        "latency_s": latency,
        "ideal_s": ideal,
        "slowdown": latency / ideal,
        "num_turns": layout.num_turns,
    }
    summed = (
        "prompt_tokens",
        "cached_tokens",
        "prefilled_tokens",
        "recomputed_tokens",
        "output_tokens",
        "num_tools",
        "preemptions",
    )
    for name in summed:
        total = np.zeros(size, dtype=np.int64)
        np.add.at(total, layout.session_of, turns[name].to_numpy())
        columns[name] = total
    for name, part in parts.items():
        columns[f"{name}_s"] = part / PS_PER_S
    return pd.DataFrame(columns)[layout.arrived].reset_index(drop=True)


def _pins(kinds: dict[Kind, Ints]) -> pd.DataFrame:
    rows = kinds[Kind.KV_UNPIN]
    return pd.DataFrame(
        {
            "session": rows[:, SESSION],
            "turn_index": rows[:, TURN],
            "unpinned_s": rows[:, TIME] / PS_PER_S,
            "blocks": field(rows, Kind.KV_UNPIN, "blocks"),
            "reason": field(rows, Kind.KV_UNPIN, "reason"),
            "held_s": field(rows, Kind.KV_UNPIN, "held_ps") / PS_PER_S,
        }
    )


def _told(count: int) -> int | None:
    """A count, or None where a live engine wrote that it does not know it (-1)."""
    return count if count >= 0 else None


def _samples(rows: Ints, kind: Kind) -> pd.DataFrame:
    """Samples as a frame; payload in picoseconds becomes seconds (``_ps`` -> ``_s``), and counts that
    a live engine does not know (-1) NaN.
    """
    columns: dict[str, object] = {"time_s": rows[:, TIME] / PS_PER_S}
    for name in FIELDS[kind]:
        values = field(rows, kind, name)
        if name.endswith("_ps"):
            columns[f"{name.removesuffix('_ps')}_s"] = values / PS_PER_S
        elif (values < 0).any():
            columns[name] = np.where(values < 0, np.nan, values)
        else:
            columns[name] = values
    return pd.DataFrame(columns)


def _totals(row: Ints) -> RunTotals:
    fields = dict(zip(FIELDS[Kind.RUN_END], row[PAYLOAD:].tolist(), strict=True))
    return RunTotals(
        end_s=int(row[TIME]) / PS_PER_S,
        steps=_told(fields["steps"]),
        evicted_blocks=_told(fields["evicted_blocks"]),
        preemptions=_told(fields["preemptions"]),
        gpu_busy_s=fields["gpu_busy_ps"] / PS_PER_S,
        num_blocks=fields["num_blocks"],
        tool_cores=fields["tool_cores"],
    )
