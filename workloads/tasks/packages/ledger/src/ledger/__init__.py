"""Double-entry bookkeeping in whole cents."""

from ledger.journal import Entry, Journal, Posting, UnbalancedError
from ledger.money import Money, split

__all__ = ["Entry", "Journal", "Money", "Posting", "UnbalancedError", "split"]
