"""Importer of TraceLab round rows (JSONL), recorded from Claude Code, Codex and others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from marsbench.core import Session, SharedPrefix, ToolCall
from marsbench.trace.importer import TraceSample
from workloads.context import RecordedCall, build_session, group_prefix
from workloads.messages import argument_command, char_tokens
from workloads.rows import (
    Row,
    RowSource,
    between_s,
    has_keys,
    read_rows,
    recognise,
    timestamp_s,
)
from workloads.tool_class import tool_class

REWRITTEN_SHARE = 0.05
"""A group whose prompts grow by less than the output this often re-sends it rewritten."""
_FIT_PAIRS = 30
"""Turn pairs below which nothing is said about a group's template."""


class TraceLab:
    """Reads rows that stand together by session, in two passes with one session in memory."""

    name = "tracelab"
    summary = "TraceLab round rows (JSONL): token counts and timed tool calls of real sessions"
    provenance: Mapping[str, str] = {
        "agent": "recorded: provider",
        "model": "recorded",
        "new_input_tokens": "derived: prompt growth less the re-sent output",
        "output_tokens": "recorded",
        "resent_output": "derived: 1.0 where the prompt has room for the whole output; groups "
        "whose prompts often grow by less than the output strip reasoning: growth less "
        "regressed result tokens and framing, never verbatim",
        "drop_context_to": "derived: where the prompt shrinks, to the cached prefix of the call",
        "tools.name": "recorded",
        "tools.class": "recorded, or derived from name and command",
        "tools.wall_s": "recorded: emission to result; 0 for a call without a result",
        "tools.result_tokens": "recorded, or derived: characters / 3.4",
        "tools.error": "recorded",
        "think_s": "derived: last tool result (or output) to the last input of the next call",
        "shared_prefix": "assumed: shortest first prompt of provider and model less 128 tokens",
    }

    def sniff(self, sample: TraceSample) -> bool:
        return recognise(sample, self.matches)

    def matches(self, value: Any) -> bool:
        """Tell whether a decoded row is of this format."""
        return has_keys(value, "session_id", "round_index", "input_tokens_total", "output_tokens")

    def read(self, path: Path) -> Iterator[Session]:
        return self.sessions(lambda: read_rows(path))

    def sessions(self, rows: RowSource) -> Iterator[Session]:
        groups: dict[str, _Group] = {}
        for session in _by_session(rows()):
            groups.setdefault(_group_name(session), _Group()).add(session)
        for name, group in groups.items():
            group.finish(name)
        for session in _by_session(rows()):
            yield _session(session, groups[_group_name(session)])


@dataclass(slots=True)
class _Group:
    """What sessions of one provider and model have in common."""

    first_prompts: list[int] = field(default_factory=list)
    pairs: list[tuple[int, int, int]] = field(default_factory=list)
    """(growth, output, result tokens) of calls that follow each other without shrinking."""
    rewritten: bool = False
    per_result: float = 1.0
    framing: float = 0.0
    prefix: SharedPrefix | None = None

    def add(self, session: list[Row]) -> None:
        self.first_prompts.append(session[0].integer("input_tokens_total"))
        for row, following in pairwise(session):
            growth = following.integer("input_tokens_total") - row.integer("input_tokens_total")
            if growth >= 0:
                self.pairs.append((growth, row.integer("output_tokens"), _result_tokens(row)))

    def finish(self, name: str) -> None:
        self.prefix = group_prefix(f"tracelab/{name}", self.first_prompts)
        short = sum(growth < output for growth, output, _ in self.pairs)
        enough = len(self.pairs) >= _FIT_PAIRS
        self.rewritten = enough and short > REWRITTEN_SHARE * len(self.pairs)
        if self.rewritten:
            table = np.array(self.pairs, dtype=float)
            factors = np.column_stack([table[:, 1:], np.ones(len(table))])
            _, self.per_result, self.framing = np.linalg.lstsq(factors, table[:, 0], rcond=None)[0]

    def resent_tokens(self, row: Row, following: Row) -> int | None:
        """Return the estimated tokens of a rewritten output in the next prompt, or None if it comes
        back verbatim.
        """
        if not self.rewritten:
            return None
        growth = following.integer("input_tokens_total") - row.integer("input_tokens_total")
        explained = self.per_result * _result_tokens(row) + self.framing
        return max(0, round(growth - explained))


