"""CONCUR: congestion control on the number of active agents, driven by KV use and hit rate.

Paper: "CONCUR: High-Throughput Agentic Batch Inference of LLM via Congestion-Based Concurrency
Control", arXiv:2601.22705, cache-aware AIMD rule and its constants.
Reproduced: a window W over active agents; every control interval W grows by alpha = 2 while KV
use is below U_low = 0.2, halves (beta = 0.5) when use is above U_high = 0.5 and the prefix hit
rate is below H = 0.2, else holds; agents beyond the window pause between turns, never inside one,
and the newest pause first; paused agents resume before new ones enter. Differs: the control
interval and the first window are not stated in what we could read (5 s and 8 here, the window in
the grid beside alpha, beta and the three marks); the hit rate is the engine's over its last 64 turns; KV use counts blocks referenced by
turns (cached but free blocks count as free, as in the engine's own gauge); W is looked at only
while somebody waits, so an idle system does not inflate it; sub-agents pass with their parent.
"""

from __future__ import annotations

from collections.abc import Sequence

from marsbench.admission.base import SessionView, SystemView
from marsbench.core import PolicyContext
from marsbench.events import Event
from marsbench.system import Policies, System


class Concur:
    """Admission policy: additive increase, multiplicative decrease of the active window."""

    gates_continuations = True

    def __init__(self, context: PolicyContext) -> None:
        params = context.params
        self._alpha = params.get("alpha", 2.0)
        self._beta = params.get("beta", 0.5)
        self._use_low = params.get("use_low", 0.2)
        self._use_high = params.get("use_high", 0.5)
        self._hit_low = params.get("hit_low", 0.2)
        self.tick_s: float | None = params.get("interval_s", 5.0)
        self._interval_s = params.get("interval_s", 5.0)
        self.window = params.get("window_init", 8.0)
        self._next_s = self._interval_s

    def on_event(self, event: Event) -> None:
        """Nothing to learn: the signals are polled."""

    def admit(
        self, pending: Sequence[SessionView], view: SystemView, now_s: float
    ) -> Sequence[SessionView]:
        """Admit turns of the oldest W agents, then new agents while the window has room."""
        if now_s >= self._next_s:
            self._adapt(view)
            self._next_s = now_s + self._interval_s
        limit = int(self.window)
        agents = [session.session for session in view.active if not session.is_child]
        allowed = set(agents[:limit])
        free = limit - len(agents)
        known = set(agents)
        returning = [
            session
            for session in pending
            if session.is_child or (session.session in known and session.session in allowed)
        ]
        new = [s for s in pending if not s.is_child and s.session not in known]
        return returning + new[: max(0, free)]

    def _adapt(self, view: SystemView) -> None:
        use = 1.0 - view.free_blocks / view.num_blocks
        if use < self._use_low:
            self.window += self._alpha
        elif use > self._use_high and view.prefix_cache_hit_rate < self._hit_low:
            self.window = max(1.0, self.window * self._beta)


def build(context: PolicyContext) -> Policies:
    """Build CONCUR for a deployment."""
    return Policies(admission=Concur(context))


CONCUR = System(
    name="concur",
    summary="CONCUR (ICML'26): AIMD on active agents from KV use and hit rate",
    build=build,
    tunable={
        "alpha": (1.0, 2.0),
        "beta": (0.5, 0.8),
        "window_init": (4.0, 8.0),
        "hit_low": (0.2, 0.8),
        "use_low": (0.2, 0.8),
        "use_high": (0.5, 0.9),
    },
    limits={
        "alpha": (0.01, 64.0),
        "beta": (0.05, 1.0),
        "window_init": (1.0, 1024.0),
        "hit_low": (0.0, 1.0),
        "use_low": (0.0, 1.0),
        "use_high": (0.0, 1.0),
    },
)
