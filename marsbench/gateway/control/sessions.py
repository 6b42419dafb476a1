"""Sessions as a gateway knows them, and how a request finds its own.

A request that names its session belongs to it. One that does not continues the session whose last
prompt it extends, message by message (block by block for text prompts); if several sessions have
that prompt, the assistant message that follows must be the reply this session got. Inside a named
session, a request that runs beside the current turn, or that has other system messages while the
turn's tools run, is a sub-agent: a child session of its own.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from marsbench.core import Phase
from marsbench.engine.base import Request
from marsbench.engine.life import CallState, SessionState
from marsbench.gateway.messages.identity import ClientIdentity
from marsbench.gateway.messages.prompt import Mark, Prompt, ReplyPrint, reply_print

MAX_NAMES = 100_000
"""Ids remembered, so that none is given twice."""
MAX_PAST = 10_000
"""Silent sessions remembered, so that one that comes back is known."""


@dataclass(slots=True)
class OpenCall:
    """A tool call the last reply asked for, until its result is back."""

    index: int
    call_id: str
    name: str
    tool_class: str
    leased: bool = False
    """A lease of the slot API stands for it; else its times are those of the gap."""
    done: bool = False
    counted: bool = False
    """It is thought to run, and policies are told so."""
    state: CallState | None = None
    """As the event log has it, once the reply has ended."""


class LiveSession:
    """One session: what has happened to it (``state``, which policies see), and how requests find it."""

    def __init__(
        self,
        session: int,
        session_id: str,
        scope: str,
        arrival_ps: int,
        parent: LiveSession | None = None,
    ) -> None:
        self.session = session
        self.state: SessionState = SessionState(
            session, session_id, None if parent is None else parent.state
        )
        self.state.arrival_ps = self.state.phase_since_ps = self.touched_ps = arrival_ps
        self.parent = parent
        self.scope = scope
        """Whose it is: no other client can name, continue or end it."""
        self.group = ""
        """For whom its client works, where it says so: others' prompts never continue it."""
        self.tenant = ""
        """Whose metrics it counts for."""
        self.past: LiveSession | None = None
        """The session that it continues, which had ended because it was silent for too long."""
        self.silent = False
        """It has ended because it was silent for too long."""
        self.parent_turn: int = parent.turn_index if parent is not None else -1
        self.children: list[LiveSession] = []
        self.turns_sent = 0
        """Turns that went to a backend."""
        self.turns_before = 0
        """Of the sessions that this one continues."""
        self.request: Request | None = None
        """The current turn, as it went to a backend."""
        self.name = ""
        """What its client calls it; ``session_id`` is the same unless that was taken."""
        self.named = False
        """Its client names it, so requests without a name are not its."""
        self.lent = False
        """Its place in the active set was given to others, since nothing was heard of its calls."""
        self.leases = 0
        """Tool slots held or waited for."""
        self.backend: int | None = None
        self.mark: Mark | None = None
        self.reply: ReplyPrint | None = None
        self.response_id = ""
        self.head_digest = b""
        self.calls: list[OpenCall] = []
        self.bytes_per_token = 0.0
        self.reused_tokens = 0
        """Prompt tokens of the current turn that repeat the context before it."""

    @property
    def session_id(self) -> str:
        """The id that engines and logs have."""
        return self.state.session_id

    @property
    def turn_index(self) -> int:
        """Index of the current turn."""
        return self.state.turn_index

    @property
    def phase(self) -> Phase:
        """Where it stands."""
        return self.state.phase

    @property
    def is_child(self) -> bool:
        """A sub-agent."""
        return self.parent is not None

    @property
    def seen_ps(self) -> int:
        """Last sign of life: of its turns, or of its tool leases (``touched_ps``)."""
        return max(self.state.phase_since_ps, self.touched_ps)

    @property
    def in_flight(self) -> bool:
        """A turn of it is pending or in an engine."""
        return self.phase in {Phase.PENDING, Phase.ENGINE}

    @property
    def told_id(self) -> str:
        """The id its client knows it by."""
        return self.name or self.session_id

    def orphan(self) -> None:
        """Make it a session of its own, since its parent has ended before it."""
        self.parent = self.state.parent = None

    def resume(self, past: LiveSession) -> None:
        """Go on where an earlier session of the same client stopped."""
        self.past = past
        self.turns_before = past.turns_before + past.turns_sent
        self.state.session_id = past.session_id
        self.mark = past.mark
        self.reply = past.reply
        self.response_id = past.response_id
        self.head_digest = past.head_digest
        self.state.context_tokens = past.state.context_tokens
        self.bytes_per_token = past.bytes_per_token
        past.past = None

    def open_calls(self) -> Iterator[OpenCall]:
        """Yield the tool calls whose result is not back."""
        return (call for call in self.calls if not call.done)


