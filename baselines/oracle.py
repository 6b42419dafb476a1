"""Oracle: what scheduling could gain if all sessions and their tools were known in advance.

Not a published system; the reference bound of the suite. It sees every session of the cell: turns,
output lengths, tool times, sub-agents. Order: shortest remaining time first (Schrage 1968), in the
engine and at the gate, remaining time being prefill of what is not cached, decoding and tools.
Memory: it runs only sessions whose contexts fit together at every moment of their future, those
with little time, or time times the root of memory, remaining first; the others wait between turns.
Retention: sessions that run keep their KV through their tools, others give it up; if blocks still
run out, the pin whose next use is farthest goes first (Belady). Host memory makes places too, at
most ``host_places`` GPUs' worth of them (more sessions only compete for the same speed); what lies
there comes back by a transfer instead of a prefill, so pins outlast only short waits. It is a
strong heuristic and not a proven optimum: the problem (online packing of growing memory with
precedence) is NP-hard. Which plan is the best depends on the cell: where turns share a busy GPU,
sessions end later than they would alone, and a plan that counts on their memory overcommits.
``oracle-best`` takes the best of four plans with hindsight and is what MARS is held against. For a
true lower bound see bound.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from baselines.foresight import foresee, memory_profiles
from marsbench.admission.base import (
    MAX_NICE,
    Niceness,
    Oversubscribe,
    SessionView,
    SystemView,
    ToolCallView,
)
from marsbench.core import HostView, PolicyContext, Session
from marsbench.events import Event, Kind
from marsbench.scheduler.base import EngineOrder, EngineView, Key, Retain, RetainedView, TurnView
from marsbench.system import Policies, System

OPEN_END_S = 1e6
MAX_BUCKETS = 512


@dataclass(slots=True)
class _Progress:
    """Where a session is on its own time line."""

    turn_index: int = 0
    in_tools: bool = False
    since_s: float = 0.0


class Oracle(EngineOrder, Oversubscribe):
    """Scheduling, retention and admission policy with the future in hand. Quanta are the engine's: the
    order already serves short work first.
    """

    reorders_running = True
    resort_s = 1.0
    max_share = 1.0
    review_s = 1.0
    gates_continuations = True

    def __init__(self, context: PolicyContext, sessions: Sequence[Session]) -> None:
        params = context.params
        self._context = context
        self._peak_share = params.get("peak_share", 0.0)
        share = self._peak_share or params.get("memory_share", 0.97)
        host_blocks = min(context.host_blocks, params.get("host_places", 1.0) * context.num_blocks)
        self._budget_blocks = share * (context.num_blocks + host_blocks)
        self._memory_weight = params.get("memory_weight", 0.5)
        drop_gap_s, host_gap_s = params.get("drop_gap_s", 30.0), params.get("host_gap_s", 10.0)
        # With host memory a session in its tools has its place there, for however long; a pin on the
        # GPU then saves a transfer, which is worth memory for a short wait only.
        self._pinned_gap_s = host_gap_s if context.host_blocks else drop_gap_s
        planned_gap_s = math.inf if context.host_blocks else drop_gap_s
        self._nice_step = params.get("nice_step", 5.0)
        self._nice_after_s = params.get("nice_after_s", 8.0)
        self._plan_s = params.get("plan_s", 5.0)
        self.tick_s: float | None = self._plan_s
        self._futures = foresee(
            sessions, context, kv_read_s_per_token=params.get("kv_read_s_per_token", 0.0)
        )
        longest_s = max((future.total_s for future in self._futures), default=0.0)
        self._bucket_s = max(1.0, longest_s / MAX_BUCKETS)
        self._profiles = memory_profiles(
            self._futures,
            len(sessions),
            bucket_s=self._bucket_s,
            block_size=context.block_size,
            drop_gap_s=planned_gap_s,
        )
        self._progress = [_Progress() for _ in self._futures]
        self._next_plan_s = 0.0
        self.chosen: set[int] = set()
        """Top-level sessions that may run now."""

    def on_event(self, event: Event) -> None:
        """Follow each session along its own time line."""
        if event.kind in {Kind.TURN_READY, Kind.GPU_SUBMIT}:
            progress = self._progress[event.session]
            if event.kind == Kind.TURN_READY or progress.in_tools:
                self._progress[event.session] = _Progress(event.turn, since_s=event.time_s)
        elif event.kind == Kind.GPU_END:
            self._progress[event.session] = _Progress(
                event.turn, in_tools=True, since_s=event.time_s
            )
        elif event.kind in {Kind.SESSION_ARRIVE, Kind.SESSION_END}:
            self.chosen.discard(event.session)
            self._next_plan_s = 0.0

    # -- time left ---------------------------------------------------------------------------

    def remaining_s(self, session: int, now_s: float) -> float:
        """Return the seconds the session still needs, alone."""
        future, progress = self._futures[session], self._progress[session]
        left_s = future.remaining_s(progress.turn_index, after_engine=progress.in_tools)
        if progress.in_tools:
            gap_s = future.turns[progress.turn_index].gap_s
            left_s -= min(now_s - progress.since_s, gap_s)
        return left_s

    def _turn_key(self, turn: TurnView, view: EngineView, now_s: float) -> float:
        """Remaining time of the turn's top-level session, with what this turn has done."""
        future = self._futures[turn.session]
        work = future.turns[turn.turn_index]
        left_s = self.remaining_s(future.root, now_s)
        if future.root == turn.session:
            left_s -= turn.generated_tokens * self._context.decode_step_s
            left_s -= max(0, turn.computed_tokens - work.reused_tokens) / max(
                1.0, self._context.prefill_tokens_per_s
            )
        return left_s

    def _reload_s(self, session: int, cached: int, reused: int, host: HostView | None) -> float:
        """Seconds until a context of ``reused`` tokens is back, of which the GPU has ``cached``: what
        host memory has comes over the link, the rest is computed again.
        """
        held = cached if host is None else max(cached, min(reused, host.tokens(session)))
        reload_s = self._context.prefill_s(max(0, reused - held), reused)
        if host is not None and held > cached:
            reload_s += host.load_s(held - cached)
        return reload_s

    # -- engine ------------------------------------------------------------------------------

    def waiting_key(self, turn: TurnView, view: EngineView, now_s: float) -> Key:
        """Serve the shortest remaining time first, counting what the cache has lost."""
        work = self._futures[turn.session].turns[turn.turn_index]
        cached = view.cached_tokens(turn)
        reload_s = self._reload_s(turn.session, cached, work.reused_tokens, view.host)
        return (self._turn_key(turn, view, now_s) + reload_s, float(turn.sequence))

    def running_key(self, turn: TurnView, view: EngineView, now_s: float) -> Key:
        """Run the shortest remaining time first."""
        return (self._turn_key(turn, view, now_s), float(turn.sequence))

    def victim_key(self, turn: TurnView, view: EngineView, now_s: float) -> Key:
        """Preempt the longest remaining time first."""
        return (self._turn_key(turn, view, now_s), float(turn.sequence))

    def skip_blocked(self) -> bool:
        """Return True: a turn that does not fit lets others pass, since the plan keeps room for all
        that run.
        """
        return True

    def shrink_chunks(self) -> bool:
        """Use the blocks there are before preempting."""
        return True

    # -- retention ---------------------------------------------------------------------------

    def on_turn_end(
        self,
        turn: TurnView,
        tool_names: Sequence[str],
        is_last: bool,
        view: EngineView,
        now_s: float,
    ) -> Retain | None:
        """Keep the KV of sessions that run, unless they will be away for long."""
        future = self._futures[turn.session]
        if is_last or future.root not in self.chosen:
            return None
        away_s = future.turns[turn.turn_index].gap_s
        return Retain(now_s + OPEN_END_S) if away_s <= self._pinned_gap_s else None

    def review(
        self, retained: Sequence[RetainedView], view: EngineView, now_s: float
    ) -> Sequence[RetainedView]:
        """Give up the KV of sessions that have been paused."""
        return [pin for pin in retained if self._futures[pin.session].root not in self.chosen]

    def reclaim_key(self, retained: RetainedView, view: EngineView, now_s: float) -> Key:
        """Give up the pin with the farthest next use first."""
        gap_s = self._futures[retained.session].turns[retained.turn_index].gap_s
        next_use_s = now_s if retained.returned else max(now_s, retained.since_s + gap_s)
        return (next_use_s, self.remaining_s(retained.session, now_s))

    def yields_to(
        self, retained: RetainedView, turn: TurnView, view: EngineView, now_s: float
    ) -> bool:
        """Return True: waiting turns may take pins."""
        return True

    def spares_returned(self) -> bool:
        """Return True: a session that is back and queued keeps its KV."""
        return True

    # -- tools -------------------------------------------------------------------------------

    def niceness(self, call: ToolCallView, view: SystemView, now_s: float) -> Niceness:
        """Make long calls stand back for sessions in their tools that end sooner."""
        own_s = self.remaining_s(self._futures[call.session].root, now_s)
        sooner = sum(
            other.phase == "tool"
            and not other.is_child
            and self.remaining_s(other.session, now_s) < own_s
            for other in view.active
        )
        return Niceness(min(int(sooner * self._nice_step), MAX_NICE), self._nice_after_s)

    # -- admission ---------------------------------------------------------------------------

    def admit(
        self, pending: Sequence[SessionView], view: SystemView, now_s: float
    ) -> Sequence[SessionView]:
        """Admit turns of the sessions in the plan, which is renewed on arrivals, ends and ticks."""
        if now_s >= self._next_plan_s:
            self._plan(pending, view, now_s)
            self._next_plan_s = now_s + self._plan_s
        return [s for s in pending if self._futures[s.session].root in self.chosen]

    def _plan(self, pending: Sequence[SessionView], view: SystemView, now_s: float) -> None:
        """In order of rank, every session whose memory fits at every future moment.

        With ``peak_share`` as if all reached their peaks at once: nothing is expected from ends.
        """
        import numpy as np  # not for those who only list systems

        roots = {self._futures[s.session].root for s in (*view.active, *pending)}
        usage = np.zeros(MAX_BUCKETS + 1)
        prefixes: set[str] = set()
        prefix_blocks = 0
        chosen: set[int] = set()
        for root in sorted(roots, key=lambda r: (self._rank(r, view, now_s), r)):
            ahead = self._profiles[root][self._position(root, now_s) :]
            if self._peak_share:
                ahead = ahead.max(keepdims=True)
            after = usage[: len(ahead)] + ahead
            prefix = self._futures[root].prefix
            new = prefix is not None and prefix.prefix_id not in prefixes
            shared = prefix.tokens // self._context.block_size if prefix and new else 0
            if not chosen or after.max() + prefix_blocks + shared <= self._budget_blocks:
                usage[: len(ahead)] = after
                chosen.add(root)
                prefix_blocks += shared
                if prefix:
                    prefixes.add(prefix.prefix_id)
        self.chosen = chosen

    def _rank(self, root: int, view: SystemView, now_s: float) -> float:
        """Remaining seconds times a power of the mean blocks they need.

        A session outside the plan would have to get its context back.
        """
        future, progress = self._futures[root], self._progress[root]
        left_s = self.remaining_s(root, now_s)
        if root not in self.chosen:
            reused = future.turns[progress.turn_index].reused_tokens
            left_s += self._reload_s(root, 0, reused, view.host)
        ahead = self._profiles[root][self._position(root, now_s) :]
        return left_s * float(max(ahead.mean(), 1.0) ** self._memory_weight)

    def _position(self, root: int, now_s: float) -> int:
        """Bucket of the session's own time it is in."""
        future, progress = self._futures[root], self._progress[root]
        turn = future.turns[progress.turn_index]
        limit_s = turn.gap_s if progress.in_tools else turn.engine_s
        spent_s = turn.start_s + min(now_s - progress.since_s, limit_s)
        if progress.in_tools:
            spent_s += turn.engine_s
        return min(int(spent_s / self._bucket_s), len(self._profiles[root]) - 1)


def build(context: PolicyContext, sessions: Sequence[Session]) -> Policies:
    oracle = Oracle(context, sessions)
    return Policies(scheduling=oracle, retention=oracle, admission=oracle, tools=oracle)


ORACLE = System(
    name="oracle",
    summary="clairvoyant: shortest remaining time first, memory planned with true futures",
    clairvoyant=build,
    tunable={"memory_weight": (0.0, 0.5), "peak_share": (0.0, 0.9)},
)
