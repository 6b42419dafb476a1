"""Writes sessions as agentic Mooncake rows, versions 1 and 2, with one LLM request a row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from marsbench.core import Session, SharedPrefix, Turn, TurnPlan, plan_turns

SCHEMA_V2 = "dynamo.agentic_mooncake"
SUBAGENT = "subagent"
"""Tool class of the call that waits for sub-agents: its time is theirs."""
UNKNOWN_MODEL = "unknown"
"""Version 2 wants the name of a model, which a trace need not have."""


class Losses:
    """Counts, by kind, what an export could not express."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add(self, kind: str, num: int = 1) -> None:
        self.counts[kind] += num

    def summary(self) -> str:
        """Return the losses as one line, which is empty if nothing was lost."""
        return "; ".join(f"{num:,} {kind}" for kind, num in self.counts.items() if num)


class BlockIds:
    """Gives the blocks of successive prompts their ids; equal ids mean equal tokens at the same place.

    A block keeps its id from one turn to the next iff it lies wholly in the reusable prefix
    (``core.plan_turns``), so it changes where rewritten output or a compaction diverges. Blocks
    wholly inside a shared prefix have one id in all sessions with that prefix.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._next = 0
        self._shared: dict[tuple[str, int], int] = {}

    def of(self, plans: list[TurnPlan], prefix: SharedPrefix | None) -> Iterator[list[int]]:
        """Yield the ids of each turn's prompt, whose last block may be partly filled."""
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


class AgenticMooncakeRows:
    """Writes rows of the agentic Mooncake format, version 1, as Dynamo's replay reads them.

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
                row["timestamp"] = to_ms(arrival_s)
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
    """Return how long a row waits after the requests that it depends on."""
    if before is None:
        return {"delay": 0.0}
    tools = [t for t in before.tools if not (before.children and t.tool_class == SUBAGENT)]
    delays = {"delay": to_ms(before.think_s)}
    if tools:
        delays["tool_wait_ms"] = to_ms(max(tool.wall_s for tool in tools))
    return delays


class AgenticMooncakeGraph:
    """Writes a header and rows of the agentic Mooncake format, version 2, with typed dependencies.

    Each session is a play of its own. A request starts when each request it depends on is complete
    and that dependency's delay is over: its predecessor's delay is the wait for tools and the pause
    after them, that of the last request of a sub-agent is the pause alone. All times are
    milliseconds.
    """

    def __init__(self, block_size: int, losses: Losses, source_digest: str) -> None:
        self._block_size = block_size
        self._ids = BlockIds(block_size)
        self._losses = losses
        self._digest = source_digest

    def rows(self, sessions: Iterable[Session]) -> Iterator[dict[str, Any]]:
        yield {
            "schema": SCHEMA_V2,
            "version": 2,
            "block_size": self._block_size,
            "hash_id_scope": "local",
            "source": {"format": "marsbench", "digest": self._digest},
        }
        for session in sessions:
            if session.arrival_s is None:
                self._losses.add("sessions without an arrival time start at 0")
            if session.shared_prefix is not None:
                self._losses.add("shared prefixes are not shared between plays: hash ids are local")
            yield from self._session_rows(session, session, [])

    def _session_rows(
        self, play: Session, session: Session, before: list[dict[str, Any]]
    ) -> Iterator[dict[str, Any]]:
        plans = plan_turns(session)
        hashed = zip(session.turns, plans, self._ids.of(plans, session.shared_prefix), strict=True)
        for index, (turn, plan, hash_ids) in enumerate(hashed):
            yield {
                "request_id": _request_id(session, index),
                "play_id": play.session_id,
                "session_id": session.session_id,
                "model": session.model or play.model or UNKNOWN_MODEL,
                "input_length": plan.prompt_tokens,
                "output_length": plan.output_tokens,
                "hash_ids": hash_ids,
                "not_before_ms": to_ms(play.arrival_s or 0.0),
                "dependencies": before,
            }
            self._losses.add(
                "tool calls become delays without name, class, result size and CPU demand",
                len(turn.tools),
            )
            spawn = [_dependency(_request_id(session, index), 0.0, "spawn")]
            for child in turn.children:
                yield from self._session_rows(play, child, spawn)
            before = _dependencies(session, index, turn)


def _dependencies(session: Session, index: int, turn: Turn) -> list[dict[str, Any]]:
    """Return what the request after a turn waits for: the turn with its tools, and its sub-agents."""
    tools = [t for t in turn.tools if not (turn.children and t.tool_class == SUBAGENT)]
    wait_s = max((tool.wall_s for tool in tools), default=0.0)
    found = [_dependency(_request_id(session, index), wait_s + turn.think_s, "sequence")]
    for child in turn.children:
        last = _request_id(child, len(child.turns) - 1)
        found.append(_dependency(last, turn.think_s, "join"))
    return found


def _dependency(request_id: str, delay_s: float, relation: str) -> dict[str, Any]:
    return {
        "request_id": request_id,
        "trigger": "completion",
        "delay_ms": to_ms(delay_s),
        "relation": relation,
    }


def to_ms(seconds: float) -> float:
    """Convert seconds to milliseconds, rounded to the nanosecond."""
    return round(seconds * 1000, 6)


def _request_id(session: Session, turn_index: int) -> str:
    return f"{session.session_id}/{turn_index}"
