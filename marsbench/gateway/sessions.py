"""Sessions as a gateway knows them, and how a request finds its own.

A request that names its session belongs to it. One that does not continues the session whose last
prompt it extends, message by message (block by block for text prompts); if several sessions have
that prompt, the assistant message that follows must be the reply this session got. Inside a named
session, a request that runs beside the current turn, or that has other system messages while the
turn's tools run, is a sub-agent: a child session of its own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from marsbench.core import PS_PER_S
from marsbench.gateway.identity import Identity
from marsbench.gateway.prompt import Mark, Prompt, ReplyPrint, reply_print

MAX_NAMES = 100_000


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


class LiveSession:
    """One session; policies see it as ``marsbench.admission.base.SessionView``."""

    def __init__(
        self,
        session: int,
        session_id: str,
        scope: str,
        arrival_ps: int,
        parent: LiveSession | None = None,
    ) -> None:
        self.session = session
        self.session_id = session_id
        self.scope = scope
        self.arrival_ps = arrival_ps
        self.parent = parent
        self.turn_index: int = 0
        self.parent_turn: int = parent.turn_index if parent is not None else -1
        self.children: list[LiveSession] = []
        self.turns_sent = 0
        """Turns that went to a backend."""
        self.prompt_tokens = 0
        self.context_tokens = 0
        self.served_tokens = 0
        self.phase = "new"
        """As SessionView.phase; ``new`` until its first turn is ready."""
        self.phase_since_ps = arrival_ps
        self.seen_ps = arrival_ps
        """Last sign of life."""
        self.name = ""
        """What its client calls it; ``session_id`` if nobody was called so before."""
        self.named = False
        """Its client names it, so requests without a name are not its."""
        self.admitted = False
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
    def arrival_s(self) -> float:
        """Arrival, seconds since the gateway started."""
        return self.arrival_ps / PS_PER_S

    @property
    def phase_since_s(self) -> float:
        """When the phase began, seconds since the gateway started."""
        return self.phase_since_ps / PS_PER_S

    @property
    def is_child(self) -> bool:
        """A sub-agent: its parent is active."""
        return self.parent is not None

    @property
    def in_flight(self) -> bool:
        """A turn of it is pending or in an engine."""
        return self.phase in {"pending", "engine"}

    def enter(self, phase: str, at_ps: int) -> None:
        """Change phase."""
        self.phase = phase
        self.phase_since_ps = at_ps
        self.seen_ps = at_ps

    def open_calls(self) -> Iterator[OpenCall]:
        """Tool calls whose result is not back."""
        return (call for call in self.calls if not call.done)


class SessionTable:
    """All unfinished sessions, and which of them a request belongs to."""

    def __init__(self) -> None:
        self.sessions: dict[int, LiveSession] = {}
        self._names: dict[tuple[str, str], LiveSession] = {}
        self._marks: dict[tuple[str, int, bytes], dict[int, LiveSession]] = {}
        self._responses: dict[tuple[str, str], LiveSession] = {}
        self._given: OrderedDict[str, int] = OrderedDict()
        self._next = 0

    def find(self, scope: str, session_id: str) -> LiveSession | None:
        """The unfinished session a client calls so: its own name, or the one the gateway gave."""
        named = self._names.get((scope, session_id))
        if named is not None:
            return named
        return next(
            (s for s in self.sessions.values() if s.scope == scope and s.session_id == session_id),
            None,
        )

    def resolve(
        self, scope: str, identity: Identity, prompt: Prompt, now_ps: int
    ) -> tuple[LiveSession, bool]:
        """The session of a request, and whether it begins with it."""
        if not identity.key:
            known = self._by_prompt(scope, prompt)
            if known is not None:
                return known, False
            return self._create("", scope, now_ps, self._parent(scope, identity)), True
        top = self._names.get((scope, identity.key))
        if top is None:
            parent = self._parent(scope, identity)
            return self._create(identity.key, scope, now_ps, parent), True
        return self._line(top, prompt, now_ps)

    def remember(self, session: LiveSession, prompt: Prompt) -> None:
        """The session's turn with this prompt goes to an engine."""
        self._forget_mark(session)
        session.mark = prompt.mark()
        session.reply = None
        session.head_digest = prompt.head_digest
        self._marks.setdefault(_mark_key(session), {})[session.session] = session

    def replied(self, session: LiveSession, reply: ReplyPrint | None, response_id: str) -> None:
        """The turn got its reply."""
        session.reply = reply
        if response_id:
            self._responses.pop((session.scope, session.response_id), None)
            session.response_id = response_id
            self._responses[session.scope, response_id] = session

    def remove(self, session: LiveSession) -> None:
        """The session has ended."""
        self.sessions.pop(session.session, None)
        self._forget_mark(session)
        self._responses.pop((session.scope, session.response_id), None)
        if self._names.get((session.scope, session.name)) is session:
            del self._names[session.scope, session.name]
        if session.parent is not None and session in session.parent.children:
            session.parent.children.remove(session)

    def _create(
        self, name: str, scope: str, now_ps: int, parent: LiveSession | None
    ) -> LiveSession:
        index = self._next
        self._next += 1
        session_id = self._unique(name) if name else f"s{index:06d}"
        session = LiveSession(index, session_id, scope, now_ps, parent)
        self.sessions[index] = session
        if name:
            self._names[scope, name] = session
            session.named = True
            session.name = name
        if parent is not None:
            parent.children.append(session)
        return session

    def _unique(self, name: str) -> str:
        """An id that the last MAX_NAMES sessions did not have, so that a log can tell them apart."""
        count = self._given.pop(name, 0) + 1
        self._given[name] = count
        if len(self._given) > MAX_NAMES:
            self._given.popitem(last=False)
        return name if count == 1 else f"{name}#{count}"

    def _parent(self, scope: str, identity: Identity) -> LiveSession | None:
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
        waits = top.phase == "tool" and any(top.open_calls())
        if beside or (waits and prompt.head_digest != top.head_digest):
            name = f"{top.session_id}/{top.turn_index}"
            child = self._create("", top.scope, now_ps, top)
            child.session_id = self._unique(name)
            child.named = True
            return child, True
        return top, False

    def _by_prompt(self, scope: str, prompt: Prompt) -> LiveSession | None:
        known = self._responses.get((scope, prompt.previous_response))
        if known is not None and not known.in_flight:
            return known
        for depth in range(len(prompt.chain), -1, -1):
            digest = prompt.chain[depth - 1] if depth else b""
            found = self._marks.get((scope, depth, digest))
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
        session.mark = None


def _mark_key(session: LiveSession) -> tuple[str, int, bytes]:
    assert session.mark is not None
    return session.scope, session.mark.depth, session.mark.digest


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
    return min(found, key=lambda s: (s.phase_since_ps, s.session), default=None)
