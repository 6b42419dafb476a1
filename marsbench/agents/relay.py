"""The brain's place: a small server between the gateway and the engine that answers for the model.

For a session with a script, the engine gets the agent's own prompt and generates exactly as many tokens
as the recorded reply had, so its load, its KV cache and its batches are those of the real thing; the
agent gets the recorded reply, the moment the engine is done. Sessions without a script pass through.
It stands behind the gateway, which therefore sees prompts, replies and times as it always does.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

from marsbench.agents.task import ScriptedReply

HOP = frozenset(("host", "content-length", "transfer-encoding", "connection", "accept-encoding"))
SESSION_HEADERS = ("x-session-id", "x-litellm-session-id")
KEEP_ALIVE_S = 3.0
"""Of idle connections to the engine; uvicorn, which vLLM runs on, closes its own after 5 s."""
MAX_BODY_BYTES = 64 << 20
DROPPED = ("max_completion_tokens", "n", "stop", "parallel_tool_calls", "response_format")
"""Fields of a request that say something about the text, which is not the engine's here."""


@dataclass(frozen=True, slots=True)
class RequestNote:
    """One request of an agent, as it came."""

    session: str
    turn: int
    roles: str
    """First letters of its messages' roles."""
    status: int


@dataclass(slots=True)
class Relay:
    """Serves on loopback between ``start`` and ``stop``; ``url`` is where."""

    upstream: str
    scripts: Mapping[str, Sequence[ScriptedReply]]
    """By session; messages as the agent is to get them."""
    exact: Mapping[str, Any] = field(default_factory=lambda: {"ignore_eos": True})
    """Request fields with which the engine generates all the tokens that are asked for."""
    url: str = ""
    notes: list[RequestNote] = field(default_factory=list)
    wrong_lengths: int = 0
    """Turns for which the engine generated another number of tokens than asked."""
    _client: aiohttp.ClientSession | None = None
    _runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen."""
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_route("*", "/{path:.*}", self._pass)
        self._client = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
            read_bufsize=1 << 20,  # a line of a stream may be long
        )
        self._runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=1.0, handler_cancellation=True
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"

    async def stop(self) -> None:
        """Close what is open."""
        if self._runner is not None:
            await self._runner.cleanup()
        if self._client is not None:
            await self._client.close()

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        body = json.loads(raw)
        session = next((request.headers[n] for n in SESSION_HEADERS if n in request.headers), "")
        roles = [str(message.get("role", "?")) for message in body.get("messages", ())]
        turn = roles.count("assistant")
        script = self.scripts.get(session)
        if script is None:
            response = await self._pass(request)
        elif turn >= len(script):
            response = _problem(400, f"the script has {len(script)} replies and is over")
        else:
            response = await self._scripted(request, body, script[turn])
        letters = "".join(role[0] for role in roles)
        self.notes.append(RequestNote(session, turn, letters, response.status))
        return response

    async def _scripted(
        self, request: web.Request, body: dict[str, Any], step: ScriptedReply
    ) -> web.StreamResponse:
        assert self._client is not None
        asked = {**_upstream_body(body, step.output_tokens), **self.exact}
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": 0, "model": body.get("model", "")}
        try:
            async with self._client.post(
                f"{self.upstream}/v1/chat/completions", json=asked, headers=_kept(request)
            ) as answer:
                if answer.status != 200:
                    return web.Response(
                        status=answer.status,
                        body=await answer.read(),
                        content_type="application/json",
                    )
                return await self._reply(request, body, step, answer, head)
        except (aiohttp.ClientError, ValueError) as error:
            return _problem(502, f"the engine's answer is broken: {type(error).__name__}")

    async def _reply(
        self,
        request: web.Request,
        body: dict[str, Any],
        step: ScriptedReply,
        answer: aiohttp.ClientResponse,
        head: dict[str, Any],
    ) -> web.StreamResponse:
        """The recorded reply, begun at the engine's first token and ended with its last."""
        usage: dict[str, Any] | None = None
        stream: web.StreamResponse | None = None
        async for chunk in _events(answer):
            usage = chunk.get("usage") or usage
            head["created"] = chunk.get("created") or head["created"]
            if chunk.get("error"):
                return _problem(502, f"the engine reported an error: {chunk['error']}")
            if stream is None and body.get("stream") and _has_output(chunk):
                stream = web.StreamResponse(headers={"content-type": "text/event-stream"})
                await stream.prepare(request)
                await stream.write(_sse({**head, **_delta({"role": "assistant", "content": ""})}))
                await stream.write(_sse({**head, **_delta(_first(step.message))}))
        if usage is None:
            return _problem(502, "the engine ended its answer early")
        self.wrong_lengths += usage.get("completion_tokens") != step.output_tokens
        reason = "tool_calls" if step.message.get("tool_calls") else "stop"
        if stream is None:
            choice = {"index": 0, "message": _message(step.message), "finish_reason": reason}
            whole = {**head, "object": "chat.completion", "choices": [choice], "usage": usage}
            return web.json_response(whole)
        for delta in _rest(step.message):
            await stream.write(_sse({**head, **_delta(delta)}))
        await stream.write(_sse({**head, **_delta({}, reason)}))
        if (body.get("stream_options") or {}).get("include_usage"):
            await stream.write(_sse({**head, "object": CHUNK, "choices": [], "usage": usage}))
        await stream.write(b"data: [DONE]\n\n")
        await stream.write_eof()
        return stream

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        """Anything else, as it is."""
        assert self._client is not None
        data = await request.read()
        try:
            async with self._client.request(
                request.method, self.upstream + request.rel_url.path_qs, data=data,
                headers=_kept(request), allow_redirects=False,
            ) as answer:  # fmt: skip
                kind = answer.headers.get("content-type", "application/json")
                response = web.StreamResponse(status=answer.status, headers={"content-type": kind})
                await response.prepare(request)
                async for part in answer.content.iter_any():
                    await response.write(part)
                await response.write_eof()
                return response
        except aiohttp.ClientError as error:
            return _problem(502, f"the engine does not answer: {type(error).__name__}")


