"""Sessions in other tools' trace formats, and one line on what each format cannot say."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any, BinaryIO

from marsbench.core import Session, SharedPrefix, Turn, TurnPlan, plan_turns
from marsbench.errors import ConfigError
from marsbench.registry import unknown
from marsbench.trace.schema import encode_session

FORMATS = {
    "canonical": "marsbench's own JSON lines",
    "agentic-mooncake": "Dynamo replay, --trace-format agentic_mooncake (v1 rows, one request each)",
    "trie": "trie and Dynamo replay, --trace-format applied_compute_agentic (one session a row)",
    "tracelab-csv": "TraceLab session runner (one turn a row)",
}
DEFAULT_BLOCK_SIZE = 512
CSV_FIELDS = (
    "session_id", "round_idx", "prefix_len", "input_len", "output_len", "tool_wait_after_ms",
    "arrival_time",
)  # fmt: skip
SUBAGENT = "subagent"
"""Tool class of the call that waits for sub-agents: its time is theirs."""


class Losses:
    """What an export could not express, counted by kind."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add(self, kind: str, num: int = 1) -> None:
        self.counts[kind] += num

    def summary(self) -> str:
        """One line, empty if nothing was lost."""
        return "; ".join(f"{num:,} {kind}" for kind, num in self.counts.items() if num)


def export(
    sessions: Iterable[Session],
    stream: BinaryIO,
    format_name: str,
    *,
    block_size: int = DEFAULT_BLOCK_SIZE,
) -> Losses:
    """Write sessions in one of FORMATS to a binary stream, one session in memory at a time."""
    if block_size < 1:
        raise ConfigError(f"--block-size {block_size}: must be at least 1 token")
    losses = Losses()
    lines: Iterator[bytes]
    if format_name == "canonical":
        lines = (encode_session(session) + b"\n" for session in sessions)
    elif format_name == "agentic-mooncake":
        lines = _json_lines(AgenticMooncake(block_size, losses).rows(sessions))
    elif format_name == "trie":
        lines = _json_lines(_trie_row(session, losses) for session in sessions)
    elif format_name == "tracelab-csv":
        lines = _csv_lines(sessions, losses)
    else:
        raise unknown("export format", format_name, FORMATS)
    stream.writelines(lines)
    return losses


