"""OpenHands V1 recordings."""

from __future__ import annotations

import pytest

from marsbench.core import plan_turns
from marsbench.errors import TraceError
from marsbench.trace import io
from workloads.openhands_v1.importer import IMPORTER


def check(session):
    """Two parallel calls, an error, a condensation, a final message."""
    # The condenser's own call (r9) is no turn; after it only the shared prefix is reused.
    plans = plan_turns(session)
    assert [plan[::2] for plan in plans] == [(800, 50), (900, 20), (700, 5)]
    assert session.shared_prefix.tokens == 800 * 602 // 802
    assert plans[2].reused_tokens == session.shared_prefix.tokens
    tools = [[(t.tool_class, t.wall_s, t.error) for t in turn.tools] for turn in session.turns]
    assert tools == [
        [("test", 3.0, True), ("shell_read", 0.5, False)],
        [("shell_read", 0.25, True)],
        [],
    ]
    # Last observation at 5.0, next action at 8.0 with 2.0 of latency; 8.25 -> 12.0 - 2.0.
    assert [turn.think_s for turn in session.turns] == [1.0, 1.75, 0.0]


def test_a_conversation_directory(formats, tmp_path):
    """Events and base state make a session; keys in the state are left alone."""
    folder = formats.writers["openhands_v1"](tmp_path)
    (session,) = IMPORTER.read(folder)
    check(session)
    assert (session.session_id, session.model) == ("0abc", "m")
    assert list(IMPORTER.read(tmp_path)) == [session]


def test_a_benchmark_row(formats, tmp_path):
    """Rows of output.jsonl hold the same events."""
    row = {
        "instance_id": "org__repo-1",
        "metadata": {"llm": {"model": "m", "api_key": "secret"}},
        "history": formats.openhands_v1_events(),
        "metrics": formats.openhands_v1_metrics,
    }
    file = tmp_path / "output.jsonl"
    file.write_text(formats.jsonl([row]))
    assert IMPORTER.sniff(io.sample(file))
    (session,) = IMPORTER.read(file)
    check(session)


def test_a_directory_without_conversation_is_an_error(tmp_path):
    """The directory is named."""
    with pytest.raises(TraceError, match=r"base_state\.json below it"):
        list(IMPORTER.read(tmp_path))
