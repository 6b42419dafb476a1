"""The sessions that a scheduler knows of, from its requests and from the control plane's stream.

A request says little: that a turn is here. The stream says more, and earlier: arrivals, tool calls
as they queue, start and end, sessions that are over. Policies hear each thing once, from whichever
source told it first; what the stream does not tell (none there, messages lost, control plane gone)
is filled in when the request shows that it must have happened.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from marsbench.core import to_s
from marsbench.engine.link.sockets import RemoteClock
from marsbench.engine.link.wire import Batch, Beat, Message, WireEvent
from marsbench.events import Event, Kind

MAX_SESSIONS = 65_536
"""Sessions remembered; the one heard of least recently is forgotten first."""
STREAMED = frozenset(
    {
        Kind.SESSION_ARRIVE,
        Kind.SESSION_ADMIT,
        Kind.SESSION_END,
        Kind.TURN_READY,
        Kind.GPU_SUBMIT,
        Kind.TOOL_ENQUEUED,
        Kind.TOOL_START,
        Kind.TOOL_END,
        Kind.CPU_STATS,
    }
)
"""What the control plane knows better than the engine; of all else the engine is the source."""


@dataclass(slots=True)
class Known:
    """What the roster knows of one session."""

    index: int
    name: str
    arrival_s: float
    arrived: bool = False
    """Whether the policies have heard of the session."""
    num_ready: int = 0
    num_submitted: int = 0
    num_requests: int = 0
    """How many of its turns came as requests."""
    listed: bool = False
    """Whether a beat has named it: such a session is over once a beat does not."""
    calls: dict[int, tuple[str, str]] = field(default_factory=dict)
    """The tool calls that run: index within the turn -> name and class."""


class Roster:
    """Gives sessions their numbers and tells the policies what happens to them."""

    def __init__(
        self,
        tell: Callable[[Event], None],
        over: Callable[[int], None],
        now_ps: Callable[[], int],
        max_sessions: int = MAX_SESSIONS,
    ) -> None:
        """``tell`` hands an event to the policies; ``over`` is told of sessions that are over or
        forgotten, once each.
        """
        self._tell = tell
        self._over = over
        self._now_ps = now_ps
        self._max_sessions = max_sessions
        self._sessions: OrderedDict[str, Known] = OrderedDict()
        self._by_index: dict[int, Known] = {}
        self._remote: dict[int, str] = {}
        """The control plane's session index -> name."""
        self._clock = RemoteClock()
        self._made = 0
        self.heard_ps: int | None = None
        """When the last message was sent, on our clock: an idle scheduler reads it much later."""

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def expects(self) -> bool:
        """Whether the control plane has sessions that are not over."""
        return bool(self._remote)

    def name_of(self, index: int) -> str:
        """The name of a session; "" if it is not known any more."""
        known = self._by_index.get(index)
        return known.name if known is not None else ""

    # ---- requests

    def submitted(self, name: str, prompt_tokens: int, turn_index: int | None) -> tuple[Known, int]:
        """A turn of this session is in the engine: the session, and which turn it is.

        ``turn_index`` None: the one after its last request's.
        """
        known = self._know(name)
        turn = known.num_requests if turn_index is None else turn_index
        known.num_requests = turn + 1
        self._arrive(known, self._now_ps(), prompt_tokens, -1, -1)
        self._close_calls(known, turn - 1)
        if turn >= known.num_ready:
            known.num_ready = turn + 1
            self._say(Kind.TURN_READY, known.index, turn, -1, (prompt_tokens,))
        if turn >= known.num_submitted:
            known.num_submitted = turn + 1
            self._say(Kind.GPU_SUBMIT, known.index, turn, -1, (prompt_tokens, 0))
        return known, turn

    def tools_started(self, index: int, turn: int, names: tuple[str, ...]) -> None:
        """Tell policies that a turn has ended and its tools run, as far as the engine can know."""
        known = self._by_index.get(index)
        if known is None:
            return
        for call, name in enumerate(names):
            if call not in known.calls:
                known.calls[call] = name, ""
                self._say(Kind.TOOL_START, index, turn, call, (0, 0, 0, 0), name)

    def ended(self, index: int) -> None:
        """Tell policies that a session is over: no further turn of it will come."""
        known = self._by_index.get(index)
        if known is not None:
            self._end(known, self._now_ps(), (0,))

    def clear(self) -> None:
        """Forget everything: all sessions are over, and numbers begin at 0 again."""
        for known in list(self._sessions.values()):
            self._drop(known)
        self._remote.clear()
        self._clock = RemoteClock()
        self._made = 0
        self.heard_ps = None

    # ---- the stream

    def heard(self, message: Message) -> None:
        """Take a message of the control plane in."""
        if isinstance(message, Batch):
            for event in message.events:
                self._sent(event.time_ps)
                self._event(event)
        elif isinstance(message, Beat):
            self._sent(message.now_ps)
            self._beat(message)

    def _sent(self, remote_ps: int) -> None:
        now_ps = self._now_ps()
        self._clock.seen(remote_ps, now_ps)
        self.heard_ps = self._clock.here(remote_ps, now_ps)

    def _event(self, event: WireEvent) -> None:
        kind = Kind(event.kind)
        if kind not in STREAMED:
            return
        at_ps = self._clock.here(event.time_ps, self._now_ps())
        if event.session < 0:
            self._say(kind, -1, event.turn, event.call, event.args, at_ps=at_ps)
            return
        if kind == Kind.SESSION_END and event.session_id not in self._sessions:
            self._remote.pop(event.session, None)
            return
        known = self._know(event.session_id)
        if kind == Kind.SESSION_END:
            self._remote.pop(event.session, None)
            self._end(known, at_ps, event.args)
            return
        self._remote[event.session] = event.session_id
        if kind == Kind.SESSION_ARRIVE:
            prompt_tokens, parent, parent_turn = event.args
            self._arrive(known, at_ps, prompt_tokens, self._parent(parent), parent_turn)
        elif self._news(known, kind, event):
            self._say(
                kind, known.index, event.turn, event.call, event.args, event.name,
                tool_class=event.tool_class, at_ps=at_ps,
            )  # fmt: skip

    def _news(self, known: Known, kind: Kind, event: WireEvent) -> bool:
        """Whether policies have not heard it yet; note that they have now."""
        turn, call = event.turn, event.call
        if kind == Kind.TURN_READY:
            known.num_ready, before = max(known.num_ready, turn + 1), known.num_ready
            return turn >= before
        if kind == Kind.GPU_SUBMIT:
            known.num_submitted, before = max(known.num_submitted, turn + 1), known.num_submitted
            return turn >= before
        if kind == Kind.TOOL_END:
            return known.calls.pop(call, None) is not None
        if kind in {Kind.TOOL_ENQUEUED, Kind.TOOL_START}:
            if turn + 1 < known.num_submitted or call in known.calls:
                return False
            if kind == Kind.TOOL_START:
                known.calls[call] = event.name, event.tool_class
        return True

    def _beat(self, beat: Beat) -> None:
        """Begin the sessions whose start was missed, and end those that are over."""
        now_ps = self._now_ps()
        present: set[str] = set()
        for session in sorted(beat.sessions, key=lambda s: s.session):
            present.add(session.session_id)
            self._remote[session.session] = session.session_id
            known = self._know(session.session_id)
            known.listed = True
            at_ps = self._clock.here(session.arrival_ps, now_ps)
            self._arrive(known, at_ps, session.prompt_tokens, self._parent(session.parent), -1)
            if session.phase == "pending" and session.turn_index:
                self._close_calls(known, session.turn_index - 1)
        for known in list(self._sessions.values()):
            if known.listed and known.name not in present:
                self._end(known, now_ps, (0,))
        self._remote = {k: name for k, name in self._remote.items() if name in present}

    # ---- what policies hear

    def _know(self, name: str) -> Known:
        known = self._sessions.pop(name, None)
        if known is None:
            known = Known(self._made, name, to_s(self._now_ps()))
            self._made += 1
            self._by_index[known.index] = known
        self._sessions[name] = known
        if len(self._sessions) > self._max_sessions:
            self._drop(next(iter(self._sessions.values())))
        return known

    def _parent(self, remote: int) -> int:
        known = self._sessions.get(self._remote.get(remote, ""))
        return known.index if known is not None else -1

    def _arrive(
        self, known: Known, at_ps: int, prompt_tokens: int, parent: int, parent_turn: int
    ) -> None:
        if not known.arrived:
            known.arrived = True
            known.arrival_s = to_s(at_ps)
            args = (prompt_tokens, parent, parent_turn)
            self._say(Kind.SESSION_ARRIVE, known.index, -1, -1, args, at_ps=at_ps)

    def _close_calls(self, known: Known, turn: int) -> None:
        for call, (name, tool_class) in known.calls.items():
            args = (0, 0, 0, 0)
            self._say(Kind.TOOL_END, known.index, turn, call, args, name, tool_class=tool_class)
        known.calls = {}

    def _end(self, known: Known, at_ps: int, args: tuple[int, ...]) -> None:
        self._say(Kind.SESSION_END, known.index, known.num_ready - 1, -1, args, at_ps=at_ps)
        self._drop(known)

    def _drop(self, known: Known) -> None:
        self._over(known.index)
        del self._sessions[known.name]
        del self._by_index[known.index]

    def _say(
        self,
        kind: Kind,
        session: int,
        turn: int,
        call: int,
        args: tuple[int, ...],
        name: str = "",
        *,
        tool_class: str = "",
        at_ps: int | None = None,
    ) -> None:
        time_s = to_s(self._now_ps() if at_ps is None else at_ps)
        self._tell(Event(time_s, kind, session, turn, call, args, name, tool_class))
