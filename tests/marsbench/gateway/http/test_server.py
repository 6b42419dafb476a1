"""The server itself: clients that stall, SIGTERM, and the command line around it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import threading
import time

import httpx
import pytest

from marsbench.cli import main
from marsbench.errors import ConfigError
from marsbench.gateway.backends.fake import FakeAnswer, FakeBackend
from marsbench.gateway.settings import GatewaySettings, Limits
from marsbench.registry import load
from marsbench.trace.io import read_sessions

HELLO = [{"role": "user", "content": "hello"}]


def at(url):
    host, port = url.removeprefix("http://").split(":")
    return host, int(port)


async def read_all(reader, timeout_s=5.0):
    async with asyncio.timeout(timeout_s):
        return await reader.read()


def test_slow_head_is_cut_off_while_others_are_served(any_rig):
    """A client that sends a header line and waits gets 408 after header_s; one that sends nothing
    is cut off too."""

    async def story():
        async with any_rig(limits={"header_s": 0.3}) as r:
            loris, silent = await asyncio.open_connection(*at(r.url)), None
            silent = await asyncio.open_connection(*at(r.url))
            loris[1].write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n")
            started = time.monotonic()
            assert (await r.chat(HELLO)).status_code == 200
            answer = await read_all(loris[0])
            assert answer.startswith(b"HTTP/1.1 408")
            assert b"timeout_error" in answer
            await read_all(silent[0])
            assert time.monotonic() - started < 3
            for _, writer in (loris, silent):
                writer.close()

    asyncio.run(story())


def test_slow_body_is_408(any_rig):
    """A byte now and then does not keep a request open for ever."""

    async def story():
        async with any_rig(limits={"body_s": 0.3}) as r:
            reader, writer = await asyncio.open_connection(*at(r.url))
            writer.write(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n{"
            )
            answer = await read_all(reader)
            assert answer.startswith(b"HTTP/1.1 408")
            writer.close()

    asyncio.run(story())


@pytest.mark.parametrize("complete", [True, False])
def test_huge_heads_are_431(any_rig, complete):
    """Whether the head ends or goes on without end, it stops at header_bytes."""

    async def story():
        async with any_rig(limits={"header_bytes": 8192}) as r:
            reader, writer = await asyncio.open_connection(*at(r.url))
            head = b"GET /v1/models HTTP/1.1\r\nhost: x\r\nx-big: " + b"a" * 20_000
            writer.write(head + (b"\r\n\r\n" if complete else b""))
            assert (await read_all(reader)).startswith(b"HTTP/1.1 431")
            writer.close()
            assert (await r.chat(HELLO)).status_code == 200

    asyncio.run(story())


def test_client_that_stops_reading_is_dropped_and_the_backend_freed(any_rig, eventually):
    """A stream nobody reads fills the buffers; after send_s its turn is cancelled upstream."""

    def plan(_number, _body):
        return FakeAnswer(output=("x" * 100_000,) * 200)

    async def story():
        limits = {"send_s": 0.3}
        async with any_rig(plan, limits=limits, timeouts={"session_idle_s": 0.4}) as r:
            body = json.dumps({"model": "m", "messages": HELLO, "stream": True}).encode()
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(sock, at(r.url))
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
            await loop.sock_sendall(sock, head.encode() + body)
            await eventually(lambda: r.backends[0].running == 1)
            await eventually(lambda: r.backends[0].running == 0)
            assert not r.front.proxy.in_flight
            sock.close()
            assert "client_stalls_total 1.0" in (await r.client.get("/metrics")).text

    asyncio.run(story())


def test_draining_finishes_what_runs_and_refuses_what_is_new(any_rig, eventually):
    """In flight: complete. New turn: 503 and not ready. Tool release: still served."""

    def plan(_number, _body):
        return FakeAnswer(itl_s=0.15)

    async def story():
        async with any_rig(plan) as r:
            running = asyncio.create_task(r.chat(HELLO, stream=True, session="a"))
            await eventually(lambda: len(r.front.proxy.in_flight) == 1)
            r.gateway.drain()
            late = await r.chat(HELLO, session="b")
            assert late.status_code == 503
            assert late.json()["error"]["code"] == "draining"
            assert (await r.client.get("/ready")).status_code == 503
            assert (await r.client.get("/health")).status_code == 200
            assert (await running).text.endswith("data: [DONE]\n\n")
            answer = await r.client.post("/v1/tools/release", json={"lease": "none"})
            assert answer.status_code == 404

    asyncio.run(story())


def test_draining_refuses_turns_that_still_wait_for_admission(any_rig, eventually):
    """They could wait longer than the drain; another gateway can serve them now."""

    async def story():
        async with any_rig(system=load("SYSTEMS", "static"), params={"window": 1}) as r:
            await r.chat(HELLO, session="a")
            waiting = asyncio.create_task(r.chat(HELLO, session="b"))
            await eventually(lambda: r.gateway.control.num_pending == 1)
            r.gateway.drain()
            assert (await waiting).status_code == 503
            await eventually(lambda: r.gateway.idle)

    asyncio.run(story())


@pytest.fixture
def recording(slow_backend, process_of, tmp_path):
    """``marsbench record`` as a process in front of a fake backend."""
    path = tmp_path / "trace.jsonl.gz"
    with process_of("record", "-u", slow_backend, "--out", str(path)) as found:
        yield *found, path


def stream_text(url, session, started=None):
    body = {"model": "m", "messages": HELLO, "stream": True, "session_id": session}
    text = ""
    with httpx.stream(
        "POST", f"{url}/v1/chat/completions", json=body, timeout=20, trust_env=False
    ) as answer:
        for part in answer.iter_text():
            text += part
            if started is not None and not started.is_set():
                started.set()
    return text


def test_sigterm_finishes_the_stream_writes_the_session_and_exits_0(recording):
    """A turn of 0.6 s is in flight when SIGTERM comes: it ends whole, and so does the trace; the last
    line says what was recorded and how to replay it."""
    url, gateway, path = recording
    started, texts = threading.Event(), []
    client = threading.Thread(target=lambda: texts.append(stream_text(url, "t", started)))
    client.start()
    assert started.wait(10)
    gateway.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    late = httpx.post(
        f"{url}/v1/chat/completions", json={"messages": HELLO}, timeout=5, trust_env=False
    )
    assert late.status_code == 503
    client.join(10)
    assert texts[0].endswith("data: [DONE]\n\n")
    assert gateway.wait(30) == 0
    assert [s.session_id for s in read_sessions(path)] == ["t"]
    said = gateway.stderr.read()
    assert f"recording to {path}" in said
    assert "1 sessions, 1 turns, 10 output tokens recorded" in said
    assert f"marsbench run -w {path}" in said


def test_sigkill_loses_no_session_that_had_ended(recording):
    """The trace is readable up to the last ended session, whatever happens to the process."""
    url, gateway, path = recording
    for name in ("a", "b", "c"):
        stream_text(url, name)
        if name != "c":
            httpx.post(f"{url}/v1/sessions/{name}/end", trust_env=False).raise_for_status()
    os.kill(gateway.pid, signal.SIGKILL)
    gateway.wait(10)
    assert [s.session_id for s in read_sessions(path)] == ["a", "b"]


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"backends": ()}, "no backend"),
        ({"backends": ("localhost:8000",)}, "not a URL"),
        ({"backends": ("http://a:1", "http://a:1")}, "twice"),
        ({"backends": ("http://user:pw@a:1",)}, "upstream-key-file"),
        ({"host": "0.0.0.0"}, "token"),
        ({"engine": "tgi"}, "--engine"),
        ({"tokens": ("short",)}, "8 characters"),
        ({"limits": Limits(body_bytes=0)}, "body_bytes"),
        ({"port": 70_000}, "--port"),
    ],
)
def test_settings_that_cannot_work_are_refused(fields, what):
    """Each mistake is one line that names the flag."""
    with pytest.raises(ConfigError, match=what):
        GatewaySettings(**{"backends": ("http://127.0.0.1:1",), **fields})


@pytest.mark.parametrize(
    ("argv", "what"),
    [
        (["serve", "-u", "http://127.0.0.1:1", "-s", "vlm"], "did you mean 'vllm"),
        (["serve", "-u", "http://127.0.0.1:1", "-p", "window"], "NAME=NUMBER"),
        (["serve", "-u", "http://127.0.0.1:1", "-s", "static", "-p", "window=0"], "window"),
        (["serve", "-u", "http://127.0.0.1:1", "--host", "::"], "--token-file"),
        (["serve", "-u", "http://127.0.0.1:1", "--token-file", "/none"], "cannot read"),
        (["record", "-u", "http://127.0.0.1:1", "--out", "/none/t.jsonl"], "cannot write"),
    ],
)
def test_command_line_mistakes_exit_2_with_one_line(argv, what, capsys):
    """Nothing listens, nothing is written, and the line says what to change."""
    with pytest.raises(SystemExit) as stop:
        main([*argv, "--port", "0"])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert what in lines[-1]
    assert len(lines) == 1


def test_gateway_errors_never_show_content(any_rig, caplog):
    """A turn that fails in every way leaves no text of its prompt in the log."""

    async def story():
        plans = [FakeAnswer(status=500), FakeAnswer(fault="cut"), FakeAnswer(fault="garbage")]
        async with any_rig(backends=[FakeBackend(plan=lambda n, _b: plans[n % 3])]) as r:
            for number in range(3):
                await r.chat([{"role": "user", "content": "SECRET"}], stream=number == 1)
            await r.client.post("/v1/chat/completions", content=b'{"messages": SECRET')

    asyncio.run(story())
    assert "SECRET" not in caplog.text