CHUNK = "chat.completion.chunk"


def _upstream_body(body: Mapping[str, Any], output_tokens: int) -> dict[str, Any]:
    """The same prompt, and exactly so many tokens of whatever the model says."""
    asked = {name: value for name, value in body.items() if name not in DROPPED}
    if asked.get("tools"):
        asked["tool_choice"] = "none"  # they stay in the prompt; nothing is parsed from the output
    return asked | {
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": output_tokens,
    }


def _kept(request: web.Request) -> dict[str, str]:
    return {name: value for name, value in request.headers.items() if name.lower() not in HOP}


async def _events(answer: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    async for line in answer.content:
        data = line.strip().removeprefix(b"data:").strip()
        if data and data != b"[DONE]" and line.startswith(b"data:"):
            yield json.loads(data)


def _has_output(chunk: Mapping[str, Any]) -> bool:
    """Whether a chunk carries a token; the first one of vLLM only says who speaks."""
    return any(
        choice.get("delta", {}).get(name)
        for choice in chunk.get("choices") or ()
        for name in ("content", "reasoning_content", "reasoning", "tool_calls")
    )


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": message.get("content") or "", **_calls(message)}


def _calls(message: Mapping[str, Any]) -> dict[str, Any]:
    calls = message.get("tool_calls")
    return {"tool_calls": list(calls)} if calls else {}


def _first(message: Mapping[str, Any]) -> dict[str, Any]:
    """What goes out with the first token: the text's beginning, else the first call's name."""
    if text := message.get("content"):
        return {"content": text[:1]}
    call = message["tool_calls"][0]
    return {"tool_calls": [_call(0, call, "")]}


def _rest(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What goes out with the last token."""
    text = message.get("content") or ""
    deltas: list[dict[str, Any]] = [{"content": text[1:]}] if len(text) > 1 else []
    for index, call in enumerate(message.get("tool_calls") or ()):
        arguments = call["function"]["arguments"]
        if index == 0 and not text:
            part = {"index": 0, "function": {"arguments": arguments}}
        else:
            part = _call(index, call, arguments)
        deltas.append({"tool_calls": [part]})
    return deltas


def _call(index: int, call: Mapping[str, Any], arguments: str) -> dict[str, Any]:
    function = {"name": call["function"]["name"], "arguments": arguments}
    return {"index": index, "id": call["id"], "type": "function", "function": function}


def _delta(delta: Mapping[str, Any], reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": dict(delta), "finish_reason": reason}
    return {"object": CHUNK, "choices": [choice]}


def _sse(chunk: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def _problem(status: int, message: str) -> web.Response:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return web.json_response({"error": {"message": message, "type": kind}}, status=status)
