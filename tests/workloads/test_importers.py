"""Rules that every trace importer keeps."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from marsbench.core import Session, plan_turns
from marsbench.errors import TraceError
from marsbench.trace import io
from marsbench.trace.importer import TraceSample
from marsbench.trace.schema import decode_session, encode_session, session_ids
from marsbench.trace.source import find_importer, importers
from workloads import IMPORTERS
from workloads.tool_class import CLASSES

NAMES = sorted(IMPORTERS)


def all_sessions(session: Session) -> list[Session]:
    children = [c for t in session.turns for child in t.children for c in all_sessions(child)]
    return [session, *children]


def assert_sound(sessions: list[Session]) -> None:
    """Sessions survive the canonical format, and their plans lose no token."""
    ids = [name for session in sessions for name in session_ids(session)]
    assert len(set(ids)) == len(ids)
    for top in sessions:
        assert decode_session(encode_session(top)) == top
        for session in all_sessions(top):
            plans = plan_turns(session)
            prefix = session.shared_prefix.tokens if session.shared_prefix else 0
            assert all(prefix < plan.prompt_tokens for plan in plans)
            assert all(turn.new_input_tokens >= 0 for turn in session.turns)
            for before, after in pairwise(plans):
                assert after.reused_tokens <= before.prompt_tokens + before.output_tokens
            for turn in session.turns:
                assert turn.think_s >= 0
                assert all(tool.tool_class in CLASSES and tool.wall_s >= 0 for tool in turn.tools)
                assert all(tool.cpu_s is None for tool in turn.tools)


@pytest.mark.parametrize("name", NAMES)
def test_each_format_is_recognised_by_its_importer_alone(name, formats, tmp_path):
    """Exactly one importer sniffs a file of each format, however the file is given."""
    written = formats.writers[name](tmp_path)
    candidates = [written, tmp_path] if name != "huggingface" else [written]
    for path in candidates:
        sample = io.sample(path)
        assert [key for key, found in importers().items() if found.sniff(sample)] == [name]


@pytest.mark.parametrize("name", NAMES)
def test_sessions_have_the_recorded_prompts_and_are_canonical(name, formats, tmp_path):
    """Planned prompts equal the recorded ones, and each session can be written and read back."""
    path = formats.writers[name](tmp_path)
    sessions = list(find_importer(name).read(path))
    assert sessions
    assert_sound(sessions)
    if name in formats.recorded_prompts:
        found = [[plan.prompt_tokens for plan in plan_turns(session)] for session in sessions]
        assert found == formats.recorded_prompts[name]


@pytest.mark.parametrize("name", NAMES)
def test_importers_say_how_they_know(name):
    """Each field is recorded, derived, assumed or absent; names agree with the table."""
    importer = find_importer(name)
    assert importer.name == name
    assert importer.summary
    first_words = ("recorded", "derived", "assumed", "absent", "as the format")
    assert all(text.startswith(first_words) for text in importer.provenance.values())


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(head=st.one_of(st.binary(max_size=300), st.text(alphabet='{}[]",:\\ab1\n', max_size=80)))
def test_sniffing_foreign_bytes_is_false_and_silent(name, head):
    """Bytes of no format are not recognised and never raise."""
    content = head if isinstance(head, bytes) else head.encode()
    assume(not content.startswith((b"PAR1", b"ARROW1")))  # the magic of a table is enough
    assert not find_importer(name).sniff(TraceSample(Path("no-such-file"), content))


@pytest.mark.parametrize(
    "name", [n for n in NAMES if n not in {"huggingface", "openhands_v1", "csv_requests"}]
)
def test_broken_json_names_the_file(name, tmp_path):
    """A line that is no JSON is an error that names file and line."""
    file = tmp_path / "broken.jsonl"
    file.write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(TraceError, match=r"broken\.jsonl"):
        list(find_importer(name).read(file))


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_path_is_an_error(name, tmp_path):
    """A path that does not exist is one clear line."""
    with pytest.raises(TraceError, match="nowhere"):
        list(find_importer(name).read(tmp_path / "nowhere.jsonl"))


REAL = {
    "tracelab": ["fixtures/tracelab/*.jsonl", "swe_rebench_glm.rounds.jsonl.gz"],
    "weka": ["fixtures/weka/*.gz", "weka_claude_code.hash_rle.jsonl.gz"],
    "mooncake": ["fixtures/mooncake_conversation_200.jsonl"],
    "swe_agent": ["fixtures/swe_agent/*.gz"],
    "swe_smith": ["fixtures/swe_smith/*.gz"],
    "mini_swe_agent": ["fixtures/mini_swe_agent/*.json"],
    "openhands_v0": ["fixtures/openhands_v0/*.gz"],
    "claude_code": ["fixtures/claude_code/*.jsonl"],
}


@pytest.mark.parametrize("name", sorted(REAL))
def test_real_files_are_recognised_and_sound(name, real_data):
    """Real files of each format have one importer and give sound sessions."""
    files = [file for pattern in REAL[name] for file in sorted(real_data.glob(pattern))]
    assert files
    for file in files:
        sample = io.sample(file)
        assert [key for key, found in importers().items() if found.sniff(sample)] == [name]
        if "hash_rle" in file.name:
            continue  # read in tests/workloads/weka
        assert_sound(list(find_importer(name).read(file)))
