"""The client measures what the server does, and writes down everything that goes wrong."""

from __future__ import annotations

import asyncio
import json

import pytest
from aiohttp import web
from virtual_loop import run_virtually, virtual_clock

from marsbench.core import PS_PER_S
from marsbench.engine.live.client import (
    Client,
    Completion,
    Patience,
)
from marsbench.engine.live.clock import Clock
from marsbench.engine.live.fake_server import Behaviour, FakeServer, serving
from marsbench.engine.live.kinds.openai import OpenAi
from marsbench.engine.live.request import CompletionRequest
from marsbench.errors import EngineError

PROMPT = list(range(300, 400))
QUICK = Patience(connect_s=1.0, idle_s=0.2, backoff_s=0.01)


def ask(
    behaviour: Behaviour, *requests: CompletionRequest, patience=QUICK, kind=None
) -> tuple[list[Completion], FakeServer]:
    """Send requests one after the other to a fake server."""

    async def go():
        server = FakeServer(behaviour)
        async with serving(server) as url:
            client = Client(url, "fake", clock=virtual_clock(), patience=patience, kind=kind)
            async with client:
                return [await client.complete(request) for request in requests], server

    return run_virtually(go())


def against(handler, patience=QUICK) -> Completion:
    """One request to a hand-written handler."""

    async def go():
        app = web.Application()
        app.router.add_post("/v1/completions", handler)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            async with Client(url, "m", clock=virtual_clock(), patience=patience) as client:
                return await client.complete(CompletionRequest(PROMPT, 2))
        finally:
            await runner.cleanup()

    return run_virtually(go())


def streaming(*pieces: bytes):
    """A handler that writes these pieces with a pause in between."""

    async def handler(request):
        reply = web.StreamResponse()
        await reply.prepare(request)
        for piece in pieces:
            await reply.write(piece)
            await asyncio.sleep(0.02)
        return reply

    return handler


def test_times_and_counts():
    """TTFT 50 ms, then 10 ms a token: never earlier, and in order; all tokens and ids are there."""
    (done,), _server = ask(Behaviour(ttft_s=0.05, itl_s=0.01), CompletionRequest(PROMPT, 6, "s"))
    assert done.ok
    assert (done.prompt_tokens, done.output_tokens, done.cached_tokens) == (100, 6, 0)
    assert len(done.token_ids) == 6
    assert done.first_ps - done.sent_ps >= 0.05 * PS_PER_S
    assert done.token_ps[-1] - done.first_ps >= 0.05 * PS_PER_S  # five gaps
    assert done.token_ps == sorted(done.token_ps)
    assert done.end_ps == done.token_ps[-1]
    assert done.prefill_s >= 0.05
    assert done.tries == 1


def test_body_for_each_kind_of_server():
    """A vLLM server is asked for exact lengths and given session, priority and hints; a server that
    only knows the OpenAI API is sent nothing it could refuse."""
    request = CompletionRequest(PROMPT, 3, "s1", 5, {"turn": 2})
    _, server = ask(Behaviour(), request)
    (body,) = server.requests
    assert body["prompt"] == PROMPT
    assert (body["max_tokens"], body["ignore_eos"]) == (3, True)
    assert (body["session_id"], body["priority"], body["vllm_xargs"]) == ("s1", 5, {"turn": 2})
    (done,), server = ask(Behaviour(), request, kind=OpenAi())
    assert set(server.requests[0]) == {
        "model", "prompt", "max_tokens", "temperature", "stream", "stream_options",
    }  # fmt: skip
    assert done.ok
    assert (done.output_tokens, done.token_ids) == (3, [])


def test_prefix_hits_are_reported():
    """The second request of a session extends the first: 100 + 4 - 1 tokens are known, 6 blocks of
    16 of them."""
    (first, second), _ = ask(
        Behaviour(),
        CompletionRequest(PROMPT, 4),
        CompletionRequest([*PROMPT, *range(500, 550)], 4),
    )
    assert first.cached_tokens == 0
    assert second.cached_tokens == 96


def test_busy_server_is_asked_again():
    """429 twice, then an answer: one record with three tries and both problems."""
    (done,), server = ask(Behaviour(faults={0: "429", 1: "429"}), CompletionRequest(PROMPT, 2))
    assert done.ok
    assert done.tries == len(server.requests) == 3
    assert [problem.split(":")[0] for problem in done.problems] == ["HTTP 429"] * 2


