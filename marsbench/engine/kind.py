"""What the rest of the suite must know of an engine before it runs, and how to open one.

Nothing else in marsbench asks which engine it deals with: where engines differ, they answer here.
Importing this module imports no engine.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from marsbench.errors import EngineError
from marsbench.extras import require

if TYPE_CHECKING:
    from marsbench.engine.base import EngineConfig
    from marsbench.engine.plan import Engine
    from marsbench.engine.virtual import CoreFactory

Value = bool | int | float | str


@dataclass(frozen=True, slots=True)
class Opening:
    """What an engine is told when it is opened for an experiment."""

    run_id: str = ""
    """Runs of different names share no content in a server's cache."""
    log_folder: Path | None = None
    """Where servers leave their logs; None: nowhere that lasts."""
    note: Callable[[str], None] = lambda _text: None
    """Told what takes long, one line each."""


class EngineKind(Protocol):
    """An engine as ``--engine`` names it: what it is for, and how it is checked and opened."""

    @property
    def summary(self) -> str:
        """One line for ``marsbench list``."""
        ...

    @property
    def ideal_engine(self) -> str:
        """Engine that a session's ideal latency is measured on; empty: this one. On a server each
        session alone would take its time on the wall, so the profile's simulation stands for it.
        """
        ...

    @property
    def defaults(self) -> Mapping[str, Value]:
        """Engine flags that are not the profile's here unless a system or the user says so."""
        ...

    @property
    def has_replicas(self) -> bool:
        """Several of it can stand behind one front door (``--replicas``)."""
        ...

    @property
    def one_at_a_time(self) -> bool:
        """Its cells share something, so they run one after the other in one process."""
        ...

    @property
    def runs_real_tools(self) -> bool:
        """Tools can really run beside it, because its time is the wall's."""
        ...

    @property
    def has_steps(self) -> bool:
        """Its steps can be watched one by one, and are the same in every run of a cell."""
        ...

    def flags(self, params: Mapping[str, Value]) -> Mapping[str, Value]:
        """Return the engine flags among ``engine.params``, without what only says where a server
        is.
        """
        ...

    def check(self, params: Mapping[str, Value], config: EngineConfig) -> None:
        """Raise EngineError for flags with which the engine would not start. Asked before any
        simulation.
        """
        ...

    def open(self, params: Mapping[str, Value], opening: Opening) -> Engine:
        """Make the engine; ConfigError or EngineError, in one line, if it cannot run here."""
        ...


@dataclass(frozen=True, slots=True)
class VirtualTime:
    """An engine core in virtual time, in this interpreter or in one that has its package."""

    summary: str
    core: str
    """Dotted path of the ``engine.base.EngineCore`` class."""
    package: str = ""
    """Python package it needs; empty: none but ours."""
    one_configuration: bool = False
    """A process can hold one configuration of the package only."""
    defaults: Mapping[str, Value] = field(default_factory=dict)
    ideal_engine: str = ""
    has_replicas: bool = False
    one_at_a_time: bool = False
    runs_real_tools: bool = False
    has_steps: bool = True

    def flags(self, params: Mapping[str, Value]) -> Mapping[str, Value]:
        """Return all flags: nothing in virtual time says where a server is."""
        return params

    def check(self, params: Mapping[str, Value], config: EngineConfig) -> None:
        """Accept all flags, since a core takes every one of them."""

    def core_class(self) -> CoreFactory:
        """Return the class of the core itself, to watch its steps; EngineError if this interpreter
        lacks its package.
        """
        try:
            found: CoreFactory = attribute(self.core)
        except ImportError as error:
            raise EngineError(
                f"single steps can be watched in this process only, and {self.package} is not "
                f"installed here ({error}); run this command with the interpreter that has it"
            ) from error
        return found

    def open(self, params: Mapping[str, Value], opening: Opening) -> Engine:
        """Open the core in this process, or in a child that runs the interpreter with its package."""
        from marsbench.engine.interpreters import available, find_python
        from marsbench.engine.virtual import VirtualEngine

        if not self.package or (available(self.package) and not self.one_configuration):
            return VirtualEngine(attribute(self.core))
        from marsbench.engine.elsewhere import Elsewhere

        return Elsewhere(
            self.core, str(find_python(self.package)), one_configuration=self.one_configuration
        )


@dataclass(frozen=True, slots=True)
class ServerEngine:
    """A real server on the wall clock."""

    summary: str
    server: str
    """Dotted path of the ``engine.live.kinds.base.ServerKind`` class."""
    defaults: Mapping[str, Value] = field(default_factory=dict)
    ideal_engine: str = "sim"
    has_replicas: bool = False
    one_at_a_time: bool = True
    runs_real_tools: bool = True
    has_steps: bool = False

    def flags(self, params: Mapping[str, Value]) -> Mapping[str, Value]:
        """Return the flags that are no option of the server's start or address."""
        from marsbench.engine.live.options import split_options

        return split_options(params)[1]

    def check(self, params: Mapping[str, Value], config: EngineConfig) -> None:
        """Raise an error for flags for which a server that is started here would have no command
        line.
        """
        from marsbench.engine.live.kinds.base import Launch
        from marsbench.engine.live.options import split_options

        options = split_options(params)[0]
        if not options.url:
            attribute(self.server)().command(Launch(Path("python"), "model", config, options, 0))

    def open(self, params: Mapping[str, Value], opening: Opening) -> Engine:
        """Open the engine; the server itself is started when the first cell asks for it."""
        require("live", "an engine on a real server")
        from marsbench.engine.live.engine import LiveEngine
        from marsbench.engine.live.options import split_options

        engine: Engine = LiveEngine(attribute(self.server)(), split_options(params)[0], opening)
        return engine


def attribute(path: str) -> Any:
    """Import the module of a dotted path and return the class, or other object, at its end."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)
