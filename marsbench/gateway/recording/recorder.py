"""Writes what runs through a gateway as a canonical trace: lengths, reuse and times, never text."""

from __future__ import annotations

import logging
import secrets
from pathlib import Path
from typing import Any

from marsbench.core import Session, ToolCall, to_s
from marsbench.events import Event, Kind, Status
from marsbench.gateway.control.desk import Carried, LocalTurn
from marsbench.gateway.control.plane import TurnEnd
from marsbench.gateway.control.sessions import LiveSession
from marsbench.gateway.recording.blocks import head_id
from marsbench.gateway.recording.tape import Note, Tape, note_of
from marsbench.gateway.recording.tracefile import TraceFile
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


class TraceRecorder:
    """Follows all sessions of a gateway; a session is on disk as soon as it has ended."""

    def __init__(self, path: Path, *, append: bool = False, salt: bytes | None = None) -> None:
        self.path = path
        self.failures = 0
        """Sessions that could not be written."""
        self.num_turns = 0
        """Turns of the sessions that were written, sub-agents' included."""
        self.output_tokens = 0
        """Output tokens of these turns."""
        self._file = TraceFile(path, append=append)
        self._salt = salt or secrets.token_bytes(32)
        self._tapes: dict[int, Tape] = {}
        self._silent: dict[int, tuple[Tape, int]] = {}
        """Tapes of sessions that ended because nothing was heard of them, and when: one that comes
        back goes on with its tape."""
        self._ready_ps: dict[int, int] = {}
        self._prefix_tokens: dict[str, int] = {}

    @property
    def num_sessions(self) -> int:
        """Sessions in the file."""
        return self._file.num_lines

    # --- what the proxy and the bus say --------------------------------------------------------

    def sent(self, turn: LocalTurn, at_ps: int) -> None:
        """Note that the turn goes to a backend: the gap before it is over."""
        session, prompt = turn.session, turn.ask.prompt
        tape = self._tapes.get(session.session)
        if tape is None and session.past is not None:
            silent = self._silent.pop(session.past.session, None)
            if silent is not None:
                tape = self._tapes[session.session] = silent[0]
        if tape is None:
            tape = self._tapes[session.session] = Tape(self._name(session), self._salt)
            tape.arrival_s = None if session.parent is not None else session.state.arrival_s
            tape.model = prompt.model
            tape.agent = _agent(dict(turn.ask.headers))
            tape.head = head_id(prompt, self._salt), prompt.head_bytes
        tape.returned(prompt, self._ready_ps.get(session.session, at_ps))

    def done(self, turn: LocalTurn, carried: Carried, end: TurnEnd, at_ps: int) -> None:
        """Note that the turn has ended; one that failed is as if it had not been."""
        session, prompt, reply = turn.session, turn.ask.prompt, carried.reply
        if not end.ok:
            return
        tape = self._tapes[session.session]
        counted = reply.prompt_tokens is not None and reply.output_tokens is not None
        tokens = session.state.prompt_tokens if end.prompt_tokens is None else end.prompt_tokens
        times = self._ready_ps.get(session.session, at_ps), at_ps
        note = note_of(prompt, reply, (tokens, end.output_tokens), times, estimated=not counted)
        self._learn_prefix(tape, note)
        tape.add(note, prompt)

    def event(self, event: Event, session_id: str) -> None:
        """Take the times of turns and tool calls from an event."""
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
        """Write a session that is over, or give it to its parent."""
        tape = self._tapes.pop(session.session, None)
        self._ready_ps.pop(session.session, None)
        if tape is None:
            return
        if session.silent and session.parent is None:
            self._silent[session.session] = tape, session.state.phase_since_ps
        else:
            self._write(tape, session)

    def forget(self, latest_ps: int) -> None:
        """Write the sessions that have been silent since ``latest_ps``; they are not awaited."""
        for index, (tape, since_ps) in list(self._silent.items()):
            if since_ps <= latest_ps:
                del self._silent[index]
                self._write(tape)

    def _write(self, tape: Tape, session: LiveSession | None = None) -> None:
        made = tape.session(self._prefix_tokens.get(tape.head[0], 0))
        if made is None:
            return
        parent = None
        if session is not None and session.parent is not None:
            parent = self._tapes.get(session.parent.session)
        if session is not None and parent is not None and parent.notes:
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
            return
        self._count(made)

    def sync(self) -> None:
        """Bring the file onto the disk. This blocks: call it from a thread."""
        self._file.sync()

    def close(self) -> None:
        """Write what is left and close the file; all sessions have ended."""
        for tape, _ in self._silent.values():
            self._write(tape)
        self._file.close()

    def _count(self, made: Session) -> None:
        for turn in made.turns:
            self.num_turns += 1
            self.output_tokens += turn.output_tokens
            for child in turn.children:
                self._count(child)

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
