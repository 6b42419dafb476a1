"""Online estimates: context growth, tool gaps, and what sessions of a class turn out to need.

No workload's constants: each starts from a broad prior and learns from finished turns, calls and
sessions of this run only.
"""

from __future__ import annotations

import bisect
import math
from collections import deque
from functools import lru_cache

from marsbench.core import PolicyContext

PRIOR_S_PER_TOKEN = 0.01
"""Expected duration of a session per token of its first prompt, before any session has ended."""

TOOL_PRIOR_CALLS = 30.0
"""So many calls of a tool weigh as much as all tools together; worth less than 0.5 %."""
CLASS_HISTORY = 64
"""Finished sessions remembered per class; half or twice as many are worth 0.1 % over all cells."""


def reload_s(tokens: int, context: PolicyContext) -> float:
    """Return the seconds it takes to compute a context of so many tokens again."""
    return context.prefill_s(tokens, tokens)


def turn_s(prefilled: int, prompt: int, output: int, context: PolicyContext) -> float:
    """Return the seconds of a turn alone in the engine: the last ``prefilled`` tokens of the
    prompt, then decoding.
    """
    return context.prefill_s(prefilled, prompt) + output * context.decode_step_s


class Growth:
    """Context growth per turn, tokens: exponentially weighted over all sessions."""

    def __init__(self) -> None:
        self.mean = 800.0
        self._count = 0
        self._weight = 0.0

    def observe(self, tokens: int) -> None:
        """Learn that the prompt grew by so much from one turn to the next (compaction counts
        as 0).
        """
        self._count += 1
        self._weight = max(1.0 / (self._count + 5), 0.005)
        self.mean += self._weight * (max(tokens, 0) - self.mean)

    def revise(self, told: int, tokens: int) -> None:
        """Correct an observation of a moment ago: not ``told``, but ``tokens``."""
        self.mean += self._weight * (max(tokens, 0) - max(told, 0))


class GapModel:
    """Durations of tool calls: median of a log-normal, shrunk per tool towards that of all tools.

    A tool's own mean counts as much as its samples against ``prior`` pseudo-samples of the
    global one, because names alone predict poorly out of fold.
    """

    def __init__(self, prior: float = TOOL_PRIOR_CALLS) -> None:
        self._prior = prior
        self._all = _Mean(0.0, 2.0)
        self._tools: dict[str, _Mean] = {}

    def observe(self, name: str, seconds: float) -> None:
        """Learn that a call of this tool took so long."""
        value = math.log(max(seconds, 1e-3))
        self._all.add(value)
        self._tools.setdefault(name, _Mean()).add(value)

    def expected_s(self, name: str) -> float:
        """Return the median duration of a tool's calls, seconds, which a rare timeout does not rule
        as it rules the mean.
        """
        mean = self._all.value
        own = self._tools.get(name)
        if own is not None:
            mean += own.count / (own.count + self._prior) * (own.value - mean)
        return math.exp(mean)


class ToolWaits:
    """Times that sessions waited for their tools: the last few hundred turns, as they were.

    Kept as an empirical distribution because tool times are heavy-tailed and often of two kinds
    (listings and test suites), which no fitted curve tells apart.
    """

    def __init__(self, size: int = 512) -> None:
        self._size = size
        self._recent: deque[float] = deque()
        self._ordered: list[float] = []

    def observe(self, seconds: float) -> None:
        """Learn that a session was back after so long."""
        if len(self._recent) == self._size:
            oldest = self._recent.popleft()
            del self._ordered[bisect.bisect_left(self._ordered, oldest)]
        self._recent.append(seconds)
        bisect.insort(self._ordered, seconds)

    def outlasts(self, elapsed_s: float, span_s: float) -> float:
        """Return the probability that a wait of ``elapsed_s`` so far lasts ``span_s`` longer.

        It is 1 when no wait has been seen to last so long: nothing tells that it ends soon.
        """
        total = len(self._ordered)
        longer = total - bisect.bisect_right(self._ordered, elapsed_s)
        if not longer:
            return 1.0
        return (total - bisect.bisect_right(self._ordered, elapsed_s + span_s)) / longer


