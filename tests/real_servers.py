"""What tests send to a real server, and what it has to give back, whichever kind it is."""

from __future__ import annotations

from collections.abc import Sequence

from marsbench.arrival.base import ArrivalPlan
from marsbench.core import Session, SharedPrefix, ToolCall, Turn, plan_turns
from marsbench.engine.base import EngineConfig
from marsbench.engine.live.client import Client, Completion, CompletionRequest
from marsbench.engine.live.wall import LiveOutcome
from marsbench.engine.plan import CellPlan
from marsbench.events import Kind
from marsbench.records import EventLog
from marsbench.system import Policies
from marsbench.tables import build_tables
from marsbench.tools.recorded import Recorded

PREFIX = SharedPrefix("system", 300)


def wait(seconds: float) -> ToolCall:
    """A tool call of a set length."""
    return ToolCall("sleep", "plan", seconds)


def contending_sessions(away_s: float) -> list[Session]:
    """Three sessions for a cache of 5,120 tokens.

    The first turn of A leaves 1,720 tokens; while its tool runs for ``away_s``, B comes with a prompt of
    4,000 and pushes some or all of them out. Later prompts of A are rewritten and compacted.
    """
    a = (
        Turn(1400, 20, tools=(wait(away_s),)),
        Turn(400, 17, tools=(wait(0.1),)),
        Turn(100, 5, resent_output=0.5, tools=(wait(0.1),)),
        Turn(300, 9, drop_context_to=700, kept_prefix_tokens=600),
    )
    b = (Turn(3700, 12, tools=(wait(0.1),)), Turn(60, 6))
    c = (Turn(500, 8), Turn(50, 30))
    return [
        Session(name, turns, shared_prefix=PREFIX) for name, turns in (("a", a), ("b", b), ("c", c))
    ]


def plan(
    sessions: Sequence[Session], arrivals: ArrivalPlan, flags: EngineConfig, **more
) -> CellPlan:
    """A cell without policies of ours, whose tools take their recorded time."""
    return CellPlan(
        sessions=tuple(sessions), arrivals=arrivals, policies=Policies(), flags=flags,
        tools=Recorded(), **more,
    )  # fmt: skip


def cached(log: EventLog) -> dict[tuple[str, int], int]:
    """Prefix hit of each turn."""
    rows = log.to_numpy()
    rows = rows[rows[:, 1] == Kind.GPU_SCHED_FIRST]
    return {(log.session_ids[row[2]], int(row[3])): int(row[5]) for row in rows}


def check_answers(sessions: Sequence[Session], outcome: LiveOutcome) -> None:
    """Every prompt and every output has its planned length, and every token its time."""
    plans = [plan_turns(session) for session in sessions]
    assert len(outcome.completions) == sum(map(len, plans))
    for request, done in outcome.completions:
        turn = plans[request.session][request.turn_index]
        assert done.ok, done.problems
        assert (done.prompt_tokens, done.output_tokens) == (turn.prompt_tokens, turn.output_tokens)
        assert len(done.token_ids) == len(done.token_ps) == turn.output_tokens


def check_counters(log: EventLog, outcome: LiveOutcome) -> None:
    """The server's counters say what the log says of its turns, none of which was preempted."""
    turns = build_tables(log).turns
    assert outcome.server.prompt_tokens == turns["prompt_tokens"].sum()
    assert outcome.server.generated_tokens == turns["output_tokens"].sum()
    assert outcome.server.hit_tokens == turns["cached_tokens"].sum()
    assert outcome.server.preemptions == 0


async def ask_with_hints(client: Client, priority: int) -> Completion:
    """A request with everything that a scheduler may be told."""
    async with client:
        return await client.complete(
            CompletionRequest(
                list(range(300, 320)), 2, "session", priority, {"turn": 1, "tools": ["ls", "cat"]}
            )
        )
