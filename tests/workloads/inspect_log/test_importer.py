"""Inspect logs: model and tool events, hand-offs, and both kinds of files."""

from __future__ import annotations

import json
import zipfile

import pytest

from marsbench.core import plan_turns
from marsbench.errors import TraceError
from marsbench.trace.source import open_trace
from workloads.inspect_log.importer import IMPORTER


@pytest.fixture
def log(formats):
    return formats.fixtures / "inspect_log.json"


def test_a_sample_is_a_session(log):
    """Cache reads are part of the prompt; a call without usage reached no engine."""
    (session,) = IMPORTER.read(log)
    assert (session.session_id, session.agent) == ("task-1/s1/1", "react")
    assert [p.prompt_tokens for p in plan_turns(session)] == [800, 930, 1000]
    assert [(t.tool_class, t.wall_s, t.error) for t in session.turns[0].tools] == [
        ("test", 6.0, True)
    ]


def test_a_hand_off_is_a_sub_agent(log):
    """The agent inside a tool's span is a child, and its tool takes no time of its own."""
    (session,) = IMPORTER.read(log)
    (child,) = session.turns[1].children
    assert child.agent == "explorer"
    assert [p.prompt_tokens for p in plan_turns(child)] == [200, 240]
    assert [(t.name, t.tool_class, t.wall_s) for t in session.turns[1].tools] == [
        ("handoff", "subagent", 0.0)
    ]
    assert session.turns[1].think_s == 2.0


def test_the_packed_form_is_the_same(log, tmp_path):
    """An .eval file holds the header and each sample as a member of an archive."""
    content = json.loads(log.read_text())
    path = tmp_path / "log.eval"
    samples = content.pop("samples")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("header.json", json.dumps(content))
        archive.writestr("samples/s1_epoch_1.json", json.dumps(samples[0]))
    importer, sessions = open_trace(path)
    assert importer is IMPORTER
    assert list(sessions) == list(IMPORTER.read(log))
    assert open_trace(tmp_path)[0] is IMPORTER


def test_a_foreign_archive_is_named(tmp_path):
    """A zip file without a header is no log, and says so in one line."""
    path = tmp_path / "other.eval"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "x")
    with pytest.raises(TraceError, match=r"other\.eval: is no Inspect log"):
        list(IMPORTER.read(path))
