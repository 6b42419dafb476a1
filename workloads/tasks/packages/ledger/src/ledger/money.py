"""Amounts of money in whole cents."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Money:
    """An amount; negative = owed."""

    cents: int

    @classmethod
    def parse(cls, text: str) -> Money:
        """From text such as ``-12.30`` or ``7``."""
        sign = -1 if text.startswith("-") else 1
        whole, _, part = text.lstrip("+-").partition(".")
        if not whole.isdigit() or len(part) > 2 or (part and not part.isdigit()):
            raise ValueError(f"not an amount: {text!r}")
        return cls(sign * (int(whole) * 100 + int(part.ljust(2, "0"))))

    def __add__(self, other: Money) -> Money:
        return Money(self.cents + other.cents)

    def __sub__(self, other: Money) -> Money:
        return Money(self.cents - other.cents)

    def __neg__(self) -> Money:
        return Money(-self.cents)

    def __str__(self) -> str:
        sign = "-" if self.cents < 0 else ""
        whole, part = divmod(abs(self.cents), 100)
        return f"{sign}{whole}.{part:02d}"


def split(amount: Money, parts: int) -> list[Money]:
    """Shares that differ by at most a cent and add up to the amount."""
    if parts < 1:
        raise ValueError("at least one part")
    share, rest = divmod(amount.cents, parts)
    return [Money(share + 1) if index < rest else Money(share) for index in range(parts)]
