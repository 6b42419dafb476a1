"""OpenTelemetry spans: both ways of writing them, and what their attributes mean."""

from __future__ import annotations

import json

import pytest

from marsbench.core import plan_turns
from marsbench.errors import TraceError
from marsbench.trace.source import open_trace
from workloads.otel_genai.importer import IMPORTER


@pytest.fixture
def otlp(formats):
    return formats.fixtures / "otel_genai.jsonl"


def test_otlp_spans_make_a_session_with_a_sub_agent(otlp):
    """Spans of three messages are one conversation; the agent inside the tool is a sub-agent."""
    (session,) = IMPORTER.read(otlp)
    assert (session.session_id, session.agent, session.model) == ("conv-1", "coder", "m-large")
    first, second, third = session.turns
    assert [(t.tool_class, t.wall_s, t.error) for t in first.tools] == [("test", 5.0, True)]
    assert (first.think_s, second.think_s) == (0.5, 0.0)
    (child,) = second.children
    assert (child.agent, child.model) == ("explorer", "m-large")
    assert [p.prompt_tokens for p in plan_turns(child)] == [400, 450]
    assert not third.tools


def test_flat_spans_are_read_too(formats):
    """One JSON object a span, as the console exporter writes them, with ISO times."""
    importer, sessions = open_trace(formats.fixtures / "otel_flat.jsonl")
    (session,) = sessions
    assert importer.name == "otel_genai"
    assert session.session_id == "0x1"
    assert [p.prompt_tokens for p in plan_turns(session)] == [700, 800]
    assert [(t.name, t.wall_s, t.error) for t in session.turns[0].tools] == [("ls", 0.5, True)]
    assert session.turns[0].think_s == 1.5


def test_older_names_of_token_counts(tmp_path, otlp):
    """Instrumentations before 2025 count prompt_tokens and completion_tokens."""
    path = tmp_path / "old.jsonl"
    text = otlp.read_text().replace("usage.input_tokens", "usage.prompt_tokens")
    path.write_text(text.replace("usage.output_tokens", "usage.completion_tokens"))
    assert list(IMPORTER.read(path)) == list(IMPORTER.read(otlp))


def test_a_call_without_tokens_is_named(tmp_path, otlp):
    """A chat span that counts no prompt token, or has no times, cannot be replayed."""
    path = tmp_path / "zero.jsonl"
    path.write_text(otlp.read_text().replace('"intValue": "1000"', '"intValue": "0"'))
    with pytest.raises(
        TraceError, match=r"zero\.jsonl:1: gen_ai\.usage\.input_tokens: expected at"
    ):
        list(IMPORTER.read(path))
    message = json.loads(otlp.read_text().splitlines()[0])
    del message["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["endTimeUnixNano"]
    path.write_text(json.dumps(message) + "\n")
    with pytest.raises(TraceError, match="endTimeUnixNano: expected nanoseconds"):
        list(IMPORTER.read(path))


def test_other_spans_are_passed_over(tmp_path, otlp):
    """A trace without LLM calls gives no session; foreign spans beside them change nothing."""
    message = json.loads(otlp.read_text().splitlines()[0])
    span = message["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    foreign = {**span, "spanId": "f", "name": "GET /", "attributes": [], "traceId": "other"}
    message["resourceSpans"][0]["scopeSpans"][0]["spans"] = [foreign]
    path = tmp_path / "more.jsonl"
    path.write_text(otlp.read_text() + json.dumps(message) + "\n")
    assert list(IMPORTER.read(path)) == list(IMPORTER.read(otlp))


def test_messages_stand_in_for_counts_and_tell_what_was_kept(tmp_path):
    """Without counts 340 characters are 100 tokens and 4 of framing; the second call asks anew.

    The third repeats the second's message and adds one: it keeps all of that prompt.
    """

    def chat(number, *texts):
        messages = json.dumps([{"role": "user", "parts": [{"content": text}]} for text in texts])
        attributes = {
            "gen_ai.operation.name": "chat",
            "gen_ai.input.messages": messages,
            "gen_ai.output.text": "x" * 34,
        }
        return {"trace_id": "t", "span_id": f"s{number}", "parent_span_id": None, "name": "chat",
                "start_time": number, "end_time": number + 0.5, "attributes": attributes}  # fmt: skip

    a, b, c = ("a" * 340, "b" * 340, "c" * 680)
    path = tmp_path / "trace.json"
    document = {"trace_id": "t", "spans": [chat(1, a), chat(2, b), chat(3, b, c)]}
    path.write_text(json.dumps(document))
    importer, sessions = open_trace(path)
    (session,) = sessions
    assert importer is IMPORTER
    plans = plan_turns(session)
    assert [plan.prompt_tokens for plan in plans] == [104, 104, 104 + 204]
    assert [plan.reused_tokens for plan in plans] == [0, 0, 104 + 14]
