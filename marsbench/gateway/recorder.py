"""Writes what runs through a gateway as a canonical trace: lengths, reuse and times, never text."""

from __future__ import annotations

import logging
import secrets
from pathlib import Path
from typing import Any

from marsbench.core import ToolCall, to_s
from marsbench.events import Event, Kind, Status
from marsbench.gateway.blocks import head_id
from marsbench.gateway.control import TurnEnd
from marsbench.gateway.exchange import Exchange
from marsbench.gateway.reply import Reply
from marsbench.gateway.sessions import LiveSession
from marsbench.gateway.tape import Note, Tape, note_of
from marsbench.gateway.tracefile import TraceFile
from marsbench.trace.schema import encode_session
from marsbench.trace.source import PROVENANCE_KEY

logger = logging.getLogger(__name__)

ESTIMATED_KEY = "x_estimated_turns"
PROVENANCE = {
    "agent": "recorded: x-agent-name, else the client library",
    "model": "recorded",
    "arrival_s": "recorded",
    "new_input_tokens": "recorded",
    "output_tokens": "recorded",
    "resent_output": "derived: assistant message compared with the reply by digest",
    "drop_context_to": "derived: longest common prefix of prompts in blocks of 64 bytes",
    "kept_prefix_tokens": "derived: longest common prefix of prompts in blocks of 64 bytes",
    "shared_prefix": "derived: tools and leading system messages, tokens by share of bytes",
    "tools.name": "recorded",
    "tools.cpu_s": "recorded where the slot API was used and told",
    "tools.error": "recorded where the client marks it",
    "children": "derived: requests beside a turn, or with other system messages",
    "tools.wall_s": "derived: gap between turns, or recorded where the slot API was used",
    "tools.class": "derived: tool name and first words of the command",
    "tools.result_tokens": "derived: share of bytes",
    "think_s": "derived: gap without tool calls",
}
MAX_AGENT_CHARS = 64


class Recorder:
    """Follows all sessions of a gateway; a session is on disk as soon as it has ended."""

    def __init__(self, path: Path, *, append: bool = False, salt: bytes | None = None) -> None:
        self.failures = 0
        """Sessions that could not be written."""
        self._file = TraceFile(path, append=append)
        self._salt = salt or secrets.token_bytes(32)
        self._tapes: dict[int, Tape] = {}
        self._ready_ps: dict[int, int] = {}
        self._prefix_tokens: dict[str, int] = {}

    @property
    def num_sessions(self) -> int:
        """Sessions in the file."""
        return self._file.num_lines

    # --- what the proxy and the bus say --------------------------------------------------------

    def sent(self, exchange: Exchange, at_ps: int) -> None:
        """The turn goes to a backend: the gap before it is over."""
        session = exchange.session
        tape = self._tapes.get(session.session)
        if tape is None:
            tape = self._tapes[session.session] = Tape(self._name(session), self._salt)
            tape.arrival_s = None if session.parent is not None else session.arrival_s
            tape.model = exchange.prompt.model
            tape.agent = _agent(dict(exchange.headers))
            tape.head = head_id(exchange.prompt, self._salt), len(exchange.prompt.head)
        tape.returned(exchange.prompt, self._ready_ps.get(session.session, at_ps))

    def done(self, exchange: Exchange, reply: Reply, end: TurnEnd, at_ps: int) -> None:
        """The turn has ended; one that failed is as if it had not been."""
        session = exchange.session
        if not end.ok:
            return
        tape = self._tapes[session.session]
        counted = reply.prompt_tokens is not None and reply.output_tokens is not None
        tokens = session.prompt_tokens if end.prompt_tokens is None else end.prompt_tokens
        times = self._ready_ps.get(session.session, at_ps), at_ps
        note = note_of(
            exchange.prompt, reply, (tokens, end.output_tokens), times, estimated=not counted
        )
        self._learn_prefix(tape, note)
        tape.add(note, exchange.prompt)

    def event(self, event: Event, session_id: str) -> None:
        """Times of turns and tool calls."""
        if event.kind == Kind.TURN_READY:
            self._ready_ps[event.session] = round(event.time_s * 1e12)
            return
        tape = self._tapes.get(event.session)
        if tape is None:
            return
        at_ps = round(event.time_s * 1e12)
        if event.kind == Kind.TOOL_START:
            tape.running[event.turn, event.call] = at_ps
        elif event.kind == Kind.TOOL_END:
            start_ps = tape.running.pop((event.turn, event.call), at_ps)
            cpu_s = to_s(event.get("cpu_ps")) or None
            call = ToolCall(
                event.name or "tool",
                event.tool_class,
                to_s(at_ps - start_ps),
                cpu_s,
                error=bool(event.get("error")),
            )
            tape.tool_ended(event.call, call, at_ps)

    def ended(self, session: LiveSession, status: Status) -> None:
        """The session is over: write it, or give it to its parent."""
        tape = self._tapes.pop(session.session, None)
        self._ready_ps.pop(session.session, None)
        if tape is None:
            return
        made = tape.session(self._prefix_tokens.get(tape.head[0], 0))
        if made is None:
            return
        parent = self._tapes.get(session.parent.session) if session.parent is not None else None
        if parent is not None and parent.notes:
            at = min(session.parent_turn, len(parent.notes) - 1)
            parent.notes[max(at, 0)].children.append(made)
            return
        extensions: dict[str, Any] = {}
        if self._file.num_lines == 0:
            extensions[PROVENANCE_KEY] = PROVENANCE
        estimated = [index for index, note in enumerate(tape.notes) if note.estimated]
        if estimated:
            extensions[ESTIMATED_KEY] = estimated
        try:
            self._file.write(encode_session(made, extensions))
        except OSError as error:
            self.failures += 1
            logger.warning("%s: a session is lost: %s", self._file.path, error.strerror)

    def sync(self) -> None:
        """Onto the disk (blocks; call it from a thread)."""
        self._file.sync()

    def close(self) -> None:
        """All sessions have ended."""
        self._file.close()

    def _name(self, session: LiveSession) -> str:
        """An id that no other line has, earlier runs that this file holds included."""
        name, count = session.session_id, 1
        while name in self._file.ids:
            count += 1
            name = f"{session.session_id}@{count}"
        self._file.ids.add(name)
        return name

    def _learn_prefix(self, tape: Tape, note: Note) -> None:
        """Tokens of a shared head, once for all sessions that have it."""
        assert note.prompt is not None
        if not tape.notes and tape.head[1] and tape.head[0] not in self._prefix_tokens:
            share = tape.head[1] / max(note.prompt.num_bytes, 1)
            self._prefix_tokens[tape.head[0]] = round(share * note.prompt_tokens)


def _agent(headers: dict[str, str]) -> str:
    given = headers.get("x-agent-name") or headers.get("user-agent", "")
    return given.split(" ")[0][:MAX_AGENT_CHARS] if given.isprintable() else ""
