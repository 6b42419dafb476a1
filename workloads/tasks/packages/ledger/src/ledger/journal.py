"""Entries that balance, and what accounts hold after them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date

from ledger.money import Money


class UnbalancedError(ValueError):
    """The postings of an entry do not add up to zero."""


@dataclass(frozen=True)
class Posting:
    """One line of an entry."""

    account: str
    amount: Money


@dataclass(frozen=True)
class Entry:
    """What happened on one day."""

    day: date
    text: str
    postings: tuple[Posting, ...]

    def total(self) -> Money:
        total = Money(0)
        for posting in self.postings:
            total = total + posting.amount
        return total


@dataclass
class Journal:
    """All entries in order of their days."""

    entries: list[Entry] = field(default_factory=list)

    def add(self, entry: Entry) -> None:
        """Insert an entry behind those of the same day."""
        if entry.total() != Money(0):
            raise UnbalancedError(f"{entry.text}: off by {entry.total()}")
        at = len(self.entries)
        while at > 0 and self.entries[at - 1].day > entry.day:
            at -= 1
        self.entries.insert(at, entry)

    def between(self, first: date, last: date) -> Iterator[Entry]:
        """Entries of a period, both days included."""
        for entry in self.entries:
            if first <= entry.day <= last:
                yield entry

    def balances(self, until: date | None = None) -> dict[str, Money]:
        """What each account holds at the end of a day."""
        found: dict[str, Money] = defaultdict(lambda: Money(0))
        for entry in self.entries:
            if until is not None and entry.day > until:
                break
            for posting in entry.postings:
                found[posting.account] = found[posting.account] + posting.amount
        return {name: amount for name, amount in sorted(found.items()) if amount != Money(0)}
