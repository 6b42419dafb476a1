"""`marsbench doctor --serve`: a line for each thing that serving needs, and status 1 if it cannot work."""

from __future__ import annotations

import asyncio
import json
import socket
import threading

import pytest
import uvicorn
from typer.testing import CliRunner

from marsbench.cli import app
from marsbench.engine.link.sockets import Inlet
from marsbench.gateway import preflight
from marsbench.gateway.backends.fake import FakeBackend
from marsbench.gateway.settings import GatewaySettings


@pytest.fixture
def url():
    """A fake vLLM in a thread of its own."""
    config = uvicorn.Config(
        FakeBackend(), http="httptools", ws="none", lifespan="off", log_level="critical"
    )
    server = uvicorn.Server(config)
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen(16)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    server.should_exit = True
    thread.join()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def states(**settings):
    """topic -> (state, text) of the verdicts."""
    made = GatewaySettings(**settings)
    return {v.topic: (v.state, v.text) for v in preflight.examine(made)}


def test_a_good_deployment_is_told_line_by_line(url, tmp_path, monkeypatch):
    """Model, version, KV cache, port, disk; and a scheduler that listens at --publish has joined."""
    monkeypatch.chdir(tmp_path)
    address = "ipc://events"
    listener = Inlet(address)
    try:
        found = states(
            backends=(url,), system="mars", tool_cores=4, port=free_port(), out=tmp_path / "run",
            publish=address,
        )  # fmt: skip
    finally:
        listener.close()
    assert not [topic for topic, (state, _) in found.items() if state == "broken"]
    assert "serves fake" in found["upstream 0"][1]
    assert found["plug-in"] == ("ok", "a scheduler listens at ipc://events")
    assert found["--out"][0] == "ok"
    assert found["system"] == ("ok", "mars, told of h100-nvl/qwen3-coder-30b-a3b")


def test_each_thing_that_is_wrong_is_named(url, tmp_path):
    """An unknown system, a port that is taken, no room, a server that is not there, a silent plug-in."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = states(
            backends=(url, f"http://127.0.0.1:{free_port()}"), system="marz", port=port,
            out=tmp_path / "run", out_bytes=1 << 60, publish=f"ipc://{tmp_path}/nobody",
        )  # fmt: skip
    assert found["system"][0] == "broken"
    assert "did you mean 'mars'" in found["system"][1]
    assert found["port"][0] == "broken"
    assert "choose another port" in found["port"][1]
    assert found["--out"][0] == "broken"
    assert "MiB are free" in found["--out"][1]
    assert found["upstream 0"][0] == "ok"
    assert found["upstream 1"][0] == "broken"
    assert found["plug-in"][0] == "missing"
    assert "--scheduler-cls" in found["plug-in"][1]


@pytest.mark.parametrize(
    ("pages", "topic", "text"),
    [
        ({"/v1/models": (401, b"")}, "upstream 0", "--upstream-key-file"),
        ({"/v1/models": (200, b"<html>")}, "upstream 0", "names no model"),
        ({"/version": (200, b'{"version":"0.31.1"}')}, "upstream 0 version", "the plug-in needs"),
        ({"/version": (200, b'{"version":"0.32.4+cpu"}')}, "upstream 0 version", "vLLM 0.32.4"),
        ({"/metrics": (404, b"")}, "upstream 0 metrics", "by the profile"),
        ({"/metrics": (200, b"vllm:kv_cache_usage_perc 0.1\n")}, "upstream 0 metrics", "KV blocks"),
    ],
)
def test_what_a_server_says_of_itself_is_judged(pages, topic, text):
    """Keys, models, versions that the plug-in runs in, and the metrics that policies read."""
    usual = {"/v1/models": (200, b'{"data":[{"id":"m"}]}')}

    async def story():
        async def handle(reader, writer):
            head = await reader.readuntil(b"\r\n\r\n")
            path = head.split(b" ")[1].decode()
            status, body = {**usual, **pages}.get(path, (404, b""))
            writer.write(
                b"HTTP/1.1 %d X\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
                % (status, len(body))
            )
            writer.write(body)
            await writer.drain()
            writer.close()
            await writer.wait_closed()

        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        settings = GatewaySettings(backends=(f"http://127.0.0.1:{port}",))
        found = await preflight._upstreams(settings)
        server.close()
        return {verdict.topic: verdict.text for verdict in found}

    assert text in asyncio.run(story())[topic]


def test_too_few_descriptors_are_told_with_the_command(monkeypatch):
    """How many clients they are enough for, and how to raise them."""
    monkeypatch.setattr(preflight.resource, "getrlimit", lambda _: (1024, 4096))
    verdict = preflight._descriptors(GatewaySettings(backends=("http://h",)))
    assert verdict.state == "missing"
    assert "412 clients" in verdict.text
    assert "ulimit -n 8392 (hard limit 4096)" in verdict.text


def test_the_command_says_so_and_exits_with_1(url):
    """One line each; JSON for scripts."""
    run = CliRunner()
    good = run.invoke(app, ["doctor", "--serve", "-u", url, "--port", str(free_port()), "--json"])
    assert good.exit_code == 0, good.output
    assert {row["state"] for row in json.loads(good.stdout)} <= {"ok", "missing"}
    gone = f"http://127.0.0.1:{free_port()}"
    bad = run.invoke(app, ["doctor", "--serve", "-u", gone, "--port", str(free_port())])
    assert bad.exit_code == 1
    assert any(line.startswith("broken   upstream 0") for line in bad.output.splitlines())
