"""From event rows to the chain of milestones of every turn, in integer picoseconds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from marsbench.attribution import Ints, TurnTimes
from marsbench.errors import ResultsError
from marsbench.events import FIELDS, Kind, Status
from marsbench.records import EventLog

STATUS_NAMES = (
    *(status.name.lower() for status in Status if status is not Status.MOVED),
    "unfinished",
)
"""Session status by code; ``unfinished`` = the run ended first."""

TIME, SESSION, TURN, CALL, PAYLOAD = 0, 2, 3, 4, 5
"""Columns of an event row."""


def split_by_kind(log: EventLog) -> dict[Kind, Ints]:
    """Rows of each kind, in order of time."""
    if not len(log):
        raise ResultsError("the event log is empty: the cell did not run")
    rows = log.to_numpy()
    codes = rows[:, 1].astype(np.uint8)
    order = np.argsort(codes, kind="stable")
    bounds = np.searchsorted(codes[order], np.arange(len(Kind) + 1, dtype=np.int64))
    return {kind: rows[order[bounds[kind] : bounds[kind + 1]]] for kind in Kind}


def field(rows: Ints, kind: Kind, name: str) -> Ints:
    """Return the column of one field of a kind's payload."""
    return rows[:, PAYLOAD + FIELDS[kind].index(name)]


class Layout:
    """Row numbers of sessions and turns, and what is known per session."""

    def __init__(self, kinds: dict[Kind, Ints], num_sessions: int) -> None:
        num_turns = np.zeros(num_sessions, dtype=np.int64)
        for kind in (Kind.TURN_READY, Kind.GPU_SUBMIT):
            np.maximum.at(num_turns, kinds[kind][:, SESSION], kinds[kind][:, TURN] + 1)
        self.first_turn = np.concatenate(([0], np.cumsum(num_turns))).astype(np.int64)
        self.num_turns = num_turns
        self.total_turns = int(self.first_turn[-1])
        self.session_of = np.repeat(np.arange(num_sessions), num_turns)
        self.turn_index = np.arange(self.total_turns) - self.first_turn[:-1][self.session_of]
        arrive, end = kinds[Kind.SESSION_ARRIVE], kinds[Kind.SESSION_END]
        self.arrived = np.zeros(num_sessions, dtype=bool)
        self.arrived[arrive[:, SESSION]] = True
        run_end_ps = int(kinds[Kind.RUN_END][0, TIME])
        self.arrival = scatter(num_sessions, arrive[:, SESSION], arrive[:, TIME], run_end_ps)
        self.parent = scatter(
            num_sessions, arrive[:, SESSION], field(arrive, Kind.SESSION_ARRIVE, "parent"), -1
        )
        self.parent_turn = scatter(
            num_sessions, arrive[:, SESSION], field(arrive, Kind.SESSION_ARRIVE, "parent_turn"), 0
        )
        self.end = scatter(num_sessions, end[:, SESSION], end[:, TIME], run_end_ps)
        self.status = scatter(
            num_sessions,
            end[:, SESSION],
            field(end, Kind.SESSION_END, "status"),
            len(STATUS_NAMES) - 1,
        )

    def turn_rows(self, rows: Ints) -> Ints:
        """Row number in the turns table of each event."""
        return self.first_turn[rows[:, SESSION]] + rows[:, TURN]


def scatter(size: int, at: Ints, values: Ints, missing: int) -> Ints:
    """Return an array with each value at its place, and ``missing`` elsewhere."""
    column = np.full(size, missing, dtype=np.int64)
    column[at] = values
    return column


MILESTONES = {
    "ready": Kind.TURN_READY,
    "submit": Kind.GPU_SUBMIT,
    "sched_first": Kind.GPU_SCHED_FIRST,
    "first_token": Kind.GPU_FIRST_TOKEN,
    "end": Kind.GPU_END,
}


def milestones(kinds: dict[Kind, Ints], layout: Layout) -> dict[str, Ints]:
    """Times as recorded, -1 where there is no such event."""
    return {
        name: scatter(layout.total_turns, layout.turn_rows(kinds[kind]), kinds[kind][:, TIME], -1)
        for name, kind in MILESTONES.items()
    }


@dataclass(frozen=True, slots=True)
class Waits:
    """Preempted time and refilled tokens of each turn, on both sides of its first token."""

    before: Ints
    after: Ints
    count: Ints
    refilled: Ints


