"""Continuum as in the paper: the TTL that maximises expected benefit minus holding time.

Paper: "Continuum: Efficient and Robust Multi-Turn LLM Agent Scheduling with KV Cache
Time-to-Live", arXiv:2511.02230, utility model (eq. 2) and its cold start.
Reproduced: TTL = argmax over t of P(wait <= t | tool) * (T * eta + reload) - t, where P is the
empirical distribution of observed waits, T the mean queueing delay of turns whose KV was lost
(last 200), eta = minus the correlation of turns done and turns left over finished sessions
(1.0 until there are two), reload the time to prefill the context again. Cold start: 2.0 s up to
K = 100 observations overall, then all waits together, then the tool's own once it has K.
Order, expiry and reclaim are those of continuum.py. Differs: the newest 1000 waits per
distribution are kept; reload is recomputation, since no DRAM tier is modelled; ``benefit_scale``
multiplies the benefit, 1 in the paper, since a benefit of a few seconds keeps nothing where tools
take longer, and tuning would have nothing to choose.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque

from baselines.continuum import Continuum
from marsbench.core import PolicyContext
from marsbench.events import Event, Kind
from marsbench.scheduler.base import TurnView
from marsbench.system import Policies, System

KEPT_WAITS = 1000
KEPT_DELAYS = 200


class ContinuumDynamic(Continuum):
    """Continuum with a TTL that is computed from observed waits instead of set."""

    def __init__(self, context: PolicyContext) -> None:
        super().__init__(context)
        self._context = context
        self._min_records = context.params.get("min_records", 100.0)
        self._benefit_scale = context.params.get("benefit_scale", 1.0)
        self._all = _WaitTimes()
        self._by_tool: dict[str, _WaitTimes] = {}
        self._submitted_s: dict[int, float] = {}
        self._delays_s: deque[float] = deque(maxlen=KEPT_DELAYS)
        self._continuity = _Continuity()
        self._turns_done: dict[int, int] = {}

    def on_event(self, event: Event) -> None:
        """Measure queueing delays of evicted returns and the lengths of sessions."""
        super().on_event(event)
        session = event.session
        if event.kind == Kind.GPU_SUBMIT and event.turn > 0 and session not in self._pinned:
            self._submitted_s[session] = event.time_s
        elif event.kind == Kind.GPU_SCHED_FIRST and session in self._submitted_s:
            self._delays_s.append(event.time_s - self._submitted_s.pop(session))
        elif event.kind == Kind.GPU_END:
            self._turns_done[session] = event.turn + 1
        elif event.kind == Kind.SESSION_END:
            self._submitted_s.pop(session, None)
            self._continuity.add_session(self._turns_done.pop(session, 0))

    def observe_wait(self, tool: str, wait_s: float) -> None:
        """Add a wait to both distributions."""
        self._all.add(wait_s)
        self._by_tool.setdefault(tool, _WaitTimes()).add(wait_s)

    def ttl_s(self, tool: str, turn: TurnView) -> float:
        """Return the most useful TTL for this context and tool, seconds; 0 if no wait is worth
        it.
        """
        if self._all.count <= self._min_records:
            return self._ttl_s
        own = self._by_tool.get(tool)
        waits = own if own is not None and own.count > self._min_records else self._all
        tokens = turn.computed_tokens
        reload_s = self._context.prefill_s(tokens, tokens)
        delay_s = sum(self._delays_s) / len(self._delays_s) if self._delays_s else 0.0
        benefit_s = delay_s * self._continuity.factor() + reload_s
        return waits.best_ttl_s(self._benefit_scale * benefit_s)


class _WaitTimes:
    """The newest waits, sorted."""

    def __init__(self) -> None:
        self.count = 0
        self._order: deque[float] = deque()
        self._sorted: list[float] = []

    def add(self, wait_s: float) -> None:
        self.count += 1
        self._order.append(wait_s)
        insort(self._sorted, wait_s)
        if len(self._order) > KEPT_WAITS:
            del self._sorted[bisect_left(self._sorted, self._order.popleft())]

    def best_ttl_s(self, benefit_s: float) -> float:
        """Return the observed wait t with the greatest P(wait <= t) * benefit - t; 0 if none is
        positive.
        """
        total = len(self._sorted)
        best_s, best_value = 0.0, 0.0
        # A wait above the benefit cannot pay: P is at most 1.
        for index in range(bisect_right(self._sorted, benefit_s)):
            wait_s = self._sorted[index]
            value = (index + 1) / total * benefit_s - wait_s
            if value > best_value:
                best_s, best_value = wait_s, value
        return best_s


class _Continuity:
    """Minus the correlation of turns done and turns left, over finished sessions."""

    def __init__(self) -> None:
        self._sessions = 0
        self._sums = [0.0] * 6

    def add_session(self, turns: int) -> None:
        """Learn from a session that had n turns: each turn k of them adds the pair (k, n - k)."""
        self._sessions += 1
        for done in range(1, turns + 1):
            left = turns - done
            pair = (1, done, left, done * done, left * left, done * left)
            self._sums = [total + value for total, value in zip(self._sums, pair, strict=True)]

    def factor(self) -> float:
        """Return the continuity factor; 1.0 until two sessions have ended and both counts vary."""
        n, x, y, xx, yy, xy = self._sums
        spread = (n * xx - x * x) * (n * yy - y * y)
        if self._sessions < 2 or spread <= 0:
            return 1.0
        return float(-(n * xy - x * y) / spread**0.5)


def build(context: PolicyContext) -> Policies:
    """Build Continuum with a computed TTL for a deployment."""
    policy = ContinuumDynamic(context)
    return Policies(scheduling=policy, retention=policy)


CONTINUUM_DYNAMIC = System(
    name="continuum-dynamic",
    summary="Continuum as in the paper: utility-maximising TTL from observed tool waits",
    build=build,
    tunable={
        "benefit_scale": (1.0, 2.0, 4.0, 8.0, 16.0, 32.0),
        "min_records": (20.0, 100.0, 300.0),
    },
    limits={"benefit_scale": (0.01, 1e6), "min_records": (1.0, 1e6)},
)
