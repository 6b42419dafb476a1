"""Importer of Weka kv-cache-tester traces, with hash ids written out or run-length coded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from marsbench.core import Session, SharedPrefix, ToolCall
from marsbench.trace.importer import TraceSample
from workloads.context import MID_CONVERSATION, RecordedCall, build_session
from workloads.rows import Row, RowSource, has_keys, read_rows, recognise

LONGEST_TOOL_S = 600.0
"""Claude Code kills a shell call after 10 minutes at the latest; a longer gap held a person."""
MID_CONVERSATION_TOKENS = 60_000
"""First prompts above this belong to traces cut out of a conversation (39 % of the set)."""
SIGNATURE_REQUESTS = 3
"""Requests that tell a trace from another: copies share their first three."""

Runs = list[tuple[int, int]]
"""Hash ids as (first id, length) runs."""


class Weka:
    """Reads one trace after the other; equal openings are imported once."""

    name = "weka"
    summary = "Weka kv-cache-tester: Claude Code sessions with 64-token block hashes"
    provenance: Mapping[str, str] = {
        "agent": "recorded: sub-agent type; assumed: claude-code, marked where the first prompt is "
        "above 60k tokens",
        "model": "recorded: of the first request",
        "new_input_tokens": "derived: prompt growth less the re-sent output",
        "output_tokens": "recorded",
        "resent_output": "assumed: 1.0 where the prompt has room for the whole output (0.95-1.02 "
        "in Claude Code logs with text)",
        "drop_context_to": "derived: from the block hashes",
        "kept_prefix_tokens": "recorded: leading block hashes equal to the previous request's",
        "tools.name": "assumed: one unnamed call for a gap answered by tool results",
        "tools.class": "assumed: shell_other (subagent where a sub-agent ran)",
        "tools.wall_s": "derived: think_time - api_time of the next request, at most 600 s; "
        "parallel calls and permission prompts are inside",
        "tools.result_tokens": "derived: prompt growth less the re-sent output",
        "think_s": "derived: the same gap before a user message, and beyond 600 s",
        "children": "recorded: sub-agent entries",
        "shared_prefix": "assumed: tool_tokens + system_tokens are the same text for equal counts "
        "and model (hashes are local to a trace), less what changes within the session",
    }

    def sniff(self, sample: TraceSample) -> bool:
        return recognise(sample, self.matches)

    def matches(self, value: Any) -> bool:
        """Tell whether a decoded row is of this format."""
        return has_keys(value, "id", "block_size", "hash_id_scope", "tool_tokens")

    def read(self, path: Path) -> Iterator[Session]:
        return self.sessions(lambda: read_rows(path))

    def sessions(self, rows: RowSource) -> Iterator[Session]:
        seen: set[object] = set()
        for row in rows():
            requests = [entry for entry in row.rows("requests") if not _is_subagent(entry)]
            if not requests:
                raise row.error("expected at least one request", "requests")
            opening = tuple(
                (entry.integer("in"), entry.integer("out"), tuple(_runs(entry)))
                for entry in requests[:SIGNATURE_REQUESTS]
            )
            if opening not in seen:
                seen.add(opening)
                yield _session(row, row.text("id"), row.rows("requests"))


def _is_subagent(entry: Row) -> bool:
    return entry.value.get("type") == "subagent"


def _session(owner: Row, session_id: str, entries: list[Row]) -> Session:
    """Return the session of a trace or of a sub-agent; both hold tool_tokens, system_tokens and
    requests.
    """
    requests = [entry for entry in entries if not _is_subagent(entry)]
    gaps = _gaps_s(requests)
    block = owner.integer("block_size", 64)
    calls: list[RecordedCall] = []
    for index, request in enumerate(requests):
        call = _call(request, requests[index - 1] if index else None, block)
        if index:
            calls[-1] = _with_gap(calls[-1], request, gaps[index])
        calls.append(call)
    calls = _with_children(calls, owner, session_id, entries)
    model = requests[0].text("model", "")
    tokens = owner.integer("tool_tokens", 0), owner.integer("system_tokens", 0)
    prefix = SharedPrefix(f"weka/{model}/{tokens[0]}+{tokens[1]}", sum(tokens))
    agent = owner.text("subagent_type", "claude-code")
    cut = requests[0].integer("in") > MID_CONVERSATION_TOKENS
    return build_session(
        session_id,
        [_with_result_tokens(calls, index) for index in range(len(calls))],
        agent=agent + MID_CONVERSATION if cut else agent,
        model=model,
        prefix=prefix if prefix.tokens else None,
    )


def _call(request: Row, before: Row | None, block: int) -> RecordedCall:
    prompt = request.integer("in")
    if prompt == 0:
        raise request.error("expected at least one prompt token", "in")
    unchanged = None
    if before is not None:
        same = common_blocks(_runs(before), _runs(request))
        if same < before.integer("in") // block:
            unchanged = same * block
    return RecordedCall(prompt, request.integer("out"), unchanged_tokens=unchanged)


def _gaps_s(requests: list[Row]) -> list[float]:
    """Return the idle seconds before each request.

    NOTE: think_time contains the request's own api_time (the removed twin of a streamed request
    was left inside it), so that is taken off again. A request without api_time gets the median
    of its trace.
    """
    known = [entry.number("api_time") for entry in requests if _has(entry, "api_time")]
    typical = median(known) if known else 0.0
    gaps: list[float] = []
    for index, entry in enumerate(requests):
        if _has(entry, "think_time"):
            think = entry.number("think_time")
        else:
            before = requests[index - 1] if index else entry
            busy = before.number("api_time", typical) if index else 0.0
            think = max(0.0, entry.number("t", 0.0) - before.number("t", 0.0) - busy)
        gaps.append(max(0.0, think - entry.number("api_time", typical)))
    return gaps


def _has(entry: Row, field: str) -> bool:
    return entry.value.get(field) is not None


def _with_gap(call: RecordedCall, following: Row, gap_s: float) -> RecordedCall:
    """Add the idle time after a call: it is a tool's if tool results answer the call, else a
    person's.

    A request that brings tool_use along re-sends a whole history: somebody resumed the session.
    """
    kinds = following.items("input_types")
    if "tool_result" not in kinds or "tool_use" in kinds:
        return replace(call, think_s=gap_s)
    wall_s = min(gap_s, LONGEST_TOOL_S)
    tool = ToolCall(name="tool", tool_class="shell_other", wall_s=wall_s)
    return replace(call, tools=(tool,), think_s=gap_s - wall_s)


def _with_result_tokens(calls: list[RecordedCall], index: int) -> RecordedCall:
    call = calls[index]
    if not call.tools or index + 1 == len(calls):
        return call
    growth = calls[index + 1].prompt_tokens - call.prompt_tokens - call.output_tokens
    return replace(call, tools=(replace(call.tools[0], result_tokens=max(0, growth)),))


def _with_children(
    calls: list[RecordedCall], owner: Row, session_id: str, entries: list[Row]
) -> list[RecordedCall]:
    """Hang each sub-agent on the last request before it; that turn then waits for it."""
    turn = -1
    for entry in entries:
        if not _is_subagent(entry):
            turn += 1
            continue
        if turn < 0:
            raise entry.error("a sub-agent before the first request", "requests")
        requests = entry.rows("requests")
        if not requests:
            continue  # status without inner log: its time stays in the parent's gap
        entry.value.setdefault("block_size", owner.integer("block_size", 64))
        child = _session(entry, f"{session_id}/{entry.text('agent_id')}", requests)
        calls[turn] = _spawn(calls[turn], child, entry.number("duration_ms", 0.0) / 1000)
    return calls


def _spawn(call: RecordedCall, child: Session, duration_s: float) -> RecordedCall:
    """Return the turn with its sub-agent. Its gap loses the child's recorded duration, since the
    child runs again in a replay.
    """
    gap_s = call.think_s + sum(tool.wall_s for tool in call.tools)
    task = ToolCall(name="Task", tool_class="subagent", wall_s=0.0)
    return replace(
        call,
        tools=(task,),
        think_s=max(0.0, gap_s - duration_s),
        children=(*call.children, child),
    )


def _runs(request: Row) -> Runs:
    """Return the hash ids of a request as runs of consecutive ids."""
    if _has(request, "hash_rle"):
        runs: Runs = []
        for item in request.items("hash_rle"):
            if not (isinstance(item, list) and len(item) == 2 and all(_whole(x) for x in item)):
                raise request.error(
                    f"expected [first id, length] pairs, found {item!r}", "hash_rle"
                )
            runs.append((item[0], item[1]))
        return runs
    return encode_runs(request)


def encode_runs(request: Row) -> Runs:
    """Run-length codes ``hash_ids``."""
    runs: Runs = []
    for item in request.items("hash_ids"):
        if not _whole(item):
            raise request.error(f"expected whole numbers, found {item!r}", "hash_ids")
        if runs and item == runs[-1][0] + runs[-1][1]:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((item, 1))
    return runs


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def common_blocks(before: Runs, after: Runs) -> int:
    """Return how many leading hash ids two requests have in common."""
    same = 0
    for (start, length), (other, other_length) in zip(before, after, strict=False):
        if start != other:
            break
        same += min(length, other_length)
        if length != other_length:
            break
    return same


IMPORTER = Weka()
