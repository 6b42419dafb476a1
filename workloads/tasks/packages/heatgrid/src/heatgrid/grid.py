"""A rectangle of integer temperatures with a fixed border."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass
class Grid:
    """Rows of equal length, in thousandths of a degree."""

    rows: list[list[int]]

    @classmethod
    def random(cls, width: int, height: int, seed: int) -> Grid:
        """Some grid, the same for a seed."""
        draw = random.Random(seed)
        return cls([[draw.randrange(100_000) for _ in range(width)] for _ in range(height)])

    @property
    def width(self) -> int:
        return len(self.rows[0])

    @property
    def height(self) -> int:
        return len(self.rows)

    def total(self) -> int:
        """All heat."""
        return sum(map(sum, self.rows))

    def hottest(self) -> tuple[int, int]:
        """Row and column of the first cell with the highest temperature."""
        best = (0, 0)
        for y, row in enumerate(self.rows):
            for x, value in enumerate(row):
                if value > self.rows[best[0]][best[1]]:
                    best = (y, x)
        return best
