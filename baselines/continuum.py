"""Continuum as released: a short fixed TTL for tools that have been quick so far.

Paper: "Continuum: Efficient and Robust Multi-Turn LLM Agent Scheduling with KV Cache
Time-to-Live", arXiv:2511.02230; this file follows the authors' public code, which keeps a constant
where the paper computes one (for that see continuum_dynamic.py).
Reproduced: a turn that ends in a tool call keeps its KV for 2.0 s if the mean observed wait for
that tool is at most 2.0 s or the tool is new; expiry waits while the session's next turn is
queued; turns of pinned sessions go first, then sessions in order of first arrival; a waiting turn
takes pins back only when nothing runs, the one with the latest expiry first. Differs: a running
turn that lacks blocks takes pins back before it preempts; parallel calls of a turn are one
wait, keyed by their set of names; no DRAM offload.
"""

from __future__ import annotations

from collections.abc import Sequence

from baselines.soft_pins import SoftPins
from marsbench.core import PolicyContext
from marsbench.events import Event, Kind
from marsbench.scheduler.base import EngineView, Key, Retain, TurnView
from marsbench.system import Policies, System


class Continuum(SoftPins):
    """Scheduling and retention policy: TTL by mean tool wait, pinned sessions first."""

    def __init__(self, context: PolicyContext) -> None:
        super().__init__()
        self._ttl_s = context.params.get("ttl_s", 2.0)
        self._quick_s = context.params.get("quick_s", 2.0)
        self._pinned: set[int] = set()
        self._away: dict[int, tuple[str, float]] = {}
        self._waits: dict[str, tuple[int, float]] = {}

    def on_event(self, event: Event) -> None:
        """Track pins and the time from a turn's end to its session's return."""
        super().on_event(event)
        if event.kind == Kind.KV_PIN:
            self._pinned.add(event.session)
        elif event.kind == Kind.KV_UNPIN:
            self._pinned.discard(event.session)
        elif event.kind in {Kind.TURN_READY, Kind.GPU_SUBMIT}:
            away = self._away.pop(event.session, None)
            if away is not None:
                self.observe_wait(away[0], event.time_s - away[1])
        elif event.kind == Kind.SESSION_END:
            self._away.pop(event.session, None)

    def observe_wait(self, tool: str, wait_s: float) -> None:
        """Note that a session came back ``wait_s`` after the turn that called ``tool``."""
        count, total_s = self._waits.get(tool, (0, 0.0))
        self._waits[tool] = (count + 1, total_s + wait_s)

    def ttl_s(self, tool: str, turn: TurnView) -> float:
        """Return for how long to keep the KV of a turn that called ``tool``, in seconds; 0 means
        not at all.
        """
        count, total_s = self._waits.get(tool, (0, 0.0))
        return self._ttl_s if count == 0 or total_s / count <= self._quick_s else 0.0

    def waiting_key(self, turn: TurnView, view: EngineView, now_s: float) -> Key:
        """Serve sessions with pinned KV first, then the oldest session."""
        unpinned = 0.0 if turn.session in self._pinned else 1.0
        return (unpinned, *super().waiting_key(turn, view, now_s))

    def on_turn_end(
        self,
        turn: TurnView,
        tool_names: Sequence[str],
        is_last: bool,
        view: EngineView,
        now_s: float,
    ) -> Retain | None:
        """Pin the KV if the called tool is worth waiting for."""
        if is_last or not tool_names:
            return None
        tool = "+".join(sorted(set(tool_names)))
        self._away[turn.session] = (tool, now_s)
        ttl_s = self.ttl_s(tool, turn)
        return Retain(now_s + ttl_s) if ttl_s > 0 else None


def build(context: PolicyContext) -> Policies:
    """Build Continuum for a deployment."""
    policy = Continuum(context)
    return Policies(scheduling=policy, retention=policy)


CONTINUUM = System(
    name="continuum",
    summary="Continuum as released: 2 s TTL for quick tools, pinned first, session FCFS",
    build=build,
    tunable={"ttl_s": (1.0, 2.0, 4.0, 6.0, 10.0, 30.0), "quick_s": (1.0, 2.0, 5.0, 1e9)},
    limits={"quick_s": (0.0, 1e9)},
)
