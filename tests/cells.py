"""Cells for conformance tests: sessions of all kinds on a small simulated engine that checks its books."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from marsbench.arrival.base import ArrivalPlan
from marsbench.core import PolicyContext, Session, SharedPrefix, ToolCall, Turn, to_ps
from marsbench.engine.base import EngineConfig
from marsbench.engine.cost import LinkCost, StepCost
from marsbench.engine.plan import CellPlan
from marsbench.engine.sim.core import SimCore
from marsbench.engine.virtual import CoreFactory, VirtualEngine
from marsbench.events import FIELDS, Kind
from marsbench.records import EventLog
from marsbench.registry import load, table
from marsbench.system import Policies, System
from marsbench.tools import make_tool_model

NAMES = [name for name in sorted(table("SYSTEMS")) if not load("SYSTEMS", name).engines]
"""Systems that run on every engine."""


NUM_BLOCKS, BLOCK_SIZE, TOOL_CORES = 500, 16, 2


COST = StepCost.from_coefficients(
    c_tok=to_ps(1e-4), c_pair=0, weights=[0], m_ctx=to_ps(1e-7), o_step=to_ps(0.005), o_seq=0
)
"""10,000 prompt tokens/s; a decode step takes 5 ms and 0.1 ms per 1000 tokens of context."""
LINK = LinkCost(h2d_token_ps=to_ps(1e-6), d2h_token_ps=to_ps(2e-6), latency_ps=to_ps(2e-5))
"""To host memory and back, 10 ms for 10,000 tokens and 20 ms."""


CONTEXT = PolicyContext(
    num_blocks=NUM_BLOCKS,
    block_size=BLOCK_SIZE,
    max_num_batched_tokens=2048,
    max_num_seqs=64,
    tool_cores=TOOL_CORES,
    prefill_tokens_per_s=10_000.0,
    decode_step_s=0.0052,
)


def some_sessions(count: int, seed: int) -> list[Session]:
    """Sessions of 2 to 6 turns that grow to about 3000 of the cache's 8000 tokens; each third
    has a sub-agent, and one can never fit.
    """
    rng = np.random.default_rng(seed)
    prefix = SharedPrefix("system", 320)

    def turns(number: int, *, child: bool = False) -> tuple[Turn, ...]:
        made = []
        for index in range(int(rng.integers(2, 7))):
            tools = tuple(
                ToolCall("bash", "script", wall_s=float(rng.exponential(0.5)), cpu_s=0.1)
                for _ in range(int(rng.integers(0, 3)))
            )
            children = ()
            if index == 0 and number % 3 == 0 and not child:
                children = (Session(f"s{number}.child", turns(number, child=True)),)
            made.append(
                Turn(
                    new_input_tokens=int(rng.integers(1, 600)),
                    output_tokens=int(rng.integers(1, 60)),
                    resent_output=float(rng.choice([1.0, 0.5])),
                    drop_context_to=700 if index == 4 else None,
                    tools=tools,
                    think_s=float(rng.choice([0.0, 0.2])),
                    children=children,
                )
            )
        return tuple(made)

    sessions = [Session(f"s{n}", turns(n), shared_prefix=prefix) for n in range(count)]
    return [*sessions, Session("too-large", (Turn(9000, 10), Turn(10, 10)))] if count else []


def num_sessions(sessions: list[Session] | tuple[Session, ...]) -> int:
    """Top-level sessions and all sub-agents."""
    children = [child for s in sessions for turn in s.turns for child in turn.children]
    return len(sessions) + (num_sessions(children) if children else 0)


class CheckedCore(SimCore):
    """The simulated core, asserting its own books and that it never stalls."""

    def advance(self, now_ps: int, limit_ps: int) -> int:
        steps = self.stats.steps
        after = super().advance(now_ps, limit_ps)
        self.check_integrity()
        assert 0 <= self.kv.free <= NUM_BLOCKS
        stalled = self.stats.steps == steps and bool(self.waiting)
        assert not stalled, "nothing runs although a turn waits"
        return after


def policies_of(system: System, sessions: list[Session]) -> Policies:
    """A system's policies for a cell of these sessions."""
    return system.clairvoyant(CONTEXT, sessions) if system.clairvoyant else system.build(CONTEXT)


def play(
    sessions: Sequence[Session],
    arrivals_s: Sequence[float],
    *,
    policies: Policies,
    flags: EngineConfig,
    core: CoreFactory = SimCore,
    tool_cores: int = TOOL_CORES,
    **more: Any,
) -> EventLog:
    """One cell of these policies in virtual time, with modelled tools; ``more`` is the plan's."""
    log = EventLog()
    VirtualEngine(core).run(
        CellPlan(
            sessions=tuple(sessions),
            arrivals=ArrivalPlan(tuple(to_ps(at_s) for at_s in arrivals_s)),
            policies=policies,
            flags=flags,
            tools=make_tool_model("modelled", tool_cores),
            tool_cores=tool_cores,
            **{"cost": COST, **more},
        ),
        log,
    )
    return log


def run(
    name: str,
    sessions: list[Session],
    arrivals_s: list[float],
    wrap: Callable[[Policies], Policies] = lambda policies: policies,
    core: CoreFactory = CheckedCore,
    host_chunks: int = 0,
) -> EventLog:
    """One cell of a system on the small engine, with as many blocks of host memory as given."""
    system: System = load("SYSTEMS", name)
    engine = EngineConfig(
        num_blocks=NUM_BLOCKS,
        block_size=BLOCK_SIZE,
        max_num_batched_tokens=2048,
        max_num_seqs=64,
    )
    page = int(system.engine.get("block_size", BLOCK_SIZE))
    pages = NUM_BLOCKS * BLOCK_SIZE // page
    engine = replace(engine, num_blocks=pages, **system.engine, host_chunks=host_chunks)
    policies = wrap(policies_of(system, sessions))
    return play(
        sessions, arrivals_s, policies=policies, flags=engine, core=core, priority=system.priority,
        cost=COST.with_link(LINK) if host_chunks else COST,
    )  # fmt: skip


def events(log: EventLog, kind: Kind) -> list[dict[str, int]]:
    """Rows of one kind with their fields by name."""
    rows = log.to_numpy()
    names = ("time_ps", "kind", "session", "turn", "call", *FIELDS[kind])
    return [dict(zip(names, map(int, row), strict=False)) for row in rows[rows[:, 1] == kind]]


def spread(count: int, gap_s: float) -> list[float]:
    return [gap_s * index for index in range(count)]
