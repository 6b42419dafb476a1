"""One field of a crontab line as a set of numbers."""

from __future__ import annotations

from dataclasses import dataclass


class FieldError(ValueError):
    """A field that means nothing."""


@dataclass(frozen=True)
class Range:
    """What a field may hold."""

    name: str
    first: int
    last: int
    words: tuple[str, ...] = ()


MINUTE = Range("minute", 0, 59)
HOUR = Range("hour", 0, 23)
DAY = Range("day", 1, 31)
MONTH = Range(
    "month",
    1,
    12,
    ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"),
)
WEEKDAY = Range("weekday", 0, 6, ("sun", "mon", "tue", "wed", "thu", "fri", "sat"))


def parse_field(text: str, within: Range) -> frozenset[int]:
    """The numbers of a field such as ``1-5,10`` or ``*/15``."""
    found: set[int] = set()
    for part in text.lower().split(","):
        body, slash, step_text = part.partition("/")
        step = _number(step_text, within) if slash else 1
        if step < 1:
            raise FieldError(f"{within.name}: step {step_text!r}")
        if body == "*":
            first, last = within.first, within.last
        elif "-" in body:
            low, _, high = body.partition("-")
            first, last = _number(low, within), _number(high, within)
        else:
            first = _number(body, within)
            last = within.last if slash else first
        if not within.first <= first <= last <= within.last:
            raise FieldError(f"{within.name}: {part!r} is not within {within.first}-{within.last}")
        found.update(range(first, last + 1, step))
    return frozenset(found)


def _number(text: str, within: Range) -> int:
    if text in within.words:
        return within.words.index(text) + within.first
    if not text.isdigit():
        raise FieldError(f"{within.name}: {text!r} is no number")
    return int(text)
