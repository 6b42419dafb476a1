"""TraceLab round rows."""

from __future__ import annotations

import gzip
import json

import pytest

from marsbench.core import plan_turns
from marsbench.errors import TraceError
from workloads.tracelab.importer import IMPORTER


def read(tmp_path, formats, rows):
    file = tmp_path / "rounds.jsonl"
    file.write_text(formats.jsonl(rows))
    return list(IMPORTER.read(file))


def tool(name, start, end, **more):
    return {
        "tool_index": 0,
        "tool_name": name,
        "emitted_at": start,
        "result_at": end,
        "result_chars": 34,
        "is_error": False,
        **more,
    }


def event(kind, second, formats):
    return {"event_type": kind, "timestamp": formats.clock(second), "source": "x"}


def test_tools_and_pauses(formats, tmp_path):
    """Answer at 4 s, tool 4-6.5 s, next request at 7 s: 2.5 s of tool, 0.5 s of pause."""
    clock = formats.clock
    first = formats.tracelab_row(
        "a", 0, 500, 20,
        timing_events=[event("user_message", 0, formats), event("text", 4, formats)],
        tools=[tool("Bash", clock(4), clock(6.5), input={"command": "pytest -q"}, is_error=True)],
    )  # fmt: skip
    second = formats.tracelab_row(
        "a", 1, 600, 20,
        timing_events=[event("tool_result", 7, formats), event("text", 9, formats)],
        tools=[tool("Read", None, None, tool_wall_latency_ms=40, tool_class="read", result_tokens=7)],
    )  # fmt: skip
    third = formats.tracelab_row("a", 2, 700, 20)
    (session,) = read(tmp_path, formats, [first, second, third])
    (bash,), (reading,) = session.turns[0].tools, session.turns[1].tools
    assert (bash.tool_class, bash.wall_s, bash.result_tokens, bash.error) == ("test", 2.5, 10, True)
    assert (reading.tool_class, reading.wall_s, reading.result_tokens) == ("read", 0.04, 7)
    assert session.turns[0].think_s == 0.5
    assert session.turns[2].think_s == 0.0


def test_stripped_reasoning_is_seen_in_the_group(formats, tmp_path):
    """Growth = result + output / 4 + 10: a quarter of each answer is re-sent, never verbatim."""
    rows = []
    for name in ("a", "b"):
        prompt = 1000
        for index in range(20):
            output, result = 80 + 40 * (index % 3), 40 * (index % 5)
            reading = tool("Read", None, None, tool_wall_latency_ms=1, result_tokens=result)
            rows.append(formats.tracelab_row(name, index, prompt, output, tools=[reading]))
            prompt += result + output // 4 + 10
    sessions = read(tmp_path, formats, rows)
    recorded = [row["input_tokens_total"] for row in rows[:20]]
    for session in sessions:
        assert [plan.prompt_tokens for plan in plan_turns(session)] == recorded
        assert [turn.resent_output for turn in session.turns[:-1]] == [0.25] * 19
        assert [turn.new_input_tokens for turn in session.turns[1:4]] == [10, 50, 90]
        assert session.turns[-1].resent_output < 1.0
        assert session.shared_prefix.tokens == 1000 - 128


def test_a_shrinking_prompt_keeps_the_cached_prefix(formats, tmp_path):
    """600 -> 200 with 150 cached: 150 are reused, 50 are new."""
    rows = [
        formats.tracelab_row("a", 0, 600, 20),
        formats.tracelab_row("a", 1, 200, 20, prefix_tokens=150),
    ]
    (session,) = read(tmp_path, formats, rows)
    assert plan_turns(session)[1] == (200, 150, 20)


def test_prefix_tokens_are_not_believed_while_the_prompt_grows(formats, tmp_path):
    """Some writers give a cached prefix longer than the previous prompt; the answer explains it."""
    rows = [
        formats.tracelab_row("a", 0, 500, 20),
        formats.tracelab_row("a", 1, 600, 20, prefix_tokens=600),
    ]
    (session,) = read(tmp_path, formats, rows)
    assert plan_turns(session)[1] == (600, 520, 20)


def test_a_session_that_comes_back_is_an_error(formats, tmp_path):
    """Rows of a session stand together; the line that breaks this is named."""
    rows = [formats.tracelab_row(name, i, 500, 1) for i, name in enumerate(["a", "b", "a"])]
    with pytest.raises(TraceError, match=r"rounds\.jsonl:3: session_id: session 'a' comes back"):
        read(tmp_path, formats, rows)


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("input_tokens_total", 0, "at least one prompt token"),
        ("input_tokens_total", "many", "expected a number"),
        ("output_tokens", -1, ">= 0"),
        ("tools", {}, "expected a list"),
        ("round_index", 0, "must grow"),
    ],
)
def test_wrong_fields_are_named(formats, tmp_path, field, value, problem):
    """File, line and field are in the error."""
    rows = [formats.tracelab_row("a", 0, 500, 20), formats.tracelab_row("a", 1, 600, 20)]
    rows[1][field] = value
    with pytest.raises(TraceError, match=rf"rounds\.jsonl:2: {field}: .*{problem}"):
        read(tmp_path, formats, rows)


def test_the_real_unattended_sessions(real_data):
    """111 sessions, 5,631 calls: exact prompts, 13.1k shared, about 0.55 of the output re-sent."""
    file = real_data / "swe_rebench_glm.rounds.jsonl.gz"
    recorded: dict[str, list[int]] = {}
    with gzip.open(file, "rt") as stream:
        for line in stream:
            row = json.loads(line)
            recorded.setdefault(row["session_id"], []).append(row["input_tokens_total"])
    sessions = list(IMPORTER.read(file))
    turns = [turn for session in sessions for turn in session.turns]
    assert (len(sessions), len(turns)) == (111, 5631)
    for session in sessions:
        plan = [turn.prompt_tokens for turn in plan_turns(session)]
        assert plan == recorded[session.session_id]
    resent = sum(turn.resent_output * turn.output_tokens for turn in turns)
    assert 0.5 < resent / sum(turn.output_tokens for turn in turns) < 0.6
    assert all(turn.resent_output < 1.0 for turn in turns)
    assert 13_000 < sessions[0].shared_prefix.tokens < 13_200
