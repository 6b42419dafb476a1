"""Importer of Mooncake request traces: conversations are found again through block hashes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from marsbench.core import Session, SharedPrefix
from marsbench.trace.importer import TraceSample
from workloads.context import RecordedCall, build_session
from workloads.rows import Row, RowSource, has_keys, read_rows, recognise

BLOCK_TOKENS = 512
BRANCHES = 3
"""A block followed by this many different blocks is text that conversations share."""


class Mooncake:
    """Reads all requests before the first session: a conversation may go on at any time."""

    name = "mooncake"
    summary = "Mooncake FAST'25 request traces: lengths and 512-token block hashes"
    provenance: Mapping[str, str] = {
        "arrival_s": "recorded: timestamp of the first request",
        "new_input_tokens": "derived: prompt growth less the re-sent output",
        "output_tokens": "recorded",
        "resent_output": "assumed: 1.0 where the prompt has room for the whole output",
        "turns": "derived: a request goes on with a conversation if it holds all full blocks of "
        "its last request, beyond what conversations share",
        "think_s": "derived: time between requests, which contains the service of the first",
        "shared_prefix": "derived: up to the last block that three or more different blocks follow",
    }

    def sniff(self, sample: TraceSample) -> bool:
        return recognise(sample, self.matches)

    def matches(self, value: Any) -> bool:
        """Tell whether a decoded row is of this format."""
        return has_keys(value, "timestamp", "input_length", "output_length", "hash_ids") and not (
            {"session_id", "request_id", "chat_id"} & value.keys()
        )

    def read(self, path: Path) -> Iterator[Session]:
        return self.sessions(lambda: read_rows(path))

    def sessions(self, rows: RowSource) -> Iterator[Session]:
        shared = _shared_blocks(rows())
        open_at: dict[int, _Conversation] = {}
        conversations: list[_Conversation] = []
        for row in rows():
            request = _request(row)
            conversation = _continued(request, open_at, shared)
            if conversation is None:
                conversation = _Conversation(len(conversations))
                conversations.append(conversation)
            conversation.requests.append(request)
            if request.full_blocks:
                open_at[request.ids[request.full_blocks - 1]] = conversation
        for conversation in conversations:
            yield conversation.session(shared)


@dataclass(frozen=True, slots=True)
class _Request:
    time_s: float
    prompt_tokens: int
    output_tokens: int
    ids: list[int]

    @property
    def full_blocks(self) -> int:
        return min(self.prompt_tokens // BLOCK_TOKENS, len(self.ids))

    def shared_depth(self, shared: set[int]) -> int:
        depth = 0
        for index, block in enumerate(self.ids[: self.full_blocks], start=1):
            if block in shared:
                depth = index
        return depth


@dataclass(slots=True)
class _Conversation:
    number: int
    requests: list[_Request] = field(default_factory=list)

    def session(self, shared: set[int]) -> Session:
        first = self.requests[0]
        depth = first.shared_depth(shared)
        prefix = None
        if depth:
            prefix = SharedPrefix(f"mooncake/{first.ids[depth - 1]}", depth * BLOCK_TOKENS)
        calls = [
            RecordedCall(request.prompt_tokens, request.output_tokens) for request in self.requests
        ]
        for index, following in enumerate(self.requests[1:]):
            gap_s = max(0.0, following.time_s - self.requests[index].time_s)
            calls[index] = replace(calls[index], think_s=gap_s)
        return build_session(f"request-{self.number}", calls, arrival_s=first.time_s, prefix=prefix)


def _request(row: Row) -> _Request:
    prompt = row.integer("input_length")
    if prompt == 0:
        raise row.error("expected at least one prompt token", "input_length")
    return _Request(
        row.number("timestamp") / 1000, prompt, row.integer("output_length"), block_ids(row)
    )


def block_ids(row: Row) -> list[int]:
    """Return the row's ``hash_ids``, checked."""
    ids = row.items("hash_ids")
    for item in ids:
        if isinstance(item, bool) or not isinstance(item, int):
            raise row.error(f"expected whole numbers, found {item!r}", "hash_ids")
    return ids


def _shared_blocks(rows: Iterator[Row]) -> set[int]:
    """Return the full blocks at which conversations part. A block's id stands for all text up to
    its end.
    """
    seen: set[int] = set()
    followers: dict[int, int] = {}
    for row in rows:
        request = _request(row)
        for before, block in pairwise(request.ids[: request.full_blocks]):
            if block not in seen:
                seen.add(block)
                followers[before] = followers.get(before, 0) + 1
    return {block for block, count in followers.items() if count >= BRANCHES}


def _continued(
    request: _Request, open_at: dict[int, _Conversation], shared: set[int]
) -> _Conversation | None:
    """Return the conversation whose last request this one extends, and take it out of the open
    ones.
    """
    for index in range(request.full_blocks - 1, request.shared_depth(shared) - 1, -1):
        conversation = open_at.get(request.ids[index])
        if conversation is None:
            continue
        last = conversation.requests[-1]
        ends_here = last.full_blocks == index + 1 and last.ids[index] == request.ids[index]
        if ends_here and last.prompt_tokens <= request.prompt_tokens:
            return open_at.pop(request.ids[index])
    return None


IMPORTER = Mooncake()
