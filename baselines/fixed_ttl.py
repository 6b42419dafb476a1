"""Fixed TTL: every waiting session's KV is kept for the same number of seconds.

The constant-deadline form of Continuum (arXiv:2511.02230), without tool names or learning, and
the retention most engines offer as an option. Later studies of real traces found that a constant
near the cost of a reload is hard to beat with per-tool prediction, so it is a baseline of its own.
Reproduced: pin at turn end, give up after ``ttl_s`` (6 s) unless the session is back and queued;
turns in order of session arrival; the pin with the latest expiry is taken back first.
Differs: a running turn that lacks blocks takes pins back before it preempts; a waiting one does
so only when nothing runs.
"""

from __future__ import annotations

from collections.abc import Sequence

from baselines.soft_pins import SoftPins
from marsbench.core import PolicyContext
from marsbench.scheduler.base import EngineView, Retain, TurnView
from marsbench.system import Policies, System


class FixedTtl(SoftPins):
    """Scheduling and retention policy with one constant."""

    def __init__(self, context: PolicyContext) -> None:
        super().__init__()
        self._ttl_s = context.params.get("ttl_s", 6.0)

    def on_turn_end(
        self,
        turn: TurnView,
        tool_names: Sequence[str],
        is_last: bool,
        view: EngineView,
        now_s: float,
    ) -> Retain | None:
        """Keep every session that will come back."""
        return None if is_last else Retain(now_s + self._ttl_s)


def build(context: PolicyContext) -> Policies:
    """Build a constant TTL for a deployment."""
    policy = FixedTtl(context)
    return Policies(scheduling=policy, retention=policy)


FIXED_TTL = System(
    name="fixed-ttl",
    summary="KV of a waiting session kept for a constant time; session FCFS",
    build=build,
    tunable={"ttl_s": (0.5, 1.0, 2.0, 4.0, 6.0, 10.0, 20.0, 60.0, 300.0)},
)
