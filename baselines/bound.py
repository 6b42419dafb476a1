"""A lower bound on mean session latency that no schedule can beat, from work alone.

Not a policy. Two arguments, the larger one counts. Critical path: no session is faster than alone
on an idle deployment with every reusable prefix cached. Capacity: of each resource (compute of the
GPU, KV memory, tool cores) a session needs a known amount; take the relaxation in which that
resource serves any mixture of sessions at full rate, preemption is free and nothing else takes
time. Host memory for KV changes neither: prefixes count as cached whatever memory there is, a
context counts against the GPU's only while the engine works on it, and copies take no time. For one
such machine, shortest remaining processing time first minimises the mean (Schrage, Operations
Research 16(3), 1968). Every real schedule is one of the relaxed ones, so the relaxed optimum bounds
it from below.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from baselines.foresight import Future, foresee
from marsbench.core import PolicyContext, Session

RESOURCES = ("compute", "memory", "tools")


@dataclass(frozen=True, slots=True)
class SessionWork:
    """What a session asks of a deployment at least."""

    arrival_s: float
    solo_s: float
    """Critical path: the session alone."""
    demands_s: tuple[float, ...]
    """Seconds of exclusive use of each resource, in the order of RESOURCES."""


@dataclass(frozen=True, slots=True)
class Bound:
    """Lower bounds on the mean session latency, seconds."""

    critical_path_s: float
    capacity_s: tuple[float, ...]
    """By resource, in the order of RESOURCES."""

    @property
    def mean_s(self) -> float:
        """The best of them."""
        return max(self.critical_path_s, *self.capacity_s)


def mean_latency_bound(work: Sequence[SessionWork]) -> Bound:
    """Return a lower bound on the mean latency of these sessions under any policy."""
    if not work:
        return Bound(0.0, (0.0,) * len(RESOURCES))
    count = len(work)
    arrivals = [float(item.arrival_s) for item in work]
    return Bound(
        critical_path_s=sum(item.solo_s for item in work) / count,
        capacity_s=tuple(
            srpt_total_flow_s(arrivals, demands) / count
            for demands in zip(*(item.demands_s for item in work), strict=True)
        ),
    )


def srpt_total_flow_s(arrivals_s: Sequence[float], sizes_s: Sequence[float]) -> float:
    """Return the sum of completion minus arrival on one machine that runs the shortest remaining
    time first.
    """
    jobs = sorted(zip(arrivals_s, sizes_s, strict=True))
    waiting: list[tuple[float, float]] = []
    """(remaining, arrival)."""
    now_s, flow_s, position = 0.0, 0.0, 0
    while waiting or position < len(jobs):
        if not waiting:
            now_s = max(now_s, jobs[position][0])
        while position < len(jobs) and jobs[position][0] <= now_s:
            arrival_s, size_s = jobs[position]
            heapq.heappush(waiting, (size_s, arrival_s))
            position += 1
        remaining_s, arrival_s = heapq.heappop(waiting)
        next_s = jobs[position][0] if position < len(jobs) else float("inf")
        if now_s + remaining_s <= next_s:
            now_s += remaining_s
            flow_s += now_s - arrival_s
        else:
            heapq.heappush(waiting, (remaining_s - (next_s - now_s), arrival_s))
            now_s = next_s
    return flow_s


def work_of_sessions(
    sessions: Sequence[Session],
    arrivals_s: Sequence[float],
    context: PolicyContext,
    *,
    kv_read_s_per_token: float = 0.0,
) -> list[SessionWork]:
    """Least work of each top-level session on a deployment, its sub-agents included.

    Compute: prefill of tokens no cache can hold, output tokens at prefill speed (in the largest
    batch a decoded token costs what a prefilled one does), and reading each one's own context,
    which no batch shares, at ``kv_read_s_per_token`` (``StepCost.m_ctx``; 0 leaves it out and
    weakens the bound). Memory: context times the time the engine must hold it, over the size of
    the cache. Tools: core-seconds over cores. Tool times are those of cores as fast as recorded.
    """
    futures = foresee(sessions, context, kv_read_s_per_token=kv_read_s_per_token)
    demands = [[0.0] * len(RESOURCES) for _ in sessions]
    for future in futures:
        compute_s, memory_s = _engine_demands(future, context, kv_read_s_per_token)
        demands[future.root][0] += compute_s
        demands[future.root][1] += memory_s
    for index, session in enumerate(sessions):
        if context.tool_cores > 0:
            demands[index][2] = tool_core_s(session) / context.tool_cores
    return [
        SessionWork(arrival_s, futures[index].total_s, tuple(demands[index]))
        for index, arrival_s in enumerate(arrivals_s)
    ]


def tool_core_s(session: Session) -> float:
    """Return the CPU work of a session's tools that the trace states, core-seconds, sub-agents
    included.
    """
    own = sum(call.cpu_s or 0.0 for turn in session.turns for call in turn.tools)
    return own + sum(tool_core_s(child) for turn in session.turns for child in turn.children)


def _engine_demands(
    future: Future, context: PolicyContext, kv_read_s_per_token: float
) -> tuple[float, float]:
    cache_tokens = context.num_blocks * context.block_size
    compute_s, memory_s = 0.0, 0.0
    for turn in future.turns:
        # A shared prefix may be held and read for others anyway.
        prompt = turn.context_tokens - turn.output_tokens - turn.shared_tokens
        steps = max(0, turn.output_tokens - 1)
        compute_s += turn.prefill_s + steps / context.prefill_tokens_per_s
        compute_s += steps * prompt * kv_read_s_per_token
        # Alone, the prompt is held while decoding, and at least the reused part while prefilling.
        reused = max(0, turn.reused_tokens - turn.shared_tokens)
        held = turn.decode_s * prompt + turn.prefill_s * reused
        memory_s += held / cache_tokens
    return compute_s, memory_s
