"""Importer of Mooncake rows with sessions: AIPerf's multi-turn rows and Dynamo's agentic rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from marsbench.core import Session, ToolCall
from marsbench.trace.importer import Sample
from workloads.context import Call, build_session
from workloads.messages import content_text, text_tokens
from workloads.mooncake.importer import BLOCK_TOKENS, block_ids
from workloads.rows import Row, RowSource, has_keys, read_rows, recognise
from workloads.tool_class import CLASSES, tool_class

_LENGTHS = ("input_length", "text_input", "messages")


class AgenticMooncake:
    """Reads all rows before the first session: rows of sessions interleave, sub-agents hang on
    rows anywhere.
    """

    name = "agentic_mooncake"
    summary = "Mooncake rows with sessions (AIPerf) and agentic Mooncake v1, v2 (Dynamo)"
    provenance: Mapping[str, str] = {
        "model": "recorded",
        "arrival_s": "recorded: timestamp, not_before_ms",
        "new_input_tokens": "recorded (AIPerf: input_length is what a turn adds; text: characters "
        "/ 3.4), or derived (request_id rows: growth of the whole prompt less the output)",
        "output_tokens": "recorded",
        "resent_output": "assumed: 1.0 where the prompt has room for the whole output",
        "drop_context_to": "recorded: prefix_reset, or derived: from hash_ids and shorter prompts",
        "tools.name": "recorded: tool_events, else one unnamed call for tool_wait_ms",
        "tools.class": "recorded: tool_class of tool_events; assumed: shell_other",
        "tools.wall_s": "recorded: tool_events, tool_wait_ms",
        "think_s": "recorded: delay (without the tool wait inside it), dependency delay_ms",
        "children": "derived: branches, or a dependency with relation spawn",
    }

    def sniff(self, sample: Sample) -> bool:
        return recognise(sample, self.matches)

    def matches(self, value: Any) -> bool:
        """Whether a decoded row (or the header of v2) is of this format."""
        if has_keys(value, "schema", "hash_id_scope"):
            return "mooncake" in str(value["schema"])
        return (
            has_keys(value, "session_id")
            and any(key in value for key in _LENGTHS)
            and ("output_length" in value)
        )

    def read(self, path: Path) -> Iterator[Session]:
        return self.sessions(lambda: read_rows(path))

    def sessions(self, rows: RowSource) -> Iterator[Session]:
        block = BLOCK_TOKENS
        chains: dict[str, _Chain] = {}
        for row in rows():
            if "schema" in row.value and "request_id" not in row.value:
                block = row.integer("block_size", BLOCK_TOKENS)
                continue
            chains.setdefault(_chain_key(row), _Chain()).rows.append(row)
        _link(chains)
        for key, chain in chains.items():
            if not chain.is_child:
                yield _session(key, chains, block)


@dataclass(slots=True)
class _Chain:
    """Rows of one session in order, and the sessions its rows spawn."""

    rows: list[Row] = field(default_factory=list)
    children: dict[int, list[str]] = field(default_factory=dict)
    is_child: bool = False


def _chain_key(row: Row) -> str:
    play = row.text("play_id", "")
    return f"{play}/{row.text('session_id')}" if play else row.text("session_id")


def _link(chains: dict[str, _Chain]) -> None:
    """Hangs spawned sessions on the row that spawned them."""
    place: dict[str, tuple[str, int]] = {}
    for key, chain in chains.items():
        for index, row in enumerate(chain.rows):
            if "request_id" in row.value:
                place[row.text("request_id")] = key, index
    for key, chain in chains.items():
        for index, row in enumerate(chain.rows):
            for branch in row.items("branches"):
                _hang(chains, _branch_key(branch, place), key, index)
        for dependency in chain.rows[0].rows("dependencies"):
            if dependency.text("relation", "") == "spawn":
                parent = place.get(dependency.text("request_id"))
                if parent is None:
                    raise dependency.error("names no request of this trace", "dependencies")
                _hang(chains, key, *parent)
    for key in chains:
        _refuse_cycle(chains, key, ())


def _branch_key(branch: object, place: dict[str, tuple[str, int]]) -> str:
    """A branch names a session or the first request of one."""
    name = str(branch.get("session_id", "") if isinstance(branch, dict) else branch)
    return place[name][0] if name in place else name


def _hang(chains: dict[str, _Chain], child: str, parent: str, index: int) -> None:
    if child not in chains:
        row = chains[parent].rows[index]
        raise row.error(f"names {child!r}, which has no rows", "branches")
    if child != parent and not chains[child].is_child:
        chains[child].is_child = True
        chains[parent].children.setdefault(index, []).append(child)


def _refuse_cycle(chains: dict[str, _Chain], key: str, above: tuple[str, ...]) -> None:
    if key in above:
        raise chains[key].rows[0].error(f"session {key!r} spawns itself", "dependencies")
    for children in chains[key].children.values():
        for child in children:
            _refuse_cycle(chains, child, (*above, key))


def _session(key: str, chains: dict[str, _Chain], block: int) -> Session:
    chain = chains[key]
    calls: list[Call] = []
    for index, row in enumerate(chain.rows):
        before = chain.rows[index - 1] if index else None
        call = _call(row, before, calls[-1] if calls else None, block)
        if calls:
            calls[-1] = _with_wait(calls[-1], row)
        children = tuple(_session(c, chains, block) for c in chain.children.get(index, ()))
        calls.append(replace(call, children=children))
    first = chain.rows[0]
    arrival_ms = first.number("timestamp", first.number("not_before_ms", -1.0))
    return build_session(
        key,
        calls,
        model=first.text("model", ""),
        arrival_s=None if arrival_ms < 0 or chain.is_child else arrival_ms / 1000,
    )


def _call(row: Row, before: Row | None, last: Call | None, block: int) -> Call:
    output = row.integer("output_length")
    length = _input_tokens(row)
    reset = bool(row.value.get("prefix_reset"))
    if "request_id" not in row.value:
        grown = 0 if last is None or reset else last.prompt_tokens + last.output_tokens
        return Call(grown + length, output, compacted=reset)
    if length == 0:
        raise row.error("expected at least one prompt token", "input_length")
    if before is None or last is None:
        return Call(length, output)
    unchanged = None
    if before.items("hash_ids") and row.items("hash_ids"):
        same = _common(block_ids(before), block_ids(row))
        if same < last.prompt_tokens // block:
            unchanged = same * block
    return Call(length, output, unchanged_tokens=unchanged, compacted=reset)


def _input_tokens(row: Row) -> int:
    if row.value.get("input_length") is not None:
        return row.integer("input_length")
    if row.value.get("text_input") is not None:
        return text_tokens(row.text("text_input"))
    return text_tokens(content_text(row.items("messages")))


def _common(before: list[int], after: list[int]) -> int:
    same = 0
    for old, new in zip(before, after, strict=False):
        if old != new:
            break
        same += 1
    return same


def _with_wait(call: Call, row: Row) -> Call:
    """The pause before ``row`` belongs to the turn before it."""
    tools = tuple(_tool_event(event) for event in row.rows("tool_events"))
    wait_s = row.number("tool_wait_ms", 0.0) / 1000
    if not tools and wait_s > 0:
        tools = (ToolCall(name="tool", tool_class="shell_other", wall_s=wait_s),)
    delays_ms = [d.number("delay_ms", 0.0) for d in row.rows("dependencies")]
    delay_s = max([row.number("delay", 0.0), *delays_ms]) / 1000
    busy_s = max([wait_s, *(tool.wall_s for tool in tools)])
    return replace(call, tools=tools, think_s=max(0.0, delay_s - busy_s))


def _tool_event(event: Row) -> ToolCall:
    name = event.text("tool_name", event.text("tool_class", "tool"))
    kind = event.text("tool_class", "")
    if event.value.get("duration_ms") is not None:
        wall_ms = event.number("duration_ms")
    else:
        start = event.number("started_at_unix_ms", 0.0)
        wall_ms = max(0.0, event.number("ended_at_unix_ms", start) - start)
    tokens = event.value.get("output_tokens")
    return ToolCall(
        name=name,
        tool_class=kind if kind in CLASSES else tool_class(name),
        wall_s=wall_ms / 1000,
        result_tokens=None if tokens is None else event.integer("output_tokens"),
        error=event.text("status", "ok") in {"error", "failed"},
    )


IMPORTER = AgenticMooncake()
