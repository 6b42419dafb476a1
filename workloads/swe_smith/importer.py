"""Importer of SWE-smith trajectories: .traj files, and rows of the published message lists."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from marsbench.core import Session
from marsbench.trace.importer import TraceSample
from workloads.messages import chat_message
from workloads.rows import Row, RowSource, read_rows, recognise
from workloads.swe_agent.generation import is_swe_smith
from workloads.swe_agent.importer import (
    IMPORTER as SWE_AGENT,
)
from workloads.swe_agent.importer import (
    chat_session,
    history_steps,
    session_name,
    trajectory_sessions,
)


class SweSmith:
    """Reads one trajectory after the other."""

    name = "swe_smith"
    summary = "SWE-smith: SWE-agent 1.x trajectories on synthetic tasks"
    provenance: Mapping[str, str] = {
        **SWE_AGENT.provenance,
        "agent": "assumed: swe-smith",
        "drop_context_to": "recorded: each step holds its messages",
        "tools.wall_s": "recorded: execution_time; assumed (message-list rows): median of the class",
    }

    def sniff(self, sample: TraceSample) -> bool:
        known = recognise(sample, lambda value: SWE_AGENT.matches(value) or self.matches(value))
        return known and is_swe_smith(sample)

    def matches(self, value: Any) -> bool:
        """Tell whether a decoded row is a published message list (``messages`` and
        ``instance_id``).
        """
        if not isinstance(value, dict) or "instance_id" not in value:
            return False
        found = value.get("messages")
        return isinstance(found, list | str) and bool(found) and "trajectory_format" not in value

    def read(self, path: Path) -> Iterator[Session]:
        return self.sessions(lambda: read_rows(path), root=path)

    def sessions(self, rows: RowSource, root: Path | None = None) -> Iterator[Session]:
        for row in rows():
            if "messages" in row.value:
                yield message_list_session(row, session_name(row, root), "messages", "swe-smith")
            else:
                yield from trajectory_sessions(row, session_name(row, root), agent="swe-smith")


def message_list_session(row: Row, session_id: str, field: str, agent: str) -> Session:
    """Return the session of one list of chat messages, which is written out or given as JSON text."""
    messages = row.value[field]
    if isinstance(messages, str):
        try:
            messages = msgspec.json.decode(messages)
        except msgspec.DecodeError as error:
            raise row.error(f"not JSON ({error})", field) from error
    holder = Row({field: messages}, row.path, row.line)
    steps = history_steps([chat_message(item.value) for item in holder.rows(field)])
    if not steps:
        raise row.error("holds no answer of the model", field)
    model = row.value.get("model") or row.value.get("model_name") or ""
    return chat_session(session_id, steps, agent=agent, model=str(model))


IMPORTER = SweSmith()
