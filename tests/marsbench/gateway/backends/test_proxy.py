"""The proxy passes requests and replies through, and says clearly what went wrong."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from marsbench.gateway.backends.fake import FakeAnswer, FakeBackend

HELLO = [{"role": "user", "content": "hello"}]


def always(**fields):
    return lambda number, body: FakeAnswer(**fields)


def test_a_whole_reply_comes_back_as_the_backend_wrote_it(any_rig):
    """Body and status pass through; the session's id is added as a header."""

    async def story():
        async with any_rig(always(output=("hi",), cached_tokens=0)) as r:
            answer = await r.chat(HELLO, session="task-1")
            assert answer.status_code == 200
            assert answer.json()["choices"][0]["message"]["content"] == "hi"
            assert answer.headers["x-session-id"] == "task-1"

    asyncio.run(story())


def test_stream_events_arrive_one_by_one(any_rig):
    """No event waits for the next: a backend that says one thing and then nothing more is heard."""

    async def story():
        async with any_rig(always(fault="stall")) as r:
            body = {"model": "fake", "messages": HELLO, "stream": True}
            async with r.client.stream("POST", "/v1/chat/completions", json=body) as answer:
                async for line in answer.aiter_lines():
                    if line.startswith("data: {") and '"content":"one ' in line:
                        return

    asyncio.run(asyncio.wait_for(story(), 10))


def test_token_counts_we_asked_for_are_kept_from_the_client(any_rig):
    """The usage event is added upstream and removed downstream, unless the client wanted it."""

    async def story():
        async with any_rig(always()) as r:
            plain = await r.chat(HELLO, stream=True)
            assert '"usage"' not in plain.text
            assert plain.text.endswith("data: [DONE]\n\n")
            assert r.backends[0].bodies[0]["stream_options"] == {"include_usage": True}
            wanted = await r.chat(HELLO, stream=True, stream_options={"include_usage": True})
            assert '"usage"' in wanted.text

    asyncio.run(story())


def test_backends_with_a_scheduler_get_sessions_and_hints_others_do_not(any_rig):
    """session_id and hints go to an engine that knows them; an OpenAI server sees neither."""

    async def story():
        fakes = [FakeBackend(is_vllm=True)]
        async with any_rig(backends=fakes) as r:
            await r.chat(HELLO, headers={"x-claude-code-session-id": "cc-7"})
            sent = fakes[0].bodies[0]
            assert sent["session_id"] == "cc-7"
            assert sent["vllm_xargs"]["marsbench_turn"] == 0
            assert "priority" not in sent
        fakes = [FakeBackend(is_vllm=False)]
        async with any_rig(backends=fakes) as r:
            await r.chat(HELLO, headers={"x-claude-code-session-id": "cc-7"})
            assert set(fakes[0].bodies[0]) == {"model", "messages", "stream"}
        fakes = [FakeBackend(is_vllm=False)]
        async with any_rig(backends=fakes, engine="sglang") as r:
            await r.chat(HELLO, headers={"x-claude-code-session-id": "cc-7"})
            sent = fakes[0].bodies[0]
            assert (sent["session_id"], sent["custom_params"]["marsbench_turn"]) == ("cc-7", 0)
            assert "vllm_xargs" not in sent

    asyncio.run(story())


@pytest.mark.parametrize("status", [400, 429, 500, 503])
def test_errors_pass_with_status_and_openai_body(any_rig, status):
    """An error keeps its status and Retry-After; a foreign body is wrapped into OpenAI's shape."""

    async def story():
        plan = always(
            status=status, body=b'{"detail":"no such thing"}', headers=((b"retry-after", b"7"),)
        )
        async with any_rig(plan) as r:
            answer = await r.chat(HELLO)
            assert answer.status_code == status
            assert answer.json()["error"]["message"] == "no such thing"
            assert answer.headers["retry-after"] == "7"
            assert len(r.backends[0].bodies) == 1, "what was sent is never sent again"

    asyncio.run(story())


