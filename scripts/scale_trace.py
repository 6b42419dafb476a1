"""Writes sessions of a workload with fewer tokens: for engines too small for real contexts.

Every prompt, tool result and shared prefix shrinks by one factor, every output by another; turns,
tools and their times stay. A session keeps its shape, so what a full KV cache does to it stays.

    python scripts/scale_trace.py swe-short scaled.jsonl --sessions 100 --prompts 0.25 --outputs 0.2
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from marsbench.core import Session, Turn
from marsbench.trace.io import open_atomic, write_sessions
from marsbench.trace.source import open_workload


def scaled(session: Session, prompts: float, outputs: float) -> Session:
    """The session with its tokens scaled; what was there stays there, with one token at least."""

    def turn(recorded: Turn) -> Turn:
        tools = tuple(
            dataclasses.replace(call, result_tokens=_part(call.result_tokens, prompts))
            for call in recorded.tools
        )
        return dataclasses.replace(
            recorded,
            new_input_tokens=_part(recorded.new_input_tokens, prompts) or 0,
            output_tokens=_part(recorded.output_tokens, outputs) or 1,
            drop_context_to=_part(recorded.drop_context_to, prompts),
            kept_prefix_tokens=_part(recorded.kept_prefix_tokens, prompts),
            tools=tools,
            children=tuple(scaled(child, prompts, outputs) for child in recorded.children),
        )

    prefix = session.shared_prefix
    if prefix is not None:
        prefix = dataclasses.replace(prefix, tokens=_part(prefix.tokens, prompts) or 0)
    return dataclasses.replace(
        session, shared_prefix=prefix, turns=tuple(turn(one) for one in session.turns)
    )


def _part(tokens: int | None, factor: float) -> int | None:
    return max(1, round(tokens * factor)) if tokens else tokens


def main(
    workload: Annotated[str, typer.Argument(help="Registered name or trace file.")],
    out: Annotated[Path, typer.Argument(help="Trace to write.")],
    sessions: Annotated[int, typer.Option(min=1)] = 100,
    seed: Annotated[int, typer.Option(help="Of the sessions.")] = 0,
    prompts: Annotated[float, typer.Option(help="Factor of prompt tokens.", min=0)] = 0.25,
    outputs: Annotated[float, typer.Option(help="Factor of output tokens.", min=0)] = 0.25,
) -> None:
    """Write the trace."""
    source = open_workload(workload)
    found = source.sessions(sessions, seed)
    with open_atomic(out) as stream:
        write_sessions(stream, [scaled(one, prompts, outputs) for one in found])


if __name__ == "__main__":
    typer.run(main)
