"""``marsbench record``: a transparent gateway that writes what agents do as a canonical trace."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
    from marsbench.gateway.settings import GatewaySettings, Waits

    run(
        GatewaySettings(
            backends=tuple(upstream),
            host=host,
            port=port,
            engine=engine,
            tokens=read_tokens(token_file),
            upstream_key=read_key(upstream_key_file),
            session_per_key=session_per_key,
            record=out,
            append=append,
            waits=Waits(session_idle_s=session_idle),
        )
    )
