"""Sums over groups of accounts."""

from __future__ import annotations

from collections.abc import Mapping

from ledger.money import Money


def by_prefix(balances: Mapping[str, Money], depth: int = 1) -> dict[str, Money]:
    """Sums of accounts whose names share their first ``depth`` parts."""
    found: dict[str, Money] = {}
    for name, amount in balances.items():
        parts = name.split(":")
        group = ":".join(parts[:depth])
        found[group] = found.get(group, Money(0)) + amount
    return found


def table(balances: Mapping[str, Money]) -> str:
    """Accounts and amounts in two columns, amounts to the right."""
    if not balances:
        return "(empty)"
    left = max(len(name) for name in balances)
    right = max(len(str(amount)) for amount in balances.values())
    lines = [f"{name:<{left}}  {amount!s:>{right}}" for name, amount in balances.items()]
    return "\n".join(lines)
