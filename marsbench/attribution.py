"""Where a session's latency went: an attribution in integer picoseconds that sums exactly.

A session's life is one chain of milestones, so the differences between neighbours telescope to
its latency. Each difference belongs to one component:

=============  ======================================================================
``backlog``    arrival -> first submission to the engine; later turns: ready -> submission
``queue``      submission -> first scheduled, and every preemption -> resumption, less loads
``load``       of these waits, what passed while KV came back from host memory (only in cells
               that have some)
``prefill``    first scheduled -> first token (less preempted time), the share of new tokens
``recompute``  the same interval, the share of tokens whose KV the session had had before, plus
               the refill after a preemption that hit while decoding
``decode``     first token -> last token, less preempted time and less that refill
``tool_queue`` critical tool call (the one that ends last): enqueued -> started
``tool``       critical tool call: started -> ended
``other``      the rest of the gap between two turns: think time, client overhead, sub-agents
               that are not on the critical path
=============  ======================================================================

Two rules make the split of the engine's time exact. (1) The interval up to the first token is
divided by tokens: ``recompute = floor(interval * recomputed / prefilled)``, the remainder is
``prefill``. (2) No event marks the end of a refill inside the decode phase, so it is charged at
the cell's mean prefill time per token, at most the whole phase; the remainder is ``decode``.
When a sub-agent ends after the last tool, the parent's wait is the sub-agent's own attribution.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

COMPONENTS = ("backlog", "queue", "prefill", "recompute", "decode", "tool_queue", "tool", "other")
"""In the order a session meets them; also the order in tables and figures."""
WITH_LOADS = (*COMPONENTS[:2], "load", *COMPONENTS[2:])
"""The same in cells with host memory."""
LOAD = len(COMPONENTS)
"""Column of the loads while an attribution is made."""


@dataclass(frozen=True, slots=True)
class TurnTimes:
    """Milestones of every turn in picoseconds, complete and in order (see ``tables``)."""

    start: Ints
    """Ready; for a session's first turn its arrival."""
    submit: Ints
    sched_first: Ints
    first_token: Ints
    end: Ints
    next_start: Ints
    """When the session's next turn was ready; after the last turn, when the session ended."""
    wait_before: Ints
    """Preempted time before the first token."""
    wait_after: Ints
    """Preempted time after it."""
    prefilled: Ints
    """Prompt tokens computed before the first token."""
    recomputed: Ints
    """Those of them whose KV the session had had before."""
    refilled: Ints
    """Tokens computed again after preemptions in the decode phase."""
    loading: Ints | None = None
    """Waiting time that passed while KV came back from host memory; None: there is none."""


@dataclass(frozen=True, slots=True)
class CriticalTool:
    """The tool call of each turn that ended last, picoseconds, inside [end, next_start].

    A turn without tools has all three equal to its end.
    """

    enqueue: Ints
    start: Ints
    end: Ints


@dataclass(frozen=True, slots=True)
class SessionChain:
    """How turns belong to sessions, and sub-agents to the turns that started them."""

    first_turn: Ints
    """Row of each session's first turn, with the number of all turns at the end."""
    arrival: Ints
    end: Ints
    parent: Ints
    """Session index of the parent; -1 for top-level sessions."""
    parent_turn: Ints