def test_a_reply_that_is_not_json_is_a_502(any_rig):
    """Garbage with status 200 is not passed off as a reply."""

    async def story():
        async with any_rig(always(fault="garbage")) as r:
            answer = await r.chat(HELLO)
            assert answer.status_code == 502
            assert answer.json()["error"]["code"] == "bad_upstream_json"

    asyncio.run(story())


def test_a_garbage_event_passes_and_is_counted(any_rig):
    """A stream with one bad event reaches the client whole; the gateway goes on."""

    async def story():
        async with any_rig(always(fault="garbage-event")) as r:
            answer = await r.chat(HELLO, stream=True)
            assert "{not json" in answer.text
            assert "four" in answer.text
            page = (await r.client.get("/metrics")).text
            assert "marsbench_gateway_garbage_replies_total 1.0" in page

    asyncio.run(story())


def test_backend_killed_mid_stream_ends_the_stream_with_an_error_event(any_rig):
    """What had come stays; the last event is an OpenAI-style error; nothing is retried."""

    async def story():
        async with any_rig(always(fault="cut")) as r:
            answer = await r.chat(HELLO, stream=True)
            assert answer.status_code == 200
            assert "one" in answer.text
            assert "three" not in answer.text
            last = answer.text.strip().rpartition("data: ")[2]
            assert json.loads(last)["error"]["type"] == "upstream_error"
            assert len(r.backends[0].bodies) == 1
            again = await r.chat(HELLO, stream=True)
            assert again.status_code == 200, "the gateway serves on"

    asyncio.run(story())


def test_client_gone_mid_stream_cancels_the_request_upstream(any_rig, eventually):
    """The engine must not go on for nobody; the session's turn is over."""

    async def story():
        async with any_rig(always(output=("x",) * 1000, itl_s=0.02)) as r:
            body = {"model": "fake", "messages": HELLO, "stream": True, "session_id": "s"}
            async with r.client.stream("POST", "/v1/chat/completions", json=body) as answer:
                async for _ in answer.aiter_lines():
                    break
            await eventually(lambda: r.backends[0].disconnects == 1)
            await eventually(lambda: not r.front.proxy.in_flight)
            session = r.gateway.control.table.find("addr:127.0.0.1", "s")
            assert session.phase == "tool"
            assert r.gateway.pool.views[0].in_flight == 0

    asyncio.run(story())


def test_silent_backend_times_out_with_504(any_rig):
    """Without a byte for upstream_read_s the client gets a 504."""

    async def story():
        async with any_rig(always(fault="hang"), timeouts={"upstream_read_s": 0.2}) as r:
            answer = await r.chat(HELLO)
            assert answer.status_code == 504
            assert answer.json()["error"]["type"] == "timeout_error"

    asyncio.run(story())


def test_prompt_of_10_mb_passes_and_one_over_the_limit_is_refused(any_rig):
    """10 MB reach the backend unchanged; beyond the limit the answer is 413, not a hang."""

    async def story():
        async with any_rig(always(), limits={"body_bytes": 11 << 20}) as r:
            text = "a" * 10_000_000
            answer = await r.chat([{"role": "user", "content": text}])
            assert answer.status_code == 200
            assert r.backends[0].bodies[0]["messages"][0]["content"] == text
            answer = await r.chat([{"role": "user", "content": "a" * (12 << 20)}])
            assert answer.status_code == 413

    asyncio.run(story())


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b"{", "not JSON"),
        (b"[]", "JSON object"),
        (b'{"model":"m"}', "messages"),
        (b'{"model":"m","messages":[{"role":"user"}],"session_id":3}', "session_id"),
        (b"[" * 100_000, "nested"),
    ],
)
def test_bad_requests_get_one_clear_line(any_rig, body, what):
    """Nothing of a bad request reaches a backend; the message names the field."""

    async def story():
        async with any_rig(always()) as r:
            answer = await r.client.post("/v1/chat/completions", content=body)
            assert answer.status_code == 400
            assert what in answer.json()["error"]["message"]
            assert r.backends[0].bodies == []

    asyncio.run(story())