class ClassModel:
    """What finished sessions needed, by class; the class is the size of the first prompt.

    Half-octave buckets of the first prompt tell agents and tasks apart without any hint from the
    client. A class with few members borrows from all sessions.
    """

    def __init__(self, history: int = CLASS_HISTORY) -> None:
        self._history = history
        self._all: deque[_Finished] = deque(maxlen=history)
        self._classes: dict[int, deque[_Finished]] = {}
        # What was answered since the last session ended.
        self._remaining: dict[tuple[int, int], float] = {}
        self._left: dict[tuple[int, int], float] = {}
        self._active: dict[int, float] = {}
        self._alone: dict[int, float] = {}
        self._shared: dict[tuple[int, int], int] = {}

    @staticmethod
    @lru_cache(maxsize=4096)
    def key(first_prompt: int) -> int:
        """Return the class of a session."""
        return round(2 * math.log2(max(first_prompt, 1)))

    def observe(
        self,
        first_prompt: int,
        *,
        turns: int,
        private: int,
        active_s: float,
        alone_s: float = 0.0,
    ) -> None:
        """Learn from a session that ended so long after its admission; alone it would have taken
        ``alone_s``.
        """
        done = _Finished(turns, private, active_s, alone_s)
        for answers in (self._remaining, self._left, self._active, self._alone):
            answers.clear()
        self._all.append(done)
        key = self.key(first_prompt)
        if key not in self._classes:
            self._classes[key] = deque(maxlen=self._history)
        self._classes[key].append(done)

    def observe_shared(self, first_prompt: int, turn: int, tokens: int) -> None:
        """Learn how many leading tokens of a session's prompt others had computed at this turn."""
        self._shared[self.key(first_prompt), turn] = tokens

    def shared(self, first_prompt: int, turn: int) -> int:
        """Return how many leading tokens the last session of the class shared with others at this
        turn; 0 where none has told.
        """
        return self._shared.get((self.key(first_prompt), turn), 0)

    def _members(self, first_prompt: int) -> deque[_Finished]:
        own = self._classes.get(self.key(first_prompt))
        return own if own is not None and len(own) >= 5 else self._all

    def remaining_turns(self, first_prompt: int, turns: int) -> float:
        """Return the expected further turns of a session that has had ``turns``: at least one."""
        answer = self._remaining.get((first_prompt, turns))
        if answer is None:
            left = [m.turns - turns for m in self._members(first_prompt) if m.turns > turns]
            answer = sum(left) / len(left) if len(left) >= 3 else max(30.0 - turns, 10.0)
            self._remaining[first_prompt, turns] = answer
        return answer

    def left_s(self, first_prompt: int, turns: int) -> float:
        """Return the expected time to the end, seconds, of a session that has had ``turns``
        turns.
        """
        answer = self._left.get((first_prompt, turns))
        if answer is None:
            answer = self._share(first_prompt, turns) * self.active_s(first_prompt)
            self._left[first_prompt, turns] = answer
        return answer

    def active_s(self, first_prompt: int) -> float:
        """Return the expected time from admission to end of a session of this class, seconds."""
        answer = self._active.get(first_prompt)
        if answer is None:
            answer = self._active[first_prompt] = self._mean(
                first_prompt, "active_s", PRIOR_S_PER_TOKEN * first_prompt
            )
        return answer

    def alone_left_s(self, first_prompt: int, turns: int) -> float:
        """Return the same as ``left_s`` with nobody else about; infinite before any session has
        ended.
        """
        answer = self._alone.get(first_prompt)
        if answer is None:
            answer = self._alone[first_prompt] = self._mean(first_prompt, "alone_s", math.inf)
        return self._share(first_prompt, turns) * answer

    def _share(self, first_prompt: int, turns: int) -> float:
        """Share of its turns that a session that has had ``turns`` is expected to have before it."""
        whole = self.remaining_turns(first_prompt, 0)
        return min(self.remaining_turns(first_prompt, turns) / max(whole, 1.0), 1.0)

    def _mean(self, first_prompt: int, what: str, unknown: float) -> float:
        """Over the class, to which all sessions together add five."""
        if not self._all:
            return unknown
        own = self._classes.get(self.key(first_prompt), ())
        overall = sum(getattr(m, what) for m in self._all) / len(self._all)
        return float((sum(getattr(m, what) for m in own) + 5 * overall) / (len(own) + 5))


class _Finished:
    __slots__ = ("active_s", "alone_s", "private", "turns")

    def __init__(self, turns: int, private: int, active_s: float, alone_s: float) -> None:
        self.turns = turns
        self.private = private
        self.active_s = active_s
        self.alone_s = alone_s


class _Mean:
    """A running mean."""

    __slots__ = ("count", "value")

    def __init__(self, value: float = 0.0, count: float = 0.0) -> None:
        self.value = value
        self.count = count

    def add(self, value: float) -> None:
        self.count += 1
        self.value += (value - self.value) / self.count