def attribute(turns: TurnTimes, tool: CriticalTool, chain: SessionChain) -> tuple[Ints, Ints]:
    """Components per turn and per session, an array of picoseconds with a column for each of
    ``component_names``.

    Asserts that no component is negative and that each session's sum is its latency.
    """
    parts = np.zeros((len(turns.start), len(component_names(turns))), dtype=np.int64)
    prefill = turns.first_token - turns.sched_first - turns.wait_before
    decode = turns.end - turns.first_token - turns.wait_after
    recompute = _share(prefill, turns.recomputed, turns.prefilled)
    refill = _refill(decode, turns.refilled, _ps_per_token(prefill, turns.prefilled))
    parts[:, 0] = turns.submit - turns.start
    parts[:, 1] = turns.sched_first - turns.submit + turns.wait_before + turns.wait_after
    parts[:, 2] = prefill - recompute
    parts[:, 3] = recompute + refill
    parts[:, 4] = decode - refill
    parts[:, 5] = tool.start - tool.enqueue
    parts[:, 6] = tool.end - tool.start
    parts[:, 7] = (turns.next_start - turns.end) - (tool.end - tool.enqueue)
    if turns.loading is not None:
        parts[:, LOAD] = np.minimum(turns.loading, parts[:, 1])
        parts[:, 1] -= parts[:, LOAD]
    sessions = _charge_children(parts, turns, tool, chain)
    assert (parts >= 0).all(), "a latency component is negative"
    assert (sessions.sum(axis=1) == chain.end - chain.arrival).all(), "attribution does not sum"
    if turns.loading is None:
        return parts, sessions
    order = [0, 1, LOAD, *range(2, LOAD)]
    return parts[:, order], sessions[:, order]


def component_names(turns: TurnTimes) -> tuple[str, ...]:
    """What the columns of an attribution are."""
    return COMPONENTS if turns.loading is None else WITH_LOADS


def _share(interval: Ints, part: Ints, whole: Ints) -> Ints:
    """floor(interval * part / whole) without leaving int64; 0 where ``whole`` is 0."""
    whole = np.maximum(whole, 1)
    quotient, remainder = np.divmod(interval, whole)
    return quotient * part + remainder * part // whole


def _refill(decode: Ints, refilled: Ints, ps_per_token: int) -> Ints:
    """min(decode, refilled * ps_per_token) without leaving int64."""
    enough = decode // np.maximum(refilled, 1) + 1
    return np.minimum(decode, refilled * np.minimum(ps_per_token, enough))


def _ps_per_token(prefill: Ints, prefilled: Ints) -> int:
    """Mean picoseconds per prefilled token of the cell (sums in microseconds: they fit int64)."""
    total_us = int((prefill // 1_000_000).sum())
    return total_us * 1_000_000 // max(int(prefilled.sum()), 1)


def _per_session(parts: Ints, chain: SessionChain) -> Ints:
    """Sum of each session's turns. A session without turns spent its time in the backlog."""
    sums = np.zeros((len(chain.arrival), parts.shape[1]), dtype=np.int64)
    has_turns = np.diff(chain.first_turn) > 0
    if has_turns.any():
        sums[has_turns] = np.add.reduceat(parts, chain.first_turn[:-1][has_turns], axis=0)
    sums[~has_turns, 0] = (chain.end - chain.arrival)[~has_turns]
    return sums


def _charge_children(
    parts: Ints, turns: TurnTimes, tool: CriticalTool, chain: SessionChain
) -> Ints:
    """Replace tool parts where a sub-agent is what the parent waited for; deepest first."""
    depth = _depths(chain.parent)
    sums = _per_session(parts, chain)
    for level in range(int(depth.max(initial=0)), 0, -1):
        children = np.flatnonzero(depth == level)
        at = chain.first_turn[chain.parent[children]] + chain.parent_turn[children]
        last_first = np.lexsort((children, -chain.end[children], at))
        children, at = children[last_first], at[last_first]
        keep = np.ones(len(at), dtype=bool)
        keep[1:] = at[1:] != at[:-1]
        children, at = children[keep], at[keep]
        critical = (
            (chain.end[children] > tool.end[at])
            & (chain.arrival[children] >= turns.end[at])
            & (chain.end[children] <= turns.next_start[at])
        )
        children, at = children[critical], at[critical]
        waited = (turns.next_start - turns.end)[at]
        inside = sums[children]
        parts[at, 5:8] = 0
        parts[at] += inside
        parts[at, 7] += waited - inside.sum(axis=1)
        sums = _per_session(parts, chain)
    return sums


def _depths(parent: Ints) -> Ints:
    """How many parents above each session."""
    depth = np.zeros(len(parent), dtype=np.int64)
    above = parent.copy()
    while (above >= 0).any():
        depth[above >= 0] += 1
        above = np.where(above >= 0, parent[above], -1)
        assert depth.max() <= len(parent), "sessions are their own ancestors"
    return depth
