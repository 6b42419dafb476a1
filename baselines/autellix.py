"""Autellix: a multi-level queue on the service a session has attained so far.

Paper: "Autellix: An Efficient Serving Engine for LLM Agents as General Programs", NSDI'26,
arXiv:2502.13965, section on program-level attained service (PLAS, ATLAS) and its anti-starvation.
Reproduced: a turn enters the queue given by its session's attained service and sinks as it uses
its queue's quantum; K = 4 queues that end at 2048, 8192 and 32768 tokens; a session whose
waiting over running time reaches beta = 2 goes to the top queue; for sub-agents the critical-path
form (a child starts at its parent's service, the parent continues at the longest child's).
Queue ends, beta and the victim rule (lowest queue, most blocks, latest) are those of the
re-implementation in the MARS preview; ``step_quanta`` 1 adds its prefill chunks of
2048/1024/512/256 tokens by queue, which the paper does not have (many half-done prompts then
compete for blocks). ``queues`` 0 is plain PLAS, which the paper starts from: least attained service
first, without queues; where contexts exceed the last queue's end the queues are nearly first come,
first served. Differs: no swap to host memory (none is modelled) and no multi-step scheduling; a queued turn takes a running
one's place only when blocks run out; one replica, so no load balancer; waiting and running are
measured in seconds inside the engine, as in the paper, not in tokens.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace

from marsbench.core import PolicyContext
from marsbench.events import Event, Kind
from marsbench.scheduler.base import EngineView, Key, TurnView
from marsbench.system import Policies, System

QUEUE_ENDS_TOKENS = (2048, 8192, 32768)
STEP_QUANTA_TOKENS = (2048, 1024, 512, 256)
RESORT_S = 0.1
"""A queue holds at least 2048 tokens, seconds of decoding: finer looks would change nothing."""


@dataclass(slots=True)
class _Service:
    """What a session has received and waited for."""

    served_tokens: int = 0
    """Of finished turns."""
    prefilled_tokens: int = 0
    """Of the turn in the engine."""
    waited_s: float = 0.0
    ran_s: float = 0.0
    running: bool = False
    since_s: float | None = None
    """When the present wait or run began; None outside the engine."""

    def switch(self, now_s: float, *, running: bool, leaves: bool = False) -> None:
        """Book the time since the last switch, then wait, run or leave."""
        if self.since_s is not None and self.running:
            self.ran_s += now_s - self.since_s
        elif self.since_s is not None:
            self.waited_s += now_s - self.since_s
        self.running = running
        self.since_s = None if leaves else now_s


class Autellix:
    """Scheduling policy: program-level attained service in a multi-level feedback queue."""

    reorders_running = True
    resort_s = RESORT_S

    def __init__(self, context: PolicyContext) -> None:
        params = context.params
        self._beta = params.get("beta", 2.0)
        scale = params.get("queue_scale", 1.0)
        self._ends = tuple(end * scale for end in QUEUE_ENDS_TOKENS)
        self._step_quanta = params.get("step_quanta", 0.0) > 0
        self._queues = params.get("queues", 1.0) > 0
        self._sessions: dict[int, _Service] = {}
        self._parent: dict[int, int] = {}

    def on_event(self, event: Event) -> None:
        """Book service and waiting per session."""
        kind, session, now_s = event.kind, event.session, event.time_s
        if kind == Kind.SESSION_ARRIVE:
            self._arrive(session, event.get("parent"))
        elif kind == Kind.GPU_SUBMIT:
            self._of(session).switch(now_s, running=False)
        elif kind in {Kind.GPU_SCHED_FIRST, Kind.GPU_RESUME}:
            self._of(session).switch(now_s, running=True)
        elif kind == Kind.GPU_PREEMPT:
            self._of(session).switch(now_s, running=False)
        elif kind == Kind.GPU_END:
            service = self._of(session)
            service.switch(now_s, running=False, leaves=True)
            service.served_tokens += service.prefilled_tokens + event.get("output_tokens")
            service.prefilled_tokens = 0
        elif kind == Kind.SESSION_END:
            self._end(session)

    def level(self, turn: TurnView, now_s: float) -> int:
        """Return the queue of the turn; 0 is served first."""
        return bisect_right(self._ends, self._attained(turn, now_s))

    def _place(self, turn: TurnView, now_s: float) -> float:
        """What turns are served by, smaller first: the queue, or without queues the service."""
        attained = self._attained(turn, now_s)
        return float(bisect_right(self._ends, attained)) if self._queues else float(attained)

    def _attained(self, turn: TurnView, now_s: float) -> int:
        """Tokens of service that the session has had; none if it has waited too long."""
        service = self._of(turn.session)
        waited_s, ran_s = service.waited_s, service.ran_s
        if service.since_s is not None:
            spent_s = now_s - service.since_s
            waited_s, ran_s = (
                (waited_s, ran_s + spent_s) if service.running else (waited_s + spent_s, ran_s)
            )
        if waited_s > 0 and waited_s >= self._beta * ran_s:
            return 0
        return service.served_tokens + service.prefilled_tokens + turn.generated_tokens

    def waiting_key(self, turn: TurnView, view: EngineView, now_s: float) -> Key:
        """Serve upper queues first, and first come first served within a queue."""
        return (self._place(turn, now_s), float(turn.sequence))

    def running_key(self, turn: TurnView, view: EngineView, now_s: float) -> Key:
        """Order running turns as in the waiting queue."""
        return (self._place(turn, now_s), float(turn.sequence))

    def prefill_quantum(self, turn: TurnView, view: EngineView, now_s: float) -> int | None:
        """Return smaller chunks for lower queues, if that is switched on."""
        return STEP_QUANTA_TOKENS[self.level(turn, now_s)] if self._step_quanta else None

    def on_scheduled(
        self, turn: TurnView, new_tokens: int, quantum: int | None, now_s: float
    ) -> None:
        """Prefill counts as service when it is scheduled, recomputation included."""
        self._of(turn.session).prefilled_tokens += new_tokens

    def victim_key(self, turn: TurnView, view: EngineView, now_s: float) -> Key:
        """Preempt the lowest queue first, then the turn with the most blocks, then the latest."""
        return (self._place(turn, now_s), float(turn.num_blocks), float(turn.sequence))

    def skip_blocked(self) -> bool:
        """Stop at the first turn that does not fit, as vLLM does."""
        return False

    def shrink_chunks(self) -> bool:
        """Return False: a turn is preempted at once, as in vLLM."""
        return False

    def _of(self, session: int) -> _Service:
        return self._sessions.setdefault(session, _Service())

    def _arrive(self, session: int, parent: int) -> None:
        if parent < 0:
            self._sessions[session] = _Service()
            return
        self._parent[session] = parent
        self._sessions[session] = replace(
            self._of(parent), prefilled_tokens=0, running=False, since_s=None
        )

    def _end(self, session: int) -> None:
        service = self._sessions.pop(session, None)
        parent = self._sessions.get(self._parent.pop(session, -1))
        if service and parent:
            parent.served_tokens = max(parent.served_tokens, service.served_tokens)


def build(context: PolicyContext) -> Policies:
    """Build Autellix for a deployment."""
    return Policies(scheduling=Autellix(context))


AUTELLIX = System(
    name="autellix",
    summary="Autellix/PLAS (NSDI'26): least attained service per session, 4 queues",
    build=build,
    tunable={
        "beta": (1.0, 2.0, 4.0, 1e9),
        "queue_scale": (1.0, 4.0, 16.0),
        "queues": (0.0, 1.0),
    },
    limits={"beta": (0.01, 1e9), "queue_scale": (0.01, 1e6), "queues": (0.0, 1.0)},
)
