"""Claude Code transcripts."""

from __future__ import annotations

import json

import pytest

from marsbench.core import plan_turns
from marsbench.errors import TraceError
from marsbench.trace import io
from workloads.claude_code.importer import IMPORTER
from workloads.context import MID_CONVERSATION


def read(tmp_path, formats, lines, name="session.jsonl"):
    (tmp_path / name).write_text(formats.jsonl(lines))
    return list(IMPORTER.read(tmp_path))


def text(content):
    return {"type": "text", "text": content}


def test_lines_of_one_message_are_one_call(formats, tmp_path):
    """Three lines repeat one usage: it counts once, and their tools run at once."""
    use = formats.tool_use
    lines = [
        formats.claude_line("user", 0, "fix it"),
        formats.claude_answer(4, "m1", [text("I look")], 500, 60),
        formats.claude_answer(5, "m1", [use("t1", "Bash", command="pytest -q")], 500, 60),
        formats.claude_answer(6, "m1", [use("t2", "Read", file_path="a.py")], 500, 60),
        formats.tool_result(6.5, "t2", "x" * 68),
        formats.tool_result(9, "t1", "x" * 34),
        formats.claude_answer(12, "m2", [text("fixed")], 700, 8),
    ]
    (session,) = read(tmp_path, formats, lines)
    assert [tuple(plan) for plan in plan_turns(session)] == [(500, 0, 60), (700, 560, 8)]
    tools = [(t.tool_class, t.wall_s, t.result_tokens) for t in session.turns[0].tools]
    assert tools == [("test", 4.0, 10), ("read", 0.5, 20)]
    assert session.turns[0].think_s == 0.0
    assert session.model == "claude-x"


def test_a_snapshot_of_the_output_is_replaced_by_its_text(formats, tmp_path):
    """3 logged tokens for 340 characters: 100 from text. A later line's larger count wins."""
    lines = [
        formats.claude_line("user", 0, "hi"),
        formats.claude_answer(1, "m1", [text("x" * 340)], 500, 3),
        formats.claude_answer(2, "m2", [text("x" * 340)], 700, 3),
        formats.claude_answer(3, "m2", [], 700, 80),
    ]
    (session,) = read(tmp_path, formats, lines)
    assert [turn.output_tokens for turn in session.turns] == [100, 80]


def test_people_think_between_answers(formats, tmp_path):
    """Answer at 4 s, the next message at 34 s: a pause of 30 s and no tool."""
    lines = [
        formats.claude_line("user", 0, "hi"),
        formats.claude_answer(4, "m1", [text("hello")], 500, 8),
        formats.claude_line("user", 34, "more"),
        formats.claude_answer(40, "m2", [text("sure")], 520, 8),
    ]
    (session,) = read(tmp_path, formats, lines)
    assert (session.turns[0].think_s, session.turns[0].tools) == (30.0, ())


def test_compaction_keeps_only_the_shared_prefix(formats, tmp_path):
    """The summary starts the context anew; sessions of one version and model share 372 tokens."""

    def lines(session):
        return [
            formats.claude_line("user", 0, "hi", sessionId=session),
            formats.claude_answer(4, f"{session}1", [text("x")], 500, 8, sessionId=session),
            formats.claude_line("user", 9, "summary", sessionId=session, isCompactSummary=True),
            formats.claude_answer(12, f"{session}2", [text("y")], 900, 8, sessionId=session),
        ]

    sessions = read(tmp_path, formats, [*lines("a"), *lines("b")])
    assert [session.session_id for session in sessions] == ["a", "b"]
    for session in sessions:
        assert session.shared_prefix.tokens == 500 - 128
        assert plan_turns(session)[1] == (900, 372, 8)


def test_resumed_sessions_do_not_count_copies(formats, tmp_path):
    """A resumed session begins with copied answers: they stay with the first, the rest is marked."""
    first = [
        formats.claude_line("user", 0, "hi", sessionId="a"),
        formats.claude_answer(4, "m1", [text("x")], 500, 8, sessionId="a"),
    ]
    copies = [{**line, "sessionId": "b"} for line in first]
    more = [
        formats.claude_line("user", 50, "go on", sessionId="b"),
        formats.claude_answer(54, "m2", [text("y")], 600, 8, sessionId="b"),
    ]
    (tmp_path / "a.jsonl").write_text(formats.jsonl(first))
    one, two = read(tmp_path, formats, [*copies, *more], name="b.jsonl")
    assert [len(one.turns), len(two.turns)] == [1, 1]
    assert plan_turns(two)[0].prompt_tokens == 600
    assert (one.agent, two.agent) == ("claude-code", "claude-code" + MID_CONVERSATION)


def task_lines(formats, **result):
    """A main thread that starts one sub-agent with prompt 'look' and waits 20 s for it."""
    task = formats.tool_use("t1", "Task", prompt="look", subagent_type="Explore")
    return [
        formats.claude_line("user", 0, "hi"),
        formats.claude_answer(4, "m1", [task], 500, 20),
        formats.tool_result(24, "t1", "found", **result),
        formats.claude_answer(27, "m2", [text("done")], 560, 8),
    ]