def test_busy_for_too_long():
    """Always 429: an error after the tries allowed, never an endless loop."""
    (done,), server = ask(Behaviour(fault_every=1, fault="429"), CompletionRequest(PROMPT, 2))
    assert (done.status, done.tries, len(server.requests)) == ("error", 3, 3)


def test_a_defect_is_not_retried():
    """HTTP 500 and 400 are errors at once, with the server's own words."""
    (failed, too_long), _ = ask(
        Behaviour(faults={0: "500"}, max_model_len=150),
        CompletionRequest(PROMPT, 2),
        CompletionRequest(PROMPT, 51),
    )
    assert (failed.status, failed.tries) == ("error", 1)
    assert "made to fail" in failed.problems[0]
    assert "maximum context length is 150" in too_long.problems[0]


def test_broken_stream_keeps_what_came():
    """A connection cut after 3 of 6 tokens is a disconnect with three tokens, and not tried again:
    the server may have done the work."""
    (done,), server = ask(Behaviour(faults={0: "disconnect"}), CompletionRequest(PROMPT, 6))
    assert (done.status, len(done.token_ps), done.tries) == ("disconnect", 3, 1)
    assert len(server.requests) == 1


def test_silence_is_a_timeout():
    """A server that accepts and says nothing is given up after the idle limit."""
    (done,), _ = ask(Behaviour(faults={0: "silent"}), CompletionRequest(PROMPT, 2))
    assert done.status == "timeout"
    assert 0.2 * PS_PER_S <= done.end_ps < 5 * PS_PER_S
    assert "silent for 0.2 s" in done.problems[0]


def test_slow_stream_meets_the_total_limit():
    """Tokens every 50 ms for 5 s pass the idle limit but not a total of 0.3 s."""
    patience = Patience(idle_s=1.0, total_s=0.3)
    (done,), _ = ask(Behaviour(itl_s=0.05), CompletionRequest(PROMPT, 100), patience=patience)
    assert done.status == "timeout"
    assert 1 <= len(done.token_ps) <= 7
    assert "within 0.3 s" in done.problems[-1]


def test_nobody_listens():
    """A refused connection is tried again and then reported as a disconnect."""

    async def go():
        async with Client(
            "http://127.0.0.1:9", "m", clock=virtual_clock(), patience=QUICK
        ) as client:
            return await client.complete(CompletionRequest(PROMPT, 2))

    done = run_virtually(go())
    assert (done.status, done.tries) == ("disconnect", 3)
    assert "cannot connect" in done.problems[0]


def test_events_cut_anywhere():
    """Events split over packets, carriage returns and comments are read all the same; a token's
    time is when its event began."""
    chunk = json.dumps({"choices": [{"text": "x", "token_ids": [7]}]}).encode()
    done = against(
        streaming(
            b": ping\r\n\r\ndata: " + chunk[:5],
            chunk[5:] + b"\r\n\r\ndata: " + chunk + b"\n",
            b'\ndata: {"choices":[],"usage":{"prompt_tokens":100,"completion_tokens":2}}\n\n',
            b"data: [DONE]\n\n",
        )
    )
    assert done.ok
    assert done.token_ids == [7, 7]
    assert done.token_ps[1] - done.token_ps[0] >= 0.015 * PS_PER_S
    assert done.cached_tokens is None


def test_stream_without_an_end():
    """A stream that just stops is a disconnect, even if it looks whole."""
    done = against(streaming(b'data: {"choices":[{"text":"x"}]}\n\n'))
    assert (done.status, done.output_tokens) == ("disconnect", 1)


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (b"data: {oops\n\n", "not an OpenAI stream"),
        (b'data: {"error":{"message":"oom"}}\n\n', "oom"),
    ],
)
def test_error_inside_a_stream(payload, words):
    """An error event or garbage in the stream is an error that says so."""
    done = against(streaming(payload, b"data: [DONE]\n\n"))
    assert done.status == "error"
    assert words in done.problems[0]


def test_used_before_it_is_open():
    """A client outside its block says so."""
    with pytest.raises(EngineError, match="async with"):
        asyncio.run(Client("http://x", "m", clock=Clock()).complete(CompletionRequest(PROMPT, 1)))
