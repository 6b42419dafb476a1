"""Importer of Qwen-Bailian usage traces: chats as chains of requests with 16-token block hashes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from marsbench.core import Session
from marsbench.trace.importer import TraceSample
from workloads.blocks import common_blocks, shared_prefixes
from workloads.context import RecordedCall, build_session
from workloads.mooncake.importer import block_ids
from workloads.rows import Row, RowSource, has_keys, read_rows, recognise

BLOCK_TOKENS = 16
_NO_PARENT = -1


class Bailian:
    """Reads all requests before the first session: a chat may go on at any time."""

    name = "bailian"
    summary = "Qwen-Bailian usage traces: chats with lengths and 16-token block hashes"
    provenance: Mapping[str, str] = {
        "arrival_s": "recorded: timestamp of the first request",
        "turns": "recorded: requests linked by parent_chat_id, in order of turn and time",
        "new_input_tokens": "derived: prompt growth less the re-sent output",
        "output_tokens": "recorded",
        "resent_output": "assumed: 1.0 where the prompt has room for the whole output",
        "drop_context_to": "derived: where block hashes differ from those of the last request",
        "think_s": "derived: time between requests, which contains the service of the first",
        "shared_prefix": "derived: leading blocks that first prompts of two chats have in common",
    }

    def sniff(self, sample: TraceSample) -> bool:
        return recognise(sample, self.matches)

    def matches(self, value: Any) -> bool:
        """Tell whether a decoded row is of this format."""
        return has_keys(value, "chat_id", "parent_chat_id", "timestamp", "input_length")

    def read(self, path: Path) -> Iterator[Session]:
        return self.sessions(lambda: read_rows(path))

    def sessions(self, rows: RowSource) -> Iterator[Session]:
        chats = _chats(list(rows()))
        prompts = {name: _full_blocks(requests[0]) for name, requests in chats.items()}
        prefixes = shared_prefixes(prompts, BLOCK_TOKENS, self.name)
        for name, requests in chats.items():
            calls = [_call(requests[0], None)]
            for before, row in pairwise(requests):
                gap_s = max(0.0, row.number("timestamp") - before.number("timestamp"))
                calls[-1] = replace(calls[-1], think_s=gap_s)
                calls.append(_call(row, before))
            yield build_session(
                name,
                calls,
                arrival_s=requests[0].number("timestamp"),
                prefix=prefixes.get(name),
            )


def _chats(rows: list[Row]) -> dict[str, list[Row]]:
    """Return the requests of each chat in order, under the id of its first request."""
    by_id = {row.integer("chat_id"): row for row in rows}
    chats: dict[int, list[Row]] = {}
    for row in rows:
        chats.setdefault(_root(row, by_id), []).append(row)
    for requests in chats.values():
        requests.sort(key=lambda row: (row.integer("turn", 1), row.number("timestamp")))
    return {str(root): requests for root, requests in chats.items()}


def _root(row: Row, by_id: dict[int, Row]) -> int:
    """Return the first request that a request goes back to; one whose parent is not in the file is
    a first one.
    """
    seen: set[int] = set()
    while True:
        chat_id, parent = row.integer("chat_id"), row.value.get("parent_chat_id")
        if chat_id in seen:
            raise row.error(f"chat {chat_id} is its own parent", "parent_chat_id")
        seen.add(chat_id)
        if not isinstance(parent, int) or parent == _NO_PARENT or parent not in by_id:
            return chat_id
        row = by_id[parent]


def _full_blocks(row: Row) -> list[int]:
    return block_ids(row)[: row.integer("input_length") // BLOCK_TOKENS]


def _call(row: Row, before: Row | None) -> RecordedCall:
    prompt = row.integer("input_length")
    if prompt == 0:
        raise row.error("expected at least one prompt token", "input_length")
    unchanged = None
    if before is not None:
        same = common_blocks(_full_blocks(before), block_ids(row))
        if same < len(_full_blocks(before)):
            unchanged = same * BLOCK_TOKENS
    return RecordedCall(prompt, row.integer("output_length"), unchanged_tokens=unchanged)


IMPORTER = Bailian()
