"""Runs two engine cores on the same sessions and finds the first step in which they differ."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from marsbench.core import Session, TurnPlan, plan_turns, to_ps, to_s
from marsbench.engine.base import (
    CoreListener,
    CoreStats,
    EngineCore,
    Request,
    StepTrace,
    StoredChunks,
    TurnKey,
)
from marsbench.errors import EngineError

FOREVER_PS = 1 << 62


@dataclass(frozen=True, slots=True)
class FixedScript:
    """One session with fixed times: nothing of it depends on the machine that runs it."""

    arrival_ps: int
    turns: tuple[TurnPlan, ...]
    gaps_ps: tuple[int, ...]
    """Pause after each turn but the last (tools and think time)."""
    prefix_id: int = -1
    prefix_tokens: int = 0
    priority: int = 0


class Step(NamedTuple):
    """One engine step as a core reported it."""

    start_ps: int
    scheduled: tuple[tuple[int, int, int], ...]
    preempted: tuple[tuple[int, int], ...]
    free_blocks: int


class Moment(NamedTuple):
    """One thing a core told its listener; ``values`` as the callback's arguments."""

    what: str
    session: int
    turn_index: int
    at_ps: int
    values: tuple[int, ...]


@dataclass(slots=True)
class RunLog:
    """Everything that one core did. It listens to the core and traces its steps."""

    steps: list[Step] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)
    stats: CoreStats = field(default_factory=CoreStats)
    finished: list[tuple[Request, int]] = field(default_factory=list)
    ttfts_ps: list[int] = field(default_factory=list)
    forward: CoreListener | None = None
    """A second listener that is told everything as well, such as the driver of a full cell."""

    def step(
        self,
        index: int,
        start_ps: int,
        scheduled: list[tuple[int, int, int]],
        preempted: list[tuple[int, int]],
        free_blocks: int,
    ) -> None:
        assert index == len(self.steps), (index, len(self.steps))
        self.steps.append(Step(start_ps, tuple(scheduled), tuple(preempted), free_blocks))

    def _note(self, what: str, turn: TurnKey, at_ps: int, *values: int) -> None:
        self.moments.append(Moment(what, turn.session, turn.turn_index, at_ps, values))

    def on_scheduled_first(self, request: Request, at_ps: int, cached: int, uncached: int) -> None:
        self._note("scheduled first", request, at_ps, cached, uncached)
        if self.forward is not None:
            self.forward.on_scheduled_first(request, at_ps, cached, uncached)

    def on_preempted(self, request: Request, at_ps: int, lost_tokens: int, blocks: int) -> None:
        self._note("preempted", request, at_ps, lost_tokens, blocks)
        if self.forward is not None:
            self.forward.on_preempted(request, at_ps, lost_tokens, blocks)

    def on_resumed(self, request: Request, at_ps: int, cached: int, uncached: int) -> None:
        self._note("resumed", request, at_ps, cached, uncached)
        if self.forward is not None:
            self.forward.on_resumed(request, at_ps, cached, uncached)

    def on_first_token(self, request: Request, at_ps: int) -> None:
        self._note("first token", request, at_ps)
        self.ttfts_ps.append(at_ps - request.ready_ps)
        if self.forward is not None:
            self.forward.on_first_token(request, at_ps)

    def on_finished(
        self, request: Request, at_ps: int, *, prefilled: int, recomputed: int, cached: int
    ) -> None:
        self._note("finished", request, at_ps, prefilled, recomputed, cached)
        self.finished.append((request, at_ps))
        if self.forward is not None:
            self.forward.on_finished(
                request, at_ps, prefilled=prefilled, recomputed=recomputed, cached=cached
            )

    def on_pin(self, session: int, turn_index: int, at_ps: int, blocks: int, until_ps: int) -> None:
        self.moments.append(Moment("pinned", session, turn_index, at_ps, (blocks, until_ps)))
        if self.forward is not None:
            self.forward.on_pin(session, turn_index, at_ps, blocks, until_ps)

    def on_unpin(
        self, session: int, turn_index: int, at_ps: int, blocks: int, reason: int, held_ps: int
    ) -> None:
        values = (blocks, int(reason), held_ps)
        self.moments.append(Moment("unpinned", session, turn_index, at_ps, values))
        if self.forward is not None:
            self.forward.on_unpin(session, turn_index, at_ps, blocks, reason, held_ps)

    def on_load(self, turn: TurnKey, at_ps: int, local_tokens: int, loaded_tokens: int) -> None:
        self._note("load", turn, at_ps, local_tokens, loaded_tokens)
        if self.forward is not None:
            self.forward.on_load(turn, at_ps, local_tokens, loaded_tokens)

    def on_loaded(self, turn: TurnKey, at_ps: int, chunks: int, waited_ps: int) -> None:
        self._note("loaded", turn, at_ps, chunks, waited_ps)
        if self.forward is not None:
            self.forward.on_loaded(turn, at_ps, chunks, waited_ps)

    def on_store(self, turn: TurnKey, at_ps: int, stored: StoredChunks) -> None:
        self._note("store", turn, at_ps, *stored)
        if self.forward is not None:
            self.forward.on_store(turn, at_ps, stored)

    def on_stored(self, turn: TurnKey, at_ps: int, chunks: int) -> None:
        self._note("stored", turn, at_ps, chunks)
        if self.forward is not None:
            self.forward.on_stored(turn, at_ps, chunks)


