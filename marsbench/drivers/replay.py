"""Recorded sessions, replayed by the engine itself (``marsbench.engine.replay``)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

from marsbench.engine.kind import Opening, Value
from marsbench.engine.plan import Engine
from marsbench.errors import ConfigError


class Replaying:
    """The ``drivers.base.Driver`` that adds nothing."""

    def __init__(self, params: Mapping[str, Value]) -> None:
        """Take no parameters, for there are none."""
        if params:
            raise ConfigError(f"driver.params: driver replay has none, got {min(params)!r}")

    def around(self, engine: Engine, opening: Opening) -> AbstractContextManager[Engine]:
        """Return the engine as it is."""
        return nullcontext(engine)
