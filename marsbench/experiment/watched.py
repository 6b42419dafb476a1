"""Policy parameters that note which of them are read, so that one nobody reads is a mistake."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class WatchedParams(dict[str, float]):
    """Policy parameters that note which names are asked for."""

    def __init__(self, params: Mapping[str, float]) -> None:
        super().__init__(params)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> float:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """Return a value as any dict does, and note that the name was read."""
        self.read.add(name)
        return super().get(name, default)

    def items(self) -> Any:
        """Return all items, and note all names as read: whoever goes through them checks the names
        itself.
        """
        self.read.update(self)
        return super().items()
