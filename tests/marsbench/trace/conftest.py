"""Builders of sessions and trace files for the trace stage."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import strategies as st

from marsbench import registry
from marsbench.core import Session, SharedPrefix, ToolCall, Turn
from marsbench.trace import io

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"


def _tools():
    return st.builds(
        ToolCall,
        name=st.text(max_size=8),
        tool_class=st.sampled_from(["read", "test", "subagent"]),
        wall_s=st.floats(0, 1e4),
        cpu_s=st.none() | st.floats(0, 1e4),
        cores=st.floats(0.1, 64),
        result_tokens=st.none() | st.integers(0, 30_000),
        error=st.booleans(),
    )


def _turns(children):
    def build(kept, **fields):
        return Turn(
            kept_prefix_tokens=kept if fields["drop_context_to"] is not None else None, **fields
        )

    return st.builds(
        build,
        kept=st.none() | st.integers(0, 5000),
        new_input_tokens=st.integers(0, 5000),
        output_tokens=st.integers(1, 3000),
        resent_output=st.sampled_from([1.0, 1.0, 0.55, 0.0]),
        drop_context_to=st.none() | st.integers(0, 5000),
        tools=st.lists(_tools(), max_size=3).map(tuple),
        think_s=st.sampled_from([0.0, 1.5]),
        children=children,
    )


def _sessions(turns, session_ids):
    return st.builds(
        Session,
        session_id=session_ids,
        turns=st.lists(turns, min_size=1, max_size=6).map(tuple),
        agent=st.text(max_size=5),
        model=st.sampled_from(["", "m"]),
        arrival_s=st.none() | st.floats(0, 1e6),
        shared_prefix=st.none()
        | st.builds(SharedPrefix, st.sampled_from(["p", "q"]), st.integers(0, 4000)),
    )


@pytest.fixture(scope="session")
def any_session():
    """A hypothesis strategy: sessions named "s", with at most one level of sub-agents, "s/0"..."""
    leaf = _sessions(_turns(st.just(())), st.just("child"))
    session = _sessions(_turns(st.just(()) | leaf.map(lambda s: (s,))), st.just("s"))
    return session.map(_name_children)


def _name_children(session):
    from dataclasses import replace

    turns = [
        replace(turn, children=tuple(replace(c, session_id=f"s/{i}") for c in turn.children))
        for i, turn in enumerate(session.turns)
    ]
    return replace(session, turns=tuple(turns))


@pytest.fixture
def session():
    """Builds a session of simple turns: (new input, output, tool seconds...)."""

    def build(session_id="s", turns=((100, 10, 1.0), (50, 5)), **fields):
        built = tuple(
            Turn(new, out, tools=tuple(ToolCall("Bash", "test", wall_s) for wall_s in walls))
            for new, out, *walls in turns
        )
        return Session(session_id, built, **fields)

    return build


@pytest.fixture
def write(tmp_path):
    """Writes sessions as a canonical trace and returns its path."""

    def write_file(sessions, name="trace.jsonl", extensions=None):
        path = tmp_path / name
        with io.open_atomic(path) as stream:
            io.write_sessions(stream, sessions, extensions)
        return path

    return write_file


@pytest.fixture
def shared_data():
    """Real traces beside the project, where there are any."""
    if not SHARED.exists():
        pytest.skip("no real traces beside the project")
    return SHARED


PLUGIN = """
from marsbench.core import Session, Turn

class Twin:
    summary = "a made-up format"
    provenance = {"output_tokens": "recorded"}
    def __init__(self, name): self.name = name
    def sniff(self, sample): return sample.head.startswith(self.name[:4].encode())
    def read(self, path):
        for line in path.read_text().splitlines():
            yield Session(line, (Turn(10, 1),))

class Made:
    name = "made"
    summary = "one session"
    provenance = {"output_tokens": "assumed: 1"}
    def sessions(self, num, seed, split="all"):
        return [Session(f"{seed}/{i}", (Turn(10, 1),)) for i in range(num or 100)]

TWIN_A, TWIN_B, SOLO = Twin("twin_a"), Twin("twin_b"), Twin("solo")
IMPORTERS = {n: f"made_up_plugin.{n.upper()}" for n in ("twin_a", "twin_b", "solo")}
WORKLOADS = {"made": "made_up_plugin.Made"}
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """An installed plug-in package with three formats, two of which claim the same files."""
    site = tmp_path / "site"
    info = site / "made_up_plugin-1.dist-info"
    info.mkdir(parents=True)
    (site / "made_up_plugin.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: made-up-plugin\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[marsbench.plugins]\nzz_made_up = made_up_plugin\n")
    monkeypatch.syspath_prepend(str(site))
    registry.tables.cache_clear()
    yield
    registry.tables.cache_clear()
