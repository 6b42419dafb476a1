"""What is kept of a cell of live agents beside its events: results, tool calls, decisions, trajectories."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from marsbench.agents import atif
from marsbench.agents.cell import AgentOutcome, Result
from marsbench.agents.decisions import FILE, Decision, write_decisions
from marsbench.agents.driver import TRACE
from marsbench.agents.export import exported
from marsbench.agents.options import AgentOptions
from marsbench.engine.plan import Json
from marsbench.events import FIELDS, Kind
from marsbench.records import EventLog

MIB = 1 << 20


def keep_cell(
    folder: Path, outcome: AgentOutcome, log: EventLog, options: AgentOptions, system: str
) -> None:
    """Write ``tasks.jsonl``, ``tools.jsonl``, ``decisions.jsonl``, ``trace.jsonl`` and trajectories."""
    version = outcome.versions.get(f"{options.name}-sdk", outcome.versions.get(options.name, ""))
    write_lines(folder / "tasks.jsonl", [_task_row(result) for result in outcome.results])
    write_lines(
        folder / "tools.jsonl",
        [_tool_row(result, tool) for result in outcome.results for tool in result.tools],
    )
    write_decisions(folder / FILE, decisions_of(outcome))
    tokens = _turn_tokens(log)
    for result in outcome.results:
        if result.trajectory is None or not result.trajectory.is_file():
            continue
        found = atif.completed(
            json.loads(result.trajectory.read_text(encoding="utf-8")),
            session_id=result.session_id,
            version=version,
            tokens=tokens.get(result.session_id, ()),
            outcome={"task": result.task_id, "system": system, "passed": result.passed},
        )
        atif.write(folder / atif.file_name(result.session_id), found)
    write_lines(folder / TRACE, exported(outcome, log))


def decisions_of(outcome: AgentOutcome) -> dict[str, list[Decision]]:
    """Requests and tool calls of each session, in the order they happened."""
    names = {result.name: result.session_id for result in outcome.results}
    found: dict[str, list[Decision]] = {result.session_id: [] for result in outcome.results}
    for note in outcome.requests:
        if note.session in names:
            found[names[note.session]].append(Decision(note.turn, "request", note.roles))
    for result in outcome.results:
        calls = [Decision(t["turn"], t["name"], t["arguments"]) for t in result.tools]
        # A turn's request comes before its calls; the sort keeps the order among equals.
        found[result.session_id] = sorted(found[result.session_id] + calls, key=lambda d: d.turn)
    return found


def report(outcome: AgentOutcome, options: AgentOptions) -> dict[str, Json]:
    """The ``agents`` entry of a cell in ``summary.json``."""
    results = outcome.results
    tools = [tool for result in results for tool in result.tools]
    return {
        "agent": options.name,
        "brain": options.brain,
        "versions": dict(outcome.versions),
        "same_path": outcome.same_path,
        "tasks": len(results),
        "tasks_passed": sum(result.passed for result in results),
        "failures": dict(Counter(result.reason for result in results if result.reason)),
        "startup_s": outcome.startup_s,
        "prepare_s": _spread(result.prepare_s for result in results),
        "agent_cpu_s": _spread(result.cpu_s for result in results),
        "agent_peak_mib": _spread(result.peak_bytes / MIB for result in results),
        "tool_calls": len(tools),
        "tool_errors": sum(bool(tool["error"]) for tool in tools),
        "tool_cpu_s": _spread(tool["cpu_s"] for tool in tools),
        "tool_peak_mib": _spread(tool["peak_bytes"] / MIB for tool in tools),
        "tool_wait_s": _spread((tool["start_ns"] - tool["asked_ns"]) / 1e9 for tool in tools),
        "tool_run_s": _spread((tool["end_ns"] - tool["start_ns"]) / 1e9 for tool in tools),
        "tool_io_s": _spread(tool["io_s"] for tool in tools),
        "tool_poll_s": _spread(tool["late_s"] for tool in tools),
        "others_cpu_share": outcome.others_cpu_share,
        "wrong_output_lengths": outcome.wrong_lengths,
        "left_behind": list(outcome.left_behind),
    }


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object a line."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")


def _task_row(result: Result) -> dict[str, Any]:
    row = dataclasses.asdict(result)
    for name in ("tools", "trajectory", "name"):
        del row[name]
    return row


def _tool_row(result: Result, tool: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in tool.items() if name not in {"said", "session"}}
    for name in ("asked", "start", "end"):
        kept[f"{name}_s"] = (kept.pop(f"{name}_ns") - result.arrival_ns) / 1e9
    return {"session_id": result.session_id, **kept}


def _spread(values: Iterable[float]) -> dict[str, Json]:
    found = np.array(list(values), dtype=np.float64)
    if not len(found):
        return {"sum": 0.0, "mean": None, "p50": None, "p99": None, "max": None}
    p50, p99 = np.percentile(found, [50, 99])
    return {
        "sum": float(found.sum()),
        "mean": float(found.mean()),
        "p50": float(p50),
        "p99": float(p99),
        "max": float(found.max()),
    }


def _turn_tokens(log: EventLog) -> dict[str, Sequence[atif.TurnTokens]]:
    """Tokens of each session's turns, from the events."""
    fields = FIELDS[Kind.GPU_END]
    found: dict[str, list[atif.TurnTokens]] = defaultdict(list)
    rows = log.to_numpy()
    for row in rows[rows[:, 1] == Kind.GPU_END].tolist():
        told = dict(zip(fields, row[5:], strict=False))
        cached, prefilled = told["cached_tokens"], told["prefilled_tokens"]
        spent = atif.TurnTokens(cached + prefilled, cached, told["output_tokens"])
        found[log.session_ids[row[2]]].append(spent)
    return dict(found)
