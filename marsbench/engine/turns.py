"""Turns inside another project's scheduler, as policies see them.

vLLM's and SGLang's own requests can tell how a turn goes on (``max_tokens``, stop tokens), so no
policy is handed one. It gets an ``EngineTurn``, which holds numbers only; which request a turn
stands for is written in the engine's ``TurnBook``, to which no path leads from the turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, NamedTuple, Self, TypeVar, overload

from marsbench.core import to_s
from marsbench.engine.base import Request

NativeT = TypeVar("NativeT")
"""The engine's own kind of request."""


class TurnInfo(NamedTuple):
    """What a request says about the session it belongs to."""

    session: int
    turn_index: int
    session_arrival_s: float
    ready_s: float
    tool_names: tuple[str, ...] = ()
    is_last: bool = False

    @classmethod
    def of(cls, request: Request) -> Self:
        """Return what a request, as a driver makes it, says about its session."""
        return cls(
            request.session,
            request.turn_index,
            to_s(request.session_arrival_ps),
            to_s(request.ready_ps),
            request.tool_names,
            request.is_last,
        )


class EngineTurn:
    """A turn inside an engine (a ``scheduler.base.TurnView``), as it was when it was handed out."""

    __slots__ = (
        "computed_tokens",
        "generated_tokens",
        "key",
        "last_scheduled_s",
        "num_blocks",
        "num_preemptions",
        "prompt_tokens",
        "ready_s",
        "sequence",
        "session",
        "session_arrival_s",
        "turn_index",
    )

    def __init__(self, key: str, info: TurnInfo, sequence: int, prompt_tokens: int) -> None:
        self.key = key
        """What the engine calls the request; says nothing about it."""
        self.sequence = sequence
        self.prompt_tokens = prompt_tokens
        self.session, self.turn_index, self.session_arrival_s, self.ready_s = info[:4]
        self.last_scheduled_s = info.ready_s
        self.computed_tokens = 0
        self.generated_tokens = 0
        self.num_blocks = 0
        self.num_preemptions = 0


class TurnBook(Generic[NativeT]):
    """The turns in one scheduler, by request id, and which request each of them stands for."""

    def __init__(self, refresh: Callable[[EngineTurn, NativeT], None]) -> None:
        """``refresh`` copies a request's counts into its turn; called before it is handed out."""
        self._refresh = refresh
        self._entries: dict[str, tuple[EngineTurn, NativeT, TurnInfo]] = {}
        self._added = 0

    def add(self, key: str, request: NativeT, info: TurnInfo, prompt_tokens: int) -> EngineTurn:
        """Write down a request that has been submitted to the engine; returns its turn."""
        turn = EngineTurn(key, info, self._added, prompt_tokens)
        self._entries[key] = turn, request, info
        self._added += 1
        return turn

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def entries(self) -> list[tuple[EngineTurn, NativeT]]:
        """Return all turns with the engine's own requests. Never hand one to a policy."""
        return [(turn, request) for turn, request, _ in self._entries.values()]

    def raw(self, key: str) -> EngineTurn:
        """Return a turn for whoever keeps its counts up to date, without a look at its request."""
        return self._entries[key][0]

    def __getitem__(self, key: str) -> EngineTurn:
        """The turn as it is now."""
        turn, request, _ = self._entries[key]
        self._refresh(turn, request)
        return turn

    def scheduled(self, keys: Iterable[str], at_s: float) -> None:
        """Note that a step that starts at ``at_s`` runs these turns."""
        for key in keys:
            self._entries[key][0].last_scheduled_s = at_s

    def pop(self, key: str) -> tuple[EngineTurn, TurnInfo]:
        """Remove a turn that is over; returns it as it is now, and what its request said of its
        session.
        """
        turn = self[key]
        return turn, self._entries.pop(key)[2]

    def info(self, key: str) -> TurnInfo:
        """Return what a request in the engine says of its session. No policy is shown it before the
        end.
        """
        return self._entries[key][2]

    def request_of(self, turn: EngineTurn) -> NativeT:
        """Return the engine's own request of a turn. Never hand it to a policy."""
        return self._entries[turn.key][1]


ItemT = TypeVar("ItemT")


class Turns(Sequence[ItemT]):
    """A queue of an engine as turns, made one by one when they are read; its length costs nothing."""

    __slots__ = ("_requests", "_turn_of")

    def __init__(self, requests: Sequence[NativeT], turn_of: Callable[[NativeT], ItemT]) -> None:
        self._requests = requests
        self._turn_of = turn_of

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[ItemT]:
        return map(self._turn_of, self._requests)

    @overload
    def __getitem__(self, index: int) -> ItemT: ...
    @overload
    def __getitem__(self, index: slice) -> list[ItemT]: ...
    def __getitem__(self, index: int | slice) -> ItemT | list[ItemT]:
        return list(self)[index]  # not every queue can be indexed

    def __reversed__(self) -> Iterator[ItemT]:
        return reversed(list(self))
