"""Streams completions from an OpenAI-compatible server and writes down when each token came.

Prompts are token ids. A request is retried only while it has produced nothing; everything that
went wrong stays in its record, and the caller's clock keeps running.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Self

import aiohttp
import msgspec

from marsbench.engine.live.clock import Clock
from marsbench.engine.live.kinds.base import ServerKind
from marsbench.engine.live.kinds.vllm import Vllm
from marsbench.engine.live.metrics import ServerMetrics, parse_metrics
from marsbench.engine.live.request import CompletionRequest
from marsbench.errors import EngineError

DONE = b"[DONE]"
POLL_TIMEOUT_S = 5.0
KEEP_ALIVE_S = 3.0
"""Shorter than the 5 s after which uvicorn closes an idle connection, so that no request is sent
into a connection that is being closed."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a client waits for a server, and how often it tries again."""

    connect_s: float = 10.0
    idle_s: float = 300.0
    """Longest silence of a stream, first token included."""
    total_s: float | None = None
    """A whole request, all tries; None = as long as it streams."""
    max_tries: int = 3
    backoff_s: float = 0.5
    """Before the second try; doubled for each further one. ``Retry-After`` wins."""
    retry_statuses: frozenset[int] = frozenset({429, 502, 503})


@dataclass(slots=True)
class Completion:
    """What a server answered to one request. Times are picoseconds on the client's clock; -1 means
    that it did not happen.
    """

    asked_tokens: int = 0
    """How many output tokens the request asked for."""
    sent_ps: int = -1
    """When the last byte of the (last) try was handed to the socket."""
    first_ps: int = -1
    end_ps: int = -1
    token_ps: list[int] = field(default_factory=list)
    """Arrival of each output token (tokens of one chunk share a time)."""
    token_ids: list[int] = field(default_factory=list)
    prompt_tokens: int = -1
    """As the server counted; -1 = it did not say."""
    output_tokens: int = 0
    cached_tokens: int | None = None
    queue_s: float | None = None
    """Time from submission to first schedule, as the server measured it."""
    prefill_s: float | None = None
    """Time from first schedule to first token, as the server measured it."""
    decode_s: float | None = None
    """Time from first to last token, as the server measured it."""
    tries: int = 0
    status: str = "ok"
    """ok | error | timeout | disconnect"""
    problems: list[str] = field(default_factory=list)
    """One line for each try that failed."""

    @property
    def ok(self) -> bool:
        """Whether the request was answered to the end."""
        return self.status == "ok"


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = -1
    completion_tokens: int = -1
    prompt_tokens_details: _Details | None = None


class _Metrics(msgspec.Struct):
    queue_time_ms: float | None = None
    time_to_first_token_ms: float | None = None
    generation_time_ms: float | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    token_ids: list[int] | None = None