MarkKey = tuple[str, str, int, bytes]
"""Client, group, and where a prompt ended (depth and digest of its mark)."""


class SessionTable:
    """All unfinished sessions, and which of them a request belongs to."""

    def __init__(self) -> None:
        self.sessions: dict[int, LiveSession] = {}
        self._names: dict[tuple[str, str], LiveSession] = {}
        self._ids: dict[tuple[str, str], LiveSession] = {}
        self._marks: dict[MarkKey, dict[int, LiveSession]] = {}
        self._responses: dict[tuple[str, str], LiveSession] = {}
        self._num_of: Counter[str] = Counter()
        self._past: OrderedDict[MarkKey, LiveSession] = OrderedDict()
        self._given: OrderedDict[str, int] = OrderedDict()
        self._next = 0

    def find(self, scope: str, session_id: str) -> LiveSession | None:
        """Return the unfinished session that a client calls so, by its own name or the one the
        gateway gave; None if there is none.
        """
        key = scope, session_id
        return self._names.get(key) or self._ids.get(key)

    def num_sessions(self, scope: str) -> int:
        """Count the unfinished sessions of a client, sub-agents included."""
        return self._num_of[scope]

    def resolve(
        self, scope: str, identity: ClientIdentity, prompt: Prompt, now_ps: int
    ) -> tuple[LiveSession, bool]:
        """Return the session of a request, and whether it begins with it."""
        if identity.key:
            top = self.find(scope, identity.key)
            if top is not None:
                return self._line(top, prompt, now_ps)
        else:
            known = self._by_prompt(scope, identity.group, prompt)
            if known is not None:
                return known, False
        session = self._create(identity.key, scope, now_ps, self._parent(scope, identity))
        session.group = identity.group
        past = self._gone_silent(session, prompt)
        if past is not None:
            self._ids.pop((scope, session.session_id), None)
            session.resume(past)
            if not session.name:
                self._ids[scope, session.session_id] = session
        return session, True

    def remember(self, session: LiveSession, prompt: Prompt) -> None:
        """Remember that the session's turn with this prompt goes to an engine."""
        self._forget_mark(session)
        session.mark = prompt.mark()
        session.reply = None
        session.head_digest = prompt.head_digest
        self._marks.setdefault(_mark_key(session), {})[session.session] = session

    def replied(self, session: LiveSession, reply: ReplyPrint | None, response_id: str) -> None:
        """Remember the reply that the session's turn got."""
        session.reply = reply
        if response_id:
            self._responses.pop((session.scope, session.response_id), None)
            session.response_id = response_id
            self._responses[session.scope, response_id] = session

    def remove(self, session: LiveSession) -> None:
        """Forget a session that has ended."""
        if self.sessions.pop(session.session, None) is None:
            return
        self._num_of[session.scope] -= 1
        if not self._num_of[session.scope]:
            del self._num_of[session.scope]
        if session.silent and session.mark is not None:
            self._past[_mark_key(session)] = session
            if len(self._past) > MAX_PAST:
                self._past.popitem(last=False)
        self._forget_mark(session)
        self._responses.pop((session.scope, session.response_id), None)
        if self._ids.get((session.scope, session.session_id)) is session:
            del self._ids[session.scope, session.session_id]
        if self._names.get((session.scope, session.name)) is session:
            del self._names[session.scope, session.name]
        if session.parent is not None and session in session.parent.children:
            session.parent.children.remove(session)

    def _create(
        self, name: str, scope: str, now_ps: int, parent: LiveSession | None, told: str = ""
    ) -> LiveSession:
        """A new session, under the name its client gave it, or that the gateway tells (``told``)."""
        index = self._next
        self._next += 1
        session_id = self._unique(name or told or f"s{index:06d}")
        session = LiveSession(index, session_id, scope, now_ps, parent)
        self.sessions[index] = session
        self._num_of[scope] += 1
        if name:
            self._names[scope, name] = session
            session.name = name
        else:
            self._ids[scope, session_id] = session
        session.named = bool(name or told)
        if parent is not None:
            parent.children.append(session)
        return session

    def _unique(self, name: str) -> str:
        """An id that none of the last MAX_NAMES sessions had, whoever's they were, so that engines
        and logs can tell them apart.
        """
        count = self._given.pop(name, 0) + 1
        self._given[name] = count
        found = name
        while count > 1 and (found := f"{name}~{count}") in self._given:
            count += 1
        self._given.setdefault(found, 1)
        while len(self._given) > MAX_NAMES:
            self._given.popitem(last=False)
        return found

    def _gone_silent(self, session: LiveSession, prompt: Prompt) -> LiveSession | None:
        """The session that had ended in silence and that this one's first prompt extends."""
        for depth in range(len(prompt.chain), -1, -1):
            digest = prompt.chain[depth - 1] if depth else b""
            key = session.scope, session.group, depth, digest
            past = self._past.get(key)
            if past is None or past.mark is None or past.name != session.name:
                continue
            failed = past.reply is None and prompt.repeats(past.mark)  # and its client asks again
            if failed or prompt.extends(past.mark):
                return self._past.pop(key)
        return None

    def _parent(self, scope: str, identity: ClientIdentity) -> LiveSession | None:
        return self._names.get((scope, identity.parent)) if identity.parent else None

    def _line(self, top: LiveSession, prompt: Prompt, now_ps: int) -> tuple[LiveSession, bool]:
        """The session itself or the sub-agent of it that this request continues."""
        for line in (top, *top.children):
            if not line.in_flight and line.mark is not None and prompt.extends(line.mark):
                return line, False
        known = self._responses.get((top.scope, prompt.previous_response))
        if known is not None and not known.in_flight and (known is top or known.parent is top):
            return known, False
        beside = top.in_flight
        waits = top.phase == Phase.TOOL and any(top.open_calls())
        if beside or (waits and prompt.head_digest != top.head_digest):
            name = f"{top.session_id}/{top.turn_index}"
            return self._create("", top.scope, now_ps, top, told=name), True
        return top, False

    def _by_prompt(self, scope: str, group: str, prompt: Prompt) -> LiveSession | None:
        known = self._responses.get((scope, prompt.previous_response))
        if known is not None and not known.in_flight:
            return known
        for depth in range(len(prompt.chain), -1, -1):
            digest = prompt.chain[depth - 1] if depth else b""
            found = self._marks.get((scope, group, depth, digest))
            if not found:
                continue
            idle = [s for s in found.values() if not s.in_flight and not s.named]
            later = [s for s in idle if s.mark is not None and prompt.extends(s.mark)]
            chosen = _answered(later, prompt)
            if chosen is None:
                failed = (s for s in idle if s.reply is None and s.mark == prompt.mark())
                chosen = next(failed, None)
            if chosen is not None:
                return chosen
        return None

    def _forget_mark(self, session: LiveSession) -> None:
        if session.mark is None:
            return
        key = _mark_key(session)
        found = self._marks.get(key)
        if found is not None:
            found.pop(session.session, None)
            if not found:
                del self._marks[key]
        if not session.silent:
            session.mark = None


def _mark_key(session: LiveSession) -> MarkKey:
    assert session.mark is not None
    return session.scope, session.group, session.mark.depth, session.mark.digest


def _answered(found: list[LiveSession], prompt: Prompt) -> LiveSession | None:
    """Of sessions whose prompt this one extends: the one whose reply it carries, else the one that
    has waited longest.
    """
    if len(found) > 1 and found[0].mark is not None:
        following = prompt.after(found[0].mark)
        if following and isinstance(following[0], dict):
            carried = reply_print(following[0])
            ids = {call[0] for call in carried.calls if call[0]}
            for session in found:
                reply = session.reply
                if reply is None:
                    continue
                if ids & {call[0] for call in reply.calls} or reply == carried:
                    return session
            texts = [s for s in found if s.reply is not None and s.reply.text == carried.text]
            found = texts or found
    return min(found, key=lambda s: (s.state.phase_since_ps, s.session), default=None)
