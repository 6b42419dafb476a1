"""Session affinity: one warm continuation a step may pass others in a bounded part of the queue.

Source: vllm-project/vllm, pull request 51384 (open).
Reproduced: of the first ``window`` waiting turns, the first continuation of a recently scheduled session
that has cached blocks goes to the front, one at a time; preempted turns are never passed, and nobody
is once the head of the queue has waited too long. Differs: the window (16), the least hit (1
block), the longest wait of the head (2 s) and the time for which a session counts as recent (60 s) are
ours, since what we could read names the options without their values; they are the grid.
"""

from __future__ import annotations

from marsbench.core import PolicyContext
from marsbench.events import Event, Kind
from marsbench.scheduler.base import EngineOrder, EngineView, Key, TurnView
from marsbench.system import Policies, System

RESORT_S = 0.1
"""How often the head's wait is looked at again: a few engine steps."""


class SessionAffinity(EngineOrder):
    """Scheduling policy: first come, first served, but for one promoted continuation."""

    resort_s = RESORT_S

    def __init__(self, context: PolicyContext) -> None:
        params = context.params
        self._window = int(params.get("window", 16))
        self._min_blocks = params.get("min_blocks", 1.0)
        self._head_wait_s = params.get("head_wait_s", 2.0)
        self._recent_s = params.get("recent_s", 60.0)
        self._scheduled_s: dict[int, float] = {}
        """Session -> when a turn of it last finished."""
        self._asked: tuple[float, tuple[int, ...]] = (-1.0, ())
        self._promoted = -1

    def on_event(self, event: Event) -> None:
        """Remember which sessions have been in the engine lately."""
        if event.kind == Kind.GPU_END:
            self._scheduled_s[event.session] = event.time_s
        elif event.kind == Kind.SESSION_END:
            self._scheduled_s.pop(event.session, None)

    def waiting_key(self, turn: TurnView, view: EngineView, now_s: float) -> Key:
        """Serve preempted turns first, then the promoted one, then the others by submission."""
        if turn.num_preemptions:
            return (0.0, float(turn.sequence))
        promoted = turn.sequence == self._promotion(view, now_s)
        return (1.0 if promoted else 2.0, float(turn.sequence))

    def _promotion(self, view: EngineView, now_s: float) -> int:
        """Submission number of the turn that may pass; -1 if none may. One answer per sorting."""
        asked = (now_s, tuple(turn.sequence for turn in view.waiting))
        if asked != self._asked:
            self._asked = asked
            self._promoted = self._choose(view, now_s)
        return self._promoted

    def _choose(self, view: EngineView, now_s: float) -> int:
        queue = sorted(view.waiting, key=lambda turn: turn.sequence)
        if not queue or now_s - queue[0].ready_s >= self._head_wait_s:
            return -1
        for turn in queue[: self._window]:
            recent_s = now_s - self._scheduled_s.get(turn.session, -1e18)
            if turn.turn_index == 0 or turn.num_preemptions or recent_s > self._recent_s:
                continue
            if view.cached_tokens(turn) >= self._min_blocks * view.block_size:
                return turn.sequence
        return -1


def build(context: PolicyContext) -> Policies:
    """Build session affinity for a deployment."""
    return Policies(scheduling=SessionAffinity(context))


SESSION_AFFINITY = System(
    name="session-affinity",
    summary="vllm#51384: one warm continuation at a time passes a bounded window of the queue",
    build=build,
    tunable={
        "window": (4, 16, 64),
        "head_wait_s": (0.5, 2.0, 10.0),
        "recent_s": (10.0, 60.0, 600.0),
    },
    limits={"window": (1, 4096), "head_wait_s": (0.0, 1e6), "recent_s": (0.0, 1e6)},
)