class _Chunk(msgspec.Struct):
    """The fields of a stream's chunk that are read; others are skipped, not parsed."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    metrics: _Metrics | None = None
    error: Any = None


class _TryFailedError(Exception):
    def __init__(self, status: str, problem: str, retry_after_s: float | None = None) -> None:
        super().__init__(problem)
        self.status = status
        self.retry_after_s = retry_after_s
        self.may_retry = False


class Client:
    """A connection to one server. Use it as an asynchronous context manager, in one event loop."""

    def __init__(
        self,
        url: str,
        model: str,
        *,
        clock: Clock,
        kind: ServerKind | None = None,
        patience: Patience | None = None,
        api_key: str = "",
    ) -> None:
        self.url = url.rstrip("/")
        self.model = model
        self.clock = clock
        self.kind = kind or Vllm()
        self.patience = patience or Patience()
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._chunks = msgspec.json.Decoder(_Chunk)
        self._encode = msgspec.json.Encoder().encode
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        trace = aiohttp.TraceConfig()
        trace.on_request_chunk_sent.append(self._sent)
        patience = self.patience
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=patience.connect_s, sock_read=patience.idle_s
            ),
            headers=self._headers,
            trace_configs=[trace],
            read_bufsize=1 << 20,
        )
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    @property
    def http(self) -> aiohttp.ClientSession:
        """The HTTP session, which is open inside the context."""
        if self._session is None:
            raise EngineError("the client is used outside its `async with` block")
        return self._session

    async def complete(
        self,
        request: CompletionRequest,
        *,
        on_first: Callable[[int], None] | None = None,
        into: Completion | None = None,
    ) -> Completion:
        """Send a turn and read its stream to the end; never raises for what a server can do.

        ``on_first`` is called once, with the time of the first token. ``into`` is filled while
        tokens arrive, for those who watch.
        """
        body = self._encode(self._body(request))
        done = Completion() if into is None else into
        done.asked_tokens = request.output_tokens
        try:
            async with asyncio.timeout(self.patience.total_s):
                await self._tries(body, done, on_first)
        except TimeoutError:
            done.status = "timeout"
            done.problems.append(f"no complete answer within {self.patience.total_s:g} s")
        done.end_ps = done.token_ps[-1] if done.ok and done.token_ps else self.clock.now_ps()
        return done

    async def metrics(self) -> ServerMetrics | None:
        """Return what the server's ``/metrics`` page says now, or None if it has none or does not
        answer.
        """
        names = self.kind.metrics
        if names is None:
            return None
        timeout = aiohttp.ClientTimeout(total=POLL_TIMEOUT_S)
        try:
            async with self.http.get(f"{self.url}/metrics", timeout=timeout) as reply:
                return parse_metrics(await reply.read(), names) if reply.status == 200 else None
        except (aiohttp.ClientError, TimeoutError):
            return None

    async def _tries(
        self, body: bytes, done: Completion, on_first: Callable[[int], None] | None
    ) -> None:
        patience = self.patience
        while True:
            done.tries += 1
            try:
                await self._stream(body, done, on_first)
            except _TryFailedError as failed:
                done.status = failed.status
                done.problems.append(str(failed))
                nothing_yet = not done.token_ps
                if done.tries >= patience.max_tries or not (failed.may_retry and nothing_yet):
                    return
                pause_s = patience.backoff_s * 2 ** (done.tries - 1)
                await asyncio.sleep(
                    pause_s if failed.retry_after_s is None else failed.retry_after_s
                )
            else:
                done.status = "ok"
                return

    def _body(self, request: CompletionRequest) -> dict[str, Any]:
        return {
            "model": self.model,
            "prompt": request.prompt,
            "max_tokens": request.output_tokens,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.kind.fields(request),
        }

    async def _sent(self, _session: object, context: SimpleNamespace, _params: object) -> None:
        done = context.trace_request_ctx
        if isinstance(done, Completion):
            done.sent_ps = self.clock.now_ps()

    async def _stream(
        self, body: bytes, done: Completion, on_first: Callable[[int], None] | None
    ) -> None:
        """Send a request once and read its answer; ``complete`` decides about a second try."""
        try:
            async with self.http.post(
                f"{self.url}/v1/completions",
                data=body,
                headers={"Content-Type": "application/json"},
                trace_request_ctx=done,
            ) as reply:
                if reply.status != 200:
                    raise await self._refused(reply)
                if not await self._read(reply, done, on_first):
                    raise _TryFailedError("disconnect", "the stream ended without [DONE]")
        except TimeoutError as error:
            raise _TryFailedError(
                "timeout", f"silent for {self.patience.idle_s:g} s: {error}"
            ) from error
        except aiohttp.ClientConnectorError as error:
            failed = _TryFailedError("disconnect", f"cannot connect: {error}")
            failed.may_retry = True
            raise failed from error
        except aiohttp.ClientError as error:
            failed = _TryFailedError("disconnect", f"{type(error).__name__}: {error}")
            failed.may_retry = isinstance(error, aiohttp.ServerDisconnectedError)
            raise failed from error

    async def _refused(self, reply: aiohttp.ClientResponse) -> _TryFailedError:
        text = (await reply.text(errors="replace")).strip().replace("\n", " ")[:300]
        after = reply.headers.get("Retry-After", "")
        failed = _TryFailedError(
            "error", f"HTTP {reply.status}: {text}", float(after) if after.isdigit() else None
        )
        failed.may_retry = reply.status in self.patience.retry_statuses
        return failed

    async def _read(
        self,
        reply: aiohttp.ClientResponse,
        done: Completion,
        on_first: Callable[[int], None] | None,
    ) -> bool:
        """Read server-sent events, and return whether the stream came to its regular end.

        The time of a token is when the first bytes of its event came, before they are parsed: the
        first event can carry the whole prompt back.
        """
        rest = b""
        began_ps = -1
        async for data in reply.content.iter_any():
            now_ps = self.clock.now_ps()
            if began_ps < 0 or not rest:
                began_ps = now_ps
            *events, rest = (rest + data.replace(b"\r", b"")).split(b"\n\n")
            for event in events:
                if not event.startswith(b"data:"):
                    continue  # a comment that keeps the connection alive
                payload = event[5:].strip()
                if payload == DONE:
                    return True
                self._take(payload, done, began_ps, on_first)
                began_ps = now_ps
        return False

    def _take(
        self,
        payload: bytes,
        done: Completion,
        at_ps: int,
        on_first: Callable[[int], None] | None,
    ) -> None:
        try:
            chunk = self._chunks.decode(payload)
        except msgspec.DecodeError as error:
            raise _TryFailedError("error", f"not an OpenAI stream: {error}") from error
        if chunk.error is not None:
            raise _TryFailedError("error", f"the server reports: {chunk.error}")
        for choice in chunk.choices:
            count = len(choice.token_ids) if choice.token_ids is not None else bool(choice.text)
            if count and done.first_ps < 0:
                done.first_ps = at_ps
                if on_first is not None:
                    on_first(at_ps)
            done.token_ps.extend([at_ps] * count)
            done.token_ids.extend(choice.token_ids or ())
        done.output_tokens = len(done.token_ps)
        if chunk.usage is not None:
            done.prompt_tokens = chunk.usage.prompt_tokens
            if chunk.usage.completion_tokens >= 0:
                done.output_tokens = chunk.usage.completion_tokens
            details = chunk.usage.prompt_tokens_details
            done.cached_tokens = details.cached_tokens if details is not None else None
        if chunk.metrics is not None:
            done.queue_s = _seconds(chunk.metrics.queue_time_ms)
            done.prefill_s = _seconds(chunk.metrics.time_to_first_token_ms)
            done.decode_s = _seconds(chunk.metrics.generation_time_ms)


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000.0
