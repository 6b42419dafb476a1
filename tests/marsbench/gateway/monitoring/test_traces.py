"""Spans over OTLP: a session, its turns and calls, the client's own trace, and no word of a prompt."""

from __future__ import annotations

import asyncio
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from marsbench.errors import ConfigError
from marsbench.gateway.backends.fake import FakeAnswer
from marsbench.gateway.settings import GatewaySettings

SECRET = "the-prompt-nobody-may-read"
CALLS = (("c1", "bash", '{"command": "make the-command"}'),)


@pytest.fixture
def collector():
    """(URL, spans so far): a server that takes OTLP over HTTP."""
    raw: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            raw.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments):
            """Quiet."""

    def spans():
        found = []
        for data in raw:
            assert SECRET.encode() not in data
            assert b"the-command" not in data
            for one in ExportTraceServiceRequest.FromString(data).resource_spans:
                found += [span for scope in one.scope_spans for span in scope.spans]
        return found

    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1/traces", spans
    server.shutdown()
    server.server_close()
    thread.join()


def attributes(span) -> dict:
    return {
        item.key: getattr(item.value, item.value.WhichOneof("value")) for item in span.attributes
    }


def test_a_session_is_a_span_with_turns_and_calls_below_it(rig, collector):
    """Two turns and the call between them: parents, tokens, the wait, the first token."""
    url, spans = collector

    async def story():
        plans = [FakeAnswer(calls=CALLS, cached_tokens=0), FakeAnswer(cached_tokens=5)]
        async with rig(lambda number, _b: plans[number], otlp=url) as r:
            talk = [{"role": "user", "content": SECRET}]
            for turn in range(2):
                assert (await r.chat(talk * (turn + 1), session="s")).status_code == 200
            await r.client.post("/v1/sessions/s/end")
            return r.backends[0].headers

    headers = asyncio.run(story())
    found = {name: [s for s in spans() if s.name == name] for name in {s.name for s in spans()}}
    (agent,) = found["invoke_agent"]
    chats, (call,) = found["chat fake"], found["execute_tool bash"]
    assert {span.parent_span_id for span in (*chats, call)} == {agent.span_id}
    assert {span.trace_id for span in (*chats, call)} == {agent.trace_id}
    first, second = sorted(chats, key=lambda span: span.start_time_unix_nano)
    starts = [span.start_time_unix_nano for span in (agent, first, call, second)]
    assert starts == sorted(starts)
    assert [event.name for event in first.events] == ["submitted", "first_token"]
    told = attributes(second)
    assert told["gen_ai.conversation.id"] == "s"
    assert told["gen_ai.usage.output_tokens"] == 4
    assert told["gen_ai.usage.cache_read.input_tokens"] == 5
    assert told["gen_ai.usage.input_tokens"] > 5
    assert told["marsbench.turn"] == 1
    assert [given["traceparent"].split("-")[2] for given in headers] == [
        first.span_id.hex(), second.span_id.hex(),
    ]  # fmt: skip


def test_a_clients_own_trace_goes_on_through_the_gateway(rig, collector):
    """Its traceparent is our turn's parent, and our turn is the backend's."""
    url, spans = collector
    trace, span = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"

    async def story():
        async with rig(lambda _n, _b: FakeAnswer(status=400), otlp=url) as r:
            headers = {"traceparent": f"00-{trace}-{span}-01"}
            await r.chat([{"role": "user", "content": SECRET}], session="s", headers=headers)
            return r.backends[0].headers[0]

    headers = asyncio.run(story())
    (chat,) = (found for found in spans() if found.name == "chat fake")
    assert chat.trace_id.hex() == trace
    assert chat.parent_span_id.hex() == span
    assert headers["traceparent"] == f"00-{trace}-{chat.span_id.hex()}-01"
    assert attributes(chat)["error.type"] == "upstream_error"


def test_a_collector_that_is_not_there_holds_nothing_up(rig):
    """Turns are answered all the same."""

    async def story():
        async with rig(lambda _n, _b: FakeAnswer(), otlp="http://127.0.0.1:9/v1/traces") as r:
            r.gateway.traces._provider.shutdown()  # so that the end need not wait for its retries
            return (await r.chat([{"role": "user", "content": "x"}])).status_code

    assert asyncio.run(story()) == 200


def test_an_address_that_is_none_is_refused():
    """With an example of a good one."""
    with pytest.raises(ConfigError, match="4318"):
        GatewaySettings(backends=("http://h",), otlp="localhost:4318")
