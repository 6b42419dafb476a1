"""Program-aware fairness: the session that has had least lately goes first, and long waits count.

Source: llm-d router, program-aware fairness plug-in, strategy LAS (pull request 1534, merged).
Reproduced: a session's service is its prompt tokens plus twice its output tokens, halved every 60 s; of
the waiting sessions the one with the highest 0.8 (1 - service) + 0.2 wait goes first, both as shares of
the largest among those that wait. Differs: the plug-in orders the queue of a router in front of
saturated engines, here it orders the engine's own queue, with preempted turns in front; service
is booked when a turn ends.
"""

from __future__ import annotations

import math

from marsbench.core import PolicyContext
from marsbench.events import Event, Kind
from marsbench.scheduler.base import EngineOrder, EngineView, Key, TurnView
from marsbench.system import Policies, System

RESORT_S = 0.5
"""How often the order is looked at again: little decays in less."""
OUTPUT_WEIGHT = 2.0


class ProgramFairness(EngineOrder):
    """Scheduling policy: least attained service with decay, and the head's wait."""

    resort_s = RESORT_S

    def __init__(self, context: PolicyContext) -> None:
        params = context.params
        self._wait_weight = params.get("wait_weight", 0.2)
        self._half_life_s = params.get("half_life_s", 60.0)
        self._served: dict[int, tuple[float, float]] = {}
        """Session -> service and when it was booked."""
        self._prompt: dict[int, int] = {}
        self._asked: tuple[float, int] = (-1.0, -1)
        self._largest = (1.0, 1.0)

    def on_event(self, event: Event) -> None:
        """Book the tokens of finished turns."""
        if event.kind == Kind.TURN_READY:
            self._prompt[event.session] = event.get("prompt_tokens")
        elif event.kind == Kind.GPU_END:
            tokens = self._prompt.get(event.session, 0) + OUTPUT_WEIGHT * event.get("output_tokens")
            before = self.service(event.session, event.time_s)
            self._served[event.session] = (before + tokens, event.time_s)
        elif event.kind == Kind.SESSION_END:
            self._served.pop(event.session, None)
            self._prompt.pop(event.session, None)

    def service(self, session: int, now_s: float) -> float:
        """Return the tokens a session has had, halved with every half-life."""
        tokens, booked_s = self._served.get(session, (0.0, now_s))
        return tokens * math.exp2(-(now_s - booked_s) / self._half_life_s)

    def waiting_key(self, turn: TurnView, view: EngineView, now_s: float) -> Key:
        """Serve preempted turns first, then the highest score."""
        if turn.num_preemptions:
            return (0.0, 0.0, float(turn.sequence))
        most, longest_s = self._scale(view, now_s)
        service = self.service(turn.session, now_s) / most
        wait = (now_s - turn.ready_s) / longest_s
        score = (1.0 - self._wait_weight) * (1.0 - service) + self._wait_weight * wait
        return (1.0, -score, float(turn.sequence))

    def _scale(self, view: EngineView, now_s: float) -> tuple[float, float]:
        """Most service and longest wait among those that wait: one answer per sorting."""
        asked = (now_s, len(view.waiting))
        if asked != self._asked:
            self._asked = asked
            most = max((self.service(turn.session, now_s) for turn in view.waiting), default=0.0)
            longest_s = max((now_s - turn.ready_s for turn in view.waiting), default=0.0)
            self._largest = (most or 1.0, longest_s or 1.0)
        return self._largest


def build(context: PolicyContext) -> Policies:
    """Build program fairness for a deployment."""
    return Policies(scheduling=ProgramFairness(context))


PROGRAM_FAIRNESS = System(
    name="program-fairness",
    summary="llm-d's program-aware fairness: least attained service, halved every 60 s, and the wait",
    build=build,
    tunable={"wait_weight": (0.0, 0.2, 0.5), "half_life_s": (20.0, 60.0, 600.0, 1e6)},
    limits={"wait_weight": (0.0, 1.0), "half_life_s": (0.1, 1e9)},
)