def agent_lines(formats, **more):
    return [
        formats.claude_line("user", 5, "look", isSidechain=True, uuid="p", parentUuid=None, **more),
        formats.claude_answer(
            8, "c1", [text("a")], 300, 8, isSidechain=True, uuid="q", parentUuid="p", **more
        ),
        formats.claude_line("user", 9, "and", isSidechain=True, uuid="r", parentUuid="q", **more),
        formats.claude_answer(
            12, "c2", [text("b")], 330, 8, isSidechain=True, uuid="s", parentUuid="r", **more
        ),
    ]


def check_child(session):
    assert [len(turn.children) for turn in session.turns] == [1, 0]
    (child,) = session.turns[0].children
    assert [plan.prompt_tokens for plan in plan_turns(child)] == [300, 330]
    assert child.agent == "claude-code/subagent"
    assert child.turns[0].think_s == 1.0
    # The sub-agent runs again in a replay, so its call takes no time of its own.
    assert [(t.tool_class, t.wall_s) for t in session.turns[0].tools] == [("subagent", 0.0)]


def test_sidechains_in_the_file_are_children(formats, tmp_path):
    """Older clients log sub-agents between the parent's lines; the prompt tells the call."""
    main = task_lines(formats)
    (session,) = read(tmp_path, formats, [*main[:2], *agent_lines(formats), *main[2:]])
    check_child(session)


def test_agent_files_are_children(formats, tmp_path):
    """Newer clients write agent-ID.jsonl; the parent's result names the id."""
    (tmp_path / "agent-77.jsonl").write_text(formats.jsonl(agent_lines(formats, agentId="77")))
    (session,) = read(tmp_path, formats, task_lines(formats, toolUseResult={"agentId": "77"}))
    check_child(session)
    assert session.turns[0].children[0].session_id == "s1/77"


def test_agent_progress_lines_are_children(formats, tmp_path):
    """Or they log progress of the call; each line holds one of the sub-agent's."""
    progress = []
    for line in agent_lines(formats):
        inner = {key: line[key] for key in ("type", "message", "timestamp", "uuid")}
        data = {"type": "agent_progress", "message": inner, "agentId": "77"}
        progress.append(
            {
                "type": "progress",
                "sessionId": "s1",
                "timestamp": line["timestamp"],
                "data": data,
                "parentToolUseID": "t1",
            }
        )
    main = task_lines(formats)
    (session,) = read(tmp_path, formats, [*main[:2], *progress, *main[2:]])
    check_child(session)


def test_a_sub_agent_that_is_not_logged_keeps_its_duration(formats, tmp_path):
    """Without an inner log the call itself took 20 s."""
    (session,) = read(tmp_path, formats, task_lines(formats))
    assert [tool.wall_s for tool in session.turns[0].tools] == [20.0]
    assert session.turns[0].children == ()


def test_bundles_are_unwrapped(formats, tmp_path):
    """{"task", "entry"} lines are the transcript of a task; equal session ids are kept apart."""
    lines = [
        formats.claude_line("user", 0, "hi"),
        formats.claude_answer(4, "m1", [text("x")], 500, 8),
    ]
    other = [lines[0], formats.claude_answer(4, "m9", [text("x")], 600, 8)]
    bundle = [{"task": "one", "entry": line} for line in lines]
    bundle += [{"task": "two", "entry": line} for line in other]
    sessions = read(tmp_path, formats, bundle)
    assert [session.session_id for session in sessions] == ["one/s1", "two/s1"]


def test_errors_written_by_the_client_are_no_calls(formats, tmp_path):
    """Synthetic answers never reached a model."""
    synthetic = formats.claude_answer(9, "m2", [text("API error")], 2, 0)
    synthetic["message"]["model"] = "<synthetic>"
    lines = [
        formats.claude_line("user", 0, "hi"),
        formats.claude_answer(4, "m1", [text("x")], 500, 8),
        synthetic,
    ]
    (session,) = read(tmp_path, formats, lines)
    assert len(session.turns) == 1


def test_other_files_of_a_directory_are_passed_over(formats, tmp_path):
    """Result files beside the transcripts do not count, in sniffing or reading."""
    (tmp_path / "aa_results.json").write_text(json.dumps({"image": "x"}))
    (tmp_path / "bb_samples.jsonl").write_text('{"cpu": 1}\n')
    formats.writers["claude_code"](tmp_path)
    assert IMPORTER.sniff(io.sample(tmp_path))
    assert len(list(IMPORTER.read(tmp_path))) == 1


def test_wrong_usage_is_named(formats, tmp_path):
    """File, line and field are in the error."""
    lines = [formats.claude_line("user", 0, "hi"), formats.claude_answer(4, "m1", [], 500, 8)]
    lines[1]["message"]["usage"]["output_tokens"] = "8"
    with pytest.raises(TraceError, match=r"session\.jsonl:2: output_tokens: expected a number"):
        read(tmp_path, formats, lines)


def test_a_directory_without_transcripts_is_an_error(tmp_path):
    """The directory is named."""
    (tmp_path / "a.jsonl").write_text('{"cpu": 1}\n')
    with pytest.raises(TraceError, match="no Claude Code transcript"):
        list(IMPORTER.read(tmp_path))
