"""Turns a line of a canonical trace (version 1) into a session and a session into a line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from marsbench.core import Session, SharedPrefix, ToolCall, Turn
from marsbench.errors import TraceError

TRACE_VERSION = 1
EXTENSION_PREFIX = "x_"
"""Keys of a session that start so are somebody else's: read over, never an error."""

Tokens = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Seconds = Annotated[float, Meta(ge=0)]
Id = Annotated[str, Meta(min_length=1)]

HINTS = {
    "trace_version": f"this version reads trace_version {TRACE_VERSION}",
    "session_id": "a non-empty string, unique in the file",
    "arrival_s": "seconds from the start of the trace, a number >= 0",
    "shared_prefix": 'an object {"id": ..., "tokens": ...}',
    "turns": "a list of at least one turn",
    "tools": "a list of tool calls, [] if there are none",
    "children": "a list of sessions",
    "new_input_tokens": "a whole number of tokens >= 0",
    "output_tokens": "a whole number of tokens >= 1",
    "resent_output": "a share between 0 and 1; 1.0 = sent again verbatim",
    "drop_context_to": "a whole number of tokens >= 0, or leave it out",
    "kept_prefix_tokens": "a whole number of tokens >= 0, or leave it out",
    "think_s": "seconds, a finite number >= 0",
    "wall_s": "seconds, a finite number >= 0",
    "cpu_s": "core-seconds, a finite number >= 0, or leave it out",
    "cores": "a number > 0",
    "result_tokens": "a whole number of tokens >= 0, or leave it out",
    "tokens": "a whole number of tokens >= 0",
    "error": "true or false",
    "peak_bytes": "a whole number of bytes >= 0, or leave it out",
}
"""What each field must hold, for the end of an error line."""


class ToolRow(Struct, forbid_unknown_fields=True):
    """A tool call as written in a trace."""

    name: str
    tool_class: str = field(name="class")
    wall_s: Seconds
    cpu_s: Seconds | None = None
    cores: Annotated[float, Meta(gt=0)] = 1.0
    result_tokens: Tokens | None = None
    error: bool = False
    peak_bytes: Annotated[int, Meta(ge=0)] | None = None


class PrefixRow(Struct, forbid_unknown_fields=True):
    """A shared prefix as written in a trace."""

    prefix_id: Id = field(name="id")
    tokens: Tokens


class TurnRow(Struct, forbid_unknown_fields=True):
    """A turn as written in a trace."""

    new_input_tokens: Tokens
    output_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)]
    resent_output: Annotated[float, Meta(ge=0, le=1)] = 1.0
    drop_context_to: Tokens | None = None
    kept_prefix_tokens: Tokens | None = None
    tools: tuple[ToolRow, ...] = ()
    think_s: Seconds = 0.0
    children: tuple[ChildRow, ...] = ()


class ChildRow(Struct, forbid_unknown_fields=True):
    """Is a sub-agent session, whose version is that of the line in which it stands."""

    session_id: Id
    turns: Annotated[tuple[TurnRow, ...], Meta(min_length=1)]
    agent: str = ""
    model: str = ""
    arrival_s: Seconds | None = None
    shared_prefix: PrefixRow | None = None
    trace_version: Literal[1] = 1


class SessionRow(ChildRow, forbid_unknown_fields=True, kw_only=True):
    """A line of a canonical trace."""

    trace_version: Literal[1]


_DECODER = msgspec.json.Decoder(SessionRow)
_ENCODER = msgspec.json.Encoder()


def decode_session(line: bytes, *, path: str = "", number: int | None = None) -> Session:
    """Decode the session on one line of a canonical trace.

    Raises TraceError with file, line, field, what was found and how to fix it.
    """
    try:
        return to_session(_DECODER.decode(line))
    except msgspec.ValidationError as error:
        row = _decode_slowly(line, error, path, number)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        problem = f"not JSON ({error}); a trace has one session on each line"
        raise TraceError(problem, path=path, line=number) from error
    except RecursionError as error:
        problem = "nested too deeply; children may be nested a few levels, not thousands"
        raise TraceError(problem, path=path, line=number) from error
    except TraceError as error:
        raise TraceError(error.problem, path=path, line=number, field=error.field) from error
    return to_session(row)


def encode_session(session: Session, extensions: dict[str, Any] | None = None) -> bytes:
    """Encode a session as a line without its newline; optional fields stand only where they are set."""
    row = _session_dict(session)
    turns = row.pop("turns")  # last, so that the start of a long line says all but the turns
    row = {"trace_version": TRACE_VERSION, **row, **(extensions or {}), "turns": turns}
    return _ENCODER.encode(row)


def to_session(row: ChildRow) -> Session:
    """Return the core object of a row that was checked."""
    prefix = row.shared_prefix
    return Session(
        session_id=row.session_id,
        turns=tuple(_turn(turn, index) for index, turn in enumerate(row.turns)),
        agent=row.agent,
        model=row.model,
        arrival_s=row.arrival_s,
        shared_prefix=SharedPrefix(prefix.prefix_id, prefix.tokens) if prefix else None,
    )


def session_ids(session: Session) -> Iterator[str]:
    """Yield the id of a session and the ids of all sub-agent sessions below it."""
    yield session.session_id
    for turn in session.turns:
        for child in turn.children:
            yield from session_ids(child)