def test_unknown_paths_are_404_in_openai_style(any_rig):
    """A client sees JSON whatever it asks for."""

    async def story():
        async with any_rig(always()) as r:
            answer = await r.client.get("/v1/nothing")
            assert answer.status_code == 404
            assert "/v1/nothing" in answer.json()["error"]["message"]
            assert (await r.client.get("/v1/models")).json()["data"][0]["id"] == "fake"

    asyncio.run(story())


def test_completions_and_responses_apis_pass_too(any_rig):
    """Text and token prompts, and the Responses API's path."""

    async def story():
        async with any_rig(always(output=("ok",))) as r:
            text = await r.client.post("/v1/completions", json={"model": "m", "prompt": "say ok"})
            assert text.json()["choices"][0]["text"] == "ok"
            ids = await r.client.post("/v1/completions", json={"model": "m", "prompt": [1, 2, 3]})
            assert ids.json()["usage"]["prompt_tokens"] == 3
            other = await r.client.post("/v1/responses", json={"model": "m", "input": "say ok"})
            assert other.status_code == 200
            nested = await r.client.post("/s/abc/v1/completions", json={"prompt": "x"})
            assert nested.headers["x-session-id"] == "abc"

    asyncio.run(story())


def test_wrong_or_missing_token_is_401_and_the_token_stays_here(any_rig):
    """Only the right bearer token passes; the backend never sees it, but its own key."""

    async def story():
        async with any_rig(always(), tokens=("gateway-secret",), upstream_key="engine-key") as r:
            assert (await r.chat(HELLO)).status_code == 401
            wrong = {"authorization": "Bearer gateway-secreT"}
            assert (await r.chat(HELLO, headers=wrong)).status_code == 401
            assert (await r.client.get("/metrics")).status_code == 401
            right = {"authorization": "Bearer gateway-secret"}
            assert (await r.chat(HELLO, headers=right)).status_code == 200
            assert r.backends[0].headers[0]["authorization"] == "Bearer engine-key"
            assert (await r.client.get("/health")).status_code == 200

    asyncio.run(story())


def test_rate_limit_counts_each_client_for_itself(any_rig):
    """After its burst of 2 a client gets 429 with Retry-After; another key still passes."""

    async def story():
        async with any_rig(always(), limits={"requests_per_s": 0.1, "burst": 2}) as r:
            one, two = {"authorization": "Bearer one"}, {"authorization": "Bearer two"}
            seen = [(await r.chat(HELLO, headers=one)).status_code for _ in range(3)]
            assert seen == [200, 200, 429]
            assert (await r.chat(HELLO, headers=two)).status_code == 200

    asyncio.run(story())


def test_many_concurrent_streams_all_come_back(any_rig):
    """32 streams at once: every one complete, none mixed up."""

    async def story():
        async with any_rig(always(output=("a", "b", "c"), itl_s=0.01)) as r:
            answers = await asyncio.gather(
                *(
                    r.chat([{"role": "user", "content": f"task {i}"}], stream=True)
                    for i in range(32)
                )
            )
            assert all(a.text.endswith("data: [DONE]\n\n") for a in answers)
            assert len({a.headers["x-session-id"] for a in answers}) == 32

    asyncio.run(story())


def test_backend_down_is_503_until_it_can_be_reached(any_rig):
    """Nobody to send to: 503 with Retry-After, and not ready."""

    async def story():
        async with any_rig(always(), timeouts={"connect_s": 0.5}) as r:
            for server in r.backend_servers:
                for listener in server.servers:
                    listener.close()
                for connection in list(server.server_state.connections):
                    connection.transport.abort()
            await asyncio.sleep(0.3)
            with pytest.raises(httpx.ConnectError):
                await r.client.get(f"http://127.0.0.1:{r.ports[0]}/health")
            answer = await r.chat(HELLO)
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "no_backend"
            assert answer.headers["retry-after"]

    asyncio.run(story())
