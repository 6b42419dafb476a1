"""Importer of Mooncake rows with sessions: AIPerf's multi-turn rows and Dynamo's agentic rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from marsbench.core import Session, SharedPrefix, ToolCall
from marsbench.trace.importer import TraceSample
from workloads.blocks import block_size, common_blocks, shared_prefixes
from workloads.context import RecordedCall, build_session
from workloads.messages import content_text, text_tokens
from workloads.mooncake.importer import BLOCK_TOKENS, block_ids
from workloads.rows import Row, RowSource, has_keys, read_rows, recognise
from workloads.tool_class import CLASSES, tool_class

_LENGTHS = ("input_length", "text_input", "messages", "payload")


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
        "think_s": "recorded: delay, dependency delay_ms (without the tool wait inside it)",
        "children": "derived: branches, or a dependency with relation spawn",
        "shared_prefix": "derived: leading blocks that first prompts of two sessions have in "
        "common (of v2, whose ids are local: of two sessions of one play)",
    }

    def sniff(self, sample: TraceSample) -> bool:
        return recognise(sample, self.matches)

    def matches(self, value: Any) -> bool:
        """Tell whether a decoded row (or the header of v2) is of this format."""
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
        header: dict[str, Any] = {}
        block_of_header = BLOCK_TOKENS
        chains: dict[str, _Chain] = {}
        for row in rows():
            if "schema" in row.value and "request_id" not in row.value:
                header = row.value
                block_of_header = row.integer("block_size", BLOCK_TOKENS)
                continue
            chains.setdefault(_chain_key(row), _Chain()).rows.append(row)
        _link(chains)
        block = block_of_header if header else _block_tokens(chains)
        prefixes = _prefixes(chains, block, local=header.get("hash_id_scope") == "local")
        for key, chain in chains.items():
            if not chain.is_child:
                yield _session(key, chains, block, prefixes)


@dataclass(slots=True)
class _Chain:
    """Rows of one session in order, and the sessions its rows spawn."""

    rows: list[Row] = field(default_factory=list)
    children: dict[int, list[str]] = field(default_factory=dict)
    is_child: bool = False


def _block_tokens(chains: dict[str, _Chain]) -> int:
    """Return the tokens of a block of a file without a header, from the lengths and hashes of its
    rows.
    """
    rows = [row for chain in chains.values() for row in chain.rows]
    sizes = [(_input_tokens(row), len(row.items("hash_ids"))) for row in rows]
    return block_size(sizes, BLOCK_TOKENS)


def _prefixes(chains: dict[str, _Chain], block: int, *, local: bool) -> dict[str, SharedPrefix]:
    """Return what the first prompts of sessions have in common. Local ids mean the same only within
    one play of a session.
    """
    plays: dict[str, dict[str, list[int]]] = {}
    for key, chain in chains.items():
        first = chain.rows[0]
        ids = block_ids(first)[: _input_tokens(first) // block]
        play = first.text("play_id", "") if local else ""
        plays.setdefault(play, {})[key] = ids
    found: dict[str, SharedPrefix] = {}
    for play, prompts in plays.items():
        found |= shared_prefixes(prompts, block, f"mooncake/{play}" if play else "mooncake")
    return found


def _chain_key(row: Row) -> str:
    play = row.text("play_id", "")
    session = row.text("session_id")
    is_named = session == play or session.startswith(f"{play}/")
    return session if not play or is_named else f"{play}/{session}"


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
    """Return the key of a branch, which names a session or the first request of one."""
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


def _session(
    key: str, chains: dict[str, _Chain], block: int, prefixes: dict[str, SharedPrefix]
) -> Session:
    chain = chains[key]
    calls: list[RecordedCall] = []
    for index, row in enumerate(chain.rows):
        before = chain.rows[index - 1] if index else None
        call = _call(row, before, calls[-1] if calls else None, block)
        if calls:
            calls[-1] = _with_wait(calls[-1], row)
        children = tuple(
            _session(c, chains, block, prefixes) for c in chain.children.get(index, ())
        )
        calls.append(replace(call, children=children))
    first = chain.rows[0]
    arrival_ms = first.number("timestamp", first.number("not_before_ms", -1.0))
    return build_session(
        key,
        calls,
        model=first.text("model", ""),
        arrival_s=None if arrival_ms < 0 or chain.is_child else arrival_ms / 1000,
        prefix=prefixes.get(key),
    )


def _call(row: Row, before: Row | None, last: RecordedCall | None, block: int) -> RecordedCall:
    output = row.integer("output_length")
    length = _input_tokens(row)
    reset = bool(row.value.get("prefix_reset"))
    if "request_id" not in row.value and not _is_whole(row):
        grown = 0 if last is None or reset else last.prompt_tokens + last.output_tokens
        return RecordedCall(grown + length, output, compacted=reset)
    if length == 0:
        raise row.error("expected at least one prompt token", "input_length")
    if before is None or last is None:
        return RecordedCall(length, output)
    unchanged = None
    if before.items("hash_ids") and row.items("hash_ids"):
        same = common_blocks(block_ids(before), block_ids(row))
        if same < last.prompt_tokens // block:
            unchanged = same * block
    return RecordedCall(length, output, unchanged_tokens=unchanged, compacted=reset)


def _is_whole(row: Row) -> bool:
    """Tell whether a row without a request id holds its whole prompt, as a list of messages does."""
    return row.value.get("messages") is not None or row.value.get("payload") is not None


def _input_tokens(row: Row) -> int:
    if row.value.get("input_length") is not None:
        return row.integer("input_length")
    if row.value.get("text_input") is not None:
        return text_tokens(row.text("text_input"))
    payload = row.child(row.mapping("payload"), "payload")
    return text_tokens(content_text(row.items("messages") or payload.items("messages")))


def _with_wait(call: RecordedCall, row: Row) -> RecordedCall:
    """Add the pause before ``row`` to the turn before it, to which it belongs."""
    tools = tuple(_tool_event(event) for event in row.rows("tool_events"))
    wait_s = row.number("tool_wait_ms", 0.0) / 1000
    if not tools and wait_s > 0:
        tools = (ToolCall(name="tool", tool_class="shell_other", wall_s=wait_s),)
    if not tools and (beside_s := _wait_beside_children_s(row)):
        tools = (ToolCall(name="tool", tool_class="shell_other", wall_s=beside_s),)
    delays_ms = [d.number("delay_ms", 0.0) for d in row.rows("dependencies")]
    # NOTE: the delay of a row comes on top of its tool wait, that of a dependency holds it.
    busy_s = max((tool.wall_s for tool in tools), default=0.0)
    waited_s = max(delays_ms, default=0.0) / 1000 - busy_s
    return replace(call, tools=tools, think_s=max(row.number("delay", 0.0) / 1000, waited_s, 0.0))


def _wait_beside_children_s(row: Row) -> float:
    """Return the seconds that a row waits for its own predecessor beyond its wait for sub-agents to
    join.

    It passes beside the sub-agents, so it is no pause after them: something ran meanwhile.
    """
    delays_ms: dict[str, float] = {}
    for dependency in row.rows("dependencies"):
        relation = dependency.text("relation", "")
        known = delays_ms.get(relation, 0.0)
        delays_ms[relation] = max(known, dependency.number("delay_ms", 0.0))
    if "join" not in delays_ms:
        return 0.0
    return max(0.0, delays_ms.get("sequence", 0.0) - delays_ms["join"]) / 1000


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
