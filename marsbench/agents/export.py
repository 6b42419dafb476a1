"""The trace of a cell of live agents, with the work of its tools and not the times it took here.

The gateway records how long calls took while others ran beside them. Replayed with tools that share
cores, such times would be stretched a second time. So each call gets what was measured of it: CPU time,
parallelism, waiting and peak memory; and as wall time what these give on an idle machine.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from marsbench.agents.cell import AgentOutcome, Result
from marsbench.core import PS_PER_S
from marsbench.events import Kind
from marsbench.records import EventLog
from marsbench.trace.source import PROVENANCE_KEY

LEAST_ALONE_S = 0.001
MEASURED = {
    "arrival_s": "recorded: when the task arrived",
    "tools.wall_s": "derived: measured CPU time by parallelism, waiting, and the delay of polling",
    "tools.cpu_s": "recorded: CPU time of the call's processes",
    "tools.cores": "recorded: threads that could run, while any could",
    "tools.peak_bytes": "recorded: memory of the call's processes",
    "think_s": "recorded: time of the agent itself around its calls, without waiting for a processor",
}
UNMATCHED_KEY = "x_unmeasured_turns"
"""Turns whose calls have the gateway's times: not all of them were measured."""


def exported(outcome: AgentOutcome, log: EventLog) -> Iterator[dict[str, Any]]:
    """Lines of the canonical trace: sessions by their own ids, from the cell's beginning on.

    ``log``: the cell's, which says when each turn was asked for and answered.
    """
    if not outcome.trace.is_file():
        return
    by_name = {result.name: result for result in outcome.results}
    answered = _answered(log)
    for line in outcome.trace.read_text(encoding="utf-8").splitlines():
        session: dict[str, Any] = json.loads(line)
        if PROVENANCE_KEY in session:
            session[PROVENANCE_KEY] |= MEASURED
        result = by_name.get(session["session_id"])
        if result is not None:
            session["session_id"] = result.session_id
            session["arrival_s"] = max(0.0, (result.arrival_ns - outcome.start_ns) / 1e9)
            times = answered.get(result.session_id, {})
            _measure(session, result, times, outcome.start_ns)
        yield session


def alone_s(tool: Mapping[str, Any]) -> float:
    """Seconds that a measured call takes on an idle machine.

    Polling is late by a share of a call's age, so its delay shrinks with the call.
    """
    work_s = tool["cpu_s"] / tool["cores"] + tool["io_s"]
    took_s = (tool["end_ns"] - tool["start_ns"]) / 1e9 - tool["late_s"]
    share = min(1.0, work_s / took_s) if took_s > 0 else 1.0
    return float(max(LEAST_ALONE_S, work_s + share * tool["late_s"]))


def _answered(log: EventLog) -> dict[str, dict[int, tuple[float, float]]]:
    """Session -> turn -> when its request came and when its reply ended, seconds of the cell."""
    found: dict[str, dict[int, tuple[float, float]]] = defaultdict(dict)
    ready: dict[tuple[int, int], float] = {}
    for time_ps, kind, number, turn, *_ in log.to_numpy().tolist():
        if kind == Kind.TURN_READY:
            ready[number, turn] = time_ps / PS_PER_S
        elif kind == Kind.GPU_END and (number, turn) in ready:
            found[log.session_ids[number]][turn] = ready[number, turn], time_ps / PS_PER_S
    return found


def _own_s(
    result: Result,
    calls: Sequence[Mapping[str, Any]],
    turn: int,
    answered: Mapping[int, tuple[float, float]],
    start_ns: int,
) -> float:
    """What the agent did between its last call before a turn's request and the first one after it.

    ``calls``: all its calls so far, and the first one of the turn. Of a first turn since arrival.
    """
    if turn not in answered:
        return float(calls[-1]["own_cpu_s"])
    asked_s, ended_s = answered[turn]
    before_ns = calls[-2]["end_ns"] if len(calls) > 1 else result.arrival_ns
    before_s = asked_s - (before_ns - start_ns) / 1e9
    after_s = (calls[-1]["asked_ns"] - start_ns) / 1e9 - ended_s
    own_s = before_s + after_s - calls[-1]["own_delay_s"]
    return float(max(0.0, own_s, min(calls[-1]["own_cpu_s"], before_s + after_s)))


def _measure(
    session: dict[str, Any],
    result: Result,
    answered: Mapping[int, tuple[float, float]],
    start_ns: int,
) -> None:
    """Put what was measured in the place of what the gateway saw.

    A trace has an agent's own time behind a turn's tools, so what it does between a reply and its first
    call counts to the turn before; of the first turn, to that turn itself.
    """
    measured: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for call in result.tools:
        measured[call["turn"]].append(call)
    unmatched = []
    turns: Sequence[dict[str, Any]] = session["turns"]
    for index, turn in enumerate(turns):
        tools, found = turn.get("tools", ()), measured.get(index, [])
        if len(tools) != len(found):
            unmatched.append(index)
            continue
        for row, tool in zip(tools, found, strict=True):
            row["wall_s"] = alone_s(tool)
            row["cpu_s"], row["cores"] = tool["cpu_s"], tool["cores"]
            row["peak_bytes"] = tool["peak_bytes"]
        if found:
            earlier = [call for call in result.tools if call["turn"] < index]
            own_s = _own_s(result, [*earlier[-1:], found[0]], index, answered, start_ns)
            turn["think_s"] = 0.0
            turns[max(0, index - 1)]["think_s"] += own_s
    if unmatched:
        session[UNMATCHED_KEY] = unmatched