class TracedCore(EngineCore, Protocol):
    """A core that reports single steps when ``trace`` is set."""

    trace: StepTrace | None


CoreFactory = Callable[[CoreListener], TracedCore]


def scripts(sessions: Sequence[Session]) -> list[FixedScript]:
    """Turn sessions into fixed scripts: they arrive as recorded (else all at 0), and tools take
    their recorded wall time.
    """
    prefixes: dict[str, int] = {}
    made: list[FixedScript] = []
    for session in sessions:
        prefix = session.shared_prefix
        prefix_id = -1 if prefix is None else prefixes.setdefault(prefix.prefix_id, len(prefixes))
        gaps_s = [
            turn.think_s + max((tool.wall_s for tool in turn.tools), default=0.0)
            for turn in session.turns
        ]
        made.append(
            FixedScript(
                to_ps(session.arrival_s or 0.0),
                tuple(plan_turns(session)),
                tuple(to_ps(gap) for gap in gaps_s),
                prefix_id,
                0 if prefix is None else prefix.tokens,
            )
        )
    return made


def run(
    make: CoreFactory,
    sessions: Sequence[FixedScript],
    *,
    traced: bool = True,
    until_ps: int = FOREVER_PS,
) -> RunLog:
    """Play the sessions on a new core, at most until a time. Untraced, a core may skip over steps."""
    log = RunLog()
    core = make(log)
    core.trace = log if traced else None
    due: list[tuple[int, int, int]] = []
    for number, script in enumerate(sessions):
        largest = max(plan.prompt_tokens + plan.output_tokens for plan in script.turns)
        if not all(core.fits(p.prompt_tokens, p.output_tokens) for p in script.turns):
            raise EngineError(f"session {number}: its context of {largest} tokens does not fit")
        heapq.heappush(due, (script.arrival_ps, number, 0))
    now_ps, seen = 0, 0
    while now_ps < until_ps and (due or not core.idle()):
        while due and due[0][0] <= now_ps:
            ready_ps, number, turn_index = heapq.heappop(due)
            core.submit(_request(sessions[number], number, turn_index, ready_ps))
        limit_ps = min(until_ps, due[0][0]) if due else until_ps
        now_ps = core.advance(now_ps, limit_ps)
        if now_ps == FOREVER_PS:
            raise EngineError(f"engine stopped with {len(core.view.waiting)} turns waiting")
        for request, at_ps in log.finished[seen:]:
            if request.is_last:
                core.session_ended(request.session)
            else:
                gap_ps = sessions[request.session].gaps_ps[request.turn_index]
                heapq.heappush(due, (at_ps + gap_ps, request.session, request.turn_index + 1))
        seen = len(log.finished)
    core.check_integrity()
    log.stats = core.stats
    return log


