"""Online estimates: context growth, tool gaps, and what sessions of a class turn out to need.

No workload's constants: each starts from a broad prior and learns from finished turns, calls and
sessions of this run only.
"""

from __future__ import annotations

import math
from collections import deque

PRIOR_S_PER_TOKEN = 0.01
"""Expected duration of a session per token of its first prompt, before any session has ended."""


class Growth:
    """Context growth per turn, tokens: exponentially weighted over all sessions."""

    def __init__(self) -> None:
        self.mean = 800.0
        self._count = 0

    def observe(self, tokens: int) -> None:
        """The prompt grew by so much from one turn to the next (compaction counts as 0)."""
        self._count += 1
        weight = max(1.0 / (self._count + 5), 0.005)
        self.mean += weight * (max(tokens, 0) - self.mean)


class GapModel:
    """Durations of tool calls: log-normal, all tools together, shrunk towards it per tool.

    A tool's own mean counts as much as its samples against ``prior`` pseudo-samples of the
    global one, because names alone predict poorly out of fold.
    """

    def __init__(self, prior: float) -> None:
        self._prior = prior
        self._all = _LogMoments(mean=0.0, second=4.0, count=2.0)
        self._tools: dict[str, _LogMoments] = {}

    def observe(self, name: str, seconds: float) -> None:
        """A call of this tool took so long."""
        value = math.log(max(seconds, 1e-3))
        self._all.add(value)
        own = self._tools.get(name)
        if own is None:
            own = self._tools[name] = _LogMoments()
        own.add(value)

    def _parameters(self, name: str) -> tuple[float, float]:
        """Mean and standard deviation of the log duration."""
        mean, variance = self._all.mean, self._all.variance
        own = self._tools.get(name)
        if own is not None:
            share = own.count / (own.count + self._prior)
            mean += share * (own.mean - mean)
            variance += share * (own.variance - variance)
        return mean, math.sqrt(max(variance, 0.05))

    def expected_s(self, name: str) -> float:
        """Median duration, seconds: robust where the mean is ruled by a rare timeout."""
        return math.exp(self._parameters(name)[0])

    def remaining_s(self, name: str, elapsed_s: float) -> float:
        """Expected rest of a call that has run for ``elapsed_s`` (log-normal, capped at 10 min)."""
        mu, sigma = self._parameters(name)
        if elapsed_s <= 1e-3:
            return min(math.exp(mu + sigma * sigma / 2), 600.0)
        z = (math.log(elapsed_s) - mu) / sigma
        survive = _tail(z)
        if survive < 1e-9:
            return min(elapsed_s, 600.0)
        partial = math.exp(mu + sigma * sigma / 2) * _tail(z - sigma)
        return min(max(partial / survive - elapsed_s, 0.0), 600.0)


class ClassModel:
    """What finished sessions needed, by class; the class is the size of the first prompt.

    Half-octave buckets of the first prompt tell agents and tasks apart without any hint from the
    client. A class with few members borrows from all sessions.
    """

    def __init__(self, history: int) -> None:
        self._history = history
        self._all: deque[_Finished] = deque(maxlen=history)
        self._classes: dict[int, deque[_Finished]] = {}
        self._remaining: dict[tuple[int, int], float] = {}
        """Answers of ``remaining_turns`` since the last session ended."""

    @staticmethod
    def key(first_prompt: int) -> int:
        """Class of a session."""
        return round(2 * math.log2(max(first_prompt, 1)))

    def observe(self, first_prompt: int, *, turns: int, private: int, active_s: float) -> None:
        """A session has ended."""
        done = _Finished(turns, private, active_s)
        self._remaining.clear()
        self._all.append(done)
        key = self.key(first_prompt)
        if key not in self._classes:
            self._classes[key] = deque(maxlen=self._history)
        self._classes[key].append(done)

    def _members(self, first_prompt: int) -> deque[_Finished]:
        own = self._classes.get(self.key(first_prompt))
        return own if own is not None and len(own) >= 5 else self._all

    def remaining_turns(self, first_prompt: int, turns: int) -> float:
        """Expected further turns of a session that has had ``turns``."""
        key = (self.key(first_prompt), turns)
        answer = self._remaining.get(key)
        if answer is None:
            left = [m.turns - turns for m in self._members(first_prompt) if m.turns > turns]
            answer = sum(left) / len(left) if len(left) >= 3 else max(30.0 - turns, 10.0)
            self._remaining[key] = answer
        return answer

    def active_s(self, first_prompt: int) -> float:
        """Expected time from admission to end of a session of this class, seconds."""
        own = self._classes.get(self.key(first_prompt))
        everyone = self._all
        if not everyone:
            return PRIOR_S_PER_TOKEN * first_prompt
        overall = sum(m.active_s for m in everyone) / len(everyone)
        if not own:
            return overall
        return (sum(m.active_s for m in own) + 5 * overall) / (len(own) + 5)


class _Finished:
    __slots__ = ("active_s", "private", "turns")

    def __init__(self, turns: int, private: int, active_s: float) -> None:
        self.turns = turns
        self.private = private
        self.active_s = active_s


class _LogMoments:
    """Running mean and variance (Welford)."""

    __slots__ = ("_second", "count", "mean")

    def __init__(self, mean: float = 0.0, second: float = 0.0, count: float = 0.0) -> None:
        self.mean = mean
        self._second = second
        self.count = count

    def add(self, value: float) -> None:
        self.count += 1
        delta = value - self.mean
        self.mean += delta / self.count
        self._second += delta * (value - self.mean)

    @property
    def variance(self) -> float:
        return self._second / self.count if self.count > 1 else 1.0


def _tail(z: float) -> float:
    """P(Z > z) of a standard normal."""
    return 0.5 * math.erfc(z / math.sqrt(2.0))
