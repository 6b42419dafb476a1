"""Describes a trace in numbers, says how each field is known, and compares two traces."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marsbench.core import Session, Turn, TurnPlan, plan_turns

MAX_VALUES = 200_000
"""Above this a quantity keeps a uniform sample (its n and mean stay exact)."""
PERCENTILES = (5, 25, 50, 75, 90, 95, 99)
FIELDS = (
    "agent", "model", "arrival_s", "shared_prefix", "new_input_tokens", "output_tokens",
    "resent_output", "drop_context_to", "kept_prefix_tokens", "think_s", "children", "tools.name",
    "tools.class", "tools.wall_s", "tools.cpu_s", "tools.cores", "tools.result_tokens",
    "tools.error",
)  # fmt: skip
QUANTITIES = {
    "turns": "turns per session",
    "first_prompt_tokens": "prompt of the first turn",
    "final_prompt_tokens": "prompt of the last turn",
    "total_prompt_tokens": "prompt tokens per session, sub-agents included",
    "total_output_tokens": "output tokens per session, sub-agents included",
    "session_tool_s": "tool wait per session (the slowest call of each turn)",
    "new_input_tokens": "new prompt tokens per turn after the first",
    "output_tokens": "output per turn",
    "result_tokens": "tool-result tokens per turn that calls tools",
    "context_growth_tokens": "prompt growth from turn to turn, where it grows",
    "compaction_tokens": "prompt shrinkage from turn to turn, where it shrinks",
    "tool_calls": "tool calls per turn",
    "tool_wait_s": "slowest tool call of a turn",
    "gap_s": "time from a turn's end to the next turn (tool wait and idle time)",
    "think_s": "idle time after a turn's tools, where there is any",
    "subagent_turns": "turns per sub-agent session",
}
"""Name -> meaning; ``tool_wall_s[CLASS]`` (one call) is added for each tool class found."""


class SampledValues:
    """Keeps the values of one quantity in bounded memory, in a reservoir (Li 1994, algorithm L)."""

    def __init__(self, rng: np.random.Generator, max_values: int = MAX_VALUES) -> None:
        self.num = 0
        self.total = 0.0
        self._values = array("d")
        self._rng = rng
        self._max_values = max_values
        self._weight = 1.0
        self._next = max_values
        """Number of the next value that enters the full reservoir."""

    def add(self, value: float) -> None:
        self.num += 1
        self.total += value
        if self.num <= self._max_values:
            self._values.append(value)
            if self.num == self._max_values:
                self._skip()
        elif self.num == self._next:
            self._values[int(self._rng.integers(self._max_values))] = value
            self._skip()

    def _skip(self) -> None:
        """Draw how many values pass by, so that the generator is called once per kept value only."""
        uniform = 1.0 - self._rng.random(2)  # (0, 1]
        self._weight *= math.exp(math.log(uniform[0]) / self._max_values)
        self._next += 1
        if self._weight < 1.0:
            self._next += int(math.log(uniform[1]) / math.log1p(-self._weight))

    def values(self) -> NDArray[np.float64]:
        """Return the kept values, which are all of them if ``num`` is at most the limit."""
        return np.frombuffer(self._values, dtype=np.float64).copy()

    def summary(self) -> dict[str, float]:
        """Return n, mean and percentiles (linear interpolation), or n alone if there are no values."""
        if not self.num:
            return {"n": 0}
        points = np.percentile(self.values(), PERCENTILES)
        named = {f"p{p}": float(point) for p, point in zip(PERCENTILES, points, strict=True)}
        return {"n": self.num, "mean": self.total / self.num, **named}


@dataclass(slots=True)
class TraceStats:
    """Holds everything that ``trace stats`` prints."""

    provenance: dict[str, str] = field(default_factory=dict)
    """Field -> "recorded", "derived: how", "assumed: what", "not stated" (it occurs, the source
    does not say how it is known) or "absent"."""
    num_sessions: int = 0
    num_subagents: int = 0
    num_turns: int = 0
    num_tool_calls: int = 0
    num_tool_errors: int = 0
    num_compactions: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    left_out: int = 0
    """Sessions, lines and files that could not be read (see ``faults.Faults``)."""
    repaired: int = 0
    """Negative numbers that were read as zero."""
    distributions: dict[str, SampledValues] = field(default_factory=dict)

    @property
    def theoretical_prefix_cache_hit_rate(self) -> float:
        """Return reused tokens ÷ prompt tokens as if nothing were ever evicted, counted token by token."""
        return self.reused_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "sessions": self.num_sessions,
            "subagents": self.num_subagents,
            "turns": self.num_turns,
            "tool_calls": self.num_tool_calls,
            "tool_errors": self.num_tool_errors,
            "compactions": self.num_compactions,
            "left_out": self.left_out,
            "repaired": self.repaired,
            "prompt_tokens": self.prompt_tokens,
            "theoretical_prefix_cache_hit_rate": self.theoretical_prefix_cache_hit_rate,
            "provenance": self.provenance,
            "quantities": {name: d.summary() for name, d in self.distributions.items()},
        }


@dataclass(frozen=True, slots=True)
class Distance:
    """Says how far two traces are apart in one quantity."""

    quantity: str
    num: int
    num_against: int
    p50: float
    p50_against: float
    ks: float
    """Two-sample Kolmogorov-Smirnov distance: 0 = the same distribution, 1 = disjoint."""


def collect_stats(
    sessions: Iterable[Session],
    provenance: Mapping[str, str],
    *,
    seed: int = 0,
    max_values: int = MAX_VALUES,
) -> TraceStats:
    """Read a trace once and count; ``seed`` matters only for a quantity that is sampled."""
    return _Collector(provenance, np.random.default_rng(seed), max_values).run(sessions)


def compare_stats(stats: TraceStats, against: TraceStats) -> list[Distance]:
    """Return the distance of each quantity that both traces have, in the order of QUANTITIES."""
    from scipy.stats import ks_2samp

    rows = []
    for name, mine in stats.distributions.items():
        other = against.distributions.get(name)
        if other is None or not mine.num or not other.num:
            continue
        a, b = mine.values(), other.values()
        with np.errstate(all="ignore"):  # its p-value divides by zero where samples are disjoint
            ks = float(ks_2samp(a, b, method="asymp").statistic)
        p50, p50_against = float(np.median(a)), float(np.median(b))
        rows.append(Distance(name, mine.num, other.num, p50, p50_against, ks))
    return rows


class _Collector:
    def __init__(
        self, provenance: Mapping[str, str], rng: np.random.Generator, max_values: int
    ) -> None:
        self._rng = rng
        self._max_values = max_values
        self._prefix_tokens: dict[str, int] = {}
        self._provenance = dict(provenance)
        self._occurring: set[str] = set()
        self.stats = TraceStats()
        for name in QUANTITIES:
            self._distribution(name)

    def run(self, sessions: Iterable[Session]) -> TraceStats:
        for session in sessions:
            self._add_session(session)
        for name in FIELDS:
            default = "not stated" if name in self._occurring else "absent"
            self.stats.provenance[name] = self._provenance.pop(name, default)
        self.stats.provenance.update(self._provenance)
        return self.stats

    def _add_session(self, session: Session) -> None:
        self.stats.num_sessions += 1
        before = self.stats.prompt_tokens
        plans, tool_s = self._add_turns(session)
        self._add("turns", len(session.turns))
        self._add("first_prompt_tokens", plans[0].prompt_tokens)
        self._add("final_prompt_tokens", plans[-1].prompt_tokens)
        self._add("total_prompt_tokens", self.stats.prompt_tokens - before)
        self._add("total_output_tokens", sum(t.output_tokens for t in _turns(session)))
        self._add("session_tool_s", tool_s)

    def _add_turns(self, session: Session) -> tuple[list[TurnPlan], float]:
        """Count a session's turns and return their plans and the sum of their tool waits."""
        self._occurring.update(_occurring(session))
        plans = plan_turns(session)
        previous = None
        tool_s = 0.0
        for index, (turn, plan) in enumerate(zip(session.turns, plans, strict=True)):
            self.stats.num_turns += 1
            self.stats.prompt_tokens += plan.prompt_tokens
            reused = plan.reused_tokens
            if index == 0:
                reused = min(reused, self._see_prefix(session))
            else:
                self._add("new_input_tokens", turn.new_input_tokens)
            self.stats.reused_tokens += reused
            self.stats.num_compactions += turn.drop_context_to is not None
            wait_s = self._add_turn(turn)
            tool_s += wait_s
            if index < len(plans) - 1:
                self._add("gap_s", wait_s + turn.think_s)
            if previous is not None:
                growth = plan.prompt_tokens - previous
                name = "context_growth_tokens" if growth > 0 else "compaction_tokens"
                if growth:
                    self._add(name, abs(growth))
            previous = plan.prompt_tokens
        return plans, tool_s

    def _add_turn(self, turn: Turn) -> float:
        """Count a turn and the sub-agents that it starts, and return its tool wait."""
        self._add("output_tokens", turn.output_tokens)
        self._add("tool_calls", len(turn.tools))
        self.stats.num_tool_calls += len(turn.tools)
        wait_s = 0.0
        if turn.tools:
            wait_s = max(tool.wall_s for tool in turn.tools)
            self._add("tool_wait_s", wait_s)
        results = [t.result_tokens for t in turn.tools if t.result_tokens is not None]
        if results:
            self._add("result_tokens", sum(results))
        for tool in turn.tools:
            self.stats.num_tool_errors += tool.error
            self._add(f"tool_wall_s[{tool.tool_class}]", tool.wall_s)
        if turn.think_s:
            self._add("think_s", turn.think_s)
        for child in turn.children:
            self.stats.num_subagents += 1
            self._add("subagent_turns", len(child.turns))
            self._add_turns(child)
        return wait_s

    def _see_prefix(self, session: Session) -> int:
        """Return how many tokens of a session's shared prefix an earlier session has already sent."""
        prefix = session.shared_prefix
        if prefix is None:
            return 0
        seen = self._prefix_tokens.get(prefix.prefix_id, 0)
        self._prefix_tokens[prefix.prefix_id] = max(seen, prefix.tokens)
        return seen

    def _add(self, name: str, value: float) -> None:
        self._distribution(name).add(value)

    def _distribution(self, name: str) -> SampledValues:
        found = self.stats.distributions.get(name)
        if found is None:
            found = SampledValues(self._rng, self._max_values)
            self.stats.distributions[name] = found
        return found


def _occurring(session: Session) -> Iterator[str]:
    """Yield the names in FIELDS for which a session has a value; its sub-agents are not looked at."""
    yield from ("new_input_tokens", "output_tokens", "resent_output")
    if session.agent:
        yield "agent"
    if session.model:
        yield "model"
    if session.arrival_s is not None:
        yield "arrival_s"
    if session.shared_prefix is not None:
        yield "shared_prefix"
    for turn in session.turns:
        if turn.drop_context_to is not None:
            yield "drop_context_to"
        if turn.kept_prefix_tokens is not None:
            yield "kept_prefix_tokens"
        if turn.think_s:
            yield "think_s"
        if turn.children:
            yield "children"
        for tool in turn.tools:
            yield from ("tools.name", "tools.class", "tools.wall_s")
            if tool.cpu_s is not None:
                yield "tools.cpu_s"
            if tool.cores != 1.0:
                yield "tools.cores"
            if tool.result_tokens is not None:
                yield "tools.result_tokens"
            if tool.error:
                yield "tools.error"


def _turns(session: Session) -> Iterator[Turn]:
    for turn in session.turns:
        yield turn
        for child in turn.children:
            yield from _turns(child)
