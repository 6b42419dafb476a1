"""CacheWise: cached prompts first, and who is expected back last loses its memory first.

Paper: "CacheWise", arXiv:2606.16824, prefix-aware scheduling and reuse-aware eviction.
Reproduced: waiting turns whose prefix is cached go before those without, each in order of submission;
the contexts of sessions in their tools are ranked by the time at which they are expected back, the
latest first to go. Differs: the public predictor is a placeholder, a hash of tool name and
arguments; here the expected wait is the mean of those seen for the same set of tools (all tools
before there is one, 2 s before there is any); a session that is overdue is expected as much later
again as it is late; pins hold whole contexts and yield to every turn that waits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from baselines.continuum import Continuum
from marsbench.core import PolicyContext
from marsbench.events import Event, Kind
from marsbench.scheduler.base import EngineView, Key, Retain, RetainedView, TurnView
from marsbench.system import Policies, System

RESORT_S = 0.1
"""How often prefix hits are looked at again: a few engine steps."""
FIRST_GUESS_S = 2.0
ALL = ""
"""Waits of all tools together."""


class CacheWise(Continuum):
    """Scheduling by cached prefix, and retention by when a session is expected back."""

    resort_s = RESORT_S

    def __init__(self, context: PolicyContext) -> None:
        super().__init__(context)
        self._min_hit = context.params.get("min_hit_share", 0.0)
        self._expected_s: dict[int, float] = {}
        """Session -> how long its tools were expected to take."""

    def on_event(self, event: Event) -> None:
        """Forget sessions that have ended."""
        super().on_event(event)
        if event.kind == Kind.SESSION_END:
            self._expected_s.pop(event.session, None)

    def observe_wait(self, tool: str, wait_s: float) -> None:
        """Note how long a session waited for its tools, for the mean of these tools and of all."""
        super().observe_wait(tool, wait_s)
        super().observe_wait(ALL, wait_s)

    def expected_wait_s(self, tool: str) -> float:
        """Return the mean of the waits for this tool, or of all waits if it has none yet,
        seconds.
        """
        for name in (tool, ALL):
            count, total_s = self._waits.get(name, (0, 0.0))
            if count:
                return total_s / count
        return FIRST_GUESS_S

    def waiting_key(self, turn: TurnView, view: EngineView, now_s: float) -> Key:
        """Serve preempted turns first, then those with a cached prefix, then the others."""
        if turn.num_preemptions:
            return (0.0, float(turn.sequence))
        cached = view.cached_tokens(turn)
        warm = cached > self._min_hit * turn.prompt_tokens
        return (1.0 if warm else 2.0, float(turn.sequence))

    def on_turn_end(
        self,
        turn: TurnView,
        tool_names: Sequence[str],
        is_last: bool,
        view: EngineView,
        now_s: float,
    ) -> Retain | None:
        """Keep the KV of every session that goes to its tools: it is ranked, not reserved."""
        super().on_turn_end(turn, tool_names, is_last, view, now_s)  # measures the wait
        if is_last or not tool_names:
            return None
        tool = "+".join(sorted(set(tool_names)))
        self._expected_s[turn.session] = self.expected_wait_s(tool)
        return Retain(math.inf)

    def reclaim_key(self, retained: RetainedView, view: EngineView, now_s: float) -> Key:
        """Give up first what is expected back last, and what belongs to a session that is back last
        of all.
        """
        if retained.returned:
            return (0.0, float(retained.session))
        expected_s = self._expected_s.get(retained.session, FIRST_GUESS_S)
        left_s = abs(retained.since_s + expected_s - now_s)
        return (left_s, float(retained.session))

    def yields_to(
        self, retained: RetainedView, turn: TurnView, view: EngineView, now_s: float
    ) -> bool:
        """Return True: every waiting turn may take what is kept, since it is a rank and not a
        reservation.
        """
        return True


def build(context: PolicyContext) -> Policies:
    """Build CacheWise for a deployment."""
    policy = CacheWise(context)
    return Policies(scheduling=policy, retention=policy)


CACHEWISE = System(
    name="cachewise",
    summary="CacheWise: cached prefixes first; the session expected back last loses its KV first",
    build=build,
    tunable={"min_hit_share": (0.0, 0.5, 0.9)},
    limits={"min_hit_share": (0.0, 1.0)},
)
