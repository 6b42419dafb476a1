"""Count, mean, spread and extremes in one pass (Welford), and of two parts together (Chan)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf, sqrt


@dataclass
class Summary:
    """What is known of the values so far."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of squared distances from the mean."""
    low: float = inf
    high: float = -inf

    def add(self, value: float) -> None:
        """Take in a value."""
        self.count += 1
        distance = value - self.mean
        self.mean += distance / self.count
        self.squares += distance * (value - self.mean)
        self.low = min(self.low, value)
        self.high = max(self.high, value)

    def extend(self, values: Iterable[float]) -> None:
        """Take in many."""
        for value in values:
            self.add(value)

    def joined(self, other: Summary) -> Summary:
        """The summary of both parts."""
        count = self.count + other.count
        if count == 0:
            return Summary()
        distance = other.mean - self.mean
        return Summary(
            count,
            self.mean + distance * other.count / count,
            self.squares + other.squares + distance**2 * self.count * other.count / count,
            min(self.low, other.low),
            max(self.high, other.high),
        )

    @property
    def deviation(self) -> float:
        """Standard deviation of a sample."""
        return sqrt(self.squares / (self.count - 1)) if self.count > 1 else 0.0
