"""A cell as a timeline for Perfetto (ui.perfetto.dev) and chrome://tracing: Trace Event Format, JSON.

Each session is a process with one track for its turns and as many for tool calls as ran at once;
KV blocks and tool calls over time are counters of a process of their own. Slices of a track nest
and never overlap otherwise, since viewers drop what does. Times are microseconds of the cell's
clock with three decimals: whole nanoseconds, so that ends of neighbours stay equal.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, BinaryIO

import pandas as pd

from marsbench.errors import ResultsError
from marsbench.export.cell import CellSpans, only_cell, read_cell
from marsbench.export.spans import CallTimes, SessionSpan, TurnSpan
from marsbench.frames import RunFrames

ENGINE_PID = 1
FIRST_SESSION_PID = 2
TURNS_TID = 1
_PS_PER_NS = 1000
_KV = {"running": "referenced_blocks", "retained": "pinned_blocks", "cached": "cached_blocks"}
Event = dict[str, Any]


def write(run: RunFrames, stream: BinaryIO) -> int:
    """Write the one cell of ``run`` as a JSON object with ``traceEvents``; the number of events.

    Raises ConfigError if the run has several cells and ResultsError if its events are not kept.
    """
    spans = read_cell(run, only_cell(run))
    if not spans.sessions:
        raise ResultsError(f"{run.path}: cell {spans.cell} has no sessions to show")
    about = {"run_id": spans.run_id, "cell": spans.cell, **spans.key}
    head = json.dumps({"displayTimeUnit": "ms", "otherData": about}, ensure_ascii=False)
    stream.write(f'{head[:-1]}, "traceEvents": [\n'.encode())
    number = 0
    for event in _events(run, spans):
        stream.write(b",\n" if number else b"")
        stream.write(json.dumps(event, ensure_ascii=False, allow_nan=False).encode())
        number += 1
    stream.write(b"\n]}\n")
    return number


def _events(run: RunFrames, spans: CellSpans) -> Iterator[Event]:
    yield from _named(ENGINE_PID, "engine and tool cores", 0)
    yield from _counters(run.samples("KV_STATS"), "KV blocks", _KV, free="free_blocks")
    yield from _counters(
        run.samples("CPU_STATS"), "tool calls", {"running": "running", "queued": "queued"}
    )
    for order, span in enumerate(sorted(spans.sessions, key=lambda s: s.arrival_ps), start=1):
        yield from _session(FIRST_SESSION_PID + span.session, order, span)


def _counters(
    samples: pd.DataFrame, name: str, series: dict[str, str], free: str = ""
) -> Iterator[Event]:
    """One counter event a sample; what the engine does not know (negative) is left out."""
    for row in samples.to_dict("records"):
        values = {label: int(row[column]) for label, column in series.items()}
        if free:  # what can be given away holds what is still cached
            values["free"] = int(row[free]) - values["cached"]
        if min(values.values()) >= 0:
            at = {"ts": round(1e6 * row["time_s"], 3), "pid": ENGINE_PID, "tid": 0}
            yield {"ph": "C", "name": name, **at, "args": values}


def _session(pid: int, order: int, span: SessionSpan) -> Iterator[Event]:
    yield from _named(pid, span.session_id, order)
    yield _thread(pid, TURNS_TID, "turns")
    about = {"status": span.status, "turns": len(span.turns)}
    yield _slice(pid, TURNS_TID, "session", "session", span.arrival_ps, span.end_ps, about)
    after = span.arrival_ps
    for turn in sorted(span.turns.values(), key=lambda t: t.ready_ps):
        begin = max(turn.ready_ps, after)
        after = _within(turn.end_ps, begin, span.end_ps)
        about = {
            "prompt_tokens": turn.prompt_tokens, "cached_tokens": turn.cached_tokens,
            "recomputed_tokens": turn.recomputed_tokens, "output_tokens": turn.output_tokens,
        }  # fmt: skip
        if turn.replica >= 0:
            about["replica"] = turn.replica
        yield _slice(pid, TURNS_TID, f"turn {turn.turn}", "turn", begin, after, about)
        yield from _phases(pid, turn, begin, after)
    yield from _tools(pid, span)


def _phases(pid: int, turn: TurnSpan, begin: int, end: int) -> Iterator[Event]:
    """What a turn waited for and did, one after the other, with preemptions inside."""
    marks = [turn.submit_ps, turn.sched_first_ps, turn.first_token_ps, end]
    for name, mark in zip(("backlog", "queue", "prefill", "decode"), marks, strict=True):
        until = _within(mark, begin, end)
        if until > begin:
            yield _slice(pid, TURNS_TID, name, "phase", begin, until)
            for lost, resumed in turn.preempted:
                start, stop = max(lost, begin), min(_within(resumed, lost, end), until)
                if stop > start:
                    yield _slice(pid, TURNS_TID, "preempted", "phase", start, stop)
        begin = until


def _tools(pid: int, span: SessionSpan) -> Iterator[Event]:
    """Tool calls, each on the first track that is free when it is asked for."""
    calls = [call for turn in span.turns.values() for call in turn.calls.values()]
    free: list[int] = []
    for call in sorted(calls, key=lambda c: c.enqueued_ps):
        end = _within(call.ended_ps, call.enqueued_ps, max(span.end_ps, call.enqueued_ps))
        lane = next((k for k, ps in enumerate(free) if ps <= call.enqueued_ps), len(free))
        if lane == len(free):
            free.append(0)
            yield _thread(pid, TURNS_TID + 1 + lane, f"tools {lane + 1}")
        free[lane] = end
        yield from _call(pid, TURNS_TID + 1 + lane, call, end)


def _call(pid: int, tid: int, call: CallTimes, end: int) -> Iterator[Event]:
    start = _within(call.started_ps, call.enqueued_ps, end)
    if start > call.enqueued_ps:
        yield _slice(pid, tid, "tool queue", "tool_queue", call.enqueued_ps, start)
    about = {"class": call.tool_class, "error": call.error, "cpu_s": call.cpu_ps / 1e12}
    yield _slice(pid, tid, call.name or "tool", "tool", start, end, about)


def _within(ps: int, low: int, high: int) -> int:
    """A milestone inside its interval; one that did not happen is the interval's end."""
    return high if ps < 0 else min(max(ps, low), high)


def _slice(
    pid: int, tid: int, name: str, cat: str, start_ps: int, end_ps: int, args: Event | None = None
) -> Event:
    start, end = start_ps // _PS_PER_NS, end_ps // _PS_PER_NS
    event = {"ph": "X", "name": name, "cat": cat, "pid": pid, "tid": tid}
    return event | {"ts": start / 1000, "dur": (end - start) / 1000, "args": args or {}}


def _named(pid: int, name: str, order: int) -> Iterator[Event]:
    for kind, value in (("process_name", {"name": name}), ("process_sort_index", {"sort_index": order})):  # fmt: skip
        yield {"ph": "M", "name": kind, "pid": pid, "tid": 0, "args": value}


def _thread(pid: int, tid: int, name: str) -> Event:
    return {"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": name}}
