"""An OpenAI-compatible chat server without a model: for tests and to measure the gateway.

It streams invented tokens at set times, counts prompt tokens as characters ÷ 4, answers /metrics
like vLLM, and fails on purpose. Run it with ``python -m marsbench.gateway.backends.fake``.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from marsbench.gateway.backends.messages import Message, Receive, Send

FAULTS = ("", "cut", "garbage", "hang", "stall", "garbage-event")
CHARS_PER_TOKEN = 4
BLOCK_TOKENS = 16


@dataclass(frozen=True, slots=True)
class FakeAnswer:
    """How one request is answered."""

    output: tuple[str, ...] = ("one ", "two ", "three ", "four")
    """One stream event each."""
    calls: tuple[tuple[str, str, str], ...] = ()
    """(id, tool name, JSON arguments)."""
    ttft_s: float = 0.0
    itl_s: float = 0.0
    status: int = 200
    body: bytes = b'{"error":{"message":"made to fail","type":"server_error"}}'
    """Of answers that are not 200."""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    usage: bool = True
    cached_tokens: int | None = None
    fault: str = ""
    """``cut`` breaks the connection after half the output, ``garbage`` answers no JSON,
    ``garbage-event`` puts one such event into a stream, ``hang`` never answers, ``stall`` says
    nothing more after the first token."""


@dataclass(slots=True)
class FakeBackend:
    """An ASGI application and what it has seen."""

    plan: Callable[[int, dict[str, Any]], FakeAnswer] = lambda _number, _body: FakeAnswer()
    kv_use: float | None = None
    """Share of the KV cache in use, as /metrics tells it; None = what requests hold."""
    num_blocks: int = 1000
    is_vllm: bool = True
    healthy: bool = True
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    disconnects: int = 0
    """Requests whose client went away before the end."""
    running: int = 0
    held_blocks: int = 0
    """KV blocks of the prompts of requests that are being answered."""
    keep: bool = True
    """Remember bodies and headers."""
    asked: int = 0
    """Requests so far."""

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path = scope["path"]
        if path == "/health":
            await _answer(send, 200 if self.healthy else 503, b"{}")
        elif path == "/metrics":
            await _answer(send, 200 if self.is_vllm else 404, self._metrics(), b"text/plain")
        elif path == "/v1/models" or path.startswith("/v1/models/"):
            await _answer(send, 200, b'{"object":"list","data":[{"id":"fake"}]}')
        else:
            await self._completion(scope, receive, send)

    async def _completion(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        raw = b""
        more = True
        while more:
            message = await receive()
            raw += message.get("body", b"")
            more = message.get("more_body", False)
        body = msgspec.json.decode(raw)
        plan = self.plan(self.asked, body)
        self.asked += 1
        if self.keep:
            self.bodies.append(body)
            self.headers.append({k.decode(): v.decode() for k, v in scope["headers"]})
        self.running += 1
        blocks = -(-count_tokens(body) // BLOCK_TOKENS)
        self.held_blocks += blocks
        answer = asyncio.create_task(
            self._respond(body, plan, send, chat="/chat/" in scope["path"])
        )
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                self.disconnects += 1
                answer.cancel()
                await asyncio.wait({answer})
        finally:
            self.running -= 1
            self.held_blocks -= blocks
            gone.cancel()

    async def _respond(
        self, body: dict[str, Any], plan: FakeAnswer, send: Send, *, chat: bool
    ) -> None:
        if plan.fault == "hang":
            await asyncio.sleep(3600)
        await asyncio.sleep(plan.ttft_s)
        if plan.status != 200:
            await _answer(send, plan.status, plan.body, headers=plan.headers)
        elif body.get("stream"):
            await self._stream(body, plan, send, chat=chat)
        elif plan.fault == "garbage":
            await _answer(send, 200, b"<html>not JSON")
        else:
            await _answer(send, 200, msgspec.json.encode(_whole(body, plan, chat=chat)))

    async def _stream(
        self, body: dict[str, Any], plan: FakeAnswer, send: Send, *, chat: bool
    ) -> None:
        headers = [(b"content-type", b"text/event-stream"), *plan.headers]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for index, text in enumerate(plan.output):
            if plan.fault == "cut" and index == len(plan.output) // 2:
                return  # without the last chunk: the connection breaks
            if plan.fault == "garbage-event" and index == 1:
                await _more(send, b"data: {not json\n\n")
            choice = (
                {"index": 0, "delta": {"content": text}} if chat else {"index": 0, "text": text}
            )
            await _event(send, {"id": "r1", "choices": [choice]})
            if plan.fault == "stall":
                await asyncio.sleep(3600)
            if plan.itl_s:
                await asyncio.sleep(plan.itl_s)
        for index, (call_id, name, arguments) in enumerate(plan.calls):
            call = {"index": index, "id": call_id, "function": {"name": name, "arguments": ""}}
            await _event(
                send, {"id": "r1", "choices": [{"index": 0, "delta": {"tool_calls": [call]}}]}
            )
            for part in (arguments[:5], arguments[5:]):
                call = {"index": index, "function": {"arguments": part}}
                delta = {"tool_calls": [call]}
                await _event(send, {"id": "r1", "choices": [{"index": 0, "delta": delta}]})
        reason = "tool_calls" if plan.calls else "stop"
        await _event(
            send, {"id": "r1", "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}
        )
        if plan.usage and (body.get("stream_options") or {}).get("include_usage"):
            await _event(send, {"id": "r1", "choices": [], "usage": _usage(body, plan)})
        await _more(send, b"data: [DONE]\n\n")
        await send({"type": "http.response.body", "body": b""})

    def _metrics(self) -> bytes:
        kv_use = self.held_blocks / self.num_blocks if self.kv_use is None else self.kv_use
        label = '{engine="0",model_name="fake"}'
        return (
            f"# TYPE vllm:num_requests_running gauge\n"
            f"vllm:num_requests_running{label} {float(self.running)}\n"
            f"vllm:num_requests_waiting{label} 0.0\n"
            f"vllm:kv_cache_usage_perc{label} {kv_use}\n"
            f"vllm:prefix_cache_queries_total{label} 0.0\n"
            f"vllm:prefix_cache_hits_total{label} 0.0\n"
            f'vllm:cache_config_info{{block_size="{BLOCK_TOKENS}",engine="0",num_gpu_blocks="{self.num_blocks + 1}"}}'
            " 1.0\n"
        ).encode()


def count_tokens(body: dict[str, Any]) -> int:
    """Return the prompt tokens as this server counts them."""
    prompt = body.get("prompt")
    if isinstance(prompt, list):
        return len(prompt)
    if isinstance(prompt, str):
        return max(1, len(prompt) // CHARS_PER_TOKEN)
    return max(1, len(str(body.get("messages", body.get("input", "")))) // CHARS_PER_TOKEN)


def _usage(body: dict[str, Any], plan: FakeAnswer) -> dict[str, Any]:
    prompt = count_tokens(body)
    output = len(plan.output) + sum(len(c[2]) // CHARS_PER_TOKEN + 1 for c in plan.calls)
    usage: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
    }
    if plan.cached_tokens is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": plan.cached_tokens}
    return usage


def _whole(body: dict[str, Any], plan: FakeAnswer, *, chat: bool) -> dict[str, Any]:
    text = "".join(plan.output)
    reason = "tool_calls" if plan.calls else "stop"
    choice: dict[str, Any] = {"index": 0, "finish_reason": reason}
    if chat:
        calls = [
            {"id": i, "type": "function", "function": {"name": n, "arguments": a}}
            for i, n, a in plan.calls
        ]
        choice["message"] = {"role": "assistant", "content": text, "tool_calls": calls or None}
    else:
        choice["text"] = text
    answer: dict[str, Any] = {"id": "r1", "object": "chat.completion", "choices": [choice]}
    if plan.usage:
        answer["usage"] = _usage(body, plan)
    return answer


async def _answer(
    send: Send,
    status: int,
    body: bytes,
    kind: bytes = b"application/json",
    headers: tuple[tuple[bytes, bytes], ...] = (),
) -> None:
    own = [(b"content-type", kind), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": own})
    await send({"type": "http.response.body", "body": body})


async def _event(send: Send, chunk: dict[str, Any]) -> None:
    await _more(send, b"data: " + msgspec.json.encode(chunk) + b"\n\n")


async def _more(send: Send, data: bytes) -> None:
    message: Message = {"type": "http.response.body", "body": data, "more_body": True}
    await send(message)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def main() -> None:
    """Serve until killed."""
    import uvicorn

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--ttft-ms", type=float, default=5.0)
    parser.add_argument("--itl-ms", type=float, default=0.5)
    options = parser.parse_args()
    plan = FakeAnswer(
        output=("token ",) * options.tokens,
        ttft_s=options.ttft_ms / 1e3,
        itl_s=options.itl_ms / 1e3,
    )
    backend = FakeBackend(plan=lambda _number, _body: plan)
    uvicorn.run(
        backend, port=options.port, log_level="warning", loop="uvloop", http="httptools", ws="none",
        lifespan="off",
    )  # fmt: skip


if __name__ == "__main__":
    main()
