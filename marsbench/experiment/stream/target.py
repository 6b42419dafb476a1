"""Where the cells of a run send their events; plain data, for worker processes too."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from marsbench.errors import EngineError
from marsbench.records import EventLog
from marsbench.tables import CellKey


@dataclass(frozen=True, slots=True)
class Target:
    """The hub's inner address and what senders must know of the run."""

    address: str
    run_id: str
    live: bool
    """The cells run on the wall clock: nothing may make them wait."""
    patience_s: float


class StalledError(EngineError):
    """An observer does not read, and nothing may be dropped."""


def stalled(patience_s: float) -> StalledError:
    """Return the error that tells the user what to do about observers that do not keep up."""
    return StalledError(
        f"--stream: an observer has not read for {patience_s:g} s, and no event may be dropped; "
        "end the observer, or run without --stream"
    )


class CellStream(Protocol):
    """Takes the events of one cell."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def new_log(self) -> EventLog:
        """Make an empty log for one attempt; what is appended to it is sent."""
        ...

    def ended(self, log: EventLog) -> None:
        """Note that the attempt with this log has come to its end."""
        ...

    def done(self, log: EventLog) -> None:
        """Note that the cell is stored, with the events of this attempt."""
        ...


class Silent:
    """Takes a cell's events and sends nothing, where a run has no stream."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass

    def new_log(self) -> EventLog:
        return EventLog()

    def ended(self, log: EventLog) -> None:
        pass

    def done(self, log: EventLog) -> None:
        pass


def cell_stream(target: Target | None, index: int, key: CellKey) -> CellStream:
    """Open what takes the events of a cell; ``Silent`` if the run has no stream."""
    if target is None:
        return Silent()
    from marsbench.experiment.stream.cell import CellOutlet  # ZeroMQ only where it is used

    return CellOutlet(target, index, key)
