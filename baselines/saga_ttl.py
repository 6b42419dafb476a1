"""SAGA's time to live: as long as nearly all calls of the tool take, and less under memory pressure.

Paper: "SAGA", HPDC'26, arXiv:2605.00528, Algorithm 1; constants it leaves open are those of
agentservesim's public re-implementation.
Reproduced: a turn that calls a tool keeps its KV for the 95th percentile of a log-normal fitted to the
tool's waits so far (moving averages, weight 0.2), times 1 - m/2, where m goes from 0 to 1 as the
used share of the cache goes from 0.7 to 0.9, and for 300 s at most. Differs: nothing of SAGA but
this: its execution graphs, affinity batching, work stealing and fair share need workflows known
beforehand, replicas or tenants. An unseen tool keeps 6 s; parallel calls are one wait, keyed by
their set of names; order and reclaim are those of soft_pins.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from baselines.continuum import Continuum
from marsbench.core import PolicyContext
from marsbench.scheduler.base import EngineView, Key, Retain, TurnView
from marsbench.system import Policies, System

Z_95 = 1.6448536269514722
"""The 95th percentile of the normal distribution with mean 0 and deviation 1."""
WEIGHT = 0.2
PRESSURE_FROM, PRESSURE_TO = 0.7, 0.9


class SagaTtl(Continuum):
    """Scheduling and retention policy: percentile of the tool's waits, scaled by pressure."""

    def __init__(self, context: PolicyContext) -> None:
        super().__init__(context)
        self._cold_s = context.params.get("cold_s", 6.0)
        self._cap_s = context.params.get("cap_s", 300.0)
        self._z = context.params.get("z", Z_95)
        self._logs: dict[str, tuple[float, float]] = {}
        """Tool -> moving mean and variance of the logarithm of its waits."""

    def observe_wait(self, tool: str, wait_s: float) -> None:
        """Note a tool's wait. One of zero says nothing about a log-normal distribution and is left
        out.
        """
        if wait_s <= 0:
            return
        value = math.log(wait_s)
        mean, variance = self._logs.get(tool, (value, 0.0))
        delta = value - mean
        self._logs[tool] = (
            mean + WEIGHT * delta,
            (1 - WEIGHT) * (variance + WEIGHT * delta * delta),
        )

    def ttl_s(self, tool: str, turn: TurnView) -> float:
        """Return the tool's time to live without memory pressure and before the cap, seconds."""
        if tool not in self._logs:
            return self._cold_s
        mean, variance = self._logs[tool]
        return math.exp(min(mean + self._z * math.sqrt(variance), 30.0))

    def waiting_key(self, turn: TurnView, view: EngineView, now_s: float) -> Key:
        """Serve the oldest session first, whether its KV is kept or not."""
        return (*self.session_rank(turn), float(turn.sequence))

    def on_turn_end(
        self,
        turn: TurnView,
        tool_names: Sequence[str],
        is_last: bool,
        view: EngineView,
        now_s: float,
    ) -> Retain | None:
        """Keep for the tool's time to live under the present pressure."""
        answer = super().on_turn_end(turn, tool_names, is_last, view, now_s)
        if answer is None:
            return None
        used = 1.0 - view.free_blocks / view.num_blocks
        pressure = (used - PRESSURE_FROM) / (PRESSURE_TO - PRESSURE_FROM)
        scale = 1.0 - 0.5 * min(max(pressure, 0.0), 1.0)
        return Retain(now_s + min(scale * (answer.until_s - now_s), self._cap_s))


def build(context: PolicyContext) -> Policies:
    """Build SAGA's TTL for a deployment."""
    policy = SagaTtl(context)
    return Policies(scheduling=policy, retention=policy)


SAGA_TTL = System(
    name="saga-ttl",
    summary="SAGA (HPDC'26), its TTL alone: 95th percentile of the tool's waits, less under pressure",
    build=build,
    tunable={"z": (0.0, 0.84, Z_95), "cap_s": (30.0, 300.0), "cold_s": (2.0, 6.0, 20.0)},
    limits={"z": (-3.0, 3.0)},
)
