"""Sessions from timed spans: which calls, tools and pauses belong to whom."""

from __future__ import annotations

import pytest

from marsbench.core import ToolCall, plan_turns
from marsbench.errors import TraceError
from workloads.spans import AgentSpan, SpanTree, span_sessions


def call(name, start_s, end_s, prompt=100, parent=None):
    return AgentSpan(name, parent, "call", start_s, end_s, prompt, 10, model="m")


def tool(name, start_s, end_s, parent=None):
    return AgentSpan(
        name, parent, "tool", start_s, end_s, tool=ToolCall("Bash", "shell_other", 0.0)
    )


def agent(name, start_s, parent=None):
    return AgentSpan(name, parent, "agent", start_s, start_s, agent=name)


def session(*spans, **fields):
    tree = SpanTree("s", "file", {span.span_id: span for span in spans})
    (found,) = span_sessions([tree], "x")
    return found


def test_a_tool_belongs_to_the_call_before_it():
    """Tools start after their call and before the next; the rest of the gap is a pause.

    Call 0-2 s, tools 2-5 s and 2-3 s, next call at 6 s: 1 s of pause.
    """
    found = session(call("a", 0, 2), tool("x", 2, 5), tool("y", 2, 3), call("b", 6, 7, 150))
    assert [[t.wall_s for t in turn.tools] for turn in found.turns] == [[1.0, 3.0], []]
    assert [turn.think_s for turn in found.turns] == [1.0, 0.0]


def test_a_tool_that_outlasts_the_next_call_leaves_no_pause():
    """A pause is never negative, and a tool keeps the time it took."""
    found = session(call("a", 0, 2), tool("x", 2, 9), call("b", 3, 4, 150))
    assert found.turns[0].think_s == 0.0
    assert found.turns[0].tools[0].wall_s == 7.0


def test_an_agent_inside_an_agent_is_a_sub_agent():
    """Its calls are a session of their own, hung on the call before it; its tool takes no time."""
    found = session(
        agent("outer", 0), call("a", 0, 2, parent="outer"), tool("task", 2, 12, "outer"),
        agent("inner", 2, "task"), call("b", 2, 5, 80, "inner"), tool("grep", 5, 6, "inner"),
        call("c", 6, 12, 90, "inner"), call("d", 13, 14, 150, "outer"),
    )  # fmt: skip
    assert [p.prompt_tokens for p in plan_turns(found)] == [100, 150]
    (child,) = found.turns[0].children
    assert (child.session_id, child.agent) == ("s/0.0", "inner")
    assert [p.prompt_tokens for p in plan_turns(child)] == [80, 90]
    assert [t.wall_s for t in child.turns[0].tools] == [1.0]
    assert [(t.tool_class, t.wall_s) for t in found.turns[0].tools] == [("subagent", 0.0)]
    assert found.turns[0].think_s == 1.0


def test_an_agent_that_only_wraps_another_is_the_session():
    """Where the outermost agent makes no call, the one inside it is no sub-agent."""
    found = session(
        agent("outer", 0), agent("inner", 0, "outer"), call("a", 0, 1, parent="inner"),
        call("b", 2, 3, 150, parent="inner"),
    )  # fmt: skip
    assert len(found.turns) == 2
    assert not found.turns[0].children


def test_agents_one_after_the_other_are_one_session():
    """Two agents side by side are the same session's, with the pause between them."""
    found = session(
        agent("one", 0), call("a", 0, 1, parent="one"), agent("two", 5),
        call("b", 5, 6, 150, parent="two"),
    )  # fmt: skip
    assert [turn.think_s for turn in found.turns] == [4.0, 0.0]


def test_sessions_arrive_in_order_of_their_first_calls():
    """Times count from the first session; a trace without LLM calls is no session."""
    trees = [
        SpanTree("late", "f", {"a": call("a", 30, 31, 1000)}),
        SpanTree("early", "f", {"b": call("b", 10, 11, 900)}),
        SpanTree("none", "f", {"t": tool("t", 0, 1)}),
    ]
    found = list(span_sessions(trees, "x"))
    assert [(s.session_id, s.arrival_s) for s in found] == [("early", 0.0), ("late", 20.0)]
    assert {s.shared_prefix.tokens for s in found} == {900 - 128}


def test_a_span_inside_itself_is_an_error():
    """A ring of parents is named with its file, and no endless loop."""
    with pytest.raises(TraceError, match=r"file: span '[ab]' contains itself"):
        session(call("c", 0, 1, parent="a"), agent("a", 0, "b"), agent("b", 0, "a"))