def _request(script: FixedScript, number: int, turn_index: int, ready_ps: int) -> Request:
    plan = script.turns[turn_index]
    return Request(
        session=number,
        turn_index=turn_index,
        prompt_tokens=plan.prompt_tokens,
        reused_tokens=plan.reused_tokens,
        output_tokens=plan.output_tokens,
        prefix_id=script.prefix_id,
        prefix_tokens=script.prefix_tokens,
        session_arrival_ps=script.arrival_ps,
        ready_ps=ready_ps,
        priority=script.priority,
        is_last=turn_index == len(script.turns) - 1,
        tool_names=(),
    )


def first_difference(left: RunLog, right: RunLog, names: tuple[str, str]) -> str | None:
    """Say where two logs part, with both sides' state; None if they agree in everything.

    Steps are compared one by one if both logs have them, then what the listeners were told.
    """
    if left.steps and right.steps:
        for index in range(max(len(left.steps), len(right.steps))):
            ours, theirs = left.steps[index : index + 1], right.steps[index : index + 1]
            if ours != theirs:
                return _explain_step(index, (ours, theirs), (left, right), names)
    for index in range(max(len(left.moments), len(right.moments))):
        told, heard = left.moments[index : index + 1], right.moments[index : index + 1]
        if told != heard:
            rows = (
                f"  {name}: {_moment(m[0]) if m else 'nothing more'}"
                for name, m in zip(names, (told, heard), strict=True)
            )
            return "\n".join([f"event {index} differs:", *rows])
    return None


def _explain_step(
    index: int,
    steps: tuple[list[Step], list[Step]],
    logs: tuple[RunLog, RunLog],
    names: tuple[str, str],
) -> str:
    lines = [f"step {index} differs:"]
    common = set.intersection(*(set(s[0].scheduled) if s else set() for s in steps))
    for name, found, log in zip(names, steps, logs, strict=True):
        if not found:
            lines.append(f"  {name}: no such step (stopped after {len(log.steps)})")
            continue
        step = found[0]
        own = [f"{s}.{t}:{n}" for s, t, n in step.scheduled if (s, t, n) not in common]
        order = [f"{s}.{t}" for s, t, _ in step.scheduled[:40]]
        lines.append(
            f"  {name}: at {to_s(step.start_ps):.9f} s, {len(step.scheduled)} turns scheduled, "
            f"{step.free_blocks} blocks free, preempted {list(step.preempted)}"
        )
        lines.append(f"    only here (session.turn:tokens): {' '.join(own[:40]) or '-'}")
        lines.append(f"    order: {' '.join(order)}")
        recent = [m for m in log.moments if m.at_ps <= step.start_ps][-4:]
        lines += [f"    before: {_moment(moment)}" for moment in recent]
    return "\n".join(lines)


def _moment(moment: Moment) -> str:
    where = f"{moment.session}.{moment.turn_index}"
    return f"{moment.what} {where} at {to_s(moment.at_ps):.9f} s {moment.values}"


def summary(log: RunLog) -> dict[str, float]:
    """Return the totals of a run, which can be compared between engines."""
    finished = [m for m in log.moments if m.what == "finished"]
    tier = log.stats.tier
    host: dict[str, float] = {}
    if tier is not None:
        host = {
            "loaded_tokens": sum(m.values[1] for m in log.moments if m.what == "load"),
            "stored_blocks": tier.stored_blocks,
            "loaded_blocks": tier.loaded_blocks,
            "host_evicted_blocks": tier.evicted_blocks,
            "store_stall_s": to_s(tier.stall_ps),
        }
    ends = [at_ps - r.session_arrival_ps for r, at_ps in log.finished if r.is_last]
    return {
        "steps": log.stats.steps,
        "turns": len(finished),
        "makespan_s": to_s(max((m.at_ps for m in finished), default=0)),
        "busy_s": to_s(log.stats.busy_ps),
        "mean_ttft_s": to_s(sum(log.ttfts_ps)) / max(1, len(log.ttfts_ps)),
        "mean_session_latency_s": to_s(sum(ends)) / max(1, len(ends)),
        "cached_tokens": sum(m.values[2] for m in finished),
        "prefilled_tokens": sum(m.values[0] for m in finished),
        "recomputed_tokens": sum(m.values[1] for m in finished),
        "preemptions": log.stats.preemptions,
        "evicted_blocks": log.stats.evicted_blocks,
        **host,
    }