def _turn(row: TurnRow, index: int) -> Turn:
    if row.kept_prefix_tokens is not None and row.drop_context_to is None:
        raise TraceError(
            "given without drop_context_to; it says what a compaction leaves untouched",
            field=f"turns[{index}].kept_prefix_tokens",
        )
    return Turn(
        new_input_tokens=row.new_input_tokens,
        output_tokens=row.output_tokens,
        resent_output=row.resent_output,
        drop_context_to=row.drop_context_to,
        kept_prefix_tokens=row.kept_prefix_tokens,
        tools=tuple(
            ToolCall(
                t.name,
                t.tool_class,
                t.wall_s,
                t.cpu_s,
                t.cores,
                t.result_tokens,
                t.error,
                t.peak_bytes,
            )
            for t in row.tools
        ),
        think_s=row.think_s,
        children=tuple(to_session(child) for child in row.children),
    )


def _session_dict(session: Session) -> dict[str, Any]:
    row: dict[str, Any] = {
        "session_id": session.session_id,
        "agent": session.agent,
        "model": session.model,
    }
    if session.arrival_s is not None:
        row["arrival_s"] = session.arrival_s
    if session.shared_prefix is not None:
        prefix = session.shared_prefix
        row["shared_prefix"] = {"id": prefix.prefix_id, "tokens": prefix.tokens}
    row["turns"] = [_turn_dict(turn) for turn in session.turns]
    return row


def _turn_dict(turn: Turn) -> dict[str, Any]:
    row: dict[str, Any] = {
        "new_input_tokens": turn.new_input_tokens,
        "output_tokens": turn.output_tokens,
        "resent_output": turn.resent_output,
    }
    if turn.drop_context_to is not None:
        row["drop_context_to"] = turn.drop_context_to
        if turn.kept_prefix_tokens is not None:
            row["kept_prefix_tokens"] = turn.kept_prefix_tokens
    row["tools"] = [_tool_dict(tool) for tool in turn.tools]
    if turn.think_s:
        row["think_s"] = turn.think_s
    if turn.children:
        row["children"] = [_session_dict(child) for child in turn.children]
    return row


def _tool_dict(tool: ToolCall) -> dict[str, Any]:
    row: dict[str, Any] = {"name": tool.name, "class": tool.tool_class, "wall_s": tool.wall_s}
    if tool.cpu_s is not None:
        row["cpu_s"] = tool.cpu_s
    if tool.cores != 1.0:
        row["cores"] = tool.cores
    if tool.result_tokens is not None:
        row["result_tokens"] = tool.result_tokens
    if tool.error:
        row["error"] = True
    if tool.peak_bytes is not None:
        row["peak_bytes"] = tool.peak_bytes
    return row


def _decode_slowly(
    line: bytes, refusal: msgspec.ValidationError, path: str, number: int | None
) -> SessionRow:
    """Decode a line that the fast way refused: drop its extension keys, or say what is wrong with it."""
    raw: Any = None
    try:
        raw = msgspec.json.decode(line)
        _drop_extensions(raw)
        return msgspec.convert(raw, SessionRow)
    except msgspec.ValidationError as error:
        # a number too big for any type stops even the untyped decoder, which knows no field
        refusal = error if raw is not None else refusal
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        problem = f"not JSON ({error}); a trace has one session on each line"
        raise TraceError(problem, path=path, line=number) from error
    except RecursionError:
        pass
    text, _, where = str(refusal).partition(" - at `$")
    problem, name = _explain(text, where.rstrip("`").lstrip("."), raw)
    raise TraceError(problem, path=path, line=number, field=name) from refusal


def _drop_extensions(raw: Any) -> None:
    if not isinstance(raw, dict):
        return
    for key in [key for key in raw if key.startswith(EXTENSION_PREFIX)]:
        del raw[key]
    turns = raw.get("turns")
    for turn in turns if isinstance(turns, list) else ():
        children = turn.get("children") if isinstance(turn, dict) else None
        for child in children if isinstance(children, list) else ():
            _drop_extensions(child)


def _explain(text: str, name: str, raw: Any) -> tuple[str, str]:
    """Turn msgspec's message and path into (problem with what was found and the fix, field)."""
    match = re.fullmatch(r"Object (missing required|contains unknown) field `(.*)`", text)
    if match is None:
        leaf = re.split(r"[.\[]", re.sub(r"(\[\d+\])+$", "", name))[-1]
        hint = HINTS.get(leaf, "")
        found = _found(raw, name)
        return f"{text[0].lower()}{text[1:]}{found}" + (f" ({hint})" if hint else ""), name
    kind, leaf = match.groups()
    name = f"{name}.{leaf}".lstrip(".")
    if kind == "missing required":
        hint = HINTS.get(leaf, "a string")
        return f"missing (add it: {hint})", name
    return f"unknown field (remove it; only sessions may carry {EXTENSION_PREFIX}... keys)", name


def _found(raw: Any, name: str) -> str:
    """Return the offending value as JSON, shortened to fit a line."""
    if raw is None:
        return ""
    for key, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", name):
        raw = raw[int(index)] if index else raw[key]
    found = msgspec.json.encode(raw).decode()
    return ", found " + (found if len(found) <= 40 else found[:37] + "...")