def chain_times(
    kinds: dict[Kind, Ints], layout: Layout, times: dict[str, Ints], *, with_loads: bool = False
) -> tuple[TurnTimes, Waits]:
    """Milestones without gaps: what did not happen is put at the next one that did, or at the
    session's end, so that an unfinished turn's time is charged to the phase it was in.
    """
    limit = layout.end[layout.session_of]
    whole: dict[str, Ints] = {}
    following = limit
    for name in reversed(MILESTONES):
        following = np.where(times[name] < 0, following, np.minimum(times[name], limit))
        whole[name] = following
    start = whole["ready"].copy()
    has_turns = layout.num_turns > 0
    start[layout.first_turn[:-1][has_turns]] = layout.arrival[has_turns]
    last = np.ones(layout.total_turns, dtype=bool)
    last[:-1] = layout.session_of[1:] != layout.session_of[:-1]
    next_start = np.where(last, limit, np.append(start[1:], 0))
    chain = [start, *(whole[name] for name in MILESTONES if name != "ready"), next_start]
    _check_order(chain, layout)
    waits = _preemptions(kinds, layout, whole["first_token"], whole["end"])
    end_rows = kinds[Kind.GPU_END]
    at = layout.turn_rows(end_rows)
    prefilled = scatter(
        layout.total_turns, at, field(end_rows, Kind.GPU_END, "prefilled_tokens"), 0
    )
    recomputed = scatter(
        layout.total_turns, at, field(end_rows, Kind.GPU_END, "recomputed_tokens"), 0
    )
    prefilled = np.maximum(prefilled - waits.refilled, 0)
    recomputed = np.minimum(np.maximum(recomputed - waits.refilled, 0), prefilled)
    start, submit, sched_first, first_token, end, next_start = chain
    turns = TurnTimes(
        start=start,
        submit=submit,
        sched_first=sched_first,
        first_token=first_token,
        end=end,
        next_start=next_start,
        wait_before=waits.before,
        wait_after=waits.after,
        prefilled=prefilled,
        recomputed=recomputed,
        refilled=waits.refilled,
        loading=_loading(kinds, layout) if with_loads else None,
    )
    return turns, waits


def _loading(kinds: dict[Kind, Ints], layout: Layout) -> Ints:
    """How long each turn waited for KV from host memory."""
    loaded = kinds[Kind.KV_LOADED]
    waited = np.zeros(layout.total_turns, dtype=np.int64)
    np.add.at(waited, layout.turn_rows(loaded), field(loaded, Kind.KV_LOADED, "waited_ps"))
    return waited


def _check_order(chain: list[Ints], layout: Layout) -> None:
    names = ("arrival or ready", "submit", "first scheduled", "first token", "end", "next ready")
    for k in range(len(chain) - 1):
        wrong = np.flatnonzero(chain[k] > chain[k + 1])
        if wrong.size:
            row = int(wrong[0])
            raise ResultsError(
                f"events contradict themselves: session {int(layout.session_of[row])}, turn "
                f"{int(layout.turn_index[row])}: {names[k]} is later than {names[k + 1]}"
            )


def _preemptions(kinds: dict[Kind, Ints], layout: Layout, first: Ints, end: Ints) -> Waits:
    """Pair each preemption with the resumption that follows it.

    A server can tell of a preemption while the turn's first token is on its way to the client: a wait
    in which the first token arrives began after it.
    """
    size = layout.total_turns
    waits = Waits(*(np.zeros(size, dtype=np.int64) for _ in range(4)))
    out, back = kinds[Kind.GPU_PREEMPT], kinds[Kind.GPU_RESUME]
    if not len(out):
        return waits
    turn = layout.turn_rows(out)
    order = np.argsort(turn, kind="stable")
    turn, left = turn[order], out[order, TIME]
    returned = end[turn]
    refilled = np.zeros(len(turn), dtype=np.int64)
    if len(back):
        back_turn = layout.turn_rows(back)
        order = np.argsort(back_turn, kind="stable")
        back_turn, back = back_turn[order], back[order]
        rank = np.arange(len(back_turn)) - np.searchsorted(back_turn, back_turn)
        slot = np.searchsorted(turn, back_turn) + rank
        if (slot >= len(turn)).any() or (turn[slot] != back_turn).any():
            raise ResultsError("events contradict themselves: a resumption without a preemption")
        returned[slot] = np.minimum(back[:, TIME], end[back_turn])
        refilled[slot] = field(back, Kind.GPU_RESUME, "uncached_tokens")
    left = np.where((left < first[turn]) & (first[turn] < returned), first[turn], left)
    wait = returned - np.minimum(left, end[turn])
    after = left >= first[turn]
    np.add.at(waits.before, turn[~after], wait[~after])
    np.add.at(waits.after, turn[after], wait[after])
    np.add.at(waits.count, turn, 1)
    np.add.at(waits.refilled, turn[after], refilled[after])
    return waits
