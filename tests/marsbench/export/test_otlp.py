"""Spans and metrics reach a collector as the GenAI conventions say, and come back as a trace."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile

import pytest

pytest.importorskip("opentelemetry.sdk")

from export_values import attributes

import marsbench
from marsbench.cli import main
from marsbench.export import otlp
from marsbench.export.cell import read_cell
from marsbench.trace.source import open_trace

START = ["--start", "2026-01-01T00:00:00+00:00"]
START_NS = 1_767_225_600_000_000_000


def export(*arguments) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["export", *map(str, arguments), "--format", "otlp"])
    assert not stopped.value.code


def seconds(ns: int) -> float:
    return (ns - START_NS) / 1e9


def test_a_collector_gets_spans_of_sessions_turns_and_tools(folder, collector):
    """One trace a session with its sub-agents; times, parents, kinds and attributes of the conventions."""
    export(folder, "--cell", 0, *START, "--endpoint", collector.url, "--header", "x-key=v")
    assert all(headers["x-key"] == "v" for headers in collector.headers)
    found = collector.spans()
    by_id = {span.span_id: span for span, _ in found}
    assert len(by_id) == len(found) == 11
    traces = {span.trace_id for span, _ in found}
    assert len(traces) == 3  # one, large and cut; the sub-agent is in the trace of its parent
    assert all(len(span.trace_id) == 16 and len(span.span_id) == 8 for span, _ in found)
    resource = attributes(found[0][1].attributes)
    assert resource["service.name"] == "marsbench"
    assert resource["marsbench.system"] == "mars"
    rows = sorted(
        (seconds(s.start_time_unix_nano), seconds(s.end_time_unix_nano), s.name,
         by_id[s.parent_span_id].name if s.parent_span_id else "")
        for s, _ in found
    )  # fmt: skip
    assert rows == [
        (1.0, 4.5, "chat model", "invoke_agent"),
        (1.0, 11.0, "invoke_agent", ""),
        (2.0, 2.0, "chat model", "invoke_agent"),
        (2.0, 2.0, "invoke_agent", ""),
        (4.5, 5.25, "chat model", "invoke_agent"),
        (4.5, 5.25, "invoke_agent", "invoke_agent"),
        (4.5, 5.5, "execute_tool read", "invoke_agent"),
        (5.0, 6.0, "execute_tool bash", "invoke_agent"),
        (6.5, 11.0, "chat model", "invoke_agent"),
        (10.0, 12.0, "chat model", "invoke_agent"),
        (10.0, 12.0, "invoke_agent", ""),
    ]


def test_spans_carry_the_conventions(folder, collector):
    """Required attributes of each operation, kinds, errors, and the moments of a turn as events."""
    export(folder, "--cell", 0, *START, "--endpoint", collector.url)
    spans = [span for span, _ in collector.spans()]
    told = [(span, attributes(span.attributes)) for span in spans]
    for span, about in told:
        operation = about["gen_ai.operation.name"]
        assert span.name.startswith(operation)
        assert span.kind == (3 if operation == "chat" else 1)  # CLIENT, INTERNAL
        assert ("error.type" in about) == (span.status.code == 2)
        if operation != "execute_tool":
            assert about["gen_ai.provider.name"] == "sim"
            assert about["gen_ai.request.model"] == "model"
    last = next((s, a) for s, a in told if a.get("gen_ai.usage.output_tokens") == 21)
    assert last[1]["gen_ai.usage.input_tokens"] == 200
    assert last[1]["gen_ai.usage.cache_read.input_tokens"] == 80
    assert last[1]["marsbench.turn.recomputed_tokens"] == 40
    assert last[1]["marsbench.turn.preemptions"] == 1
    moments = {event.name: seconds(event.time_unix_nano) for event in last[0].events}
    assert moments == {"submitted": 6.75, "scheduled": 7.0, "first_token": 9.0}
    bash = next(a for _, a in told if a.get("gen_ai.tool.name") == "bash")
    assert bash["marsbench.tool.queue_s"] == 0.5
    assert bash["marsbench.tool.cpu_s"] == 1.0
    failures = {a["error.type"] for _, a in told if "error.type" in a}
    assert failures == {"too_large", "unfinished", "cancelled"}
    agents = {a["gen_ai.agent.id"]: a["gen_ai.conversation.id"] for _, a in told
              if a["gen_ai.operation.name"] == "invoke_agent"}  # fmt: skip
    assert agents == {"one": "one", "one/0.0": "one", "large": "large", "cut": "cut"}


def test_metrics_are_the_durations_of_the_spans(folder, collector):
    """Histograms of the conventions and the proposed tool queue, with the sums that the timeline has."""
    export(folder, "--cell", 0, *START, "--endpoint", collector.url)
    points = collector.histograms()
    sums = {name: (sum(p.count for p in ps), pytest.approx(sum(p.sum for p in ps)))
            for name, ps in points.items()}  # fmt: skip
    assert sums == {
        "gen_ai.invoke_agent.duration": (4, 10.0 + 0.75 + 0.0 + 2.0),
        "gen_ai.execute_tool.duration": (2, 1.0 + 1.0),
        otlp.TOOL_QUEUE: (2, 0.0 + 0.5),
        "gen_ai.client.operation.duration": (3, 3.5 + 0.75 + 4.5),
        "gen_ai.server.request.duration": (3, 2.5 + 0.75 + 4.25),
        "gen_ai.server.time_to_first_token": (3, 1.5 + 0.5 + 2.25),
        "gen_ai.server.time_per_output_token": (2, 1.0 / 10 + 2.0 / 20),
    }
    failed = {attributes(p.attributes).get("error.type"): p.count
              for p in points["gen_ai.invoke_agent.duration"]}  # fmt: skip
    assert failed == {None: 2, "too_large": 1, "unfinished": 1}
    assert list(points["gen_ai.server.time_to_first_token"][0].explicit_bounds) == otlp.TTFT


def test_exporting_twice_gives_the_same_ids(folder, collector):
    """A collector that gets a run again has the same spans; another cell has others."""
    for cell in (0, 0, 1):
        export(folder, "--cell", cell, *START, "--endpoint", collector.url)
    ids = [span.span_id for span, _ in collector.spans()]
    third = len(ids) // 3
    assert ids[:third] == ids[third : 2 * third]
    assert not set(ids[:third]) & set(ids[2 * third :])


def test_otlp_json_comes_back_as_a_trace(folder, tmp_path):
    """What is written as OTLP JSON is read by the importer of spans: lengths, outputs, tools, sub-agents."""
    out = tmp_path / "spans.jsonl"
    export(folder, "--cell", 0, "--out", out, *START)
    line = json.loads(out.read_text().splitlines()[0])
    span = line["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    assert (len(span["traceId"]), len(span["spanId"])) == (32, 16)
    importer, sessions = open_trace(out, None)
    assert importer.name == "otel_genai"
    found = {session.session_id: session for session in sessions}
    first, last = found["one"].turns
    assert [(t.name, round(t.wall_s, 6)) for t in first.tools] == [("read", 1.0), ("bash", 1.0)]
    assert [child.turns[0].output_tokens for child in first.children] == [1]
    assert (first.output_tokens, last.output_tokens) == (11, 21)


def test_a_collector_that_refuses_is_one_line(folder, collector, capsys):
    """Status 2 and one line without the SDK's own talk."""
    collector.status = 400
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(folder), "--format", "otlp", "--endpoint", collector.url])
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert f"{collector.url} does not take spans over OTLP/HTTP" in err
    assert err.count("\n") == 1


