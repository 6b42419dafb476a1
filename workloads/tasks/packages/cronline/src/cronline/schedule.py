"""A whole line: five fields, and the next time they all fit."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from cronline.fields import DAY, HOUR, MINUTE, MONTH, WEEKDAY, FieldError, parse_field

LIMIT_YEARS = 8
"""Between two 29ths of February there can be eight years."""


@dataclass(frozen=True)
class Schedule:
    """When something is due."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    any_day: bool = True
    any_weekday: bool = True

    @classmethod
    def parse(cls, line: str) -> Schedule:
        """From a line such as ``0 9 * * mon``."""
        parts = line.split()
        if len(parts) != 5:
            raise FieldError(f"expected 5 fields, found {len(parts)}")
        sets = [
            parse_field(text, within)
            for text, within in zip(parts, (MINUTE, HOUR, DAY, MONTH, WEEKDAY))
        ]
        return cls(*sets, any_day=parts[2] == "*", any_weekday=parts[4] == "*")

    def due_on(self, moment: datetime) -> bool:
        """Whether the day fits: with both a day and a weekday given, one of them is enough."""
        if moment.month not in self.months:
            return False
        day = moment.day in self.days
        weekday = (moment.weekday() + 1) % 7 in self.weekdays
        if self.any_day or self.any_weekday:
            return day and weekday
        return day or weekday

    def next_after(self, moment: datetime) -> datetime | None:
        """The first time that fits after a moment; None if there is none in eight years."""
        at = moment.replace(second=0, microsecond=0) + timedelta(minutes=1)
        limit = at + timedelta(days=366 * LIMIT_YEARS)
        while at < limit:
            if not self.due_on(at):
                at = at.replace(hour=0, minute=0) + timedelta(days=1)
            elif at.hour not in self.hours:
                at = at.replace(minute=0) + timedelta(hours=1)
            elif at.minute not in self.minutes:
                at += timedelta(minutes=1)
            else:
                return at
        return None

    def upcoming(self, moment: datetime, count: int) -> list[datetime]:
        """The next times, at most ``count``."""
        found: list[datetime] = []
        while len(found) < count:
            following = self.next_after(found[-1] if found else moment)
            if following is None:
                break
            found.append(following)
        return found
