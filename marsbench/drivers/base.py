"""Protocol of drivers."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from marsbench.engine.kind import Opening, Value
from marsbench.engine.plan import Engine


class Driver(Protocol):
    """Makes sessions act around an engine. Made once for an experiment, with its parameters."""

    def __init__(self, params: Mapping[str, Value]) -> None:
        """ConfigError, in one line, for a parameter that is not one or cannot work here."""
        ...

    def around(self, engine: Engine, opening: Opening) -> AbstractContextManager[Engine]:
        """What runs the cells: plans go in, events come out, the sessions act as this driver has it.

        ``engine`` is open and stays so for as long as the result is. ConfigError if this driver
        cannot work with it.
        """
        ...
