"""An append-only key-value store."""

from kvlog.store import Store

__all__ = ["Store"]
