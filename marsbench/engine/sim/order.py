"""Scheduling in the simulated engine: whose turn is next, how large a chunk, who is preempted.

A policy says so if the system has one; else the rules are vLLM's own, first come first served or
by priority.
"""

from __future__ import annotations

from bisect import insort
from typing import TYPE_CHECKING

from marsbench.core import to_ps, to_s
from marsbench.engine.base import EngineConfig
from marsbench.engine.retention import FOREVER
from marsbench.engine.sim.turn import SimTurn
from marsbench.errors import PolicyError
from marsbench.scheduler.base import EngineOrder, SchedulingPolicy

if TYPE_CHECKING:
    from marsbench.engine.sim.view import SimView


class Order:
    """What a core asks its scheduling policy."""

    def __init__(self, policy: SchedulingPolicy, view: SimView, config: EngineConfig) -> None:
        self.policy: SchedulingPolicy | None = None if type(policy) is EngineOrder else policy
        self.reorders_running = self.policy is not None and self.policy.reorders_running
        self.dirty = True
        """Something happened since the policy's keys were last asked."""
        self.resort_ps = FOREVER
        if self.policy is not None and self.policy.resort_s < to_s(FOREVER):
            self.resort_ps = to_ps(self.policy.resort_s)
        self.sorted_at_ps = -1
        self._view = view
        self._by_priority = config.policy == "priority"
        self._quanta: dict[int, int | None] = {}
        """The policy's quantum of each turn it was asked for in this step."""

    def due(self, now_ps: int) -> bool:
        """Whether the policy's keys are to be asked before a step that starts now."""
        return self.policy is not None and (
            self.dirty or now_ps >= self.sorted_at_ps + self.resort_ps
        )

    def enqueue(self, waiting: list[SimTurn], turn: SimTurn, *, preempted: bool) -> None:
        """Put a turn into the queue."""
        if self.policy is not None:
            waiting.append(turn)
        elif self._by_priority:
            insort(waiting, turn, key=_queue_priority)
        elif preempted:
            waiting.insert(0, turn)
        else:
            waiting.append(turn)

    def hold(self, loading: list[SimTurn], turn: SimTurn) -> None:
        """Put a turn into the queue of those that hold blocks: no policy orders it."""
        if self.policy is None and self._by_priority:
            insort(loading, turn, key=_queue_priority)
        else:
            loading.append(turn)

    def sort(self, waiting: list[SimTurn], running: list[SimTurn], now_ps: int) -> None:
        """Ask the policy for the order of both queues."""
        policy, view, now_s = self.policy, self._view, to_s(now_ps)
        assert policy is not None
        if len(waiting) > 1:
            waiting.sort(key=lambda t: (policy.waiting_key(t, view, now_s), t.sequence))
        if self.reorders_running and len(running) > 1:
            running.sort(key=lambda t: (policy.running_key(t, view, now_s), t.sequence))
        self.sorted_at_ps = now_ps
        self.dirty = False

    def quantum(self, turn: SimTurn, have: int, count: int, now_ps: int) -> int:
        """Clip a chunk on top of ``have`` computed tokens to the policy's quantum."""
        assert self.policy is not None
        if have >= max(turn.prompt_tokens, turn.prompt_tokens + turn.generated - 1):
            return count
        quantum = self.policy.prefill_quantum(turn, self._view, to_s(now_ps))
        self._quanta[turn.sequence] = quantum
        if quantum is None:
            return count
        if quantum < 1:
            raise PolicyError(f"prefill_quantum must be at least 1 token, got {quantum}")
        return min(quantum, count)

    def report(self, chunks: list[tuple[SimTurn, int]], now_ps: int) -> None:
        """Tell the policy which of the quanta it gave in this step were used."""
        assert self.policy is not None
        for turn, count in chunks:
            if turn.sequence in self._quanta:
                quantum = self._quanta[turn.sequence]
                self.policy.on_scheduled(turn, count, quantum, to_s(now_ps))
        self._quanta.clear()

    def victim(self, running: list[SimTurn], now_ps: int) -> SimTurn:
        """Return the running turn to preempt."""
        if self.policy is not None:
            policy, view, now_s = self.policy, self._view, to_s(now_ps)
            best = running[0]
            best_key = policy.victim_key(best, view, now_s)
            for turn in running[1:]:
                key = policy.victim_key(turn, view, now_s)
                if key >= best_key:
                    best, best_key = turn, key
            return best
        if self._by_priority:
            return max(running, key=_victim_priority)
        return running[-1]


def _queue_priority(turn: SimTurn) -> tuple[int, int, int]:
    return (turn.priority, turn.ready_ps, turn.sequence)


def _victim_priority(turn: SimTurn) -> tuple[int, int]:
    return (turn.priority, turn.ready_ps)