def test_a_run_that_goes_on_is_sent_as_it_happens(tmp_path, collector, capsys, monkeypatch):
    """`watch --otlp` beside a run: each session that ended is a trace, with as many turns as the run's
    own table has.
    """
    pytest.importorskip("zmq")
    monkeypatch.chdir(tmp_path)
    turns = [{"new_input_tokens": 900, "output_tokens": 20, "tools": [
        {"name": "bash", "class": "script", "wall_s": 0.5}]}] * 3  # fmt: skip
    lines = [
        json.dumps({"trace_version": 1, "turns": turns, "session_id": f"s{k}"}) for k in range(6)
    ]
    (tmp_path / "small.jsonl").write_text("\n".join(lines) + "\n")
    with tempfile.TemporaryDirectory() as place:
        address = f"ipc://{place}/s"
        code = "import sys; from marsbench.cli import main; main(sys.argv[1:])"
        command = [sys.executable, "-c", code, "watch", address, "--otlp", collector.url, "--quiet"]
        watch = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        run = (
            "run -w small.jsonl -s vllm -s mars --rate 0.5 --split all -n 6 --out out --no-cache -q "
            f"--stream {address} --stream-wait 1"
        )
        with pytest.raises(SystemExit) as stopped:
            main(run.split())
        assert not stopped.value.code
        _, talk = watch.communicate(timeout=60)
        assert watch.returncode == 0, talk
    spans = [attributes(span.attributes)["gen_ai.operation.name"] for span, _ in collector.spans()]
    run = marsbench.load("out")
    assert spans.count("invoke_agent") == len(run.sessions) == 12
    assert spans.count("chat") == len(run.turns)
    assert spans.count("execute_tool") == len(run.calls)
    systems = {
        attributes(resource.attributes)["marsbench.system"] for _, resource in collector.spans()
    }
    assert systems == {"vllm", "mars"}
    assert set(collector.histograms()) == set(otlp.METRICS)


def test_spans_of_a_cell_are_its_tables(folder, busy):
    """Sessions, turns and calls put together from the stream agree with the tables made of the log."""
    from marsbench.tables import build_tables

    tables = build_tables(busy)
    spans = read_cell(marsbench.load(folder), 0).sessions
    assert [s.session_id for s in spans] == tables.sessions["session_id"].tolist()
    assert sum(len(s.turns) for s in spans) == len(tables.turns)
    calls = [c for s in spans for t in s.turns.values() for c in t.calls.values()]
    assert [c.ended_ps / 1e12 for c in calls] == tables.calls["ended_s"].tolist()
