"""A chat server for benchmarks of what stands in front of it: the least work that streams events.

Like an engine it works in steps: every ``--itl-ms`` each running stream gets one event, in a segment of
its own. Replies have between half and one and a half times ``--tokens``. No ASGI and no task; one core sends about 100,000 events a second, which the script that
starts it measures and prints as the row ``backend``.
"""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

import httptools
import uvloop

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\n"
CHUNKED = HEAD % b"text/event-stream" + b"transfer-encoding: chunked\r\n\r\n"
METRICS = (
    b'vllm:num_requests_running{model_name="fake"} 0.0\n'
    b'vllm:num_requests_waiting{model_name="fake"} 0.0\n'
    b'vllm:kv_cache_usage_perc{model_name="fake"} 0.0\n'
    b'vllm:prefix_cache_queries_total{model_name="fake"} 0.0\n'
    b'vllm:prefix_cache_hits_total{model_name="fake"} 0.0\n'
    b'vllm:cache_config_info{block_size="16",num_gpu_blocks="100001"} 1.0\n'
)
META = b'"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"fake"'
USAGE = b'"usage":{"prompt_tokens":300,"completion_tokens":%d,"total_tokens":%d}'


def event(data: bytes) -> bytes:
    found = b"data: " + data + b"\n\n"
    return b"%x\r\n" % len(found) + found + b"\r\n"


def choice(delta: bytes, reason: bytes = b"null") -> bytes:
    return event(
        b"{" + META + b',"choices":[{"index":0,"delta":' + delta
        + b',"logprobs":null,"finish_reason":' + reason + b"}]}"
    )  # fmt: skip


def whole(body: bytes, kind: bytes = b"application/json") -> bytes:
    return HEAD % kind + b"content-length: %d\r\n\r\n" % len(body) + body


class StepEngine:
    """Everybody's next token, at each step."""

    def __init__(self, options: argparse.Namespace, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.running: dict[BackendConnection, int] = {}
        """Connection -> events still to send."""
        self.itl_s, self.ttft_s = options.itl_ms / 1e3, options.ttft_ms / 1e3
        self.tokens = options.tokens
        self.token = choice(b'{"content":" token"}')
        self.last = choice(b"{}", b'"stop"') + event(b"[DONE]") + b"0\r\n\r\n"
        counts = USAGE % (self.tokens, 300 + self.tokens)
        self.last_counted = (
            choice(b"{}", b'"stop"')
            + event(b"{" + META + b',"choices":[],' + counts + b"}")
            + event(b"[DONE]") + b"0\r\n\r\n"
        )  # fmt: skip
        message = (
            b'{"index":0,"message":{"role":"assistant","content":" token"},"finish_reason":"stop"}'
        )
        self.plain = whole(b"{" + META + b',"choices":[' + message + b"]," + counts + b"}")
        self.stepping = False
        self.count = 0

    def start(self, client: BackendConnection) -> None:
        client.transport.write(CHUNKED + choice(b'{"role":"assistant","content":""}') + self.token)
        self.count += 1
        spread = self.tokens // 2  # so that streams do not end all at once
        self.running[client] = self.tokens - spread + self.count * 7919 % (2 * spread + 1) - 1
        if not self.stepping:
            self.stepping = True
            self.loop.call_later(self.itl_s, self.step)

    def step(self) -> None:
        began_s = self.loop.time()
        for client, left in list(self.running.items()):
            if left:
                client.transport.write(self.token)
                self.running[client] = left - 1
            else:
                del self.running[client]
                client.transport.write(self.last_counted if client.counted else self.last)
        self.stepping = bool(self.running)
        if self.running:
            self.loop.call_at(max(began_s + self.itl_s, self.loop.time()), self.step)


class BackendConnection(asyncio.Protocol):
    """One connection."""

    transport: Any

    def __init__(self, engine: StepEngine) -> None:
        self.engine = engine
        self.parser = httptools.HttpRequestParser(self)
        self.counted = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.engine.running.pop(self, None)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.url, self.body = b"", b""

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        engine = self.engine
        if self.parser.get_method() == b"POST":
            compact = self.body.replace(b" ", b"")
            self.counted = b'"include_usage":true' in compact
            if b'"stream":true' in compact:
                engine.loop.call_later(engine.ttft_s, engine.start, self)
            else:
                self.transport.write(engine.plain)
        elif self.url == b"/metrics":
            self.transport.write(whole(METRICS, b"text/plain"))
        else:
            self.transport.write(
                whole(b'{"object":"list","data":[{"id":"fake","object":"model"}]}')
            )


async def serve(options: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    engine = StepEngine(options, loop)
    server = await loop.create_server(
        lambda: BackendConnection(engine), "127.0.0.1", options.port, backlog=1024
    )
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--ttft-ms", type=float, default=5.0)
    parser.add_argument("--itl-ms", type=float, default=1.0)
    uvloop.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
