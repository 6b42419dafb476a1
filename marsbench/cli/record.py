"""``marsbench record``: a transparent gateway that writes what agents do as a canonical trace."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from marsbench.cli.serve import (
    Engine,
    Host,
    Idle,
    KeyFile,
    PerKey,
    Port,
    TokenFile,
    Upstream,
    read_key,
    read_tokens,
    run,
)

if TYPE_CHECKING:
    from marsbench.gateway.recording.recorder import TraceRecorder


def command(
    upstream: Upstream,
    out: Annotated[Path, typer.Option("--out", "-o", help="Trace (.jsonl, .gz or .zst).")],
    host: Host = "127.0.0.1",
    port: Port = 8080,
    append: Annotated[bool, typer.Option("--append", help="Add to a trace.")] = False,
    engine: Engine = "openai",
    token_file: TokenFile = None,
    upstream_key_file: KeyFile = None,
    session_per_key: PerKey = False,
    session_idle: Idle = 600.0,
) -> None:
    """Record agents: point them at this address instead of the model's, run them, press Ctrl+C.

    Lengths, reuse and times are written, never text. Replay with `marsbench run -w TRACE`.
    """
    from marsbench.gateway.settings import GatewaySettings, Timeouts

    settings = GatewaySettings(
        backends=tuple(upstream),
        host=host,
        port=port,
        engine=engine,
        tokens=read_tokens(token_file),
        upstream_key=read_key(upstream_key_file),
        session_per_key=session_per_key,
        record=out,
        append=append,
        timeouts=Timeouts(session_idle_s=session_idle),
    )
    gateway = run(settings, f"recording to {out}")
    assert gateway.recorder is not None
    print(f"marsbench: {summary(gateway.recorder)}", file=sys.stderr)


def summary(recorder: TraceRecorder) -> str:
    """What the recording holds and how to go on with it, in one line."""
    told = f"{recorder.path}: {recorder.num_sessions} sessions"
    if recorder.num_turns:
        told += f", {recorder.num_turns} turns, {recorder.output_tokens:,} output tokens recorded"
    if recorder.failures:
        told += f"; {recorder.failures} sessions could not be written"
    if not recorder.num_sessions:
        return told + "; did agents use this address instead of the model's?"
    return told + f"; replay them with `marsbench run -w {recorder.path}`"
