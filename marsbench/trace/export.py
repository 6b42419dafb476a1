"""Writes sessions in the trace formats of other tools and says in one line what was lost."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any, BinaryIO

from marsbench.core import Session, Turn, plan_turns
from marsbench.errors import ConfigError
from marsbench.registry import unknown
from marsbench.trace.mooncake_rows import (
    AgenticMooncakeGraph,
    AgenticMooncakeRows,
    Losses,
    to_ms,
)
from marsbench.trace.schema import encode_session

FORMATS = {
    "canonical": "marsbench's own JSON lines",
    "agentic-mooncake": "Dynamo replay, --trace-format agentic_mooncake (v1 rows, one request each)",
    "agentic-mooncake-v2": "AISimulate and Dynamo's replay, agentic Mooncake v2 (a header, then one "
    "request a row with typed dependencies)",
    "trie": "trie and Dynamo replay, --trace-format applied_compute_agentic (one session a row)",
    "tracelab-csv": "TraceLab session runner (one turn a row)",
}
DEFAULT_BLOCK_SIZE = 512
CSV_FIELDS = (
    "session_id", "round_idx", "prefix_len", "input_len", "output_len", "tool_wait_after_ms",
    "arrival_time",
)  # fmt: skip


def export(
    sessions: Iterable[Session],
    stream: BinaryIO,
    format_name: str,
    *,
    block_size: int = DEFAULT_BLOCK_SIZE,
    source_digest: str = "unknown",
) -> Losses:
    """Write sessions in one of FORMATS to a binary stream, one session in memory at a time.

    ``source_digest`` names where the sessions are from, in formats that have a place for it.
    """
    if block_size < 1:
        raise ConfigError(f"--block-size {block_size}: must be at least 1 token")
    losses = Losses()
    lines: Iterator[bytes]
    if format_name == "canonical":
        lines = (encode_session(session) + b"\n" for session in sessions)
    elif format_name == "agentic-mooncake":
        lines = _json_lines(AgenticMooncakeRows(block_size, losses).rows(sessions))
    elif format_name == "agentic-mooncake-v2":
        lines = _json_lines(AgenticMooncakeGraph(block_size, losses, source_digest).rows(sessions))
    elif format_name == "trie":
        lines = _json_lines(_trie_row(session, losses) for session in sessions)
    elif format_name == "tracelab-csv":
        lines = _csv_lines(sessions, losses)
    else:
        raise unknown("export format", format_name, FORMATS)
    for line in lines:  # noqa: FURB122  (a zstandard writer has no writelines)
        stream.write(line)
    return losses


def _trie_row(session: Session, losses: Losses) -> dict[str, Any]:
    """Return one row, whose tool outputs make each following prompt as long as the trace says."""
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
                f"{to_ms(wait_s):.6f}",
                f"{to_ms(session.arrival_s or 0.0):.6f}",
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


def _json_lines(rows: Iterable[dict[str, Any]]) -> Iterator[bytes]:
    for row in rows:
        yield json.dumps(row, separators=(",", ":")).encode() + b"\n"