class BlockIds:
    """Block ids of successive prompts: equal id = same tokens at the same place.

    A block keeps its id from one turn to the next iff it lies wholly in the reusable prefix
    (``core.plan_turns``), so it changes where rewritten output or a compaction diverges. Blocks
    wholly inside a shared prefix have one id in all sessions with that prefix.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._next = 0
        self._shared: dict[tuple[str, int], int] = {}

    def of(self, plans: list[TurnPlan], prefix: SharedPrefix | None) -> Iterator[list[int]]:
        """The ids of each turn's prompt; the last block of a prompt may be partly filled."""
        ids: list[int] = []
        for index, plan in enumerate(plans):
            kept = plan.reused_tokens // self._block_size
            num_blocks = -(-plan.prompt_tokens // self._block_size)
            if index == 0 and prefix is not None:
                ids = [self._shared_id(prefix.prefix_id, block) for block in range(kept)]
            ids = ids[:kept]
            ids += range(self._next, self._next + num_blocks - len(ids))
            self._next = max(self._next, ids[-1] + 1)
            yield list(ids)

    def _shared_id(self, prefix_id: str, block: int) -> int:
        key = (prefix_id, block)
        if key not in self._shared:
            self._shared[key] = self._next
            self._next += 1
        return self._shared[key]


class AgenticMooncake:
    """Rows of the agentic Mooncake format, version 1, as Dynamo's replay reads them.

    A row becomes ready when all requests in ``wait_for`` are complete, then waits ``delay`` +
    ``tool_wait_ms``; a row without ``wait_for`` starts at ``timestamp`` (all milliseconds).
    """

    def __init__(self, block_size: int, losses: Losses) -> None:
        self._ids = BlockIds(block_size)
        self._losses = losses

    def rows(self, sessions: Iterable[Session]) -> Iterator[dict[str, Any]]:
        for session in sessions:
            if session.arrival_s is None:
                self._losses.add("sessions without an arrival time start at 0")
            yield from self._session_rows(session, session.arrival_s or 0.0, None)

    def _session_rows(
        self, session: Session, arrival_s: float, parent: str | None
    ) -> Iterator[dict[str, Any]]:
        plans = plan_turns(session)
        wait_for = [parent] if parent else []
        before: Turn | None = None
        hashed = zip(session.turns, plans, self._ids.of(plans, session.shared_prefix), strict=True)
        for index, (turn, plan, hash_ids) in enumerate(hashed):
            request_id = _request_id(session, index)
            row: dict[str, Any] = {
                "request_id": request_id,
                "session_id": session.session_id,
                "input_length": plan.prompt_tokens,
                "output_length": plan.output_tokens,
                "hash_ids": hash_ids,
            }
            if not wait_for:
                row["timestamp"] = _ms(arrival_s)
            else:
                row["wait_for"] = wait_for
                row.update(_delays(before))
            if turn.children:
                row["branches"] = [_request_id(child, 0) for child in turn.children]
            row["prefix_reset"] = index == 0
            yield row
            self._count_losses(turn)
            wait_for = [request_id]
            for child in turn.children:
                yield from self._session_rows(child, 0.0, request_id)
                wait_for.append(_request_id(child, len(child.turns) - 1))
            before = turn

    def _count_losses(self, turn: Turn) -> None:
        self._losses.add(
            "tool calls lose name, class, result size and CPU demand (their wait is kept)",
            len(turn.tools),
        )
        if turn.children and any(tool.tool_class != SUBAGENT for tool in turn.tools):
            self._losses.add("turns run their other tools after their sub-agents, not beside them")


def _delays(before: Turn | None) -> dict[str, float]:
    """Waits between the requests a row depends on and the row itself."""
    if before is None:
        return {"delay": 0.0}
    tools = [t for t in before.tools if not (before.children and t.tool_class == SUBAGENT)]
    delays = {"delay": _ms(before.think_s)}
    if tools:
        delays["tool_wait_ms"] = _ms(max(tool.wall_s for tool in tools))
    return delays


def _trie_row(session: Session, losses: Losses) -> dict[str, Any]:
    """One row; tool output is what makes each next prompt as long as the trace says."""
    plans = plan_turns(session)
    results = []
    for plan, following in pairwise(plans):
        grown = following.prompt_tokens - plan.prompt_tokens - plan.output_tokens
        if grown < 0:
            losses.add("prompts grow by less than the last output and are written too long")
        elif following.reused_tokens <= plan.prompt_tokens:
            losses.add("turns that rewrite output or context look fully reusable")
        results.append(max(0, grown))
    _count_single_stream_losses(session, losses, "shared prefixes are not marked as shared")
    return {
        "num_turns": len(plans) - 1,
        "input_prompt_length": plans[0].prompt_tokens,
        "assistant_response_length": [plan.output_tokens for plan in plans[:-1]],
        "tool_call_output_length": results,
        "tool_call_latency": [_wait_s(turn) for turn in session.turns[:-1]],
        "final_assistant_response_length": plans[-1].output_tokens,
    }


def _csv_lines(sessions: Iterable[Session], losses: Losses) -> Iterator[bytes]:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, CSV_FIELDS, lineterminator="\n")
    writer.writeheader()
    for session in sessions:
        if session.arrival_s is None:
            losses.add("sessions without an arrival time start at 0")
        _count_single_stream_losses(session, losses, "")
        last = len(session.turns) - 1
        for index, (turn, plan) in enumerate(zip(session.turns, plan_turns(session), strict=True)):
            wait_s = 0.0 if index == last else _wait_s(turn)
            values: tuple[Any, ...] = (
                session.session_id,
                index,
                plan.reused_tokens,
                plan.prompt_tokens - plan.reused_tokens,
                plan.output_tokens,
                f"{_ms(wait_s):.6f}",
                f"{_ms(session.arrival_s or 0.0):.6f}",
            )
            writer.writerow(dict(zip(CSV_FIELDS, values, strict=True)))
        yield text.getvalue().encode()
        text.seek(0)
        text.truncate()
    if text.tell():
        yield text.getvalue().encode()  # no session: the header alone


def _count_single_stream_losses(session: Session, losses: Losses, prefixes: str) -> None:
    if prefixes and session.shared_prefix is not None:
        losses.add(prefixes)
    for turn in session.turns:
        losses.add("sub-agent sessions are left out", len(turn.children))
        if turn.think_s:
            losses.add("turns have idle time, written as tool wait")
        losses.add("tool calls lose name, class and CPU demand", len(turn.tools))


def _wait_s(turn: Turn) -> float:
    return max((tool.wall_s for tool in turn.tools), default=0.0) + turn.think_s


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 6)


def _request_id(session: Session, turn_index: int) -> str:
    return f"{session.session_id}/{turn_index}"


def _json_lines(rows: Iterable[dict[str, Any]]) -> Iterator[bytes]:
    for row in rows:
        yield json.dumps(row, separators=(",", ":")).encode() + b"\n"
