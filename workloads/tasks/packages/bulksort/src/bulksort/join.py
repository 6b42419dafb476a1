"""Joining two sorted tables in one pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

Pair = tuple[int, int]


def merge_join(left: Iterable[Pair], right: Iterable[Pair]) -> Iterator[tuple[int, int, int]]:
    """Key, left value and right value of all pairs with equal keys."""
    lefts = groupby(left, key=lambda pair: pair[0])
    rights = groupby(right, key=lambda pair: pair[0])
    one = next(lefts, None)
    other = next(rights, None)
    while one is not None and other is not None:
        if one[0] < other[0]:
            one = next(lefts, None)
        elif one[0] > other[0]:
            other = next(rights, None)
        else:
            values = [pair[1] for pair in other[1]]
            for key, value in one[1]:
                for partner in values:
                    yield key, value, partner
            one = next(lefts, None)
            other = next(rights, None)