def _by_session(rows: Iterator[Row]) -> Iterator[list[Row]]:
    """Yield the rows of one session after the other; a session that comes back is an error."""
    done: set[str] = set()
    current: list[Row] = []
    for row in rows:
        session_id = row.text("session_id")
        if current and current[-1].value["session_id"] == session_id:
            if row.integer("round_index") <= current[-1].integer("round_index"):
                raise row.error("must grow within a session; sort the rows", "round_index")
            current.append(row)
            continue
        if session_id in done:
            raise row.error(
                f"session {session_id!r} comes back after other sessions; sort the file by "
                "session_id, round_index",
                "session_id",
            )
        done.add(session_id)
        if current:
            yield current
        current = [row]
    if current:
        yield current


def _group_name(session: list[Row]) -> str:
    return f"{session[0].text('provider', '')}/{session[0].text('model', '')}"


def _session(rows: list[Row], group: _Group) -> Session:
    calls = [_call(row, rows[i + 1] if i + 1 < len(rows) else None) for i, row in enumerate(rows)]
    for i, (row, following) in enumerate(pairwise(rows)):
        calls[i] = replace(calls[i], resent_tokens=group.resent_tokens(row, following))
    if group.rewritten:
        calls = [replace(call, rewritten=True) for call in calls]
    return build_session(
        rows[0].text("session_id"),
        calls,
        agent=rows[0].text("provider", ""),
        model=rows[0].text("model", ""),
        prefix=group.prefix,
    )


def _call(row: Row, following: Row | None) -> RecordedCall:
    prompt = row.integer("input_tokens_total")
    if prompt == 0:
        raise row.error("expected at least one prompt token", "input_tokens_total")
    cached = row.integer("prefix_tokens", 0)
    return RecordedCall(
        prompt_tokens=prompt,
        output_tokens=row.integer("output_tokens"),
        tools=tuple(_tool(tool) for tool in row.rows("tools")),
        think_s=_think_s(row, following),
        # NOTE: not trusted while the prompt grows: some writers fill it from the previous prompt.
        shrunk_to_tokens=min(cached, prompt) if cached else None,
    )


def _tool(tool: Row) -> ToolCall:
    name = tool.text("tool_name", "unknown")
    recorded = tool.value.get("tool_class")
    wall_ms = tool.value.get("tool_wall_latency_ms")
    if wall_ms is None:
        times = tool.value.get("emitted_at"), tool.value.get("result_at")
        wall_s = between_s(timestamp_s(times[0]), timestamp_s(times[1]))
    else:
        wall_s = tool.number("tool_wall_latency_ms") / 1000
    command = argument_command(tool.value.get("input"))
    return ToolCall(
        name=name,
        tool_class=recorded if isinstance(recorded, str) else tool_class(name, command),
        wall_s=wall_s,
        result_tokens=_tokens_of_result(tool),
        error=bool(tool.value.get("is_error")),
    )


def _tokens_of_result(tool: Row) -> int:
    if tool.value.get("result_tokens") is not None:
        return tool.integer("result_tokens")
    return char_tokens(tool.integer("result_chars", 0))


def _result_tokens(row: Row) -> int:
    return sum(_tokens_of_result(tool) for tool in row.rows("tools"))


_INPUT_EVENTS = ("user_message", "tool_result")


def _think_s(row: Row, following: Row | None) -> float:
    """Return the idle seconds between the end of this call's tools and the next request."""
    if following is None:
        return 0.0
    ends = [timestamp_s(tool.value.get("result_at")) for tool in row.rows("tools")]
    ends += [timestamp_s(event.value.get("timestamp")) for event in row.rows("timing_events")]
    starts = [
        timestamp_s(event.value.get("timestamp"))
        for event in following.rows("timing_events")
        if event.value.get("event_type") in _INPUT_EVENTS
    ]
    known_ends = [end for end in ends if end is not None]
    known_starts = [start for start in starts if start is not None]
    if not known_ends or not known_starts:
        return 0.0
    return between_s(max(known_ends), max(known_starts))


IMPORTER = TraceLab()
